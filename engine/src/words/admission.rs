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

/// What waits within the job. The budget counts what was read, and not what a stage makes of it, so nothing is read while a
/// writer has no room or a stage is behind: then outputs of one batch at most wait at each of them. Clones are the same;
/// workers that exchange records share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stall(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// Ends of chains with outputs that their writer has no room for.
    full: AtomicU64,
    /// Stages with more before them than they do in some milliseconds.
    behind: AtomicU64,
    /// Records on their way to another worker, which may be asleep and not know that it is behind.
    on_their_way: AtomicU64,
}

/// So many records may be on their way to other workers before sources wait.
const ON_THEIR_WAY_MOST: u64 = 16_384;

impl Stall {
    /// Whether a writer has no room: then stages make nothing more.
    pub(crate) fn is_on(&self) -> bool {
        self.0.full.load(SeqCst) > 0
    }

    /// Whether anything waits that sources have to wait for.
    pub(crate) fn holds_sources(&self) -> bool {
        self.is_on() || self.0.behind.load(SeqCst) > 0 || self.0.on_their_way.load(SeqCst) >= ON_THEIR_WAY_MOST
    }

    /// So many records go to another worker.
    pub(crate) fn depart(&self, records: usize) {
        self.0.on_their_way.fetch_add(records as u64, SeqCst);
    }

    /// So many have come from another worker. Says whether sources may go on.
    pub(crate) fn arrive(&self, records: usize) -> bool {
        let before = self.0.on_their_way.fetch_sub(records as u64, SeqCst);
        before >= ON_THEIR_WAY_MOST && before - (records as u64) < ON_THEIR_WAY_MOST
    }

    /// A writer has no room.
    pub(crate) fn begin(&self) {
        self.0.full.fetch_add(1, SeqCst);
    }

    /// It has taken what waited. Says whether it was the last.
    pub(crate) fn end(&self) -> bool {
        self.0.full.fetch_sub(1, SeqCst) == 1
    }

    /// A stage is behind.
    fn fall_behind(&self) {
        self.0.behind.fetch_add(1, SeqCst);
    }

    /// It is no more. Says whether it was the last.
    fn catch_up(&self) -> bool {
        self.0.behind.fetch_sub(1, SeqCst) == 1
    }
}

/// Whether one stage is behind, and who reads on when it is no more.
pub(crate) struct Backlog {
    stall: Stall,
    is_behind: bool,
    caught_up: Box<dyn Fn()>,
}

impl Backlog {
    /// Of a stage that is not behind; `caught_up` wakes the sources.
    pub(crate) fn new(stall: Stall, caught_up: impl Fn() + 'static) -> Backlog {
        Backlog { stall, is_behind: false, caught_up: Box::new(caught_up) }
    }

    /// So many records wait before the stage, which does `slice` of them at once: it is behind from four slices on, and until
    /// one is left, so that it is never idle while sources wait for it.
    pub(crate) fn look(&mut self, waiting: usize, slice: usize) {
        let is_behind = if self.is_behind { waiting > slice } else { waiting > slice.saturating_mul(4) };
        if is_behind == self.is_behind {
            return;
        }
        self.is_behind = is_behind;
        if is_behind {
            self.stall.fall_behind();
        } else if self.stall.catch_up() {
            (self.caught_up)();
        }
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.look(0, 1);
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
