//! One attempt at a call: a user's future as a task, which reports its answer or its panic. It
//! shows since when the future has been polled, so that a future that blocks can be reported.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;
use tracing::{Instrument, Span};

use crate::words::{CheckpointId, Clock, Moment};

use super::call_queue::LaneId;
use super::call_threads::CallDesk;
use super::fault::Node;

/// A poll that takes longer counts as blocking its thread.
pub(super) const BLOCKS_AFTER: Duration = Duration::from_millis(100);

/// The answer of a future, or its panic.
pub(super) type Outcome<U> = Result<U, Box<dyn Any + Send>>;

/// The calls of a batch: its checkpoint, and its number among all batches. The oldest checkpoint
/// comes first.
pub(super) type GroupId = (CheckpointId, u64);

/// The record of a call: its place in its batch, and its key where records have any.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordId {
    pub(super) group: GroupId,
    pub(super) index: usize,
    pub(super) lane: Option<LaneId>,
}

/// An open call.
pub(super) struct Attempt {
    pub(super) record: RecordId,
    /// When it times out.
    pub(super) deadline: Instant,
    polled: Arc<Polled>,
    task: AbortHandle,
}

/// Since when a future has been polled, in nanoseconds; 0 between polls. Relaxed, because it guards
/// nothing: it only decides about a warning.
#[derive(Default)]
struct Polled(AtomicU64);

impl Polled {
    fn begin(&self) {
        self.0.store(now().as_nanos().max(1), Relaxed);
    }

    /// Ends a poll, and returns how long it took.
    fn end(&self) -> Duration {
        now() - Moment::from_nanos(self.0.swap(0, Relaxed))
    }

    fn lasts(&self) -> Duration {
        match self.0.load(Relaxed) {
            0 => Duration::ZERO,
            begun => now() - Moment::from_nanos(begun),
        }
    }
}

/// The machine's time, independent of the job's clock.
fn now() -> Moment {
    Clock::system().now()
}

/// Where a call belongs.
pub(super) struct Whose<'s> {
    pub(super) stage: (Node, &'s str),
    pub(super) record: RecordId,
    pub(super) deadline: Instant,
}

impl Attempt {
    /// Starts a future. `tell` is called once, on the future's thread, unless the call is dropped
    /// first.
    pub(super) fn begin<Fut>(
        desk: &CallDesk,
        whose: &Whose<'_>,
        future: Fut,
        tell: impl FnOnce(Outcome<Fut::Output>) + Send + 'static,
    ) -> Attempt
    where
        Fut: Future + Send + 'static,
        Fut::Output: Send,
    {
        let polled = Arc::<Polled>::default();
        let (shown, own, node, name) = (Arc::clone(&polled), desk.clone(), whose.stage.0, whose.stage.1.to_owned());
        let call = async move {
            let mut future = pin!(future);
            let outcome = poll_fn(|context| {
                shown.begin();
                let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
                let lasted = shown.end();
                if lasted >= BLOCKS_AFTER {
                    own.warn_of_blocking((node, &name), lasted);
                }
                match polled {
                    Ok(Poll::Pending) => Poll::Pending,
                    Ok(Poll::Ready(answer)) => Poll::Ready(Ok(answer)),
                    Err(payload) => Poll::Ready(Err(payload)),
                }
            })
            .await;
            tell(outcome);
        };
        let task = desk.calls.spawn(call.instrument(Span::current())).abort_handle();
        let Whose { record, deadline, .. } = *whose;
        Attempt { record, deadline, polled, task }
    }

    /// How long the current poll has lasted.
    pub(super) fn blocks_for(&self) -> Duration {
        self.polled.lasts()
    }

    /// Drops the future: now, or when its current poll returns.
    pub(super) fn abort(self) {
        self.task.abort();
    }
}
