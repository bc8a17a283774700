//! The beginning of a pipeline: where sources are opened, and where sinks end it. The pipeline
//! function is called several times, in three modes; a node is created in all of them in the same
//! way.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use timely::dataflow::Scope;

use crate::epoch::gather::Ends;
use crate::io::{Claims, OpenSink, OpenSource, Resume, SharedSource, Sink, Source};
use crate::operator::drain::Drains;
use crate::operator::fault::Node;
use crate::operator::intake::{Intake, Limits};
use crate::operator::ledger::Piece;
use crate::operator::marks::{Board, Rule};
use crate::operator::stage::{self, Chain, Counts, Setting, Tail, Within};
use crate::operator::timed::Timing;
use crate::run::graph::{Emits, Graph, Input, NodeKind, NodeTraits};
use crate::run::plan::{Meter, Plan, PlannedSink, PlannedSource, Planning};
use crate::run::shared::{Pipeline, Run};
use crate::run::spec::Remembers;
use crate::state::describe::Schema;
use crate::words::{ByteSize, Error, Fingerprint, Offsets, Result, StageMeter};

use super::build::{Build, Reports, sink_meter};
use super::stream::Stream;
use super::trial::Trial;

/// The argument of a pipeline function: it opens sources, and streams flow from them.
///
/// The function is called once for what it builds, once more to connect sources and sinks, and then
/// once on each worker. It must build the same pipeline each time and must not have any other
/// effect.
pub struct Flow<'a> {
    inner: Rc<Inner<'a>>,
}

struct Inner<'a> {
    mode: Mode<'a>,
    nodes: Cell<usize>,
    sources: Cell<usize>,
    sinks: Cell<usize>,
    /// The first error that occurred where none can be returned.
    error: RefCell<Option<Error>>,
}

enum Mode<'a> {
    /// Nothing connects: the function only shows what it builds, so that memory can be divided,
    /// mistakes found and the pipeline explained beforehand.
    Sketch(RefCell<Graph>),
    /// Sources and sinks connect.
    Connect(Connect<'a>),
    /// The dataflow of a worker is built.
    Build(Build<'a>),
}

struct Connect<'a> {
    planning: &'a Planning,
    plan: RefCell<Plan>,
    claims: Claims,
    trial: Option<&'a Arc<Trial>>,
}

impl<'a> Flow<'a> {
    fn new(mode: Mode<'a>) -> Flow<'a> {
        let inner =
            Inner { mode, nodes: Cell::new(0), sources: Cell::new(0), sinks: Cell::new(0), error: RefCell::default() };
        Flow { inner: Rc::new(inner) }
    }

    pub(crate) fn share(&self) -> Flow<'a> {
        Flow { inner: Rc::clone(&self.inner) }
    }

