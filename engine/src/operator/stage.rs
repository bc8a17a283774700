//! Stateless stages. `map`, `filter`, `flat_map` and the like do not each become an operator of the
//! dataflow: a chain is one operator that runs stage by stage over whole batches, because an
//! operator of its own costs 0.4–1.2 µs for each epoch and batch. A chain ends in a [`Port`], the
//! way out to the next operator, or in an [`egress`](super::egress).
//!
//! A chain is built from its end, because a stage owns what comes after it:
//!
//! ```text
//! flow.source(s)        a Chain: "give me a Tail, and I build the operator of s with it"
//!     .map(f)           a longer Chain: its Tail is  Stage(f) → the Tail that it will be given
//!     .filter(g)        a longer Chain: its Tail is  Stage(f) → Stage(g) → …
//!     .sink(k)          the last Tail, the egress of k: now everything is built
//! ```

use std::sync::Arc;
use std::time::Duration;

use timely::Accountable;
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::{Capability, InputCapability};
use timely::dataflow::{Scope, Stream};
use timely::progress::operate::FrontierInterest;

use crate::words::{
    Admission, Backlog, Batch, ByCheckpoint, CheckpointId, Clock, Epoch, Error, Result, SinkMeter, StageMeter, Stall,
    Wake,
};

use super::fault::{self, Fault, Node};
use super::inputs::Input;
use super::pulse::Pulse;

/// Batches travel in the dataflow as a whole.
impl<T> Accountable for Batch<T> {
    fn record_count(&self) -> i64 {
        self.len() as i64
    }
}

/// One capability for each output port of an operator, in order.
pub(crate) type Capabilities = Vec<Capability<u64>>;

/// An output port on which nothing is ever sent.
pub(crate) type Silent = OutputBuilder<u64, NoopBuilder<Vec<()>>>;

/// The checkpoint of a capability's epoch.
pub(crate) fn checkpoint_of(capability: &Capability<u64>) -> CheckpointId {
    Epoch::from_raw(*capability.time()).checkpoint()
}

/// The rest of a chain: takes the batches of the stage before.
pub(crate) trait Consume<T> {
    /// Takes a batch, which holds at least one record.
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()>;

    /// Called at the end of each step of its operator, also of one without records.
    fn step(&mut self) -> Result<()>;
}

/// Makes the rest of a chain while its operator is being built; it may add output ports.
pub(crate) type Tail<'a, T> = Box<dyn FnOnce(&mut OperatorBuilder<'a, u64>) -> Result<Box<dyn Consume<T>>> + 'a>;

/// A chain that waits for its tail; attaching one builds it.
pub(crate) type Chain<'a, T> = Box<dyn FnOnce(Tail<'a, T>) -> Result<()> + 'a>;

/// What a node of a chain counts.
#[derive(Clone, Debug)]
pub(crate) enum Counts {
    Stage(Arc<StageMeter>),
    Sink(Arc<SinkMeter>),
}

/// Runs a node of a chain: enters it, counts its records, and names it in errors. Every stage and
/// every egress runs in one of these, so none can forget to.
pub(crate) struct Within<W> {
    node: Node,
    name: String,
    counts: Counts,
    work: W,
}

impl<W> Within<W> {
    pub(crate) fn new((node, name): (Node, String), counts: Counts, work: W) -> Within<W> {
        Within { node, name, counts, work }
    }

    /// Lets the work do something else than take a batch.
    pub(crate) fn work<R>(&mut self, f: impl FnOnce(&mut W) -> Result<R>) -> Result<R> {
        let _entered = fault::enter(self.node);
        f(&mut self.work).map_err(|error| error.within(&self.name))
    }
}

impl<T, W: Consume<T>> Consume<T> for Within<W> {
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()> {
        let _entered = fault::enter(self.node);
        match &self.counts {
            Counts::Stage(meter) => meter.records_in.add(batch.len() as u64),
            Counts::Sink(meter) => meter.records.add(batch.len() as u64),
        }
        self.work.consume(batch, at).map_err(|error| error.within(&self.name))
    }

    fn step(&mut self) -> Result<()> {
        let _entered = fault::enter(self.node);
        self.work.step().map_err(|error| error.within(&self.name))
    }
}

/// Runs a batch through a chain, whose first node it is given to. What stages keep beyond that
/// call, and give on in a [`step`](Consume::step), they guard for themselves.
pub(crate) fn run<T>(chain: &mut dyn Consume<T>, batch: Batch<T>, at: &Capabilities) -> Result<()> {
    let unfinished = Unfinished(batch.admission().cloned());
    chain.consume(batch, at)?;
    unfinished.finish();
    Ok(())
}

