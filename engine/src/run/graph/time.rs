//! Who tells a stream its event time, and where that must be known.

use std::time::Duration;

use crate::operator::fault::Node;
use crate::words::{Error, ErrorKind, Result, WatermarkPolicy};

use super::{Graph, Input, NodeInfo, NodeKind};

/// How a stream gets its event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) policy: WatermarkPolicy,
    /// Whether it is the source that knows the times.
    pub(crate) of_source: bool,
    /// Whether they are those of the clock.
    pub(crate) by_clock: bool,
}

/// What a stage has to do with event time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum TimeTrait {
    /// It hands it on with the records.
    #[default]
    HandsOn,
    /// It is where a stream gets its event time and its watermark.
    Sets(Sets),
    /// It waits for the watermark. What it emits may be behind it by this time.
    WaitsFor(Duration),
    /// It waits for the watermark, and its rows have no event time.
    Uses,
    /// It hears of the watermark, of which nothing is due, and its rows have no event time.
    Hears,
    /// It reads event times, and hands them on.
    Reads,
    /// Its rows have none.
    Loses,
    /// It hands records on in later epochs, and holds the watermark back for them.
    Delays,
}

impl TimeTrait {
    fn needs_time(self) -> bool {
        self.closes() || matches!(self, TimeTrait::Hears | TimeTrait::Reads)
    }

    /// Whether it is told the watermark, where there is one.
    pub(crate) fn waits(self) -> bool {
        self.closes() || matches!(self, TimeTrait::Hears | TimeTrait::Delays)
    }

    /// Whether a new watermark may close something.
    fn closes(self) -> bool {
        matches!(self, TimeTrait::WaitsFor(_) | TimeTrait::Uses)
    }

    /// How far behind the watermark what it emits may be.
    pub(crate) fn back(self) -> Duration {
        match self {
            TimeTrait::WaitsFor(back) => back,
            _ => Duration::ZERO,
        }
    }
}

/// Who tells an operator the event time of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TimeOf {
    /// Sources and operators that report it.
    pub(crate) reporters: Vec<Node>,
    /// Where a part of the stream comes from that has none.
    without: Option<Node>,
    /// How its watermarks come about.
    policies: Vec<WatermarkPolicy>,
}

impl TimeOf {
    fn and(mut self, other: &TimeOf) -> TimeOf {
        let new = other.reporters.iter().filter(|node| !self.reporters.contains(node)).copied();
        self.reporters.extend(new.collect::<Vec<_>>());
        self.without = self.without.or(other.without);
        let new = other.policies.iter().filter(|policy| !self.policies.contains(policy)).copied();
        self.policies.extend(new.collect::<Vec<_>>());
        self
    }
}

impl Graph {
    /// Who tells the event time of what a node emits.
    pub(super) fn time_of(
        &self,
        (node, own_chain_of): (Node, Option<Node>),
        time: TimeTrait,
        inputs: &[Input],
    ) -> TimeOf {
        let without = |node| TimeOf { without: Some(node), ..TimeOf::default() };
        match time {
            TimeTrait::Sets(Sets { policy, .. }) => {
                TimeOf { reporters: own_chain_of.into_iter().collect(), without: None, policies: vec![policy] }
            }
            TimeTrait::WaitsFor(_) => TimeOf { reporters: vec![node], without: None, ..self.time_before(inputs) },
            TimeTrait::Delays => {
                let before = self.time_before(inputs);
                // Spark's rule judges by the watermark alone, and knows no records that wait.
                let is_spark = before.policies.iter().any(|policy| policy.is_max_seen());
                match before.without {
                    None if is_spark => without(node),
                    None => TimeOf { reporters: vec![node], ..before },
                    Some(_) => before,
                }
            }
            TimeTrait::Loses | TimeTrait::Uses | TimeTrait::Hears => without(node),
            TimeTrait::HandsOn | TimeTrait::Reads if inputs.is_empty() => without(node),
            TimeTrait::HandsOn | TimeTrait::Reads => self.time_before(inputs),
        }
    }

    fn time_before(&self, inputs: &[Input]) -> TimeOf {
        let before = inputs.iter().filter_map(|input| self.nodes.get(input.from.0));
        before.fold(TimeOf::default(), |time, node| time.and(&node.time))
    }

    /// Who tells a node the event time of its inputs.
    pub(crate) fn reporters(&self, node: Node) -> Vec<Node> {
        self.time_before(&self.nodes[node.0].inputs).reporters
    }

    /// Whether the stream of a source gets a watermark.
    pub(crate) fn has_watermark(&self, source: Node) -> bool {
        let sets = |info: &&NodeInfo| matches!(info.traits.time, TimeTrait::Sets(_));
        self.nodes.iter().filter(sets).any(|info| info.own_chain_of == Some(source))
    }

