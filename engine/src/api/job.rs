//! A pipeline function with the options of its runs.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::epoch::ticker::Pace;
use crate::io::Extent;
use crate::operator::fault::panicked;
use crate::run::handle::Handle;
use crate::run::jobs;
use crate::run::listener::{JobEvent, Listener};
use crate::run::planner;
use crate::run::report::Report;
use crate::run::shared::Pipeline;
use crate::run::spec::{Backoff, Remembers, Spec};
use crate::run::supervisor::supervise;
use crate::words::{ByteSize, Clock, Error, ErrorKind, Result, spawn};

use super::explain::Explanation;
use super::flow::{Comparable, Flow, Function};
use super::running::Running;
use super::trial::Trial;
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
    pipeline: Arc<dyn Comparable>,
    name: String,
    workers: usize,
    trigger: Trigger,
    checkpoint_every: Duration,
    memory: ByteSize,
    state_memory: Option<ByteSize>,
    restart: Restart,
    clock: Clock,
    stuck_after: Duration,
    spin: Duration,
    drain_within: Duration,
    live: bool,
    listeners: Vec<Listener>,
    remembers: Remembers,
    forgotten: Vec<String>,
    empty: Vec<String>,
}

impl Job {
    /// A job with this name, which appears in reports and logs and is the default name of consumer
    /// groups.
    pub fn new(name: impl Into<String>, pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) -> Job {
        Job {
            pipeline: Arc::new(Function::new(pipeline)),
            name: name.into(),
            workers: 1,
            trigger: Trigger::Continuous,
            checkpoint_every: Duration::from_secs(1),
            memory: ByteSize::mebibytes(256),
            state_memory: None,
            restart: Restart::Never,
            clock: Clock::system(),
            stuck_after: Duration::from_secs(60),
            spin: Duration::ZERO,
            drain_within: Duration::from_millis(500),
            live: false,
            listeners: Vec::new(),
            remembers: Remembers::Nothing,
            forgotten: Vec::new(),
            empty: Vec::new(),
        }
    }

    /// The number of worker threads that process records; one by default.
    pub fn workers(self, workers: usize) -> Job {
        Job { workers, ..self }
    }

    /// When results leave; [`Trigger::Continuous`] by default.
    pub fn trigger(self, trigger: Trigger) -> Job {
        Job { trigger, ..self }
    }

    /// How often a checkpoint is taken and offsets are committed while records flow, and how soon
    /// after they stop; a second by default. It has no effect under micro-batches, each of which is
    /// a checkpoint.
    pub fn checkpoint_every(self, interval: Duration) -> Job {
        Job { checkpoint_every: interval, ..self }
    }

    /// Memory for records: a quarter for what the sources fetch ahead, a half for records on their
    /// way until they are acknowledged, a quarter for what the sinks buffer. Several sources,
    /// workers or sinks share their part evenly. 256 MiB by default. Code, threads and clients take
    /// about 10 MB in addition. In a job that keeps state these parts are of one half of it, and
    /// state has the other, unless it has [its own](Job::state_memory).
    ///
    /// While a sink has no room or a stage is behind, its worker reads nothing more, however many
    /// records a stage makes of one. So at most the outputs of one batch wait, which has at most
    /// 4,096 records. Where records change workers, no worker reads meanwhile.
    pub fn memory(self, total: ByteSize) -> Job {
        Job { memory: total, ..self }
    }

