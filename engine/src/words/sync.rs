//! The primitives by which threads synchronise. The lost-wake-up protocols ([`Wake`](super::Wake),
//! `bell`, `budget`, `flight`) take them from here, so that the models in `tests/wakeups` can
//! replace them with a model checker's.

use std::sync::PoisonError;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard};

/// Locks a mutex, even after a thread panicked while it held the lock: what these mutexes guard is
/// valid after every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
