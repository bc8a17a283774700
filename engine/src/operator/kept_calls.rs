//! Calls for which no cut waits: the beginning of a chain, whose state is the records of its open
//! calls.
//!
//! A record is state from when it comes until its answer is handed on. So an answer and the end of
//! its record are on one side of every cut, and a run that goes on from a checkpoint makes the
//! calls of the records in it again. Most calls are answered in the checkpoint in which their
//! records came, and then no delta has them.
//!
//! Answers leave in the checkpoint that is open. While there are open calls the stage holds
//! capabilities of the newest epoch that its inputs may still send, no older ones: an older one
//! would hold back what is behind it. When the inputs have passed a checkpoint, it closes, whatever
//! is open. Inputs that have ended pass no boundary; then the ticker's boundaries count, so that
//! there are checkpoints also while a bounded run waits for its last calls.
//!
//! An answer may so leave long after event time has passed its record. What waits for event time
//! behind the stage would have closed its windows; so the stage relays reports as such operators
//! do, and no further than the record of an open call allows ([`Stamp::hold`]).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use timely::container::CapacityContainerBuilder;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::operate::FrontierInterest;

use crate::state::pending::{Codec, Number, Pending};
use crate::words::{
    Admission, Backlog, Batch, ByCheckpoint, CheckpointId, Clock, Epoch, Error, ErrorKind, EventTime, Moment, Result,
    Stamp,
};

use super::calls::{Answer, CallPlan, Calls, Place};
use super::inputs::{Frontiers, Input};
use super::keyed::Told;
use super::ledger::Piece;
use super::pulse::Pulse;
use super::stage::{Capabilities, Consume, Next, Pace, Setting, Within, checkpoint_of, give_up, retain, wake_of};
use super::state_ledger::{Keeping, Sent, StateLedger};
use super::timed::{Fires, Time, Timing};
use super::watermark::Advanced;

/// The first stage of the chain.
pub(crate) struct KeptCalls<F, T, U> {
    calls: Calls<F, T, U, Vec<Number>>,
    pending: Pending<T>,
    ledger: StateLedger,
    next: Next<Answer<U>>,
    pulse: Arc<Pulse>,
    /// Capabilities under which answers leave, while there are open calls.
    at: Option<Capabilities>,
    holds: Holds,
    /// What has moved the watermark, until it is relayed.
    advanced: Option<Advanced>,
}

/// How far event time may come for each of the open calls.
#[derive(Default)]
struct Holds(BTreeMap<EventTime, usize>);

impl Holds {
    fn add(&mut self, stamps: impl IntoIterator<Item = Stamp>) {
        stamps.into_iter().filter_map(Stamp::hold).for_each(|hold| *self.0.entry(hold).or_default() += 1);
    }

    fn remove(&mut self, stamps: impl IntoIterator<Item = Stamp>) {
        for hold in stamps.into_iter().filter_map(Stamp::hold) {
            let calls = self.0.get_mut(&hold).expect("it was added");
            *calls -= 1;
            if *calls == 0 {
                self.0.remove(&hold);
            }
        }
    }

    fn least(&self) -> Option<EventTime> {
        self.0.first_key_value().map(|(hold, _)| *hold)
    }
}

