//! What wakes the control thread.

use std::sync::mpsc::{self, Receiver};

use crate::epoch::gather::Gathered;
use crate::words::{CheckpointId, Error, Result};

use super::plan::Plan;

/// An event for the control thread.
#[derive(Debug)]
pub(crate) enum Event {
    /// The sources and sinks are connected, or could not be.
    Planned(Box<Result<Plan>>),
    /// A worker has built its dataflow.
    Built,
    /// A worker could not build its dataflow.
    NotBuilt(Error),
    /// A worker has seen a fact about a checkpoint.
    Gathered(Gathered),
    /// A checkpoint has become durable, or no more can.
    Kept(Result<CheckpointId>),
    WorkerEnded,
    /// There is something to look at: a client has an event, a worker has answered a drain, the
    /// program has a request, or a fault was recorded.
    Look,
}

/// Sends events to a control thread. Each run has its own, so that no event of an earlier run
/// arrives.
#[derive(Clone, Debug)]
pub(crate) struct Events(mpsc::Sender<Event>);

impl Events {
    pub(crate) fn new() -> (Events, Receiver<Event>) {
        // Unbounded, because workers and callbacks of clients must not wait. Little can wait in it:
        // two facts per worker and checkpoint, requests of the program, and looks, which `Wake`
        // merges.
        let (sender, receiver) = mpsc::channel();
        (Events(sender), receiver)
    }

    pub(crate) fn send(&self, event: Event) {
        // Fails when the job has ended, and then the event does not matter any more.
        drop(self.0.send(event));
    }
}
