//! What stands beside a record once its stream has event times.

use super::{EventTime, Lateness};

/// The event time of a record, and the *mark* of its input partition as it stood before the record:
/// the largest event time so far less the delay of the stream. Both depend on nothing but the
/// sequence of the partition, so whether a record is late is the same under each trigger, with any
/// number of workers, and when it is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) struct Stamp {
    pub(crate) time: EventTime,
    pub(crate) mark: EventTime,
}

impl Stamp {
    /// A record that cannot be late: its stream has no watermark, or it was made of what was in
    /// time.
    pub(crate) fn in_time(time: EventTime) -> Stamp {
        Stamp { time, mark: EventTime::NONE }
    }

    /// A record whose event time is not believed: it is late everywhere.
    pub(crate) fn refused(time: EventTime) -> Stamp {
        Stamp { time, mark: EventTime::END }
    }

    /// Whether its event time is not believed.
    pub(crate) fn is_refused(self) -> bool {
        self.mark == EventTime::END
    }

    /// How far event time may come while an operator still has the record: no window of it that is
    /// open for it is closed by then. `None` when it is late everywhere.
    pub(crate) fn hold(self) -> Option<EventTime> {
        self.time().filter(|_| !self.is_refused()).map(|time| time.max(self.mark))
    }

    /// Why it is late, if it is.
    pub(crate) fn lateness(self) -> Lateness {
        match self {
            Stamp { time: EventTime::NONE, .. } => Lateness::NoTime,
            Stamp { mark: EventTime::END, .. } => Lateness::Ahead,
            Stamp { .. } => Lateness::Closed,
        }
    }

    /// The event time, if the record has one.
    pub(crate) fn time(self) -> Option<EventTime> {
        self.time.known()
    }
}
