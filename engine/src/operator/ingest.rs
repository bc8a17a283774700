//! Where records enter: polls one worker's reader, keeps what it returned until it is *released*,
//! then stamps it with the open epoch and runs the first chain over it. In `Continuous` a batch is
//! released at once; in `MicroBatch` it waits in the queue, without a capability, until the tick.
//!
//! The offset of a cut is the position after the last record released before it. It is kept here
//! and not in the reader, which may have read further.
//!
//! ```text
//! reader ──poll──▶ queue ──release──▶ chain ──▶ egress, or an exchange
//!                                 └─▶ positions ──at the cut──▶ ledger ──▶ gather
//! ```

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::scheduling::Activator;

use crate::io::{AtStop, End, Polled, Reader};
use crate::words::{
    Admission, Batch, Budget, Clock, Epoch, EventTime, Moment, Offset, Offsets, Partition, ReadBatch, Result, Room,
    SourceMeter, Stall, Wake,
};

use super::drain::{Drain, Drains, Released as ReleasedRecords};
use super::fault::{self, Fault, Node};
use super::intake::Intake;
use super::ledger::{Part, Piece};
use super::marks::Board;
use super::pulse::Pulse;
use super::stage::{Capabilities, Consume, Tail, give_up, run, wake_of};
use super::watermark::Report;

mod limits;
mod time;

/// The index of a source in the plan, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SourceIndex(pub(crate) usize);

/// When a batch leaves the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    AtOnce,
    AtTicks,
}

/// What an ingest operator shares with the rest of its worker.
pub(crate) struct Setting {
    pub(crate) node: Node,
    pub(crate) name: String,
    pub(crate) source: SourceIndex,
    pub(crate) worker: usize,
    pub(crate) release: Release,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) stall: Stall,
    pub(crate) intake: Arc<Intake>,
    pub(crate) clock: Clock,
    pub(crate) fault: Arc<Fault>,
    pub(crate) meter: Arc<SourceMeter>,
    pub(crate) drains: Drains,
    /// What is known of event time, where the stream has a watermark.
    pub(crate) marks: Option<Rc<Board>>,
    pub(crate) workers: usize,
    /// Wakes the control thread.
    pub(crate) control: Wake,
}

/// What a source tells others: its ledger for `gather`, and its reports of event time.
pub(crate) struct Told<'a> {
    pub(crate) ledger: Stream<'a, u64, Vec<Piece>>,
    pub(crate) reports: Option<Stream<'a, u64, Vec<Report>>>,
}

/// Builds the operator; `reader` makes the reader once the operator can be woken.
pub(crate) fn build<'a, T: 'static>(
    scope: Scope<'a, u64>,
    setting: Setting,
    reader: impl FnOnce(Wake) -> Result<Box<dyn Reader<Item = T>>>,
    tail: Tail<'a, T>,
) -> Result<Told<'a>> {
    let mut builder = OperatorBuilder::new(setting.name.clone(), scope);
    // Port 0 is the ledger, port 1 are the reports, if there are any, and the chain's ports follow.
    let (ledger, pieces) = builder.new_output();
    let (reports, reported) = setting.marks.as_ref().map(|_| builder.new_output()).unzip();
    let chain = tail(&mut builder);
    let activator = scope.activator_for(builder.operator_info().address);
    let wake = wake_of(scope, &builder);
    let (chain, reader) = match (chain, reader(wake.clone())) {
        (Ok(chain), Ok(reader)) => (chain, reader),
        (Err(error), _) | (_, Err(error)) => {
            give_up(builder);
            return Err(error);
        }
    };
    if let Some(marks) = &setting.marks {
        setting.pulse.note_mark((setting.node, setting.worker), EventTime::NONE);
        if marks.is_by_clock() {
            setting.pulse.follows_clock((setting.node, setting.worker));
        }
    }
    setting.pulse.source_opened(wake.clone());
    let freed = wake.clone();
    setting.budget.on_freed(move || freed.wake());
    // A limit by time is checked again when a simulated clock has moved.
    let (moved, intake) = (wake.clone(), Arc::downgrade(&setting.intake));
    setting.clock.on_advance(move || {
        let Some(intake) = intake.upgrade() else { return false };
        intake.look_again();
        moved.wake();
        true
    });
    builder.build(move |capabilities| {
        let mut ingest = Ingest {
            reader: Some(reader),
            chain,
            ledger: OutputBuilder::from(ledger),
            reports: reports.map(OutputBuilder::from),
            nameless: Partition::new(setting.name.as_str()),
            queue: VecDeque::new(),
            released: HashMap::new(),
            capabilities,
            records_max: RECORDS_FIRST,
            released_max: if setting.release == Release::AtTicks { RECORDS_FIRST } else { RECORDS_MAX },
            ended: None,
            at_stop: None,
            looks_at: None,
            waits_until: None,
            activator,
            wake,
            setting,
        };
        let opening = ingest.setting.pulse.first().opening_epoch();
        ingest.downgrade(opening);
        move |_| ingest.activate()
    });
    Ok(Told { ledger: pieces, reports: reported })
}

