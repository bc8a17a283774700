//! The beginning of a pipeline: where sources are opened, in the plan and on each worker alike.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use timely::dataflow::Scope;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::epoch::gather;
use crate::io::{Claims, OpenSink, OpenSource, Paced, SharedSource, Sink, Source, Wake};
use crate::operator::egress::{self, Frontiers};
use crate::operator::fault::Node;
use crate::operator::ingest::{self, Piece, SourceIndex};
use crate::operator::intake::Limits;
use crate::operator::recall::Recalls;
use crate::operator::stage::{Chain, Consume, Tail};
use crate::run::control::Event;
use crate::run::plan::{Meter, NodeInfo, Pipeline, Plan, PlannedSink, PlannedSource, Planning, Run, differs};
use crate::words::{Bytes, Error, ErrorKind, Result, SinkMeter, StageMeter, Worker};

use super::stream::Stream;

/// What a pipeline function is given: it opens sources, and what it opens flows.
///
/// The function runs once to be counted, once more to be planned, where sources and sinks connect and mistakes are errors,
/// and then once on each worker. It must build the same pipeline each time and have no other effect.
pub struct Flow<'a> {
    inner: Rc<Inner<'a>>,
}

struct Inner<'a> {
    mode: Mode<'a>,
    nodes: Cell<usize>,
    sources: Cell<usize>,
    sinks: Cell<usize>,
}

enum Mode<'a> {
    /// Only counts sources and sinks, because memory is divided among them before the first of them connects.
    Count,
    Plan(Rc<RefCell<Draft<'a>>>),
    Build(Build<'a>),
}

/// A plan that is being made.
struct Draft<'a> {
    planning: &'a Planning,
    plan: Plan,
    /// How many sources and sinks there will be.
    sources: usize,
    sinks: usize,
    /// Streams that were dropped before they reached a sink.
    loose: Vec<Node>,
    /// Names that the pipeline gave.
    named: Vec<Node>,
    claims: Claims,
    /// An option of a source that stands behind something else.
    misplaced: Option<(&'static str, Node)>,
}

/// A worker's dataflow that is being built.
struct Build<'a> {
    scope: Scope<'a, u64>,
    run: Arc<Run>,
    ledgers: RefCell<Vec<timely::dataflow::Stream<'a, u64, Vec<Piece>>>>,
    frontiers: RefCell<Vec<Frontiers<'a>>>,
    error: RefCell<Option<Error>>,
}

/// The node of what is not planned.
const NOWHERE: Node = Node(usize::MAX);

impl<'a> Flow<'a> {
    fn new(mode: Mode<'a>) -> Flow<'a> {
        Flow { inner: Rc::new(Inner { mode, nodes: Cell::new(0), sources: Cell::new(0), sinks: Cell::new(0) }) }
    }

    pub(crate) fn share(&self) -> Flow<'a> {
        Flow { inner: Rc::clone(&self.inner) }
    }

