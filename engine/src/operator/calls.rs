//! Calls to other services, as a stage: a future for each record, so many at once, their results in order or as they come.
//! A batch in the middle of its calls holds capabilities of its epoch, so a cut waits for it as for records in flight.
//!
//! Futures run on threads of the run (`call_threads`); they report through a channel and wake the operator. Time limits and
//! the pauses before further attempts are the operator's own: an alarm wakes it when the next of them is due.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use crate::io::Wake;
use crate::words::{Admission, Backlog, Batch, EventTime, Result, StageMeter, Stall, TimedOut, deadline_after};

use super::attempt::{Attempt, BLOCKS_AFTER, Outcome, Whose};
use super::call_threads::CallDesk;
use super::fault::{self, Node};
use super::stage::{Capabilities, Consume};

/// How calls are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) at_once: usize,
    pub(crate) is_ordered: bool,
    pub(crate) within: Duration,
}

/// When a call that has failed is made again.
pub(crate) struct Again<T, U> {
    /// How often, after the first attempt.
    pub(crate) times: u32,
    /// The pause before the first further attempt; before each one after it, twice as long.
    pub(crate) pause: Duration,
    pub(crate) copy: fn(&T) -> T,
    pub(crate) has_failed: fn(&Answer<U>) -> bool,
}

impl<T, U> fmt::Debug for Again<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Again({} times, {:?})", self.times, self.pause)
    }
}

/// Pauses between attempts grow to this, or to the first of them when it is longer.
const PAUSE_MOST: Duration = Duration::from_secs(60);
/// How often calls under way are looked at: whether one blocks its thread.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How soon it is told that calls fail and are made again, after it was told before.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What became of a call.
pub(crate) type Answer<U> = Result<U, TimedOut>;

/// A call, by its number, and what its future came to.
struct Told<U> {
    call: u64,
    outcome: Outcome<U>,
}

/// A record whose call is to be made.
struct Waiting<T> {
    group: u64,
    index: usize,
    value: T,
    /// How many attempts have failed.
    failed: u32,
}

/// The calls of a batch.
struct Group<U> {
    at: Capabilities,
    admission: Option<Admission>,
    times: VecDeque<EventTime>,
    /// In order: what is not handed on, with holes.
    results: VecDeque<Option<Answer<U>>>,
    /// Without an order: what may be handed on.
    ready: Batch<Answer<U>>,
    /// How many results were handed on.
    emitted: usize,
    open: usize,
}

impl<U> Drop for Group<U> {
    fn drop(&mut self) {
        if self.open > 0
            && let Some(admission) = &self.admission
        {
            admission.lose();
        }
    }
}

/// The stage.
pub(crate) struct Calls<F, T, U> {
    node: Node,
    name: String,
    meter: Arc<StageMeter>,
    manner: Manner,
    again: Option<Again<T, U>>,
    f: F,
    desk: CallDesk,
    next: Box<dyn Consume<Answer<U>>>,
    /// Records whose calls are not made yet.
    waiting: VecDeque<Waiting<T>>,
    /// In the order in which they were made, which is that of their deadlines.
    under_way: BTreeMap<u64, Attempt>,
    next_call: u64,
    /// What another attempt at a call under way is made of.
    copies: HashMap<u64, Waiting<T>>,
    /// Records whose calls have failed, by when they are made again.
    paused: BTreeMap<(Instant, u64), Waiting<T>>,
    /// When the operator is woken next, at the latest.
    alarm: Option<Instant>,
    told_of_failures: Option<Instant>,
    groups: BTreeMap<u64, Group<U>>,
    /// Groups that have something ready, without an order.
    answered: VecDeque<u64>,
    next_group: u64,
    teller: Sender<Told<U>>,
    told: Receiver<Told<U>>,
    /// Answers in order that wait for an earlier one.
    held: usize,
    backlog: Backlog,
    wake: Wake,
    stall: Stall,
}

/// So many times as many calls as there may be at once are ahead of the first that is not answered, at most: a call that is made
/// again for minutes holds up the others only then.
const AHEAD: usize = 4;
/// And so many when only few calls are made at once.
const AHEAD_FEW: usize = 64;

/// Where a stage stands, and what it counts.
pub(crate) struct Place {
    pub(crate) node: Node,
    pub(crate) name: String,
    pub(crate) meter: Arc<StageMeter>,
    pub(crate) desk: CallDesk,
    pub(crate) wake: Wake,
    pub(crate) stall: Stall,
    pub(crate) backlog: Backlog,
}

