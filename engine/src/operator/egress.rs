//! Where records leave: hands batches to one worker's writer and counts what is in flight per checkpoint. While a
//! checkpoint has a record in flight, or one that the writer had no room for, the egress holds a capability of it on a
//! port that only `gather` reads: so acknowledgements are a frontier of their own. A second port, on which nothing is
//! ever held, shows the frontier of the operators before it.
//!
//! It needs no interest in frontiers: records, acknowledgements and the ticker's cut wake it.

use std::collections::VecDeque;
use std::sync::Arc;

use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::InputCapability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::operate::FrontierInterest;

use crate::io::{Accepted, Delivery, Flight, Wake, Writer};
use crate::words::{Batch, Clock, Epoch, Result, SinkMeter};

use super::fault::{self, Fault, Node};
use super::pulse::Pulse;

/// What an egress operator shares with the rest of its worker.
pub(crate) struct Setting {
    pub(crate) node: Node,
    pub(crate) name: String,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) clock: Clock,
    pub(crate) fault: Arc<Fault>,
    pub(crate) meter: Arc<SinkMeter>,
}

/// The two frontiers that an egress shows.
pub(crate) struct Frontiers<'a> {
    /// Everything before it is acknowledged.
    pub(crate) acknowledged: Stream<'a, u64, Vec<()>>,
    /// Everything before it has reached the writer.
    pub(crate) through: Stream<'a, u64, Vec<()>>,
}

/// Builds the operator; `writer` makes the writer once the operator can be woken.
pub(crate) fn build<'a, T: 'static, W: Writer<T> + 'static>(
    scope: Scope<'a, u64>,
    setting: Setting,
    inputs: Vec<Stream<'a, u64, Batch<T>>>,
    writer: impl FnOnce(Wake) -> Result<W>,
) -> Result<Frontiers<'a>> {
    let mut builder = OperatorBuilder::new(setting.name.clone(), scope);
    let mut inputs: Vec<_> = inputs.into_iter().map(|stream| builder.new_input(stream, Pipeline)).collect();
    let (acknowledged_port, acknowledged) = builder.new_output();
    let (through_port, through) = builder.new_output();
    (0..inputs.len()).for_each(|input| builder.set_notify_for(input, FrontierInterest::Never));
    let remote = scope.worker().sync_activator_for(builder.operator_info().address.to_vec());
    // An error means that the worker is gone, and with it the need to wake it.
    let wake = Wake::new(move || {
        let _ = remote.activate();
    });
    let writer = writer(wake.clone())?;
    setting.pulse.egress_opened(wake.clone());
    builder.build(move |capabilities| {
        drop(capabilities);
        let mut egress =
            Egress { writer, pending: VecDeque::new(), flights: VecDeque::new(), wake, setting, kept: Vec::new() };
        move |_| {
            // The ports exist for their frontiers.
            let _ = (&acknowledged_port, &through_port);
            egress.wake.listen();
            for input in &mut inputs {
                input.for_each(|capability, batch| egress.take(&capability, std::mem::take(batch)));
            }
            egress.work();
        }
    });
    Ok(Frontiers { acknowledged, through })
}

struct Egress<T, W> {
    setting: Setting,
    writer: W,
    /// What the writer had no room for, in order.
    pending: VecDeque<(Batch<T>, Delivery)>,
    /// What is open, by checkpoint; a capability for each.
    flights: VecDeque<(Arc<Flight>, Capability<u64>)>,
    wake: Wake,
    /// Held for ever after a fault.
    kept: Vec<Capability<u64>>,
}

impl<T, W: Writer<T>> Egress<T, W> {
    fn take(&mut self, capability: &InputCapability<u64>, batch: Batch<T>) {
        if self.setting.fault.is_set() {
            self.kept.push(capability.retain(0));
            return;
        }
        let flight = self.flight(capability);
        let records = batch.len() as u64;
        self.setting.meter.records.add(records);
        let admission = batch.admission().cloned();
        let delivery = Delivery::new(admission, &flight, records, &self.setting.clock, &self.setting.meter);
        self.pending.push_back((batch, delivery));
    }

    /// The open flight of the capability's checkpoint.
    fn flight(&mut self, capability: &InputCapability<u64>) -> Arc<Flight> {
        let checkpoint = Epoch::from_raw(*capability.time()).checkpoint();
        if let Some((flight, _)) = self.flights.iter().rev().find(|(flight, _)| flight.checkpoint() == checkpoint) {
            return Arc::clone(flight);
        }
        let (pulse, wake) = (Arc::clone(&self.setting.pulse), self.wake.clone());
        // While the checkpoint is open more may come: only after its cut does the last acknowledgement matter.
        let landed = move |checkpoint| {
            if pulse.is_cut(checkpoint) {
                wake.wake();
            }
        };
        let flight = Flight::new(checkpoint, landed);
        self.flights.push_back((Arc::clone(&flight), capability.retain(0)));
        flight
    }

    /// Writes what is pending, hears what went wrong, and lets go of checkpoints that have nothing open.
    fn work(&mut self) {
        if self.setting.fault.is_set() {
            return;
        }
        fault::enter(self.setting.node);
        if let Err(error) = self.write() {
            self.setting.fault.record(error.in_operator(&self.setting.name));
            return;
        }
        self.flights.retain(|(flight, _)| flight.open() > 0);
    }

    fn write(&mut self) -> Result<()> {
        self.writer.poll()?;
        while let Some((batch, delivery)) = self.pending.front_mut() {
            match self.writer.write(batch, delivery)? {
                Accepted::All => drop(self.pending.pop_front()),
                Accepted::Full => break,
            }
        }
        Ok(())
    }
}