impl<F, Fut, T, U> KeptCalls<F, T, U>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = U> + Send + 'static,
    U: Send + 'static,
{
    pub(crate) fn new(
        (place, plan, codec): (Place, CallPlan<T, U>, Codec<T>),
        f: F,
        keeping: Keeping,
        next: Next<Answer<U>>,
        pulse: Arc<Pulse>,
    ) -> KeptCalls<F, T, U> {
        let pending = Pending::new(codec, keeping.checkpoints.is_some(), keeping.worker, pulse.first());
        let ledger = StateLedger::new(keeping);
        let (calls, holds) = (Calls::new(place, plan, f), Holds::default());
        KeptCalls { calls, pending, ledger, next, pulse, at: None, holds, advanced: None }
    }

    /// Loads what the run begins with.
    pub(crate) fn load(&mut self, name: &str) -> Result<()> {
        self.ledger.load(name, &mut self.pending)
    }

    /// Called when the operator is first scheduled, before any record, with capabilities of the
    /// epoch at which sources begin: makes the calls that were open at the end of the run before.
    fn begin(&mut self, at: &Capabilities) -> Result<()> {
        let ledger = at.last().expect("the port of the ledger is the last");
        self.ledger.begin(ledger.clone(), &mut self.pending)?;
        let first = checkpoint_of(ledger);
        self.calls.leave_in(first);
        let loaded: Vec<_> = self.pending.take_loaded().collect();
        // The records of a batch have a time each, or none has.
        let mut loaded = loaded.into_iter().peekable();
        while let Some((number, (record, time))) = loaded.next() {
            let (mut numbers, mut batch) = (vec![number], Batch::under(None));
            batch.append(record, time);
            let is_alike = |(_, (_, other)): &(Number, (T, Option<_>))| other.is_some() == time.is_some();
            while let Some((number, (record, time))) = loaded.next_if(is_alike) {
                numbers.push(number);
                batch.append(record, time);
            }
            self.take(first, batch, None, numbers, at);
        }
        Ok(())
    }

    fn take(
        &mut self,
        checkpoint: CheckpointId,
        batch: Batch<T>,
        admission: Option<Admission>,
        numbers: Vec<Number>,
        at: &Capabilities,
    ) {
        self.pulse.calls_begin(numbers.len());
        self.holds.add(batch.parts().1.iter().copied());
        self.at = Some(at.clone());
        self.ledger.expect_changes(at);
        self.calls.take(checkpoint, batch, admission, numbers);
    }

    /// Nothing older than this epoch comes any more.
    fn see(&mut self, frontier: Epoch) {
        for capability in self.at.iter_mut().flatten() {
            if *capability.time() < frontier.as_raw() {
                capability.downgrade(&frontier.as_raw());
            }
        }
    }

    /// Closes the open checkpoint; from now on answers leave at that epoch of a later one.
    fn close(&mut self, next: Epoch) -> Result<()> {
        self.ledger.cut(&mut self.pending);
        self.ledger.close(Some(&mut self.pending));
        self.ledger.report(&self.pending)?;
        self.see(next);
        if let Some(at) = &self.at {
            self.ledger.expect_changes(at);
        }
        self.calls.leave_in(next.checkpoint());
        Ok(())
    }

    /// Relays what answered calls have held, and lets go of the capabilities when no call is open.
    fn follow(&mut self, time: Option<&mut Time>, now: Moment) {
        if let Some(time) = time {
            self.at.iter().for_each(|at| time.follow(at, self.holds.least(), now));
            time.show_held(&self.pulse).into_iter().for_each(|held| self.ledger.show_held(held));
        }
        if !self.calls.is_open() {
            self.at = None;
        }
    }

    /// Whether nothing is open any more, and the checkpoint is not closed.
    fn is_uncut(&self) -> bool {
        self.at.is_none() && self.ledger.is_open()
    }

    fn encode(&mut self, clock: &Clock, is_busy: bool) -> Result<Vec<Sent>> {
        self.ledger.encode(Some(&mut self.pending), clock, is_busy)
    }
}

impl<F, Fut, T, U> Consume<T> for KeptCalls<F, T, U>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = U> + Send + 'static,
    U: Send + 'static,
{
    fn consume(&mut self, mut batch: Batch<T>, at: &Capabilities) -> Result<()> {
        let (records, stamps) = batch.parts();
        let pending = &mut self.pending;
        let numbers = records.iter().enumerate().map(|(index, record)| pending.add(record, stamps.get(index).copied()));
        let numbers = numbers.collect::<Result<Vec<Number>, _>>().map_err(|cause| {
            Error::new(ErrorKind::State, "cannot encode a record to keep it until its call is answered")
                .caused_by(cause)
        })?;
        self.ledger.note(batch.admission(), at);
        // The memory stays counted until the answer is handed on. Receipts do not wait for it: the
        // record is safe when its checkpoint is committed.
        let admission = batch.admission().map(Admission::without_receipts);
        let batch = Batch::from_parts(batch.take_values(), batch.take_stamps());
        self.take(checkpoint_of(&at[0]), batch, admission, numbers, at);
        self.ledger.report_growth(Some(&mut self.pending))
    }

    fn step(&mut self) -> Result<()> {
        self.calls.turn()?;
        let mut answered = 0;
        if let Some(at) = &self.at {
            let (next, pending, holds) = (&mut self.next, &mut self.pending, &mut self.holds);
            self.calls.hand_on(|numbers, answers| {
                answered += answers.indices.len();
                answers.indices.iter().for_each(|index| pending.finish(numbers[*index]));
                holds.remove(answers.batch.parts().1.iter().copied());
                next.hand_on(answers.batch, at)
            })?;
        }
        if answered > 0 {
            // In this order: for what sees that no call is open there is a reason to cut.
            self.pulse.note_records();
            self.pulse.calls_end(answered);
        }
        self.next.step()
    }
}

