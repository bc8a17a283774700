//! Streams of records, and the stateless stages that process them.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::dataflow::channels::pact::Pipeline;

use crate::io::{KeyedSink, Sink};
use crate::operator::fault::Node;
use crate::operator::stage::{self, Chain, Consume, Next, Port, Split, Stage};
use crate::operator::{calls, exchange};
use crate::run::graph::{Input, NodeTraits};
use crate::words::{Batch, BatchValues, Error, Keyed, Result, TimedOut};

use super::calls::CallPolicy;
use super::calls::sealed::Parts;
use super::flow::Flow;

/// Records of type `T` on their way from a source to a sink, in the order of their input partition.
///
/// Stages that follow each other are fused: a chain runs as one operator over whole batches. A
/// cloned stream is a fork, and each of its branches must reach a sink.
///
/// Functions that are passed to a stage run on the worker's thread and must not block. When one
/// panics, the run ends with an error that names its operator. All stages are stateless: what their
/// functions keep in a cell is not part of any checkpoint.
#[must_use = "a stream does nothing until it reaches a sink"]
pub struct Stream<'a, T> {
    pub(super) flow: Flow<'a>,
    node: Node,
    /// Whether it is the end of a chain that can be extended; a fork is not.
    is_chain: Cell<bool>,
    shape: RefCell<Shape<'a, T>>,
    loose: Loose<'a>,
}

pub(super) type Ports<'a, T> = Vec<timely::dataflow::Stream<'a, u64, Batch<T>>>;

enum Shape<'a, T> {
    /// While nothing is built there is only the node.
    Planned,
    /// A chain of fused stages that waits for its end.
    Chain(Chain<'a, T>),
    /// Outputs of operators that are built.
    Ports(Ports<'a, T>),
}

/// Notes it when a stream is dropped before a stage or sink has consumed it.
struct Loose<'a>(Option<(Flow<'a>, Node)>);

impl Drop for Loose<'_> {
    fn drop(&mut self) {
        if let Some((flow, node)) = self.0.take() {
            flow.loose(node);
        }
    }
}

