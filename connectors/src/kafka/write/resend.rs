//! Records that a broker refused in a batch of several. A broker refuses whole batches and the
//! client does not split them, so such a record may have failed because of another record in its
//! batch. It is sent again, alone; the policy applies only if it fails again.
//!
//! While records wait here, the writers send nothing else. Each record waits until nothing is in
//! flight, because that is how it ends up alone in its batch. This is slow, and rare: the known
//! limits of a topic (`limits`) are checked before a record is sent. A record that is accepted
//! alone is written after the records that were in flight when its batch was refused.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use rdkafka::message::{BorrowedMessage, OwnedMessage};

use super::ticket::Ticket;
use crate::lock;

/// Counts the records in flight at one producer, and holds the records to send again.
///
/// A writer counts a record and then reads `is_needed`. A record is sent alone only after
/// `is_needed` was set and the count was then zero. So nothing is handed to the client beside it.
/// It is taken out and counted, or put back, under the lock: otherwise `report` could find neither
/// a record nor a count, and clear `is_needed`.
#[derive(Default)]
pub(crate) struct Resend {
    records: Mutex<VecDeque<(OwnedMessage, Ticket)>>,
    /// A record waits to be sent alone, or is in flight alone.
    is_needed: AtomicBool,
    /// Records that were handed to the client and are not reported yet.
    open: AtomicU64,
    /// Records that the client has reported.
    reported: AtomicU64,
}

impl Resend {
    /// Whether writers must wait until the records here are sent and reported.
    pub(crate) fn is_needed(&self) -> bool {
        self.is_needed.load(SeqCst)
    }

    /// Counts a record that is handed to the client.
    pub(crate) fn send(&self) {
        self.open.fetch_add(1, SeqCst);
    }

    /// Undoes [`send`](Resend::send): the client did not accept the record.
    pub(crate) fn not_sent(&self) {
        self.open.fetch_sub(1, SeqCst);
    }

    /// How many records are in flight, and how many have been reported.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.open.load(SeqCst), self.reported.load(SeqCst))
    }

    /// Adds a record that was refused in a batch with others. Called before it is
    /// [`report`](Resend::report)ed.
    pub(crate) fn add(&self, message: &BorrowedMessage<'_>, ticket: &Ticket) {
        lock(&self.records).push_back((message.detach(), ticket.clone()));
        self.is_needed.store(true, SeqCst);
    }

    /// Counts a record that the client has reported. Returns whether writers have something to do
    /// now.
    pub(crate) fn report(&self) -> bool {
        self.reported.fetch_add(1, SeqCst);
        let left = self.open.fetch_sub(1, SeqCst) - 1;
        if left > 0 || !self.is_needed() {
            return false;
        }
        let records = lock(&self.records);
        // A writer may have sent the last record meanwhile, so `open` is read again.
        if records.is_empty() && self.open.load(SeqCst) == 0 {
            self.is_needed.store(false, SeqCst);
        }
        true
    }

    /// What a writer has to do now.
    pub(crate) fn next(&self) -> Next {
        if !self.is_needed() {
            return Next::Nothing;
        }
        let mut records = lock(&self.records);
        if self.open.load(SeqCst) > 0 {
            return Next::Nothing;
        }
        match records.pop_front() {
            Some((message, ticket)) => {
                self.send();
                Next::Send(message, ticket)
            }
            None => {
                self.is_needed.store(false, SeqCst);
                Next::GoOn
            }
        }
    }

    /// Puts back a record that the client has no room for yet; it is the next one again.
    pub(crate) fn put_back(&self, message: OwnedMessage, ticket: Ticket) {
        let mut records = lock(&self.records);
        self.not_sent();
        records.push_front((message, ticket));
    }
}

/// What a writer has to do.
pub(crate) enum Next {
    /// Send this record alone. It is already counted as sent.
    Send(OwnedMessage, Ticket),
    /// All records here are done: waiting writers may send again.
    GoOn,
    Nothing,
}