/// How far a micro-batch is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Released {
    All,
    /// There is more.
    Some,
    /// There is more, and a writer has no room for it, or a stage is behind.
    Stalled,
}

/// A poll returns about a millisecond's work, so that no operator of this worker waits longer than
/// that.
const STEP: Duration = Duration::from_millis(1);
/// The longest time between two checks of a rate limit.
const ASK_AGAIN_WITHIN: Duration = Duration::from_secs(1);
/// The size of the first poll, small because it is not known yet how long a record takes.
const RECORDS_FIRST: usize = 64;
/// The largest poll, however fast records are: the memory of a batch is free only when its last
/// record is done.
const RECORDS_MAX: usize = 4096;

struct Ingest<T> {
    setting: Setting,
    /// `None` once the operator has ended.
    reader: Option<Box<dyn Reader<Item = T>>>,
    chain: Box<dyn Consume<T>>,
    ledger: OutputBuilder<u64, CapacityContainerBuilder<Vec<Piece>>>,
    reports: Option<OutputBuilder<u64, CapacityContainerBuilder<Vec<Report>>>>,
    queue: VecDeque<Queued<T>>,
    /// The partition of a source that names none.
    nameless: Partition,
    /// Positions that moved in the open checkpoint.
    released: HashMap<Partition, Offset>,
    capabilities: Capabilities,
    records_max: usize,
    /// How many records can be released within a step, as far as is known.
    released_max: usize,
    /// What ended, once the reader has returned its last record.
    ended: Option<End>,
    /// What the reader answered when the job was stopped.
    at_stop: Option<AtStop>,
    /// When it was asked to be woken to look for silent partitions.
    looks_at: Option<Moment>,
    /// The time of the clock until which it was asked to be woken.
    waits_until: Option<EventTime>,
    activator: Activator,
    wake: Wake,
}

/// A batch that waits for its tick.
struct Queued<T> {
    /// When it was polled, and the epoch that was open then: the first of these decides to which
    /// micro-batch it belongs. A simulated clock stands still while a batch is released, and what
    /// is polled meanwhile belongs to the next one.
    polled: (Moment, Epoch),
    position: Option<(Partition, Offset)>,
    /// Whether the partition ends with it.
    ends_partition: bool,
    batch: Batch<T>,
}

impl<T> Ingest<T> {
    /// One activation: answers drains, moves to the open epoch, reads, releases, ends.
    fn activate(&mut self) {
        self.wake.listen();
        if self.setting.fault.is_set() {
            return;
        }
        if let Err(error) = self.step().and_then(|()| self.chain.step()) {
            self.setting.fault.record(error);
        }
    }

    fn step(&mut self) -> Result<()> {
        if self.reader.is_none() {
            return Ok(());
        }
        let _entered = fault::enter(self.setting.node);
        self.answer_drains();
        self.look_at_clock();
        let more = if self.setting.pulse.is_stopping() { self.wind_up()? } else { self.close()? | self.read()? };
        if more {
            self.activator.activate();
        } else if self.ended.is_some() && self.queue.is_empty() {
            self.end();
        }
        Ok(())
    }

    /// The job stops: only records that cannot be read again are still released. Returns whether
    /// there is more to do now.
    fn wind_up(&mut self) -> Result<bool> {
        let reader = self.reader.as_mut().expect("a step begins with a reader");
        let at_stop = *self.at_stop.get_or_insert_with(|| reader.stop());
        if at_stop == AtStop::ReadAgain {
            self.drop_queued(|_| true);
            self.ended = Some(End::OfRun);
            return Ok(false);
        }
        let more = self.close()? | self.read()?;
        let released = self.release_until(self.setting.clock.now(), Epoch::LAST)?;
        Ok(more || released == Released::Some)
    }

    /// Moves to the open epoch; in a micro-batch, once everything up to its moment is released.
    /// Returns whether there is more to release now.
    fn close(&mut self) -> Result<bool> {
        let open = self.setting.pulse.epoch();
        if open <= self.epoch() {
            return Ok(false);
        }
        if self.setting.release == Release::AtTicks {
            match self.release_until(self.setting.pulse.until(), open)? {
                Released::All => {}
                Released::Some => return Ok(true),
                // A writer wakes this operator when it has room again.
                Released::Stalled => return Ok(false),
            }
        }
        if open.checkpoint() == self.epoch().checkpoint() || self.setting.pulse.may_close(self.epoch().checkpoint()) {
            self.move_to(open);
        }
        Ok(false)
    }

