//! A job that runs.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::run::handle::{Handle, deadline_after};
use crate::run::health::{Health, HealthLimits};
use crate::run::jobs;
use crate::run::report::Report;
use crate::words::Result;

/// The handle of a started job: asks it to stop, waits for its end, and tells what it does. It is a future of the job's
/// end. Dropping it aborts the job, without waiting for it.
#[must_use = "dropping it aborts the job; `detach` lets it run"]
pub struct Running {
    handle: Arc<Handle>,
    attached: bool,
}

/// So that an orchestrator's 30 s suffice, also with a dead broker.
const STOP_WITHIN: Duration = Duration::from_secs(10);

impl Running {
    pub(crate) fn new(handle: Arc<Handle>) -> Running {
        Running { handle, attached: true }
    }

    /// Asks the job to drain, commit and end, within 10 s. Returns at once.
    pub fn stop(&self) {
        self.stop_within(STOP_WITHIN);
    }

    /// Asks the job to read nothing more, to finish what was released, commit it and end. When that takes longer than
    /// `limit` the job ends with an error; what was not committed is read again by the next run.
    pub fn stop_within(&self, limit: Duration) {
        self.handle.stop_within(limit);
    }

    /// Asks the job to end at once. What is not committed is read again by the next run.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Another way to ask the same job, for a signal handler or another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.handle))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The first fault that ended the job.
    pub fn wait(self) -> Result<Report> {
        self.handle.wait(None).expect("without a deadline it waits for the end")
    }

    /// Waits for the end, at most so long; `None` when it did not come. The outcome is given out once:
    /// whoever asks again hears that it was.
    pub fn wait_for(&mut self, limit: Duration) -> Option<Result<Report>> {
        self.handle.wait(Some(deadline_after(limit)))
    }

    /// What the job's newest run has done so far.
    pub fn report(&self) -> Report {
        self.handle.report()
    }

    /// Whether the job is alive and ready, with the reasons in words when it is not. For the probes of an orchestrator.
    ///
    /// *Alive* says that workers step, the control thread comes by, what was cut is committed in time, and no source has waited
    /// too long for its group. A job that waits for its next run after a failure is alive: it mends itself. When a job is not
    /// alive or has ended, only a new process can help.
    ///
    /// *Ready* says that the job is alive and under way, reads what it is to read, and has caught up to
    /// [`HealthLimits::lag_at_most`]. A job that was asked to stop is not ready.
    ///
    /// ```
    /// use millstream::{HealthLimits, Job, channel, discard};
    ///
    /// let (numbers, source) = channel::<u64>(10);
    /// let running = Job::new("healthy", move |flow| flow.source(&source)?.sink(discard())).start()?;
    /// let limits = HealthLimits::new().lag_at_most(1_000);
    /// assert!(running.health(&limits).is_alive());
    /// drop(numbers);
    /// # running.wait()?;
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn health(&self, limits: &HealthLimits) -> Health {
        self.handle.health(limits)
    }

    /// Another way to the report and the health, for a handler or another thread.
    pub fn reporter(&self) -> Reporter {
        Reporter(Arc::clone(&self.handle))
    }

    /// A source of the job by its name, as the report shows it, to pause it or to change its limits.
    ///
    /// ```
    /// use millstream::{Job, discard, generate};
    ///
    /// let job = Job::new("steered", |flow| flow.source(generate(|n| n).rate(100.0))?.named("numbers").sink(discard()));
    /// let running = job.start()?;
    /// let numbers = running.source("numbers").expect("the pipeline names it so");
    /// numbers.pause();
    /// assert!(running.report().sources[0].paused);
    /// numbers.resume();
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn source(&self, name: &str) -> Option<SourceControl> {
        let names = self.handle.source_names();
        let name = names.into_iter().find(|own| own == name)?;
        Some(SourceControl { handle: Arc::clone(&self.handle), name })
    }

    /// All sources of the job, in the order of the pipeline.
    pub fn sources(&self) -> Vec<SourceControl> {
        let control = |name| SourceControl { handle: Arc::clone(&self.handle), name };
        self.handle.source_names().into_iter().map(control).collect()
    }

    /// Reads nothing more until [`resume`](Running::resume): what was read is finished and committed, members of consumer
    /// groups keep their partitions, and the job can be stopped as ever. Lasts over restarts.
    pub fn pause(&self) {
        self.sources().iter().for_each(SourceControl::pause);
    }

    /// Reads on.
    pub fn resume(&self) {
        self.sources().iter().for_each(SourceControl::resume);
    }

