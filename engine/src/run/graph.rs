//! What a pipeline function builds: nodes with their inputs, before anything connects. The function
//! is called several times and must build the same each time. The first call makes the graph, and
//! every other call is compared with it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::operator::fault::Node;
use crate::operator::intake::Limits;
use crate::state::describe::Schema;
use crate::words::{Error, ErrorKind, Result};

mod time;

pub(crate) use time::{Sets, TimeOf, TimeTrait};

/// A source, stage or sink of a pipeline.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) kind: NodeKind,
    /// Such as `map` or `kafka orders`.
    pub(crate) what: String,
    /// The name that the pipeline gave it, or else `what`, followed by a number if there are
    /// several.
    pub(crate) name: String,
    is_named: bool,
    pub(crate) inputs: Vec<Input>,
    /// The source whose own chain this node is part of: so far, its records have not met those of
    /// another partition.
    pub(crate) own_chain_of: Option<Node>,
    /// Which operator of the dataflow it is part of, counted from 0. Fused nodes share one.
    pub(crate) operator: usize,
    pub(crate) traits: NodeTraits,
    /// Who tells the event time of what it emits.
    pub(crate) time: TimeOf,
    /// The types of the state that checkpoints keep of it.
    pub(crate) schema: Option<Schema>,
    /// Limits how much of a source is read.
    pub(crate) limits: Limits,
}

/// The kind of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NodeKind {
    /// Records enter here.
    Source,
    /// Records are processed here.
    Stage,
    /// Records leave here.
    Sink,
}

/// What a stage does in addition to turning records into records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeTraits {
    /// Records change workers before it.
    pub(crate) exchanges: bool,
    /// It is the beginning of an operator, although records do not change workers before it.
    pub(crate) begins_chain: bool,
    /// It keeps records for a while and hands them on at another time, as calls do: what follows it
    /// is not a source's own chain any more.
    pub(crate) keeps_records: bool,
    /// It keeps state about records that it has handed on.
    pub(crate) keeps_state: bool,
    /// It waits until epochs are complete.
    pub(crate) waits_for_epochs: bool,
    pub(crate) time: TimeTrait,
    pub(crate) emits: Emits,
    /// How long what it emits as a whole may wait, if it was asked to emit before the checkpoint.
    pub(crate) every: Option<Duration>,
}

/// Whether what a stage emits depends on when batches close, and so on the trigger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Emits {
    /// The same under each trigger.
    #[default]
    ByRecords,
    /// The last values that it emits are the same under each trigger.
    LastValues,
    /// What each batch leads to.
    PerBatch,
}

impl Emits {
    fn and(self, other: Emits) -> Emits {
        match (self, other) {
            (Emits::PerBatch, _) | (_, Emits::PerBatch) => Emits::PerBatch,
            (Emits::LastValues, _) | (_, Emits::LastValues) => Emits::LastValues,
            (Emits::ByRecords, Emits::ByRecords) => Emits::ByRecords,
        }
    }
}

/// A stream that a node reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Input {
    /// The node that it comes from.
    pub(crate) from: Node,
    /// Whether it is the end of a chain that can be extended. The output of a fork or a branch is
    /// not.
    pub(crate) is_chain: bool,
}

/// The nodes of a pipeline, in the order in which its function creates them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<NodeInfo>,
    operators: usize,
    /// Streams that were dropped before they reached a sink.
    loose: Vec<Node>,
    /// An option of a source that was set on another node.
    misplaced: Option<(&'static str, Node)>,
    /// What a node cannot do.
    refused: Option<(Node, String)>,
}

impl Graph {
    /// Adds a node.
    pub(crate) fn add(&mut self, kind: NodeKind, what: &str, inputs: &[Input], traits: NodeTraits) -> Node {
        let same = self.nodes.iter().filter(|other| other.what == what).count();
        let name = if same == 0 { what.to_owned() } else { format!("{what} {}", same + 1) };
        let chain = match inputs {
            [input] if input.is_chain && !traits.exchanges && !traits.begins_chain => self.nodes.get(input.from.0),
            _ => None,
        };
        let node = Node(self.nodes.len());
        let own_chain_of = match kind {
            NodeKind::Source => Some(node),
            NodeKind::Stage | NodeKind::Sink => {
                chain.and_then(|before| before.own_chain_of).filter(|_| !traits.keeps_records)
            }
        };
        let time = self.time_of((node, own_chain_of), traits.time, inputs);
        let operator = chain.map_or(self.operators, |before| before.operator);
        if chain.is_none() {
            self.operators += 1;
        }
        self.nodes.push(NodeInfo {
            kind,
            what: what.to_owned(),
            name,
            is_named: false,
            inputs: inputs.to_vec(),
            own_chain_of,
            operator,
            traits,
            time,
            schema: None,
            limits: Limits::default(),
        });
        node
    }

