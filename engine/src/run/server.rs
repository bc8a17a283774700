//! One run of a job, on its control thread: starts the workers, serves clients, commits what is
//! gathered, stops, and takes everything down again, in an order in which nothing waits for a part
//! that is gone. Clients are destroyed here, because that blocks.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use timely::CommunicationConfig;
use timely::communication::AllocatorBuilder;

use crate::epoch::commit::{Committer, Memory};
use crate::io::{Closing, SinkEvent, SourceEvent};
use crate::operator::drain::Released;
use crate::operator::ingest::SourceIndex;
use crate::state::store::Place;
use crate::words::{Clock, Error, ErrorKind, Moment, Result, Wake, deadline_after, lock, spawn};

use super::events::{Event, Events};
use super::handle::Handle;
use super::memory_guard::MemoryGuard;
use super::metrics::Publisher;
use super::plan::Planning;
use super::planner::plan;
use super::revocation::Draining;
use super::shared::{Pipeline, Run};
use super::spec::Spec;
use super::vitals::OpenStage;
use super::worker::Started;

/// The longest time between two rounds of the control thread.
const SERVE_EVERY: Duration = Duration::from_millis(200);
/// How often offsets are committed again although nothing moves: a broker forgets those of a group
/// without members after a while (a week by default).
const REFRESH_EVERY: Duration = Duration::from_secs(3600);

/// A run that is under way.
pub(super) struct Server<'s> {
    spec: &'s Spec,
    run: Arc<Run>,
    workers: Vec<Started>,
    /// The number of workers that have ended.
    ended: usize,
    ticker: Option<JoinHandle<()>>,
    committer: Committer,
    draining: Vec<Draining>,
    refreshed: Moment,
    /// When the workers were last checked.
    looked: Instant,
    stopping: Option<Instant>,
    /// In a job with state.
    memory_guard: Option<Arc<Mutex<MemoryGuard>>>,
    metrics: Option<Publisher>,
    #[cfg(feature = "terminal")]
    line: Option<(super::terminal::Line, Instant)>,
}

