//! Backpressure within a job. A [`Budget`](super::Budget) counts what was read, but not what a
//! stage makes of it. So nothing is read while a writer has no room or a stage is behind: then at
//! most the outputs of one batch wait at each of them.

use std::collections::BTreeMap;

use super::CheckpointId;
use super::sync::{Arc, AtomicU64, Mutex, SeqCst, lock};

/// What waits within one worker, or, in a job in which records change workers, within all workers.
/// Clones share it.
///
/// Each change that lets something go on comes before the wake of what waits for it. So what looks
/// here after it has [listened](super::Wake::listen) either sees the change or is woken again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stall(Arc<Waiting>);

#[derive(Debug)]
struct Waiting {
    /// How many egresses have outputs that their writer refuses, by the checkpoint of the oldest.
    full: Mutex<BTreeMap<CheckpointId, u64>>,
    /// The oldest of these checkpoints, or `NONE`.
    oldest: AtomicU64,
    /// The number of stages that are behind.
    behind: AtomicU64,
    /// The number of records on their way to another worker, which may be parked and not know yet
    /// that it is behind.
    exchanged: AtomicU64,
}

/// No checkpoint, in `oldest`: newer than all.
const NONE: u64 = u64::MAX;

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting {
            full: Mutex::default(),
            oldest: AtomicU64::new(NONE),
            behind: AtomicU64::new(0),
            exchanged: AtomicU64::new(0),
        }
    }
}

/// The number of records that may be on their way to other workers before sources wait: four of the
/// largest slices, after which a stage is behind too ([`Backlog::look`]).
const EXCHANGED_MAX: u64 = 16_384;

impl Stall {
    /// Whether records of this checkpoint must wait for a writer. Older ones need not: the writer
    /// may wait for them.
    pub(crate) fn holds(&self, checkpoint: CheckpointId) -> bool {
        self.0.oldest.load(SeqCst) <= checkpoint.number()
    }

    /// Whether sources must wait.
    pub(crate) fn holds_sources(&self) -> bool {
        self.0.oldest.load(SeqCst) != NONE
            || self.0.behind.load(SeqCst) > 0
            || self.0.exchanged.load(SeqCst) >= EXCHANGED_MAX
    }

    /// Counts records that leave for another worker.
    pub(crate) fn depart(&self, records: usize) {
        self.0.exchanged.fetch_add(records as u64, SeqCst);
    }

    /// Counts records that arrive from another worker. Returns whether sources may go on.
    pub(crate) fn arrive(&self, records: usize) -> bool {
        let before = self.0.exchanged.fetch_sub(records as u64, SeqCst);
        before >= EXCHANGED_MAX && before - (records as u64) < EXCHANGED_MAX
    }

    /// The oldest checkpoint of which an egress holds refused outputs was `from` and is now `to`.
    /// Returns whether something that waited may go on.
    pub(crate) fn change(&self, from: Option<CheckpointId>, to: Option<CheckpointId>) -> bool {
        let mut full = lock(&self.0.full);
        if let Some(to) = to {
            *full.entry(to).or_default() += 1;
        }
        if let Some(from) = from
            && let Some(count) = full.get_mut(&from)
        {
            *count -= 1;
            if *count == 0 {
                full.remove(&from);
            }
        }
        let oldest = full.keys().next().map_or(NONE, |checkpoint| checkpoint.number());
        // Stored under the lock, so that the last change also stores the last value.
        oldest > self.0.oldest.swap(oldest, SeqCst)
    }

    /// Counts a stage that is behind.
    fn fall_behind(&self) {
        self.0.behind.fetch_add(1, SeqCst);
    }

    /// Counts a stage that has caught up. Returns whether it was the last one behind.
    fn catch_up(&self) -> bool {
        self.0.behind.fetch_sub(1, SeqCst) == 1
    }
}

/// Whether one stage is behind. When the last of them has caught up, it wakes the sources.
pub(crate) struct Backlog {
    stall: Stall,
    is_behind: bool,
    caught_up: Box<dyn Fn()>,
}

impl Backlog {
    /// The backlog of a stage that is not behind; `caught_up` wakes the sources.
    pub(crate) fn new(stall: Stall, caught_up: impl Fn() + 'static) -> Backlog {
        Backlog { stall, is_behind: false, caught_up: Box::new(caught_up) }
    }

    /// Sets how many records wait before the stage, which processes `slice` of them at once. The
    /// stage falls behind with more than four slices and has caught up at one, so that it is never
    /// idle while sources wait for it.
    pub(crate) fn look(&mut self, waiting: usize, slice: usize) {
        let limit = if self.is_behind { slice } else { slice.saturating_mul(4) };
        let is_behind = waiting > limit;
        if is_behind == self.is_behind {
            return;
        }
        self.is_behind = is_behind;
        if is_behind {
            self.stall.fall_behind();
        } else if self.stall.catch_up() {
            (self.caught_up)();
        }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.look(0, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_oldest_refused_output_goes_on() {
        let (stall, [one, two, three]) = (Stall::default(), [1, 2, 3].map(CheckpointId::new));
        assert!(!stall.change(None, Some(two)), "nothing may go on that could not before");
        assert!(!stall.holds(one) && stall.holds(two) && stall.holds(three) && stall.holds_sources());
        assert!(!stall.change(None, Some(one)));
        assert!(stall.holds(one));
        assert!(stall.change(Some(one), Some(three)), "the other egress holds the second");
        assert!(!stall.holds(one) && stall.holds(two));
        assert!(stall.change(Some(two), None) && stall.change(Some(three), None));
        assert!(!stall.holds_sources());
    }
}
