//! The control thread of a job: plans a run, starts its workers, serves clients, commits what is gathered, stops, and
//! takes everything down again in an order in which nobody waits for the dead. Clients are destroyed here, because
//! that blocks. When a run fails and the job says so, it begins another with fresh clients.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use timely::CommunicationConfig;
use timely::communication::AllocatorBuilder;

use crate::epoch::commit::Committer;
use crate::epoch::gather::Gathered;
use crate::epoch::ticker::{Pace, Ticker};
use crate::io::{Acknowledges, Change, Taken, Wake};
use crate::operator::fault::{Fault, panicked};
use crate::operator::ingest::{self, Recall, Release, SourceIndex};
use crate::operator::pulse::Pulse;
use crate::words::{Bytes, CheckpointId, Clock, Error, ErrorKind, Moment, Offsets, Result, lock};

use super::handle::{Handle, deadline_after};
use super::plan::{Pipeline, Plan, Planning, Run};
use super::worker::Started;

/// What wakes the control thread.
#[derive(Debug)]
pub(crate) enum Event {
    Planned(Box<Result<Plan>>),
    Built,
    /// A worker could not build its dataflow.
    NotBuilt(Error),
    Gathered(Gathered),
    WorkerEnded,
    /// A client has something to be served, or a worker answered a recall.
    Serve,
    /// The program wants something; a fault was recorded.
    Asked,
}

/// The way to a control thread; each run has its own, so that nothing of an earlier one is heard.
#[derive(Clone, Debug)]
pub(crate) struct Events(mpsc::Sender<Event>);

impl Events {
    pub(crate) fn new() -> (Events, Receiver<Event>) {
        let (sender, receiver) = mpsc::channel();
        (Events(sender), receiver)
    }

    pub(crate) fn send(&self, event: Event) {
        // Nobody listens when the job has ended, and then nothing matters any more.
        drop(self.0.send(event));
    }
}

/// How a job is run.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) job: String,
    pub(crate) workers: usize,
    pub(crate) pace: Pace,
    pub(crate) bounded: bool,
    pub(crate) memory: Bytes,
    pub(crate) clock: Clock,
    pub(crate) restart: Option<(Duration, Duration)>,
    pub(crate) stuck_after: Duration,
    pub(crate) spin: Duration,
    pub(crate) hand_over_within: Duration,
    pub(crate) live: bool,
}

/// Longest time between two looks at the clients.
const SERVE_EVERY: Duration = Duration::from_millis(200);
/// Longest sleep of a worker. What it waits for wakes it, and the control thread does at least every [`SERVE_EVERY`].
const PARK_MAX: Duration = Duration::from_secs(1);
/// A group without members forgets its offsets after a while (a week on a default broker).
const REFRESH_EVERY: Duration = Duration::from_secs(3600);
/// Runs in a row that fail in user code without a commit: the next would fail at the same record.
const FUTILE_RUNS: u32 = 3;

/// The body of the control thread. `started` hears whether the first run could be started.
pub(crate) fn control(
    spec: &Spec,
    pipeline: Arc<dyn Pipeline>,
    handle: &Arc<Handle>,
    started: &mpsc::Sender<Result<()>>,
) {
    let mut resume = Vec::new();
    let mut futile = 0;
    let mut pause = spec.restart.map_or(Duration::ZERO, |(first, _)| first);
    let mut began = false;
    let result = loop {
        let (events, receiver) = Events::new();
        handle.heard_by(events.clone());
        let mut control = match Control::start(spec, &pipeline, handle, events, &receiver, &resume) {
            Ok(control) => control,
            Err(error) if !began => {
                // The job is not running, and `start` says why.
                drop(started.send(Err(error)));
                break Ok(());
            }
            // What panicked in the plan panics in the next one.
            Err(error) if error.kind() == ErrorKind::Panic => break Err(error),
            Err(error) => match rest(spec, handle, error, &mut pause) {
                Some(error) => break Err(error),
                None => continue,
            },
        };
        if !began {
            began = true;
            drop(started.send(Ok(())));
        }
        // A connector that panics here must not leave workers behind.
        let served = catch_unwind(AssertUnwindSafe(|| control.serve(handle, &receiver)));
        let result = served.unwrap_or_else(|payload| Err(panicked("connector", &*payload)));
        let commits = control.committer.commits();
        resume = control.committer.newest().to_vec();
        control.take_down(handle);
        let Err(error) = result else { break Ok(()) };
        if commits > 0 {
            futile = 0;
            pause = spec.restart.map_or(pause, |(first, _)| first);
        } else if error.kind() == ErrorKind::Panic {
            futile += 1;
        }
        if futile >= FUTILE_RUNS {
            break Err(error);
        }
        if let Some(error) = rest(spec, handle, error, &mut pause) {
            break Err(error);
        }
    };
    drop(pipeline);
    handle.end(result);
}

