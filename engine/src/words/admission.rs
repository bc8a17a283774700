//! The reference-counted token of a batch in the job. Each batch is charged to its worker's
//! [`Budget`] under an [`Admission`], and the memory is free again when the last clone of it is
//! dropped. A fork clones it, a filter drops it, a sink keeps a clone until the delivery report.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::{Budget, ByteSize, Moment};

/// What became of an admitted batch. It is reported once, when the last clone of the admission is
/// dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every output was acknowledged, or a stage consumed the record.
    Delivered,
    /// A sink's policy disposed of an output.
    Refused,
    /// The run ended before the outcome was known.
    Unknown,
}

/// The token of one admitted batch; clones are the same token.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    // Before the receipts: the memory is free when these resolve.
    admitted: Arc<Admitted>,
    /// None when there are none.
    receipts: Option<Receipts>,
}

struct Admitted {
    arrival: Moment,
    // Relaxed: it is set before the batch leaves its worker, and the queue that takes the batch to
    // another thread takes this along.
    released: AtomicU64,
    bytes: u64,
    /// None for what was made of batches that have left their budget.
    budget: Option<Arc<Budget>>,
}

/// Who is told what became of a batch; clones are the same. They outlive its admission when a
/// record of it is in the state of an operator: its memory is free then, but it is safe only once
/// the checkpoint is committed.
#[derive(Clone, Debug)]
pub(crate) struct Receipts(Arc<Awaited>);

struct Awaited {
    // Relaxed suffices for these: they are read when the last clone of the `Arc` is dropped, and
    // that drop sees what all other threads wrote before they dropped theirs.
    refused: AtomicBool,
    unknown: AtomicBool,
    receipts: Vec<Receipt>,
}

impl Receipts {
    fn new(receipts: Vec<Receipt>) -> Option<Receipts> {
        let (refused, unknown) = (AtomicBool::new(false), AtomicBool::new(false));
        (!receipts.is_empty()).then(|| Receipts(Arc::new(Awaited { refused, unknown, receipts })))
    }

    /// Notes that some of the batch was dropped before its outcome was known: delivery is never
    /// assumed.
    pub(crate) fn lose(&self) {
        self.0.unknown.store(true, Relaxed);
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let outcome = match (*self.unknown.get_mut(), *self.refused.get_mut()) {
            (true, _) => Outcome::Unknown,
            (false, true) => Outcome::Refused,
            (false, false) => Outcome::Delivered,
        };
        self.receipts.drain(..).for_each(|receipt| receipt(outcome));
    }
}

impl fmt::Debug for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} receipts", self.receipts.len())
    }
}

/// Receipts of records that are in state, until their checkpoint is committed. If it never is, what
/// became of the records is unknown.
#[derive(Debug, Default)]
pub(crate) struct HeldReceipts(Vec<Receipts>);

impl HeldReceipts {
    pub(crate) fn hold(&mut self, receipts: Receipts) {
        self.0.push(receipts);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The checkpoint is committed.
    pub(crate) fn commit(mut self) {
        self.0.clear();
    }
}

impl Drop for HeldReceipts {
    fn drop(&mut self) {
        self.0.iter().for_each(Receipts::lose);
    }
}

/// Called once with the outcome of a record.
pub(crate) type Receipt = Box<dyn FnOnce(Outcome) + Send + Sync>;

impl Admission {
    /// Charges a batch that arrived at `arrival` to the budget.
    pub(crate) fn new(arrival: Moment, bytes: ByteSize, budget: &Arc<Budget>, receipts: Vec<Receipt>) -> Admission {
        budget.charge(bytes.0);
        let admitted = Admitted {
            arrival,
            released: AtomicU64::new(arrival.as_nanos()),
            bytes: bytes.0,
            budget: Some(Arc::clone(budget)),
        };
        Admission { admitted: Arc::new(admitted), receipts: Receipts::new(receipts) }
    }

    /// The token of what leaves at `released` and goes back to records that arrived at `arrival`.
    /// It is charged to no budget.
    pub(crate) fn of_whole(arrival: Moment, released: Moment) -> Admission {
        let released = AtomicU64::new(released.as_nanos());
        let admitted = Admitted { arrival, released, bytes: 0, budget: None };
        Admission { admitted: Arc::new(admitted), receipts: None }
    }

    /// The same token for records whose receipts are held by state: it keeps the memory, and the
    /// receipts do not wait for it.
    pub(crate) fn without_receipts(&self) -> Admission {
        Admission { admitted: Arc::clone(&self.admitted), receipts: None }
    }

    /// When the reader returned the batch, before any wait.
    pub(crate) fn arrival(&self) -> Moment {
        self.admitted.arrival
    }

    /// The memory that is charged for the batch.
    pub(crate) fn bytes(&self) -> ByteSize {
        ByteSize(self.admitted.bytes)
    }

    /// When the batch left the ingest queue and got its epoch.
    pub(crate) fn released(&self) -> Moment {
        Moment::from_nanos(self.admitted.released.load(Relaxed))
    }

    pub(crate) fn release(&self, now: Moment) {
        self.admitted.released.store(now.as_nanos(), Relaxed);
    }

    /// Notes that a sink's policy disposed of some of the batch.
    pub(crate) fn refuse(&self) {
        self.receipts.iter().for_each(|receipts| receipts.0.refused.store(true, Relaxed));
    }

    /// Notes that some of the batch was dropped before its outcome was known: delivery is never
    /// assumed.
    pub(crate) fn lose(&self) {
        self.receipts.iter().for_each(Receipts::lose);
    }

    /// Its receipts, if there are any.
    pub(crate) fn receipts(&self) -> Option<Receipts> {
        self.receipts.clone()
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.budget.iter().for_each(|budget| budget.give_back(self.bytes));
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes admitted at {:?}", self.bytes, self.arrival)
    }
}
