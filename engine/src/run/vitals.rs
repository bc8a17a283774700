//! The signs of life of a run: workers, the control thread and the commits leave them here, and
//! [`health`](super::health) reads them. The atomics are Relaxed, because each value stands alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::words::{CheckpointId, Clock, Moment, lock};

/// The signs of life of a run.
#[derive(Debug)]
pub(crate) struct Vitals {
    pub(super) stuck_after: Duration,
    /// When each worker's current step began, or 0 when the worker has ended.
    pub(crate) steps: Vec<Arc<AtomicU64>>,
    /// When the control thread made its last round, or 0 when it does not serve the run.
    served: AtomicU64,
    pub(super) stops: AtomicBool,
    open: Mutex<Option<OpenCheckpoint>>,
    /// What sources wait for, and since when.
    waiting: Mutex<Vec<(String, Moment)>>,
}

/// The oldest checkpoint that is cut and not committed.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenCheckpoint {
    pub(super) checkpoint: CheckpointId,
    pub(super) since: Moment,
    pub(super) stage: OpenStage,
}

/// What an open checkpoint waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenStage {
    /// For the acknowledgement of its records.
    Acknowledgements,
    /// For the answers to its commit.
    Commit,
    /// For the disk on which it is written.
    Disk,
}

impl Vitals {
    pub(crate) fn new(workers: usize, stuck_after: Duration) -> Vitals {
        Vitals {
            stuck_after,
            steps: (0..workers).map(|_| Arc::default()).collect(),
            served: AtomicU64::new(0),
            stops: AtomicBool::new(false),
            open: Mutex::default(),
            waiting: Mutex::default(),
        }
    }

    // For the control thread.

    /// Notes a round of the control thread: checkpoints are cut up to `cut` and committed up to
    /// `committed`, and the one after that waits for `stage`.
    pub(crate) fn serve(&self, cut: CheckpointId, committed: CheckpointId, stage: OpenStage) {
        let now = Clock::system().now();
        self.served.store(now.as_nanos().max(1), Relaxed);
        let mut open = lock(&self.open);
        *open = (cut > committed).then(|| {
            let checkpoint = committed.next();
            let since = open.filter(|open| open.checkpoint == checkpoint).map_or(now, |open| open.since);
            OpenCheckpoint { checkpoint, since, stage }
        });
    }

    /// Notes what sources wait for; called several times a second.
    pub(crate) fn wait_for(&self, texts: Vec<String>) {
        let now = Clock::system().now();
        let mut waiting = lock(&self.waiting);
        let before = std::mem::take(&mut *waiting);
        let since = |text: &String| before.iter().find(|(other, _)| other == text).map_or(now, |(_, since)| *since);
        waiting.extend(texts.into_iter().map(|text| (text.clone(), since(&text))));
    }

    pub(crate) fn stop(&self) {
        self.stops.store(true, Relaxed);
    }

    /// Notes that the control thread does not serve the run any more.
    pub(crate) fn end(&self) {
        self.served.store(0, Relaxed);
    }

    // For `health`.

    pub(super) fn served(&self) -> Option<Moment> {
        Some(self.served.load(Relaxed)).filter(|served| *served > 0).map(Moment::from_nanos)
    }

    pub(super) fn open(&self) -> Option<OpenCheckpoint> {
        *lock(&self.open)
    }

    pub(super) fn waiting_since(&self, text: &str) -> Option<Moment> {
        lock(&self.waiting).iter().find(|(waiting, _)| waiting == text).map(|(_, since)| *since)
    }

    /// How long each worker has been in its current step.
    pub(super) fn busy(&self, now: Moment) -> impl Iterator<Item = Duration> + '_ {
        self.steps.iter().map(move |step| match step.load(Relaxed) {
            0 => Duration::ZERO,
            since => now - Moment::from_nanos(since),
        })
    }
}