impl<F, T, U> Calls<F, T, U> {
    pub(crate) fn new(
        place: Place,
        (manner, again): (Manner, Option<Again<T, U>>),
        f: F,
        next: Box<dyn Consume<Answer<U>>>,
    ) -> Calls<F, T, U> {
        let (teller, told) = mpsc::channel();
        let Place { node, name, meter, desk, wake, stall, backlog } = place;
        Calls {
            node,
            name,
            meter,
            manner,
            again,
            f,
            desk,
            next,
            waiting: VecDeque::new(),
            under_way: BTreeMap::new(),
            next_call: 0,
            copies: HashMap::new(),
            paused: BTreeMap::new(),
            alarm: None,
            told_of_failures: None,
            groups: BTreeMap::new(),
            answered: VecDeque::new(),
            next_group: 0,
            teller,
            told,
            held: 0,
            backlog,
            wake,
            stall,
        }
    }
}

impl<F, Fut, T, U> Consume<T> for Calls<F, T, U>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = U> + Send + 'static,
    U: Send + 'static,
{
    fn consume(&mut self, mut batch: Batch<T>, at: &Capabilities) -> Result<()> {
        let group = self.next_group;
        self.next_group += 1;
        let records = batch.len();
        self.meter.records_in.add(records as u64);
        let holes = if self.manner.is_ordered { records } else { 0 };
        let calls = Group {
            at: at.clone(),
            admission: batch.admission().cloned(),
            times: batch.take_times(),
            results: (0..holes).map(|_| None).collect(),
            ready: Batch::under(batch.admission().cloned()),
            emitted: 0,
            open: records,
        };
        self.groups.insert(group, calls);
        let values = batch.take_values().into_iter().enumerate();
        self.waiting.extend(values.map(|(index, value)| Waiting { group, index, value, failed: 0 }));
        self.call();
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        self.wake.listen();
        while let Ok(Told { call, outcome }) = self.told.try_recv() {
            // One whose time was up a moment ago was answered for already.
            let Some(attempt) = self.under_way.remove(&call) else { continue };
            let answer = outcome.map_err(|payload| fault::panicked(&self.name, &*payload))?;
            self.hear(call, &attempt, Ok(answer));
        }
        self.expire();
        self.resume();
        self.call();
        self.hand_on()?;
        // What waited for an answer that is handed on now.
        self.call();
        self.next.step()
    }
}

