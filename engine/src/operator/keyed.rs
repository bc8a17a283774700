//! The harness of a keyed operator: the beginning of a chain, to which records come by the group of
//! their key.
//!
//! Its state is in one checkpoint at a time. Records of the next one are set aside until the
//! frontiers of all inputs have passed the boundary: the skew between workers, a wake-up and the
//! longest batch. Then the checkpoint is closed: what it emits as a whole leaves, at an epoch that
//! still lies in it, and the records that were set aside run. So an output and the change of state
//! that caused it are on one side of every cut.
//!
//! It learns of frontiers only while it holds a capability. From the first change of a checkpoint
//! until the checkpoint is closed it holds one of its ledger port, and not of its outputs: that
//! would hold back everything behind it. The frontier of the ledger shows `gather` what is cut.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::ParallelizationContract;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::operate::FrontierInterest;

use crate::state::keep::{Held, Keep};
use crate::words::{
    Admission, Backlog, Batch, ByCheckpoint, CheckpointId, Clock, Epoch, EventTime, Moment, Result, Stamp,
    WatermarkPolicy,
};

use super::arrivals::Arrivals;
use super::inputs::{Frontiers, Input};
use super::late::LateStream;
use super::ledger::Piece;
use super::stage::{Capabilities, Consume, Next, Pace, Setting, Within, give_up, retain, wake_of};
use super::state_ledger::{Keeping, Sent, StateLedger};
use super::timed::{Fires, Time, Timing};
use super::watermark::{Advanced, Report};

/// How many rows that no record has led to leave at once, and for how long such rows leave before
/// records come in between.
const ROWS_MAX: usize = 512;
const ROWS_FOR: Duration = Duration::from_micros(200);

/// What a keyed operator does.
pub(crate) trait Operate: 'static {
    type Key: 'static;
    type Input: 'static;
    type Output: 'static;

    /// Whether [`close`](Operate::close) emits anything under each trigger.
    const EMITS_AT_CLOSE: bool;

    /// Whether a record whose time is that of the watermark may come too late. What an operator
    /// emits may have the time that it relays, and a record that of the clock as it was reported.
    const IS_STRICT: bool = false;

    /// Whether [`close`](Operate::close) emits anything.
    fn emits_at_close(&self) -> bool {
        Self::EMITS_AT_CLOSE
    }

    /// Applies records, in their order. What they lead to at once goes to `out`.
    ///
    /// # Errors
    /// When the run cannot go on.
    fn apply(
        &mut self,
        records: Vec<(Self::Key, Self::Input)>,
        stamps: VecDeque<Stamp>,
        out: &mut Batch<Self::Output>,
    ) -> Result<()>;

    /// Called when all records of a checkpoint are applied and its changes are [cut](Keep::cut),
    /// again and again until it returns `false`: adds at most about `rows` of what the checkpoint
    /// emits as a whole.
    fn close(&mut self, rows: usize, out: &mut Batch<Self::Output>) -> bool {
        let _ = (rows, out);
        false
    }

    /// Called once, before any record: all state is loaded. What the operator waits for event time
    /// with has come to this watermark, by this policy.
    fn begin(&mut self, watermark: EventTime, policy: WatermarkPolicy) {
        let _ = (watermark, policy);
    }

    /// The watermark has moved: what it makes final is [fired](Operate::fire) from now on.
    fn advance(&mut self, watermark: EventTime) {
        let _ = watermark;
    }

    /// Emits at most about `rows` of what is final. Returns whether there is more. Records may come
    /// in between.
    ///
    /// # Errors
    /// When the run cannot go on.
    fn fire(&mut self, rows: usize, out: &mut Batch<Self::Output>) -> Result<bool> {
        let _ = (rows, out);
        Ok(false)
    }

    /// The event time at which the next thing is final.
    fn due(&self) -> Option<EventTime> {
        None
    }

    /// Adds a port for late records to the operator that is being built, if they are to be handed
    /// on.
    fn open_late<'a>(&mut self, builder: &mut OperatorBuilder<'a, u64>) -> Option<LateStream<'a, Self::Input>> {
        let _ = builder;
        None
    }

    /// Called behind each [`apply`](Operate::apply): hands on the records among them that were
    /// late. Returns how many there were.
    ///
    /// # Errors
    /// When the run cannot go on.
    fn hand_on_late(&mut self, admission: Option<&Admission>, at: &Capabilities) -> Result<u64> {
        let _ = (admission, at);
        Ok(0)
    }

    /// The state that outlives a checkpoint.
    fn kept(&mut self) -> Option<&mut dyn Keep> {
        None
    }

    /// All that it holds between batches.
    fn held(&mut self) -> Option<&mut dyn Held> {
        self.kept().map(|kept| kept as &mut dyn Held)
    }

    /// The number of rows that [`close`](Operate::close) would emit now, where it emits them in the
    /// order in which their records came.
    fn rows(&self) -> Option<usize> {
        None
    }
}