    /// Compares a node of a later call with that of the first.
    ///
    /// # Errors
    /// The first difference.
    pub(crate) fn expect(&self, node: Node, kind: NodeKind, what: &str, inputs: &[Input]) -> Result<()> {
        let now = || format!("{} after {}", described(kind, what), self.names(inputs));
        match self.nodes.get(node.0) {
            None => Err(differs(&format!("{}, which the first call did not", now()))),
            Some(own) if own.kind == kind && own.what == what && own.inputs == inputs => Ok(()),
            Some(own) => {
                let before = format!("{} after {}", described(own.kind, &own.what), self.names(&own.inputs));
                Err(differs(&format!("{} where the first call built {before}", now())))
            }
        }
    }

    /// Checks that a later call has not built fewer nodes than the first.
    ///
    /// # Errors
    /// The first node that is missing.
    pub(crate) fn expect_all(&self, nodes: usize) -> Result<()> {
        self.nodes.get(nodes).map_or(Ok(()), |missing| {
            Err(differs(&format!("nothing where the first call built {}", described(missing.kind, &missing.what))))
        })
    }

    fn names(&self, inputs: &[Input]) -> String {
        let names: Vec<String> = inputs.iter().map(|input| format!("`{}`", self.name(input.from))).collect();
        if names.is_empty() { "nothing".to_owned() } else { names.join(" and ") }
    }

    pub(crate) fn name(&self, node: Node) -> &str {
        self.nodes.get(node.0).map_or("unknown", |info| info.name.as_str())
    }

    /// Whether records change workers.
    pub(crate) fn exchanges(&self) -> bool {
        self.nodes.iter().any(|node| node.traits.exchanges)
    }

    /// What the records that a node gets depend on.
    pub(crate) fn follows(&self, node: Node) -> Emits {
        let inputs = self.nodes[node.0].inputs.iter().map(|input| self.emits(input.from));
        inputs.fold(Emits::ByRecords, Emits::and)
    }

    /// What the records that a node emits depend on.
    fn emits(&self, node: Node) -> Emits {
        let NodeInfo { traits, .. } = self.nodes[node.0];
        match self.follows(node) {
            // It takes batches for more than the last values in them.
            Emits::LastValues if traits.keeps_state => Emits::PerBatch,
            follows => follows.and(traits.emits),
        }
    }

    /// The name of the first operator that keeps state.
    pub(crate) fn keeps_state(&self) -> Option<&str> {
        self.nodes.iter().find(|node| node.traits.keeps_state).map(|node| node.name.as_str())
    }

    /// Whether an operator of that name keeps state.
    pub(crate) fn keeps_state_at(&self, name: &str) -> bool {
        self.nodes.iter().any(|node| node.traits.keeps_state && node.name == name)
    }

    /// Whether an operator holds anything that takes memory between batches, or for one.
    pub(crate) fn holds_state(&self) -> bool {
        self.nodes.iter().any(|node| node.traits.keeps_state || node.traits.waits_for_epochs)
    }

    /// A stage that keeps records before one that keeps state, which would wait for them at each
    /// cut.
    fn records_before_state(&self) -> Option<(&str, &str)> {
        // The last such stage before each node. Inputs come before what reads them.
        let mut before: Vec<Option<Node>> = Vec::new();
        for (index, info) in self.nodes.iter().enumerate() {
            let input = info.inputs.iter().find_map(|input| *before.get(input.from.0)?);
            if let Some(input) = input.filter(|_| info.traits.keeps_state) {
                return Some((self.name(input), &info.name));
            }
            let own = info.traits.keeps_records && !info.traits.keeps_state;
            before.push(own.then_some(Node(index)).or(input));
        }
        None
    }

    pub(crate) fn count(&self, kind: NodeKind) -> usize {
        self.nodes.iter().filter(|node| node.kind == kind).count()
    }

    /// Sets the name that the pipeline gives a node.
    pub(crate) fn rename(&mut self, node: Node, name: &str) {
        if let Some(info) = self.nodes.get_mut(node.0) {
            name.clone_into(&mut info.name);
            info.is_named = true;
        }
    }

    /// Sets the types of the state that checkpoints keep of a node.
    pub(crate) fn keep(&mut self, node: Node, schema: Schema) {
        if let Some(info) = self.nodes.get_mut(node.0) {
            info.schema = Some(schema);
        }
    }

