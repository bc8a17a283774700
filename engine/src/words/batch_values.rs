//! A batch in the hands of a user's function: its values, by value.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::{EventTime, Stamp};

/// The values of a batch, in order; what [`map_batches`](crate::Stream::map_batches) hands to a
/// function. Values that are never pulled count as consumed.
#[derive(Clone)]
pub struct BatchValues<T> {
    values: VecDeque<T>,
    /// As long as `values`, or empty when the source has no event times.
    stamps: VecDeque<Stamp>,
    /// The stamp of the value pulled last, when there are event times. Outputs take it.
    pulled: Option<Arc<Pulled>>,
}

/// The stamp of the value that was pulled last. It is written and read on one thread; the values
/// may be sent to another.
#[derive(Debug)]
pub(crate) struct Pulled {
    time: AtomicI64,
    mark: AtomicI64,
}

impl Pulled {
    fn new(stamp: Stamp) -> Pulled {
        Pulled { time: AtomicI64::new(stamp.time.0), mark: AtomicI64::new(stamp.mark.0) }
    }

    fn set(&self, stamp: Stamp) {
        // Relaxed: see the type.
        self.time.store(stamp.time.0, Relaxed);
        self.mark.store(stamp.mark.0, Relaxed);
    }

    pub(crate) fn get(&self) -> Stamp {
        Stamp { time: EventTime(self.time.load(Relaxed)), mark: EventTime(self.mark.load(Relaxed)) }
    }
}

impl<T> BatchValues<T> {
    pub(crate) fn new(values: VecDeque<T>, stamps: VecDeque<Stamp>) -> BatchValues<T> {
        let pulled = stamps.front().map(|first| Arc::new(Pulled::new(*first)));
        BatchValues { values, stamps, pulled }
    }

    /// The value that [`next`](Iterator::next) would return.
    pub fn front(&self) -> Option<&T> {
        self.values.front()
    }

    /// The event time of the value that [`next`](Iterator::next) would return, when the source has
    /// event times.
    pub fn front_time(&self) -> Option<EventTime> {
        self.stamps.front().and_then(|stamp| stamp.time())
    }

    /// Where the stamp of the value pulled last is kept; `None` when there are no event times.
    pub(crate) fn pulled(&self) -> Option<Arc<Pulled>> {
        self.pulled.clone()
    }
}

impl<T> Iterator for BatchValues<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let value = self.values.pop_front()?;
        if let (Some(stamp), Some(pulled)) = (self.stamps.pop_front(), &self.pulled) {
            pulled.set(stamp);
        }
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.values.len(), Some(self.values.len()))
    }

    fn fold<B, F: FnMut(B, T) -> B>(mut self, init: B, mut f: F) -> B {
        if self.stamps.is_empty() {
            // The by-value iterator of a `Vec` compiles to a tight loop.
            return Vec::from(mem::take(&mut self.values)).into_iter().fold(init, f);
        }
        let mut folded = init;
        for value in self {
            folded = f(folded, value);
        }
        folded
    }
}

impl<T> ExactSizeIterator for BatchValues<T> {}

impl<T: fmt::Debug> fmt::Debug for BatchValues<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.values).finish()
    }
}
