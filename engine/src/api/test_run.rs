//! A job under a simulated clock that moves step by step, for the tests of a pipeline.

use std::fmt;
use std::time::{Duration, Instant};

use crate::io::{Collected, SendError, Sender};
use crate::run::report::Report;
use crate::words::{Clock, Error, ErrorKind, Result};

use super::job::Job;
use super::running::Running;
use super::trigger::Restart;

/// Runs a job for a test: its clock stands still until it is moved, and everything that a step
/// causes has happened when the step returns. It works the same under any trigger and with any
/// number of workers. It corresponds to Kafka Streams' `TopologyTestDriver`, with real threads.
///
/// Feed the pipeline through a [`channel`](crate::channel()), and let it end in
/// [`collect`](crate::collect). Steps wait for what was fed. Records that a source makes by itself
/// ([`rows`](crate::rows), [`generate`](crate::generate)) may come a moment after a step has
/// returned.
///
/// ```
/// use millstream::{Flow, Job, Result, Sink, Source, TestRun, Trigger, channel, collect};
/// use std::time::Duration;
///
/// // The pipeline under test takes its ends, so that a test can give it others.
/// fn evens(
///     flow: &Flow<'_>,
///     numbers: impl Source<Item = u64>,
///     results: impl Sink<u64>,
/// ) -> Result<()> {
///     flow.source(numbers)?.filter(|n| n % 2 == 0).sink(results)
/// }
///
/// let ((numbers, source), results) = (channel(100), collect());
/// let sink = results.clone();
/// let job = Job::new("evens", move |flow| evens(flow, &source, &sink)).workers(2);
/// let mut test = TestRun::start(job.trigger(Trigger::micro_batch(Duration::from_secs(1))))?;
/// test.feed(&numbers, [1, 2, 3, 4])?;
/// assert!(test.drain(&results)?.is_empty(), "they wait for their tick");
/// test.advance(Duration::from_secs(1))?;
/// assert_eq!(test.drain(&results)?, [2, 4]);
/// let report = test.end()?;
/// assert_eq!(report.records_in(), 4);
/// # Ok::<(), millstream::Error>(())
/// ```
#[must_use = "dropping it aborts the job"]
pub struct TestRun {
    clock: Clock,
    running: Running,
    fed: u64,
    /// The report of a job that has ended without an error.
    ended: Option<Report>,
}

/// A step that takes longer is reported as hanging.
const PATIENCE: Duration = Duration::from_secs(10);

impl TestRun {
    /// Starts the job on a simulated clock of its own. It is not restarted: a step returns what
    /// made it fail.
    ///
    /// # Errors
    /// As [`Job::start`].
    pub fn start(job: Job) -> Result<TestRun> {
        let clock = Clock::simulated();
        let running = job.clock(clock.clone()).restart(Restart::Never).start()?;
        Ok(TestRun { clock, running, fed: 0, ended: None })
    }

    /// The job's clock, for anything else that needs the time.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Sends records into the job at the current moment, and returns when the job has them and
    /// everything that they cause at this moment has happened: under
    /// [`Trigger::Continuous`](crate::Trigger::Continuous) they are done, under micro-batches they
    /// wait for their tick.
    ///
    /// # Errors
    /// The fault that ended the job, or an error when it hangs or does not read the channel.
    pub fn feed<T: Send + 'static>(&mut self, sender: &Sender<T>, records: impl IntoIterator<Item = T>) -> Result<()> {
        for record in records {
            self.send(sender, record)?;
            self.fed += 1;
        }
        self.settle()
    }

    fn send<T: Send + 'static>(&mut self, sender: &Sender<T>, mut record: T) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(unsent) = sender.try_send(record).map(drop) {
            if matches!(unsent, SendError::Ended(_)) || self.running.has_ended() || Instant::now() > deadline {
                return Err(self.failed());
            }
            record = unsent.into_inner();
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Moves the clock forward, and returns when everything that is due by then has happened.
    ///
    /// # Errors
    /// The fault that ended the job, or an error when it hangs.
    pub fn advance(&mut self, by: Duration) -> Result<()> {
        self.clock.advance(by);
        self.settle()
    }

    /// What has reached a sink since it was last drained, in the order of arrival. It also works
    /// for a job that has ended because its input has.
    ///
    /// # Errors
    /// The fault that ended the job, or an error when it hangs.
    pub fn drain<T: Send + 'static>(&mut self, results: &Collected<T>) -> Result<Vec<T>> {
        self.settle()?;
        Ok(results.take())
    }

    /// What the job has done so far.
    pub fn report(&self) -> Report {
        self.running.report()
    }

    /// Stops the job, which finishes what was fed, including what waits for a tick.
    ///
    /// # Errors
    /// The fault that ended the job.
    pub fn end(self) -> Result<Report> {
        if let Some(report) = self.ended {
            return Ok(report);
        }
        self.running.stop();
        self.running.wait()
    }

    /// Waits until the job has nothing to do before the clock is moved again.
    fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.ended.is_none() && !self.running.is_settled(self.fed) {
            if Instant::now() > deadline {
                return Err(Error::new(ErrorKind::Stuck, format!("the job hangs:\n{}", self.report())));
            }
            if self.running.has_ended() {
                match self.running.wait_for(PATIENCE) {
                    Some(outcome) => self.ended = Some(outcome?),
                    None => return Err(self.failed()),
                }
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    fn failed(&mut self) -> Error {
        match self.running.wait_for(PATIENCE) {
            Some(Err(error)) => error,
            _ => Error::new(ErrorKind::Pipeline, "the job has ended, or does not read the channel"),
        }
    }
}

impl fmt::Debug for TestRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TestRun({:?})", self.running)
    }
}
