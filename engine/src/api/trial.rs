//! One run of a comparison: adapters around the user's sources and sinks. Sources are read on a
//! schedule that is fixed in advance, up to an end that is the same in every run, and nothing of
//! them is committed; sinks report what they wrote. The first run decides which records are
//! compared, by taking what comes; later runs take as many of each partition.
//!
//! A record arrives when it is *due*, whenever it is read, so a run that falls behind cannot hide
//! it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::io::{
    AtStop, Closing, Committed, End, Extent, Lag, OpenSource, Polled, Reader, Resume, Revoked, Schedule, SharedSource,
    SourceEvent, Timer, together,
};
use crate::run::graph::Emits;
use crate::words::{
    CheckpointId, Clock, Error, ErrorKind, Fingerprint, Moment, Offsets, Partition, Print, ReadBatch, Result, Room,
    SinkMeter, Wake, lock,
};

/// What each source of a comparison gives to each run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    pub(super) schedule: Schedule,
    /// Records that arrive before this has passed are not measured.
    pub(super) warm_up: Duration,
}

/// What the adapters of a run share with the comparison.
pub(super) struct Trial {
    course: Course,
    clock: Clock,
    turns: Mutex<Vec<Arc<Turn>>>,
    sinks: Mutex<Vec<TrialSink>>,
    /// What the operators keep at the end, by name.
    states: Mutex<BTreeMap<String, Arc<Fingerprint>>>,
    /// What the run before took, per source.
    before: Vec<TakenBy>,
    timer: Arc<Timer>,
}

/// What the comparison reads of a sink.
#[derive(Clone)]
pub(super) struct TrialSink {
    pub(super) meter: Arc<SinkMeter>,
    pub(super) fingerprint: Arc<Fingerprint>,
    /// What its records depend on.
    pub(super) follows: Emits,
}

/// What a run took of a source.
#[derive(Clone, Debug)]
pub(super) struct TakenBy {
    start: Offsets,
    records: u64,
    of: HashMap<Partition, u64>,
}

impl Trial {
    /// A run over that course. If a run came before, it reads the same records as that one, which
    /// took `before`.
    pub(super) fn new(course: Course, before: Vec<TakenBy>) -> Trial {
        Trial {
            course,
            clock: Clock::system(),
            turns: Mutex::default(),
            sinks: Mutex::default(),
            states: Mutex::default(),
            before,
            timer: Arc::default(),
        }
    }

    /// Changes how a source connects: it begins where the run before began, and leaves no trace.
    pub(super) fn open_source(
        &self,
        index: usize,
        name: &str,
        can_be_read_again: bool,
        open: OpenSource,
    ) -> Result<OpenSource> {
        if !can_be_read_again {
            let doing = format!("cannot compare runs over `{name}`: it can be read only once");
            return Err(Error::new(ErrorKind::Config, doing));
        }
        let start = self.before.get(index).map_or_else(Offsets::new, |taken| taken.start.clone());
        Ok(OpenSource { resume: Resume::Exactly(start), extent: Extent::Sample, ..open })
    }

    /// The next source of the plan, as the engine sees it.
    pub(super) fn source(self: &Arc<Trial>, source: Arc<dyn SharedSource>) -> Arc<dyn SharedSource> {
        let mut turns = lock(&self.turns);
        let quotas = self.before.get(turns.len()).cloned();
        let schedule = self.course.schedule;
        let records = quotas.as_ref().map_or(schedule.records, |taken| taken.records);
        let taken = TakenBy { start: source.started_at(), records: 0, of: HashMap::new() };
        turns.push(Arc::new(Turn {
            schedule: Schedule { records, ..schedule },
            clock: self.clock.clone(),
            began: OnceLock::new(),
            quotas: quotas.map(|taken| taken.of),
            timer: Arc::clone(&self.timer),
            state: Mutex::new(State { taken, reserved: 0 }),
        }));
        Arc::new(TrialSource { source, trial: Arc::clone(self), index: turns.len() - 1 })
    }

