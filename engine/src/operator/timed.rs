//! How an operator waits for event time: when what it is told takes effect, and what it tells those
//! behind it.

use std::time::Duration;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::Stream;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::operate::FrontierInterest;

use crate::words::{ByCheckpoint, CheckpointId, Epoch, EventTime, Moment, Result, WatermarkPolicy};

use super::fault::Node;
use super::inputs::{Frontiers, Input};
use super::pulse::Pulse;
use super::stage::{Capabilities, Setting, retain};
use super::watermark::{Advanced, Report, Reporter, Summary, Watermarks, reports, to_worker};

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

    /// How far it lets those behind it know that time has come, for records that it still has.
    ///
    /// # Errors
    /// When the run cannot go on.
    fn hold(&mut self) -> Result<Option<EventTime>> {
        Ok(None)
    }
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
    /// The inputs for reports.
    inputs: Vec<Input<Vec<Report>>>,
    watermarks: Watermarks,
    /// The checkpoint in which something fires now.
    fires_in: Option<CheckpointId>,
    /// The port on which it relays what it knows.
    port: usize,
    relays: OutputBuilder<u64, CapacityContainerBuilder<Vec<Report>>>,
    /// What it has relayed last, and at which epoch. Neither goes back: of two reports the later
    /// one is to take effect later.
    told: EventTime,
    told_at: u64,
    /// Where it holds back what it knows, as last shown.
    held: Option<EventTime>,
    /// The event time for which it waits, as last shown.
    due: Option<EventTime>,
}

impl Time {
    /// Adds the inputs for reports, and the port on which the operator relays; its stream is for
    /// the operators behind it.
    pub(super) fn new<'a>(
        builder: &mut OperatorBuilder<'a, u64>,
        timing: Timing<'a>,
    ) -> (Time, Stream<'a, u64, Vec<Report>>) {
        let Timing { reports, reporters, own, workers, back, behind, lowered, policy, watermark } = timing;
        let connect = |stream| Input::new(builder, stream, to_worker(), FrontierInterest::IfCapability);
        let inputs = reports.into_iter().map(connect).collect();
        let port = builder.shape().outputs();
        let (output, stream) = builder.new_output();
        let (watermarks, relays) =
            (Watermarks::new(reporters, lowered, policy, watermark), OutputBuilder::from(output));
        let time = Time {
            own,
            workers,
            back,
            behind,
            inputs,
            watermarks,
            fires_in: None,
            port,
            relays,
            told: EventTime::NONE,
            told_at: 0,
            held: None,
            due: None,
        };
        (time, stream)
    }

    /// The watermark with which the run begins, and its policy. It is relayed with the first
    /// report: there is one of each source in the first epoch.
    pub(super) fn begins(&self) -> (EventTime, WatermarkPolicy) {
        (self.watermarks.watermark(), self.watermarks.policy())
    }

    /// The least epoch of which a report may still come.
    pub(super) fn least(&self, frontiers: Frontiers<'_>) -> Option<Epoch> {
        frontiers.least(&self.inputs)
    }

    /// Takes the reports that have come, with capabilities of so many ports.
    pub(super) fn hear(&mut self, ports: usize) {
        let watermarks = &mut self.watermarks;
        for input in &mut self.inputs {
            input.for_each(|capability, reports| {
                let epoch = Epoch::from_raw(*capability.least().expect("reports are sent at one epoch"));
                watermarks.take(epoch, || retain(&capability, ports), reports);
            });
        }
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
            self.relay(&fired.at[self.port], chain.hold()?, fired.arrived);
        }
        Ok(false)
    }

    /// Relays what the operator has held so far, if anything of that may be told now.
    pub(super) fn follow(&mut self, at: &Capabilities, hold: Option<EventTime>, now: Moment) {
        if self.reaches(hold) > self.told {
            self.relay(&at[self.port], hold, now);
        }
    }

    /// Shows where it holds back what it knows, if it does. Returns that when it is new.
    pub(super) fn show_held(&mut self, pulse: &Pulse) -> Option<Option<EventTime>> {
        let held = Some(self.told).filter(|told| *told < self.watermarks.watermark().before(self.back));
        if self.held == held {
            return None;
        }
        self.held = held;
        pulse.note_held(self.own, held.map(|held| held.after(self.behind)));
        Some(held)
    }

    /// Shows for what event time the operator waits. An epoch opens at once when that has come,
    /// unless something of it is on its way already.
    pub(super) fn show_due(&mut self, pulse: &Pulse, due: Option<EventTime>) {
        if self.due != due {
            self.due = due;
            pulse.note_due(self.own, due.map(|due| due.after(self.behind)));
        }
    }

    /// How far time has come for those behind it, which get what is so far behind the watermark.
    fn reaches(&self, hold: Option<EventTime>) -> EventTime {
        let watermark = self.watermarks.watermark().before(self.back);
        hold.map_or(watermark, |hold| hold.min(watermark)).max(self.told)
    }

    fn relay(&mut self, at: &Capability<u64>, hold: Option<EventTime>, arrived: Moment) {
        if self.watermarks.watermark().known().is_some() {
            (self.told, self.told_at) = (self.reaches(hold), self.told_at.max(*at.time()));
            let reports = reports(self.own, self.workers, Summary::at(self.told), arrived);
            let mut relays = self.relays.activate();
            let at = at.delayed(&self.told_at);
            let mut session = relays.session(&at);
            reports.for_each(|report| session.give(report));
        }
    }
}
