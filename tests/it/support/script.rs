//! A source that follows a script: partitions of numbers, batches and pauses from a seed, a fault
//! where one is wanted, partitions that are assigned and revoked, and a log of what was committed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use millstream::connector::{
    CheckpointId, Committed, Offset, Offsets, OpenSource, Partition, Polled, ReadBatch, Reader, Revoked, Room,
    SharedSource, SourceEvent, Wake, Worker,
};
use millstream::{ByteSize, End, Error, ErrorKind, Result, Source};

use super::eventually;

/// What each record counts in the engine's budget.
pub const RECORD: ByteSize = ByteSize(64);

/// A scripted source, as the module says.
#[derive(Clone)]
pub struct Script {
    partitions: Vec<Vec<u64>>,
    seed: u64,
    batch_max: usize,
    fails_at: Option<usize>,
    endless: bool,
    connects_again_when: Option<Arc<AtomicBool>>,
    pub log: Arc<Log>,
}

/// What happened to a script.
#[derive(Default)]
pub struct Log {
    /// The newest offset committed, by partition.
    pub committed: Mutex<BTreeMap<String, u64>>,
    /// Every commit, in order.
    pub commits: Mutex<Vec<Vec<(String, u64)>>>,
    pub connects: AtomicUsize,
    pub unassigned: Mutex<Vec<String>>,
    /// Changes that the next `serve` reports.
    changes: Mutex<Vec<SourceEvent>>,
    wake: Mutex<Option<Wake>>,
    /// While set, commits are not answered.
    pub hold_commits: AtomicBool,
    unanswered: Mutex<Vec<CheckpointId>>,
    /// While set, a reader that is polled fails.
    pub fails: AtomicBool,
    /// The number of records that readers have returned.
    pub read: AtomicUsize,
    /// The memory for prefetching that the source was given.
    pub prefetch: AtomicU64,
}

impl Log {
    pub fn committed(&self) -> u64 {
        self.committed.lock().unwrap().values().sum()
    }

    pub fn revoke(&self, partitions: &[&str]) {
        let revoked = Revoked::new(partitions.iter().map(|name| Partition::new(*name)).collect());
        self.change(SourceEvent::Revoked(revoked));
    }

    pub fn lose(&self, partitions: &[&str]) {
        let revoked = Revoked::new(partitions.iter().map(|name| Partition::new(*name)).collect());
        self.change(SourceEvent::Lost(revoked));
    }

    fn change(&self, change: SourceEvent) {
        self.changes.lock().unwrap().push(change);
        self.wake.lock().unwrap().as_ref().expect("the job runs").wake();
    }
}

impl Script {
    /// One partition per list. Batches have up to 64 records; sizes and pauses depend on the seed.
    pub fn new(partitions: Vec<Vec<u64>>, seed: u64) -> Script {
        Script {
            partitions,
            seed,
            batch_max: 64,
            fails_at: None,
            endless: false,
            connects_again_when: None,
            log: Arc::default(),
        }
    }

    /// The first `count` numbers from 0, dealt to the partitions in turn.
    pub fn numbers(count: u64, partitions: usize, seed: u64) -> Script {
        let deal = |partition: usize| (partition as u64..count).step_by(partitions).collect();
        Script::new((0..partitions).map(deal).collect(), seed)
    }

    pub fn batches_of(self, batch_max: usize) -> Script {
        Script { batch_max, ..self }
    }

    /// Each reader fails at this poll of its own, on the first connection only.
    pub fn failing_at(self, poll: usize) -> Script {
        Script { fails_at: Some(poll), ..self }
    }

    /// Every connection except the first waits until this is set.
    pub fn connecting_again_when(self, may_connect: Arc<AtomicBool>) -> Script {
        Script { connects_again_when: Some(may_connect), ..self }
    }

    /// Readers wait for more after their last record.
    pub fn endless(self) -> Script {
        Script { endless: true, ..self }
    }
}

pub struct Shared {
    script: Script,
    start: Vec<usize>,
    is_first: bool,
}

impl Source for Script {
    type Item = u64;
    type Shared = Shared;
    type Reader = ScriptReader;

    fn name(&self) -> String {
        "script".to_owned()
    }

