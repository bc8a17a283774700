//! The primitives by which the delivery thread synchronises, so that a model can put a model
//! checker's in their place (`tests/wakeups`).

pub(crate) use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

pub(crate) use crate::lock;
