//! Membership of a consumer group. The group gives partitions and wants them back; librdkafka tells it in a callback that
//! may do next to nothing, so here is what is done about it afterwards, on the control thread, in the one order that stalls
//! nobody: where given partitions begin is asked first, then their readers have them, then they are assigned; partitions
//! that are wanted back are drained and committed by the engine before they are unassigned.

use std::collections::VecDeque;
use std::mem;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::types::RDKafkaRespErr;

use super::lock;
use super::options::GroupProtocol;

/// What the group asks for.
#[derive(Debug)]
pub(super) enum Asked {
    Take(Vec<(String, i32)>),
    Return {
        partitions: Vec<(String, i32)>,
        /// Somebody else has them already.
        lost: bool,
    },
}

/// What the callback leaves for the control thread.
#[derive(Debug)]
pub(super) struct Membership {
    protocol: GroupProtocol,
    asked: Mutex<VecDeque<Asked>>,
    /// The request that the client waits for an answer to.
    open: Mutex<Option<Asked>>,
    /// The run is over: every request is granted on the spot.
    closing: AtomicBool,
    /// Since when the group owes an answer which partitions are ours.
    waits_since: Mutex<Option<Instant>>,
}

impl Membership {
    pub(super) fn new(protocol: GroupProtocol) -> Membership {
        Membership {
            protocol,
            asked: Mutex::default(),
            open: Mutex::default(),
            closing: AtomicBool::new(false),
            waits_since: Mutex::default(),
        }
    }

    /// Takes these partitions. An eager group gives all of them anew.
    pub(super) fn assign<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, list: &TopicPartitionList) {
        *lock(&self.waits_since) = None;
        note(match self.protocol {
            GroupProtocol::Classic | GroupProtocol::Consumer => consumer.incremental_assign(list),
            GroupProtocol::Eager => consumer.assign(list),
        });
    }

    /// Gives these partitions back. An eager group wants all of them.
    pub(super) fn unassign<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>, list: &TopicPartitionList) {
        note(match self.protocol {
            GroupProtocol::Classic | GroupProtocol::Consumer => consumer.incremental_unassign(list),
            GroupProtocol::Eager => consumer.unassign(),
        });
    }

    /// The group is about to say which partitions are ours.
    pub(super) fn waits(&self) {
        lock(&self.waits_since).get_or_insert_with(Instant::now);
    }

    /// How long the group has owed its answer.
    pub(super) fn waiting(&self) -> Option<Duration> {
        lock(&self.waits_since).map(|since| since.elapsed())
    }

    /// The body of the callback. The client waits for an answer, goes on with its heart-beats and pauses all partitions.
    pub(super) fn asked<C: ConsumerContext>(
        &self,
        consumer: &BaseConsumer<C>,
        what: RDKafkaRespErr,
        list: &TopicPartitionList,
    ) {
        let take = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(SeqCst) {
            // What is assigned now would only be given back.
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
        // The list is the event's.
        let partitions = partitions_of(list);
        let asked =
            if take { Asked::Take(partitions) } else { Asked::Return { partitions, lost: consumer.assignment_lost() } };
        lock(&self.asked).push_back(asked);
    }

    /// The next request, when none is open: the client may ask again before it has its answer, and takes answers in order.
    pub(super) fn next(&self) -> Option<Asked> {
        if lock(&self.open).is_some() {
            return None;
        }
        lock(&self.asked).pop_front()
    }

    /// The request is open until it is answered.
    pub(super) fn open(&self, asked: Asked) {
        *lock(&self.open) = Some(asked);
    }

    /// The open request to take partitions is answered now; there may be none any more.
    pub(super) fn taken(&self) -> bool {
        lock(&self.open).take_if(|asked| matches!(asked, Asked::Take(_))).is_some()
    }

    /// The partitions of the open request to return some, which is answered now.
    pub(super) fn returned(&self) -> Option<Vec<(String, i32)>> {
        match lock(&self.open).take_if(|asked| matches!(asked, Asked::Return { .. }))? {
            Asked::Return { partitions, .. } | Asked::Take(partitions) => Some(partitions),
        }
    }

    /// The run is over. Whatever the client still waits for is answered, or it could not end.
    pub(super) fn close<C: ConsumerContext>(&self, consumer: &BaseConsumer<C>) {
        self.closing.store(true, SeqCst);
        let waiting = mem::take(&mut *lock(&self.asked));
        let open = lock(&self.open).take();
        for asked in open.into_iter().chain(waiting) {
            match asked {
                Asked::Take(_) => self.assign(consumer, &TopicPartitionList::new()),
                Asked::Return { partitions, .. } => self.unassign(consumer, &list_of(&partitions)),
            }
        }
    }
}

/// An answer that comes too late is none; the client says so to itself and asks again.
fn note(answered: KafkaResult<()>) {
    if let Err(error) = answered {
        tracing::warn!(%error, "the group did not take an answer");
    }
}

pub(super) fn list_of(partitions: &[(String, i32)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    list
}

fn partitions_of(list: &TopicPartitionList) -> Vec<(String, i32)> {
    list.elements().iter().map(|element| (element.topic().to_owned(), element.partition())).collect()
}
