//! Membership of a consumer group. The group assigns and revokes partitions. librdkafka reports
//! this in a callback that may do very little, so the work is done afterwards, on the control
//! thread, in the one order that stalls no other part:
//!
//! - Assigned partitions: first their starts are looked up, then their readers get them, then they
//!   are assigned in the client.
//! - Revoked partitions: the engine drains and commits them before they are unassigned.

use std::collections::VecDeque;
use std::mem;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::types::RDKafkaRespErr;

use crate::kafka::options::GroupProtocol;
use crate::lock;

/// A request of the group.
#[derive(Debug)]
pub(crate) enum Rebalance {
    Assigned(Vec<(String, i32)>),
    Revoked {
        partitions: Vec<(String, i32)>,
        /// Another member owns them already.
        lost: bool,
    },
}

/// The requests that the callback leaves for the control thread.
#[derive(Debug)]
pub(crate) struct Membership {
    protocol: GroupProtocol,
    asked: Mutex<VecDeque<Rebalance>>,
    /// The request whose answer the client waits for.
    open: Mutex<Option<Rebalance>>,
    /// The run has ended: every request is answered at once.
    closing: AtomicBool,
    /// Since when the group owes an assignment.
    waits_since: Mutex<Option<Instant>>,
}

impl Membership {
    pub(crate) fn new(protocol: GroupProtocol) -> Membership {
        Membership {
            protocol,
            asked: Mutex::default(),
            open: Mutex::default(),
            closing: AtomicBool::new(false),
            waits_since: Mutex::default(),
        }
    }

    /// Assigns these partitions in the client. An eager group assigns all of them again.
    pub(crate) fn assign<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, list: &TopicPartitionList) {
        *lock(&self.waits_since) = None;
        note(match self.protocol {
            GroupProtocol::Classic | GroupProtocol::Consumer => consumer.incremental_assign(list),
            GroupProtocol::Eager => consumer.assign(list),
        });
    }

    /// Unassigns these partitions. An eager group revokes all of them.
    pub(crate) fn unassign<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, list: &TopicPartitionList) {
        note(match self.protocol {
            GroupProtocol::Classic | GroupProtocol::Consumer => consumer.incremental_unassign(list),
            GroupProtocol::Eager => consumer.unassign(),
        });
    }

    /// The group owes an assignment from now on.
    pub(crate) fn waits(&self) {
        lock(&self.waits_since).get_or_insert_with(Instant::now);
    }

    /// How long the group has owed an assignment; `None` if it does not.
    pub(crate) fn waiting(&self) -> Option<Duration> {
        lock(&self.waits_since).map(|since| since.elapsed())
    }

    /// The body of the callback. The client waits for an answer; meanwhile it sends its heartbeats
    /// and pauses all partitions.
    pub(crate) fn asked<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        what: RDKafkaRespErr,
        list: &TopicPartitionList,
    ) {
        let take = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(SeqCst) {
            // Partitions that are assigned now would only be revoked again.
            if take {
                self.assign(consumer, &TopicPartitionList::new());
            } else {
                self.unassign(consumer, &list.clone());
            }
            return;
        }
        if !take {
            self.waits();
        }
        // The list belongs to the event.
        let partitions = partitions_of(list);
        let asked = if take {
            Rebalance::Assigned(partitions)
        } else {
            Rebalance::Revoked { partitions, lost: consumer.assignment_lost() }
        };
        lock(&self.asked).push_back(asked);
    }

    /// The next request, if none is open: the client may ask again before it has its answer, and
    /// expects the answers in order.
    pub(crate) fn next(&self) -> Option<Rebalance> {
        if lock(&self.open).is_some() {
            return None;
        }
        lock(&self.asked).pop_front()
    }

    /// Opens a request; it stays open until it is answered.
    pub(crate) fn open(&self, asked: Rebalance) {
        *lock(&self.open) = Some(asked);
    }

    /// The partitions of the open request, when another member owns them by now, although they were
    /// only asked back. Returns them once.
    pub(crate) fn lost<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) -> Option<Vec<(String, i32)>> {
        match &mut *lock(&self.open) {
            Some(Rebalance::Revoked { partitions, lost }) if !*lost && consumer.assignment_lost() => {
                *lost = true;
                Some(partitions.clone())
            }
            _ => None,
        }
    }

    /// Closes the open request to take partitions, which is answered now. Returns whether there was
    /// one.
    pub(crate) fn taken(&self) -> bool {
        lock(&self.open).take_if(|asked| matches!(asked, Rebalance::Assigned(_))).is_some()
    }

    /// Closes the open request to return partitions, which is answered now. Returns the partitions.
    pub(crate) fn returned(&self) -> Option<Vec<(String, i32)>> {
        match lock(&self.open).take_if(|asked| matches!(asked, Rebalance::Revoked { .. }))? {
            Rebalance::Revoked { partitions, .. } | Rebalance::Assigned(partitions) => Some(partitions),
        }
    }

    /// Ends the membership. Answers every request that the client still waits for, because the
    /// client cannot close until then.
    pub(crate) fn close<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) {
        // First: requests that come from now on are answered by the callback itself.
        self.closing.store(true, SeqCst);
        let waiting = mem::take(&mut *lock(&self.asked));
        let open = lock(&self.open).take();
        for asked in open.into_iter().chain(waiting) {
            match asked {
                Rebalance::Assigned(_) => self.assign(consumer, &TopicPartitionList::new()),
                Rebalance::Revoked { partitions, .. } => self.unassign(consumer, &list_of(&partitions)),
            }
        }
    }
}

/// Logs an answer that failed. One that comes too late has no effect: the client asks again.
fn note(answered: KafkaResult<()>) {
    if let Err(error) = answered {
        tracing::warn!(%error, "cannot answer a request of the group");
    }
}

pub(crate) fn list_of(partitions: &[(String, i32)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    list
}

fn partitions_of(list: &TopicPartitionList) -> Vec<(String, i32)> {
    list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect()
}
