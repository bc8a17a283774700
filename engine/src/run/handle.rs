//! What a job's control thread and the program that started it share: requests in one direction;
//! reports, health and the outcome in the other.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::operator::intake::Limits;
use crate::words::{Error, ErrorKind, Result, deadline_after, lock};

use super::events::{Event, Events};
use super::health::{Health, HealthLimits};
use super::labels::Labels;
use super::listener::{Listener, Listeners};
use super::plan::Meter;
use super::report::Report;
use super::shared::Run;

/// Shared by [`Running`](crate::Running) and the control thread.
#[derive(Debug)]
pub(crate) struct Handle {
    /// To the control thread of the newest run.
    events: Mutex<Option<Events>>,
    state: Mutex<State>,
    changed: Condvar,
    listeners: Listeners,
    /// The job's place in the list of this process's jobs, if it is listed; dropped when it ends.
    place: Mutex<Option<Box<dyn Any + Send>>>,
    labels: OnceLock<Labels>,
}

#[derive(Default)]
struct State {
    /// The deadline of a requested stop.
    stop: Option<Instant>,
    aborted: bool,
    run: Option<Arc<Run>>,
    started: Option<Instant>,
    restarts: u64,
    /// Why the newest run failed, until the next one begins.
    failed: Option<String>,
    job: String,
    last: Option<Report>,
    outcome: Option<Result<Report>>,
    ended: bool,
    /// How it ended, in words.
    end: String,
    waker: Option<Waker>,
    /// The newest run's sources by name, in the order of the pipeline.
    sources: Vec<String>,
    /// The limits of each source: those of the pipeline, until the program changes them.
    limits: BTreeMap<String, Limits>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ended: {}", self.job, self.ended)
    }
}

impl Handle {
    pub(crate) fn new(job: &str) -> Arc<Handle> {
        let state = State { job: job.to_owned(), ..State::default() };
        Arc::new(Handle {
            events: Mutex::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            listeners: Listeners::default(),
            place: Mutex::default(),
            labels: OnceLock::new(),
        })
    }

    /// Starts these listeners.
    pub(crate) fn listen(self: &Arc<Handle>, listeners: &[Listener]) -> Result<()> {
        let handle = Arc::clone(self);
        let report: Arc<dyn Fn() -> Report + Send + Sync> = Arc::new(move || handle.report());
        self.listeners.open(listeners, &report)
    }

    /// The job is listed among those of this process, until `place` is dropped.
    pub(crate) fn is_listed(&self, labels: Labels, place: Box<dyn Any + Send>) {
        self.labels.get_or_init(|| labels);
        *lock(&self.place) = Some(place);
    }

    /// The labels of the job's metrics; none when it is not listed.
    pub(crate) fn labels(&self) -> Option<&Labels> {
        self.labels.get()
    }

    pub(crate) fn job(&self) -> String {
        lock(&self.state).job.clone()
    }

    fn ask(&self) {
        self.changed.notify_all();
        if let Some(events) = &*lock(&self.events) {
            events.send(Event::Look);
        }
    }

    // For the program.

    pub(crate) fn stop_within(&self, limit: Duration) {
        // If it is asked again, the earlier deadline counts.
        let asked = deadline_after(limit);
        let mut state = lock(&self.state);
        state.stop = Some(state.stop.map_or(asked, |earlier| earlier.min(asked)));
        drop(state);
        self.ask();
    }

    pub(crate) fn abort(&self) {
        lock(&self.state).aborted = true;
        self.ask();
    }

    pub(crate) fn report(&self) -> Report {
        let state = lock(&self.state);
        match (&state.run, &state.last) {
            (Some(run), _) => state.report_of(run),
            (None, Some(last)) => last.clone(),
            (None, None) => Report::empty(&state.job),
        }
    }

    pub(crate) fn health(&self, limits: &HealthLimits) -> Health {
        let (run, report) = {
            let state = lock(&self.state);
            match &state.run {
                _ if state.ended => return Health::dead(state.end.clone()),
                Some(run) => (Arc::clone(run), state.report_of(run)),
                None => {
                    let connects = || "the job is connecting its sources and sinks".to_owned();
                    let restarts = |reason: &String| format!("the job is restarting after a failure: {reason}");
                    return Health::unready(state.failed.as_ref().map_or_else(connects, restarts));
                }
            }
        };
        Health::of(&run, &report, limits)
    }

