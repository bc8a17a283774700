//! Calls to other services, as a stage: a future for each record, several at once, their results in
//! order, in order by key, or as they come. A batch with open calls holds capabilities of its
//! epoch, so a cut waits for it as for records in flight ([`kept_calls`](super::kept_calls) makes
//! calls for which no cut waits).
//!
//! Futures run on threads of the run (`call_threads`); they report through a channel and wake the
//! operator. The operator itself handles time limits and the pauses before retries: an alarm wakes
//! it when the next of them is due.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use crate::state::pending::Codec;
use crate::words::{
    Admission, Backlog, Batch, ByCheckpoint, CheckpointId, Result, StageMeter, Stall, Stamp, TimedOut, Wake,
    deadline_after,
};

use super::attempt::{Attempt, BLOCKS_AFTER, GroupId, Outcome, RecordId, Whose};
use super::call_queue::{CallQueue, LaneOf, Waiting};
use super::call_threads::CallDesk;
use super::fault::{self, Node};
use super::stage::{Capabilities, Consume, Next, checkpoint_of};

/// How calls are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallOptions {
    pub(crate) at_once: usize,
    pub(crate) is_ordered: bool,
    pub(crate) within: Duration,
}

/// How the calls of a stage are made: options, retries, and the key by which they are in order.
pub(crate) struct CallPlan<T, U> {
    pub(crate) options: CallOptions,
    pub(crate) retry: Option<RetryPolicy<T, U>>,
    pub(crate) lane_of: Option<LaneOf<T>>,
    /// How records of open calls are kept in checkpoints, if they are.
    pub(crate) kept: Option<Codec<T>>,
}

impl<T, U> fmt::Debug for CallPlan<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, retry, lane_of, kept } = self;
        write!(f, "CallPlan({options:?}, retry: {retry:?}, by key: {}, kept: {kept:?})", lane_of.is_some())
    }
}

/// When a failed call is retried.
pub(crate) struct RetryPolicy<T, U> {
    /// How often, not counting the first attempt.
    pub(crate) times: u32,
    /// The pause before the first retry; it doubles for each one after that.
    pub(crate) pause: Duration,
    pub(crate) copy: fn(&T) -> T,
    pub(crate) has_failed: fn(&Answer<U>) -> bool,
}

impl<T, U> fmt::Debug for RetryPolicy<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RetryPolicy({} times, {:?})", self.times, self.pause)
    }
}

/// The longest pause between attempts, unless the first pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often open calls are checked for one that blocks its thread.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The shortest time between two log lines about failed calls.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What became of a call.
pub(crate) type Answer<U> = Result<U, TimedOut>;

/// A call, by its number, and the outcome of its future.
struct Answered<U> {
    call: u64,
    outcome: Outcome<U>,
}

/// The calls of a batch.
struct Group<U, G> {
    of: G,
    admission: Option<Admission>,
    stamps: VecDeque<Stamp>,
    /// With an order: the results that are not handed on yet, with gaps.
    results: VecDeque<Option<Answer<U>>>,
    /// With an order: the number of results that were handed on.
    emitted: usize,
    open: usize,
}

impl<U, G> Drop for Group<U, G> {
    fn drop(&mut self) {
        if self.open > 0
            && let Some(admission) = &self.admission
        {
            admission.lose();
        }
    }
}

/// Answers that can be handed on.
pub(super) struct Answers<U> {
    group: GroupId,
    pub(super) batch: Batch<Answer<U>>,
    /// The places of their records in the batch in which these came.
    pub(super) indices: Vec<usize>,
}

/// The stage of calls for which a cut waits.
pub(crate) struct CallStage<F, T, U> {
    calls: Calls<F, T, U, Capabilities>,
    next: Next<Answer<U>>,
}

