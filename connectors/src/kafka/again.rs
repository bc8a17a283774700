//! Records that a broker refused in a batch of several. A broker refuses whole batches and the client does not split them,
//! so such a record may have failed for a neighbour's sake: it is sent again, alone, and only then is the policy asked.
//!
//! While records wait here the writers send nothing else, and each record waits until nothing is in flight, because that is
//! how it is alone in its batch. This is slow, and rare: the limits that a topic shows (`limits`) are kept before a record
//! is sent. A record that is accepted alone comes behind those that were in flight when its batch was refused.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use rdkafka::message::{BorrowedMessage, OwnedMessage};

use super::lock;
use super::producer::Ticket;

/// What is in flight at one producer, and what is to be sent once more.
#[derive(Default)]
pub(super) struct Again {
    records: Mutex<VecDeque<(OwnedMessage, Ticket)>>,
    /// Something is to be sent alone, or is on its way alone.
    is_needed: AtomicBool,
    /// Records that were handed to the client and of which it has not reported.
    open: AtomicU64,
    /// Records of which it has.
    reported: AtomicU64,
}

impl Again {
    /// Whether writers have to wait until the records here are through.
    pub(super) fn is_needed(&self) -> bool {
        self.is_needed.load(SeqCst)
    }

    /// A record is handed to the client.
    pub(super) fn send(&self) {
        self.open.fetch_add(1, SeqCst);
    }

    /// The client did not take it.
    pub(super) fn not_sent(&self) {
        self.open.fetch_sub(1, SeqCst);
    }

    /// How many records are in flight, and how many were reported before.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.open.load(SeqCst), self.reported.load(SeqCst))
    }

    /// A record was refused in a batch with others. Called before it is [`report`](Again::report)ed.
    pub(super) fn add(&self, message: &BorrowedMessage<'_>, ticket: &Ticket) {
        lock(&self.records).push_back((message.detach(), ticket.clone()));
        self.is_needed.store(true, SeqCst);
    }

    /// The client has reported of a record. Says whether writers have something to do now.
    pub(super) fn report(&self) -> bool {
        self.reported.fetch_add(1, SeqCst);
        let left = self.open.fetch_sub(1, SeqCst) - 1;
        if left > 0 || !self.is_needed() {
            return false;
        }
        let records = lock(&self.records);
        // A writer may have sent the last of them by now.
        if records.is_empty() && self.open.load(SeqCst) == 0 {
            self.is_needed.store(false, SeqCst);
        }
        true
    }

    /// What a writer has to do now.
    pub(super) fn next(&self) -> Next {
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

    /// The client did not take a record, for now: it is the next one again.
    pub(super) fn put_back(&self, message: OwnedMessage, ticket: Ticket) {
        let mut records = lock(&self.records);
        self.not_sent();
        records.push_front((message, ticket));
    }
}

/// What a writer has to do.
pub(super) enum Next {
    /// A record is to be sent alone. It counts as sent.
    Send(OwnedMessage, Ticket),
    /// All is through: whoever waits may send.
    GoOn,
    Nothing,
}