/// A batch in a chain that has not returned yet. If a stage panics or fails, the outcome of the
/// batch is unknown.
struct Unfinished(Option<Admission>);

impl Unfinished {
    fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(admission) = &self.0 {
            admission.lose();
        }
    }
}

/// What follows a stage: counts what the stage hands on, and drops empty batches.
pub(crate) struct Next<U> {
    meter: Arc<StageMeter>,
    rest: Box<dyn Consume<U>>,
}

impl<U> Next<U> {
    pub(crate) fn new(meter: Arc<StageMeter>, rest: Box<dyn Consume<U>>) -> Next<U> {
        Next { meter, rest }
    }

    pub(crate) fn hand_on(&mut self, batch: Batch<U>, at: &Capabilities) -> Result<()> {
        self.meter.records_out.add(batch.len() as u64);
        if batch.is_empty() { Ok(()) } else { self.rest.consume(batch, at) }
    }

    pub(crate) fn step(&mut self) -> Result<()> {
        self.rest.step()
    }
}

/// A stage that turns each batch into another.
pub(crate) struct Stage<F, U> {
    f: F,
    next: Next<U>,
}

impl<F, U> Stage<F, U> {
    pub(crate) fn new(f: F, next: Next<U>) -> Stage<F, U> {
        Stage { f, next }
    }
}

impl<T, U, F: FnMut(Batch<T>) -> Result<Batch<U>>> Consume<T> for Stage<F, U> {
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()> {
        let out = (self.f)(batch)?;
        self.next.hand_on(out, at)
    }

    fn step(&mut self) -> Result<()> {
        self.next.step()
    }
}

/// A stage that sends each record one of two ways.
pub(crate) struct Split<F, A, B> {
    test: F,
    yes: Next<A>,
    no: Next<B>,
}

impl<F, A, B> Split<F, A, B> {
    pub(crate) fn new(test: F, yes: Next<A>, no: Next<B>) -> Split<F, A, B> {
        Split { test, yes, no }
    }
}

impl<T, A, B, F: FnMut(T) -> Result<A, B>> Consume<T> for Split<F, A, B> {
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()> {
        let (yes, no) = batch.split(&mut self.test);
        self.yes.hand_on(yes, at)?;
        self.no.hand_on(no, at)
    }

    fn step(&mut self) -> Result<()> {
        self.yes.step()?;
        self.no.step()
    }
}

/// An output port of an operator.
pub(crate) struct Port<T: 'static> {
    index: usize,
    output: OutputBuilder<u64, NoopBuilder<Batch<T>>>,
}

impl<T: 'static> Port<T> {
    /// Adds a port to the operator; its stream carries what the port consumes.
    pub(crate) fn new<'a>(builder: &mut OperatorBuilder<'a, u64>) -> (Port<T>, Stream<'a, u64, Batch<T>>) {
        let index = builder.shape().outputs();
        let (output, stream) = builder.new_output();
        (Port { index, output: OutputBuilder::from(output) }, stream)
    }
}

impl<T: 'static> Consume<T> for Port<T> {
    fn consume(&mut self, mut batch: Batch<T>, at: &Capabilities) -> Result<()> {
        self.output.activate().session_with_builder(&at[self.index]).give_container(&mut batch);
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Wakes an operator that is being built, from any thread.
pub(crate) fn wake_of<'a>(scope: Scope<'a, u64>, builder: &OperatorBuilder<'a, u64>) -> Wake {
    let remote = scope.worker().sync_activator_for(builder.operator_info().address.to_vec());
    // An error means that the worker is gone, and with it the need to wake it.
    Wake::new(move || {
        let _ = remote.activate();
    })
}

/// Abandons an operator that is being built: timely panics when one is never built.
pub(crate) fn give_up(builder: OperatorBuilder<'_, u64>) {
    builder.build(|_| |_| {});
}

/// What the operator of a chain that begins with streams shares with the rest of its worker.
pub(crate) struct Setting {
    pub(crate) fault: Arc<Fault>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) stall: Stall,
    pub(crate) clock: Clock,
    /// Whether what arrives comes from an exchange, and so was counted when it departed.
    pub(crate) is_exchange: bool,
}

