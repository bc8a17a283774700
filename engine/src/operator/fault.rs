//! The first fault of a run. The operator that fails records it, keeps its capabilities and does nothing more; nothing
//! is committed once the flag is set; only then are the dataflows dropped.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::words::{Error, ErrorKind, lock, panic_message};

/// Where a run's first error is kept, and how everybody hears of it.
pub(crate) struct Fault {
    set: AtomicBool,
    first: Mutex<Option<Error>>,
    alarms: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

impl Fault {
    pub(crate) fn new() -> Fault {
        Fault { set: AtomicBool::new(false), first: Mutex::default(), alarms: Mutex::default() }
    }

    /// Records the error when it is the first, and wakes everybody.
    pub(crate) fn record(&self, error: Error) {
        lock(&self.first).get_or_insert(error);
        self.set.store(true, SeqCst);
        lock(&self.alarms).iter().for_each(|alarm| alarm());
    }

    pub(crate) fn is_set(&self) -> bool {
        self.set.load(SeqCst)
    }

    /// The first error, once.
    pub(crate) fn take(&self) -> Option<Error> {
        lock(&self.first).take()
    }

    /// Calls `alarm` when a fault is recorded.
    pub(crate) fn on_record(&self, alarm: impl Fn() + Send + 'static) {
        lock(&self.alarms).push(Box::new(alarm));
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fault({:?})", lock(&self.first))
    }
}

/// The place of a source, stage or sink in its pipeline, in the order in which the pipeline function named them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node(pub(crate) usize);

thread_local! {
    static HERE: Cell<Option<Node>> = const { Cell::new(None) };
}

/// Notes which node's code runs on this thread from now on, so that a panic has a name.
pub(crate) fn enter(node: Node) {
    HERE.set(Some(node));
}

/// The node whose code ran last on this thread.
pub(crate) fn here() -> Option<Node> {
    HERE.get()
}

/// The error of a caught panic in the operator of that name.
pub(crate) fn panicked(operator: &str, payload: &(dyn Any + Send)) -> Error {
    Error::new(ErrorKind::Panic, format!("operator `{operator}` panicked: {}", panic_message(payload)))
}
