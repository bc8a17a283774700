//! The counted token under which records are in the job. Timely has no flow control, so memory is bounded here: a
//! reader is polled only while its worker's [`Budget`] has room, each batch is charged to it under an [`Admission`],
//! and when the last clone of that is gone the room is free again. A fork clones it, a filter drops it, a sink keeps a
//! clone until the delivery report.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex};

use super::{Bytes, Moment, lock};

/// Memory that one worker may have admitted and not yet seen acknowledged.
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
    starved: AtomicBool,
    freed: Mutex<Vec<Box<dyn Fn() + Send>>>,
    /// How many sources share it.
    sources: AtomicU64,
    /// Sources that found no room, in the order in which they asked: the first of them has the next room that there is.
    turns: Mutex<VecDeque<u64>>,
    stall: Stall,
}

/// How many ends of chains have outputs that their writer has no room for. What a stage makes of a record is not in the
/// budget, so while there are any nothing is read: then outputs of one batch at most wait at each of them. Clones are the
/// same; workers that exchange records share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stall(Arc<AtomicU64>);

impl Stall {
    /// Whether a writer has no room.
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(SeqCst) > 0
    }

    /// A writer has no room.
    pub(crate) fn begin(&self) {
        self.0.fetch_add(1, SeqCst);
    }

    /// It has taken what waited. Says whether it was the last.
    pub(crate) fn end(&self) -> bool {
        self.0.fetch_sub(1, SeqCst) == 1
    }
}

impl Budget {
    /// A budget of that size.
    pub(crate) fn new(limit: Bytes, stall: &Stall) -> Arc<Budget> {
        Arc::new(Budget {
            limit: limit.0.max(1),
            used: AtomicU64::new(0),
            starved: AtomicBool::new(false),
            freed: Mutex::default(),
            sources: AtomicU64::new(0),
            turns: Mutex::default(),
            stall: stall.clone(),
        })
    }

    /// Whether outputs wait for a writer.
    pub(crate) fn stall(&self) -> &Stall {
        &self.stall
    }

    /// What a source may read now: its share of what is left. `None` when nothing is, or another source has waited for
    /// longer; then whoever asked is called when there is room again.
    pub(crate) fn room(&self, source: u64) -> Option<Bytes> {
        if let Some(room) = self.share(source) {
            return Some(room);
        }
        self.starved.store(true, SeqCst);
        // Looked at again, because the last clone may have gone between the look and the flag.
        self.share(source)
    }

    fn share(&self, source: u64) -> Option<Bytes> {
        let left = self.left();
        let sources = self.sources.load(SeqCst);
        if sources <= 1 {
            return left;
        }
        let mut turns = lock(&self.turns);
        let is_first = turns.front().is_none_or(|first| *first == source);
        let Some(left) = left.filter(|_| is_first) else {
            if !turns.contains(&source) {
                turns.push_back(source);
            }
            return None;
        };
        turns.pop_front();
        Some(Bytes((left.0 / sources).max(1)))
    }

    /// A source has read what it wanted, or does not want any more: the next one has its turn.
    pub(crate) fn pass_on(&self, source: u64) {
        if self.sources.load(SeqCst) <= 1 {
            return;
        }
        let is_waited_for = {
            let mut turns = lock(&self.turns);
            turns.retain(|waiting| *waiting != source);
            !turns.is_empty()
        };
        if is_waited_for && self.left().is_some() {
            self.wake();
        }
    }

    fn left(&self) -> Option<Bytes> {
        self.limit.checked_sub(self.used.load(SeqCst)).filter(|left| *left > 0).map(Bytes)
    }

    /// A source reads under this budget. Calls `wake` whenever room appears after there was none.
    pub(crate) fn on_freed(&self, wake: impl Fn() + Send + 'static) {
        self.sources.fetch_add(1, SeqCst);
        lock(&self.freed).push(Box::new(wake));
    }

    /// A source reads no more.
    pub(crate) fn leave(&self, source: u64) {
        self.pass_on(source);
        self.sources.fetch_sub(1, SeqCst);
    }

    fn wake(&self) {
        lock(&self.freed).iter().for_each(|wake| wake());
    }

    /// What is charged at this moment.
    pub(crate) fn used(&self) -> Bytes {
        Bytes(self.used.load(Relaxed))
    }

    fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, SeqCst);
        if before - bytes < self.limit && self.starved.load(SeqCst) && self.starved.swap(false, SeqCst) {
            self.wake();
        }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} of {})", self.used(), Bytes(self.limit))
    }
}

/// What became of an admitted batch, told once when the last clone of its admission is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every output was acknowledged, or a stage consumed the record.
    Delivered,
    /// An output was disposed of by a sink's policy.
    Refused,
    /// The run ended before anybody could know.
    Unknown,
}

/// The token of one admitted batch; clones are the same token.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Admitted>);

struct Admitted {
    arrival: Moment,
    released: AtomicU64,
    bytes: u64,
    budget: Arc<Budget>,
    refused: AtomicBool,
    unknown: AtomicBool,
    done: Vec<Receipt>,
}

/// Called once with what became of a record.
pub(crate) type Receipt = Box<dyn FnOnce(Outcome) + Send + Sync>;

impl Admission {
    /// Charges a batch that arrived at that moment to the budget.
    pub(crate) fn new(arrival: Moment, bytes: Bytes, budget: &Arc<Budget>, done: Vec<Receipt>) -> Admission {
        budget.used.fetch_add(bytes.0, SeqCst);
        Admission(Arc::new(Admitted {
            arrival,
            released: AtomicU64::new(arrival.as_nanos()),
            bytes: bytes.0,
            budget: Arc::clone(budget),
            refused: AtomicBool::new(false),
            unknown: AtomicBool::new(false),
            done,
        }))
    }

    /// When the reader returned the batch, before any wait.
    pub(crate) fn arrival(&self) -> Moment {
        self.0.arrival
    }

    /// When the batch left the ingest queue and got its epoch.
    pub(crate) fn released(&self) -> Moment {
        Moment::from_nanos(self.0.released.load(Relaxed))
    }

    pub(crate) fn release(&self, now: Moment) {
        self.0.released.store(now.as_nanos(), Relaxed);
    }

    /// Some of it was disposed of.
    pub(crate) fn refuse(&self) {
        self.0.refused.store(true, Relaxed);
    }

    /// Some of it was dropped with nobody knowing what became of it. Success is said, never assumed.
    pub(crate) fn lose(&self) {
        self.0.unknown.store(true, Relaxed);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
        let outcome = match (*self.unknown.get_mut(), *self.refused.get_mut()) {
            (true, _) => Outcome::Unknown,
            (false, true) => Outcome::Refused,
            (false, false) => Outcome::Delivered,
        };
        self.done.drain(..).for_each(|receipt| receipt(outcome));
    }
}

impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes admitted at {:?}", self.bytes, self.arrival)
    }
}
