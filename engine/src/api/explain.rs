//! What a pipeline will run, shown before it runs.

use std::fmt;

use serde::Serialize;

use crate::operator::fault::Node;
use crate::run::graph::{Graph, NodeInfo, NodeKind};

/// What a job will run; see [`Job::explain`](super::Job::explain). Its text
/// ([`Display`](fmt::Display)) has a line for each operator and each node; through serde it is
/// data.
///
/// An *operator* is a unit of the dataflow. Fused nodes share one: records go from one to the next
/// as function calls on whole batches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct Explanation {
    /// The job's name.
    pub job: String,
    /// The number of workers. Each has all operators.
    pub workers: usize,
    /// The trigger, such as `continuous`.
    pub trigger: String,
    /// The operators, in the order in which the pipeline creates them.
    pub operators: Vec<ExplainedOperator>,
}

/// An operator of an [`Explanation`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct ExplainedOperator {
    /// Its number, counted from 1.
    pub number: usize,
    /// The numbers of the operators that it reads from; none when it begins with a source.
    pub reads_from: Vec<usize>,
    /// Whether records may go to another worker on their way into it.
    pub changes_workers: bool,
    /// Its nodes. They are fused, in this order where one reads the other.
    pub nodes: Vec<ExplainedNode>,
}

/// A source, stage or sink of an [`ExplainedOperator`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct ExplainedNode {
    /// Whether it is a source, a stage or a sink.
    pub kind: NodeKind,
    /// Its name, as in reports and errors.
    pub name: String,
    /// What it is, such as `map`; the same as its name unless the pipeline named it.
    pub what: String,
    /// The names of the nodes that it reads.
    pub inputs: Vec<String>,
    /// The source whose own chain it is part of, where records have not met those of other
    /// partitions.
    pub own_chain_of: Option<String>,
    /// Whether it keeps state about records that it has handed on.
    pub keeps_state: bool,
    /// Whether it waits until epochs are complete.
    pub waits_for_epochs: bool,
}

impl Explanation {
    pub(super) fn of(job: String, workers: usize, trigger: String, graph: &Graph) -> Explanation {
        let count = graph.nodes.iter().map(|node| node.operator + 1).max().unwrap_or(0);
        let operators = (0..count).map(|operator| ExplainedOperator::of(operator, graph)).collect();
        Explanation { job, workers, trigger, operators }
    }
}

impl ExplainedOperator {
    fn of(operator: usize, graph: &Graph) -> ExplainedOperator {
        let nodes = || graph.nodes.iter().filter(|node| node.operator == operator);
        let inputs = nodes().flat_map(|node| &node.inputs).map(|input| graph.nodes[input.from.0].operator);
        let mut reads_from: Vec<usize> = inputs.filter(|from| *from != operator).map(|from| from + 1).collect();
        reads_from.dedup();
        ExplainedOperator {
            number: operator + 1,
            reads_from,
            changes_workers: nodes().any(|node| node.traits.exchanges),
            nodes: nodes().map(|node| ExplainedNode::of(node, graph)).collect(),
        }
    }
}

impl ExplainedNode {
    fn of(node: &NodeInfo, graph: &Graph) -> ExplainedNode {
        let name = |node: Node| graph.name(node).to_owned();
        ExplainedNode {
            kind: node.kind,
            name: node.name.clone(),
            what: node.what.clone(),
            inputs: node.inputs.iter().map(|input| name(input.from)).collect(),
            own_chain_of: node.own_chain_of.map(name),
            keeps_state: node.traits.keeps_state,
            waits_for_epochs: node.traits.waits_for_epochs,
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (job, trigger, workers) = (&self.job, &self.trigger, self.workers);
        writeln!(f, "{job}: {trigger}, workers: {workers}")?;
        self.operators.iter().try_for_each(|operator| write!(f, "{operator}"))
    }
}

impl fmt::Display for ExplainedOperator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "operator {}", self.number)?;
        if !self.reads_from.is_empty() {
            let numbers: Vec<String> = self.reads_from.iter().map(usize::to_string).collect();
            write!(f, ", reads from {}", numbers.join(" and "))?;
        }
        if self.changes_workers {
            f.write_str(", records change workers")?;
        }
        writeln!(f)?;
        self.nodes.iter().try_for_each(|node| write!(f, "{node}"))
    }
}

impl fmt::Display for ExplainedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:7} {}", self.kind.to_string(), self.name)?;
        if self.name != self.what {
            write!(f, " ({})", self.what)?;
        }
        if !self.inputs.is_empty() {
            write!(f, " <- {}", self.inputs.join(", "))?;
        }
        for (fact, holds) in [("keeps state", self.keeps_state), ("waits for epochs", self.waits_for_epochs)] {
            if holds {
                write!(f, ", {fact}")?;
            }
        }
        writeln!(f)
    }
}