/// The first stage of the chain.
pub(crate) struct KeyedStage<O: Operate> {
    operate: O,
    ledger: StateLedger,
    next: Next<O::Output>,
    /// Capabilities of the newest epoch of the open checkpoint, for what it emits as a whole.
    at: Option<Capabilities>,
    arrivals: Arrivals,
    /// Whether the changes of the open checkpoint are cut.
    is_cut: bool,
    /// What fires now, if anything.
    firing: Option<Advanced>,
    /// How long what is emitted as a whole may wait, where no checkpoint is closed before.
    every: Option<Duration>,
}

impl<O: Operate> KeyedStage<O> {
    pub(crate) fn new(operate: O, every: Option<Duration>, keeping: Keeping, next: Next<O::Output>) -> KeyedStage<O> {
        let ledger = StateLedger::new(keeping);
        KeyedStage {
            operate,
            ledger,
            next,
            at: None,
            arrivals: Arrivals::default(),
            is_cut: false,
            firing: None,
            every,
        }
    }

    /// See [`Operate::open_late`].
    pub(crate) fn open_late<'a>(&mut self, builder: &mut OperatorBuilder<'a, u64>) -> Option<LateStream<'a, O::Input>> {
        self.operate.open_late(builder)
    }

    /// Loads what the run begins with.
    pub(crate) fn load(&mut self, name: &str) -> Result<()> {
        self.operate.kept().map_or(Ok(()), |kept| self.ledger.load(name, kept))
    }

    /// Called when the operator is first scheduled, before any record, with a capability of the
    /// ledger for the first epoch of the run.
    fn begin(&mut self, at: Capability<u64>, (watermark, policy): (EventTime, WatermarkPolicy)) -> Result<()> {
        self.operate.kept().map_or(Ok(()), |kept| self.ledger.begin(at, kept))?;
        self.operate.begin(watermark, policy);
        Ok(())
    }

    /// The watermark has moved.
    fn advance(&mut self, advanced: Advanced) {
        self.operate.advance(advanced.watermark);
        self.ledger.advance(advanced.watermark);
        self.firing = Some(advanced);
    }

    /// Emits some of what the watermark has made final. When that is all, returns what has moved
    /// the watermark.
    fn fire(&mut self, now: Moment) -> Result<Option<Advanced>> {
        let Some(Advanced { at, arrived, .. }) = &self.firing else { return Ok(None) };
        let (began, mut more) = (Instant::now(), true);
        while more && began.elapsed() < ROWS_FOR {
            let mut out = Batch::under(Some(Admission::of_whole(*arrived, now)));
            more = self.operate.fire(ROWS_MAX, &mut out)?;
            // A window may be gone without a row.
            let has_changed = self.operate.kept().is_some_and(|kept| kept.has_changed());
            if has_changed || !out.is_empty() {
                self.ledger.note(None, at);
            }
            if !out.is_empty() {
                self.next.hand_on(out, at)?;
            }
        }
        self.operate.held().map_or(Ok(()), |held| self.ledger.report(held))?;
        Ok(if more { None } else { self.firing.take() })
    }

    /// Emits some of what the checkpoint emits as a whole. Returns whether there is more.
    fn close(&mut self, now: Moment) -> Result<bool> {
        if !std::mem::replace(&mut self.is_cut, true)
            && let Some(kept) = self.operate.kept()
        {
            self.ledger.cut(kept);
        }
        let began = Instant::now();
        while began.elapsed() < ROWS_FOR {
            let (rows, arrival) = self.arrivals.next(ROWS_MAX);
            let mut out = Batch::under(arrival.map(|arrival| Admission::of_whole(arrival, now)));
            let more = self.operate.close(rows, &mut out);
            self.arrivals.emitted += rows;
            if let Some(at) = &self.at {
                self.next.hand_on(out, at)?;
            }
            if !more {
                (self.at, self.arrivals, self.is_cut) = (None, Arrivals::default(), false);
                self.ledger.close(self.operate.kept());
                self.operate.held().map_or(Ok(()), |held| self.ledger.report(held))?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether something was changed and is not emitted yet.
    fn is_pending(&self) -> bool {
        self.at.is_some()
    }

    fn is_encoding(&self) -> bool {
        self.ledger.is_encoding()
    }

    fn encode(&mut self, clock: &Clock, is_busy: bool) -> Result<Vec<Sent>> {
        self.ledger.encode(self.operate.kept(), clock, is_busy)
    }
}

impl<O: Operate> Drop for KeyedStage<O> {
    fn drop(&mut self) {
        self.operate.kept().into_iter().for_each(|kept| self.ledger.end(kept));
    }
}

impl<O: Operate> Consume<(O::Key, O::Input)> for KeyedStage<O> {
    fn consume(&mut self, mut batch: Batch<(O::Key, O::Input)>, at: &Capabilities) -> Result<()> {
        let mut out = Batch::under(batch.admission().cloned());
        self.ledger.note(batch.admission(), at);
        let stamps = batch.take_stamps();
        self.operate.apply(batch.take_values().into(), stamps, &mut out)?;
        if self.operate.emits_at_close() {
            self.at = Some(at.clone());
            if let Some(admission) = batch.admission() {
                self.arrivals.note(admission.arrival(), self.operate.rows());
            }
        }
        let late = self.operate.hand_on_late(batch.admission(), at)?;
        self.ledger.note_late(late);
        self.ledger.report_growth(self.operate.held())?;
        self.next.hand_on(out, at)
    }

    fn step(&mut self) -> Result<()> {
        self.next.step()
    }
}

/// A chain that begins with keyed state.
type Chain<O> = Within<KeyedStage<O>>;

impl<O: Operate> Fires for Chain<O> {
    fn advance(&mut self, advanced: Advanced) -> Result<()> {
        self.work(|stage| {
            stage.advance(advanced);
            Ok(())
        })
    }

    fn fire(&mut self, now: Moment) -> Result<Option<Advanced>> {
        self.work(|stage| stage.fire(now))
    }
}

/// Records with their keys.
type KeyedBatch<O> = Batch<(<O as Operate>::Key, <O as Operate>::Input)>;

/// Records that have arrived, with a capability of each port.
type Arrived<O> = ByCheckpoint<(Capabilities, KeyedBatch<O>)>;

/// The checkpoint that the state is in.
struct Open {
    checkpoint: CheckpointId,
    /// Whether it has something to emit as a whole now.
    emits: Emission,
}

/// What is emitted as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emission {
    /// Nothing now: records are applied.
    Nothing,
    /// What has changed so far. More records follow.
    SoFar,
    /// What is left when all records are applied.
    All,
}

impl Open {
    /// Runs what has arrived, as far as checkpoints allow. Returns whether there is more to do now.
    fn run<O: Operate>(
        &mut self,
        arrived: &mut Arrived<O>,
        (chain, pace): (&mut Chain<O>, &mut Pace),
        frontier: Option<Epoch>,
        mut time: Option<&mut Time>,
        (setting, is_due): (&Setting, bool),
    ) -> Result<bool> {
        // At most once: records come in between.
        let mut is_due = is_due && self.emits == Emission::Nothing;
        loop {
            if std::mem::take(&mut is_due)
                && !setting.stall.holds(self.checkpoint)
                && !chain.work(|stage| Ok(stage.is_encoding()))?
            {
                self.emits = Emission::SoFar;
            }
            if self.emits == Emission::SoFar {
                if setting.stall.holds(self.checkpoint) {
                    return Ok(false);
                }
                if chain.work(|stage| stage.close(setting.clock.now()))? {
                    return Ok(true);
                }
                self.emits = Emission::Nothing;
            }
            if self.emits == Emission::Nothing {
                let more = pace.run(arrived, chain, setting, Some(self.checkpoint))?;
                // One slice at a time: records come in between.
                let fires = match &mut time {
                    Some(time) => time.fire(arrived, chain, (frontier, self.checkpoint), setting)?,
                    None => false,
                };
                if more || fires {
                    return Ok(true);
                }
            }
            let reported = time.as_deref().and_then(Time::oldest);
            let is_timed = reported.is_none_or(|oldest| oldest > self.checkpoint);
            let is_applied = arrived.oldest().is_none_or(|oldest| oldest > self.checkpoint);
            let is_complete = frontier.is_none_or(|frontier| frontier.checkpoint() > self.checkpoint);
            if !is_applied || !is_complete || !is_timed || setting.stall.holds(self.checkpoint) {
                return Ok(false);
            }
            if chain.work(|stage| Ok(stage.is_encoding()))? {
                // One checkpoint at a time.
                return Ok(true);
            }
            self.emits = Emission::All;
            if chain.work(|stage| stage.close(setting.clock.now()))? {
                return Ok(true);
            }
            self.emits = Emission::Nothing;
            // More of the frontier's checkpoint may come, and what has arrived may be older.
            let next = arrived.oldest().into_iter().chain(frontier.map(Epoch::checkpoint)).chain(reported).min();
            self.checkpoint = next.unwrap_or(CheckpointId::FIRST).max(self.checkpoint.next());
            if arrived.oldest().is_none() && reported.is_none() {
                return Ok(false);
            }
        }
    }
}

/// What an operator tells others: its ledger for `gather`, and what it relays of event time.
pub(crate) struct Told<'a> {
    pub(crate) ledger: Stream<'a, u64, Vec<Piece>>,
    pub(crate) relays: Option<Stream<'a, u64, Vec<Report>>>,
}

