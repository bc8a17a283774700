//! A source without records, beside the sources of a job: it counts how often the job has looked
//! for work. A test waits for such rounds where it would otherwise sleep to see that nothing
//! happens.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use millstream::connector::{OpenSource, Polled, ReadBatch, Reader, Room, SharedSource, Wake, Worker};
use millstream::{Flow, Result, Source, discard};

use super::eventually;

/// The source, as the module says. Clones share their counts.
#[derive(Clone, Default)]
pub struct Probe(Arc<Seen>);

#[derive(Default)]
struct Seen {
    /// The control thread, and how often it has served the source.
    control: Mutex<Option<Wake>>,
    looks: AtomicU64,
    /// While set, the control thread waits in `serve`.
    holds: AtomicBool,
    is_held: AtomicBool,
    readers: Mutex<Vec<Polls>>,
    /// What the job said when it opened the source.
    is_checkpointed: AtomicBool,
}

/// How often the reader of one worker was polled.
struct Polls {
    wake: Wake,
    count: Arc<AtomicU64>,
}

impl Probe {
    /// Adds the source to a pipeline.
    pub fn beside(&self, flow: &Flow<'_>) -> Result<()> {
        flow.source(self)?.named("probe").sink(discard())
    }

    /// Whether the job has said that checkpoints are its memory.
    pub fn is_checkpointed(&self) -> bool {
        self.0.is_checkpointed.load(SeqCst)
    }

    /// How often the control thread has looked for work.
    pub fn looks(&self) -> u64 {
        self.0.looks.load(SeqCst)
    }

    /// Makes the control thread wait, and returns when it does. Nothing of the job ends until it is
    /// let go.
    #[track_caller]
    pub fn hold(&self) {
        self.0.holds.store(true, SeqCst);
        eventually("the control thread waits", || self.0.is_held.load(SeqCst));
    }

    pub fn let_go(&self) {
        self.0.holds.store(false, SeqCst);
    }

    /// How often each worker has looked for records.
    pub fn polls(&self) -> Vec<u64> {
        self.0.readers.lock().unwrap().iter().map(|reader| reader.count.load(SeqCst)).collect()
    }

    /// Wakes every worker and the control thread `count` times, and waits each time until all have
    /// looked for work: what was due before has happened then. Workers that may not read, because
    /// memory is used up or a sink has no room, never look.
    #[track_caller]
    pub fn rounds(&self, count: usize) {
        for _ in 0..count {
            let (looks, polls) = (self.looks(), self.polls());
            self.0.readers.lock().unwrap().iter().for_each(|reader| reader.wake.wake());
            self.0.control.lock().unwrap().iter().for_each(Wake::wake);
            eventually("all threads of the job have looked for work", || {
                let more = self.polls().iter().zip(&polls).all(|(now, before)| now > before);
                !polls.is_empty() && more && self.looks() > looks
            });
        }
    }
}

impl Source for Probe {
    type Item = u64;
    type Shared = Probe;
    type Reader = ProbeReader;

    fn name(&self) -> String {
        "probe".to_owned()
    }

    fn connect(self, open: OpenSource) -> Result<Probe> {
        self.0.readers.lock().unwrap().clear();
        self.0.is_checkpointed.store(open.is_checkpointed, SeqCst);
        *self.0.control.lock().unwrap() = Some(open.wake.clone());
        Ok(self)
    }

    fn reader(shared: &Arc<Probe>, _: Worker, wake: Wake) -> Result<ProbeReader> {
        let count = Arc::new(AtomicU64::new(0));
        shared.0.readers.lock().unwrap().push(Polls { wake, count: Arc::clone(&count) });
        Ok(ProbeReader(count))
    }
}

impl SharedSource for Probe {
    fn serve(&self) -> Result<Vec<millstream::connector::SourceEvent>> {
        self.0.looks.fetch_add(1, SeqCst);
        eventually("the control thread is let go", || {
            let holds = self.0.holds.load(SeqCst);
            self.0.is_held.store(holds, SeqCst);
            !holds
        });
        Ok(Vec::new())
    }
}

pub struct ProbeReader(Arc<AtomicU64>);

impl Reader for ProbeReader {
    type Item = u64;

    fn poll(&mut self, _: &mut ReadBatch<u64>, _: Room) -> Result<Polled> {
        self.0.fetch_add(1, SeqCst);
        Ok(Polled::Idle)
    }
}
