//! A partition while it is ours: what its reader, the commits and the report know of it together.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use millstream::{Error, ErrorKind, Lag, Partition, Result};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::{Offset, TopicPartitionList};

use super::lock;
use super::start::{Span, next};

/// A partition as reader, commit and report see it, from when it is given until it is gone.
pub(super) struct Shared {
    pub(super) span: Span,
    /// It is wanted back, or gone: the reader drops it. When it comes again it is another one of these.
    pub(super) is_recalled: AtomicBool,
    /// The offset after the last message that the reader has taken from its queue.
    pub(super) polled: AtomicI64,
    /// The reader is taking messages, so the client's position is ahead of `polled`; stays set when it left early, or
    /// took a message that it did not keep.
    pub(super) draining: AtomicBool,
    /// Where the client says the partition stands; beyond control records too.
    pub(super) position: AtomicI64,
    /// The end of the log, as last heard.
    high: AtomicI64,
    /// How far the client had looked when it found no record more.
    seen_end: AtomicI64,
    /// The log was made anew, or cut, and begins before where we began.
    pub(super) went_back: AtomicBool,
}

/// The partitions that are ours at the moment.
#[derive(Default)]
pub(super) struct Held(Mutex<Vec<Arc<Shared>>>);

impl Held {
    pub(super) fn all(&self) -> Vec<Arc<Shared>> {
        lock(&self.0).clone()
    }

    pub(super) fn add(&self, shared: &Arc<Shared>) {
        lock(&self.0).push(Arc::clone(shared));
    }

    pub(super) fn remove(&self, partitions: &[Partition]) {
        lock(&self.0).retain(|shared| !partitions.contains(&shared.span.name));
    }
}

impl Shared {
    pub(super) fn new(span: Span) -> Arc<Shared> {
        Arc::new(Shared {
            is_recalled: AtomicBool::new(false),
            polled: AtomicI64::new(span.start),
            draining: AtomicBool::new(false),
            position: AtomicI64::new(span.start),
            high: AtomicI64::new(span.high),
            seen_end: AtomicI64::new(-1),
            went_back: AtomicBool::new(false),
            span,
        })
    }

    pub(super) fn is(&self, topic: &str, partition: i32) -> bool {
        self.span.topic == topic && self.span.partition == partition
    }

    /// What the client says of it.
    pub(super) fn hear(&self, position: Option<i64>, end: Option<i64>) {
        for (known, told) in [(&self.position, position), (&self.high, end)] {
            match told {
                Some(told) if self.went_back.load(SeqCst) => known.store(told, SeqCst),
                Some(told) => drop(known.fetch_max(told, SeqCst)),
                None => {}
            }
        }
    }

    /// The log was made anew, or cut, and this offset of it comes before where we stood. What was known of its end is of the
    /// old one.
    pub(super) fn go_back(&self, offset: i64) {
        self.went_back.store(true, SeqCst);
        self.polled.store(offset, SeqCst);
        self.position.store(offset, SeqCst);
        self.high.store(offset, SeqCst);
    }

    pub(super) fn hear_end(&self, seen: i64) {
        self.seen_end.store(seen, SeqCst);
    }

    /// Whether the client has found no record more there, or behind it.
    pub(super) fn has_seen_end(&self, end: i64) -> bool {
        self.seen_end.load(SeqCst) >= end
    }

    pub(super) fn lag(&self) -> Lag {
        let polled = self.polled.load(SeqCst);
        let at = polled.max(self.position.load(SeqCst));
        let end = self.span.end.unwrap_or_else(|| self.high.load(SeqCst));
        Lag::new(&self.span.name, next(self.span.start), next(at.min(end.max(polled))), next(end))
    }

    /// Where a partition stands whose records before `done` are done: what the client's position has passed beyond it
    /// are control records, and records of aborted transactions, which nobody polls. Only when nothing is being polled, and
    /// nothing was polled beyond `done`, looked at *after* the client told its positions.
    pub(super) fn beyond_control_records(&self, done: i64, positions: &Positions) -> i64 {
        let position = positions.get(&self.span).filter(|position| *position > done);
        let at_rest = || !self.draining.load(SeqCst) && self.polled.load(SeqCst) <= done;
        position.filter(|_| at_rest()).unwrap_or(done)
    }
}

/// The topic of a partition, whose name is as in `orders/3`.
pub(super) fn topic_of(partition: &Partition) -> &str {
    partition.name().rsplit_once('/').map_or("", |(topic, _)| topic)
}

/// The client's positions by partition.
pub(super) struct Positions(Option<TopicPartitionList>);

impl Positions {
    pub(super) fn of<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Positions {
        Positions(consumer.position().ok())
    }

    pub(super) fn get(&self, span: &Span) -> Option<i64> {
        match self.0.as_ref()?.find_partition(&span.topic, span.partition)?.offset() {
            Offset::Offset(position) => Some(position),
            _ => None,
        }
    }
}

/// Partitions that a source of this process reads for a group: a second one would commit past the first.
pub(super) struct Claim(Vec<(String, String, String)>);

static CLAIMED: Mutex<BTreeSet<(String, String, String)>> = Mutex::new(BTreeSet::new());

impl Claim {
    pub(super) fn new(brokers: &str, group: &str, spans: &[Span]) -> Result<Claim> {
        let of = |span: &Span| (brokers.to_owned(), group.to_owned(), span.name.name().to_owned());
        let wanted: Vec<_> = spans.iter().map(of).collect();
        let mut claimed = lock(&CLAIMED);
        if let Some((_, _, partition)) = wanted.iter().find(|wanted| claimed.contains(*wanted)) {
            let doing =
                format!("group `{group}` already reads {partition} in this process: give one of the two another group");
            return Err(Error::new(ErrorKind::Option, doing));
        }
        claimed.extend(wanted.iter().cloned());
        Ok(Claim(wanted))
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
            is_passing: false,
            is_known: true,
        })
    }

    /// What was known of the old log hid how far behind the new one was.
    #[test]
    fn the_lag_of_a_log_that_went_back_is_the_new_ones() {
        let shared = shared();
        shared.polled.store(120, SeqCst);
        shared.hear(Some(120), Some(120));
        assert_eq!(shared.lag().records(), 0);
        shared.go_back(0);
        shared.hear(Some(10), Some(50));
        shared.polled.store(10, SeqCst);
        assert_eq!(shared.lag().records(), 40);
        // What is older than that is of the same log.
        shared.hear(Some(30), Some(60));
        shared.polled.store(30, SeqCst);
        assert_eq!(shared.lag().records(), 30);
    }
}
