//! What a connector implements to be written to: a description, the half that a process has once, and a writer per
//! worker.

use std::sync::Arc;

use crate::words::{Batch, Bytes, CheckpointId, Clock, Keyed, Result, SinkMeter, Worker};

use super::{Delivery, Wake};

/// Describes an output. [`connect`](Sink::connect) is called once per run in the plan, [`writer`](Sink::writer) once
/// per worker. `&S` is a sink when `S` is one that can be cloned.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot write records of type `{T}`",
    note = "a format must fit the records: `text()` takes `String`, `json()` what serde can serialise, `with_metadata()` a `Message`"
)]
pub trait Sink<T> {
    /// The half that a process has once.
    type Shared: SharedSink;
    /// The half that each worker has.
    type Writer: Writer<T> + 'static;

    /// What its operator is called when the pipeline does not name it, such as `kafka invoices`.
    fn name(&self) -> String;

    /// Reaches the other side. Called once per run, on the control thread; may block.
    ///
    /// # Errors
    /// A wrong option, or the other side is absent, refuses, or does not have what was asked for.
    fn connect(self, open: OpenSink) -> Result<Self::Shared>;

    /// The writer of one worker; `wake` wakes its operator.
    ///
    /// # Errors
    /// When the writer cannot be made.
    fn writer(shared: &Arc<Self::Shared>, worker: Worker, wake: Wake) -> Result<Self::Writer>;
}

impl<T, S: Sink<T> + Clone> Sink<T> for &S {
    type Shared = S::Shared;
    type Writer = S::Writer;

    fn name(&self) -> String {
        S::name(self)
    }

    fn connect(self, open: OpenSink) -> Result<S::Shared> {
        self.clone().connect(open)
    }

    fn writer(shared: &Arc<S::Shared>, worker: Worker, wake: Wake) -> Result<S::Writer> {
        S::writer(shared, worker, wake)
    }
}

/// A sink that can take a key beside each record.
#[diagnostic::on_unimplemented(message = "`{Self}` cannot take a key beside records of type `{T}`")]
pub trait KeyedSink<T>: Sized {
    /// The same sink for records with their keys.
    fn keyed(self) -> impl Sink<Keyed<T>>;
}

impl<T, S: KeyedSink<T> + Clone> KeyedSink<T> for &S {
    fn keyed(self) -> impl Sink<Keyed<T>> {
        self.clone().keyed()
    }
}

/// What a sink is told when it connects.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenSink {
    /// The job's name.
    pub job: String,
    /// How many workers will have a writer.
    pub workers: usize,
    /// Memory for what was taken and not yet acknowledged.
    pub buffer: Bytes,
    /// The job's clock.
    pub clock: Clock,
    /// Wakes the control thread, which then calls [`SharedSink::serve`].
    pub wake: Wake,
    /// What this sink counts.
    pub meter: Arc<SinkMeter>,
}

/// The half of a sink that a process has once. All of it is called on the control thread only.
pub trait SharedSink: Send + Sync + 'static {
    /// When its records count as acknowledged.
    fn acknowledges(&self) -> Acknowledges {
        Acknowledges::WhenDelivered
    }

    /// Serves the client's events. Called after a wake and at least every 200 ms; must not block.
    ///
    /// # Errors
    /// An error ends the run.
    fn serve(&self) -> Result<()> {
        Ok(())
    }

    /// What the sink waits for, when it cannot go on without it: a sentence that follows "waiting for", for the report and
    /// for health checks. Called from whichever thread asks for a report.
    fn waiting(&self) -> Option<String> {
        None
    }

    /// Every record of the checkpoint has been taken; what waits for that goes out now. Before any source commits.
    ///
    /// # Errors
    /// An error ends the run.
    fn commit(&self, checkpoint: CheckpointId) -> Result<()> {
        let _ = checkpoint;
        Ok(())
    }

    /// Once, at the end of a run, after all writers are gone: releases what is shared with other threads.
    fn close(&self) {}
}

/// When a sink acknowledges what it has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledges {
    /// As soon as the other side has the record.
    WhenDelivered,
    /// Not before the checkpoint's commit. Then memory is freed by commits only, and when it is used up the engine
    /// cuts a checkpoint at once.
    WhenCommitted,
}

/// A sink that needs nothing shared.
impl SharedSink for () {}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The batch is empty now.
    All,
    /// No room: what was refused stays at the front and is offered again after a wake. A sink may say this only for a
    /// reason that ends without a commit, and without this job reading anything: its sources wait meanwhile.
    Full,
}

/// The half of a sink that each worker has; it stays on its worker's thread.
pub trait Writer<T> {
    /// Takes records from the front of the batch. Each record taken is acknowledged through `delivery` when the other
    /// side has it, from any thread. Must not block.
    ///
    /// # Errors
    /// An error ends the run.
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted>;

    /// Called after a wake: reports what went wrong since.
    ///
    /// # Errors
    /// An error ends the run.
    fn poll(&mut self) -> Result<()> {
        Ok(())
    }
}
