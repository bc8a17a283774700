//! An assigned partition: the state that its reader, the commits and the report share.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use millstream::connector::{Offset as Next, Partition};
use millstream::{Error, ErrorKind, Lag, Result};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use crate::lock;

/// A partition of the run, with the absolute offsets between which it is read.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) name: Partition,
    pub(crate) start: i64,
    /// The end offset at the moment of start.
    pub(crate) high: i64,
    /// Where a bounded run ends.
    pub(crate) end: Option<i64>,
    /// The group had not read it before, and its start must be committed: it may change when it is
    /// looked up again.
    pub(crate) must_commit_start: bool,
    /// The group has read its topic before.
    pub(crate) is_known: bool,
}

/// Converts a Kafka offset to an engine offset.
pub(crate) fn next(offset: i64) -> Next {
    Next(u64::try_from(offset).unwrap_or(0))
}

/// The shared state of a partition, from its assignment until it is revoked or lost.
pub(crate) struct Shared {
    pub(crate) span: Span,
    /// The partition was revoked or lost: the reader drops it. If it is assigned again, it gets a
    /// new `Shared`.
    pub(crate) is_revoked: AtomicBool,
    /// The offset after the last message that the reader has taken from its queue. Stored before
    /// `draining` is cleared; see [`beyond_control_records`](Shared::beyond_control_records).
    pub(crate) polled: AtomicI64,
    /// The reader is taking messages, so the client's position is ahead of `polled`. Stays set when
    /// the reader stopped early, or took a message that it did not keep.
    pub(crate) draining: AtomicBool,
    /// The client's position, which also moves past control records.
    pub(crate) position: AtomicI64,
    /// The last known end offset.
    high: AtomicI64,
    /// Where the client last reached the end of the log.
    seen_end: AtomicI64,
    /// The log goes on behind its last stable offset: with records that are not committed yet.
    pub(crate) has_uncommitted: AtomicBool,
    /// The log was recreated or truncated, and is read again from an earlier offset.
    pub(crate) was_truncated: AtomicBool,
}

/// The partitions that are assigned at the moment.
#[derive(Default)]
pub(crate) struct Assignment(Mutex<Vec<Arc<Shared>>>);

impl Assignment {
    pub(crate) fn all(&self) -> Vec<Arc<Shared>> {
        lock(&self.0).clone()
    }

    pub(crate) fn add(&self, shared: &Arc<Shared>) {
        lock(&self.0).push(Arc::clone(shared));
    }

    pub(crate) fn remove(&self, partitions: &[Partition]) {
        lock(&self.0).retain(|shared| !partitions.contains(&shared.span.name));
    }
}

impl Shared {
    pub(crate) fn new(span: Span) -> Arc<Shared> {
        Arc::new(Shared {
            is_revoked: AtomicBool::new(false),
            polled: AtomicI64::new(span.start),
            draining: AtomicBool::new(false),
            position: AtomicI64::new(span.start),
            high: AtomicI64::new(span.high),
            seen_end: AtomicI64::new(-1),
            has_uncommitted: AtomicBool::new(false),
            was_truncated: AtomicBool::new(false),
            span,
        })
    }

    pub(crate) fn is(&self, topic: &str, partition: i32) -> bool {
        self.span.topic == topic && self.span.partition == partition
    }

    /// Takes over the position and the end offset that the client reports.
    pub(crate) fn hear(&self, position: Option<i64>, end: Option<i64>) {
        for (known, told) in [(&self.position, position), (&self.high, end)] {
            match told {
                Some(told) if self.was_truncated.load(SeqCst) => known.store(told, SeqCst),
                Some(told) => drop(known.fetch_max(told, SeqCst)),
                None => {}
            }
        }
    }

    /// Moves back to an offset of a log that was recreated or truncated. The known end offset
    /// belonged to the old log, so it is replaced as well.
    pub(crate) fn go_back(&self, offset: i64) {
        // First, so that reports from now on replace what is known instead of only raising it.
        self.was_truncated.store(true, SeqCst);
        self.polled.store(offset, SeqCst);
        self.position.store(offset, SeqCst);
        self.high.store(offset, SeqCst);
    }

    pub(crate) fn hear_end(&self, seen: i64) {
        self.seen_end.store(seen, SeqCst);
    }

    /// Whether the client has reached the end of the log at this offset or a later one.
    pub(crate) fn has_seen_end(&self, end: i64) -> bool {
        self.seen_end.load(SeqCst) >= end
    }

    pub(crate) fn lag(&self) -> Lag {
        let polled = self.polled.load(SeqCst);
        let at = polled.max(self.position.load(SeqCst));
        let end = self.span.end.unwrap_or_else(|| self.high.load(SeqCst));
        Lag::new(&self.span.name, next(self.span.start), next(at.min(end.max(polled))), next(end))
    }