impl<'a, T: 'static> Stream<'a, T> {
    fn new(flow: Flow<'a>, node: Node, is_chain: bool, shape: Shape<'a, T>) -> Stream<'a, T> {
        let loose = Loose(Some((flow.share(), node)));
        Stream { flow, node, is_chain: Cell::new(is_chain), shape: RefCell::new(shape), loose }
    }

    pub(crate) fn planned(flow: Flow<'a>, node: Node, is_chain: bool) -> Stream<'a, T> {
        Stream::new(flow, node, is_chain, Shape::Planned)
    }

    pub(crate) fn chain(flow: Flow<'a>, node: Node, chain: Chain<'a, T>) -> Stream<'a, T> {
        Stream::new(flow, node, true, Shape::Chain(chain))
    }

    pub(super) fn of_ports(flow: Flow<'a>, node: Node, ports: Ports<'a, T>) -> Stream<'a, T> {
        Stream::new(flow, node, false, Shape::Ports(ports))
    }

    /// This stream as the input of a node.
    pub(crate) fn input(&self) -> Input {
        Input { from: self.node, is_chain: self.is_chain.get() }
    }

    /// Marks the stream as taken by a stage or sink.
    pub(crate) fn consumed(mut self) {
        self.loose.0.take().expect("a stream is consumed once");
    }

    fn into_shape(self) -> Shape<'a, T> {
        let shape = self.shape.replace(Shape::Planned);
        self.consumed();
        shape
    }

    /// The chain that ends here; `None` while nothing is built.
    pub(crate) fn into_chain(self) -> Option<Chain<'a, T>> {
        let (flow, node) = (self.flow.share(), self.node);
        match self.into_shape() {
            Shape::Planned => None,
            Shape::Chain(chain) => Some(chain),
            Shape::Ports(ports) => Some(Box::new(move |tail| flow.begin_chain(node, ports, tail))),
        }
    }

    /// The outputs that end here; none while nothing is built.
    pub(super) fn into_ports(self) -> Ports<'a, T> {
        let flow = self.flow.share();
        match self.into_shape() {
            Shape::Planned => Vec::new(),
            Shape::Ports(ports) => ports,
            Shape::Chain(chain) => end(&flow, chain),
        }
    }

    pub(super) fn stage<U: 'static>(
        self,
        what: &str,
        f: impl FnMut(Batch<T>) -> Result<Batch<U>> + 'static,
    ) -> Stream<'a, U> {
        let node = self.flow.stage_node::<T, U>(what, &[self.input()], NodeTraits::default());
        self.through(node, f)
    }

    /// Adds the stage of that node to the chain.
    pub(super) fn through<U: 'static>(
        self,
        node: Node,
        f: impl FnMut(Batch<T>) -> Result<Batch<U>> + 'static,
    ) -> Stream<'a, U> {
        let flow = self.flow.share();
        let (chain, place) = (self.into_chain(), flow.place(node));
        let Some((chain, place)) = chain.zip(place) else { return Stream::planned(flow, node, true) };
        let longer: Chain<'a, U> = Box::new(move |tail| {
            chain(Box::new(move |builder| {
                let next = Next::new(Arc::clone(&place.meter), tail(builder)?);
                Ok(Box::new(place.within(Stage::new(f, next))))
            }))
        });
        Stream::chain(flow, node, longer)
    }

    fn split<A: 'static, B: 'static>(
        self,
        what: &str,
        test: impl FnMut(T) -> Result<A, B> + 'static,
    ) -> (Stream<'a, A>, Stream<'a, B>) {
        let flow = self.flow.share();
        let node = flow.stage_node::<T, T>(what, &[self.input()], NodeTraits::default());
        let (chain, place) = (self.into_chain(), flow.place(node));
        let Some((chain, place)) = chain.zip(place) else {
            return (Stream::planned(flow.share(), node, false), Stream::planned(flow, node, false));
        };
        let outputs = Rc::new(RefCell::new(None));
        let ports = Rc::clone(&outputs);
        let built = chain(Box::new(move |builder| {
            let ((yes, left), (no, right)) = (Port::new(builder), Port::new(builder));
            *ports.borrow_mut() = Some((left, right));
            let yes = Next::new(Arc::clone(&place.meter), Box::new(yes));
            let no = Next::new(Arc::clone(&place.meter), Box::new(no));
            Ok(Box::new(place.within(Split::new(test, yes, no))))
        }));
        built.unwrap_or_else(|error| flow.fail(error));
        // A source whose reader could not be created builds nothing; the flow keeps its error.
        let (left, right) = outputs.take().map_or_else(Default::default, |(left, right)| (vec![left], vec![right]));
        let (left, right) = (Shape::Ports(left), Shape::Ports(right));
        (Stream::new(flow.share(), node, false, left), Stream::new(flow, node, false, right))
    }

    /// Replaces each record with `f` of it.
    pub fn map<U: 'static>(self, f: impl Fn(T) -> U + 'static) -> Stream<'a, U> {
        self.stage("map", move |batch| Ok(batch.mapped(&f)))
    }

    /// Keeps the records for which `keep` holds.
    pub fn filter(self, keep: impl Fn(&T) -> bool + 'static) -> Stream<'a, T> {
        self.stage("filter", move |batch| Ok(batch.filtered(&keep)))
    }

    /// Replaces each record with any number of records, in their order.
    pub fn flat_map<I: IntoIterator>(self, f: impl Fn(T) -> I + 'static) -> Stream<'a, I::Item>
    where
        I::Item: 'static,
    {
        self.stage("flat_map", move |batch| Ok(batch.flat_mapped(&f)))
    }

    /// Calls `f` with each record on its way.
    pub fn inspect(self, f: impl Fn(&T) + 'static) -> Stream<'a, T> {
        self.stage("inspect", move |batch| {
            batch.for_each_ref(&f);
            Ok(batch)
        })
    }

    /// Calls another service for each record. `f` makes a future of the record, many run at once,
    /// and each answer is handed on, or a `TimedOut` in its place. `calls` sets how many run at
    /// once, in which order answers are handed on, how long a call may take, and whether failed
    /// calls are [retried](crate::Calls::retry).
    ///
    /// Futures run on a tokio runtime of the job, so clients that need one work in them. It has a
    /// thread for each processor of the machine, at least two and at most eight. A future that
    /// blocks keeps one of them; when all of them are blocked, other calls wait and time out, and a
    /// warning of `tracing` names the stage. Functions that block belong in [`Calls::blocking`].
    ///
    /// A record whose call is under way counts as in flight: nothing after it is committed, and a
    /// job that stops waits for it. After a crash, calls are made again. Before what keeps state,
    /// where every checkpoint would wait for all open calls, they must be
    /// [kept](crate::Calls::kept). Time-outs follow the machine's clock, even under a simulated
    /// one. A future that panics ends the run.
    ///
    /// ```
    /// use millstream::{Calls, Job, collect, rows};
    /// use std::time::Duration;
    ///
    /// let results = collect();
    /// let sink = results.clone();
    /// Job::new("slow squares", move |flow| {
    ///     let square = |n: u64| async move {
    ///         tokio::time::sleep(Duration::from_millis(10 - n)).await;
    ///         n * n
    ///     };
    ///     flow.source(rows(0..4))?.map_async(Calls::ordered(16), square).or_stop().sink(&sink)
    /// })
    /// .run()?;
    /// assert_eq!(results.values(), [0, 1, 4, 9]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    ///
    /// [`Calls::blocking`]: crate::Calls::blocking
    pub fn map_async<U, Fut>(
        self,
        calls: impl CallPolicy<T, U>,
        f: impl Fn(T) -> Fut + 'static,
    ) -> Stream<'a, Result<U, TimedOut>>
    where
        U: Send + 'static,
        Fut: Future<Output = U> + Send + 'static,
    {
        let Parts(mut plan) = calls.parts();
        if let Some(codec) = plan.kept.take() {
            return self.kept_calls(plan, codec, f);
        }
        let flow = self.flow.share();
        let traits = NodeTraits { keeps_records: true, ..NodeTraits::default() };
        let node = flow.stage_node::<T, U>("map_async", &[self.input()], traits);
        let (chain, place) = (self.into_chain(), flow.place(node));
        let Some((chain, place)) = chain.zip(place) else { return Stream::planned(flow, node, true) };
        let longer: Chain<'a, Result<U, TimedOut>> = Box::new(move |tail| {
            chain(Box::new(move |builder| {
                let at = place.of_calls(builder)?;
                let next = Next::new(Arc::clone(&place.meter), tail(builder)?);
                Ok(Box::new(place.within(calls::CallStage::new(at, plan, f, next))))
            }))
        });
        Stream::chain(flow, node, longer)
    }

    /// Passes whole batches to `f`, which compiles to one loop over everything it does: the way to
    /// write a hot chain. An output takes the event time of the last input pulled before it; inputs
    /// that are never pulled count as consumed.
    ///
    /// ```
    /// use millstream::{Job, collect, rows};
    ///
    /// let results = collect();
    /// let sink = results.clone();
    /// Job::new("odd squares", move |flow| {
    ///     flow.source(rows(1..=5u64))?.map_batches(|batch| batch.filter(|n| n % 2 == 1).map(|n| n * n)).sink(&sink)
    /// })
    /// .run()?;
    /// assert_eq!(results.values(), [1, 9, 25]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn map_batches<I: Iterator>(self, f: impl Fn(BatchValues<T>) -> I + 'static) -> Stream<'a, I::Item>
    where
        I::Item: 'static,
    {
        self.stage("map_batches", move |batch| Ok(batch.map_whole(&f)))
    }

    /// Splits the stream in two: the records for which `test` holds, and the others.
    pub fn branch(self, test: impl Fn(&T) -> bool + 'static) -> (Stream<'a, T>, Stream<'a, T>) {
        self.split("branch", move |value| if test(&value) { Ok(value) } else { Err(value) })
    }

    /// The records of both streams. Each stream keeps its own order; between the two there is none.
    pub fn union(self, other: Stream<'a, T>) -> Stream<'a, T> {
        let flow = self.flow.share();
        let inputs = [self.input(), other.input()];
        let node = flow.stage_node::<T, T>("union", &inputs, NodeTraits::default());
        if flow.place(node).is_none() {
            self.consumed();
            other.consumed();
            return Stream::planned(flow, node, true);
        }
        let mut ports = self.into_ports();
        ports.append(&mut other.into_ports());
        // Counted like every other stage, although nothing happens to a record here.
        Stream::new(flow.share(), node, false, Shape::Ports(ports)).through(node, Ok)
    }

    /// Spreads the records evenly over all workers, so that the stages that follow use all of them.
    /// The order of records is lost.
    pub fn rebalance(self) -> Stream<'a, T>
    where
        T: Send + Serialize + DeserializeOwned,
    {
        let flow = self.flow.share();
        let traits = NodeTraits { exchanges: true, ..NodeTraits::default() };
        let node = flow.stage_node::<T, T>("rebalance", &[self.input()], traits);
        let Some(place) = flow.place(node) else {
            self.consumed();
            return Stream::planned(flow, node, true);
        };
        let ports = self.into_ports();
        let chain: Chain<'a, T> = Box::new(move |tail| {
            let (scope, name, setting) = (place.scope, place.name.as_str(), place.setting());
            match scope.worker().peers() {
                // There is no other worker to exchange with.
                1 => stage::build(scope, name, ports, || Pipeline, setting, tail),
                _ => {
                    let stall = setting.stall.clone();
                    let setting = stage::Setting { is_exchange: true, ..setting };
                    stage::build(scope, name, ports, || exchange::in_turn(&stall), setting, tail)
                }
            }
        });
        Stream::chain(flow, node, chain).through(node, Ok)
    }

    /// Limits the source to this many records each second, over all workers of this process. It
    /// must directly follow the source. Records beyond the limit stay where they are, so their lag
    /// grows. The limit does not hold back a cut, a commit or a stop, and a member of a consumer
    /// group keeps its partitions. It can be changed while the job runs
    /// ([`Running::source`](crate::JobHandle::source)).
    ///
    /// ```
    /// use millstream::{Job, discard, rows};
    ///
    /// let job = Job::new("gentle", |flow| flow.source(rows(0..5))?.rate_at_most(1_000.0).sink(discard()));
    /// assert_eq!(job.run()?.records_in(), 5);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn rate_at_most(self, records_per_second: f64) -> Stream<'a, T> {
        self.flow.limit(self.node, "rate_at_most", |limits| limits.rate = Some(records_per_second));
        self
    }

    /// Limits a batch of the source to this many records, over all workers of this process: a
    /// micro-batch, as with Spark's `maxOffsetsPerTrigger`, and under the other triggers the
    /// records between two checkpoints ([`Job::checkpoint_every`](crate::Job::checkpoint_every)).
    /// Otherwise like [`rate_at_most`](Stream::rate_at_most).
    pub fn batch_at_most(self, records: u64) -> Stream<'a, T> {
        self.flow.limit(self.node, "batch_at_most", |limits| limits.batch = Some(records));
        self
    }

    /// Notes that the operator was asked for what it cannot do.
    pub(super) fn refuse(&self, why: String) {
        self.flow.refuse(self.node, why);
    }

    /// Names the operator that this stream comes from: in reports and errors, and for its state.
    pub fn named(self, name: &str) -> Stream<'a, T> {
        self.flow.rename(self.node, name);
        self
    }

    /// Ends the stream in a sink.
    ///
    /// # Errors
    /// When the sink cannot be opened: an option is wrong, or the other side is unreachable,
    /// refuses, or does not have what was asked for.
    pub fn sink(self, sink: impl Sink<T>) -> Result<()> {
        self.flow.share().sink(sink, self)
    }

    /// Ends the stream in a sink, with a key for each record. With Kafka the key decides the
    /// partition.
    ///
    /// # Errors
    /// As [`sink`](Stream::sink).
    pub fn sink_by<K: Into<Vec<u8>>>(self, key: impl Fn(&T) -> K + 'static, sink: impl KeyedSink<T>) -> Result<()> {
        self.stage("key", move |batch| Ok(batch.mapped(|value| Keyed { key: key(&value).into(), value })))
            .sink(sink.keyed())
    }
}