    fn connect(self, open: OpenSource) -> Result<Shared> {
        let is_first = self.log.connects.fetch_add(1, SeqCst) == 0;
        let may_connect = self.connects_again_when.iter().filter(|_| !is_first);
        may_connect.for_each(|may_connect| eventually("it may connect", || may_connect.load(SeqCst)));
        *self.log.wake.lock().unwrap() = Some(open.wake.clone());
        self.log.prefetch.store(open.prefetch.0, SeqCst);
        let start = (0..self.partitions.len()).map(|index| {
            let next = open.resume.position(&partition(index));
            next.map_or(0, |next| next.0 as usize)
        });
        Ok(Shared { start: start.collect(), script: self, is_first })
    }

    fn reader(shared: &Arc<Shared>, worker: Worker, wake: Wake) -> Result<ScriptReader> {
        let own = (0..shared.script.partitions.len()).filter(|index| index % worker.peers == worker.index);
        Ok(ScriptReader {
            next: own.map(|index| (index, shared.start[index])).collect(),
            shared: Arc::clone(shared),
            random: fastrand::Rng::with_seed(shared.script.seed ^ worker.index as u64),
            wake,
            polls: 0,
            forgotten: Vec::new(),
        })
    }
}

fn partition(index: usize) -> Partition {
    Partition::new(format!("p{index}"))
}

impl SharedSource for Shared {
    fn begin(&self) -> Result<()> {
        Ok(())
    }

    fn serve(&self) -> Result<Vec<SourceEvent>> {
        let log = &self.script.log;
        let mut changes = std::mem::take(&mut *log.changes.lock().unwrap());
        if !log.hold_commits.load(SeqCst) {
            changes.extend(log.unanswered.lock().unwrap().drain(..).map(SourceEvent::Committed));
        }
        Ok(changes)
    }

    fn commit(&self, checkpoint: CheckpointId, offsets: &Offsets) -> Result<Committed> {
        let log = &self.script.log;
        let commit: Vec<(String, u64)> =
            offsets.iter().map(|(partition, next)| (partition.name().to_owned(), next.0)).collect();
        // In this order: who sees how far it is committed finds the commit too.
        log.commits.lock().unwrap().push(commit.clone());
        log.committed.lock().unwrap().extend(commit);
        if log.hold_commits.load(SeqCst) {
            log.unanswered.lock().unwrap().push(checkpoint);
            return Ok(Committed::Later);
        }
        Ok(Committed::Now)
    }

    fn unassign(&self, revoked: Revoked) -> Result<()> {
        let names = revoked.partitions().iter().map(|partition| partition.name().to_owned());
        self.script.log.unassigned.lock().unwrap().extend(names);
        Ok(())
    }
}

pub struct ScriptReader {
    shared: Arc<Shared>,
    /// Partition and next index.
    next: Vec<(usize, usize)>,
    random: fastrand::Rng,
    wake: Wake,
    polls: usize,
    forgotten: Vec<Partition>,
}

impl Reader for ScriptReader {
    type Item = u64;

    fn poll(&mut self, batch: &mut ReadBatch<u64>, room: Room) -> Result<Polled> {
        let script = &self.shared.script;
        self.polls += 1;
        let fails = script.log.fails.load(SeqCst) || (self.shared.is_first && script.fails_at == Some(self.polls));
        if fails {
            return Err(Error::new(ErrorKind::Source, "the script says to fail"));
        }
        let open = |(index, next): &(usize, usize)| {
            *next < script.partitions[*index].len() && !self.forgotten.contains(&partition(*index))
        };
        let ready: Vec<usize> = (0..self.next.len()).filter(|position| open(&self.next[*position])).collect();
        if ready.is_empty() {
            return Ok(if script.endless { Polled::Idle } else { Polled::Ended(End::OfTime) });
        }
        if self.random.u8(..4) == 0 {
            // A pause: nothing now, but soon.
            self.wake.wake();
            return Ok(Polled::Idle);
        }
        let (index, next) = &mut self.next[ready[self.random.usize(..ready.len())]];
        let values = &script.partitions[*index];
        let count = self.random.usize(1..=script.batch_max).min(room.records).min(values.len() - *next);
        let count = count.min((room.bytes.0 / RECORD.0).max(1) as usize);
        batch.extend(values[*next..*next + count].iter().copied(), RECORD);
        *next += count;
        script.log.read.fetch_add(count, SeqCst);
        batch.read_to(partition(*index), Offset(*next as u64));
        Ok(Polled::More)
    }

    fn unassign(&mut self, partitions: &[Partition]) {
        self.forgotten.extend(partitions.iter().cloned());
    }
}
