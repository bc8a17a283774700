//! What a writer keeps with each record in flight, to report what became of it. When a record is
//! acknowledged, its memory is free and its receipts resolve; the checkpoint waits for all its
//! records.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::words::{Admission, ByteSize, CheckpointId, Clock, Flight, Moment, SinkMeter};

/// The outstanding acknowledgements of one batch. Clones share them. A writer that takes records
/// out of the batch keeps one until it has reported each record once:
/// [`acknowledge`](Delivery::acknowledge), [`dispose`](Delivery::dispose), or
/// [`stage`](Delivery::stage) and later [`settle`](Delivery::settle).
///
/// A delivery that is dropped before that leaves its checkpoint open: delivery is never assumed.
#[derive(Clone, Debug)]
pub struct Delivery(Arc<Inner>);

struct Inner {
    admission: Option<Admission>,
    flight: Arc<Flight>,
    /// Records that are neither settled nor disposed of. Relaxed, because it is read when the last
    /// clone is dropped, and that drop sees all updates.
    open: AtomicU64,
    arrival: Moment,
    released: Moment,
    written: Moment,
    clock: Clock,
    meter: Arc<SinkMeter>,
}

impl Delivery {
    /// The delivery of a batch that is handed to the writer now.
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

    /// The other side has this many of the records, `bytes` in total.
    pub fn acknowledge(&self, records: u64, bytes: ByteSize) {
        // Counted before they land: the report of a committed checkpoint has all of its records.
        self.settle(records, bytes);
        self.0.flight.land(records);
    }

    /// This many of the records are kept until the checkpoint's commit: the cut does not wait for
    /// them, but their memory and receipts do. Only for a sink that [acknowledges when
    /// committed](super::Acknowledges::WhenCommitted).
    pub fn stage(&self, records: u64) {
        self.0.flight.land(records);
    }

    /// This many staged records were published with their checkpoint's commit.
    pub fn settle(&self, records: u64, bytes: ByteSize) {
        let inner = &self.0;
        inner.meter.acknowledge(inner.arrival, inner.released, inner.written, inner.clock.now(), records);
        inner.meter.bytes.add(bytes.0);
        inner.open.fetch_sub(records, Relaxed);
    }

    /// The sink's policy disposed of this many records: they were skipped and counted, or sent to a
    /// dead-letter topic.
    pub fn dispose(&self, records: u64) {
        let inner = &self.0;
        inner.meter.skipped.add(records);
        inner.open.fetch_sub(records, Relaxed);
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
        write!(f, "{} records of checkpoint {} open", self.open.load(Relaxed), self.flight.checkpoint())
    }
}
