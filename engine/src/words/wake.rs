//! How one thread tells an operator, or the control thread, that there is work.

use std::fmt;

use super::sync::{Arc, AtomicBool, SeqCst};

/// Wakes one sleeper: an operator or the control thread. It may be called from any thread, even
/// while a client's lock is held: it only queues an activation and unparks a thread. Calls between
/// two looks of the sleeper count as one.
#[derive(Clone)]
pub struct Wake(Arc<Inner>);

struct Inner {
    /// Woken since the sleeper last called `listen`.
    pending: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Wake {
    /// A wake that calls `wake` at most once between two calls of [`listen`](Wake::listen).
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Wake {
        Wake(Arc::new(Inner { pending: AtomicBool::new(false), wake: Box::new(wake) }))
    }

    /// Wakes the sleeper. Call it after the work is visible to the sleeper.
    pub fn wake(&self) {
        // With `listen`: the caller publishes work and then sets the flag; the sleeper clears the
        // flag and then looks for work. So either the sleeper sees the work, or this call sees a
        // cleared flag and wakes it.
        if !self.0.pending.swap(true, SeqCst) {
            (self.0.wake)();
        }
    }

    /// The sleeper calls this *before* it looks for work, so that work that arrives during the look
    /// wakes it again.
    pub fn listen(&self) {
        // A swap, because a store acquires nothing: it could overwrite the flag of a caller whose
        // work, published by a weaker ordering, the sleeper would then not see.
        self.0.pending.swap(false, SeqCst);
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake")
    }
}