/// Waits for the next run; gives the error back when there is none.
fn rest(spec: &Spec, handle: &Handle, error: Error, pause: &mut Duration) -> Option<Error> {
    let Some((_, most)) = spec.restart.filter(|_| error.kind().is_transient()) else { return Some(error) };
    tracing::warn!(job = spec.job, error = format!("{error:#}"), pause = ?*pause, "run failed, restarting");
    if handle.rest(*pause) {
        return Some(error);
    }
    *pause = (*pause * 2).min(most);
    handle.restarts();
    None
}

/// Partitions on their way back.
struct HandOver {
    source: SourceIndex,
    taken: Option<Taken>,
    recall: Arc<Recall>,
    deadline: Instant,
}

struct Control<'s> {
    spec: &'s Spec,
    run: Arc<Run>,
    workers: Vec<Started>,
    ended: usize,
    ticker: Option<thread::JoinHandle<()>>,
    committer: Committer,
    hand_overs: Vec<HandOver>,
    refreshed: Moment,
    looked: Instant,
    stopping: Option<Instant>,
    #[cfg(feature = "terminal")]
    line: Option<(super::terminal::Line, Instant)>,
}

impl<'s> Control<'s> {
    /// Plans, starts the workers, waits until all are built, and lets the sources begin.
    fn start(
        spec: &'s Spec,
        pipeline: &Arc<dyn Pipeline>,
        handle: &Arc<Handle>,
        events: Events,
        receiver: &Receiver<Event>,
        resume: &[Offsets],
    ) -> Result<Control<'s>> {
        let served = events.clone();
        let wake = Wake::new(move || served.send(Event::Serve));
        let planning = Planning {
            job: spec.job.clone(),
            workers: spec.workers,
            memory: spec.memory,
            bounded: spec.bounded,
            clock: spec.clock.clone(),
            control: wake.clone(),
            resume: resume.to_vec(),
        };
        let plan = plan(planning, pipeline, handle, &events, receiver)?;
        let asked = events.clone();
        let run = Arc::new(new_run(spec, plan, events, wake));
        run.fault.on_record(move || asked.send(Event::Asked));
        let sources = run.plan.sources.iter().map(|source| Arc::clone(&source.shared)).collect();
        let sinks = run.plan.sinks.iter().map(|sink| Arc::clone(&sink.shared)).collect();
        let mut control = Control {
            spec,
            committer: Committer::new(spec.workers, sources, sinks),
            workers: Vec::new(),
            ended: 0,
            ticker: None,
            hand_overs: Vec::new(),
            refreshed: spec.clock.now(),
            looked: Instant::now(),
            stopping: None,
            #[cfg(feature = "terminal")]
            line: super::terminal::Line::new().filter(|_| spec.live).map(|line| (line, Instant::now())),
            run,
        };
        handle.run_begins(&control.run);
        match control.start_workers(pipeline).and_then(|()| control.begin(receiver)) {
            Ok(()) => Ok(control),
            Err(error) => {
                control.take_down(handle);
                Err(error)
            }
        }
    }

    fn start_workers(&mut self, pipeline: &Arc<dyn Pipeline>) -> Result<()> {
        for (index, allocator) in allocators(self.spec.workers)?.into_iter().enumerate() {
            let worker = Started::new(index, allocator, Arc::clone(&self.run), Arc::clone(pipeline))?;
            self.workers.push(worker);
        }
        Ok(())
    }

    fn begin(&mut self, events: &Receiver<Event>) -> Result<()> {
        let mut built = 0;
        while built < self.spec.workers {
            match events.recv().expect("a sender is kept") {
                Event::Built => built += 1,
                Event::NotBuilt(error) => return Err(error),
                // A small pipeline may be done, or may have failed, before all others are built.
                event => self.take(event)?,
            }
        }
        for source in &self.run.plan.sources {
            source.shared.begin()?;
        }
        let ticker = Arc::clone(&self.run.ticker);
        let weak = Arc::downgrade(&self.run.pulse);
        self.spec.clock.on_advance(move || weak.upgrade().map(|pulse| pulse.ring()).is_some());
        let thread = thread::Builder::new().name("millstream-ticker".to_owned()).spawn(move || ticker.run());
        self.ticker = Some(thread.map_err(|cause| {
            Error::new(ErrorKind::Option, "cannot start the thread of the ticker").caused_by(cause)
        })?);
        Ok(())
    }

    /// Serves the run until it has ended.
    fn serve(&mut self, handle: &Handle, events: &Receiver<Event>) -> Result<()> {
        loop {
            match events.recv_timeout(self.longest_wait()) {
                Ok(event) => self.take(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is kept"),
            }
            while let Ok(event) = events.try_recv() {
                self.take(event)?;
            }
            if let Some(error) = self.run.fault.take() {
                return Err(error);
            }
            self.serve_clients()?;
            self.hand_over()?;
            self.obey(handle)?;
            self.look_after_workers()?;
            self.draw(handle);
            self.run.ticker.see_committed(self.committer.committed(), self.committer.commits());
            if self.ended == self.spec.workers && self.committer.committed() >= CheckpointId::LAST {
                return Ok(());
            }
        }
    }

    fn longest_wait(&self) -> Duration {
        match self.stopping {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()).min(SERVE_EVERY),
            None => SERVE_EVERY,
        }
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            // The fault flag is read after the frontier was: what failed before it is not in it.
            Event::Gathered(gathered) if !self.run.fault.is_set() => self.committer.gather(gathered),
            Event::WorkerEnded => {
                self.ended += 1;
                Ok(())
            }
            Event::Gathered(_)
            | Event::Planned(_)
            | Event::Built
            | Event::NotBuilt(_)
            | Event::Serve
            | Event::Asked => Ok(()),
        }
    }

    fn serve_clients(&mut self) -> Result<()> {
        self.run.control.listen();
        for index in 0..self.run.plan.sources.len() {
            for change in self.run.plan.sources[index].shared.serve()? {
                self.follow(SourceIndex(index), change);
            }
        }
        for sink in &self.run.plan.sinks {
            sink.shared.serve()?;
        }
        let now = self.spec.clock.now();
        if now - self.refreshed >= REFRESH_EVERY {
            self.refreshed = now;
            self.committer.refresh()?;
        }
        Ok(())
    }

    fn follow(&mut self, source: SourceIndex, change: Change) {
        match change {
            Change::Given(partitions) => {
                tracing::info!(job = self.spec.job, source = source.0, ?partitions, "partitions given");
            }
            Change::Committed(checkpoint) => self.committer.answered(source, checkpoint),
            Change::Taken(taken) => self.recall(source, taken, false),
            Change::Lost(taken) => self.recall(source, taken, true),
        }
    }

    /// Asks every reader of the source for the partitions.
    fn recall(&mut self, source: SourceIndex, taken: Taken, lost: bool) {
        tracing::info!(job = self.spec.job, source = source.0, partitions = %taken, lost, "partitions taken");
        if lost {
            // What was released since the cut its ingest forgets by itself.
            let cut = self.run.pulse.epoch().checkpoint().previous();
            self.committer.forget(source, taken.partitions(), cut);
        }
        let recall = Arc::new(Recall {
            partitions: taken.partitions().to_vec(),
            lost,
            waiting: AtomicUsize::new(self.spec.workers),
            checkpoint: Mutex::default(),
        });
        let recalls = &self.run.plan.sources[source.0].recalls;
        recalls.iter().for_each(|recalls| recalls.post(&recall));
        self.run.pulse.wake_ingests();
        let deadline = deadline_after(self.spec.hand_over_within);
        self.hand_overs.push(HandOver { source, taken: Some(taken), recall, deadline });
        self.run.ticker.cut_now();
    }

    /// Gives back what is drained and committed, or what took too long.
    fn hand_over(&mut self) -> Result<()> {
        let committed = self.committer.committed();
        let ended = self.ended == self.spec.workers;
        for hand_over in &mut self.hand_overs {
            let recall = &hand_over.recall;
            let answered = recall.waiting.load(SeqCst) == 0 || ended;
            let drained = answered && (recall.lost || committed >= *lock(&recall.checkpoint));
            if drained || Instant::now() >= hand_over.deadline {
                let newest = *lock(&recall.checkpoint);
                self.committer.forget(hand_over.source, &recall.partitions, newest);
                let taken = hand_over.taken.take().expect("a hand-over that is done is dropped below");
                self.run.plan.sources[hand_over.source.0].shared.give_back(taken)?;
            }
        }
        self.hand_overs.retain(|hand_over| hand_over.taken.is_some());
        Ok(())
    }

    /// Does what the program asked for.
    fn obey(&mut self, handle: &Handle) -> Result<()> {
        if handle.is_aborted() {
            return Err(Error::new(ErrorKind::Aborted, format!("job `{}` was aborted", self.spec.job)));
        }
        if let Some(deadline) = handle.stop_asked() {
            if self.stopping.replace(deadline).is_none() {
                self.run.pulse.stop();
            }
            if Instant::now() >= deadline {
                let doing =
                    format!("cannot drain job `{}` in time; what is not committed is read again", self.spec.job);
                return Err(Error::new(ErrorKind::Aborted, doing));
            }
        }
        Ok(())
    }

    fn look_after_workers(&mut self) -> Result<()> {
        if self.looked.elapsed() >= SERVE_EVERY {
            self.looked = Instant::now();
            // A wake that a client has lost costs no more than this.
            self.run.pulse.wake_ingests();
        }
        let now = Clock::system().now();
        let stuck = self.workers.iter().position(|worker| worker.busy(now) > self.spec.stuck_after);
        stuck.map_or(Ok(()), |index| {
            let doing = format!("worker {index} has not come back from a step for {:?}", self.spec.stuck_after);
            Err(Error::new(ErrorKind::Stuck, doing))
        })
    }

    #[cfg(feature = "terminal")]
    fn draw(&mut self, handle: &Handle) {
        if let Some((line, drawn)) =
            self.line.as_mut().filter(|(_, drawn)| drawn.elapsed() >= super::terminal::Line::EVERY)
        {
            *drawn = Instant::now();
            line.draw(&handle.report(), self.spec.bounded);
        }
    }

    #[cfg(not(feature = "terminal"))]
    fn draw(&mut self, _: &Handle) {}

    /// Ends every thread of the run, then the clients.
    fn take_down(mut self, handle: &Handle) {
        if self.ended < self.spec.workers {
            self.run.fault.record(Error::new(ErrorKind::Aborted, "the run is over"));
        }
        // Who stops or aborts does not wait for a worker that is in somebody's code.
        let is_asked = handle.is_aborted() || handle.stop_asked().is_some();
        let patience = if is_asked { self.spec.stuck_after.min(Duration::from_secs(1)) } else { self.spec.stuck_after };
        let deadline = deadline_after(patience);
        self.workers.drain(..).for_each(|worker| worker.join_before(deadline));
        self.run.ticker.end();
        if let Some(ticker) = self.ticker.take() {
            drop(ticker.join());
        }
        handle.run_ended();
        self.run.end_calls();
        self.run.plan.sources.iter().for_each(|source| source.shared.close());
        self.run.plan.sinks.iter().for_each(|sink| sink.shared.close());
    }
}

