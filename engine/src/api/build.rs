//! How a worker's dataflow is built.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use timely::dataflow::Scope;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::epoch::gather::Ends;
use crate::io::{Reader, Sink, Source};
use crate::operator::egress;
use crate::operator::fault::Node;
use crate::operator::ingest::{self, SourceIndex};
use crate::operator::marks::{Board, Rule};
use crate::operator::stage::{Consume, Counts, Tail, Within};
use crate::operator::timed::Timing;
use crate::operator::watermark::{MILLISECOND, Report};
use crate::run::plan::{Meter, Plan};
use crate::run::shared::Run;
use crate::words::{EventTime, Result, SinkMeter, Wake, Worker};

use super::trial::Trial;

/// The dataflow of a worker, while it is built.
pub(super) struct Build<'a> {
    pub(super) scope: Scope<'a, u64>,
    pub(super) run: Arc<Run>,
    pub(super) ends: RefCell<Ends<'a>>,
    /// By the node: what is known of event time at a source, and what sources and operators report.
    boards: RefCell<BTreeMap<Node, Rc<Board>>>,
    pub(super) reports: RefCell<BTreeMap<Node, Reports<'a>>>,
    pub(super) trial: Option<Arc<Trial>>,
}

/// What a source or an operator reports of event time.
pub(super) type Reports<'a> = timely::dataflow::Stream<'a, u64, Vec<Report>>;

impl<'a> Build<'a> {
    pub(super) fn new(scope: Scope<'a, u64>, run: Arc<Run>, trial: Option<Arc<Trial>>) -> Build<'a> {
        let (ends, boards, reports) = (RefCell::default(), RefCell::default(), RefCell::default());
        Build { scope, run, ends, boards, reports, trial }
    }

    fn worker(&self) -> Worker {
        let worker = self.scope.worker();
        Worker { index: worker.index(), peers: worker.peers() }
    }

    pub(super) fn ingest<S: Source>(&self, node: Node, index: usize, tail: Tail<'a, S::Item>) -> Result<()> {
        let (run, worker) = (&self.run, self.worker());
        let (planned, shared) = run.plan.source::<S::Shared>(index)?;
        let Meter::Source(meter) = &run.plan.meters[node.0] else { unreachable!("the node was created as a source") };
        let setting = ingest::Setting {
            node,
            name: run.plan.name(node).to_owned(),
            source: SourceIndex(index),
            worker: worker.index,
            release: run.release,
            pulse: Arc::clone(&run.pulse),
            budget: Arc::clone(&run.budgets[worker.index]),
            stall: run.stalls[worker.index].clone(),
            clock: run.clock.clone(),
            fault: Arc::clone(&run.fault),
            meter: Arc::clone(meter),
            intake: Arc::clone(&planned.intake),
            drains: planned.drains[worker.index].clone(),
            marks: self.boards.borrow().get(&node).cloned(),
            workers: worker.peers,
            control: run.control.clone(),
        };
        let trial = self.trial.clone();
        let reader = move |wake: Wake| {
            let reader: Box<dyn Reader<Item = S::Item>> = Box::new(S::reader(&shared, worker, wake.clone())?);
            Ok(match trial {
                None => reader,
                Some(trial) => trial.reader(index, reader, wake),
            })
        };
        let told = ingest::build(self.scope, setting, reader, tail)?;
        self.ends.borrow_mut().ledgers.push(told.ledger);
        if let Some(reports) = told.reports {
            self.reports.borrow_mut().insert(node, reports);
        }
        Ok(())
    }

    /// Ends a chain in a sink's writer.
    pub(super) fn egress<T: 'static, S: Sink<T>>(
        &self,
        builder: &mut OperatorBuilder<'a, u64>,
        node: Node,
        index: usize,
    ) -> Result<Box<dyn Consume<T>>> {
        let (run, worker) = (&self.run, self.worker());
        let shared = run.plan.sink::<S::Shared>(index)?;
        let meter = sink_meter(&run.plan, node);
        let setting = egress::Setting {
            pulse: Arc::clone(&run.pulse),
            clock: run.clock.clone(),
            meter: Arc::clone(&meter),
            stall: run.stalls[worker.index].clone(),
        };
        let (egress, shown) = egress::end(self.scope, builder, setting, |wake| S::writer(&shared, worker, wake))?;
        self.ends.borrow_mut().egresses.push(shown);
        Ok(Box::new(Within::new((node, run.plan.name(node).to_owned()), Counts::Sink(meter), egress)))
    }

    /// How an operator learns the event time, if it waits for it.
    /// Where it is strict, see [`Operate::IS_STRICT`](crate::operator::keyed::Operate::IS_STRICT).
    pub(super) fn timing(&self, node: Node, name: &str, is_strict: bool) -> Option<Timing<'a>> {
        let graph = &self.run.plan.graph;
        let time = graph.nodes[node.0].traits.time;
        if !time.waits() {
            return None;
        }
        let (all, worker) = (self.reports.borrow(), self.worker());
        let reporters = graph.reporters(node);
        if reporters.is_empty() {
            return None;
        }
        let policy = graph.policy(node);
        // Spark judges by the watermark alone, whatever the time of a row is.
        let is_lowered = |reporter: &Node| is_strict && !policy.is_max_seen() && graph.may_emit_at(*reporter);
        let lowered: Vec<Node> = reporters.iter().copied().filter(is_lowered).collect();
        let reports: Vec<_> = reporters.iter().filter_map(|reporter| all.get(reporter).cloned()).collect();
        let restored = self.run.restored.as_ref();
        Some(Timing {
            reporters: reports.len() * worker.peers,
            reports,
            own: (node, worker.index),
            workers: worker.peers,
            back: time.back(),
            behind: graph.behind(node) + if lowered.is_empty() { Duration::ZERO } else { MILLISECOND },
            lowered,
            policy,
            watermark: restored.map_or(EventTime::NONE, |restored| restored.watermark(name)),
        })
    }

    /// Opens the board of the source whose own chain that node is part of.
    pub(super) fn open_board(&self, node: Node, rule: Rule) -> Option<Rc<Board>> {
        let plan = &self.run.plan;
        let source = plan.graph.nodes.get(node.0)?.own_chain_of?;
        let index = plan.sources.iter().position(|planned| planned.node == source);
        let restored = index.and_then(|index| plan.memory.offsets.get(index)).map(|before| before.times().clone());
        let board =
            Rc::new(Board::new(rule, plan.graph.closes_by_time(), restored.unwrap_or_default(), self.run.clock.now()));
        self.boards.borrow_mut().insert(source, Rc::clone(&board));
        Some(board)
    }
}

/// What a sink counts.
pub(super) fn sink_meter(plan: &Plan, node: Node) -> Arc<SinkMeter> {
    match &plan.meters[node.0] {
        Meter::Sink(meter) => Arc::clone(meter),
        Meter::Source(_) | Meter::Stage(_) => unreachable!("the node was created as a sink"),
    }
}
