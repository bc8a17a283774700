//! When results leave, and what happens after a failure.

use std::fmt;
use std::time::Duration;

/// How epochs close; the same pipeline gives the same results under each.
///
/// | here | in Spark |
/// |---|---|
/// | `Continuous` | continuous processing, real-time mode |
/// | `MicroBatch { interval }` | `Trigger.ProcessingTime(interval)`; zero is Spark's default trigger |
/// | `AvailableNow` | `Trigger.AvailableNow()` |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trigger {
    /// Records are processed as they arrive; epochs close behind them.
    #[default]
    Continuous,
    /// What arrived is processed at each tick, as one batch. Ticks lie on a grid: a batch that
    /// takes long does not shift those after it. With `Duration::ZERO` the next batch begins when
    /// the one before is through.
    MicroBatch {
        /// From tick to tick.
        interval: Duration,
    },
    /// Ends are fixed at the start; the job runs to them, commits, and ends.
    AvailableNow,
}

impl Trigger {
    /// Micro-batches at that interval.
    pub fn micro_batch(interval: Duration) -> Trigger {
        Trigger::MicroBatch { interval }
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trigger::Continuous => f.write_str("continuous"),
            Trigger::MicroBatch { interval } => write!(f, "micro-batch {interval:?}"),
            Trigger::AvailableNow => f.write_str("available now"),
        }
    }
}

/// What a job does when a run of it has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restart {
    /// It ends with the error.
    #[default]
    Never,
    /// It begins again, with fresh clients, from what was committed. It ends all the same when
    /// another run cannot end differently (a malformed record, lost data, a wrong option), and
    /// after three runs in a row that panicked or got stuck without a commit. Only a job that has
    /// started is started again: what keeps its first run from starting is the error of
    /// [`Job::start`](crate::Job::start).
    Backoff {
        /// Pause before the first restart, greater than zero; doubled for each that follows without
        /// a commit between.
        first: Duration,
        /// The longest pause.
        longest: Duration,
    },
}
