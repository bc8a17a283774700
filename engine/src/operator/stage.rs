//! Stateless stages. `map`, `filter`, `flat_map` and the like do not each become an operator of the dataflow: a chain is
//! one operator that runs stage by stage over whole batches, because an operator of its own costs 0.4–1.2 µs for each
//! epoch and batch. A chain ends in a [`Port`], the way out to the next operator.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use timely::Accountable;
use timely::container::NoopBuilder;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::operators::{Capability, InputCapability};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::operate::FrontierInterest;

use crate::io::Wake;
use crate::words::{Backlog, Batch, Clock, Error, Result, StageMeter, Stall};

use super::fault::{self, Fault, Node};
use super::pulse::Pulse;

/// A batch is what travels in the dataflow, whole.
impl<T> Accountable for Batch<T> {
    fn record_count(&self) -> i64 {
        self.len() as i64
    }
}

/// One capability for each output port of an operator, in order.
pub(crate) type Capabilities = Vec<Capability<u64>>;

/// An output port on which nothing is ever sent.
pub(crate) type Silent = OutputBuilder<u64, NoopBuilder<Vec<()>>>;

/// The rest of a chain: takes batches of the stage before.
pub(crate) trait Consume<T> {
    /// Takes a batch, which holds at least one record.
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()>;

    /// Called at the end of each step of its operator, also of one without records.
    fn step(&mut self) -> Result<()>;
}

/// Makes the rest of a chain while its operator is being built; it may add output ports.
pub(crate) type Tail<'a, T> = Box<dyn FnOnce(&mut OperatorBuilder<'a, u64>) -> Result<Box<dyn Consume<T>>> + 'a>;

/// A chain that waits for its tail; building it is attaching one.
pub(crate) type Chain<'a, T> = Box<dyn FnOnce(Tail<'a, T>) -> Result<()> + 'a>;

/// A stage that makes a batch of a batch.
pub(crate) struct Stage<F, U> {
    node: Node,
    name: String,
    meter: Arc<StageMeter>,
    f: F,
    next: Box<dyn Consume<U>>,
}

impl<F, U> Stage<F, U> {
    pub(crate) fn new(
        (node, name): (Node, String),
        meter: Arc<StageMeter>,
        f: F,
        next: Box<dyn Consume<U>>,
    ) -> Stage<F, U> {
        Stage { node, name, meter, f, next }
    }
}

impl<T, U, F: FnMut(Batch<T>) -> Result<Batch<U>>> Consume<T> for Stage<F, U> {
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()> {
        fault::enter(self.node);
        self.meter.records_in.add(batch.len() as u64);
        let out = (self.f)(batch).map_err(|error| error.in_operator(&self.name))?;
        self.meter.records_out.add(out.len() as u64);
        if out.is_empty() { Ok(()) } else { self.next.consume(out, at) }
    }

    fn step(&mut self) -> Result<()> {
        self.next.step()
    }
}

/// A stage that sends each record one of two ways.
pub(crate) struct Split<F, A: 'static, B: 'static> {
    node: Node,
    meter: Arc<StageMeter>,
    test: F,
    yes: Port<A>,
    no: Port<B>,
}

impl<F, A: 'static, B: 'static> Split<F, A, B> {
    pub(crate) fn new(node: Node, meter: Arc<StageMeter>, test: F, yes: Port<A>, no: Port<B>) -> Split<F, A, B> {
        Split { node, meter, test, yes, no }
    }
}

impl<T, A: 'static, B: 'static, F: FnMut(T) -> Result<A, B>> Consume<T> for Split<F, A, B> {
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()> {
        fault::enter(self.node);
        self.meter.records_in.add(batch.len() as u64);
        self.meter.records_out.add(batch.len() as u64);
        let (yes, no) = batch.split(&mut self.test);
        self.yes.consume(yes, at)?;
        self.no.consume(no, at)
    }