impl<F, Fut, T, U> Calls<F, T, U>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = U> + Send + 'static,
    U: Send + 'static,
{
    /// Makes as many calls as there may be at once.
    fn call(&mut self) {
        fault::enter(self.node);
        // So that `f` may use what wants a runtime, also before its future is polled.
        let desk = self.desk.clone();
        let _in_runtime = desk.calls.enter();
        // Answers are in no budget: while a writer has no room there are only those of calls under way, and in order only so
        // many beside these. One that is made again may be the one that all others wait for.
        while self.under_way.len() < self.manner.at_once
            && !self.stall.is_on()
            && let Some(record) = self.waiting.pop_front_if(|record| {
                let ahead = self.under_way.len() + self.held;
                record.failed > 0 || ahead < self.manner.at_once.saturating_mul(AHEAD).max(AHEAD_FEW)
            })
        {
            let call = self.next_call;
            self.next_call += 1;
            let Waiting { group, index, value, failed } = record;
            if let Some(again) = self.again.as_ref().filter(|again| failed < again.times) {
                self.copies.insert(call, Waiting { group, index, value: (again.copy)(&value), failed });
            }
            let (teller, wake) = (self.teller.clone(), self.wake.clone());
            let deadline = deadline_after(self.manner.within);
            let whose = Whose { stage: (self.node, &self.name), group, index, deadline };
            let attempt = Attempt::begin(&self.desk, &whose, (self.f)(value), move |outcome| {
                // Nobody listens when the run is over.
                drop(teller.send(Told { call, outcome }));
                wake.wake();
            });
            self.under_way.insert(call, attempt);
        }
        self.backlog.look(self.waiting.len(), self.manner.at_once);
        self.set_alarm();
    }

    /// Answers for calls whose time is up, and looks whether one blocks its thread.
    fn expire(&mut self) {
        let now = Instant::now();
        // A limit may be shorter than what blocks otherwise.
        let blocks_after = BLOCKS_AFTER.min(self.manner.within / 2);
        let longest = self.under_way.values().map(Attempt::blocks_for).max().unwrap_or_default();
        if longest > blocks_after {
            self.desk.warn_of_blocking((self.node, &self.name), longest);
        }
        while let Some(first) = self.under_way.first_entry().filter(|first| first.get().deadline <= now) {
            let (call, attempt) = first.remove_entry();
            self.hear(call, &attempt, Err(TimedOut { limit: self.manner.within }));
            attempt.abort();
        }
    }

    /// Calls whose pause is over are made before those of records that came later.
    fn resume(&mut self) {
        let later = self.paused.split_off(&(Instant::now(), u64::MAX));
        mem::replace(&mut self.paused, later).into_values().rev().for_each(|record| self.waiting.push_front(record));
    }

    fn hear(&mut self, call: u64, &Attempt { group, index, .. }: &Attempt, answer: Answer<U>) {
        if let Some(again) = &self.again
            && let Some(record) = self.copies.remove(&call)
            && (again.has_failed)(&answer)
        {
            let most = PAUSE_MOST.max(again.pause);
            let pause = again.pause.saturating_mul(1 << record.failed.min(16)).min(most);
            let failed = record.failed + 1;
            self.meter.retried.add(1);
            self.paused.insert((deadline_after(pause), call), Waiting { failed, ..record });
            if self.told_of_failures.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                self.told_of_failures = Some(Instant::now());
                tracing::warn!(stage = self.name, failed, ?pause, "a call has failed and is made again");
            }
            return;
        }
        let of = self.groups.get_mut(&group).expect("a group stays until all its calls are answered");
        if self.manner.is_ordered {
            of.results[index - of.emitted] = Some(answer);
            self.held += 1;
        } else {
            if Batch::is_empty(&of.ready) {
                self.answered.push_back(group);
            }
            of.ready.append(answer, of.times.get(index).copied());
        }
    }

    /// Has this operator woken when a call's time or a pause is over, and now and then while calls are under way.
    fn set_alarm(&mut self) {
        let now = Instant::now();
        let look = self.under_way.first_key_value().map(|(_, first)| first.deadline.min(now + LOOK_EVERY));
        let paused = self.paused.first_key_value().map(|((until, _), _)| *until);
        let Some(next) = look.into_iter().chain(paused).min() else { return };
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

    /// Hands on what may leave, for about a millisecond and as long as writers have room: in order, the beginning; else all
    /// that is there.
    fn hand_on(&mut self) -> Result<()> {
        const STEP: Duration = Duration::from_millis(1);
        let began = Instant::now();
        // Who has room again wakes this.
        while !self.stall.is_on() {
            let Some((id, out)) = self.next_out() else { break };
            self.emit(id, out)?;
            if began.elapsed() > STEP {
                self.wake.wake();
                break;
            }
        }
        Ok(())
    }

    /// What may leave next, and whose it is.
    fn next_out(&mut self) -> Option<(u64, Batch<Answer<U>>)> {
        if self.manner.is_ordered {
            let (id, group) = self.groups.iter_mut().next()?;
            let out = group.beginning();
            self.held -= out.len();
            return (!Batch::is_empty(&out)).then_some((*id, out));
        }
        let id = self.answered.pop_front()?;
        let group = self.groups.get_mut(&id).expect("it has answers to hand on");
        let out = mem::replace(&mut group.ready, Batch::under(group.admission.clone()));
        Some((id, out))
    }

    /// Hands on answers of a group.
    fn emit(&mut self, id: u64, out: Batch<Answer<U>>) -> Result<()> {
        let group = self.groups.get_mut(&id).expect("it has answers to hand on");
        let records = out.len();
        self.meter.records_out.add(records as u64);
        self.next.consume(out, &group.at)?;
        group.open -= records;
        if group.open == 0 {
            self.groups.remove(&id);
        }
        Ok(())
    }
}

impl<U> Group<U> {
    /// The results before the first that is missing.
    fn beginning(&mut self) -> Batch<Answer<U>> {
        let mut out = Batch::under(self.admission.clone());
        while let Some(result) = self.results.front_mut().and_then(Option::take) {
            self.results.pop_front();
            self.emitted += 1;
            out.append(result, self.times.pop_front());
        }
        out
    }
}
