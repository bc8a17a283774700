//! How an operator waits for event time: when what it is told takes effect, and what it tells those
//! behind it.

use std::time::Duration;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::words::{ByCheckpoint, CheckpointId, Epoch, EventTime, Moment, Result, WatermarkPolicy};

use super::fault::Node;
use super::pulse::Pulse;
use super::stage::{Capabilities, Setting};
use super::watermark::{Advanced, Report, Reporter, Watermarks, reports};

/// What an operator that waits for event time is built with.
pub(crate) struct Timing<'a> {
    /// The reports of all sources and operators that tell it the time, and how many there are.
    pub(crate) reports: Vec<Stream<'a, u64, Vec<Report>>>,
    pub(crate) reporters: usize,
    pub(crate) own: Reporter,
    pub(crate) workers: usize,
    /// How far behind the watermark what it emits may be.
    pub(crate) back: Duration,
    /// How far its watermark may be behind that of the sources: what operators before it take off.
    pub(crate) behind: Duration,
    /// Operators whose reports count as of the millisecond before.
    pub(crate) lowered: Vec<Node>,
    pub(crate) policy: WatermarkPolicy,
    /// Where it goes on from.
    pub(crate) watermark: EventTime,
}

/// What an operator does at a new watermark.
pub(super) trait Fires {
    /// The watermark has moved.
    ///
    /// # Errors
    /// When the run cannot go on.
    fn advance(&mut self, advanced: Advanced) -> Result<()>;

    /// Emits some of what the watermark has made final. When that is all, returns what has moved
    /// the watermark.
    ///
    /// # Errors
    /// When the run cannot go on.
    fn fire(&mut self, now: Moment) -> Result<Option<Advanced>>;
}

/// The least epoch of which anything is still to be applied: of what has arrived, and of what can
/// arrive.
fn least<T>(arrived: &ByCheckpoint<(Capabilities, T)>, frontier: Option<Epoch>) -> Option<Epoch> {
    let epoch = |(at, _): &(Capabilities, T)| at.first().map(|first| Epoch::from_raw(*first.time()));
    arrived.iter().filter_map(epoch).chain(frontier).min()
}

/// The event time of an operator that waits for it.
pub(super) struct Time {
    own: Reporter,
    workers: usize,
    back: Duration,
    behind: Duration,
    watermarks: Watermarks,
    /// The checkpoint in which something fires now.
    fires_in: Option<CheckpointId>,
    /// The port on which it relays what it knows.
    port: usize,
    relays: OutputBuilder<u64, CapacityContainerBuilder<Vec<Report>>>,
    /// The event time for which it waits, as last shown.
    due: Option<EventTime>,
}

impl Time {
    /// Adds the port on which the operator relays; its stream is for the operators behind it.
    pub(super) fn new<'a>(
        builder: &mut OperatorBuilder<'a, u64>,
        timing: &Timing<'a>,
    ) -> (Time, Stream<'a, u64, Vec<Report>>) {
        let port = builder.shape().outputs();
        let (output, stream) = builder.new_output();
        let Timing { own, workers, reporters, back, behind, policy, watermark, .. } = *timing;
        let (watermarks, relays) =
            (Watermarks::new(reporters, timing.lowered.clone(), policy, watermark), OutputBuilder::from(output));
        (Time { own, workers, back, behind, watermarks, fires_in: None, port, relays, due: None }, stream)
    }

    /// Called when the operator is first scheduled, with capabilities for the first epoch of the
    /// run: relays what is restored. Returns the watermark with which the run begins, and its
    /// policy.
    pub(super) fn begin(&mut self, at: &Capabilities, now: Moment) -> (EventTime, WatermarkPolicy) {
        self.relay(&at[self.port], now);
        (self.watermarks.watermark(), self.watermarks.policy())
    }

    /// Takes reports of an epoch.
    pub(super) fn take(&mut self, epoch: Epoch, at: impl FnOnce() -> Capabilities, reports: &mut Vec<Report>) {
        self.watermarks.take(epoch, at, reports);
    }

    /// The oldest checkpoint in which something is still to take effect.
    pub(super) fn oldest(&self) -> Option<CheckpointId> {
        self.fires_in.or_else(|| self.watermarks.oldest())
    }

    /// Lets reports take effect, and what they make final fire. Returns whether there is more to do
    /// now.
    pub(super) fn fire<T>(
        &mut self,
        arrived: &ByCheckpoint<(Capabilities, T)>,
        chain: &mut dyn Fires,
        (frontier, checkpoint): (Option<Epoch>, CheckpointId),
        setting: &Setting,
    ) -> Result<bool> {
        while !setting.stall.holds(checkpoint) {
            if self.fires_in.is_none() {
                if self.watermarks.oldest().is_none_or(|oldest| oldest > checkpoint) {
                    break;
                }
                let Some(advanced) = self.watermarks.advance(least(arrived, frontier), checkpoint) else { break };
                self.fires_in = Some(checkpoint);
                chain.advance(advanced)?;
            }
            let Some(fired) = chain.fire(setting.clock.now())? else { return Ok(true) };
            self.fires_in = None;
            self.relay(&fired.at[self.port], fired.arrived);
        }
        Ok(false)
    }

    /// Shows for what event time the operator waits. An epoch opens at once when that has come,
    /// unless something of it is on its way already.
    pub(super) fn show_due(&mut self, pulse: &Pulse, due: Option<EventTime>) {
        if self.due != due {
            self.due = due;
            pulse.note_due(self.own, due.map(|due| due.after(self.behind)));
        }
    }

    fn relay(&mut self, at: &Capability<u64>, arrived: Moment) {
        if self.watermarks.watermark().known().is_some() {
            let reports = reports(self.own, self.workers, self.watermarks.relayed(self.back), arrived);
            let mut relays = self.relays.activate();
            let mut session = relays.session(at);
            reports.for_each(|report| session.give(report));
        }
    }
}
