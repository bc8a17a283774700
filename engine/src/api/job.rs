//! A pipeline function and how to run it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::epoch::ticker::Pace;
use crate::io::Trial;
use crate::operator::fault::panicked;
use crate::run::begin::Spec;
use crate::run::control::control;
use crate::run::handle::Handle;
use crate::run::listener::{JobEvent, Listener};
use crate::run::plan::Pipeline;
use crate::run::report::Report;
use crate::words::{Bytes, Clock, Error, ErrorKind, Result, spawn};

use super::flow::{Flow, Function};
use super::running::Running;
use super::trigger::{Restart, Trigger};

/// A pipeline function with its options. Several jobs may run in one process.
///
/// ```
/// use millstream::{Job, Trigger, collect, rows};
/// use std::time::Duration;
///
/// let results = collect();
/// let sink = results.clone();
/// let report = Job::new("evens", move |flow| flow.source(rows(0..10))?.filter(|n| n % 2 == 0).sink(&sink))
///     .workers(2)
///     .trigger(Trigger::micro_batch(Duration::from_millis(10)))
///     .run()?;
/// assert_eq!(results.len(), 5);
/// assert_eq!(report.records_in(), 10);
/// # Ok::<(), millstream::Error>(())
/// ```
///
/// A clone is another job of the same name and pipeline.
#[derive(Clone)]
#[must_use = "a job does nothing until it is run or started"]
pub struct Job {
    pipeline: Arc<dyn Pipeline>,
    name: String,
    workers: usize,
    trigger: Trigger,
    checkpoint_every: Duration,
    memory: Bytes,
    restart: Restart,
    clock: Clock,
    stuck_after: Duration,
    spin: Duration,
    hand_over_within: Duration,
    live: bool,
    listeners: Vec<Listener>,
}

impl Job {
    /// A job of that name, which reports, logs and consumer groups carry.
    pub fn new(name: impl Into<String>, pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) -> Job {
        Job {
            pipeline: Arc::new(Function(pipeline)),
            name: name.into(),
            workers: 1,
            trigger: Trigger::Continuous,
            checkpoint_every: Duration::from_secs(1),
            memory: Bytes::mebibytes(256),
            restart: Restart::Never,
            clock: Clock::system(),
            stuck_after: Duration::from_secs(60),
            spin: Duration::ZERO,
            hand_over_within: Duration::from_millis(500),
            live: false,
            listeners: Vec::new(),
        }
    }

    /// How many worker threads process records; one by default.
    pub fn workers(self, workers: usize) -> Job {
        Job { workers, ..self }
    }

    /// When results leave; [`Trigger::Continuous`] by default.
    pub fn trigger(self, trigger: Trigger) -> Job {
        Job { trigger, ..self }
    }

    /// How often offsets are committed while records flow, and within what time after they stop; a second by default.
    /// A micro-batch is a checkpoint of its own, so there it has no meaning.
    pub fn checkpoint_every(self, interval: Duration) -> Job {
        Job { checkpoint_every: interval, ..self }
    }

    /// Memory for records: a quarter for what the sources fetch ahead, a half for what is under way and not acknowledged,
    /// a quarter for what the sinks have buffered; several sources, workers or sinks share theirs evenly. While a
    /// sink has no room, or a stage is behind, its worker reads nothing more, whatever stages make of a record: what waits then
    /// is what was made of one batch, of at most 4 096 records. Where records change workers that holds for all of them.
    /// 256 MiB by default. Code, threads and clients take some 10 MB beside it.
    pub fn memory(self, total: Bytes) -> Job {
        Job { memory: total, ..self }
    }

    /// What happens after a failure; [`Restart::Never`] by default.
    pub fn restart(self, restart: Restart) -> Job {
        Job { restart, ..self }
    }

    /// What tells the time; the system's clock by default, a simulated one in tests.
    pub fn clock(self, clock: Clock) -> Job {
        Job { clock, ..self }
    }

    /// How long a worker may be in one step before the run counts as failed; a minute by default.
    pub fn stuck_after(self, limit: Duration) -> Job {
        Job { stuck_after: limit, ..self }
    }

    /// How long a worker without work looks for some before it sleeps; not at all by default. Worth it only with cores to
    /// spare: on shared ones 30 µs of it tripled the 99th percentile and cost eight times the CPU, for 0.03 ms less at
    /// the median.
    pub fn spin(self, limit: Duration) -> Job {
        Job { spin: limit, ..self }
    }

    /// How long partitions that are taken from this process are drained before they are given back all the same; 500 ms
    /// by default.
    pub fn hand_over_within(self, limit: Duration) -> Job {
        Job { hand_over_within: limit, ..self }
    }