impl<'a, T: 'static, E: 'static> Stream<'a, Result<T, E>> {
    /// The values, and the errors, as two streams.
    pub fn partition_results(self) -> (Stream<'a, T>, Stream<'a, E>) {
        self.split("partition_results", |result| result)
    }

    /// The values. Errors are dropped; in the report they are the difference between the stage's
    /// records in and out.
    pub fn or_skip(self) -> Stream<'a, T> {
        self.stage("or_skip", |batch| {
            let (values, errors) = batch.split(|result| result);
            errors.let_go();
            Ok(values)
        })
    }

    /// The values. The first error ends the run with its message. Its kind decides whether a
    /// restart can help ([`ErrorKind::is_transient`](crate::ErrorKind::is_transient)): not after
    /// `Malformed`, but after `TimedOut`.
    pub fn or_stop(self) -> Stream<'a, T>
    where
        E: Into<Error>,
    {
        self.stage("or_stop", stage::or_stop)
    }
}

/// Ends a chain in an output port of its operator.
fn end<'a, T: 'static>(flow: &Flow<'a>, chain: Chain<'a, T>) -> Ports<'a, T> {
    let output = Rc::new(RefCell::new(None));
    let port = Rc::clone(&output);
    let built = chain(Box::new(move |builder| {
        let (own, stream) = Port::new(builder);
        *port.borrow_mut() = Some(stream);
        Ok(Box::new(own) as Box<dyn Consume<T>>)
    }));
    built.unwrap_or_else(|error| flow.fail(error));
    output.take().into_iter().collect()
}

/// A fork: both streams get every record.
impl<T: Clone + 'static> Clone for Stream<'_, T> {
    fn clone(&self) -> Self {
        let shape = match self.shape.replace(Shape::Planned) {
            Shape::Planned => Shape::Planned,
            Shape::Ports(ports) => Shape::Ports(ports),
            Shape::Chain(chain) => Shape::Ports(end(&self.flow, chain)),
        };
        let copy = match &shape {
            Shape::Ports(ports) => Shape::Ports(ports.clone()),
            Shape::Planned | Shape::Chain(_) => Shape::Planned,
        };
        *self.shape.borrow_mut() = shape;
        self.is_chain.set(false);
        Stream::new(self.flow.share(), self.node, false, copy)
    }
}

impl<T> fmt::Debug for Stream<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream after {:?}", self.node)
    }
}