    /// The reader of a source, as the engine sees it.
    pub(super) fn reader<T: 'static>(
        &self,
        index: usize,
        reader: Box<dyn Reader<Item = T>>,
        wake: Wake,
    ) -> Box<dyn Reader<Item = T>> {
        self.timer.add(wake);
        let turn = Arc::clone(&lock(&self.turns)[index]);
        Box::new(Paced { reader, turn })
    }

    /// Adds the next sink of the plan. Returns the fingerprint to which the sink adds what it
    /// writes.
    pub(super) fn sink(&self, meter: &Arc<SinkMeter>, follows: Emits) -> Arc<Fingerprint> {
        let fingerprint = Arc::<Fingerprint>::default();
        lock(&self.sinks).push(TrialSink { meter: Arc::clone(meter), fingerprint: Arc::clone(&fingerprint), follows });
        fingerprint
    }

    /// The fingerprint of what an operator keeps at the end, over all workers.
    pub(super) fn state(&self, operator: &str) -> Arc<Fingerprint> {
        Arc::clone(lock(&self.states).entry(operator.to_owned()).or_default())
    }

    /// Starts the schedule, when all sources have begun.
    fn begin(&self) -> Result<()> {
        let began = self.clock.now();
        lock(&self.sinks).iter().for_each(|sink| sink.meter.measure_from(began.after(self.course.warm_up)));
        lock(&self.turns).iter().for_each(|turn| {
            turn.began.get_or_init(|| began);
        });
        self.timer.start(self.course.schedule, &self.clock, began)
    }

    /// What the run took, per source.
    pub(super) fn taken(&self) -> Vec<TakenBy> {
        lock(&self.turns).iter().map(|turn| lock(&turn.state).taken.clone()).collect()
    }

    /// What each operator kept at the end.
    pub(super) fn states(&self) -> Vec<(String, Print)> {
        lock(&self.states).iter().map(|(name, print)| (name.clone(), print.print())).collect()
    }

    /// The run's sinks.
    pub(super) fn sinks(&self) -> Vec<TrialSink> {
        lock(&self.sinks).clone()
    }
}

impl TakenBy {
    /// The number of records that were taken.
    pub(super) fn records(&self) -> u64 {
        self.records
    }
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trial({:?})", self.course)
    }
}

/// A source of which nothing is committed.
struct TrialSource {
    source: Arc<dyn SharedSource>,
    trial: Arc<Trial>,
    index: usize,
}

impl SharedSource for TrialSource {
    fn begin(&self) -> Result<()> {
        self.source.begin()?;
        // Sources begin in order, so the last of them starts the schedule of all.
        let sources = lock(&self.trial.turns).len();
        if self.index + 1 == sources { self.trial.begin() } else { Ok(()) }
    }

    fn serve(&self) -> Result<Vec<SourceEvent>> {
        self.source.serve()
    }

    fn commit(&self, _: CheckpointId, _: &Offsets) -> Result<Committed> {
        Ok(Committed::Now)
    }

    fn started_at(&self) -> Offsets {
        self.source.started_at()
    }

    fn unassign(&self, revoked: Revoked) -> Result<()> {
        self.source.unassign(revoked)
    }

    fn lag(&self) -> Vec<Lag> {
        self.source.lag()
    }

    fn waiting(&self) -> Option<String> {
        self.source.waiting()
    }

    fn unread(&self) -> u64 {
        self.source.unread()
    }

    fn close(&self, closing: Closing) {
        self.trial.timer.end();
        self.source.close(closing);
    }
}

/// One source's share of a trial, for the readers of all workers.
struct Turn {
    schedule: Schedule,
    clock: Clock,
    began: OnceLock<Moment>,
    /// How many records of each partition are taken; `None` to take what comes first.
    quotas: Option<HashMap<Partition, u64>>,
    timer: Arc<Timer>,
    state: Mutex<State>,
}

struct State {
    taken: TakenBy,
    /// The number of records that workers are reading now.
    reserved: u64,
}

