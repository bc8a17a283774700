//! A job that runs.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::run::handle::Handle;
use crate::run::health::{Health, HealthLimits};
use crate::run::jobs;
use crate::run::report::Report;
use crate::words::{Result, deadline_after};

/// A started job. It is a future of the job's end, and dereferences to a [`JobHandle`], which
/// controls the job and reports what it does. Dropping it aborts the job, without waiting for its
/// end.
#[must_use = "dropping it aborts the job; `detach` lets it run"]
pub struct Running {
    job: JobHandle,
    attached: bool,
}

impl Running {
    pub(crate) fn new(handle: Arc<Handle>) -> Running {
        Running { job: JobHandle(handle), attached: true }
    }

    /// A handle of the job that can be cloned and kept: for a signal handler, an HTTP handler or
    /// another thread. Dropping the handle does nothing.
    pub fn handle(&self) -> JobHandle {
        self.job.clone()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// The first fault that ended the job.
    pub fn wait(self) -> Result<Report> {
        self.job.0.wait(None).expect("without a deadline it waits for the end")
    }

    /// Waits for the end, for `limit` at most; `None` when the job has not ended by then. The
    /// outcome is returned once; later calls return an error that says so.
    pub fn wait_for(&mut self, limit: Duration) -> Option<Result<Report>> {
        self.job.0.wait(Some(deadline_after(limit)))
    }

    /// Whether nothing more happens before the clock moves, once `fed` records of channels have
    /// been polled.
    pub(crate) fn is_settled(&self, fed: u64) -> bool {
        self.job.0.is_settled(fed)
    }

    /// Lets the job continue without this.
    pub fn detach(mut self) {
        self.attached = false;
    }
}

impl Deref for Running {
    type Target = JobHandle;

    fn deref(&self) -> &JobHandle {
        &self.job
    }
}

/// Controls a job, and reports what it does. Clones control the same job, and may be kept beyond
/// its end. It comes from [`Running::handle`] or [`jobs()`].
#[derive(Clone)]
pub struct JobHandle(Arc<Handle>);

/// Short enough for the 30 s that an orchestrator gives, even with a dead broker.
const STOP_WITHIN: Duration = Duration::from_secs(10);

impl JobHandle {
    /// The job's name; several jobs may have the same name.
    pub fn name(&self) -> String {
        self.0.job()
    }

    /// Asks the job to drain, commit and end, within 10 s. Returns at once.
    pub fn stop(&self) {
        self.stop_within(STOP_WITHIN);
    }

    /// Asks the job to stop reading, finish what was released, commit it and end. When that takes
    /// longer than `limit`, the job ends with an error, and the next run reads again what was not
    /// committed.
    pub fn stop_within(&self, limit: Duration) {
        self.0.stop_within(limit);
    }

    /// Asks the job to end at once. The next run reads again what was not committed.
    pub fn abort(&self) {
        self.0.abort();
    }

    /// Whether the job has ended.
    pub fn has_ended(&self) -> bool {
        self.0.has_ended()
    }

    /// What the job's newest run has done so far; for a job that has ended, what its last run did.
    pub fn report(&self) -> Report {
        self.0.report()
    }

    /// How much of a bounded run's input is read, from 0 to 1; `None` when the end is not known.
    pub fn fraction(&self) -> Option<f64> {
        self.report().fraction()
    }

    /// Whether the job is alive and ready, with the reasons in words when it is not: for the probes
    /// of an orchestrator.
    ///
    /// *Alive* means that workers make steps, the control thread makes rounds, what was cut is
    /// committed in time, and no source has waited too long for its group. A job that waits for its
    /// next run after a failure is alive: it recovers by itself. When a job is not alive or has
    /// ended, only a new process can help.
    ///
    /// *Ready* means that the job is alive and running, reads its input, and has caught up to
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
        self.0.health(limits)
    }

    /// A source of the job, by its name in the report: to pause it or to change its limits.
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
        let names = self.0.source_names();
        let name = names.into_iter().find(|own| own == name)?;
        Some(SourceControl { handle: Arc::clone(&self.0), name })
    }

    /// All sources of the job, in the order of the pipeline.
    pub fn sources(&self) -> Vec<SourceControl> {
        let control = |name| SourceControl { handle: Arc::clone(&self.0), name };
        self.0.source_names().into_iter().map(control).collect()
    }

    /// Pauses all sources until [`resume`](JobHandle::resume): what was read is finished and
    /// committed, members of consumer groups keep their partitions, and the job can be stopped as
    /// usual. The pause is kept over restarts.
    pub fn pause(&self) {
        self.sources().iter().for_each(SourceControl::pause);
    }

    /// Resumes reading.
    pub fn resume(&self) {
        self.sources().iter().for_each(SourceControl::resume);
    }
}

impl fmt::Debug for JobHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobHandle({:?})", self.0)
    }
}

/// The jobs of this process, from their start to their end, the oldest first. It includes those
/// whose handle was [detached](Running::detach), but not those that
/// [`Job::compare`](crate::Job::compare) runs.
///
/// ```
/// use millstream::{Job, channel, discard, jobs};
///
/// let (numbers, source) = channel::<u64>(10);
/// Job::new("numbers", move |flow| flow.source(&source)?.sink(discard())).start()?.detach();
/// for job in jobs().iter().filter(|job| job.name() == "numbers") {
///     println!("{}: {} records", job.name(), job.report().records_out());
///     job.stop();
/// }
/// # drop(numbers);
/// # Ok::<(), millstream::Error>(())
/// ```
pub fn jobs() -> Vec<JobHandle> {
    jobs::all().into_iter().map(JobHandle).collect()
}

/// Limits how much of a source of a running job is read; see [`JobHandle::source`]. It has no
/// effect once the job has ended. What is set here is kept over restarts.
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

    /// Pauses the source until [`resume`](SourceControl::resume).
    pub fn pause(&self) {
        self.handle.limit(&self.name, |limits| limits.is_paused = true);
    }

    /// Resumes reading.
    pub fn resume(&self) {
        self.handle.limit(&self.name, |limits| limits.is_paused = false);
    }

    /// Limits the source to this many records each second from now on; `None` removes the limit.
    /// See [`Stream::rate_at_most`](crate::Stream::rate_at_most).
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

    /// Limits a batch to this many records from now on; `None` removes the limit. See
    /// [`Stream::batch_at_most`](crate::Stream::batch_at_most).
    ///
    /// # Panics
    /// When `records` is 0.
    pub fn batch_at_most(&self, records: Option<u64>) {
        assert!(records != Some(0), "a batch must have room for at least one record");
        self.handle.limit(&self.name, |limits| limits.batch = records);
    }
}

impl Future for Running {
    type Output = Result<Report>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.job.0.poll(context.waker()).map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.attached && !self.job.has_ended() {
            self.job.abort();
        }
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({:?})", self.job.0)
    }
}