    /// Checks that what a checkpoint keeps is found again by its name: without one, an operator is
    /// known by its kind and place, and another one before it would take its state.
    ///
    /// # Errors
    /// When two of a kind have no name.
    pub(crate) fn check_names(&self) -> Result<()> {
        let is_kept = |node: &&NodeInfo| node.schema.is_some() || node.kind == NodeKind::Source;
        let unnamed = || self.nodes.iter().filter(is_kept).filter(|node| !node.is_named);
        for node in unnamed() {
            if let Some(other) = unnamed().find(|other| other.what == node.what && other.name != node.name) {
                let (one, other) = (&node.name, &other.name);
                let doing = format!(
                    "checkpoints keep `{one}` and `{other}` by their names, and only their order tells them apart: \
                     name both (`named`)"
                );
                return Err(Error::new(ErrorKind::Pipeline, doing));
            }
        }
        Ok(())
    }

    /// Checks the times after which operators emit against that between checkpoints.
    ///
    /// # Errors
    /// When one of them cannot be.
    pub(crate) fn check_times(&self, checkpoint_every: Duration) -> Result<()> {
        let timed = self.nodes.iter().filter_map(|node| Some((&node.name, node.traits.every?)));
        for (name, every) in timed {
            let wrong = |doing: String| Err(Error::new(ErrorKind::Config, format!("`{name}`: {doing}")));
            if every.is_zero() {
                return wrong("`every` must be greater than zero".to_owned());
            }
            if every > checkpoint_every {
                return wrong(format!(
                    "`every({every:?})` must not be longer than the time between checkpoints, which emit all that has \
                     changed ({checkpoint_every:?}, `Job::checkpoint_every`)"
                ));
            }
        }
        Ok(())
    }

    /// Limits the source of that node; `option` is the name of the limit.
    pub(crate) fn limit(&mut self, node: Node, option: &'static str, limit: impl FnOnce(&mut Limits)) {
        match self.nodes.get_mut(node.0).filter(|info| info.kind == NodeKind::Source) {
            Some(source) => limit(&mut source.limits),
            None => drop(self.misplaced.get_or_insert((option, node))),
        }
    }

    /// Notes that a node was asked for what it cannot do.
    pub(crate) fn refuse(&mut self, node: Node, why: String) {
        self.refused.get_or_insert((node, why));
    }

    /// Notes that a stream of that node was dropped before it reached a sink.
    pub(crate) fn loose(&mut self, node: Node) {
        self.loose.push(node);
    }

    /// Checks what can be known to be wrong before anything connects.
    ///
    /// # Errors
    /// When the pipeline is wrong.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |doing: String| Err(Error::new(ErrorKind::Pipeline, doing));
        if self.count(NodeKind::Source) == 0 {
            return wrong("the pipeline is empty: it opens no source".to_owned());
        }
        if let Some(loose) = self.loose.first() {
            return wrong(format!("the stream after `{}` does not reach a sink", self.name(*loose)));
        }
        if let Some((option, node)) = &self.misplaced {
            let name = self.name(*node);
            return wrong(format!("`{option}` limits a source and must directly follow it, not `{name}`"));
        }
        if let Some((calls, state)) = self.records_before_state() {
            return wrong(format!(
                "`{calls}` makes calls before `{state}`, which keeps state: each checkpoint would wait until all of \
                 them are answered (`Calls::kept` keeps open calls in the checkpoint)"
            ));
        }
        self.check_event_time()?;
        if let Some((node, why)) = &self.refused {
            return wrong(format!("`{}`: {why}", self.name(*node)));
        }
        let mut names = BTreeMap::new();
        for info in &self.nodes {
            let (limits, name) = (info.limits, &info.name);
            if limits.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
                return wrong(format!("`{name}`: `rate_at_most` must be a finite number greater than zero"));
            }
            if limits.batch == Some(0) {
                return wrong(format!("`{name}`: `batch_at_most` must be greater than zero"));
            }
            let is_named_twice = names.insert(name, info.is_named).is_some_and(|before| before || info.is_named);
            if is_named_twice {
                return wrong(format!("two operators are named `{name}`: a name identifies its operator"));
            }
        }
        Ok(())
    }
}

fn described(kind: NodeKind, what: &str) -> String {
    format!("{kind} `{what}`")
}

/// The error of a pipeline function that built something different in a later call.
pub(crate) fn differs(what: &str) -> Error {
    let doing = format!("the pipeline function must build the same in each call, but a later call built {what}");
    Error::new(ErrorKind::Pipeline, doing)
}

impl fmt::Display for NodeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeKind::Source => "source",
            NodeKind::Stage => "stage",
            NodeKind::Sink => "sink",
        })
    }
}
