//! The control thread of a job: plans a run, starts its workers, serves clients, commits what is gathered, stops, and
//! takes everything down again in an order in which nobody waits for the dead. Clients are destroyed here, because
//! that blocks. When a run fails and the job says so, it begins another with fresh clients.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::epoch::commit::{Commits, Committer};
use crate::epoch::gather::Gathered;
use crate::io::{Change, Last, Taken, Wake};
use crate::operator::fault::panicked;
use crate::operator::ingest::SourceIndex;
use crate::operator::recall::Recall;
use crate::words::{CheckpointId, Clock, Error, ErrorKind, Moment, Offsets, Result, lock, spawn};

use super::begin::{Spec, allocators, new_run, plan};
use super::handle::{Handle, deadline_after};
use super::health::OpenStage;
use super::metrics::{self, Publisher};
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

/// Longest time between two looks at the clients.
const SERVE_EVERY: Duration = Duration::from_millis(200);
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
    let span = tracing::info_span!("job", name = spec.job);
    let _of_job = span.enter();
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
                handle.end(Ok(()));
                drop(started.send(Err(error)));
                return;
            }
            // What panicked in the plan panics in the next one.
            Err(error) if error.kind() == ErrorKind::Panic => break Err(error),
            Err(error) => match rest(spec, handle, error, &mut pause) {
                Some(error) => break Err(error),
                None => continue,
            },
        };
        control.log_start();
        if !began {
            began = true;
            handle.started();
            drop(started.send(Ok(())));
        }
        // A connector that panics here must not leave workers behind.
        let served = catch_unwind(AssertUnwindSafe(|| control.serve(handle, &receiver)));
        let result = served.unwrap_or_else(|payload| Err(panicked("connector", &*payload)));
        let commits = control.committer.commits();
        resume = control.committer.newest().to_vec();
        let last = match &result {
            Err(error) if spec.restart.is_some() && error.kind().is_transient() => Last::Run,
            Ok(()) | Err(_) => Last::Job,
        };
        control.take_down(handle, last);
        let Err(error) = result else { break Ok(()) };
        if commits > 0 {
            futile = 0;
            pause = spec.restart.map_or(pause, |(first, _)| first);
        } else if matches!(error.kind(), ErrorKind::Panic | ErrorKind::Stuck) {
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
    match &result {
        Ok(()) => tracing::info!("ended"),
        Err(error) if error.kind() == ErrorKind::Aborted => tracing::info!("aborted"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "failed"),
    }
    handle.end(result);
}

