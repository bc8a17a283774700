//! What the workers of one run share, and the pipeline function as this floor sees it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use timely::dataflow::Scope;

use crate::epoch::commit::Memories;
use crate::epoch::durable::{Durability, Keeper};
use crate::epoch::gather::Ends;
use crate::epoch::ticker::{Pace, Ticker};
use crate::io::Acknowledges;
use crate::operator::call_threads::{CallDesk, CallThreads};
use crate::operator::fault::Fault;
use crate::operator::ingest::Release;
use crate::operator::pulse::Pulse;
use crate::operator::restored::Restored;
use crate::words::{Budget, ByteSize, CheckpointId, CheckpointMeter, Clock, Result, Stall, StateBudget, Wake, lock};

use super::events::Events;
use super::graph::Graph;
use super::memory::Resumed;
use super::plan::{Plan, Planning};
use super::spec::Spec;
use super::vitals::Vitals;

/// The user's function. It is called once for its graph, once to connect, and once per worker to
/// build.
pub(crate) trait Pipeline: Send + Sync {
    /// What it builds. Nothing connects.
    fn sketch(&self) -> Result<Graph>;

    /// Connects its sources and sinks.
    fn connect(&self, graph: Graph, planning: &Planning) -> Result<Plan>;

    /// Builds a worker's dataflow up to the ends that `gather` reads.
    fn build<'a>(&self, scope: Scope<'a, u64>, run: &Arc<Run>) -> Result<Ends<'a>>;
}

/// What the workers of one run share.
pub(crate) struct Run {
    pub(crate) plan: Plan,
    pub(crate) workers: usize,
    pub(crate) release: Release,
    /// How long a worker without work continues to step before it parks.
    pub(crate) spin: Duration,
    /// The longest time for which it parks.
    pub(crate) park_max: Duration,
    pub(crate) clock: Clock,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) fault: Arc<Fault>,
    /// The state with which the run begins.
    pub(crate) restored: Option<Arc<Restored>>,
    /// What is shown of the checkpoints that keep the state, if any do.
    pub(crate) durability: Option<Arc<Durability>>,
    pub(crate) checkpoint_meter: Option<Arc<CheckpointMeter>>,
    pub(crate) vitals: Vitals,
    /// Per worker.
    pub(crate) budgets: Vec<Arc<Budget>>,
    /// The memory of all state.
    pub(crate) state_budget: Arc<StateBudget>,
    /// Per worker. Where records change workers, all workers share one: a writer of one worker
    /// holds back the sources of all.
    pub(crate) stalls: Vec<Stall>,
    pub(crate) events: Events,
    /// Wakes the control thread.
    pub(crate) control: Wake,
    /// For stages that call other services; started when the first of them is built.
    calls: Mutex<Option<CallThreads>>,
}

/// The longest time for which a worker parks. Whatever it waits for wakes it earlier, and the
/// control thread wakes it several times within this.
const PARK_MAX: Duration = Duration::from_secs(1);

impl Run {
    /// A run of that plan.
    pub(crate) fn new(spec: &Spec, plan: Plan, events: Events, control: Wake) -> Run {
        let pulse = Arc::new(Pulse::new(plan.memory.first, &spec.clock));
        let recovered = plan.resumed.as_ref().and_then(|resumed| resumed.recovered.clone());
        let frees_at_commit = plan.sinks.iter().any(|sink| sink.shared.acknowledges() == Acknowledges::WhenCommitted);
        let ticker = Ticker::new(spec.pace, spec.clock.clone(), Arc::clone(&pulse), frees_at_commit);
        let shared = Stall::default();
        let stall = || if plan.graph.exchanges() { shared.clone() } else { Stall::default() };
        // Half of the memory; the other half is what sources fetch ahead and what sinks buffer.
        let budget = ByteSize(spec.record_memory(plan.graph.holds_state()).0 / 2 / spec.workers as u64);
        let state_budget = StateBudget::new(spec.state_memory.unwrap_or(ByteSize(spec.memory.0 / 2)));
        Run {
            workers: spec.workers,
            release: match spec.pace {
                Pace::Continuous { .. } => Release::AtOnce,
                Pace::MicroBatch { .. } => Release::AtTicks,
            },
            spin: spec.spin,
            // A worker that is parked must not count as stuck.
            park_max: (spec.stuck_after / 4).min(PARK_MAX),
            clock: spec.clock.clone(),
            ticker: Arc::new(ticker),
            pulse,
            fault: Arc::new(Fault::new()),
            restored: recovered.map(|recovered| Arc::new(Restored::new(recovered, spec.workers))),
            durability: plan.resumed.as_ref().map(|_| Arc::default()),
            checkpoint_meter: plan.resumed.as_ref().map(|_| Arc::default()),
            vitals: Vitals::new(spec.workers, spec.stuck_after),
            state_budget: Arc::new(state_budget),
            budgets: (0..spec.workers).map(|_| Budget::new(budget)).collect(),
            stalls: (0..spec.workers).map(|_| stall()).collect(),
            events,
            control,
            calls: Mutex::default(),
            plan,
        }
    }

    /// What is shown of its checkpoints, if it keeps any.
    pub(crate) fn checkpoints(&self) -> Option<(&Durability, &CheckpointMeter)> {
        self.durability.as_deref().zip(self.checkpoint_meter.as_deref())
    }

    /// Starts the keeper of the checkpoints, if the job keeps any. It calls `told` for each that
    /// has become durable, and when it cannot go on.
    pub(crate) fn keep(&mut self, told: impl Fn(Result<CheckpointId>) + Send + 'static) -> Result<Option<Memories>> {
        let Some(resumed) = self.plan.resumed.take() else { return Ok(None) };
        let Resumed { store, gate, kept, .. } = *resumed;
        let shown = self.durability.clone().unwrap_or_default();
        let keeper = Keeper::start(store, gate, shown, told)?;
        Ok(Some(Memories {
            keeper,
            kept,
            clock: self.clock.clone(),
            meter: self.checkpoint_meter.clone().unwrap_or_default(),
        }))
    }

    /// Where this run's stages submit their calls. The threads start when this is first called.
    pub(crate) fn call_desk(&self) -> Result<CallDesk> {
        let mut calls = lock(&self.calls);
        if calls.is_none() {
            *calls = Some(CallThreads::start()?);
        }
        Ok(calls.as_ref().expect("they were started above").desk())
    }

    /// Drops open calls and ends their threads, when the run is over.
    pub(crate) fn end_calls(&self) {
        if let Some(calls) = lock(&self.calls).take() {
            calls.end();
        }
    }
}