impl<'s> Server<'s> {
    /// Plans, starts the workers, waits until all are built, and lets the sources begin.
    pub(super) fn start(
        spec: &'s Spec,
        pipeline: &Arc<dyn Pipeline>,
        handle: &Handle,
        events: Events,
        receiver: &Receiver<Event>,
        (memory, checkpoints): (&Memory, Option<&Place>),
    ) -> Result<Server<'s>> {
        let served = events.clone();
        let wake = Wake::new(move || served.send(Event::Look));
        let planning = Planning {
            spec: spec.clone(),
            control: wake.clone(),
            memory: memory.clone(),
            checkpoints: checkpoints.cloned(),
            is_checkpointed: false,
            is_from_checkpoint: false,
            identity: None,
        };
        let plan = plan(planning, pipeline, handle, &events, receiver)?;
        let (asked, durable) = (events.clone(), events.clone());
        let mut run = Run::new(spec, plan, events, wake);
        let memories = run.keep(move |told| durable.send(Event::Kept(told)))?;
        let run = Arc::new(run);
        run.fault.on_record(move || asked.send(Event::Look));
        let sources = run.plan.sources.iter().map(|source| Arc::clone(&source.shared)).collect();
        let sinks = run.plan.sinks.iter().map(|sink| Arc::clone(&sink.shared)).collect();
        let mut server = Server {
            spec,
            committer: Committer::new(
                spec.workers,
                sources,
                sinks,
                &run.plan.memory,
                memories,
                Arc::clone(&run.ticker),
            ),
            workers: Vec::new(),
            ended: 0,
            ticker: None,
            draining: Vec::new(),
            refreshed: spec.clock.now(),
            looked: Instant::now(),
            stopping: None,
            memory_guard: guard(&run, spec),
            metrics: handle.labels().cloned().map(Publisher::new),
            #[cfg(feature = "terminal")]
            line: super::terminal::Line::new().filter(|_| spec.live).map(|line| (line, Instant::now())),
            run,
        };
        handle.run_begins(&server.run);
        server.metrics.iter().for_each(Publisher::begin);
        match server.start_workers(pipeline).and_then(|()| server.begin(receiver)) {
            Ok(()) => Ok(server),
            Err(error) => {
                let closing = if spec.restart.is_some() { Closing::Run } else { Closing::Job };
                server.take_down(handle, closing);
                Err(error)
            }
        }
    }

    pub(super) fn log_start(&self) {
        let names: Vec<&str> = self.run.plan.graph.nodes.iter().map(|node| node.name.as_str()).collect();
        tracing::info!(workers = self.spec.workers, pace = ?self.spec.pace, pipeline = ?names, "running");
    }

    /// The number of commits that sources have answered.
    pub(super) fn commits(&self) -> u64 {
        self.committer.commits()
    }

    /// Where the next run resumes.
    pub(super) fn memory(&self) -> Memory {
        self.committer.memory()
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
            match events.recv_timeout(self.longest_wait()) {
                Ok(Event::Built) => built += 1,
                // Why it was not built may be known better elsewhere.
                Ok(Event::NotBuilt(error)) => return Err(self.run.fault.take().unwrap_or(error)),
                // A worker of a small pipeline may have ended, or failed, before the others are
                // built.
                Ok(event) => self.take(event)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is kept"),
            }
            self.guard_memory()?;
        }
        for source in &self.run.plan.sources {
            source.shared.begin()?;
        }
        let ticker = Arc::clone(&self.run.ticker);
        let weak = Arc::downgrade(&self.run.pulse);
        self.spec.clock.on_advance(move || weak.upgrade().map(|pulse| pulse.ring()).is_some());
        self.ticker = Some(spawn("ticker", move || ticker.run())?);
        Ok(())
    }

    /// Serves the run until it has ended.
    pub(super) fn serve(&mut self, handle: &Handle, events: &Receiver<Event>) -> Result<()> {
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
            self.drain()?;
            self.obey(handle)?;
            self.look_after_workers()?;
            self.guard_memory()?;
            self.draw(handle);
            let commits = self.committer.commits();
            self.metrics.iter_mut().for_each(|metrics| metrics.tell_sometimes(&self.run, commits));
            self.show_life();
            if self.ended == self.spec.workers && self.committer.is_through() {
                return Ok(());
            }
        }
    }

    /// Records signs of life for the job's health.
    fn show_life(&self) {
        let (cut, committed) = (self.run.pulse.epoch().checkpoint().previous(), self.committer.committed());
        let stage = match self.committer.handed_over() > committed {
            true if self.committer.is_at_disk() => OpenStage::Disk,
            true => OpenStage::Commit,
            false => OpenStage::Acknowledgements,
        };
        self.run.vitals.serve(cut, committed, stage);
    }

    fn longest_wait(&self) -> Duration {
        let asked = self.stopping.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let guard = self.memory_guard.as_ref().map(|guard| lock(guard).wait());
        asked.into_iter().chain(guard).fold(SERVE_EVERY, Duration::min)
    }

    /// Checks that the system has memory for the state of the job.
    fn guard_memory(&mut self) -> Result<()> {
        self.memory_guard.as_ref().map_or(Ok(()), |guard| lock(guard).look(&self.run))
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            // The fault flag is read after the frontier was: a frontier that moved because of a
            // fault is never committed.
            Event::Gathered(gathered) if !self.run.fault.is_set() => self.committer.gather(gathered),
            Event::Kept(told) if !self.run.fault.is_set() => self.committer.is_durable(told?),
            Event::WorkerEnded => {
                self.ended += 1;
                Ok(())
            }
            Event::Gathered(_)
            | Event::Kept(_)
            | Event::Planned(_)
            | Event::Built
            | Event::NotBuilt(_)
            | Event::Look => Ok(()),
        }
    }

    fn serve_clients(&mut self) -> Result<()> {
        self.run.control.listen();
        for index in 0..self.run.plan.sources.len() {
            for event in self.run.plan.sources[index].shared.serve()? {
                self.follow(SourceIndex(index), event);
            }
        }
        for index in 0..self.run.plan.sinks.len() {
            for event in self.run.plan.sinks[index].shared.serve()? {
                match event {
                    SinkEvent::Committed(checkpoint) => self.committer.sink_answered(index, checkpoint)?,
                }
            }
        }
        self.committer.tell_sources()?;
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

    fn follow(&mut self, source: SourceIndex, event: SourceEvent) {
        let (revoked, released) = match event {
            SourceEvent::Assigned(partitions) => {
                tracing::info!(source = self.source_name(source), ?partitions, "partitions assigned");
                return;
            }
            SourceEvent::Committed(checkpoint) => return self.committer.source_answered(source, checkpoint),
            SourceEvent::Revoked(revoked) => (revoked, Released::Committed),
            SourceEvent::Lost(revoked) => (revoked, Released::Dropped),
        };
        let (count, lost) = (revoked.partitions().len(), released == Released::Dropped);
        tracing::info!(source = self.source_name(source), count, lost, "partitions revoked");
        tracing::debug!(partitions = %revoked, "revoked");
        if lost {
            // What was revoked may be lost while it is drained.
            self.draining.retain(|draining| !draining.is_of(source, &revoked));
        }
        let draining = Draining::begin(source, revoked, released, &self.run, self.spec, &mut self.committer);
        self.draining.push(draining);
    }

    /// Unassigns partitions that are drained and committed, or took too long.
    fn drain(&mut self) -> Result<()> {
        let have_ended = self.ended == self.spec.workers;
        for draining in std::mem::take(&mut self.draining) {
            match draining.poll(&self.run, have_ended) {
                Ok(committed) => {
                    let source = &self.run.plan.sources[committed.source().0].shared;
                    committed.unassign(&**source, &mut self.committer)?;
                }
                Err(draining) => self.draining.push(draining),
            }
        }
        Ok(())
    }

    /// Carries out the requests of the program.
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
                let doing = format!("cannot drain job `{}` in time; uncommitted records are read again", self.spec.job);
                return Err(Error::new(ErrorKind::Aborted, doing));
            }
        }
        Ok(())
    }

    fn look_after_workers(&mut self) -> Result<()> {
        if self.looked.elapsed() >= SERVE_EVERY {
            self.looked = Instant::now();
            // A wake-up that a client has lost costs no more than this interval.
            self.run.pulse.wake_ingests();
            self.run.vitals.wait_for(self.run.plan.waiting());
        }
        let now = Clock::system().now();
        let stuck = self.workers.iter().position(|worker| worker.busy(now) > self.spec.stuck_after);
        stuck.map_or(Ok(()), |index| {
            let doing = format!("worker {index} has not returned from a step for {:?}", self.spec.stuck_after);
            Err(Error::new(ErrorKind::Stuck, doing))
        })
    }

    #[cfg(feature = "terminal")]
    fn draw(&mut self, handle: &Handle) {
        if let Some((line, drawn)) =
            self.line.as_mut().filter(|(_, drawn)| drawn.elapsed() >= super::terminal::Line::EVERY)
        {
            *drawn = Instant::now();
            line.draw(&handle.report(), self.spec.extent != crate::io::Extent::Endless);
        }
    }

    #[cfg(not(feature = "terminal"))]
    fn draw(&mut self, _: &Handle) {}

    /// Ends every thread of the run, then the clients.
    pub(super) fn take_down(mut self, handle: &Handle, closing: Closing) {
        self.run.vitals.end();
        if self.ended < self.spec.workers {
            self.run.fault.record(Error::new(ErrorKind::Aborted, "the run is over"));
        }
        // `stop` and `abort` do not wait for a worker that is blocked in user code.
        let is_asked = handle.is_aborted() || handle.stop_asked().is_some();
        let patience = if is_asked { self.spec.stuck_after.min(Duration::from_secs(1)) } else { self.spec.stuck_after };
        let deadline = deadline_after(patience);
        self.retire_keeper(handle, deadline);
        self.workers.drain(..).for_each(|worker| worker.join_before(deadline));
        self.run.ticker.end();
        if let Some(ticker) = self.ticker.take() {
            drop(ticker.join());
        }
        handle.run_ended();
        let commits = self.committer.commits();
        self.metrics.iter_mut().for_each(|metrics| metrics.end(&self.run, commits));
        self.run.end_calls();
        self.run.plan.sources.iter().for_each(|source| source.shared.close(closing));
        self.run.plan.sinks.iter().for_each(|sink| sink.shared.close());
    }
}

