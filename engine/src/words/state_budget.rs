//! How much memory the state of a job may take.

use std::fmt;
use std::sync::OnceLock;

use super::sync::{AtomicBool, AtomicU64, SeqCst};
use super::{ByteSize, Gauge};

/// The memory that the state of a job may take, over all operators and workers.
pub(crate) struct StateBudget {
    limit: ByteSize,
    used: Gauge,
    /// What state has grown by since the system was asked, and by how much it may until it is asked
    /// again.
    unasked: AtomicU64,
    unasked_max: AtomicU64,
    /// Asks the system how much memory is left, and says so by [`allow`](StateBudget::allow).
    ask: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// The system has no more memory.
    is_exhausted: AtomicBool,
}

impl StateBudget {
    pub(crate) fn new(limit: ByteSize) -> StateBudget {
        StateBudget {
            limit,
            used: Gauge::default(),
            unasked: AtomicU64::new(0),
            unasked_max: AtomicU64::new(0),
            ask: OnceLock::new(),
            is_exhausted: AtomicBool::new(false),
        }
    }

    /// How to ask the system; set once, before there is any state.
    pub(crate) fn asks(&self, ask: impl Fn() + Send + Sync + 'static) {
        drop(self.ask.set(Box::new(ask)));
    }

    /// So much memory is left. The tables of a state grow all at once, so a time says little about
    /// how soon that is used up.
    pub(crate) fn allow(&self, left: ByteSize) {
        self.unasked.store(0, SeqCst);
        self.unasked_max.store(left.0 / 4, SeqCst);
    }

    /// A part of it took `before` and takes `now`. Returns the limit and what is used when that is
    /// more.
    pub(crate) fn change(&self, before: u64, now: u64) -> Option<(ByteSize, ByteSize)> {
        let used = self.used.change(before, now);
        if now > before {
            self.fill(now - before);
        }
        (used > self.limit.0).then_some((self.limit, ByteSize(used)))
    }

    /// So much memory was filled.
    pub(crate) fn fill(&self, bytes: u64) {
        if let Some(ask) = self.ask.get()
            && self.unasked.fetch_add(bytes, SeqCst) + bytes > self.unasked_max.load(SeqCst)
        {
            ask();
        }
    }

    /// From now on no state may grow.
    pub(crate) fn exhaust(&self) {
        self.is_exhausted.store(true, SeqCst);
    }

    pub(crate) fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(SeqCst)
    }
}

impl fmt::Debug for StateBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StateBudget({} of {})", ByteSize(self.used.get()), self.limit)
    }
}
