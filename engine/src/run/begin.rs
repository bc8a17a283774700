//! What a run is made of: how the job is to be run, the plan, and what its workers share.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use timely::CommunicationConfig;
use timely::communication::AllocatorBuilder;

use crate::epoch::ticker::{Pace, Ticker};
use crate::io::{Acknowledges, Trial, Wake};
use crate::operator::fault::{Fault, panicked};
use crate::operator::ingest::{self, Release};
use crate::operator::pulse::Pulse;
use crate::words::{Budget, Bytes, Clock, Error, ErrorKind, Result, Stall, spawn};

use super::control::{Event, Events};
use super::handle::Handle;
use super::health::Vitals;
use super::plan::{Pipeline, Plan, Planning, Run};

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
    /// A run that is compared with others: paced, and nothing of it is committed.
    pub(crate) trial: Option<Arc<Trial>>,
}

/// Longest sleep of a worker. What it waits for wakes it, and the control thread does several times within this.
const PARK_MAX: Duration = Duration::from_secs(1);

/// Plans on a thread of its own: to connect may take long, and whoever stops the job does not wait for it. A plan that
/// nobody waits for any more ends by itself.
pub(crate) fn plan(
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
    spawn("plan", body)?;
    while !handle.is_aborted() && handle.stop_asked().is_none() {
        // A client may wake before its plan is whole.
        if let Event::Planned(plan) = receiver.recv().expect("a sender is kept") {
            return *plan;
        }
    }
    Err(Error::new(ErrorKind::Aborted, format!("job `{job}` was stopped before it was connected")))
}

/// What the workers of a run of that plan share.
pub(crate) fn new_run(spec: &Spec, plan: Plan, events: Events, control: Wake) -> Run {
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
        budgets: budgets(spec, &plan),
        vitals: Vitals::new(spec.workers, spec.stuck_after),
        events,
        control,
        calls: Mutex::default(),
        plan,
    }
}

/// What each worker may admit. Where records change workers a writer of one holds up the sources of all.
fn budgets(spec: &Spec, plan: &Plan) -> Vec<Arc<Budget>> {
    let shared = Stall::default();
    let stall = || if plan.exchanges { shared.clone() } else { Stall::default() };
    (0..spec.workers).map(|_| ingest::budget(spec.memory, spec.workers, &stall())).collect()
}

/// What joins the workers.
pub(crate) fn allocators(workers: usize) -> Result<Vec<AllocatorBuilder>> {
    let config = if workers == 1 { CommunicationConfig::Thread } else { CommunicationConfig::Process(workers) };
    let (builders, others) = config
        .try_build()
        .map_err(|cause| Error::new(ErrorKind::Option, "cannot set up the workers").caused_by(cause))?;
    drop(others);
    Ok(builders)
}