impl<F, Fut, T, U> Fires for Within<KeptCalls<F, T, U>>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = U> + Send + 'static,
    U: Send + 'static,
{
    fn advance(&mut self, advanced: Advanced) -> Result<()> {
        self.work(|stage| {
            stage.ledger.advance(advanced.watermark);
            stage.advanced = Some(advanced);
            Ok(())
        })
    }

    fn fire(&mut self, _: Moment) -> Result<Option<Advanced>> {
        self.work(|stage| Ok(stage.advanced.take()))
    }

    fn hold(&mut self) -> Result<Option<EventTime>> {
        self.work(|stage| Ok(stage.holds.least()))
    }
}

/// The checkpoint that the state is in.
struct Open(CheckpointId);

/// Records that have arrived, with a capability of each port.
type Arrived<T> = ByCheckpoint<(Capabilities, Batch<T>)>;

impl Open {
    /// Runs what has arrived, as far as checkpoints allow. Returns whether there is more to do now.
    fn run<F, Fut, T, U>(
        &mut self,
        arrived: &mut Arrived<T>,
        (chain, pace): (&mut Within<KeptCalls<F, T, U>>, &mut Pace),
        (frontier, arrives): (Option<Epoch>, Option<Epoch>),
        mut time: Option<&mut Time>,
        setting: &Setting,
    ) -> Result<bool>
    where
        F: Fn(T) -> Fut,
        Fut: Future<Output = U> + Send + 'static,
        U: Send + 'static,
    {
        loop {
            let more = pace.run(arrived, chain, setting, Some(self.0))?;
            let fires = match &mut time {
                Some(time) => time.fire(arrived, chain, (arrives, self.0), setting)?,
                None => false,
            };
            if more || fires {
                return Ok(true);
            }
            let reported = time.as_deref().and_then(Time::oldest);
            let is_complete = frontier.is_none_or(|frontier| frontier.checkpoint() > self.0);
            let is_applied = arrived.oldest().into_iter().chain(reported).min().is_none_or(|oldest| oldest > self.0);
            if !is_applied || !is_complete {
                return Ok(false);
            }
            if chain.work(|stage| Ok(stage.ledger.is_encoding()))? {
                // One checkpoint at a time.
                return Ok(true);
            }
            // More of the frontier's checkpoint may come, and what has arrived may be older.
            let older = arrived.oldest().into_iter().chain(reported).map(CheckpointId::first_epoch);
            let next = older.chain(frontier).min();
            let next = next.unwrap_or_else(|| self.0.next().first_epoch()).max(self.0.next().first_epoch());
            chain.work(|stage| stage.close(next))?;
            self.0 = next.checkpoint();
            if arrived.oldest().is_none() && reported.is_none() {
                return Ok(false);
            }
        }
    }
}