impl Turn {
    /// Polls a reader for what is due.
    fn poll<T>(&self, reader: &mut dyn Reader<Item = T>, batch: &mut ReadBatch<T>, room: Room) -> Result<Polled> {
        let Some(began) = self.began.get() else { return Ok(Polled::Idle) };
        let (due, reserved) = match self.reserve(*began, room.records) {
            Due::Records { first, count } => (first, count),
            Due::Nothing => return Ok(Polled::Idle),
            // That worker may have found nothing, so this one polls again.
            Due::Elsewhere => return Ok(Polled::More),
            Due::End => return Ok(Polled::Ended(End::OfRun)),
        };
        // Not under the lock, so that workers decode at the same time.
        let polled = reader.poll(batch, Room { records: reserved as usize, ..room });
        let exhausted = self.keep(reserved, batch)?;
        let polled = polled?;
        batch.due(began.after(due));
        if let Some(partition) = exhausted {
            reader.unassign(&[partition]);
        }
        match self.reserve(*began, 0) {
            Due::End => {
                self.timer.wake_all();
                Ok(Polled::Ended(End::OfRun))
            }
            // The timer wakes the reader when more is due.
            Due::Nothing if polled == Polled::More => Ok(Polled::Idle),
            Due::Nothing | Due::Elsewhere | Due::Records { .. } => Ok(polled),
        }
    }

    /// Reserves what is due, at most `most` records, for one worker: a record is due once,
    /// whichever worker finds it.
    fn reserve(&self, began: Moment, most: usize) -> Due {
        let mut state = lock(&self.state);
        if state.taken.records >= self.schedule.records {
            return Due::End;
        }
        let since = self.clock.now() - began;
        let next = state.taken.records + state.reserved;
        let all = self.schedule.count(since);
        if all <= next {
            return if all > state.taken.records { Due::Elsewhere } else { Due::Nothing };
        }
        let first = self.schedule.due(next);
        let until = self.schedule.count(first.saturating_add(together(since, first))).min(all);
        let count = (until - next).max(1).min(most as u64);
        state.reserved += count;
        Due::Records { first, count }
    }

    /// Counts how much of what was reserved was read, and drops what is beyond this run's end.
    /// Returns the partition if it is exhausted.
    fn keep<T>(&self, reserved: u64, batch: &mut ReadBatch<T>) -> Result<Option<Partition>> {
        let mut state = lock(&self.state);
        state.reserved -= reserved;
        let Some(partition) = batch.partition().cloned() else {
            return match batch.is_empty() {
                true => Ok(None),
                false => {
                    Err(Error::new(ErrorKind::Config, "cannot compare runs over a source without named partitions"))
                }
            };
        };
        let of = state.taken.of.entry(partition.clone()).or_default();
        let quota = self.quotas.as_ref().map_or(u64::MAX, |quotas| quotas.get(&partition).copied().unwrap_or(0));
        let kept = (batch.len() as u64).min(quota - *of);
        batch.truncate(kept as usize);
        *of += kept;
        let is_exhausted = *of == quota;
        state.taken.records += kept;
        Ok(is_exhausted.then_some(partition))
    }
}

/// What a worker may read now.
enum Due {
    Records {
        first: Duration,
        count: u64,
    },
    Nothing,
    /// Another worker is reading what is due.
    Elsewhere,
    /// The run has read all its records.
    End,
}

/// A reader that follows a schedule.
struct Paced<T> {
    reader: Box<dyn Reader<Item = T>>,
    turn: Arc<Turn>,
}

impl<T> Reader for Paced<T> {
    type Item = T;

    fn poll(&mut self, batch: &mut ReadBatch<T>, room: Room) -> Result<Polled> {
        self.turn.poll(&mut *self.reader, batch, room)
    }

    fn has_ended(&self) -> Option<End> {
        self.reader.has_ended()
    }

    fn assigned(&mut self) -> Option<Vec<Partition>> {
        self.reader.assigned()
    }

    fn is_at_end(&self, partition: &Partition) -> Option<bool> {
        self.reader.is_at_end(partition)
    }

    fn unassign(&mut self, partitions: &[Partition]) {
        self.reader.unassign(partitions);
    }

    fn stop(&mut self) -> AtStop {
        self.reader.stop()
    }
}