    fn step(&mut self) -> Result<()> {
        Ok(())
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
        if !batch.is_empty() {
            self.output.activate().session_with_builder(&at[self.index]).give_container(&mut batch);
        }
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

/// Gives up an operator that was begun: timely wants every one of them, and panics without.
pub(crate) fn give_up(builder: OperatorBuilder<'_, u64>) {
    builder.build(|_| |_| {});
}

/// What the operator of a chain that starts at streams shares with the rest of its worker.
pub(crate) struct Setting {
    pub(crate) fault: Arc<Fault>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) stall: Stall,
    pub(crate) clock: Clock,
    /// What arrives was counted when it departed.
    pub(crate) is_exchange: bool,
}

/// Builds the operator of a chain that starts at streams and not at a source; `pact` says which worker gets what.
///
/// What arrives waits here while a writer has no room, and runs through the chain in slices of about a millisecond otherwise:
/// what a stage makes of a record may be a thousand times as large, and is in no budget. Sources wait while more waits here than
/// a few slices.
pub(crate) fn build<'a, T: 'static, P: ParallelizationContract<u64, Batch<T>>>(
    scope: Scope<'a, u64>,
    name: &str,
    inputs: Vec<Stream<'a, u64, Batch<T>>>,
    pact: impl Fn() -> P,
    setting: Setting,
    tail: Tail<'a, T>,
) -> Result<()> {
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let mut inputs: Vec<_> = inputs.into_iter().map(|stream| builder.new_input(stream, pact())).collect();
    let mut chain = match tail(&mut builder) {
        Ok(chain) => chain,
        Err(error) => {
            give_up(builder);
            return Err(error);
        }
    };
    let ports = builder.shape().outputs();
    (0..inputs.len()).for_each(|input| builder.set_notify_for(input, FrontierInterest::Never));
    let wake = wake_of(scope, &builder);
    setting.pulse.wakes_for_room(wake.clone());
    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut arrived: VecDeque<(Capabilities, Batch<T>)> = VecDeque::new();
        let mut pace = Pace::default();
        let pulse = Arc::clone(&setting.pulse);
        let mut backlog = Backlog::new(setting.stall.clone(), move || pulse.wake_ingests());
        move |_| {
            wake.listen();
            for input in &mut inputs {
                // In the order of arrival; `for_each_time` sorts unstably and would mix up batches of one epoch.
                input.for_each(|capability, batch| {
                    let at = capabilities_of(&capability, ports);
                    if setting.is_exchange && setting.stall.arrive(batch.len()) {
                        setting.pulse.wake_ingests();
                    }
                    arrived.push_back((at, std::mem::take(batch)));
                });
            }
            // After a fault what is held stays held, and nothing moves any more.
            if setting.fault.is_set() {
                return;
            }
            match pace.run(&mut arrived, &mut *chain, &setting).and_then(|more| chain.step().map(|()| more)) {
                Ok(true) => activator.activate(),
                Ok(false) => {}
                Err(error) => setting.fault.record(error),
            }
            backlog.look(arrived.iter().map(|(_, batch)| batch.len()).sum(), pace.records_max);
        }
    });
    Ok(())
}

/// A capability of a batch's epoch for each of the ports.
fn capabilities_of(capability: &InputCapability<u64>, ports: usize) -> Capabilities {
    let retain = |port| capability.retain_least(port).expect("a batch is sent at one epoch");
    (0..ports).map(retain).collect()
}

/// How many records run through a chain at once: what takes about a millisecond.
struct Pace {
    records_max: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { records_max: 64 }
    }
}

impl Pace {
    const STEP: Duration = Duration::from_millis(1);
    const RECORDS_MAX: usize = 4096;

    /// Runs what has arrived through the chain, for about a step's time and as long as writers have room. Says whether there
    /// is more to do now.
    fn run<T>(
        &mut self,
        arrived: &mut VecDeque<(Capabilities, Batch<T>)>,
        chain: &mut dyn Consume<T>,
        setting: &Setting,
    ) -> Result<bool> {
        let began = setting.clock.now();
        let mut before = began;
        while let Some((at, batch)) = arrived.front_mut() {
            if setting.stall.is_on() {
                return Ok(false);
            }
            if before - began > Self::STEP {
                return Ok(true);
            }
            let records = batch.len().min(self.records_max);
            if records == batch.len() {
                chain.consume(std::mem::take(batch), at)?;
                arrived.pop_front();
            } else {
                let rest = batch.split_off(records);
                chain.consume(std::mem::replace(batch, rest), at)?;
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
    let admission = batch.admission().cloned();
    let mut failed = None;
    let passed = batch.mapped_while(|result| result.map_err(|error| failed = Some(error)).ok());
    let Some(error) = failed else { return Ok(passed) };
    if let Some(admission) = admission {
        admission.lose();
    }
    Err(error.into())
}