/// Builds the operator. It relays event time if it is told it.
pub(crate) fn build<'a, F, Fut, T, U>(
    scope: Scope<'a, u64>,
    name: &str,
    inputs: Vec<Stream<'a, u64, Batch<T>>>,
    timing: Option<Timing<'a>>,
    setting: Setting,
    head: impl FnOnce(&mut OperatorBuilder<'a, u64>) -> Result<Within<KeptCalls<F, T, U>>>,
) -> Result<Told<'a>>
where
    F: Fn(T) -> Fut + 'static,
    Fut: Future<Output = U> + Send + 'static,
    T: 'static,
    U: Send + 'static,
{
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let connect = |stream| Input::new(&mut builder, stream, Pipeline, FrontierInterest::IfCapability);
    let mut inputs: Vec<_> = inputs.into_iter().map(connect).collect();
    let mut chain = match head(&mut builder) {
        Ok(chain) => chain,
        Err(error) => {
            give_up(builder);
            return Err(error);
        }
    };
    // Behind the ports of the chain, which are numbered from 0.
    let (mut time, relays) = timing.map(|timing| Time::new(&mut builder, timing)).unzip();
    // The last one.
    let ledger_port = builder.shape().outputs();
    let (ledger, ledger_stream) = builder.new_output::<Vec<Piece>>();
    let wake = wake_of(scope, &builder);
    setting.pulse.wakes_for_room(wake.clone());
    setting.pulse.wakes_at_cuts(wake.clone());
    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |mut capabilities| {
        let first = setting.pulse.first();
        // Where sources begin: a micro-batch waits for what is older, and an operator behind this
        // one may hold what it gets until the batch is closed.
        let begins = first.opening_epoch().as_raw();
        capabilities.iter_mut().for_each(|capability| capability.downgrade(&begins));
        let mut capabilities = Some(capabilities);
        let mut ledger = OutputBuilder::<u64, CapacityContainerBuilder<Vec<Piece>>>::from(ledger);
        let mut arrived: Arrived<T> = ByCheckpoint::default();
        let mut open = Open(first);
        let mut pace = Pace::default();
        let pulse = Arc::clone(&setting.pulse);
        let mut backlog = Backlog::new(setting.stall.clone(), move || pulse.wake_ingests());
        move |frontiers| {
            wake.listen();
            let began = setting.clock.now();
            if let Some(at) = capabilities.take()
                && let Err(error) = chain.work(|stage| stage.begin(&at))
            {
                setting.fault.record(error);
            }
            let frontiers = Frontiers::new(frontiers);
            let reported = time.as_ref().and_then(|time| time.least(frontiers));
            let frontier = frontiers.least(&inputs).into_iter().chain(reported).min();
            let mut has_come = false;
            for input in &mut inputs {
                input.for_each(|capability, batch| {
                    let epoch = Epoch::from_raw(*capability.least().expect("a batch is sent at one epoch"));
                    arrived.push(epoch.checkpoint(), (retain(&capability, ledger_port + 1), std::mem::take(batch)));
                    has_come = true;
                });
            }
            time.iter_mut().for_each(|time| time.hear(ledger_port + 1));
            // After a fault everything stays as it is: the capabilities are kept.
            if setting.fault.is_set() {
                return;
            }
            let more = chain.work(|stage| {
                let passed = passed(frontier, stage.at.is_some(), open.0, &setting.pulse);
                passed.filter(|passed| passed.checkpoint() == open.0).into_iter().for_each(|at| stage.see(at));
                Ok((passed, frontier))
            });
            let more = more.and_then(|frontiers| {
                open.run(&mut arrived, (&mut chain, &mut pace), frontiers, time.as_mut(), &setting)
            });
            let more = more.and_then(|more| chain.step().map(|()| more)).and_then(|more| {
                chain.work(|stage| {
                    stage.follow(time.as_mut(), began);
                    Ok(())
                })?;
                for (piece, at) in chain.work(|stage| stage.encode(&setting.clock, has_come || more))? {
                    ledger.activate().session(&at).give(piece);
                }
                // When inputs have ended, no frontier wakes this operator for its last checkpoint.
                let is_last = frontier.is_none();
                Ok(more || chain.work(|stage| Ok(stage.ledger.is_encoding() || is_last && stage.is_uncut()))?)
            });
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

/// Up to which epoch everything has come. Inputs that have ended are at the open epoch while calls
/// are open, as far as the checkpoint may be closed.
fn passed(frontier: Option<Epoch>, has_open_calls: bool, open: CheckpointId, pulse: &Pulse) -> Option<Epoch> {
    match frontier {
        Some(frontier) => Some(frontier),
        None if has_open_calls && pulse.may_close(open) => Some(pulse.epoch()),
        None if has_open_calls => Some(open.first_epoch()),
        None => None,
    }
}