impl Server<'_> {
    /// Sees to it that nothing more is published, even if the thread of the checkpoints hangs: the
    /// next run must not find a checkpoint of this one later.
    fn retire_keeper(&mut self, handle: &Handle, deadline: Instant) {
        let Some(keeper) = self.committer.take_keeper() else { return };
        while !keeper.retire() {
            if Instant::now() >= deadline && handle.is_ending() {
                // No run follows.
                break;
            }

            std::thread::sleep(Duration::from_millis(1));
        }
        keeper.end_before(deadline);
    }
}

/// The guard of the memory of a job that keeps state, also for a batch only. Its workers ask it
/// too, when state has grown.
fn guard(run: &Arc<Run>, spec: &Spec) -> Option<Arc<Mutex<MemoryGuard>>> {
    if !run.plan.graph.holds_state() {
        return None;
    }
    let guard = Arc::new(Mutex::new(MemoryGuard::new(&spec.job)));
    let (asked, weak) = (Arc::clone(&guard), Arc::downgrade(run));
    run.state_budget.asks(move || {
        let Some(run) = weak.upgrade() else { return };
        if let Err(error) = lock(&asked).look_now(&run) {
            run.fault.record(error);
        }
    });
    Some(guard)
}

/// One allocator for each worker; they connect the workers with each other.
fn allocators(workers: usize) -> Result<Vec<AllocatorBuilder>> {
    let config = if workers == 1 { CommunicationConfig::Thread } else { CommunicationConfig::Process(workers) };
    let (builders, others) = config
        .try_build()
        .map_err(|cause| Error::new(ErrorKind::System, "cannot set up the workers").caused_by(cause))?;
    drop(others);
    Ok(builders)
}