    /// Polls the reader once, if there is room and it has not ended. Returns whether there is more
    /// to read now.
    fn read(&mut self) -> Result<bool> {
        let source = self.setting.source.0 as u64;
        if self.ended.is_some() {
            return Ok(false);
        }
        if self.setting.stall.holds_sources() {
            self.setting.budget.pass_on(source);
            self.pass_on();
            return Ok(false);
        }
        let wanted = self.records_max.min(self.released_max);
        let Some(granted) = self.granted(wanted) else {
            self.setting.budget.pass_on(source);
            // A limit does not hold back the end.
            self.ended = self.reader.as_ref().and_then(|reader| reader.has_ended());
            return Ok(false);
        };
        let Some(room) = self.setting.budget.room(source) else {
            self.came(granted, 0);
            // For a micro-batch, a tick helps only if something waits for it.
            if self.setting.release == Release::AtOnce || !self.queue.is_empty() {
                self.setting.pulse.note_starved();
            }
            return Ok(false);
        };
        // Drains that were posted while records were released concern the assignment of that time.
        // If one of their partitions is assigned again, the drain must not drop what is read of it
        // from here on.
        self.answer_drains();
        self.assign_first();
        let reader = self.reader.as_mut().expect("a step begins with a reader");
        let mut batch = ReadBatch::new();
        // In this order: of an epoch that opens between the two, the moment decides.
        let open = self.setting.pulse.epoch();
        let polled_at = self.setting.clock.now();
        let polled = reader.poll(&mut batch, Room { records: granted.records, bytes: room });
        self.came(granted, batch.len());
        self.setting.budget.pass_on(source);
        let polled = polled.map_err(|error| error.within(&self.setting.name))?;
        self.ended = match polled {
            Polled::Ended(end) => Some(if self.at_stop.is_some() { End::OfRun } else { end }),
            // A source that is being drained gets no more records.
            Polled::Idle if self.at_stop == Some(AtStop::Drain) => Some(End::OfRun),
            Polled::Idle | Polled::More => None,
        };
        self.setting.meter.repeated.add(batch.repeated());
        let is_more = polled == Polled::More;
        if batch.has_moved() {
            self.admit(batch, (polled_at, open))?;
        }
        if self.ended.is_none() {
            self.look_for_idle(polled_at, polled == Polled::Idle);
        }
        Ok(is_more)
    }

    /// Charges a batch to the budget, and releases or queues it.
    fn admit(&mut self, mut batch: ReadBatch<T>, polled: (Moment, Epoch)) -> Result<()> {
        let (records, fed, bytes) = (batch.len(), batch.receipts() as u64, batch.bytes());
        let (arrived, position) = (batch.arrival().unwrap_or(polled.0), batch.take_position());
        let ends_partition = batch.ends_partition();
        let batch = batch.admit(|receipts| Admission::new(arrived, bytes, &self.setting.budget, receipts));
        let queued = Queued { polled, position, ends_partition, batch };
        match self.setting.release {
            Release::AtOnce => {
                let now = self.setting.clock.now();
                self.release(queued, now)?;
            }
            Release::AtTicks => {
                self.queue.push_back(queued);
                self.setting.pulse.note_records();
            }
        }
        self.setting.meter.fed.add(fed);
        self.adapt(records, polled.0);
        Ok(())
    }

    /// Drops the queued batches for which `is_dropped` holds.
    fn drop_queued(&mut self, is_dropped: impl Fn(&Queued<T>) -> bool) {
        let records = |queue: &VecDeque<Queued<T>>| queue.iter().map(|queued| queued.batch.len()).sum::<usize>();
        let before = records(&self.queue);
        self.queue.retain(|queued| !is_dropped(queued));
        self.leave(before - records(&self.queue));
    }

    /// This many records no longer wait for a tick.
    fn leave(&self, records: usize) {
        if self.setting.intake.leave(records) {
            self.setting.pulse.wake_ingests();
        }
    }

    /// Releases what was polled until that moment, and before that epoch was open, for at most one
    /// step's time.
    fn release_until(&mut self, until: Moment, before: Epoch) -> Result<Released> {
        let mut now = self.setting.clock.now();
        let deadline = now.after(STEP);
        while let Some(queued) = self.queue.front() {
            let (polled, epoch) = queued.polled;
            if polled > until || epoch >= before {
                break;
            }
            if self.setting.stall.holds_sources() {
                return Ok(Released::Stalled);
            }
            if now > deadline {
                return Ok(Released::Some);
            }
            let queued = self.queue.pop_front().expect("it has a front");
            let (records, before) = (queued.batch.len(), now);
            self.leave(records);
            self.release(queued, now)?;
            now = self.setting.clock.now();
            let took = now - before;
            // Polls are sized by the time that releases take too: in a micro-batch a poll does not
            // include its release.
            if took > 2 * STEP {
                self.released_max = self.released_max.min((records / 2).max(1));
            } else if took < STEP / 2 {
                self.released_max = self.released_max.max(2 * records).min(RECORDS_MAX);
            }
        }
        if !self.queue.is_empty() {
            self.setting.pulse.note_records();
        }
        Ok(Released::All)
    }

