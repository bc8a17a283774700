//! What a job remembers of its runs: in its checkpoints, if it keeps any. Here a run learns where
//! it goes on, and whether what was kept fits its pipeline.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::epoch::commit::Memory;
use crate::operator::fault::Node;
use crate::state::describe::Types;
use crate::state::disk::{self, Directory, DirectoryLock, Disk};
use crate::state::recover::{Recovered, recover};
use crate::state::store::{Gate, Kept, Retain, Store};
use crate::words::{CheckpointId, Error, ErrorKind, Offsets, Result, unique_name};

use super::graph::{Graph, NodeKind};
use super::spec::{Remembers, Spec};

/// Where a job keeps its checkpoints, for as long as it lives.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints {
    disk: Arc<dyn Disk>,
    retain: Retain,
    lock: Option<Arc<DirectoryLock>>,
}

impl Checkpoints {
    /// Opens the place where the job keeps its checkpoints; `None` when it keeps none.
    ///
    /// # Errors
    /// When the directory cannot be used, or another job uses it.
    pub(crate) fn open(spec: &Spec) -> Result<Option<Checkpoints>> {
        Ok(match &spec.remembers {
            Remembers::InDirectory(path) => {
                let (directory, lock) = Directory::locked(path)?;
                Some(Checkpoints { disk: Arc::new(directory), retain: Retain::Three, lock: Some(Arc::new(lock)) })
            }
            // A run that ends is not followed by another: its checkpoints would never be read.
            Remembers::InMemory if spec.restart.is_some() => {
                Some(Checkpoints { disk: Arc::new(disk::Memory::default()), retain: Retain::One, lock: None })
            }
            Remembers::InMemory | Remembers::Nothing => None,
        })
    }
}

/// The checkpoints as a run finds them, and the store for its own.
pub(crate) struct Resumed {
    pub(crate) recovered: Option<Arc<Recovered>>,
    pub(crate) store: Store,
    pub(crate) gate: Arc<Gate>,
    /// Kept by the thread that writes: as long as it lives, even beyond its run, no other job may
    /// use the directory.
    pub(crate) lock: Option<Arc<DirectoryLock>>,
    /// The operators that keep state, in the order in which the store knows them.
    pub(crate) kept: Vec<Node>,
}

impl Resumed {
    /// Finds the newest checkpoint, and checks that it fits the pipeline.
    ///
    /// # Errors
    /// When the checkpoints cannot be read, or do not fit.
    pub(crate) fn new(spec: &Spec, graph: &Graph, checkpoints: &Checkpoints) -> Result<Resumed> {
        let recovered = recover(&checkpoints.disk, &spec.job)?;
        if let Some(recovered) = &recovered {
            check(spec, graph, recovered)?;
        }
        let (kept, operators): (Vec<Node>, Vec<Kept>) =
            stateful(graph).map(|(node, name, types)| (node, Kept { name: name.to_owned(), types })).unzip();
        let gate = Arc::<Gate>::default();
        let run = unique_name();
        let store = Store::begin(
            Arc::clone(&checkpoints.disk),
            Arc::clone(&gate),
            (&spec.job, &run),
            recovered.as_ref(),
            sources(graph).map(str::to_owned).collect(),
            &operators,
            checkpoints.retain,
        );
        let store = store.map_err(|cause| {
            Error::new(ErrorKind::Checkpoint, "cannot use the directory of checkpoints").caused_by(cause)
        })?;
        if let Some(recovered) = &recovered {
            tracing::info!(checkpoint = %recovered.manifest.checkpoint, "going on from a checkpoint");
        }
        Ok(Resumed { recovered: recovered.map(Arc::new), store, gate, lock: checkpoints.lock.clone(), kept })
    }

    /// Where the sources of the pipeline go on; `None` when there is no checkpoint yet.
    pub(crate) fn memory(&self, graph: &Graph) -> Option<Memory> {
        let manifest = &self.recovered.as_ref()?.manifest;
        let of_source = |name: &str| {
            let known = manifest.sources.iter().find(|(known, _)| known == name);
            known.map_or_else(Offsets::new, |(_, offsets)| offsets.clone())
        };
        let first: CheckpointId = manifest.checkpoint.next();
        Some(Memory { first, offsets: sources(graph).map(of_source).collect() })
    }
}

fn sources(graph: &Graph) -> impl Iterator<Item = &str> {
    graph.nodes.iter().filter(|node| node.kind == NodeKind::Source).map(|node| node.name.as_str())
}

/// The operators that keep state.
fn stateful(graph: &Graph) -> impl Iterator<Item = (Node, &str, Types)> {
    let nodes = graph.nodes.iter().enumerate();
    nodes.filter_map(|(index, node)| node.types.map(|types| (Node(index), node.name.as_str(), types())))
}

/// Checks that what was kept has an owner in this pipeline, that operators with state find what was
/// kept of it, and that the types are the same.
fn check(spec: &Spec, graph: &Graph, recovered: &Recovered) -> Result<()> {
    let manifest = &recovered.manifest;
    let wrong = |doing: String| Err(Error::new(ErrorKind::State, format!("job `{}`: {doing}", spec.job)));
    let now: BTreeSet<&str> = stateful(graph).map(|(_, name, _)| name).collect();
    let before: BTreeSet<&str> = manifest.operators.iter().map(|operator| operator.name.as_str()).collect();
    let list = |names: &BTreeSet<&str>| match names.is_empty() {
        true => "none".to_owned(),
        false => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    };
    let (now_list, before_list) = (list(&now), list(&before));
    if let Some(name) = before.iter().find(|name| !now.contains(**name) && !spec.forgets(name)) {
        return wrong(format!(
            "the checkpoint has state of `{name}`, which no operator of the pipeline keeps; it has state of \
             {before_list}, and the pipeline keeps state in {now_list} (`Job::forget_state` drops it)"
        ));
    }
    if let Some(name) = now.iter().find(|name| !before.contains(**name) && !spec.starts_empty(name)) {
        return wrong(format!(
            "`{name}` keeps state, and the checkpoint has none of it; it has state of {before_list}, and the pipeline \
             keeps state in {now_list} (`Job::start_empty` lets it begin with none)"
        ));
    }
    for (_, name, types) in stateful(graph) {
        let Some(known) = manifest.operators.iter().find(|operator| operator.name == name) else { continue };
        if !known.types.are(&types) {
            return wrong(format!(
                "the state of `{name}` is of another type than before: it is {types} now, and was {}",
                known.types
            ));
        }
    }
    let sources: BTreeSet<&str> = sources(graph).collect();
    let read: BTreeSet<&str> = manifest.sources.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(name) = read.iter().find(|name| !sources.contains(**name) && !spec.forgets(name)) {
        return wrong(format!(
            "the checkpoint has positions of source `{name}`, which the pipeline does not read; it has positions of \
             {}, and the pipeline reads {} (`Job::forget_state` drops them)",
            list(&read),
            list(&sources)
        ));
    }
    Ok(())
}