    /// The offset to commit for a partition whose records before `done` are done. The client's
    /// position may be beyond `done`, past control records and records of aborted transactions,
    /// which are never polled. It counts only if nothing is being polled and nothing was polled
    /// beyond `done`. That is checked *after* the client's positions were read, in this order: a
    /// reader sets `draining` before it moves the position, and clears it after it has stored
    /// `polled`.
    pub(crate) fn beyond_control_records(&self, done: i64, positions: &Positions) -> i64 {
        let position = positions.get(&self.span).filter(|position| *position > done);
        let at_rest = || !self.draining.load(SeqCst) && self.polled.load(SeqCst) <= done;
        position.filter(|_| at_rest()).unwrap_or(done)
    }
}

/// The topic of a partition with a name such as `orders/3`.
pub(crate) fn topic_of(partition: &Partition) -> &str {
    partition.name().rsplit_once('/').map_or("", |(topic, _)| topic)
}

/// The offsets of a list, by topic and partition: the list itself looks at one after the other.
pub(crate) struct Positions(HashMap<String, HashMap<i32, i64>>);

impl Positions {
    /// The client's positions.
    pub(crate) fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Positions {
        consumer.position().map_or_else(|_| Positions(HashMap::new()), |list| Positions::in_list(&list))
    }

    pub(crate) fn in_list(list: &TopicPartitionList) -> Positions {
        let mut all: HashMap<String, HashMap<i32, i64>> = HashMap::new();
        for element in list.elements() {
            let Offset::Offset(offset) = element.offset() else { continue };
            match all.get_mut(element.topic()) {
                Some(of_topic) => drop(of_topic.insert(element.partition(), offset)),
                None => drop(all.insert(element.topic().to_owned(), HashMap::from([(element.partition(), offset)]))),
            }
        }
        Positions(all)
    }

    pub(crate) fn get(&self, span: &Span) -> Option<i64> {
        self.0.get(&span.topic)?.get(&span.partition).copied()
    }
}

/// Adds a partition to a list. (The client's own function for that looks for it again.)
pub(crate) fn add_to(
    list: &mut TopicPartitionList,
    (topic, partition): (&str, i32),
    offset: Offset,
) -> Result<(), KafkaError> {
    list.add_partition(topic, partition).set_offset(offset)
}

/// Partitions that a source of this process reads for a group. A second source would overwrite the
/// first one's offsets.
pub(crate) struct Claim(Vec<(String, String, String)>);

/// The claims of all sources of this process: brokers, group and partition.
static CLAIMED: Mutex<BTreeSet<(String, String, String)>> = Mutex::new(BTreeSet::new());

impl Claim {
    pub(crate) fn new(brokers: &str, group: &str, spans: &[Span]) -> Result<Claim> {
        let mut claim = Claim(Vec::new());
        claim.extend(brokers, group, spans)?;
        Ok(claim)
    }

    /// Claims these partitions too.
    pub(crate) fn extend(&mut self, brokers: &str, group: &str, spans: &[Span]) -> Result<()> {
        let of = |span: &Span| (brokers.to_owned(), group.to_owned(), span.name.name().to_owned());
        let wanted: Vec<_> = spans.iter().map(of).collect();
        let mut claimed = lock(&CLAIMED);
        if let Some((_, _, partition)) = wanted.iter().find(|wanted| claimed.contains(*wanted)) {
            let doing =
                format!("group `{group}` already reads {partition} in this process; use another group for one of them");
            return Err(Error::new(ErrorKind::Config, doing));
        }
        claimed.extend(wanted.iter().cloned());
        self.0.extend(wanted);
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = lock(&CLAIMED);
        claimed.retain(|claim| !self.0.contains(claim));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Arc<Shared> {
        Shared::new(Span {
            topic: "orders".to_owned(),
            partition: 0,
            name: Partition::new("orders/0"),
            start: 100,
            high: 120,
            end: None,
            must_commit_start: false,
            is_known: true,
        })
    }

    /// The end offset of the old log used to hide the lag in the new one.
    #[test]
    fn the_lag_of_a_log_that_was_truncated_is_the_new_ones() {
        let shared = shared();
        shared.polled.store(120, SeqCst);
        shared.hear(Some(120), Some(120));
        assert_eq!(shared.lag().records(), 0);
        shared.go_back(0);
        shared.hear(Some(10), Some(50));
        shared.polled.store(10, SeqCst);
        assert_eq!(shared.lag().records(), 40);
        // Later reports are about the same log.
        shared.hear(Some(30), Some(60));
        shared.polled.store(30, SeqCst);
        assert_eq!(shared.lag().records(), 30);
    }
}