/// Calls under way, and what waits before and after them. `G` is what a stage knows of a batch.
pub(crate) struct Calls<F, T, U, G> {
    node: Node,
    name: String,
    meter: Arc<StageMeter>,
    options: CallOptions,
    retry: Option<RetryPolicy<T, U>>,
    f: F,
    desk: CallDesk,
    /// Records whose calls are not made yet, or are to be made again.
    waiting: CallQueue<T>,
    /// Open calls in the order in which they were made, which is the order of their deadlines.
    under_way: BTreeMap<u64, Attempt>,
    next_call: u64,
    /// Copies of the records of open calls, for a retry.
    copies: HashMap<u64, Waiting<T>>,
    /// When the operator is woken next, at the latest.
    alarm: Option<Instant>,
    logged_failures: Option<Instant>,
    groups: BTreeMap<GroupId, Group<U, G>>,
    /// Without an order: results that can be handed on, in the order of the answers. Those of one
    /// group that follow each other are one batch.
    answered: ByCheckpoint<Answers<U>>,
    next_group: u64,
    /// The checkpoint in which answers leave, where it is not that of their records.
    leaves_in: Option<CheckpointId>,
    sender: Sender<Answered<U>>,
    receiver: Receiver<Answered<U>>,
    /// With an order: the number of answers that wait for an earlier one.
    held: usize,
    backlog: Backlog,
    wake: Wake,
    stall: Stall,
}

/// How far calls may run ahead of the first call without an answer, as a multiple of the number of
/// calls at once. Only beyond that does a call that is retried for minutes hold up the others.
const AHEAD: usize = 4;
/// The least number of calls that may run ahead, for stages that make only a few at once.
const AHEAD_MIN: usize = 64;

/// Where a stage of calls is, and what it counts.
pub(crate) struct Place {
    pub(crate) node: Node,
    pub(crate) name: String,
    pub(crate) meter: Arc<StageMeter>,
    pub(crate) desk: CallDesk,
    pub(crate) wake: Wake,
    pub(crate) stall: Stall,
    pub(crate) backlog: Backlog,
}

impl<F, T, U> CallStage<F, T, U> {
    pub(crate) fn new(place: Place, plan: CallPlan<T, U>, f: F, next: Next<Answer<U>>) -> CallStage<F, T, U> {
        CallStage { calls: Calls::new(place, plan, f), next }
    }
}

impl<F, Fut, T, U> Consume<T> for CallStage<F, T, U>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = U> + Send + 'static,
    U: Send + 'static,
{
    fn consume(&mut self, batch: Batch<T>, at: &Capabilities) -> Result<()> {
        let checkpoint = checkpoint_of(at.first().expect("a stage of calls ends in a port or in an egress"));
        let admission = batch.admission().cloned();
        self.calls.take(checkpoint, batch, admission, at.clone());
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        self.calls.turn()?;
        let next = &mut self.next;
        self.calls.hand_on(|at, answers| next.hand_on(answers.batch, at))?;
        self.next.step()
    }
}

impl<F, T, U, G> Calls<F, T, U, G> {
    pub(super) fn new(
        place: Place,
        CallPlan { options, retry, lane_of, kept: _ }: CallPlan<T, U>,
        f: F,
    ) -> Calls<F, T, U, G> {
        // Unbounded, because a future's thread must not wait; there is one answer for each open
        // call, and those have a limit.
        let (sender, receiver) = mpsc::channel();
        let Place { node, name, meter, desk, wake, stall, backlog } = place;
        Calls {
            node,
            name,
            meter,
            options,
            retry,
            f,
            desk,
            waiting: CallQueue::new(lane_of),
            under_way: BTreeMap::new(),
            next_call: 0,
            copies: HashMap::new(),
            alarm: None,
            logged_failures: None,
            groups: BTreeMap::new(),
            answered: ByCheckpoint::default(),
            next_group: 0,
            leaves_in: None,
            sender,
            receiver,
            held: 0,
            backlog,
            wake,
            stall,
        }
    }

