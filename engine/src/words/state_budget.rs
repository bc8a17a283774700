//! How much memory the state of a job may take.

use super::sync::{AtomicBool, SeqCst};
use super::{ByteSize, Gauge};

/// The memory that the state of a job may take, over all operators and workers.
#[derive(Debug)]
pub(crate) struct StateBudget {
    limit: ByteSize,
    used: Gauge,
    /// The system has no more memory.
    is_exhausted: AtomicBool,
}

impl StateBudget {
    pub(crate) fn new(limit: ByteSize) -> StateBudget {
        StateBudget { limit, used: Gauge::default(), is_exhausted: AtomicBool::new(false) }
    }

    /// A part of it took `before` and takes `now`. Returns the limit and what is used when that is
    /// more.
    pub(crate) fn change(&self, before: u64, now: u64) -> Option<(ByteSize, ByteSize)> {
        let used = self.used.change(before, now);
        (used > self.limit.0).then_some((self.limit, ByteSize(used)))
    }

    /// From now on nothing more is loaded.
    pub(crate) fn exhaust(&self) {
        self.is_exhausted.store(true, SeqCst);
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(SeqCst)
    }
}
