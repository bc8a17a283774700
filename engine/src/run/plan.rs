//! What the first call of the pipeline function found out: the nodes with their names and meters, and the connected
//! halves of sources and sinks. And what the workers of a run share.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use timely::dataflow::Scope;

use crate::epoch::ticker::Ticker;
use crate::io::{SharedSink, SharedSource, Trial, Turn, Wake};
use crate::operator::call_threads::{CallDesk, CallThreads};
use crate::operator::fault::{Fault, Node};
use crate::operator::ingest::Release;
use crate::operator::intake::Intake;
use crate::operator::pulse::Pulse;
use crate::operator::recall::Recalls;
use crate::words::{Budget, Bytes, Clock, Error, ErrorKind, Offsets, Result, SinkMeter, SourceMeter, StageMeter, lock};

use super::control::Events;
use super::health::Vitals;

/// A source, stage or sink of a pipeline.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) meter: Meter,
}

/// What a node counts, shared by all workers.
#[derive(Clone, Debug)]
pub(crate) enum Meter {
    Source(Arc<SourceMeter>),
    Stage(Arc<StageMeter>),
    Sink(Arc<SinkMeter>),
}

/// The half of a source that a process has once, under both of its faces.
pub(crate) struct PlannedSource {
    pub(crate) node: Node,
    pub(crate) shared: Arc<dyn SharedSource>,
    pub(crate) typed: Arc<dyn Any + Send + Sync>,
    /// Per worker.
    pub(crate) recalls: Vec<Recalls>,
    /// How much of it is let in.
    pub(crate) intake: Arc<Intake>,
    /// In a run that is compared with others.
    pub(crate) turn: Option<Arc<Turn>>,
}

/// The half of a sink that a process has once, under both of its faces.
pub(crate) struct PlannedSink {
    pub(crate) shared: Arc<dyn SharedSink>,
    pub(crate) typed: Arc<dyn Any + Send + Sync>,
}

/// A pipeline that was planned.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) nodes: Vec<NodeInfo>,
    pub(crate) sources: Vec<PlannedSource>,
    pub(crate) sinks: Vec<PlannedSink>,
    /// Whether records change workers.
    pub(crate) exchanges: bool,
}

impl Plan {
    pub(crate) fn name(&self, node: Node) -> &str {
        self.nodes.get(node.0).map_or("unknown", |info| info.name.as_str())
    }

    /// What each source waits for before it can read, with the source's name.
    pub(crate) fn waiting(&self) -> Vec<String> {
        let of_source = |source: &PlannedSource| {
            let name = self.name(source.node).to_owned();
            source.shared.waiting().into_iter().map(move |what| format!("`{name}` waits for {what}"))
        };
        self.sources.iter().flat_map(of_source).collect()
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.nodes).finish()
    }
}

/// What a plan needs to connect its sources and sinks.
pub(crate) struct Planning {
    pub(crate) job: String,
    pub(crate) workers: usize,
    pub(crate) memory: Bytes,
    pub(crate) bounded: bool,
    pub(crate) clock: Clock,
    pub(crate) control: Wake,
    /// What an earlier run committed, per source.
    pub(crate) resume: Vec<Offsets>,
    /// A run that is compared with others.
    pub(crate) trial: Option<Arc<Trial>>,
}

/// The user's function, as this floor sees it: called once to plan and once per worker to build.
pub(crate) trait Pipeline: Send + Sync {
    fn plan(&self, planning: &Planning) -> Result<Plan>;
    fn build(&self, scope: Scope<'_, u64>, run: &Arc<Run>) -> Result<()>;
}

/// What the workers of one run share.
pub(crate) struct Run {
    pub(crate) plan: Plan,
    pub(crate) release: Release,
    /// How long a worker without work steps on before it parks.
    pub(crate) spin: Duration,
    /// How long it parks at most.
    pub(crate) park_max: Duration,
    pub(crate) clock: Clock,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) fault: Arc<Fault>,
    pub(crate) vitals: Vitals,
    /// Per worker.
    pub(crate) budgets: Vec<Arc<Budget>>,
    pub(crate) events: Events,
    pub(crate) control: Wake,
    /// For stages that call other services; made when the first of them is built.
    pub(crate) calls: Mutex<Option<CallThreads>>,
}

impl Run {
    /// Where this run's stages hand in their calls.
    pub(crate) fn call_desk(&self) -> Result<CallDesk> {
        let mut calls = lock(&self.calls);
        if calls.is_none() {
            *calls = Some(CallThreads::start()?);
        }
        Ok(calls.as_ref().expect("they were started above").desk())
    }

    /// The run is over: calls under way are dropped, and nobody waits for them.
    pub(crate) fn end_calls(&self) {
        if let Some(calls) = lock(&self.calls).take() {
            calls.end();
        }
    }

    /// The half of the `index`th source that a process has once.
    pub(crate) fn source<S: SharedSource>(&self, index: usize) -> Result<(&PlannedSource, Arc<S>)> {
        let planned = self.plan.sources.get(index).ok_or_else(differs)?;
        Ok((planned, Arc::clone(&planned.typed).downcast().map_err(|_| differs())?))
    }

    /// The half of the `index`th sink that a process has once.
    pub(crate) fn sink<S: SharedSink>(&self, index: usize) -> Result<Arc<S>> {
        let planned = self.plan.sinks.get(index).ok_or_else(differs)?;
        Arc::clone(&planned.typed).downcast().map_err(|_| differs())
    }
}

/// The error of a pipeline function that did not do the same again.
pub(crate) fn differs() -> Error {
    Error::new(ErrorKind::Pipeline, "the pipeline function must build the same pipeline each time it is called")
}