    /// Opens a source.
    ///
    /// # Errors
    /// When the source cannot be opened: an option is wrong, or the other side is unreachable,
    /// refuses, or does not have what was asked for.
    pub fn source<S: Source>(&self, source: S) -> Result<Stream<'a, S::Item>> {
        let index = self.inner.sources.replace(self.inner.sources.get() + 1);
        let what = source.name();
        let node = self.node(NodeKind::Source, &what, &[], NodeTraits::default(), || Meter::Source(Arc::default()));
        self.failed()?;
        match &self.inner.mode {
            Mode::Sketch(_) => Ok(Stream::planned(self.share(), node, true)),
            Mode::Connect(connect) => {
                connect.source(node, index, source)?;
                Ok(Stream::planned(self.share(), node, true))
            }
            Mode::Build(_) => {
                let flow = self.share();
                let chain: Chain<'a, S::Item> = Box::new(move |tail| {
                    let Mode::Build(build) = &flow.inner.mode else { unreachable!("a chain is built on a worker") };
                    build.ingest::<S>(node, index, tail)
                });
                Ok(Stream::chain(self.share(), node, chain))
            }
        }
    }

    /// Ends a stream in a sink.
    pub(crate) fn sink<T: 'static, S: Sink<T>>(&self, sink: S, stream: Stream<'a, T>) -> Result<()> {
        let index = self.inner.sinks.replace(self.inner.sinks.get() + 1);
        let (what, input) = (sink.name(), stream.input());
        let node = self.node(NodeKind::Sink, &what, &[input], NodeTraits::default(), || Meter::Sink(Arc::default()));
        self.failed()?;
        match &self.inner.mode {
            Mode::Sketch(_) => {
                stream.consumed();
                Ok(())
            }
            Mode::Connect(connect) => {
                stream.consumed();
                connect.sink(node, sink)
            }
            Mode::Build(_) => {
                let chain = stream.into_chain().expect("on a worker a stream has a chain");
                let flow = self.share();
                let tail: Tail<'a, T> = Box::new(move |builder| {
                    let Mode::Build(build) = &flow.inner.mode else { unreachable!("a chain is built on a worker") };
                    build.egress::<T, S>(builder, node, index)
                });
                chain(tail)
            }
        }
    }

    /// The next node of the pipeline: a stage that turns `T` into `U`.
    pub(crate) fn stage_node<T, U>(&self, what: &str, inputs: &[Input], traits: NodeTraits) -> Node {
        let sizes = (size_of::<T>(), size_of::<U>());
        let meter = || Meter::Stage(Arc::new(StageMeter { sizes, ..StageMeter::default() }));
        self.node(NodeKind::Stage, what, inputs, traits, meter)
    }

    /// The next node: the sketch adds it, and all other modes compare it with that one.
    fn node(
        &self,
        kind: NodeKind,
        what: &str,
        inputs: &[Input],
        traits: NodeTraits,
        meter: impl FnOnce() -> Meter,
    ) -> Node {
        let node = Node(self.inner.nodes.replace(self.inner.nodes.get() + 1));
        let expected = match &self.inner.mode {
            Mode::Sketch(graph) => {
                graph.borrow_mut().add(kind, what, inputs, traits);
                Ok(())
            }
            Mode::Connect(connect) => {
                let mut plan = connect.plan.borrow_mut();
                plan.meters.push(meter());
                plan.graph.expect(node, kind, what, inputs)
            }
            Mode::Build(build) => build.run.plan.graph.expect(node, kind, what, inputs),
        };
        expected.unwrap_or_else(|error| self.fail(error));
        node
    }

    pub(crate) fn rename(&self, node: Node, name: &str) {
        if let Mode::Sketch(graph) = &self.inner.mode {
            graph.borrow_mut().rename(node, name);
        }
    }

    /// Whether nothing is built or connected yet.
    pub(crate) fn is_sketch(&self) -> bool {
        matches!(self.inner.mode, Mode::Sketch(_))
    }

    /// Notes that a node was asked for what it cannot do.
    pub(crate) fn refuse(&self, node: Node, why: String) {
        if let Mode::Sketch(graph) = &self.inner.mode {
            graph.borrow_mut().refuse(node, why);
        }
    }

    /// Says which types of state checkpoints keep of a node.
    pub(crate) fn keep(&self, node: Node, schema: Schema) {
        if let Mode::Sketch(graph) = &self.inner.mode {
            graph.borrow_mut().keep(node, schema);
        }
    }

    /// Limits the source of that node; `option` is the name of the limit.
    pub(crate) fn limit(&self, node: Node, option: &'static str, limit: impl FnOnce(&mut Limits)) {
        if let Mode::Sketch(graph) = &self.inner.mode {
            graph.borrow_mut().limit(node, option, limit);
        }
    }

    /// Notes that a stream was dropped before it reached a sink.
    pub(crate) fn loose(&self, node: Node) {
        if let Mode::Sketch(graph) = &self.inner.mode {
            graph.borrow_mut().loose(node);
        }
    }

    /// The place of a stage on its worker; `None` while nothing is built.
    pub(crate) fn place(&self, node: Node) -> Option<Place<'a>> {
        let Mode::Build(build) = &self.inner.mode else { return None };
        let Some(Meter::Stage(meter)) = build.run.plan.meters.get(node.0) else { return None };
        let (scope, run) = (build.scope, Arc::clone(&build.run));
        Some(Place { node, name: run.plan.name(node).to_owned(), meter: Arc::clone(meter), scope, run })
    }

    /// Where an operator says what it keeps at the end of the run, if that is to be compared.
    pub(crate) fn state_print(&self, node: Node) -> Option<Arc<Fingerprint>> {
        let Mode::Build(build) = &self.inner.mode else { return None };
        let graph = &build.run.plan.graph;
        let is_same = graph.follows(node) == Emits::ByRecords;
        build.trial.as_ref().filter(|_| is_same).map(|trial| trial.state(graph.name(node)))
    }

    /// Adds the ledger of a keyed operator for `gather`.
    pub(crate) fn ledger(&self, ledger: timely::dataflow::Stream<'a, u64, Vec<Piece>>) {
        if let Mode::Build(build) = &self.inner.mode {
            build.ends.borrow_mut().ledgers.push(ledger);
        }
    }

    /// Adds what a source or an operator reports of event time.
    pub(crate) fn reports(&self, node: Node, reports: Option<Reports<'a>>) {
        if let (Mode::Build(build), Some(reports)) = (&self.inner.mode, reports) {
            build.reports.borrow_mut().insert(node, reports);
        }
    }

    /// How an operator learns the event time, if it waits for it.
    pub(crate) fn timing(&self, node: Node, name: &str, is_strict: bool) -> Option<Timing<'a>> {
        let Mode::Build(build) = &self.inner.mode else { return None };
        build.timing(node, name, is_strict)
    }

    /// Opens the board of the source whose own chain that node is part of; `None` while nothing is
    /// built.
    pub(crate) fn open_board(&self, node: Node, rule: Rule) -> Option<Rc<Board>> {
        let Mode::Build(build) = &self.inner.mode else { return None };
        build.open_board(node, rule)
    }

    /// Keeps the first error that cannot be returned where it happens.
    pub(crate) fn fail(&self, error: Error) {
        self.inner.error.borrow_mut().get_or_insert(error);
    }

    fn failed(&self) -> Result<()> {
        self.inner.error.take().map_or(Ok(()), Err)
    }
}

