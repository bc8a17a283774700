//! Makes checkpoints durable, on a thread of its own that owns the files. A disk that is full,
//! read-only or does not answer stops no record: the checkpoint is tried again until it succeeds,
//! nothing is committed meanwhile, and the report says so. Between checkpoints the thread merges
//! files.

use std::fmt;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::state::recover::is_damage;
use crate::state::store::{Content, Gate, Merged, Store};
use crate::words::{CheckpointId, Error, ErrorKind, Latency, Result, lock, spawn};

/// The pauses between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A merge that has failed is tried again after this.
const MERGE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// What the thread of a run is told.
enum Order {
    Publish(CheckpointId, Content),
    End,
}

/// Makes the checkpoints of a run durable, one after the other.
pub(crate) struct Keeper {
    orders: mpsc::Sender<Order>,
    gate: Arc<Gate>,
    thread: JoinHandle<()>,
}

/// What the report shows of the checkpoints of a run.
#[derive(Debug, Default)]
pub(crate) struct Durability(Mutex<Progress>);

/// How far the checkpoints of a run are durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// The newest durable checkpoint, and when it became durable.
    pub(crate) newest: Option<(CheckpointId, Instant)>,
    /// Bytes written, without those of merges.
    pub(crate) bytes: u64,
    /// Bytes written by merges.
    pub(crate) merged: u64,
    /// Entries of state that were written.
    pub(crate) entries: u64,
    pub(crate) failures: u64,
    /// Why the checkpoint that is being written is not durable yet.
    pub(crate) failing: Option<String>,
    /// Since when a call of the disk is awaited.
    pub(crate) waiting: Option<Instant>,
    /// How long it took to make a checkpoint durable.
    pub(crate) writing: Latency,
}

/// A disk that takes longer than this to answer is shown.
const SLOW: Duration = Duration::from_secs(1);

impl Durability {
    pub(crate) fn get(&self) -> Progress {
        let mut progress = lock(&self.0).clone();
        if let Some(waits) = progress.waiting.map(|since| since.elapsed()).filter(|waits| *waits > SLOW) {
            progress.failing = Some(format!("no answer for {} s", waits.as_secs()));
        }
        progress
    }

    fn begins(&self) {
        lock(&self.0).waiting = Some(Instant::now());
    }

    fn succeeded(&self, checkpoint: CheckpointId, bytes: u64, entries: u64, took: Duration) {
        let progress = &mut *lock(&self.0);
        progress.newest = Some((checkpoint, Instant::now()));
        progress.bytes += bytes;
        progress.entries += entries;
        progress.failing = None;
        progress.waiting = None;
        progress.writing.record(took, 1);
    }

    fn merged(&self, bytes: u64) {
        lock(&self.0).merged += bytes;
    }

    fn count_failure(&self) {
        lock(&self.0).failures += 1;
    }

    fn failed(&self, cause: &io::Error) {
        let progress = &mut *lock(&self.0);
        progress.failures += 1;
        progress.failing = Some(cause.to_string());
        progress.waiting = None;
    }
}

impl Keeper {
    /// Starts the thread. It calls `told` for each checkpoint that has become durable, and with an
    /// error when the files before it are damaged: then only the next run can go on, from a
    /// checkpoint that is whole.
    pub(crate) fn start(
        store: Store,
        gate: Arc<Gate>,
        shown: Arc<Durability>,
        told: impl Fn(Result<CheckpointId>) + Send + 'static,
    ) -> Result<Keeper> {
        let (orders, received) = mpsc::channel();
        let thread = spawn("checkpoint", move || keep(store, &received, &shown, told))?;
        Ok(Keeper { orders, gate, thread })
    }

    /// Makes a checkpoint durable. The one before it is.
    pub(crate) fn publish(&self, checkpoint: CheckpointId, content: Content) {
        // Fails only when the thread has ended, with the run.
        drop(self.orders.send(Order::Publish(checkpoint, content)));
    }

    /// From here on nothing is published, even if the thread hangs in a call of the operating
    /// system. `false` when a checkpoint is being published at this moment.
    pub(crate) fn retire(&self) -> bool {
        self.gate.retire()
    }

    /// Ends the thread, and waits for it until the deadline.
    pub(crate) fn end_before(self, deadline: Instant) {
        drop(self.orders.send(Order::End));
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keeper({:?})", self.gate)
    }
}

/// The body of the thread.
fn keep(mut store: Store, orders: &Receiver<Order>, shown: &Durability, told: impl Fn(Result<CheckpointId>)) {
    let mut is_merging = false;
    let mut merges_from = Instant::now();
    loop {
        let order = match is_merging {
            true => match orders.try_recv() {
                Ok(order) => Some(order),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return,
            },
            false => match orders.recv() {
                Ok(order) => Some(order),
                Err(mpsc::RecvError) => return,
            },
        };
        match order {
            Some(Order::Publish(checkpoint, content)) => {
                if !publish(&mut store, orders, shown, checkpoint, &content) {
                    return;
                }
                told(Ok(checkpoint));
                is_merging = is_merging || Instant::now() >= merges_from;
            }
            Some(Order::End) => return,
            None => {
                let merged = tracing::debug_span!("merge").in_scope(|| store.merge());
                if let Err(cause) = &merged
                    && is_damage(cause)
                {
                    let doing = "a file of the checkpoints is damaged, and what follows it is of no use";
                    // The next run may succeed.
                    told(Err(Error::new(ErrorKind::System, doing).caused_by(cause.to_string())));
                    return;
                }
                let merged = merged.unwrap_or_else(|cause| {
                    tracing::warn!(cause = %cause, "cannot merge the files of checkpoints");
                    shown.count_failure();
                    merges_from = Instant::now() + MERGE_AGAIN_AFTER;
                    Merged::Nothing
                });
                is_merging = merged == Merged::Some;
                if let Merged::All(bytes) = merged {
                    shown.merged(bytes);
                }
            }
        }
    }
}

/// Publishes a checkpoint, however often it takes. `false` when the run has ended before.
fn publish(
    store: &mut Store,
    orders: &Receiver<Order>,
    shown: &Durability,
    checkpoint: CheckpointId,
    content: &Content,
) -> bool {
    let entries: u64 = content.deltas.iter().map(|(_, delta)| delta.count()).sum();
    let span = tracing::debug_span!("checkpoint", number = %checkpoint, entries, bytes = tracing::field::Empty);
    let _entered = span.enter();
    let (mut pause, pause_max) = PAUSE;
    let mut has_failed = false;
    let began = Instant::now();
    loop {
        shown.begins();
        match store.publish(checkpoint, content) {
            Ok(bytes) => {
                span.record("bytes", bytes);
                if has_failed {
                    tracing::info!(%checkpoint, "the checkpoint is durable now");
                }
                shown.succeeded(checkpoint, bytes, entries, began.elapsed());
                return true;
            }
            Err(cause) => {
                shown.failed(&cause);
                if !std::mem::replace(&mut has_failed, true) {
                    tracing::error!(%checkpoint, cause = %cause, "cannot write the checkpoint, trying again");
                }
            }
        }
        // Nothing but the end can be ordered before this checkpoint is durable.
        match orders.recv_timeout(pause) {
            Err(RecvTimeoutError::Timeout) => pause = (2 * pause).min(pause_max),
            Ok(Order::End | Order::Publish(..)) | Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}
