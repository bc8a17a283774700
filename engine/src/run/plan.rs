//! A pipeline that is connected: its graph, what its nodes count, and the shared halves of its
//! sources and sinks.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::epoch::commit::Memory;
use crate::io::{SharedSink, SharedSource};
use crate::operator::drain::Drains;
use crate::operator::fault::Node;
use crate::operator::intake::Intake;
use crate::state::store::Place;
use crate::words::{Result, SinkMeter, SourceMeter, StageMeter, Wake};

use super::graph::{Graph, NodeInfo, differs};
use super::memory::Resumed;
use super::spec::{Remembers, Spec};

/// What a node counts, shared by all workers.
#[derive(Clone, Debug)]
pub(crate) enum Meter {
    Source(Arc<SourceMeter>),
    Stage(Arc<StageMeter>),
    Sink(Arc<SinkMeter>),
}

/// The per-process half of a source, once for the control thread (`shared`) and once with its type,
/// for its readers (`typed`).
pub(crate) struct PlannedSource {
    pub(crate) node: Node,
    pub(crate) shared: Arc<dyn SharedSource>,
    pub(crate) typed: Arc<dyn Any + Send + Sync>,
    /// Per worker.
    pub(crate) drains: Vec<Drains>,
    /// Limits how much of it is read.
    pub(crate) intake: Arc<Intake>,
}

/// The per-process half of a sink, once for the control thread (`shared`) and once with its type,
/// for its writers (`typed`).
pub(crate) struct PlannedSink {
    pub(crate) shared: Arc<dyn SharedSink>,
    pub(crate) typed: Arc<dyn Any + Send + Sync>,
}

/// A pipeline that is connected.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) graph: Graph,
    /// What each node counts.
    pub(crate) meters: Vec<Meter>,
    pub(crate) sources: Vec<PlannedSource>,
    pub(crate) sinks: Vec<PlannedSink>,
    /// Where the run goes on.
    pub(crate) memory: Memory,
    /// The checkpoints that it goes on from and adds to, if it keeps any.
    pub(crate) resumed: Option<Box<Resumed>>,
}

impl Plan {
    pub(crate) fn name(&self, node: Node) -> &str {
        self.graph.name(node)
    }

    /// Each node with what it counts.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&NodeInfo, &Meter)> {
        self.graph.nodes.iter().zip(&self.meters)
    }

    /// What sources wait for before they can read, with their names.
    pub(crate) fn waiting(&self) -> Vec<String> {
        let of_source = |source: &PlannedSource| {
            let name = self.name(source.node).to_owned();
            source.shared.waiting().into_iter().map(move |what| format!("`{name}` waits for {what}"))
        };
        self.sources.iter().flat_map(of_source).collect()
    }

    /// The `index`th source, with its shared half as it was connected.
    pub(crate) fn source<S: SharedSource>(&self, index: usize) -> Result<(&PlannedSource, Arc<S>)> {
        let planned = self.sources.get(index).ok_or_else(|| differs("another source"))?;
        Ok((planned, Arc::clone(&planned.typed).downcast().map_err(|_| differs("another source"))?))
    }

    /// The shared half of the `index`th sink, as it was connected.
    pub(crate) fn sink<S: SharedSink>(&self, index: usize) -> Result<Arc<S>> {
        let planned = self.sinks.get(index).ok_or_else(|| differs("another sink"))?;
        Arc::clone(&planned.typed).downcast().map_err(|_| differs("another sink"))
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.graph.nodes).finish()
    }
}

/// What a plan needs to connect its sources and sinks.
pub(crate) struct Planning {
    pub(crate) spec: Spec,
    /// Wakes the control thread.
    pub(crate) control: Wake,
    /// What earlier runs committed.
    pub(crate) memory: Memory,
    /// Where the job keeps its checkpoints.
    pub(crate) checkpoints: Option<Place>,
    /// Whether this run keeps checkpoints, and whether `memory` is that of one.
    pub(crate) is_checkpointed: bool,
    pub(crate) is_from_checkpoint: bool,
    /// See [`OpenSource::identity`](crate::connector::OpenSource::identity).
    pub(crate) identity: Option<String>,
}

impl Planning {
    /// Finds the checkpoint from which the run goes on, if the job keeps checkpoints.
    ///
    /// # Errors
    /// When the checkpoints cannot be read, or do not fit the pipeline.
    pub(crate) fn resume(&mut self, graph: &Graph) -> Result<Option<Resumed>> {
        // In memory only state is kept: sources without state remember by themselves.
        let is_needed = graph.keeps_state().is_some() || matches!(self.spec.remembers, Remembers::InDirectory(_));
        let Some(checkpoints) = self.checkpoints.as_ref().filter(|_| is_needed) else { return Ok(None) };
        let resumed = Resumed::new(&self.spec, graph, checkpoints)?;
        self.is_checkpointed = true;
        if let Some(memory) = resumed.memory(graph) {
            (self.memory, self.is_from_checkpoint) = (memory, true);
        }
        if matches!(self.spec.remembers, Remembers::InDirectory(_)) {
            self.identity = Some(resumed.store.identity().to_owned());
        }
        Ok(Some(resumed))
    }
}
