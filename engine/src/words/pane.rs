//! What comes out of a window.

use serde::{Deserialize, Serialize};

use super::EventTime;

/// A stretch of event time: `start` belongs to it, `end` does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// Its first millisecond.
    pub start: EventTime,
    /// The first millisecond behind it.
    pub end: EventTime,
}

impl Span {
    /// Whether a time lies in it. The last millisecond that there is lies in the last window.
    pub fn contains(&self, time: EventTime) -> bool {
        self.start <= time && (time < self.end || self.end == EventTime::END)
    }

    /// Its last millisecond.
    pub fn last(&self) -> EventTime {
        EventTime(self.end.0.saturating_sub(1))
    }
}

/// The value of a key in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pane<K, V> {
    /// The key.
    pub key: K,
    /// The window.
    pub window: Span,
    /// What its records of that key have led to.
    pub value: V,
}

/// A record that came too late for one or more windows; see
/// [`Windowed::late`](crate::Windowed::late).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Late<T> {
    /// The record.
    pub record: T,
    /// Its event time, if it has one.
    pub time: Option<EventTime>,
    /// The windows that it missed. It counts in the others that it belongs to.
    pub windows: Vec<Span>,
    /// Why it missed them.
    pub why: Lateness,
}

/// Why a record missed a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Lateness {
    /// The window had ended before the record came: by the mark of its own partition, or by the
    /// watermark, which had left that partition out because it was idle.
    Closed,
    /// The record has no event time, and so belongs to no window.
    NoTime,
    /// Its event time was further ahead of the clock than is believed
    /// ([`Watermark::ahead_at_most`](crate::Watermark::ahead_at_most)).
    Ahead,
}
