//! What a producer's client keeps with each record in flight: who is told of its delivery.

use millstream::connector::Delivery;

/// Travels with a sent record to its delivery report.
#[derive(Clone)]
pub(crate) struct Ticket {
    pub(crate) delivery: Delivery,
    pub(crate) kind: Kind,
    /// The timestamp set on the record. The client does not report it for a record that it could
    /// not deliver.
    pub(crate) timestamp: Option<i64>,
    /// The record is the only one in its batch.
    pub(crate) is_alone: bool,
}

impl Ticket {
    pub(crate) fn new(delivery: &Delivery, kind: Kind) -> Ticket {
        Ticket { delivery: delivery.clone(), kind, timestamp: None, is_alone: false }
    }
}

/// What was sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Record,
    /// A dead letter, in place of a record that was refused.
    Letter,
}
