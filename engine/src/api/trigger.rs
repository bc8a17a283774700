//! When results leave, and what happens after a failure.

use std::fmt;
use std::time::Duration;

/// When epochs close. The same pipeline gives the same results under each trigger.
///
/// | here | in Spark |
/// |---|---|
/// | `Continuous` | continuous processing, real-time mode |
/// | `MicroBatch { interval }` | `Trigger.ProcessingTime(interval)`; zero is Spark's default |
/// | `AvailableNow` | `Trigger.AvailableNow()` |
///
/// Where Spark's meaning depends on batches, this is what holds here:
///
/// | in Spark | here |
/// |---|---|
/// | output mode *update*: the rows that a batch has changed | the same in micro-batches; otherwise with each record, or [`every`](crate::Aggregated::every) so often |
/// | `foreachBatch` with an id that a replay repeats | a checkpoint is the batch of a sink ([`SharedSink::commit`](crate::connector::SharedSink::commit)); a replay may divide records into others |
/// | `maxOffsetsPerTrigger` | [`batch_at_most`](crate::Stream::batch_at_most), and [`rate_at_most`](crate::Stream::rate_at_most) under any trigger |
/// | `processAllAvailable`, `AvailableNow` | ends are fixed when the job starts; it runs up to there and commits |
/// | `current_timestamp()` is constant in a batch | there is no such function: a pipeline that asks the clock gets the moment, and another one when records are read again |
/// | the console prints `Batch: n` | so does `console().each_batch(n)`; otherwise rows are printed as they come |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Trigger {
    /// Records are processed as they arrive; epochs close behind them.
    #[default]
    Continuous,
    /// What has arrived is processed at each tick, as one batch. Ticks are on a grid: a batch that
    /// takes long does not shift those after it, and a record that comes after a while without any
    /// waits for the next tick, as in Spark. A tick that was missed because the batch before took
    /// long is made up for at once. With `Duration::ZERO` the next batch begins when the one before
    /// is through.
    MicroBatch {
        /// The time from tick to tick.
        interval: Duration,
    },
    /// The end of each source is fixed at the start; the job runs up to there, commits, and ends.
    AvailableNow,
}

impl Trigger {
    /// Micro-batches at this interval.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Restart {
    /// It ends with the error.
    #[default]
    Never,
    /// It starts another run, with new clients, from what was committed. The job still ends when
    /// another run cannot end differently (a malformed record, lost data, a wrong option), and
    /// after three runs in a row that panicked or got stuck without a commit. Only a job that has
    /// started is restarted: what keeps its first run from starting is the error of
    /// [`Job::start`](crate::Job::start).
    Backoff {
        /// The pause before the first restart, greater than zero. It doubles for each restart that
        /// follows without a commit in between.
        first: Duration,
        /// The longest pause.
        longest: Duration,
    },
}
