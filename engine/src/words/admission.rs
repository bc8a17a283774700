//! The counted token under which records are in the job. Timely has no flow control, so memory is bounded here: a
//! reader is polled only while its worker's [`Budget`] has room, each batch is charged to it under an [`Admission`],
//! and when the last clone of that is gone the room is free again. A fork clones it, a filter drops it, a sink keeps a
//! clone until the delivery report.

use std::fmt;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex};

use super::{Bytes, Moment, lock};

/// Memory that one worker may have admitted and not yet seen acknowledged.
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
    starved: AtomicBool,
    freed: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

impl Budget {
    /// A budget of that size.
    pub(crate) fn new(limit: Bytes) -> Arc<Budget> {
        let freed = Mutex::default();
        Arc::new(Budget { limit: limit.0.max(1), used: AtomicU64::new(0), starved: AtomicBool::new(false), freed })
    }

    /// What is left; `None` when nothing is, and then whoever asked is called when there is room again.
    pub(crate) fn room(&self) -> Option<Bytes> {
        if let Some(room) = self.left() {
            return Some(room);
        }
        self.starved.store(true, SeqCst);
        // Looked at again, because the last clone may have gone between the look and the flag.
        self.left()
    }

    fn left(&self) -> Option<Bytes> {
        self.limit.checked_sub(self.used.load(SeqCst)).filter(|left| *left > 0).map(Bytes)
    }

    /// Calls `wake` whenever room appears after there was none.
    pub(crate) fn on_freed(&self, wake: impl Fn() + Send + 'static) {
        lock(&self.freed).push(Box::new(wake));
    }

    /// What is charged at this moment.
    pub(crate) fn used(&self) -> Bytes {
        Bytes(self.used.load(Relaxed))
    }

    fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, SeqCst);
        if before - bytes < self.limit && self.starved.load(SeqCst) && self.starved.swap(false, SeqCst) {
            lock(&self.freed).iter().for_each(|wake| wake());
        }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} of {})", self.used(), Bytes(self.limit))
    }
}

/// What became of an admitted batch, told once when the last clone of its admission is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every output was acknowledged, or a stage consumed the record.
    Delivered,
    /// An output was disposed of by a sink's policy.
    Refused,
    /// The run ended before anybody could know.
    Unknown,
}

/// The token of one admitted batch; clones are the same token.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Admitted>);

struct Admitted {
    arrival: Moment,
    released: AtomicU64,
    bytes: u64,
    budget: Arc<Budget>,
    refused: AtomicBool,
    unknown: AtomicBool,
    done: Vec<Receipt>,
}

/// Called once with what became of a record.
pub(crate) type Receipt = Box<dyn FnOnce(Outcome) + Send + Sync>;

impl Admission {
    /// Charges a batch that arrived at that moment to the budget.
    pub(crate) fn new(arrival: Moment, bytes: Bytes, budget: &Arc<Budget>, done: Vec<Receipt>) -> Admission {
        budget.used.fetch_add(bytes.0, SeqCst);
        Admission(Arc::new(Admitted {
            arrival,
            released: AtomicU64::new(arrival.as_nanos()),
            bytes: bytes.0,
            budget: Arc::clone(budget),
            refused: AtomicBool::new(false),
            unknown: AtomicBool::new(false),
            done,
        }))
    }

    /// When the reader returned the batch, before any wait.
    pub(crate) fn arrival(&self) -> Moment {
        self.0.arrival
    }

    /// When the batch left the ingest queue and got its epoch.
    pub(crate) fn released(&self) -> Moment {
        Moment::from_nanos(self.0.released.load(Relaxed))
    }

    pub(crate) fn release(&self, now: Moment) {
        self.0.released.store(now.as_nanos(), Relaxed);
    }

    /// Some of it was disposed of.
    pub(crate) fn refuse(&self) {
        self.0.refused.store(true, Relaxed);
    }

    /// Some of it was dropped with nobody knowing what became of it. Success is said, never assumed.
    pub(crate) fn lose(&self) {
        self.0.unknown.store(true, Relaxed);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
        let outcome = match (*self.unknown.get_mut(), *self.refused.get_mut()) {
            (true, _) => Outcome::Unknown,
            (false, true) => Outcome::Refused,
            (false, false) => Outcome::Delivered,
        };
        self.done.drain(..).for_each(|receipt| receipt(outcome));
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes admitted at {:?}", self.bytes, self.arrival)
    }
}