    /// Whether this many records of channels have been polled, and everything that is due is done.
    pub(crate) fn is_settled(&self, fed: u64) -> bool {
        let Some(run) = lock(&self.state).run.clone() else { return false };
        // Records that a limit holds back are read once the clock or the limit has changed.
        let now = run.clock.now();
        let held_back = run.plan.sources.iter().filter(|source| source.intake.holds_back(now));
        let kept_out: u64 = held_back.map(|source| source.shared.unread()).sum();
        let sources = run.plan.meters.iter().filter_map(|meter| match meter {
            Meter::Source(meter) => Some(meter.fed.get()),
            Meter::Stage(_) | Meter::Sink(_) => None,
        });
        sources.sum::<u64>() + kept_out >= fed && run.ticker.is_settled()
    }

    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.state).ended
    }

    /// The outcome, once; waits for it, at most until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<Result<Report>> {
        let mut state = lock(&self.state);
        while !state.ended {
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Some(state.take_outcome())
    }

    /// The outcome, or `waker` is called when there is one.
    pub(crate) fn poll(&self, waker: &Waker) -> Option<Result<Report>> {
        let mut state = lock(&self.state);
        if !state.ended {
            state.waker = Some(waker.clone());
            return None;
        }
        Some(state.take_outcome())
    }

    // For the control thread.

    /// Sends requests to these events from now on. The control thread checks for requests before it
    /// waits.
    pub(crate) fn wakes(&self, events: Events) {
        *lock(&self.events) = Some(events);
    }

    pub(crate) fn stop_asked(&self) -> Option<Instant> {
        lock(&self.state).stop
    }

    /// Whether the program has asked for the end.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_aborted() || self.stop_asked().is_some()
    }

    pub(crate) fn is_aborted(&self) -> bool {
        lock(&self.state).aborted
    }

    pub(crate) fn run_begins(&self, run: &Arc<Run>) {
        let mut state = lock(&self.state);
        state.started = Some(Instant::now());
        state.sources.clear();
        for source in &run.plan.sources {
            let name = run.plan.name(source.node);
            match state.limits.get(name) {
                Some(limits) => source.intake.set(*limits),
                None => drop(state.limits.insert(name.to_owned(), source.intake.limits())),
            }
            state.sources.push(name.to_owned());
        }
        state.run = Some(Arc::clone(run));
        state.failed = None;
    }

    /// The names of the newest run's sources.
    pub(crate) fn source_names(&self) -> Vec<String> {
        lock(&self.state).sources.clone()
    }

    /// Changes the limits of a source, in this run and in those that follow it.
    pub(crate) fn limit(&self, name: &str, change: impl FnOnce(&mut Limits)) {
        let mut state = lock(&self.state);
        let limits = state.limits.entry(name.to_owned()).or_default();
        change(limits);
        let limits = *limits;
        // There is no run between two runs of the job.
        let Some(run) = &state.run else { return };
        let named = run.plan.sources.iter().filter(|source| run.plan.name(source.node) == name);
        named.for_each(|source| source.intake.set(limits));
        run.pulse.wake_ingests();
    }

    /// The first run is under way.
    pub(crate) fn started(&self) {
        self.listeners.started(&self.report());
    }

    /// The run is over; its report stays.
    pub(crate) fn run_ended(&self) {
        let mut state = lock(&self.state);
        if let Some(run) = state.run.take() {
            state.last = Some(state.report_of(&run));
        }
    }

    /// The newest run failed, and another may follow it.
    pub(crate) fn failed(&self, error: &Error) {
        lock(&self.state).failed = Some(format!("{error:#}"));
    }

    /// Another run follows the one that failed.
    pub(crate) fn restarts(&self, error: Error) {
        lock(&self.state).restarts += 1;
        let report = self.report();
        self.listeners.restarted(error, &report);
    }

    /// Waits between two runs; returns whether the program wants no other run.
    pub(crate) fn pause(&self, pause: Duration) -> bool {
        let deadline = deadline_after(pause);
        let mut state = lock(&self.state);
        while state.stop.is_none() && !state.aborted {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(crate) fn end(&self, result: Result<(), Error>) {
        drop(lock(&self.place).take());
        let report = self.report();
        self.listeners.end(&result, &report);
        let mut state = lock(&self.state);
        state.end = match &result {
            Ok(()) => "the job has ended".to_owned(),
            Err(error) => format!("the job has ended: {error:#}"),
        };
        state.outcome = Some(result.map(|()| report));
        state.ended = true;
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl State {
    /// The outcome is returned once; after that there is only the report.
    fn take_outcome(&mut self) -> Result<Report> {
        let taken = || Err(Error::new(ErrorKind::Aborted, "the outcome of this job has already been returned"));
        self.outcome.take().unwrap_or_else(taken)
    }

    fn report_of(&self, run: &Run) -> Report {
        let elapsed = self.started.map_or(Duration::ZERO, |started| started.elapsed());
        Report::of(&self.job, run, elapsed, self.restarts)
    }
}