    /// Opens a source.
    ///
    /// # Errors
    /// When the source cannot be opened: a wrong option, or the other side is absent, refuses, or does not have what
    /// was asked for.
    pub fn source<S: Source>(&self, source: S) -> Result<Stream<'a, S::Item>> {
        let index = self.inner.sources.replace(self.inner.sources.get() + 1);
        let kind = source.name();
        match &self.inner.mode {
            Mode::Count => Ok(Stream::planned(self.share(), NOWHERE)),
            Mode::Plan(draft) => {
                let meter = Meter::Source(Arc::default());
                let node = self.plan_node(&kind, meter);
                let open = draft.borrow().open_source(index);
                let shared = Arc::new(source.connect(open)?);
                draft.borrow_mut().add_source(node, shared);
                Ok(Stream::planned(self.share(), node))
            }
            Mode::Build(_) => {
                let node = self.node(&kind)?;
                let flow = self.share();
                let chain: Chain<'a, S::Item> = Box::new(move |tail| {
                    let Mode::Build(build) = &flow.inner.mode else { unreachable!("a chain is built on a worker") };
                    let ledger = build.ingest::<S>(node, index, tail)?;
                    build.ledgers.borrow_mut().push(ledger);
                    Ok(())
                });
                Ok(Stream::chain(self.share(), node, chain))
            }
        }
    }

    /// Ends a stream in a sink.
    pub(crate) fn sink<T: 'static, S: Sink<T>>(&self, sink: S, stream: Stream<'a, T>) -> Result<()> {
        let index = self.inner.sinks.replace(self.inner.sinks.get() + 1);
        let kind = sink.name();
        match &self.inner.mode {
            Mode::Count => {
                stream.consumed();
                Ok(())
            }
            Mode::Plan(draft) => {
                let meter = draft.borrow().sink_meter();
                self.plan_node(&kind, Meter::Sink(Arc::clone(&meter)));
                stream.consumed();
                let open = draft.borrow().open_sink(meter);
                let shared = Arc::new(sink.connect(open)?);
                draft.borrow_mut().plan.sinks.push(PlannedSink { shared: Arc::clone(&shared) as _, typed: shared });
                Ok(())
            }
            Mode::Build(_) => {
                let node = self.node(&kind)?;
                let chain = stream.into_chain().ok_or_else(differs)?;
                let flow = self.share();
                let tail: Tail<'a, T> = Box::new(move |builder| {
                    let Mode::Build(build) = &flow.inner.mode else { unreachable!("a chain is built on a worker") };
                    build.egress::<T, S>(builder, node, index)
                });
                chain(tail)
            }
        }
    }

    /// The next node of the pipeline, a stage that makes `U` of `T`.
    pub(crate) fn stage_node<T, U>(&self, kind: &str) -> Node {
        match &self.inner.mode {
            Mode::Count => NOWHERE,
            Mode::Plan(_) => {
                let sizes = (size_of::<T>(), size_of::<U>());
                self.plan_node(kind, Meter::Stage(Arc::new(StageMeter { sizes, ..StageMeter::default() })))
            }
            Mode::Build(_) => self.node(kind).unwrap_or_else(|error| {
                self.fail(error);
                NOWHERE
            }),
        }
    }

    fn plan_node(&self, kind: &str, meter: Meter) -> Node {
        let Mode::Plan(draft) = &self.inner.mode else { unreachable!("nodes are added to a plan only") };
        let mut draft = draft.borrow_mut();
        let node = Node(draft.plan.nodes.len());
        // By kind and position, which is what identifies an operator that has no name of its own.
        let same = draft.plan.nodes.iter().filter(|other| other.kind == kind).count();
        let name = if same == 0 { kind.to_owned() } else { format!("{kind} {}", same + 1) };
        draft.plan.nodes.push(NodeInfo { kind: kind.to_owned(), name, meter });
        node
    }

    fn node(&self, kind: &str) -> Result<Node> {
        let Mode::Build(build) = &self.inner.mode else { unreachable!("nodes are looked up on a worker") };
        let node = Node(self.inner.nodes.replace(self.inner.nodes.get() + 1));
        match build.run.plan.nodes.get(node.0) {
            Some(info) if info.kind == kind => Ok(node),
            _ => Err(differs()),
        }
    }

    pub(crate) fn rename(&self, node: Node, name: &str) {
        if let Mode::Plan(draft) = &self.inner.mode {
            let mut draft = draft.borrow_mut();
            name.clone_into(&mut draft.plan.nodes[node.0].name);
            draft.named.push(node);
        }
    }

    /// Records change workers somewhere.
    pub(crate) fn exchanges(&self) {
        if let Mode::Plan(draft) = &self.inner.mode {
            draft.borrow_mut().plan.exchanges = true;
        }
    }

    /// Limits the source of that node; `option` is what limits it.
    pub(crate) fn limit(&self, node: Node, option: &'static str, limit: impl FnOnce(&mut Limits)) {
        let Mode::Plan(draft) = &self.inner.mode else { return };
        let mut draft = draft.borrow_mut();
        match draft.plan.sources.iter().find(|source| source.node == node) {
            Some(source) => {
                let mut limits = source.intake.limits();
                limit(&mut limits);
                source.intake.set(limits);
            }
            None => drop(draft.misplaced.get_or_insert((option, node))),
        }
    }

    pub(crate) fn stage_meter(&self, node: Node) -> Arc<StageMeter> {
        match &self.inner.mode {
            Mode::Build(build) => match build.run.plan.nodes.get(node.0).map(|info| &info.meter) {
                Some(Meter::Stage(meter)) => Arc::clone(meter),
                _ => Arc::default(),
            },
            Mode::Count | Mode::Plan(_) => Arc::default(),
        }
    }

    pub(crate) fn stage_name(&self, node: Node) -> String {
        self.building().map_or_else(String::new, |(_, run)| run.plan.name(node).to_owned())
    }

    /// The scope and run of a worker; `None` in the plan.
    pub(crate) fn building(&self) -> Option<(Scope<'a, u64>, &Arc<Run>)> {
        match &self.inner.mode {
            Mode::Build(build) => Some((build.scope, &build.run)),
            Mode::Count | Mode::Plan(_) => None,
        }
    }

    /// A stream was dropped before it reached a sink.
    pub(crate) fn loose(&self, node: Node) {
        if let Mode::Plan(draft) = &self.inner.mode {
            draft.borrow_mut().loose.push(node);
        }
    }

    /// A chain could not be built; the worker says so when the pipeline function returns.
    pub(crate) fn fail(&self, error: Error) {
        if let Mode::Build(build) = &self.inner.mode {
            build.error.borrow_mut().get_or_insert(error);
        }
    }
}

