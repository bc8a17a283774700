//! The first fault of a run. The operator that fails records it, keeps its capabilities and does
//! nothing more; nothing is committed once the flag is set; only then are the dataflows dropped.

use std::any::Any;
use std::cell::Cell;
use std::fmt;

use crate::words::sync::{AtomicBool, Mutex, SeqCst, lock};
use crate::words::{Error, ErrorKind, panic_message};

/// Keeps a run's first error, and calls the alarms when one is recorded.
pub(crate) struct Fault {
    set: AtomicBool,
    first: Mutex<Option<Error>>,
    alarms: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

impl Fault {
    pub(crate) fn new() -> Fault {
        Fault { set: AtomicBool::new(false), first: Mutex::default(), alarms: Mutex::default() }
    }

    /// Records the error if it is the first, and calls all alarms.
    pub(crate) fn record(&self, error: Error) {
        lock(&self.first).get_or_insert(error);
        // The flag is set before the failed operator drops anything, and it is read after the
        // frontier: a frontier that moved because of a fault is never trusted.
        self.set.store(true, SeqCst);
        // After the flag: a thread that adds its alarm and then looks at the flag misses no fault.
        lock(&self.alarms).iter().for_each(|alarm| alarm());
    }

    pub(crate) fn is_set(&self) -> bool {
        self.set.load(SeqCst)
    }

    /// Takes the first error.
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

/// The position of a source, stage or sink in its pipeline, in the order in which the pipeline
/// function created them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Node(pub(crate) usize);

thread_local! {
    static HERE: Cell<Option<Node>> = const { Cell::new(None) };
}

/// Notes that this thread runs the code of that node until the guard is dropped, so that a panic
/// can be attributed. Nodes nest: a stage calls the one after it.
pub(crate) fn enter(node: Node) -> Entered {
    Entered { before: HERE.replace(Some(node)) }
}

/// See [`enter`].
#[must_use = "the node is left when this is dropped"]
pub(crate) struct Entered {
    before: Option<Node>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        // While a panic unwinds, the node in which it happened stays noted.
        if !std::thread::panicking() {
            HERE.set(self.before);
        }
    }
}

/// The node whose code this thread runs, or ran when it panicked.
pub(crate) fn here() -> Option<Node> {
    HERE.get()
}

/// The error of a caught panic in the operator of that name.
pub(crate) fn panicked(operator: &str, payload: &(dyn Any + Send)) -> Error {
    Error::new(ErrorKind::Panic, format!("operator `{operator}` panicked: {}", panic_message(payload)))
}