    /// Whether records may still come that have the very time which a node reports.
    pub(crate) fn may_emit_at(&self, reporter: Node) -> bool {
        let by_clock = |info: &&NodeInfo| matches!(info.traits.time, TimeTrait::Sets(Sets { by_clock: true, .. }));
        let is_clock = self.nodes.iter().filter(by_clock).any(|info| info.own_chain_of == Some(reporter));
        is_clock || self.nodes[reporter.0].traits.time.waits()
    }

    /// Whether the times of a source's records are asked for.
    pub(crate) fn wants_times(&self, source: Node) -> bool {
        let wants = |info: &&NodeInfo| matches!(info.traits.time, TimeTrait::Sets(Sets { of_source: true, .. }));
        self.nodes.iter().filter(wants).any(|info| info.own_chain_of == Some(source))
    }

    /// Whether a new watermark may close something.
    pub(crate) fn closes_by_time(&self) -> bool {
        self.nodes.iter().any(|info| info.traits.time.closes())
    }

    /// How far the event time of a node may be behind that of the sources: what the operators
    /// before it take off.
    pub(crate) fn behind(&self, node: Node) -> Duration {
        let before = self.reporters(node).into_iter().filter(|reporter| self.nodes[reporter.0].traits.time.waits());
        let all = before.map(|reporter| self.behind(reporter) + self.nodes[reporter.0].traits.time.back());
        all.max().unwrap_or_default()
    }

    /// How the watermark of a node comes about.
    pub(crate) fn policy(&self, node: Node) -> WatermarkPolicy {
        self.time_before(&self.nodes[node.0].inputs).policies.first().copied().unwrap_or_default()
    }

    /// Checks that Spark's rule is followed where there are micro-batches.
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn check_policies(&self, is_micro_batch: bool) -> Result<()> {
        let is_spark =
            |info: &&NodeInfo| matches!(info.traits.time, TimeTrait::Sets(sets) if sets.policy.is_max_seen());
        match self.nodes.iter().find(is_spark).filter(|_| !is_micro_batch) {
            None => Ok(()),
            Some(NodeInfo { name, .. }) => {
                let doing = format!(
                    "`{name}`: `WatermarkPolicy::MaxSeen` moves between micro-batches, and there are none: it needs \
                     `Trigger::MicroBatch`"
                );
                Err(Error::new(ErrorKind::Config, doing))
            }
        }
    }

    /// Checks that the event time is known wherever it is waited for.
    ///
    /// # Errors
    /// When it is not, or is set in the wrong place.
    pub(super) fn check_event_time(&self) -> Result<()> {
        let wrong = |doing: String| Err(Error::new(ErrorKind::Pipeline, doing));
        for info in &self.nodes {
            let (name, before) = (&info.name, self.time_before(&info.inputs));
            if matches!(info.traits.time, TimeTrait::Sets(_)) {
                if info.own_chain_of.is_none() {
                    return wrong(format!(
                        "`{name}` must stand behind its source, where the records of a partition are in order: behind `map`, `filter`, `flat_map`, `or_skip` and the like, and before a fork, a `union`, a change of workers or calls; it follows {}",
                        self.names(&info.inputs)
                    ));
                }
                if before.without.is_none() {
                    return wrong(format!("`{name}`: the stream has a watermark already"));
                }
            }
            if !info.traits.time.needs_time() {
                continue;
            }
            if before.policies.len() > 1 && before.without.is_none() {
                let policies: Vec<String> = before.policies.iter().map(|policy| format!("`{policy:?}`")).collect();
                return wrong(format!(
                    "`{name}` waits for event time, and its inputs follow different policies ({}): give them one",
                    policies.join(", ")
                ));
            }
            let Some(without) = before.without else { continue };
            let source = self.name(without);
            return wrong(match self.nodes[without.0].kind {
                NodeKind::Source if before.reporters.is_empty() => format!(
                    "`{name}` waits for event time, and the stream of `{source}` has no watermark: set one behind the source (`with_watermark`)"
                ),
                NodeKind::Source => format!(
                    "`{name}` waits for event time, and a part of its stream has no watermark, that of `{source}`: set one behind each source of the union (`with_watermark`)"
                ),
                NodeKind::Stage | NodeKind::Sink if self.nodes[without.0].traits.time == TimeTrait::Delays => format!(
                    "`{name}` waits for event time by `WatermarkPolicy::MaxSeen`, and `{source}` before it hands records \
                     on when their windows may have closed: make the calls behind the windows"
                ),
                NodeKind::Stage | NodeKind::Sink => {
                    format!("`{name}` waits for event time, and the rows of `{source}` have none")
                }
            });
        }
        Ok(())
    }
}
