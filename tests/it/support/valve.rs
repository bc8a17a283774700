//! A sink that acknowledges when a test says, or only at commits, or fails, or has no room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use millstream::{
    Accepted, Acknowledges, Batch, Bytes, CheckpointId, Delivery, Error, ErrorKind, OpenSink, Result, SharedSink, Sink,
    Wake, Worker, Writer,
};

/// See the module. Clones are the same.
#[derive(Clone, Default)]
pub struct Valve {
    pub inner: Arc<Inner>,
    at_commit: bool,
    fails_after: Option<usize>,
}

#[derive(Default)]
pub struct Inner {
    /// What was taken, in order.
    pub taken: Mutex<Vec<u64>>,
    held: Mutex<Vec<(Delivery, u64)>>,
    pub open: AtomicBool,
    pub full: AtomicBool,
    pub commits: AtomicU64,
    wakes: Mutex<Vec<Wake>>,
    had_failed: AtomicBool,
    /// When a writer failed.
    pub failed: Mutex<Option<Instant>>,
}

impl Valve {
    /// Acknowledges nothing until it is opened.
    pub fn shut() -> Valve {
        Valve::default()
    }

    /// Acknowledges only when a checkpoint is committed.
    pub fn at_commit() -> Valve {
        Valve { at_commit: true, ..Valve::default() }
    }

    /// Acknowledges nothing, and fails once it has taken so many records; the next run's writers work.
    pub fn failing_after(records: usize) -> Valve {
        Valve { fails_after: Some(records), ..Valve::default() }
    }

    /// Acknowledges all that was taken and will be.
    pub fn open(&self) {
        self.inner.open.store(true, SeqCst);
        let held = std::mem::take(&mut *self.inner.held.lock().unwrap());
        held.iter().for_each(|(delivery, records)| delivery.acknowledge(*records, Bytes(0)));
    }

    /// Acknowledges the oldest `records` that were taken, and says how many these were.
    pub fn acknowledge(&self, records: u64) -> u64 {
        let mut left = records;
        let mut held = self.inner.held.lock().unwrap();
        for (delivery, open) in held.iter_mut() {
            let now = left.min(*open);
            if now > 0 {
                delivery.acknowledge(now, Bytes(0));
            }
            *open -= now;
            left -= now;
        }
        held.retain(|(_, open)| *open > 0);
        records - left
    }

    pub fn have_room(&self) {
        self.inner.full.store(false, SeqCst);
        self.inner.wakes.lock().unwrap().iter().for_each(Wake::wake);
    }

    pub fn taken(&self) -> Vec<u64> {
        self.inner.taken.lock().unwrap().clone()
    }
}

pub struct Shared(Valve);

impl Sink<u64> for Valve {
    type Shared = Shared;
    type Writer = ValveWriter;

    fn name(&self) -> String {
        "valve".to_owned()
    }

    fn connect(self, _: OpenSink) -> Result<Shared> {
        self.inner.held.lock().unwrap().clear();
        Ok(Shared(self))
    }

    fn writer(shared: &Arc<Shared>, _: Worker, wake: Wake) -> Result<ValveWriter> {
        shared.0.inner.wakes.lock().unwrap().push(wake);
        Ok(ValveWriter(shared.0.clone()))
    }
}

impl SharedSink for Shared {
    fn acknowledges(&self) -> Acknowledges {
        if self.0.at_commit { Acknowledges::WhenCommitted } else { Acknowledges::WhenDelivered }
    }

    fn commit(&self, checkpoint: CheckpointId) -> Result<()> {
        self.0.inner.commits.fetch_add(1, SeqCst);
        if self.0.at_commit {
            self.0.inner.held.lock().unwrap().retain(|(delivery, records)| {
                let ready = delivery.checkpoint() <= checkpoint;
                if ready {
                    delivery.settle(*records, Bytes(0));
                }
                !ready
            });
        }
        Ok(())
    }
}

pub struct ValveWriter(Valve);

impl Writer<u64> for ValveWriter {
    fn write(&mut self, batch: &mut Batch<u64>, delivery: &Delivery) -> Result<Accepted> {
        let inner = &self.0.inner;
        if inner.full.load(SeqCst) {
            return Ok(Accepted::Full);
        }
        let records = batch.len() as u64;
        let mut taken = inner.taken.lock().unwrap();
        taken.extend(batch);
        if self.0.fails_after.is_some_and(|most| taken.len() >= most) && !inner.had_failed.swap(true, SeqCst) {
            inner.failed.lock().unwrap().get_or_insert_with(Instant::now);
            return Err(Error::new(ErrorKind::Sink, "the valve broke"));
        }
        if self.0.at_commit {
            delivery.stage(records);
            inner.held.lock().unwrap().push((delivery.clone(), records));
        } else if inner.open.load(SeqCst) {
            delivery.acknowledge(records, Bytes(0));
        } else {
            inner.held.lock().unwrap().push((delivery.clone(), records));
        }
        Ok(Accepted::All)
    }
}