/// Builds the operator of a chain that begins with streams and not with a source; `pact` says which
/// worker gets what.
///
/// Records that arrive wait here while a writer has no room. Otherwise they run through the chain
/// in slices of about a millisecond: what a stage makes of a record may be a thousand times as
/// large, and is not in any budget. Sources wait while more than a few slices wait here.
pub(crate) fn build<'a, T: 'static, P: ParallelizationContract<u64, Batch<T>>>(
    scope: Scope<'a, u64>,
    name: &str,
    inputs: Vec<Stream<'a, u64, Batch<T>>>,
    pact: impl Fn() -> P,
    setting: Setting,
    tail: Tail<'a, T>,
) -> Result<()> {
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let connect = |stream| Input::new(&mut builder, stream, pact(), FrontierInterest::Never);
    let mut inputs: Vec<_> = inputs.into_iter().map(connect).collect();
    let mut chain = match tail(&mut builder) {
        Ok(chain) => chain,
        Err(error) => {
            give_up(builder);
            return Err(error);
        }
    };
    let ports = builder.shape().outputs();
    let wake = wake_of(scope, &builder);
    setting.pulse.wakes_for_room(wake.clone());
    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut arrived: ByCheckpoint<(Capabilities, Batch<T>)> = ByCheckpoint::default();
        let mut pace = Pace::default();
        let pulse = Arc::clone(&setting.pulse);
        let mut backlog = Backlog::new(setting.stall.clone(), move || pulse.wake_ingests());
        move |_| {
            wake.listen();
            for input in &mut inputs {
                input.for_each(|capability, batch| {
                    let epoch = *capability.least().expect("a batch is sent at one epoch");
                    let checkpoint = Epoch::from_raw(epoch).checkpoint();
                    if setting.is_exchange && setting.stall.arrive(batch.len()) {
                        setting.pulse.wake_ingests();
                    }
                    arrived.push(checkpoint, (retain(&capability, ports), std::mem::take(batch)));
                });
            }
            // After a fault everything stays as it is: the capabilities are kept.
            if setting.fault.is_set() {
                return;
            }
            let more = pace.run(&mut arrived, &mut *chain, &setting, None);
            match more.and_then(|more| chain.step().map(|()| more)) {
                Ok(true) => activator.activate(),
                Ok(false) => {}
                Err(error) => setting.fault.record(error),
            }
            backlog.look(arrived.iter().map(|(_, batch)| batch.len()).sum(), pace.records_max);
        }
    });
    Ok(())
}

/// One capability of a batch's epoch for each port.
pub(crate) fn retain(capability: &InputCapability<u64>, ports: usize) -> Capabilities {
    let retain = |port| capability.retain_least(port).expect("a batch is sent at one epoch");
    (0..ports).map(retain).collect()
}

/// How many records run through a chain at once: about a millisecond's work.
pub(crate) struct Pace {
    records_max: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { records_max: 64 }
    }
}

impl Pace {
    /// As for a poll (`ingest`): no operator of this worker waits longer than that for its turn.
    const STEP: Duration = Duration::from_millis(1);
    const RECORDS_MAX: usize = 4096;

    /// How many records run through the chain at once.
    pub(crate) fn records_max(&self) -> usize {
        self.records_max
    }

    /// Runs what has arrived through the chain, up to a checkpoint, for about one step's time and
    /// as long as writers have room. Returns whether there is more to do now.
    pub(crate) fn run<T>(
        &mut self,
        arrived: &mut ByCheckpoint<(Capabilities, Batch<T>)>,
        chain: &mut dyn Consume<T>,
        setting: &Setting,
        until: Option<CheckpointId>,
    ) -> Result<bool> {
        let began = setting.clock.now();
        let mut before = began;
        while let Some((checkpoint, (at, batch))) = arrived.front_mut() {
            if setting.stall.holds(checkpoint) || until.is_some_and(|until| checkpoint > until) {
                return Ok(false);
            }
            if before - began > Self::STEP {
                return Ok(true);
            }
            let records = batch.len().min(self.records_max);
            if records == batch.len() {
                run(chain, std::mem::take(batch), at)?;
                arrived.pop_front();
            } else {
                let rest = batch.split_off(records);
                run(chain, std::mem::replace(batch, rest), at)?;
            }
            let now = setting.clock.now();
            let took = now - before;
            before = now;
            if took > 2 * Self::STEP {
                self.records_max = (records / 2).max(1);
            } else if took < Self::STEP / 2 && records >= self.records_max {
                self.records_max = (2 * self.records_max).min(Self::RECORDS_MAX);
            }
        }
        Ok(false)
    }
}

/// Passes records on, and fails at the first error among them.
pub(crate) fn or_stop<T, E: Into<Error>>(batch: Batch<Result<T, E>>) -> Result<Batch<T>> {
    let mut failed = None;
    let passed = batch.mapped_while(|result| result.map_err(|error| failed = Some(error)).ok());
    failed.map_or(Ok(passed), |error| Err(error.into()))
}
