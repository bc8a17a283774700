//! Where records leave: hands batches to one worker's writer and counts what is in flight per
//! checkpoint. It is the end of a chain and not an operator of its own: a job that only reads, maps
//! and writes is a single operator, because another channel and operator cost a record that comes
//! alone about ten microseconds of cold code.
//!
//! While a checkpoint has a record in flight, or a record that the writer refused, the egress holds
//! a capability of it on a port that only `gather` reads. So acknowledgements have a frontier of
//! their own. A second port, on which no capability is held, shows the frontier of what has reached
//! the egress. Records, acknowledgements and the ticker's cut wake it.

use std::collections::VecDeque;
use std::sync::Arc;

use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};

use crate::io::{Accepted, Delivery, Writer};
use crate::words::{Batch, ByCheckpoint, CheckpointId, Clock, Flight, Result, SinkMeter, Stall, Wake};

use super::pulse::Pulse;
use super::stage::{Capabilities, Consume, Silent, checkpoint_of, wake_of};

/// What an egress shares with the rest of its worker.
pub(crate) struct Setting {
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) clock: Clock,
    pub(crate) meter: Arc<SinkMeter>,
    pub(crate) stall: Stall,
}

/// The two frontiers that an egress shows.
pub(crate) struct Shown<'a> {
    /// Everything before it is acknowledged.
    pub(crate) acknowledged: Stream<'a, u64, Vec<()>>,
    /// Everything before it has reached the writer.
    pub(crate) through: Stream<'a, u64, Vec<()>>,
}

/// Ends a chain while its operator is being built; `writer` makes the writer once the operator can
/// be woken.
pub(crate) fn end<'a, T: 'static, W: Writer<T> + 'static>(
    scope: Scope<'a, u64>,
    builder: &mut OperatorBuilder<'a, u64>,
    setting: Setting,
    writer: impl FnOnce(Wake) -> Result<W>,
) -> Result<(Egress<T, W>, Shown<'a>)> {
    let port = builder.shape().outputs();
    let (acknowledged_port, acknowledged) = builder.new_output();
    let (through_port, through) = builder.new_output();
    let wake = wake_of(scope, builder);
    let writer = writer(wake.clone())?;
    setting.pulse.egress_opened(wake.clone());
    let silent = [OutputBuilder::from(acknowledged_port), OutputBuilder::from(through_port)];
    let egress = Egress {
        setting,
        writer,
        refused: ByCheckpoint::default(),
        stalled: None,
        flights: VecDeque::new(),
        wake,
        port,
        _silent: silent,
    };
    Ok((egress, Shown { acknowledged, through }))
}

/// The end of a chain.
pub(crate) struct Egress<T, W> {
    setting: Setting,
    writer: W,
    /// Batches that the writer had no room for. The oldest checkpoint is offered first: a writer
    /// that keeps checkpoint `c + 1` waiting for the end of `c` must never see it before a record
    /// of `c`.
    refused: ByCheckpoint<(Batch<T>, Delivery)>,
    /// The checkpoint of the oldest refused batch, as last reported to the worker's stall.
    stalled: Option<CheckpointId>,
    /// The open flights by checkpoint, with a capability for each.
    flights: VecDeque<(Arc<Flight>, Capability<u64>)>,
    wake: Wake,
    /// The port whose frontier shows what is acknowledged.
    port: usize,
    /// The ports exist for their frontiers.
    _silent: [Silent; 2],
}

impl<T, W: Writer<T>> Consume<T> for Egress<T, W> {
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()> {
        let flight = self.flight(&at[self.port]);
        let admission = batch.admission().cloned();
        let records = batch.len() as u64;
        let delivery = Delivery::new(admission, &flight, records, &self.setting.clock, &self.setting.meter);
        self.refused.push(flight.checkpoint(), (batch, delivery));
        self.write()
    }

    /// Polls the writer for errors, offers refused batches again, and drops the capabilities of
    /// checkpoints that have nothing in flight.
    fn step(&mut self) -> Result<()> {
        self.wake.listen();
        self.writer.poll()?;
        self.write()?;
        // After `listen`: the last acknowledgement of a cut checkpoint wakes this operator again.
        self.flights.retain(|(flight, _)| flight.open() > 0);
        Ok(())
    }
}

impl<T, W: Writer<T>> Egress<T, W> {
    /// The open flight of the capability's checkpoint.
    fn flight(&mut self, capability: &Capability<u64>) -> Arc<Flight> {
        let checkpoint = checkpoint_of(capability);
        if let Some((flight, _)) = self.flights.iter().rev().find(|(flight, _)| flight.checkpoint() == checkpoint) {
            return Arc::clone(flight);
        }
        let (pulse, wake) = (Arc::clone(&self.setting.pulse), self.wake.clone());
        // While the checkpoint is open, more records may come: the last acknowledgement matters
        // only after the cut.
        let landed = move |checkpoint| {
            if pulse.is_cut(checkpoint) {
                wake.wake();
            }
        };
        let flight = Flight::new(checkpoint, landed);
        self.flights.push_back((Arc::clone(&flight), capability.clone()));
        flight
    }

    /// Offers the writer the waiting batches, the oldest checkpoint first, until it refuses one.
    fn write(&mut self) -> Result<()> {
        while let Some((_, (batch, delivery))) = self.refused.front_mut() {
            match self.writer.write(batch, delivery)? {
                Accepted::All => drop(self.refused.pop_front()),
                Accepted::Full => break,
            }
        }
        self.set_stalled(self.refused.oldest());
        Ok(())
    }
}

impl<T, W> Egress<T, W> {
    fn set_stalled(&mut self, oldest: Option<CheckpointId>) {
        if oldest != self.stalled && self.setting.stall.change(self.stalled, oldest) {
            self.setting.pulse.have_room();
        }
        self.stalled = oldest;
    }
}

impl<T, W> Drop for Egress<T, W> {
    fn drop(&mut self) {
        self.set_stalled(None);
    }
}