    /// How much of a bounded run's input is read, from 0 to 1; `None` when nobody knows the end.
    pub fn progress(&self) -> Option<f64> {
        self.report().fraction()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.handle.has_ended()
    }

    /// Whether nothing more happens before the clock moves, once channels have given so many records.
    pub(crate) fn is_settled(&self, fed: u64) -> bool {
        self.handle.is_settled(fed)
    }

    /// Lets the job run on without a handle.
    pub fn detach(mut self) {
        self.attached = false;
    }
}

/// What is let in of a source of a running job; see [`Running::source`]. It may be kept beside the job, and does nothing once
/// that has ended. What is said here lasts over restarts.
#[derive(Clone, Debug)]
pub struct SourceControl {
    handle: Arc<Handle>,
    name: String,
}

impl SourceControl {
    /// The source's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads nothing more of it until [`resume`](SourceControl::resume).
    pub fn pause(&self) {
        self.handle.limit(&self.name, |limits| limits.is_paused = true);
    }

    /// Reads on.
    pub fn resume(&self) {
        self.handle.limit(&self.name, |limits| limits.is_paused = false);
    }

    /// From now on so many records each second at most; `None` for no limit. See
    /// [`Stream::rate_at_most`](crate::Stream::rate_at_most).
    ///
    /// # Panics
    /// When the rate is not a finite number greater than zero.
    pub fn rate_at_most(&self, records_per_second: Option<f64>) {
        assert!(
            records_per_second.is_none_or(|rate| rate > 0.0 && rate.is_finite()),
            "a rate must be a finite number greater than zero"
        );
        self.handle.limit(&self.name, |limits| limits.rate = records_per_second);
    }

    /// From now on so many records in a batch at most; `None` for no limit. See
    /// [`Stream::batch_at_most`](crate::Stream::batch_at_most).
    ///
    /// # Panics
    /// When `records` is 0.
    pub fn batch_at_most(&self, records: Option<u64>) {
        assert!(records != Some(0), "a batch must have room for a record");
        self.handle.limit(&self.name, |limits| limits.batch = records);
    }
}

/// Asks a job to stop; see [`Running::stopper`].
#[derive(Clone, Debug)]
pub struct Stopper(Arc<Handle>);

impl Stopper {
    /// As [`Running::stop`].
    pub fn stop(&self) {
        self.0.stop_within(STOP_WITHIN);
    }

    /// As [`Running::abort`].
    pub fn abort(&self) {
        self.0.abort();
    }
}

/// Tells what a job does; see [`Running::reporter`].
#[derive(Clone, Debug)]
pub struct Reporter(Arc<Handle>);

impl Reporter {
    /// As [`Running::report`]; of a job that has ended, its last one.
    pub fn report(&self) -> Report {
        self.0.report()
    }

    /// As [`Running::health`]; a job that has ended is not alive.
    pub fn health(&self, limits: &HealthLimits) -> Health {
        self.0.health(limits)
    }
}

/// A job of this process that has not ended; see [`jobs()`].
#[derive(Clone, Debug)]
pub struct RunningJob(Arc<Handle>);

/// The jobs of this process, from their start to their end, the oldest first: also those whose handle was
/// [detached](Running::detach), and without those that [`Job::compare`](crate::Job::compare) runs.
///
/// ```
/// use millstream::{Job, channel, discard, jobs};
///
/// let (numbers, source) = channel::<u64>(10);
/// Job::new("numbers", move |flow| flow.source(&source)?.sink(discard())).start()?.detach();
/// for job in jobs().iter().filter(|job| job.name() == "numbers") {
///     println!("{}: {} records", job.name(), job.report().records_out());
///     job.stopper().stop();
/// }
/// # drop(numbers);
/// # Ok::<(), millstream::Error>(())
/// ```
pub fn jobs() -> Vec<RunningJob> {
    jobs::all().into_iter().map(RunningJob).collect()
}

impl RunningJob {
    /// The job's name; several jobs may have the same.
    pub fn name(&self) -> String {
        self.0.job()
    }

    /// As [`Running::report`].
    pub fn report(&self) -> Report {
        self.0.report()
    }

    /// As [`Running::health`].
    pub fn health(&self, limits: &HealthLimits) -> Health {
        self.0.health(limits)
    }

    /// As [`Running::stopper`].
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.0))
    }
}

impl Future for Running {
    type Output = Result<Report>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.handle.poll(context.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.attached && !self.handle.has_ended() {
            self.handle.abort();
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({:?})", self.handle)
    }
}
