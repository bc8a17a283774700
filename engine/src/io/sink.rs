//! What a sink connector implements: a description, a per-process half, and a writer per worker.

use std::sync::Arc;

use crate::words::{Batch, ByteSize, CheckpointId, Clock, Fingerprint, Keyed, Result, Wake, Worker};

use super::{Committed, Delivery};

/// Describes an output. [`connect`](Sink::connect) is called once per run, on the planning thread,
/// and [`writer`](Sink::writer) once per worker. `&S` is a sink when `S` is a sink that is `Clone`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot write records of type `{T}`",
    note = "a format must fit the records: `text()` takes `String`, `json()` what serde can serialise, `with_metadata()` a `Message`"
)]
pub trait Sink<T> {
    /// The per-process half.
    type Shared: SharedSink;
    /// The per-worker half.
    type Writer: Writer<T> + 'static;

    /// The name of its operator when the pipeline does not set one, such as `kafka invoices`.
    fn name(&self) -> String;

    /// Connects to the other side. Called once per run, on the planning thread; it may block.
    ///
    /// # Errors
    /// When an option is wrong, or the other side is unreachable, refuses, or does not have what
    /// was asked for.
    fn connect(self, open: OpenSink) -> Result<Self::Shared>;

    /// Makes the writer of one worker; `wake` wakes its operator.
    ///
    /// # Errors
    /// When the writer cannot be created.
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

/// A sink that can take a key with each record.
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

/// What a sink is given when it connects.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenSink {
    /// The job's name.
    pub job: String,
    /// The number of workers, each of which gets a writer.
    pub workers: usize,
    /// Memory for records that are taken and not yet acknowledged.
    pub buffer: ByteSize,
    /// The job's clock.
    pub clock: Clock,
    /// Wakes the control thread, which then calls [`SharedSink::serve`].
    pub wake: Wake,
    /// When present, each record that was written is added to it, in the form in which the other
    /// side gets it.
    pub fingerprint: Option<Arc<Fingerprint>>,
}

/// The per-process half of a sink. All methods but [`waiting`](SharedSink::waiting) are called on
/// the control thread only, and must not block.
pub trait SharedSink: Send + Sync + 'static {
    /// When its records count as acknowledged.
    fn acknowledges(&self) -> Acknowledges {
        Acknowledges::WhenDelivered
    }

    /// Serves the client's events. Called after a wake and at least every 200 ms.
    ///
    /// # Errors
    /// An error ends the run.
    fn serve(&self) -> Result<Vec<SinkEvent>> {
        Ok(Vec::new())
    }

    /// What the sink waits for and cannot go on without: a phrase that follows "waiting for", for
    /// the report and for health checks. Called on any thread that asks for a report.
    fn waiting(&self) -> Option<String> {
        None
    }

    /// Called when every record of the checkpoint, and of those before it, has been taken:
    /// publishes what waited for that. The answer may come later, as [`SinkEvent::Committed`].
    /// The checkpoint becomes durable and sources commit after all sinks have committed; the next
    /// checkpoint waits for that. So a crash in between publishes the same records again, perhaps
    /// under another number.
    ///
    /// # Errors
    /// An error ends the run.
    fn commit(&self, checkpoint: CheckpointId) -> Result<Committed> {
        let _ = checkpoint;
        Ok(Committed::Now)
    }

    /// Called once, at the end of a run, after all writers are dropped: releases what is shared
    /// with other threads.
    fn close(&self) {}
}

/// What [`SharedSink::serve`] may report.
#[derive(Debug)]
#[non_exhaustive]
pub enum SinkEvent {
    /// This checkpoint, and those before it, are committed.
    Committed(CheckpointId),
}

/// When a sink acknowledges what it has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Acknowledges {
    /// As soon as the other side has the record.
    WhenDelivered,
    /// Not before the checkpoint's commit. Then only commits free memory, and when it is used up
    /// the engine cuts a checkpoint at once.
    WhenCommitted,
}

/// For a sink that shares nothing.
impl SharedSink for () {}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Accepted {
    /// The batch is empty now.
    All,
    /// There is no room: refused records stay at the front and are offered again after a wake. The
    /// job's sources wait meanwhile, so a sink may answer this only for a condition that ends
    /// without a commit and without further input. Records of an older checkpoint are still
    /// offered, and first, so a sink may hold back a checkpoint until the one before it is
    /// committed.
    Full,
}

/// The per-worker half of a sink; it stays on its worker's thread.
pub trait Writer<T> {
    /// Takes records from the front of the batch. Each is acknowledged through `delivery`, on any
    /// thread, when the other side has it. Must not block.
    ///
    /// # Errors
    /// An error ends the run.
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted>;

    /// Called after a wake: reports what has failed since the last call.
    ///
    /// # Errors
    /// An error ends the run.
    fn poll(&mut self) -> Result<()> {
        Ok(())
    }
}