    /// Whether any record has no answer that was handed on.
    pub(super) fn is_open(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Answers leave in that checkpoint from now on.
    pub(super) fn leave_in(&mut self, checkpoint: CheckpointId) {
        self.leaves_in = Some(checkpoint);
    }
}

impl<F, Fut, T, U, G> Calls<F, T, U, G>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = U> + Send + 'static,
    U: Send + 'static,
{
    /// Takes the records of a batch, whose calls are made as soon as there may be more. Their
    /// answers are under that admission.
    pub(super) fn take(&mut self, checkpoint: CheckpointId, mut batch: Batch<T>, admission: Option<Admission>, of: G) {
        let group = (checkpoint, self.next_group);
        self.next_group += 1;
        let records = batch.len();
        let holes = if self.options.is_ordered { records } else { 0 };
        let calls = Group {
            of,
            admission,
            stamps: batch.take_stamps(),
            results: (0..holes).map(|_| None).collect(),
            emitted: 0,
            open: records,
        };
        self.groups.insert(group, calls);
        let values = batch.take_values().into_iter().enumerate();
        values.for_each(|(index, value)| self.waiting.push(group, index, value));
        self.call();
    }

    /// Hears answers, and makes calls.
    pub(super) fn turn(&mut self) -> Result<()> {
        self.wake.listen();
        while let Ok(Answered { call, outcome }) = self.receiver.try_recv() {
            // A call that has just timed out was answered already.
            let Some(attempt) = self.under_way.remove(&call) else { continue };
            let answer = outcome.map_err(|payload| fault::panicked(&self.name, &*payload))?;
            self.hear(call, attempt.record, Ok(answer));
        }
        self.expire();
        self.waiting.resume(Instant::now());
        self.call();
        Ok(())
    }

    /// Makes as many calls as there may be at once.
    fn call(&mut self) {
        let _entered = fault::enter(self.node);
        // So that `f` may use what needs a runtime, even before its future is polled.
        let desk = self.desk.clone();
        let _in_runtime = desk.calls.enter();
        while self.under_way.len() < self.options.at_once && self.may_call() {
            let Waiting { id, value, failed } = self.waiting.pop().expect("`may_call` saw it");
            let call = self.next_call;
            self.next_call += 1;
            if let Some(retry) = self.retry.as_ref().filter(|retry| failed < retry.times) {
                self.copies.insert(call, Waiting { id, value: (retry.copy)(&value), failed });
            }
            let (sender, wake) = (self.sender.clone(), self.wake.clone());
            let deadline = deadline_after(self.options.within);
            let whose = Whose { stage: (self.node, &self.name), record: id, deadline };
            let attempt = Attempt::begin(&self.desk, &whose, (self.f)(value), move |outcome| {
                // Fails when the run is over.
                drop(sender.send(Answered { call, outcome }));
                wake.wake();
            });
            self.under_way.insert(call, attempt);
        }
        self.backlog.look(self.waiting.len(), self.options.at_once);
        self.set_alarm();
    }

    /// Whether the call of the next record may be made now. Answers are not in any budget: while a
    /// writer has no room, only open calls are finished; with an order, only a few calls run ahead
    /// of the first.
    fn may_call(&mut self) -> bool {
        let Some((checkpoint, is_retry)) = self.waiting.front() else { return false };
        if self.holds(checkpoint) {
            return false;
        }
        // All others may wait for a retried call, or for one of an older checkpoint, unless no cut
        // waits for calls.
        let newest = self.groups.last_key_value().map(|((checkpoint, _), _)| *checkpoint);
        let is_older = self.leaves_in.is_none() && newest.is_some_and(|newest| newest > checkpoint);
        let ahead = self.under_way.len() + self.held;
        is_retry || is_older || ahead < self.options.at_once.saturating_mul(AHEAD).max(AHEAD_MIN)
    }

    /// Whether a writer has no room for answers to records of that checkpoint.
    fn holds(&self, checkpoint: CheckpointId) -> bool {
        self.stall.holds(self.leaves_in.unwrap_or(checkpoint))
    }

    /// Answers calls that have timed out, and checks whether one blocks its thread.
    fn expire(&mut self) {
        let now = Instant::now();
        // A limit may be shorter than the usual time after which a call counts as blocking.
        let blocks_after = BLOCKS_AFTER.min(self.options.within / 2);
        let longest = self.under_way.values().map(Attempt::blocks_for).max().unwrap_or_default();
        if longest > blocks_after {
            self.desk.warn_of_blocking((self.node, &self.name), longest);
        }
        while let Some(first) = self.under_way.first_entry().filter(|first| first.get().deadline <= now) {
            let (call, attempt) = first.remove_entry();
            self.hear(call, attempt.record, Err(TimedOut { limit: self.options.within }));
            attempt.abort();
        }
    }

    fn hear(&mut self, call: u64, id: RecordId, answer: Answer<U>) {
        if let Some(retry) = &self.retry
            && let Some(record) = self.copies.remove(&call)
            && (retry.has_failed)(&answer)
        {
            let pause_max = PAUSE_MAX.max(retry.pause);
            let pause = retry.pause.saturating_mul(1 << record.failed.min(16)).min(pause_max);
            let failed = record.failed + 1;
            self.meter.retried.add(1);
            self.waiting.pause(deadline_after(pause), call, Waiting { failed, ..record });
            if self.logged_failures.is_none_or(|logged| logged.elapsed() >= LOG_EVERY) {
                self.logged_failures = Some(Instant::now());
                tracing::warn!(stage = self.name, failed, ?pause, "a call failed and will be retried");
            }
            return;
        }
        self.waiting.answered(id);
        let RecordId { group, index, .. } = id;
        let of = self.groups.get_mut(&group).expect("a group stays until all its calls are answered");
        if self.options.is_ordered {
            of.results[index - of.emitted] = Some(answer);
            self.held += 1;
            return;
        }
        let stamp = of.stamps.get(index).copied();
        match self.answered.last_mut(group.0) {
            Some(last) if last.group == group => {
                last.batch.append(answer, stamp);
                last.indices.push(index);
            }
            _ => {
                let mut batch = Batch::under(of.admission.clone());
                batch.append(answer, stamp);
                self.answered.push(group.0, Answers { group, batch, indices: vec![index] });
            }
        }
    }

    /// Sets an alarm that wakes this operator when a call times out or a pause is over, and
    /// regularly while calls are open.
    fn set_alarm(&mut self) {
        let now = Instant::now();
        let look = self.under_way.first_key_value().map(|(_, first)| first.deadline.min(now + LOOK_EVERY));
        let Some(next) = look.into_iter().chain(self.waiting.paused_until()).min() else { return };
        if self.alarm.is_some_and(|alarm| alarm > now && alarm <= next) {
            return;
        }
        self.alarm = Some(next);
        let wake = self.wake.clone();
        self.desk.timer.spawn(async move {
            tokio::time::sleep_until(next.into()).await;
            wake.wake();
        });
    }

    /// Hands on results, for about a millisecond and as long as writers have room: with an order,
    /// those before the first gap; otherwise all, in the order of the answers.
    pub(super) fn hand_on(&mut self, mut take: impl FnMut(&G, Answers<U>) -> Result<()>) -> Result<()> {
        // As for a poll (`ingest`).
        const STEP: Duration = Duration::from_millis(1);
        let began = Instant::now();
        // A writer wakes this operator when it has room again.
        while let Some(answers) = self.next_out() {
            let (id, records) = (answers.group, answers.indices.len());
            let group = self.groups.get_mut(&id).expect("it has answers to hand on");
            take(&group.of, answers)?;
            group.open -= records;
            if group.open == 0 {
                self.groups.remove(&id);
            }
            if began.elapsed() > STEP {
                self.wake.wake();
                break;
            }
        }
        // These calls waited until an answer was handed on.
        self.call();
        Ok(())
    }

    /// The next results that may leave.
    fn next_out(&mut self) -> Option<Answers<U>> {
        if !self.options.is_ordered {
            let oldest = self.answered.oldest()?;
            return if self.holds(oldest) { None } else { self.answered.pop_front() };
        }
        let (id, _) = self.groups.first_key_value()?;
        if self.holds(id.0) {
            return None;
        }
        let mut first = self.groups.first_entry()?;
        let (group, first) = (*first.key(), first.get_mut());
        let from = first.emitted;
        let batch = first.beginning();
        self.held -= batch.len();
        let indices = (from..first.emitted).collect();
        (!batch.is_empty()).then_some(Answers { group, batch, indices })
    }
}

impl<U, G> Group<U, G> {
    /// The results before the first gap.
    fn beginning(&mut self) -> Batch<Answer<U>> {
        let mut out = Batch::under(self.admission.clone());
        while let Some(result) = self.results.front_mut().and_then(Option::take) {
            self.results.pop_front();
            self.emitted += 1;
            out.append(result, self.stamps.pop_front());
        }
        out
    }
}