/// Plans on a thread of its own: to connect may take long, and whoever stops the job does not wait for it. A plan that
/// nobody waits for any more ends by itself.
fn plan(
    planning: Planning,
    pipeline: &Arc<dyn Pipeline>,
    handle: &Arc<Handle>,
    events: &Events,
    receiver: &Receiver<Event>,
) -> Result<Plan> {
    let (job, sender, pipeline) = (planning.job.clone(), events.clone(), Arc::clone(pipeline));
    let body = move || {
        let planned = catch_unwind(AssertUnwindSafe(|| pipeline.plan(&planning)));
        let planned = planned.unwrap_or_else(|payload| {
            let doing = format!("cannot plan job `{}`", planning.job);
            Err(Error::new(ErrorKind::Panic, doing).caused_by(panicked("pipeline", &*payload)))
        });
        sender.send(Event::Planned(Box::new(planned)));
    };
    let thread = thread::Builder::new().name("millstream-plan".to_owned()).spawn(body);
    thread.map_err(|cause| Error::new(ErrorKind::Option, "cannot start the thread that plans").caused_by(cause))?;
    while !handle.is_aborted() && handle.stop_asked().is_none() {
        // A client may wake before its plan is whole.
        if let Event::Planned(plan) = receiver.recv().expect("a sender is kept") {
            return *plan;
        }
    }
    Err(Error::new(ErrorKind::Aborted, format!("job `{job}` was stopped before it was connected")))
}

