//! How another thread tells an operator, or the control thread, that there is something to do.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Wakes whoever handed it out. May be called from any thread, also with a client's lock held: it only queues an
/// activation and unparks. Calls between two looks of the sleeper are one.
#[derive(Clone)]
pub struct Wake(Arc<Inner>);

struct Inner {
    pending: AtomicBool,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Wake {
    /// A wake that calls `wake` at most once between two calls of [`listen`](Wake::listen).
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Wake {
        Wake(Arc::new(Inner { pending: AtomicBool::new(false), wake: Box::new(wake) }))
    }

    /// Wakes the sleeper.
    pub fn wake(&self) {
        if !self.0.pending.swap(true, SeqCst) {
            (self.0.wake)();
        }
    }

    /// Called by the sleeper *before* it looks for work, so that what comes during the look wakes it again.
    pub fn listen(&self) {
        self.0.pending.store(false, SeqCst);
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wake")
    }
}