    /// Calls `listener` with what happens to the job, as Spark's `StreamingQueryListener` is: [`JobEvent::Started`] first, then at
    /// each interval [`JobEvent::Progress`], or [`JobEvent::Idle`] when nothing moved, [`JobEvent::Restarted`] with the reason,
    /// and [`JobEvent::Ended`] with the outcome last. The interval is of the machine's clock. Called again, it adds a listener.
    ///
    /// Each listener has a thread of its own, `millstream-listener`. A function that is slow or blocks delays its own events and
    /// nothing of the job; one that takes longer than the interval hears less often, and one that hangs over 64 restarts misses
    /// some. A panic in it is logged and the next event comes all the same. The outcome of the job is given out when every
    /// listener has heard of the end, or a second after the job is down. A job that does not start has no events, and runs that
    /// are compared have none.
    ///
    /// ```
    /// use millstream::{Job, JobEvent, discard, rows};
    /// use std::time::Duration;
    ///
    /// let job = Job::new("watched", |flow| flow.source(rows(0..10))?.sink(discard()));
    /// job.on_progress(Duration::from_secs(10), |event| match event {
    ///     JobEvent::Progress(report) => println!("{} records so far", report.records_out()),
    ///     JobEvent::Restarted { reason, .. } => println!("it runs again after {reason:#}"),
    ///     JobEvent::Ended { outcome: Err(error), .. } => println!("it failed: {error:#}"),
    ///     _ => {}
    /// })
    /// .run()?;
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn on_progress(self, every: Duration, listener: impl Fn(&JobEvent) + Send + Sync + 'static) -> Job {
        let mut listeners = self.listeners;
        listeners.push(Listener { every, tell: Arc::new(listener) });
        Job { listeners, ..self }
    }

    /// Draws a line with rate, latency and lag on standard error while the job runs, when that is a terminal.
    #[cfg(feature = "terminal")]
    pub fn live(self) -> Job {
        Job { live: true, ..self }
    }

    /// Runs the job to its end, and returns what it did. It blocks until then: within async code call it in
    /// `tokio::task::spawn_blocking`.
    ///
    /// # Errors
    /// What kept it from starting, or the first fault that ended it.
    pub fn run(self) -> Result<Report> {
        self.start()?.wait()
    }

    /// Starts the job and returns when every source has begun. It blocks until then, for as long as clients wait for their
    /// brokers (10 s by default): within async code call it in `tokio::task::spawn_blocking`.
    ///
    /// # Errors
    /// What kept it from starting: a wrong option, a pipeline that is not whole, or a source or sink that cannot be
    /// opened.
    pub fn start(self) -> Result<Running> {
        self.start_as(None)
    }

    /// Starts it, as one of several runs that are compared if there is a trial.
    pub(crate) fn start_as(self, trial: Option<Arc<Trial>>) -> Result<Running> {
        let spec = self.spec()?;
        let spec = Spec { bounded: spec.bounded || trial.is_some(), trial, ..spec };
        let handle = Handle::new(&self.name);
        // Threads of listeners end with the job, also with one that does not start.
        handle.listen(&self.listeners).inspect_err(|_| handle.end(Ok(())))?;
        // Runs that are compared are neither listed nor told of in metrics.
        if spec.trial.is_none() {
            handle.list();
        }
        let (started, has_started) = mpsc::channel();
        let (pipeline, shared) = (self.pipeline, Arc::clone(&handle));
        spawn("control", move || {
            let run = AssertUnwindSafe(|| control(&spec, pipeline, &shared, &started));
            if let Err(payload) = catch_unwind(run) {
                // The plan and what serves catch their own; what is left is a connector's end. Whoever waits must hear
                // of it.
                shared.end(Err(panicked("pipeline", &*payload)));
            }
        })
        .inspect_err(|_| handle.end(Ok(())))?;
        match has_started.recv() {
            Ok(Ok(())) => Ok(Running::new(handle)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let doing = format!("the pipeline function of job `{}` panicked", self.name);
                Err(Error::new(ErrorKind::Panic, doing))
            }
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.workers
    }

    /// Without restarts, which would repeat outputs, on the machine's clock, and without listeners.
    pub(crate) fn measured(self) -> Job {
        Job { restart: Restart::Never, clock: Clock::system(), listeners: Vec::new(), ..self }
    }

    fn spec(&self) -> Result<Spec> {
        let wrong = |doing: &str| Err(Error::new(ErrorKind::Option, format!("job `{}`: {doing}", self.name)));
        if self.name.is_empty() {
            return wrong("a job needs a name");
        }
        if self.workers == 0 || self.workers > 256 {
            return wrong("`workers` must be between 1 and 256");
        }
        if self.checkpoint_every < Duration::from_millis(1) {
            return wrong("`checkpoint_every` must be at least a millisecond");
        }
        if self.memory.0 == 0 {
            return wrong("`memory` must be more than nothing");
        }
        if self.stuck_after.is_zero() {
            return wrong("`stuck_after` must be more than nothing");
        }
        if self.listeners.iter().any(|listener| listener.every < Duration::from_millis(1)) {
            return wrong("the interval of `on_progress` must be at least a millisecond");
        }
        if let Restart::Backoff { first, most } = self.restart {
            if first.is_zero() {
                return wrong("the first pause of `Restart::Backoff` must be greater than zero");
            }
            if first > most {
                return wrong("the first pause of `Restart::Backoff` must not be longer than its longest");
            }
        }
        Ok(Spec {
            job: self.name.clone(),
            workers: self.workers,
            pace: match self.trigger {
                Trigger::MicroBatch { interval } => Pace::MicroBatch { interval },
                Trigger::Continuous | Trigger::AvailableNow => {
                    Pace::Continuous { checkpoint_every: self.checkpoint_every }
                }
            },
            bounded: self.trigger == Trigger::AvailableNow,
            memory: self.memory,
            clock: self.clock.clone(),
            restart: match self.restart {
                Restart::Never => None,
                Restart::Backoff { first, most } => Some((first, most)),
            },
            stuck_after: self.stuck_after,
            spin: self.spin,
            hand_over_within: self.hand_over_within,
            live: self.live,
            trial: None,
        })
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("name", &self.name)
            .field("workers", &self.workers)
            .field("trigger", &self.trigger)
            .finish_non_exhaustive()
    }
}