    /// Memory for state, in addition to [`memory`](Job::memory). Without this, a job that keeps
    /// state gives half of its memory to it, and records have the other half. State that outgrows
    /// it ends the run with an error that says how much there is, and in which operator. What keys
    /// and states point to is estimated: by how long they are when they are encoded. What a
    /// checkpoint has changed is in memory a second time until it is written, and so is all state
    /// that [`state_in_memory`](Job::state_in_memory) keeps for a restart: neither is counted.
    ///
    /// A run of a job with state also ends, with such an error, when the system has next to no
    /// memory left, this process has more than a quarter of all, and the system would soon end it:
    /// less than a sixteenth of what the machine or its control group has, but at least 16 MiB and
    /// at most 256. Where the system does not tell (others than Linux, macOS, Windows and the
    /// BSDs), only the limit above counts.
    ///
    /// ```
    /// use millstream::{ByteSize, ErrorKind, Job, discard, generate};
    ///
    /// let job = Job::new("visitors", |flow| {
    ///     let visitors = flow.source(generate(|n| n).count(1_000_000))?;
    ///     visitors.key_by(|visitor| *visitor).count().updates().sink(discard())
    /// });
    /// let job = job.state_in_memory().state_memory(ByteSize::mebibytes(1));
    /// let error = job.run().expect_err("a million keys take more");
    /// assert_eq!(error.kind(), ErrorKind::State);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn state_memory(self, limit: ByteSize) -> Job {
        Job { state_memory: Some(limit), ..self }
    }

    /// What happens after a failure; [`Restart::Never`] by default.
    pub fn restart(self, restart: Restart) -> Job {
        Job { restart, ..self }
    }

    /// The clock of the job; the system's clock by default, a simulated one in tests.
    pub fn clock(self, clock: Clock) -> Job {
        Job { clock, ..self }
    }

    /// How long a worker may be in one step before the run counts as failed; a minute by default.
    pub fn stuck_after(self, limit: Duration) -> Job {
        Job { stuck_after: limit, ..self }
    }

    /// How long a worker without work spins before it parks; zero by default. Spinning needs spare
    /// cores: on shared ones 30 µs tripled the 99th percentile and cost eight times the CPU, for
    /// 0.03 ms less at the median.
    pub fn spin(self, limit: Duration) -> Job {
        Job { spin: limit, ..self }
    }

    /// How long revoked partitions may drain before they are unassigned anyway; 500 ms by default.
    /// Records of them that are not committed by then are read again by the next reader, and a
    /// warning is logged.
    pub fn drain_within(self, limit: Duration) -> Job {
        Job { drain_within: limit, ..self }
    }

    /// Keeps checkpoints in this directory: the state of the pipeline, and the positions of its
    /// sources that this state reflects. The job goes on from the newest one when it starts again,
    /// also in another process, with another number of workers, or after a crash. It reads on at
    /// exactly these positions, whatever a consumer group says.
    ///
    /// A checkpoint is taken [at an interval](Job::checkpoint_every), or with each micro-batch. It
    /// writes what has changed since the one before, beside the records and without stopping them.
    /// Sinks commit before it is durable, and sources after. The last three are kept, and one that
    /// shares no file with the last. A damaged file is named in the log, and the newest checkpoint
    /// without it is used.
    ///
    /// While the disk is full or does not answer, the checkpoint is tried again, and the report
    /// says so. Records go on meanwhile. What leaves only with a checkpoint waits, and so do
    /// batches of [`MicroBatch`](crate::Trigger::MicroBatch): the next one begins when the one
    /// before is durable.
    ///
    /// The directory is created, and locked for as long as the job runs: it belongs to one job.
    /// What is kept is found again by the names of operators and sources. Where two of a kind keep
    /// state, both need a [name](crate::Stream::named). The command `millstream state`, with the
    /// feature `inspect`, shows what is in it.
    ///
    /// ```
    /// use millstream::{Job, collect, rows};
    ///
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let directory = temporary.path();
    /// let sums = collect();
    /// for end in [3, 5] {
    ///     let sink = sums.clone();
    ///     let job = Job::new("sums", move |flow| {
    ///         let sums = flow.source(rows(1..=end).partitions(1))?.global().sum(|n| *n);
    ///         sums.updates().map(|((), sum)| sum).sink(&sink)
    ///     });
    ///     job.checkpoints(directory).run()?;
    /// }
    /// // The second run reads the last two rows only, and adds them to the sum of the first.
    /// assert_eq!(sums.values(), [1, 3, 6, 10, 15]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn checkpoints(self, directory: impl Into<PathBuf>) -> Job {
        Job { remembers: Remembers::InDirectory(directory.into()), ..self }
    }

    /// Keeps state in the memory of the process only. With [`Restart::Backoff`] the job keeps
    /// checkpoints there, and a run that follows a failed one goes on from the last. When the
    /// process ends, the state is gone.
    ///
    /// A job that keeps state needs this or [`checkpoints`](Job::checkpoints).
    ///
    /// ```
    /// use millstream::{Job, collect, rows};
    ///
    /// let sums = collect();
    /// let sink = sums.clone();
    /// let job = Job::new("sums", move |flow| {
    ///     flow.source(rows([1, 2]))?.global().sum(|n| *n).updates().sink(&sink)
    /// });
    /// let job = job.state_in_memory();
    /// job.clone().run()?;
    /// // The first run has not failed, so the second does not go on from it.
    /// job.run()?;
    /// assert_eq!(sums.values(), [((), 1), ((), 3), ((), 1), ((), 3)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn state_in_memory(self) -> Job {
        Job { remembers: Remembers::InMemory, ..self }
    }

    /// Drops what the checkpoint has of these operators and sources, which the pipeline does not
    /// have any more. Without this, the job refuses to start. What the pipeline has is not dropped,
    /// and a name that the checkpoint does not know is no mistake: the job may start again.
    ///
    /// ```
    /// use millstream::{ErrorKind, Job, discard, rows};
    ///
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let directory = temporary.path();
    /// let count_as = |name| {
    ///     let job = Job::new("views", move |flow| {
    ///         let views = flow.source(rows([7, 8, 7]).partitions(1))?;
    ///         views.key_by(|page| *page).count().named(name).updates().sink(discard())
    ///     });
    ///     job.checkpoints(directory)
    /// };
    /// count_as("views").run()?;
    /// // For a job, an operator with another name is a new one, and the old one is gone.
    /// let renamed = count_as("by page").start_empty(["by page"]);
    /// assert_eq!(renamed.clone().run().unwrap_err().kind(), ErrorKind::State);
    /// renamed.forget_state(["views"]).run()?;
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn forget_state<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Job {
        let forgotten = self.forgotten.into_iter().chain(names.into_iter().map(Into::into)).collect();
        Job { forgotten, ..self }
    }

    /// Lets these operators begin without state, because they are new in the pipeline and the
    /// checkpoint has none of them. Without this, the job refuses to start. It drops nothing: an
    /// operator of which the checkpoint has state goes on with it. A name that no operator with
    /// state has is refused.
    ///
    /// ```
    /// use millstream::{Job, collect, discard, rows};
    ///
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let directory = temporary.path();
    /// let first = Job::new("sums", |flow| flow.source(rows(0..3).partitions(1))?.sink(discard()));
    /// first.checkpoints(directory).run()?;
    /// let sums = collect();
    /// let sink = sums.clone();
    /// let second = Job::new("sums", move |flow| {
    ///     flow.source(rows(0..5).partitions(1))?.global().sum(|n| *n).updates().sink(&sink)
    /// });
    /// second.checkpoints(directory).start_empty(["sum"]).run()?;
    /// // The source goes on, so the sum is that of the last two rows.
    /// assert_eq!(sums.values(), [((), 3), ((), 7)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn start_empty<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Job {
        let empty = self.empty.into_iter().chain(names.into_iter().map(Into::into)).collect();
        Job { empty, ..self }
    }

    /// Calls `listener` with what happens to the job, like Spark's `StreamingQueryListener`:
    /// [`JobEvent::Started`] first, then at each interval [`JobEvent::Progress`], or
    /// [`JobEvent::Idle`] if nothing moved, [`JobEvent::Restarted`] with the reason, and
    /// [`JobEvent::Ended`] with the outcome last. The interval follows the machine's clock. Each
    /// call adds a listener.
    ///
    /// Each listener has a thread of its own, `millstream-listener`. A function that is slow or
    /// blocks delays only its own events, never the job. One that takes longer than the interval is
    /// called less often, and one that hangs over 64 restarts misses some. A panic in it is logged,
    /// and the next event is delivered. The outcome of the job is returned when every listener has
    /// been called with the last event, or a second after the job is down. A job that does not
    /// start has no events, and neither have compared runs.
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

    /// Draws a line with rate, latency and lag on standard error while the job runs, when that is a
    /// terminal.
    #[cfg(feature = "terminal")]
    pub fn live(self) -> Job {
        Job { live: true, ..self }
    }

    /// Runs the job to its end, and returns what it did. It blocks until then; in async code call
    /// it in `tokio::task::spawn_blocking`.
    ///
    /// # Errors
    /// What kept the job from starting, or the first fault that ended it.
    pub fn run(self) -> Result<Report> {
        self.start()?.wait()
    }

    /// Starts the job and returns when every source has begun. It blocks until then, for as long as
    /// clients wait for their brokers (10 s by default); in async code call it in
    /// `tokio::task::spawn_blocking`.
    ///
    /// # Errors
    /// What kept the job from starting: a wrong option, a pipeline that is not complete, or a
    /// source or sink that cannot be opened.
    pub fn start(self) -> Result<Running> {
        let pipeline: Arc<dyn Pipeline> = Arc::clone(&self.pipeline) as _;
        self.start_with(pipeline, jobs::list)
    }

    /// Starts the job as one of several runs that are compared: it is neither listed nor in the
    /// metrics.
    pub(super) fn start_trial(self, trial: &Arc<Trial>) -> Result<Running> {
        let pipeline = Arc::clone(&self.pipeline).compared(Arc::clone(trial));
        self.start_with(pipeline, |_| ())
    }

    fn start_with(self, pipeline: Arc<dyn Pipeline>, list: impl FnOnce(&Arc<Handle>)) -> Result<Running> {
        let spec = self.spec()?;
        let handle = Handle::new(&self.name);
        // The threads of listeners end with the job, even with one that does not start.
        handle.listen(&self.listeners).inspect_err(|_| handle.end(Ok(())))?;
        list(&handle);
        let (started, has_started) = mpsc::channel();
        let shared = Arc::clone(&handle);
        spawn("control", move || {
            let run = AssertUnwindSafe(|| supervise(&spec, pipeline, &shared, &started));
            if let Err(payload) = catch_unwind(run) {
                // The plan and the server catch their own panics, so this one comes from the end of
                // a connector. The program that waits for the job must be told.
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

    /// What the job will run: its operators, which nodes are fused, and where records change
    /// workers. Calls the pipeline function once; nothing connects.
    ///
    /// ```
    /// use millstream::{Job, discard, rows};
    ///
    /// let job = Job::new("evens", |flow| {
    ///     flow.source(rows(0..10))?.filter(|n| n % 2 == 0).rebalance().map(|n| n * n).sink(discard())
    /// });
    /// assert_eq!(
    ///     job.workers(2).explain()?.to_string(),
    ///     "evens: continuous, workers: 2\n\
    ///      operator 1\n\
    ///      \x20 source  rows\n\
    ///      \x20 stage   filter <- rows\n\
    ///      operator 2, reads from 1, records change workers\n\
    ///      \x20 stage   rebalance <- filter\n\
    ///      \x20 stage   map <- rebalance\n\
    ///      \x20 sink    discard <- map\n"
    /// );
    /// # Ok::<(), millstream::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the pipeline is wrong, as far as that is known before anything connects.
    pub fn explain(&self) -> Result<Explanation> {
        let spec = self.spec()?;
        let graph = planner::sketch(&spec, &*self.pipeline)?;
        Ok(Explanation::of(spec.job, spec.workers, self.trigger.to_string(), &graph))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn worker_count(&self) -> usize {
        self.workers
    }

    /// The job as a comparison runs it: without restarts, which would repeat outputs, on the
    /// machine's clock, without listeners, and with state that ends with the run.
    pub(crate) fn measured(self) -> Job {
        let remembers = match self.remembers {
            Remembers::Nothing => Remembers::Nothing,
            Remembers::InMemory | Remembers::InDirectory(_) => Remembers::InMemory,
        };
        Job { restart: Restart::Never, clock: Clock::system(), listeners: Vec::new(), remembers, ..self }
    }

    fn spec(&self) -> Result<Spec> {
        let wrong = |doing: &str| Err(Error::new(ErrorKind::Config, format!("job `{}`: {doing}", self.name)));
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
            return wrong("`memory` must be greater than zero");
        }
        if self.state_memory == Some(ByteSize(0)) {
            return wrong("`state_memory` must be greater than zero");
        }
        let names_state = !self.forgotten.is_empty() || !self.empty.is_empty();
        if names_state && !matches!(self.remembers, Remembers::InDirectory(_)) {
            return wrong("`forget_state` and `start_empty` are about checkpoints in a directory (`Job::checkpoints`)");
        }
        if self.stuck_after.is_zero() {
            return wrong("`stuck_after` must be greater than zero");
        }
        if self.listeners.iter().any(|listener| listener.every < Duration::from_millis(1)) {
            return wrong("the interval of `on_progress` must be at least a millisecond");
        }
        if let Restart::Backoff { first, longest } = self.restart {
            if first.is_zero() {
                return wrong("the first pause of `Restart::Backoff` must be greater than zero");
            }
            if first > longest {
                return wrong("the first pause of `Restart::Backoff` must not be longer than its longest pause");
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
            extent: if self.trigger == Trigger::AvailableNow { Extent::Available } else { Extent::Endless },
            memory: self.memory,
            state_memory: self.state_memory,
            clock: self.clock.clone(),
            restart: match self.restart {
                Restart::Never => None,
                Restart::Backoff { first, longest } => Some(Backoff { first, longest }),
            },
            stuck_after: self.stuck_after,
            spin: self.spin,
            drain_within: self.drain_within,
            live: self.live,
            remembers: self.remembers.clone(),
            forgotten: self.forgotten.clone(),
            empty: self.empty.clone(),
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