/// Waits for the next run; gives the error back when there is none.
fn rest(spec: &Spec, handle: &Handle, error: Error, pause: &mut Duration) -> Option<Error> {
    let Some((_, most)) = spec.restart.filter(|_| error.kind().is_transient()) else { return Some(error) };
    handle.fell(&error);
    tracing::warn!(error = format!("{error:#}"), pause = ?*pause, "run failed, restarting");
    if handle.rest(*pause) {
        return Some(error);
    }
    *pause = (*pause * 2).min(most);
    handle.restarts(error);
    handle.labels().into_iter().for_each(metrics::restarts);
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
    ticker: Option<JoinHandle<()>>,
    committer: Committer,
    hand_overs: Vec<HandOver>,
    refreshed: Moment,
    looked: Instant,
    stopping: Option<Instant>,
    metrics: Option<Publisher>,
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
            trial: spec.trial.clone(),
        };
        let plan = plan(planning, pipeline, handle, &events, receiver)?;
        let asked = events.clone();
        let run = Arc::new(new_run(spec, plan, events, wake));
        run.fault.on_record(move || asked.send(Event::Asked));
        let sources = run.plan.sources.iter().map(|source| Arc::clone(&source.shared)).collect();
        let sinks = run.plan.sinks.iter().map(|sink| Arc::clone(&sink.shared)).collect();
        let commits = if spec.trial.is_some() { Commits::Nowhere } else { Commits::ToSources };
        let mut control = Control {
            spec,
            committer: Committer::new(spec.workers, sources, sinks, commits),
            workers: Vec::new(),
            ended: 0,
            ticker: None,
            hand_overs: Vec::new(),
            refreshed: spec.clock.now(),
            looked: Instant::now(),
            stopping: None,
            metrics: handle.labels().cloned().map(Publisher::new),
            #[cfg(feature = "terminal")]
            line: super::terminal::Line::new().filter(|_| spec.live).map(|line| (line, Instant::now())),
            run,
        };
        handle.run_begins(&control.run);
        control.metrics.iter().for_each(Publisher::begin);
        match control.start_workers(pipeline).and_then(|()| control.begin(receiver)) {
            Ok(()) => Ok(control),
            Err(error) => {
                let last = if spec.restart.is_some() { Last::Run } else { Last::Job };
                control.take_down(handle, last);
                Err(error)
            }
        }
    }

    fn log_start(&self) {
        let names: Vec<&str> = self.run.plan.nodes.iter().map(|node| node.name.as_str()).collect();
        tracing::info!(workers = self.spec.workers, pace = ?self.spec.pace, pipeline = ?names, "running");
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
        if let Some(trial) = &self.spec.trial {
            trial.begin()?;
        }
        let ticker = Arc::clone(&self.run.ticker);
        let weak = Arc::downgrade(&self.run.pulse);
        self.spec.clock.on_advance(move || weak.upgrade().map(|pulse| pulse.ring()).is_some());
        self.ticker = Some(spawn("ticker", move || ticker.run())?);
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
            let commits = self.committer.commits();
            self.metrics.iter_mut().for_each(|metrics| metrics.tell_sometimes(&self.run, commits));
            self.run.ticker.see_committed(self.committer.committed(), self.committer.commits());
            self.show_life();
            if self.ended == self.spec.workers && self.committer.committed() >= CheckpointId::LAST {
                return Ok(());
            }
        }
    }

    /// For whoever asks for the job's health.
    fn show_life(&self) {
        let (cut, committed) = (self.run.pulse.epoch().checkpoint().previous(), self.committer.committed());
        let is_handed_over = self.committer.handed_over() > committed;
        let stage = if is_handed_over { OpenStage::Commit } else { OpenStage::Acknowledgements };
        self.run.vitals.serve(cut, committed, stage);
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

    fn source_name(&self, source: SourceIndex) -> &str {
        self.run.plan.name(self.run.plan.sources[source.0].node)
    }

    fn follow(&mut self, source: SourceIndex, change: Change) {
        match change {
            Change::Given(partitions) => {
                tracing::info!(source = self.source_name(source), ?partitions, "partitions given");
            }
            Change::Committed(checkpoint) => self.committer.answered(source, checkpoint),
            Change::Taken(taken) => self.recall(source, taken, false),
            Change::Lost(taken) => self.recall(source, taken, true),
        }
    }

    /// Asks every reader of the source for the partitions.
    fn recall(&mut self, source: SourceIndex, taken: Taken, lost: bool) {
        let count = taken.partitions().len();
        tracing::info!(source = self.source_name(source), count, lost, "partitions taken");
        tracing::debug!(partitions = %taken, "taken");
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
            let newest = *lock(&recall.checkpoint);
            let drained = answered && (recall.lost || committed >= newest);
            // A worker that was under way released some more behind the cut that was made for this.
            if answered && !drained && self.run.pulse.epoch().checkpoint() <= newest {
                self.run.ticker.cut_now();
            }
            if drained || Instant::now() >= hand_over.deadline {
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
                tracing::info!("stopping");
                self.run.vitals.stop();
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
            self.run.vitals.wait_for(&self.run.plan);
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
    fn take_down(mut self, handle: &Handle, last: Last) {
        self.run.vitals.end();
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
        let commits = self.committer.commits();
        self.metrics.iter_mut().for_each(|metrics| metrics.end(&self.run, commits));
        self.run.end_calls();
        if let Some(trial) = &self.spec.trial {
            trial.end();
        }
        self.run.plan.sources.iter().for_each(|source| source.shared.close(last));
        self.run.plan.sinks.iter().for_each(|sink| sink.shared.close());
    }
}
