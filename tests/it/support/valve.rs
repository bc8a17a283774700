//! A sink that acknowledges when a test says so, or only at commits, or fails, or has no room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use millstream::connector::{
    Accepted, Acknowledges, Batch, CheckpointId, Committed, Delivery, OpenSink, SharedSink, Wake, Worker, Writer,
};
use millstream::{ByteSize, Error, ErrorKind, Result, Sink};

/// A sink, as the module says. Clones share their state.
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
    /// The checkpoint of each.
    pub taken_in: Mutex<Vec<u64>>,
    held: Mutex<Vec<(Delivery, u64)>>,
    pub open: AtomicBool,
    pub full: AtomicBool,
    /// How often a batch found no room.
    pub refused: AtomicU64,
    /// Records that were taken and not acknowledged: now, and the most there ever were.
    in_flight: AtomicU64,
    pub most_in_flight: AtomicU64,
    pub commits: AtomicU64,
    wakes: Mutex<Vec<Wake>>,
    had_failed: AtomicBool,
    /// While set, a writer that is given a batch fails.
    pub fails: AtomicBool,
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

    /// Acknowledges nothing, and fails once it has taken this many records. The writers of the next
    /// run work.
    pub fn failing_after(records: usize) -> Valve {
        Valve { fails_after: Some(records), ..Valve::default() }
    }

    /// Acknowledges everything taken so far, and everything taken later.
    pub fn open(&self) {
        self.inner.open.store(true, SeqCst);
        let held = std::mem::take(&mut *self.inner.held.lock().unwrap());
        held.iter().for_each(|(delivery, records)| self.acknowledge_of(delivery, *records));
    }

    /// Acknowledges up to `records` of the oldest records that were taken, and returns how many it
    /// acknowledged.
    pub fn acknowledge(&self, records: u64) -> u64 {
        let mut left = records;
        let mut held = self.inner.held.lock().unwrap();
        for (delivery, open) in held.iter_mut() {
            let now = left.min(*open);
            if now > 0 {
                self.acknowledge_of(delivery, now);
            }
            *open -= now;
            left -= now;
        }
        held.retain(|(_, open)| *open > 0);
        records - left
    }

    fn acknowledge_of(&self, delivery: &Delivery, records: u64) {
        // Counted first: the acknowledgement lets more records in.
        self.inner.in_flight.fetch_sub(records, SeqCst);
        delivery.acknowledge(records, ByteSize(0));
    }

    pub fn have_room(&self) {
        self.inner.full.store(false, SeqCst);
        self.wake();
    }

    /// Wakes the writers, whether or not there is room.
    pub fn wake(&self) {
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
        self.inner.in_flight.store(0, SeqCst);
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

    fn commit(&self, checkpoint: CheckpointId) -> Result<Committed> {
        self.0.inner.commits.fetch_add(1, SeqCst);
        if self.0.at_commit {
            self.0.inner.held.lock().unwrap().retain(|(delivery, records)| {
                let ready = delivery.checkpoint() <= checkpoint;
                if ready {
                    delivery.settle(*records, ByteSize(0));
                }
                !ready
            });
        }
        Ok(Committed::Now)
    }
}

pub struct ValveWriter(Valve);

impl Writer<u64> for ValveWriter {
    fn write(&mut self, batch: &mut Batch<u64>, delivery: &Delivery) -> Result<Accepted> {
        let inner = &self.0.inner;
        if inner.full.load(SeqCst) {
            inner.refused.fetch_add(1, SeqCst);
            return Ok(Accepted::Full);
        }
        let records = batch.len() as u64;
        let mut taken = inner.taken.lock().unwrap();
        taken.extend(batch);
        inner.taken_in.lock().unwrap().resize(taken.len(), delivery.checkpoint().number());
        let has_reached = self.0.fails_after.is_some_and(|most| taken.len() >= most);
        if inner.fails.load(SeqCst) || has_reached && !inner.had_failed.swap(true, SeqCst) {
            return Err(Error::new(ErrorKind::Sink, "the valve broke"));
        }
        // Locked before `open` is read: what is pushed after that is seen when the valve is opened.
        let mut held = inner.held.lock().unwrap();
        if self.0.at_commit {
            delivery.stage(records);
            held.push((delivery.clone(), records));
        } else if inner.open.load(SeqCst) {
            delivery.acknowledge(records, ByteSize(0));
        } else {
            let in_flight = inner.in_flight.fetch_add(records, SeqCst) + records;
            inner.most_in_flight.fetch_max(in_flight, SeqCst);
            held.push((delivery.clone(), records));
        }
        Ok(Accepted::All)
    }
}