impl fmt::Debug for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.mode {
            Mode::Count | Mode::Plan(_) => f.write_str("Flow of a plan"),
            Mode::Build(build) => write!(f, "Flow of worker {}", build.scope.worker().index()),
        }
    }
}

impl Draft<'_> {
    fn open_source(&self, index: usize) -> OpenSource {
        let planning = self.planning;
        let before = planning.trial.as_ref().and_then(|trial| trial.start(index));
        OpenSource {
            job: planning.job.clone(),
            workers: planning.workers,
            prefetch: Bytes(planning.memory.0 / 4 / self.sources.max(1) as u64),
            bounded: planning.bounded,
            compared: planning.trial.is_some(),
            resume: before.or_else(|| planning.resume.get(index).cloned()).filter(|offsets| !offsets.is_empty()),
            clock: planning.clock.clone(),
            wake: planning.control.clone(),
            claims: self.claims.of_source(index),
        }
    }

    fn sink_meter(&self) -> Arc<SinkMeter> {
        let Some(trial) = &self.planning.trial else { return Arc::default() };
        let meter = Arc::new(SinkMeter::compared());
        trial.sink(&meter);
        meter
    }

    fn open_sink(&self, meter: Arc<SinkMeter>) -> OpenSink {
        let planning = self.planning;
        OpenSink {
            job: planning.job.clone(),
            workers: planning.workers,
            buffer: Bytes(planning.memory.0 / 4 / self.sinks.max(1) as u64),
            clock: planning.clock.clone(),
            wake: planning.control.clone(),
            meter,
        }
    }

    fn add_source<S: SharedSource>(&mut self, node: Node, shared: Arc<S>) {
        let recalls = (0..self.planning.workers).map(|_| Recalls::default()).collect();
        let turn = self.planning.trial.as_ref().map(|trial| trial.turn(shared.started_at()));
        let intake = Arc::default();
        let planned = PlannedSource { node, shared: Arc::clone(&shared) as _, typed: shared, recalls, intake, turn };
        self.plan.sources.push(planned);
    }

    /// What can be known to be wrong before anything flows.
    fn check(&self) -> Result<()> {
        let wrong = |doing: String| Err(Error::new(ErrorKind::Pipeline, doing));
        if self.plan.sources.is_empty() {
            return wrong("the pipeline is empty: it opens no source".to_owned());
        }
        if let Some(loose) = self.loose.first() {
            return wrong(format!("the stream after `{}` does not reach a sink", self.plan.name(*loose)));
        }
        if let Some((option, node)) = &self.misplaced {
            let name = self.plan.name(*node);
            return wrong(format!("`{option}` limits a source and must stand right behind it, not behind `{name}`"));
        }
        for source in &self.plan.sources {
            let limits = source.intake.limits();
            let name = self.plan.name(source.node);
            if limits.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
                return wrong(format!("`{name}`: `rate_at_most` must be a finite number greater than zero"));
            }
            if limits.batch == Some(0) {
                return wrong(format!("`{name}`: `batch_at_most` must be greater than zero"));
            }
        }
        for node in &self.named {
            let name = self.plan.name(*node);
            if self.plan.nodes.iter().filter(|other| other.name == name).count() > 1 {
                return wrong(format!("two operators are named `{name}`: a name identifies its operator"));
            }
        }
        Ok(())
    }
}