    /// Stamps a batch with the open epoch and runs the chain over it.
    fn release(&mut self, queued: Queued<T>, now: Moment) -> Result<()> {
        let Queued { position, batch, ends_partition, .. } = queued;
        let marks = self.setting.marks.clone();
        if let Some(marks) = &marks {
            let partition = position.as_ref().map_or(&self.nameless, |(partition, _)| partition);
            marks.enter(partition, batch.admission().map_or(now, Admission::arrival), now);
        }
        if let Some((partition, next)) = position {
            self.released.insert(partition, next);
        }
        self.setting.meter.records.add(batch.len() as u64);
        self.setting.meter.bytes.add(batch.admission().map_or(0, |admission| admission.bytes().0));
        self.setting.meter.batches.add(1);
        if self.setting.release == Release::AtOnce {
            self.setting.pulse.note_records();
        }
        if let Some(admission) = batch.admission() {
            admission.release(now);
        }
        if !batch.is_empty() {
            run(&mut *self.chain, batch, &self.capabilities)?;
        }
        if let Some(marks) = marks.filter(|_| ends_partition) {
            marks.end_partition();
        }
        self.show_least();
        Ok(())
    }

    /// Carries out posted drains: nothing more of their partitions is released. What was released
    /// is committed with the open checkpoint, or dropped.
    fn answer_drains(&mut self) {
        let checkpoint = self.epoch().checkpoint();
        let drains = self.setting.drains.clone();
        let has_answered = drains.answer(|drain: &Drain| {
            if let Some(reader) = &mut self.reader {
                reader.unassign(&drain.partitions);
            }
            let is_drained = |partition: &Partition| drain.partitions.contains(partition);
            self.drop_queued(|queued| queued.position.as_ref().is_some_and(|(partition, _)| is_drained(partition)));
            if let Some(marks) = &self.setting.marks {
                marks.forget(&drain.partitions);
            }
            if drain.released == ReleasedRecords::Dropped {
                self.released.retain(|partition, _| !is_drained(partition));
            }
            checkpoint
        });
        if has_answered {
            self.setting.control.wake();
        }
    }

    fn epoch(&self) -> Epoch {
        Epoch::from_raw(*self.capabilities[0].time())
    }

    /// Moves to `epoch`. It first reports what is known of event time, and at a boundary sends the
    /// positions of the checkpoint to the ledger.
    fn move_to(&mut self, epoch: Epoch) {
        self.report();
        self.show_least();
        if epoch.checkpoint() > self.epoch().checkpoint() {
            self.record_offsets();
        }
        self.downgrade(epoch);
    }

    fn downgrade(&mut self, epoch: Epoch) {
        self.setting.pulse.note_moved(self.setting.clock.now());
        self.capabilities.iter_mut().for_each(|capability: &mut Capability<u64>| capability.downgrade(&epoch.as_raw()));
    }

    fn record_offsets(&mut self) {
        let mut offsets: Offsets = self.released.drain().collect();
        if let Some(marks) = &self.setting.marks {
            offsets.set_times(marks.take_changed());
            self.setting.meter.show_marks(self.setting.worker, marks.show());
        }
        if offsets.is_empty() {
            return;
        }
        let part = Part::Released(self.setting.source, offsets);
        let piece = Piece { checkpoint: self.epoch().checkpoint(), part };
        self.ledger.activate().session(&self.capabilities[0]).give(piece);
    }

    /// Ends the operator: sends the last positions, then drops the capabilities and the reader.
    fn end(&mut self) {
        self.end_time();
        self.report();
        self.show_least();
        self.record_offsets();
        self.setting.drains.end(self.epoch().checkpoint());
        self.setting.control.wake();
        if let Some(end) = self.ended {
            self.setting.meter.end(end == End::OfTime);
        }
        self.capabilities.clear();
        self.reader = None;
        self.setting.budget.leave(self.setting.source.0 as u64);
        self.pass_on();
        self.setting.pulse.source_ended();
    }
}

impl<T> Drop for Ingest<T> {
    fn drop(&mut self) {
        // A reader that never ended still counts as open, although the run is over.
        if self.reader.is_some() {
            self.setting.pulse.source_ended();
        }
    }
}