/// A stage on a worker.
pub(crate) struct Place<'a> {
    pub(crate) node: Node,
    pub(crate) name: String,
    pub(crate) meter: Arc<StageMeter>,
    pub(crate) scope: Scope<'a, u64>,
    pub(crate) run: Arc<Run>,
}

impl Place<'_> {
    /// Runs the work of a stage as this node.
    pub(crate) fn within<W>(&self, work: W) -> Within<W> {
        Within::new((self.node, self.name.clone()), Counts::Stage(Arc::clone(&self.meter)), work)
    }

    /// The setting of an operator whose chain begins here with streams.
    pub(crate) fn setting(&self) -> Setting {
        setting(self.scope, &self.run)
    }
}

/// What an operator whose chain begins with streams shares with its worker.
fn setting(scope: Scope<'_, u64>, run: &Run) -> Setting {
    Setting {
        fault: Arc::clone(&run.fault),
        pulse: Arc::clone(&run.pulse),
        stall: run.stalls[scope.worker().index()].clone(),
        clock: run.clock.clone(),
        is_exchange: false,
    }
}

impl<'a> Flow<'a> {
    /// Begins the operator of a chain with the outputs of other operators.
    pub(crate) fn begin_chain<T: 'static>(
        &self,
        node: Node,
        ports: Vec<timely::dataflow::Stream<'a, u64, crate::words::Batch<T>>>,
        tail: Tail<'a, T>,
    ) -> Result<()> {
        let Mode::Build(build) = &self.inner.mode else { unreachable!("ports are of a worker") };
        let pact = || timely::dataflow::channels::pact::Pipeline;
        stage::build(build.scope, build.run.plan.name(node), ports, pact, setting(build.scope, &build.run), tail)
    }
}

impl fmt::Debug for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.inner.mode {
            Mode::Sketch(_) => f.write_str("Flow of a sketch"),
            Mode::Connect(_) => f.write_str("Flow of a plan"),
            Mode::Build(build) => write!(f, "Flow of worker {}", build.scope.worker().index()),
        }
    }
}

impl Connect<'_> {
    fn source<S: Source>(&self, node: Node, index: usize, source: S) -> Result<()> {
        let spec = &self.planning.spec;
        let (count, keeps_state, holds_state, times) = {
            let graph = &self.plan.borrow().graph;
            let times = (graph.has_watermark(node), graph.wants_times(node));
            (graph.count(NodeKind::Source), graph.keeps_state().is_some(), graph.holds_state(), times)
        };
        let before = self.planning.memory.offsets.get(index).cloned();
        let open = OpenSource {
            job: spec.job.clone(),
            workers: spec.workers,
            prefetch: ByteSize(spec.record_memory(holds_state).0 / 4 / count.max(1) as u64),
            extent: spec.extent,
            resume: match self.planning.is_from_checkpoint {
                true => Resume::Checkpoint(before.unwrap_or_else(Offsets::new)),
                false => Resume::OwnMemory(before.unwrap_or_else(Offsets::new)),
            },
            keeps_state: keeps_state || matches!(spec.remembers, Remembers::InDirectory(_)),
            is_checkpointed: self.planning.is_checkpointed,
            identity: self.planning.identity.clone(),
            has_watermark: times.0,
            wants_times: times.1,
            clock: spec.clock.clone(),
            wake: self.planning.control.clone(),
            claims: self.claims.of_source(index),
        };
        let open = match self.trial {
            None => open,
            Some(trial) => trial.open_source(index, &source.name(), source.can_be_read_again(), open)?,
        };
        // May block, so the plan is not borrowed.
        let typed = Arc::new(source.connect(open)?);
        let shared: Arc<dyn SharedSource> = Arc::clone(&typed) as _;
        let mut plan = self.plan.borrow_mut();
        let intake = Arc::new(Intake::default());
        intake.set(plan.graph.nodes[node.0].limits);
        plan.sources.push(PlannedSource {
            node,
            shared: self.trial.map_or_else(|| Arc::clone(&shared), |trial| trial.source(Arc::clone(&shared))),
            typed,
            drains: (0..spec.workers).map(|_| Drains::default()).collect(),
            intake,
        });
        Ok(())
    }

    fn sink<T, S: Sink<T>>(&self, node: Node, sink: S) -> Result<()> {
        let spec = &self.planning.spec;
        let (count, holds_state, meter) = {
            let plan = self.plan.borrow();
            (plan.graph.count(NodeKind::Sink), plan.graph.holds_state(), sink_meter(&plan, node))
        };
        let open = OpenSink {
            job: spec.job.clone(),
            workers: spec.workers,
            buffer: ByteSize(spec.record_memory(holds_state).0 / 4 / count.max(1) as u64),
            clock: spec.clock.clone(),
            wake: self.planning.control.clone(),
            fingerprint: self.trial.map(|trial| trial.sink(&meter, self.plan.borrow().graph.follows(node))),
        };
        let shared = Arc::new(sink.connect(open)?);
        let planned = PlannedSink { shared: Arc::clone(&shared) as _, typed: shared };
        self.plan.borrow_mut().sinks.push(planned);
        Ok(())
    }
}

