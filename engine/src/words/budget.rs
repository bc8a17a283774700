//! How much memory the sources of one worker may admit. Timely has no flow control, so memory is
//! bounded here: a reader is polled only while its worker's [`Budget`] has room.

use std::collections::VecDeque;
use std::fmt;

use super::ByteSize;
use super::sync::{Arc, AtomicBool, AtomicU64, Mutex, SeqCst, lock};

/// The memory that one worker may have admitted and not yet seen acknowledged.
pub(crate) struct Budget {
    limit: u64,
    used: AtomicU64,
    /// A source found no room since room was last announced.
    starved: AtomicBool,
    /// Called when there is room again.
    freed: Mutex<Vec<Box<dyn Fn() + Send>>>,
    /// The number of sources that share it. It only divides the room, so it may change at any time.
    sources: AtomicU64,
    /// Sources that found no room, in the order in which they asked: the first is served first.
    turns: Mutex<VecDeque<u64>>,
}

impl Budget {
    /// A budget of `limit`, at least one byte.
    pub(crate) fn new(limit: ByteSize) -> Arc<Budget> {
        Arc::new(Budget {
            limit: limit.0.max(1),
            used: AtomicU64::new(0),
            starved: AtomicBool::new(false),
            freed: Mutex::default(),
            sources: AtomicU64::new(0),
            turns: Mutex::default(),
        })
    }

    /// How much a source may read now: its share of the free memory. `None` when there is no free
    /// memory, or another source has waited for longer; then the source is woken when there is room
    /// again.
    pub(crate) fn room(&self, source: u64) -> Option<ByteSize> {
        if let Some(room) = self.share(source) {
            return Some(room);
        }
        // With `give_back`: this sets the flag and then reads the free memory; the last clone of an
        // admission frees memory and then reads the flag. So either the room is seen here, or the
        // flag is seen there and wakes the source.
        self.starved.store(true, SeqCst);
        self.share(source)
    }

    fn share(&self, source: u64) -> Option<ByteSize> {
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
        Some(ByteSize((left.0 / sources).max(1)))
    }

    /// A source has read what it wanted, or wants nothing now: it is the next one's turn.
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

    fn left(&self) -> Option<ByteSize> {
        self.limit.checked_sub(self.used.load(SeqCst)).filter(|left| *left > 0).map(ByteSize)
    }

    /// Adds a source that reads under this budget. `wake` is called whenever there is room after
    /// there was none.
    pub(crate) fn on_freed(&self, wake: impl Fn() + Send + 'static) {
        self.sources.fetch_add(1, SeqCst);
        lock(&self.freed).push(Box::new(wake));
    }

    /// Removes a source that reads no more.
    pub(crate) fn leave(&self, source: u64) {
        self.pass_on(source);
        self.sources.fetch_sub(1, SeqCst);
    }

    fn wake(&self) {
        lock(&self.freed).iter().for_each(|wake| wake());
    }

    /// The memory that is charged now.
    pub(crate) fn used(&self) -> ByteSize {
        ByteSize(self.used.load(SeqCst))
    }

    /// Takes memory, even beyond the limit: one batch is always admitted.
    pub(crate) fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, SeqCst);
    }

    /// Gives memory back. See [`room`](Budget::room) for the order.
    pub(crate) fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, SeqCst);
        if before - bytes < self.limit && self.starved.load(SeqCst) && self.starved.swap(false, SeqCst) {
            self.wake();
        }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Budget({} of {})", self.used(), ByteSize(self.limit))
    }
}