fn new_run(spec: &Spec, plan: Plan, events: Events, control: Wake) -> Run {
    let pulse = Arc::new(Pulse::new());
    let frees_at_commit = plan.sinks.iter().any(|sink| sink.shared.acknowledges() == Acknowledges::WhenCommitted);
    Run {
        release: match spec.pace {
            Pace::Continuous { .. } => Release::AtOnce,
            Pace::MicroBatch { .. } => Release::AtTicks,
        },
        spin: spec.spin,
        // A worker that sleeps does not count as stuck.
        park_max: (spec.stuck_after / 4).min(PARK_MAX),
        clock: spec.clock.clone(),
        ticker: Arc::new(Ticker::new(spec.pace, spec.clock.clone(), Arc::clone(&pulse), frees_at_commit)),
        pulse,
        fault: Arc::new(Fault::new()),
        budgets: (0..spec.workers).map(|_| ingest::budget(spec.memory, spec.workers)).collect(),
        events,
        control,
        runtime: Mutex::default(),
        plan,
    }
}

fn allocators(workers: usize) -> Result<Vec<AllocatorBuilder>> {
    let config = if workers == 1 { CommunicationConfig::Thread } else { CommunicationConfig::Process(workers) };
    let (builders, others) = config
        .try_build()
        .map_err(|cause| Error::new(ErrorKind::Option, "cannot set up the workers").caused_by(cause))?;
    drop(others);
    Ok(builders)
}
