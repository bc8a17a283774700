//! What a writer keeps with each record in flight: it ends the record's way when it is acknowledged. Memory, receipts
//! and latency are free at that moment; the checkpoint only when all its records are.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::words::{Admission, Bytes, CheckpointId, Clock, Moment, SinkMeter};

/// The records of one checkpoint that one writer has taken and that are neither acknowledged nor disposed of.
pub(crate) struct Flight {
    checkpoint: CheckpointId,
    open: AtomicU64,
    landed: Box<dyn Fn(CheckpointId) + Send + Sync>,
}

impl Flight {
    /// No records yet; `landed` is called, from any thread, whenever the last one is done.
    pub(crate) fn new(checkpoint: CheckpointId, landed: impl Fn(CheckpointId) + Send + Sync + 'static) -> Arc<Flight> {
        Arc::new(Flight { checkpoint, open: AtomicU64::new(0), landed: Box::new(landed) })
    }

    pub(crate) fn checkpoint(&self) -> CheckpointId {
        self.checkpoint
    }

    pub(crate) fn depart(&self, records: u64) {
        self.open.fetch_add(records, SeqCst);
    }

    fn land(&self, records: u64) {
        if self.open.fetch_sub(records, SeqCst) == records {
            (self.landed)(self.checkpoint);
        }
    }

    /// Records still open.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(SeqCst)
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records of checkpoint {} in flight", self.open(), self.checkpoint)
    }
}

/// The outstanding acknowledgements of one batch. Clones are the same; whoever takes records out of the batch keeps
/// one until it has said, once per record, what became of it: [`acknowledge`](Delivery::acknowledge),
/// [`dispose`](Delivery::dispose), or [`stage`](Delivery::stage) and later [`settle`](Delivery::settle).
///
/// A delivery that is dropped with records nobody spoke of leaves its checkpoint open: success is said explicitly.
#[derive(Clone, Debug)]
pub struct Delivery(Arc<Inner>);

struct Inner {
    admission: Option<Admission>,
    flight: Arc<Flight>,
    open: AtomicU64,
    arrival: Moment,
    released: Moment,
    written: Moment,
    clock: Clock,
    meter: Arc<SinkMeter>,
}

impl Delivery {
    /// For so many records of a batch, handed to the writer at `written`.
    pub(crate) fn new(
        admission: Option<Admission>,
        flight: &Arc<Flight>,
        records: u64,
        clock: &Clock,
        meter: &Arc<SinkMeter>,
    ) -> Delivery {
        let written = clock.now();
        flight.depart(records);
        Delivery(Arc::new(Inner {
            arrival: admission.as_ref().map_or(written, Admission::arrival),
            released: admission.as_ref().map_or(written, Admission::released),
            admission,
            flight: Arc::clone(flight),
            open: AtomicU64::new(records),
            written,
            clock: clock.clone(),
            meter: Arc::clone(meter),
        }))
    }

    /// The checkpoint that these records belong to.
    pub fn checkpoint(&self) -> CheckpointId {
        self.0.flight.checkpoint()
    }

    /// The other side has so many of the records, and so many bytes.
    pub fn acknowledge(&self, records: u64, bytes: Bytes) {
        self.settle(records, bytes);
        self.0.flight.land(records);
    }

    /// So many of the records are kept until the checkpoint's commit: the cut need not wait for them, their memory and
    /// receipts do. Only for a sink that [acknowledges when committed](super::Acknowledges::WhenCommitted).
    pub fn stage(&self, records: u64) {
        self.0.flight.land(records);
    }

    /// So many staged records went out with their checkpoint's commit.
    pub fn settle(&self, records: u64, bytes: Bytes) {
        let inner = &self.0;
        inner.meter.acknowledge(inner.arrival, inner.released, inner.written, inner.clock.now(), records);
        inner.meter.bytes.add(bytes.0);
        inner.open.fetch_sub(records, SeqCst);
    }

    /// So many records were disposed of by the sink's policy: skipped and counted, or in a dead-letter topic.
    pub fn dispose(&self, records: u64) {
        let inner = &self.0;
        inner.meter.skipped.add(records);
        inner.open.fetch_sub(records, SeqCst);
        if let Some(admission) = &inner.admission {
            admission.refuse();
        }
        inner.flight.land(records);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if *self.open.get_mut() > 0
            && let Some(admission) = &self.admission
        {
            admission.lose();
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records of checkpoint {} open", self.open.load(SeqCst), self.flight.checkpoint())
    }
}