/// The user's function as the floor below calls it.
pub(crate) struct Function<F> {
    function: F,
}

/// A pipeline function whose runs can be compared.
pub(crate) trait Comparable: Pipeline {
    /// The same function, with the adapters of a trial around its sources and sinks.
    fn compared(self: Arc<Self>, trial: Arc<Trial>) -> Arc<dyn Pipeline>;
}

struct Compared<F> {
    function: Arc<Function<F>>,
    trial: Arc<Trial>,
}

impl<F: Fn(&Flow<'_>) -> Result<()> + Send + Sync> Function<F> {
    pub(crate) fn new(function: F) -> Function<F> {
        Function { function }
    }

    fn sketched(&self) -> Result<Graph> {
        let flow = Flow::new(Mode::Sketch(RefCell::default()));
        (self.function)(&flow)?;
        let Mode::Sketch(graph) = &flow.inner.mode else { unreachable!("it was made for a sketch") };
        Ok(graph.take())
    }

    fn connected(&self, graph: Graph, planning: &Planning, trial: Option<&Arc<Trial>>) -> Result<Plan> {
        let plan = RefCell::new(Plan { graph, ..Plan::default() });
        let flow = Flow::new(Mode::Connect(Connect { planning, plan, claims: Claims::default(), trial }));
        (self.function)(&flow)?;
        flow.failed()?;
        let Mode::Connect(connect) = &flow.inner.mode else { unreachable!("it was made to connect") };
        let plan = connect.plan.take();
        plan.graph.expect_all(flow.inner.nodes.get())?;
        Ok(plan)
    }

    fn built<'a>(&self, scope: Scope<'a, u64>, run: &Arc<Run>, trial: Option<&Arc<Trial>>) -> Result<Ends<'a>> {
        let flow = Flow::new(Mode::Build(Build::new(scope, Arc::clone(run), trial.cloned())));
        (self.function)(&flow)?;
        flow.failed()?;
        run.plan.graph.expect_all(flow.inner.nodes.get())?;
        let Mode::Build(build) = &flow.inner.mode else { unreachable!("it was made for building") };
        Ok(build.ends.take())
    }
}

impl<F: Fn(&Flow<'_>) -> Result<()> + Send + Sync> Pipeline for Function<F> {
    fn sketch(&self) -> Result<Graph> {
        self.sketched()
    }

    fn connect(&self, graph: Graph, planning: &Planning) -> Result<Plan> {
        self.connected(graph, planning, None)
    }

    fn build<'a>(&self, scope: Scope<'a, u64>, run: &Arc<Run>) -> Result<Ends<'a>> {
        self.built(scope, run, None)
    }
}

impl<F: Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static> Comparable for Function<F> {
    fn compared(self: Arc<Self>, trial: Arc<Trial>) -> Arc<dyn Pipeline> {
        Arc::new(Compared { function: self, trial })
    }
}

impl<F: Fn(&Flow<'_>) -> Result<()> + Send + Sync> Pipeline for Compared<F> {
    fn sketch(&self) -> Result<Graph> {
        self.function.sketched()
    }

    fn connect(&self, graph: Graph, planning: &Planning) -> Result<Plan> {
        self.function.connected(graph, planning, Some(&self.trial))
    }

    fn build<'a>(&self, scope: Scope<'a, u64>, run: &Arc<Run>) -> Result<Ends<'a>> {
        self.function.built(scope, run, Some(&self.trial))
    }
}