/// Builds the operator. It waits for event time if it is told how.
pub(crate) fn build<'a, O: Operate, P: ParallelizationContract<u64, KeyedBatch<O>>>(
    scope: Scope<'a, u64>,
    name: &str,
    inputs: Vec<Stream<'a, u64, KeyedBatch<O>>>,
    pact: impl Fn() -> P,
    timing: Option<Timing<'a>>,
    setting: Setting,
    head: impl FnOnce(&mut OperatorBuilder<'a, u64>) -> Result<Chain<O>>,
) -> Result<Told<'a>> {
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let connect = |stream| Input::new(&mut builder, stream, pact(), FrontierInterest::IfCapability);
    let mut inputs: Vec<_> = inputs.into_iter().map(connect).collect();
    let mut chain = match head(&mut builder) {
        Ok(chain) => chain,
        Err(error) => {
            give_up(builder);
            return Err(error);
        }
    };
    let every = chain.work(|stage| Ok(stage.every)).unwrap_or(None);
    // Behind the ports of the chain, which are numbered from 0.
    let (mut time, relays) = timing.map(|timing| Time::new(&mut builder, timing)).unzip();
    // The last one.
    let ledger_port = builder.shape().outputs();
    let (ledger, ledger_stream) = builder.new_output::<Vec<Piece>>();
    let wake = wake_of(scope, &builder);
    setting.pulse.wakes_for_room(wake.clone());
    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |mut capabilities| {
        let epoch = setting.pulse.first().first_epoch().as_raw();
        capabilities.iter_mut().for_each(|capability| capability.downgrade(&epoch));
        let mut first = Some(capabilities);
        let mut ledger = OutputBuilder::<u64, CapacityContainerBuilder<Vec<Piece>>>::from(ledger);
        let mut arrived: Arrived<O> = ByCheckpoint::default();
        let mut open = Open { checkpoint: setting.pulse.first(), emits: Emission::Nothing };
        let mut due: Option<Moment> = None;
        let mut pace = Pace::default();
        let pulse = Arc::clone(&setting.pulse);
        let mut backlog = Backlog::new(setting.stall.clone(), move || pulse.wake_ingests());
        move |frontiers| {
            wake.listen();
            let began = setting.clock.now();
            if let Some(mut first) = first.take() {
                let watermark = time.as_ref().map(Time::begins);
                let watermark = watermark.unwrap_or((EventTime::NONE, WatermarkPolicy::default()));
                let of_ledger = first.swap_remove(ledger_port);
                if let Err(error) = chain.work(|stage| stage.begin(of_ledger, watermark)) {
                    setting.fault.record(error);
                }
            }
            let frontiers = Frontiers::new(frontiers);
            let reported = time.as_ref().and_then(|time| time.least(frontiers));
            let frontier = frontiers.least(&inputs).into_iter().chain(reported).min();
            let mut has_come = false;
            for input in &mut inputs {
                input.for_each(|capability, batch| {
                    let epoch = Epoch::from_raw(*capability.least().expect("a batch is sent at one epoch"));
                    if setting.is_exchange && setting.stall.arrive(batch.len()) {
                        setting.pulse.wake_ingests();
                    }
                    let at = retain(&capability, ledger_port + 1);
                    arrived.push(epoch.checkpoint(), (at, std::mem::take(batch)));
                    has_come = true;
                });
            }
            time.iter_mut().for_each(|time| time.hear(ledger_port + 1));
            // After a fault everything stays as it is: the capabilities are kept.
            if setting.fault.is_set() {
                return;
            }
            let is_due = due.is_some_and(|due| due <= began);
            let timed = (&setting, is_due);
            let more = open.run::<O>(&mut arrived, (&mut chain, &mut pace), frontier, time.as_mut(), timed);
            let more = more.and_then(|more| chain.step().map(|()| more)).and_then(|more| {
                for (piece, at) in chain.work(|stage| stage.encode(&setting.clock, has_come || more))? {
                    ledger.activate().session(&at).give(piece);
                }
                if let Some(every) = every {
                    let is_pending = chain.work(|stage| Ok(stage.is_pending()))?;
                    if is_pending && due.is_none() {
                        setting.pulse.wake_at(began.after(every), wake.clone());
                    }
                    due = is_pending.then_some(due.unwrap_or(began.after(every)));
                }
                Ok(more || chain.work(|stage| Ok(stage.is_encoding()))?)
            });
            if let Some(time) = &mut time {
                let due = chain.work(|stage| Ok(stage.operate.due())).unwrap_or(None);
                time.show_due(&setting.pulse, due);
            }
            match more {
                Ok(true) => activator.activate(),
                Ok(false) => {}
                Err(error) => setting.fault.record(error),
            }
            backlog.look(arrived.iter().map(|(_, batch)| batch.len()).sum(), pace.records_max());
        }
    });
    Ok(Told { ledger: ledger_stream, relays })
}
