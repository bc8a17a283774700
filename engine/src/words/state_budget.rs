//! How much memory the state of a job may take.

use super::{ByteSize, Gauge};

/// The memory that the state of a job may take, over all operators and workers.
#[derive(Debug)]
pub(crate) struct StateBudget {
    limit: ByteSize,
    used: Gauge,
}

impl StateBudget {
    pub(crate) fn new(limit: ByteSize) -> StateBudget {
        StateBudget { limit, used: Gauge::default() }
    }

    /// A part of it took `before` and takes `now`. Returns the limit and what is used when that is
    /// more.
    pub(crate) fn change(&self, before: u64, now: u64) -> Option<(ByteSize, ByteSize)> {
        let used = self.used.change(before, now);
        (used > self.limit.0).then_some((self.limit, ByteSize(used)))
    }
}