impl<'a> Build<'a> {
    fn worker(&self) -> Worker {
        let worker = self.scope.worker();
        Worker { index: worker.index(), peers: worker.peers() }
    }

    fn ingest<S: Source>(
        &self,
        node: Node,
        index: usize,
        tail: Tail<'a, S::Item>,
    ) -> Result<timely::dataflow::Stream<'a, u64, Vec<Piece>>> {
        let (run, worker) = (&self.run, self.worker());
        let (planned, shared) = run.source::<S::Shared>(index)?;
        let Some(Meter::Source(meter)) = run.plan.nodes.get(planned.node.0).map(|info| &info.meter) else {
            return Err(differs());
        };
        let setting = ingest::Setting {
            node,
            name: run.plan.name(node).to_owned(),
            source: SourceIndex(index),
            worker: worker.index,
            release: run.release,
            pulse: Arc::clone(&run.pulse),
            budget: Arc::clone(&run.budgets[worker.index]),
            clock: run.clock.clone(),
            fault: Arc::clone(&run.fault),
            meter: Arc::clone(meter),
            intake: Arc::clone(&planned.intake),
            recalls: planned.recalls[worker.index].clone(),
            control: run.control.clone(),
        };
        let turn = planned.turn.as_ref();
        let reader = |wake: Wake| Ok(Paced::new(S::reader(&shared, worker, wake.clone())?, turn, wake));
        ingest::build(self.scope, setting, reader, tail)
    }

    /// Ends a chain in a sink's writer.
    fn egress<T: 'static, S: Sink<T>>(
        &self,
        builder: &mut OperatorBuilder<'a, u64>,
        node: Node,
        index: usize,
    ) -> Result<Box<dyn Consume<T>>> {
        let (run, worker) = (&self.run, self.worker());
        let shared = run.sink::<S::Shared>(index)?;
        let Some(Meter::Sink(meter)) = run.plan.nodes.get(node.0).map(|info| &info.meter) else {
            return Err(differs());
        };
        let setting = egress::Setting {
            node,
            name: run.plan.name(node).to_owned(),
            pulse: Arc::clone(&run.pulse),
            clock: run.clock.clone(),
            meter: Arc::clone(meter),
            stall: run.budgets[worker.index].stall().clone(),
        };
        let (end, frontiers) = egress::end(self.scope, builder, setting, |wake| S::writer(&shared, worker, wake))?;
        self.frontiers.borrow_mut().push(frontiers);
        Ok(end)
    }
}

/// The user's function as the floor below calls it.
pub(crate) struct Function<F>(pub(crate) F);

impl<F: Fn(&Flow<'_>) -> Result<()> + Send + Sync> Pipeline for Function<F> {
    fn plan(&self, planning: &Planning) -> Result<Plan> {
        let counted = Flow::new(Mode::Count);
        (self.0)(&counted)?;
        let draft = Draft {
            planning,
            plan: Plan::default(),
            sources: counted.inner.sources.get(),
            sinks: counted.inner.sinks.get(),
            loose: Vec::new(),
            named: Vec::new(),
            claims: Claims::default(),
            misplaced: None,
        };
        let draft = Rc::new(RefCell::new(draft));
        (self.0)(&Flow::new(Mode::Plan(Rc::clone(&draft))))?;
        draft.borrow().check()?;
        let plan = std::mem::take(&mut draft.borrow_mut().plan);
        Ok(plan)
    }

    fn build(&self, scope: Scope<'_, u64>, run: &Arc<Run>) -> Result<()> {
        let build = Build {
            scope,
            run: Arc::clone(run),
            ledgers: RefCell::default(),
            frontiers: RefCell::default(),
            error: RefCell::default(),
        };
        let flow = Flow::new(Mode::Build(build));
        (self.0)(&flow)?;
        let Mode::Build(build) = &flow.inner.mode else { unreachable!("it was made for building") };
        if let Some(error) = build.error.take() {
            return Err(error);
        }
        if flow.inner.nodes.get() != run.plan.nodes.len() {
            return Err(differs());
        }
        let events = run.events.clone();
        gather::build(
            scope,
            build.ledgers.take(),
            build.frontiers.take(),
            Arc::clone(&run.ticker),
            Arc::clone(&run.fault),
            move |gathered| events.send(Event::Gathered(gathered)),
        );
        Ok(())
    }
}
