//! What a job remembers of its runs: in its checkpoints, if it keeps any. Here a run learns where
//! it goes on, and whether what was kept fits its pipeline.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::epoch::commit::Memory;
use crate::operator::fault::Node;
use crate::state::recover::{Recovered, recover};
use crate::state::store::{Gate, Kept, Place, Store};
use crate::words::{CheckpointId, Error, ErrorKind, Offsets, Result, unique_name};

use super::graph::{Graph, NodeKind};
use super::spec::{Remembers, Spec};

/// Opens the place where a job keeps its checkpoints; `None` when it keeps none.
///
/// # Errors
/// When the directory cannot be used, or another job uses it.
pub(crate) fn open(spec: &Spec) -> Result<Option<Place>> {
    Ok(match &spec.remembers {
        Remembers::InDirectory(path) => Some(Place::directory(path)?),
        // A run that ends is not followed by another: its checkpoints would never be read.
        Remembers::InMemory if spec.restart.is_some() => Some(Place::memory()),
        Remembers::InMemory | Remembers::Nothing => None,
    })
}

/// The checkpoints as a run finds them, and the store for its own.
pub(crate) struct Resumed {
    pub(crate) recovered: Option<Arc<Recovered>>,
    pub(crate) store: Store,
    pub(crate) gate: Arc<Gate>,
    /// The operators that keep state, in the order in which the store knows them.
    pub(crate) kept: Vec<Node>,
}

impl Resumed {
    /// Finds the newest checkpoint, and checks that it fits the pipeline.
    ///
    /// # Errors
    /// When the checkpoints cannot be read, or do not fit.
    pub(crate) fn new(spec: &Spec, graph: &Graph, place: &Place) -> Result<Resumed> {
        let recovered = recover(place.disk(), &spec.job)?;
        let (kept, operators): (Vec<Node>, Vec<Kept>) = stateful(graph).unzip();
        if let Some(recovered) = &recovered {
            check(spec, graph, &operators, recovered)?;
        }
        let gate = Arc::<Gate>::default();
        let run = unique_name();
        let store = Store::begin(
            place.clone(),
            Arc::clone(&gate),
            (&spec.job, &run),
            recovered.as_ref(),
            sources(graph).map(str::to_owned).collect(),
            &operators,
        );
        let store = store.map_err(|cause| {
            Error::new(ErrorKind::Checkpoint, "cannot use the directory of checkpoints").caused_by(cause)
        })?;
        if let Some(recovered) = &recovered {
            tracing::info!(checkpoint = %recovered.manifest.checkpoint, "going on from a checkpoint");
        }
        Ok(Resumed { recovered: recovered.map(Arc::new), store, gate, kept })
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

/// The operators that keep state. Their types are looked at here, once in a run.
fn stateful(graph: &Graph) -> impl Iterator<Item = (Node, Kept)> {
    let nodes = graph.nodes.iter().enumerate();
    nodes.filter_map(|(index, node)| {
        let types = node.schema.as_ref()?.now.types();
        Some((Node(index), Kept { name: node.name.clone(), what: node.what.clone(), types }))
    })
}

/// Checks that what was kept has an owner in this pipeline, that operators with state find what was
/// kept of it, and that the types are the same.
fn check(spec: &Spec, graph: &Graph, operators: &[Kept], recovered: &Recovered) -> Result<()> {
    let manifest = &recovered.manifest;
    let wrong = |doing: String| Err(Error::new(ErrorKind::State, format!("job `{}`: {doing}", spec.job)));
    let now: BTreeSet<&str> = operators.iter().map(|kept| kept.name.as_str()).collect();
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
    for Kept { name, what, types } in operators {
        let Some(known) = manifest.operators.iter().find(|operator| operator.name == *name) else { continue };
        if known.types.are(types) {
            if known.what != *what {
                return wrong(format!(
                    "`{name}` is the operator `{what}` now, and what the checkpoint has of it was kept by `{}`: give it \
                     another name",
                    known.what
                ));
            }
            continue;
        }
        let node = graph.nodes.iter().find(|node| node.name == *name);
        let older = node.and_then(|node| node.schema.as_ref()).into_iter().flat_map(|schema| &schema.older);
        if !older.into_iter().any(|look| known.types.are(&look.types())) {
            let help = match known.types.key.is(&types.key) {
                true => "`Aggregated::migrate_from` converts the state of an aggregate",
                false => "keys cannot be converted: give it another name",
            };
            return wrong(format!(
                "the state of `{name}` is of another type than before: it is {types:#} now, and was {:#} ({help})",
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
