//! Calls to other services, as a stage: a future for each record, so many at once, their results in order or as they come.
//! A batch in the middle of its calls holds capabilities of its epoch, so a cut waits for it as for records in flight.
//!
//! Futures run on a runtime of the run; they report through a channel and wake the operator.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinError;
use tracing::{Instrument, Span};

use crate::io::Wake;
use crate::words::{Admission, Batch, EventTime, Result, StageMeter, Stall, TimedOut};

use super::fault::{self, Node};
use super::stage::{Capabilities, Consume};

/// How calls are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) at_once: usize,
    pub(crate) is_ordered: bool,
    pub(crate) within: Duration,
}

/// What became of a call, unless its future panicked.
type Answer<U> = Result<U, TimedOut>;

/// The answer of the `index`th record of a group.
struct Told<U> {
    group: u64,
    index: usize,
    answer: Result<Answer<U>, JoinError>,
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
    f: F,
    runtime: Handle,
    next: Box<dyn Consume<Answer<U>>>,
    /// Records whose calls are not made yet.
    waiting: VecDeque<(u64, usize, T)>,
    groups: BTreeMap<u64, Group<U>>,
    /// Groups that have something ready, without an order.
    answered: Vec<u64>,
    next_group: u64,
    in_flight: usize,
    teller: Sender<Told<U>>,
    told: Receiver<Told<U>>,
    wake: Wake,
    stall: Stall,
}

/// Where a stage stands, and what it counts.
pub(crate) struct Place {
    pub(crate) node: Node,
    pub(crate) name: String,
    pub(crate) meter: Arc<StageMeter>,
    pub(crate) runtime: Handle,
    pub(crate) wake: Wake,
    pub(crate) stall: Stall,
}

impl<F, T, U> Calls<F, T, U> {
    pub(crate) fn new(place: Place, manner: Manner, f: F, next: Box<dyn Consume<Answer<U>>>) -> Calls<F, T, U> {
        let (teller, told) = mpsc::channel();
        let Place { node, name, meter, runtime, wake, stall } = place;
        Calls {
            node,
            name,
            meter,
            manner,
            f,
            runtime,
            next,
            waiting: VecDeque::new(),
            groups: BTreeMap::new(),
            answered: Vec::new(),
            next_group: 0,
            in_flight: 0,
            teller,
            told,
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
        let id = self.next_group;
        self.next_group += 1;
        let records = batch.len();
        self.meter.records_in.add(records as u64);
        let holes = if self.manner.is_ordered { records } else { 0 };
        let group = Group {
            at: at.clone(),
            admission: batch.admission().cloned(),
            times: batch.take_times(),
            results: (0..holes).map(|_| None).collect(),
            ready: Batch::under(batch.admission().cloned()),
            emitted: 0,
            open: records,
        };
        self.groups.insert(id, group);
        self.waiting.extend(batch.take_values().into_iter().enumerate().map(|(index, value)| (id, index, value)));
        self.call();
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        self.wake.listen();
        while let Ok(told) = self.told.try_recv() {
            self.in_flight -= 1;
            self.hear(told)?;
        }
        self.call();
        self.hand_on()?;
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
        // Answers are in no budget: while a writer has no room there are only those of calls under way.
        while self.in_flight < self.manner.at_once
            && !self.stall.is_on()
            && let Some((group, index, value)) = self.waiting.pop_front()
        {
            self.in_flight += 1;
            let (within, teller, wake) = (self.manner.within, self.teller.clone(), self.wake.clone());
            // A task of its own, whose panic is told and not lost.
            let call = self.runtime.spawn((self.f)(value).instrument(Span::current()));
            self.runtime.spawn(async move {
                let stop = call.abort_handle();
                let answer = match tokio::time::timeout(within, call).await {
                    Ok(answer) => answer.map(Ok),
                    Err(_) => {
                        stop.abort();
                        Ok(Err(TimedOut { limit: within }))
                    }
                };
                // Nobody listens when the run is over.
                drop(teller.send(Told { group, index, answer }));
                wake.wake();
            });
        }
    }

    fn hear(&mut self, Told { group, index, answer }: Told<U>) -> Result<()> {
        let answer = answer.map_err(|error| match error.try_into_panic() {
            Ok(payload) => fault::panicked(&self.name, &*payload),
            Err(error) => fault::panicked(&self.name, &error.to_string()),
        })?;
        let Some(of) = self.groups.get_mut(&group) else { return Ok(()) };
        if self.manner.is_ordered {
            of.results[index - of.emitted] = Some(answer);
        } else {
            if Batch::is_empty(&of.ready) {
                self.answered.push(group);
            }
            of.ready.append(answer, of.times.get(index).copied());
        }
        Ok(())
    }

    /// Hands on what may leave: in order, the beginning; else all that is there.
    fn hand_on(&mut self) -> Result<()> {
        if !self.manner.is_ordered {
            for id in mem::take(&mut self.answered) {
                let group = self.groups.get_mut(&id).expect("it has answers to hand on");
                let out = mem::replace(&mut group.ready, Batch::under(group.admission.clone()));
                self.emit(id, out)?;
            }
            return Ok(());
        }
        while let Some((id, group)) = self.groups.iter_mut().next() {
            let (id, out) = (*id, group.beginning());
            if Batch::is_empty(&out) || !self.emit(id, out)? {
                break;
            }
        }
        Ok(())
    }

    /// Hands on answers of a group; says whether they were its last.
    fn emit(&mut self, id: u64, out: Batch<Answer<U>>) -> Result<bool> {
        let group = self.groups.get_mut(&id).expect("it has answers to hand on");
        let records = out.len();
        self.meter.records_out.add(records as u64);
        self.next.consume(out, &group.at)?;
        group.open -= records;
        let is_done = group.open == 0;
        if is_done {
            self.groups.remove(&id);
        }
        Ok(is_done)
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
