//! The consumer of a source: its settings, each with its reason, and its callbacks.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use millstream::connector::OpenSource;
use millstream::{ByteSize, Result};
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Statistics, TopicPartitionList};

use super::group::Membership;
use crate::kafka::client::Settings;
use crate::kafka::client_events::ClientEvents;
use crate::kafka::options::{EndAt, GroupProtocol, OnDataLoss};
use crate::kafka::topic::Topic;
use crate::lock;

/// What the consumer reports through callbacks. They run on the thread that polls the main queue:
/// the control thread, once the job runs.
pub(crate) struct Context {
    pub(crate) events: ClientEvents,
    statistics: Mutex<Option<Statistics>>,
    pub(crate) membership: Membership,
    /// A callback has run; set by the thread that polls, which also reads it.
    has_heard: AtomicBool,
    /// Errors that arrived while another answer was awaited.
    passed_over: Mutex<Vec<KafkaError>>,
    /// Topics that were deleted and recreated while they were read.
    recreated: Mutex<BTreeSet<String>>,
    /// Whether `recreated` has a topic, so that readers take no lock for each poll. It is set after
    /// a topic is added, and cleared under the lock.
    is_recreated: AtomicBool,
}

impl Context {
    /// Takes the errors that no caller has considered yet.
    pub(crate) fn passed_over(&self) -> Vec<KafkaError> {
        std::mem::take(&mut *lock(&self.passed_over))
    }

    /// Whether a callback has run since the last call: a poll that returns nothing may have run
    /// one.
    pub(crate) fn has_heard(&self) -> bool {
        self.has_heard.swap(false, SeqCst)
    }

    /// Whether a topic was recreated: the client still reads it at offsets of the old one.
    pub(crate) fn is_recreated(&self, topic: &str) -> bool {
        self.is_recreated.load(SeqCst) && lock(&self.recreated).contains(topic)
    }

    /// A topic that was recreated, if there is one.
    pub(crate) fn first_recreated(&self) -> Option<String> {
        if self.is_recreated.load(SeqCst) { lock(&self.recreated).first().cloned() } else { None }
    }

    /// Forgets that the topic was recreated: it is read from its beginning from now on.
    pub(crate) fn rewound(&self, topic: &str) {
        let mut recreated = lock(&self.recreated);
        recreated.remove(topic);
        self.is_recreated.store(!recreated.is_empty(), SeqCst);
    }

    /// Takes the newest statistics.
    pub(crate) fn statistics(&self) -> Option<Statistics> {
        lock(&self.statistics).take()
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn StdError>> {
        self.has_heard.store(true, SeqCst);
        self.events.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.has_heard.store(true, SeqCst);
        if facility == METADATA {
            if let Some(topic) = recreated_topic(line) {
                lock(&self.recreated).insert(topic.to_owned());
                self.is_recreated.store(true, SeqCst);
            }
            if !self.events.is_debugged() {
                return;
            }
        }
        self.events.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.note(&error, reason);
        self.has_heard.store(true, SeqCst);
    }

    fn stats(&self, statistics: Statistics) {
        *lock(&self.statistics) = Some(statistics);
        self.has_heard.store(true, SeqCst);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.membership.asked(consumer, what, list);
        self.has_heard.store(true, SeqCst);
    }
}

/// Creates the consumer for this many partitions. If it joins its group, they are assigned later.
pub(crate) fn create(
    topic: &Topic,
    group: &str,
    end: &EndAt,
    joins: bool,
    open: &OpenSource,
    partitions: usize,
) -> Result<BaseConsumer<Context>> {
    let mut config = topic.settings.config()?;
    let prefetch = Prefetch::new(open.prefetch, partitions);
    let settings = &topic.settings;
    // `message.max.bytes` is a producer property, but the client refuses a `fetch.max.bytes` below
    // it, so it is at most as large as a fetch.
    let fetch_bytes = settings
        .number("receive.message.max.bytes")
        .map_or(prefetch.fetch_bytes, |most| prefetch.fetch_bytes.min(most.saturating_sub(512)));
    let message_bytes = settings.number("fetch.max.bytes").unwrap_or(fetch_bytes).clamp(1_000, 1_000_000);
    config.set("message.max.bytes", message_bytes.to_string());
    // The client reports a recreated topic only in this debug log (`recreated_topic`).
    let debug = settings.properties.get("debug").map_or("metadata".to_owned(), |debug| format!("{debug},metadata"));
    config.set("debug", debug).set_log_level(RDKafkaLogLevel::Debug);
    let on_data_loss = topic.source.on_data_loss.unwrap_or_default();
    let protocol = topic.source.protocol.unwrap_or_default();
    if joins {
        match protocol {
            GroupProtocol::Classic => drop(config.set("partition.assignment.strategy", "cooperative-sticky")),
            GroupProtocol::Eager => drop(config.set("partition.assignment.strategy", "range,roundrobin")),
            // The broker sets the session timeout and the heartbeat interval.
            GroupProtocol::Consumer => drop(config.set("group.protocol", "consumer")),
        }
        if let Some(instance) = &topic.source.instance {
            config.set("group.instance.id", instance);
        }
    }
    if !joins || protocol != GroupProtocol::Consumer {
        let session = session_timeout(settings);
        let times = [("session.timeout.ms", session), ("heartbeat.interval.ms", HEARTBEAT_EVERY.min(session / 3))];
        for (property, time) in times {
            if !settings.properties.contains_key(property) {
                config.set(property, time.as_millis().to_string());
            }
        }
    }
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", if on_data_loss == OnDataLoss::Skip { "earliest" } else { "error" })
        .set("isolation.level", topic.source.isolation.unwrap_or_default().name())
        .set("enable.partition.eof", (*end != EndAt::Never || open.has_watermark).to_string())
        .set("allow.auto.create.topics", "false")
        .set("queued.min.messages", "100000")
        .set("queued.max.messages.kbytes", prefetch.queued_kbytes.to_string())
        .set("statistics.interval.ms", "5000");
    // Defaults: the user's own properties override them.
    for (property, value) in [
        // A partition whose queue was full is left out of fetches for this long; the default is a
        // second.
        ("fetch.queue.backoff.ms", "5".to_owned()),
        ("fetch.error.backoff.ms", "50".to_owned()),
        ("fetch.wait.max.ms", "100".to_owned()),
        ("fetch.min.bytes", "1".to_owned()),
        ("fetch.max.bytes", fetch_bytes.to_string()),
        ("fetch.message.max.bytes", prefetch.fetch_partition_bytes.to_string()),
        ("topic.metadata.refresh.interval.ms", "30000".to_owned()),
    ] {
        let aliases = ["max.partition.fetch.bytes"].iter().filter(|_| property == "fetch.message.max.bytes");
        let set = aliases.copied().chain([property]).any(|name| settings.properties.contains_key(name));
        if !set {
            config.set(property, value);
        }
    }
    let context = Context {
        events: ClientEvents::of_group(&topic.settings, group),
        statistics: Mutex::default(),
        membership: Membership::new(protocol),
        has_heard: AtomicBool::new(false),
        passed_over: Mutex::default(),
        recreated: Mutex::default(),
        is_recreated: AtomicBool::new(false),
    };
    let mut consumer: BaseConsumer<Context> =
        config.create_with_context(context).map_err(|cause| topic.settings.not_created(cause))?;
    let wake = open.wake.clone();
    consumer.set_nonempty_callback(move || wake.wake());
    Ok(consumer)
}

/// Polls the client's events where no other code polls them yet, or while an answer is awaited.
pub(crate) fn listen(consumer: &BaseConsumer<Context>) {
    loop {
        match consumer.poll(Duration::ZERO) {
            Some(Err(cause)) => lock(&consumer.context().passed_over).push(cause),
            // The record bypassed its partition's queue. No reader gets it, so the run ends.
            Some(Ok(_)) => {
                lock(&consumer.context().passed_over).push(KafkaError::MessageConsumptionFatal(Code::Inconsistent));
            }
            // The poll returned nothing because it ran a callback: more events may be queued.
            None if consumer.context().has_heard() => {}
            None => return,
        }
    }
}

/// The facility under which the client logs what it learns about topics.
const METADATA: &str = "METADATA";

/// The topic that was recreated, if a line of the client's log says so. The client has no event for
/// this and continues at the old offset, and no function of rdkafka returns a topic's id
/// (librdkafka 2.12, `rdkafka_topic.c`).
fn recreated_topic(line: &str) -> Option<&str> {
    // The id before the change, if the client did not know the topic.
    const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let (_, said) = line.split_once("Topic ")?;
    let (topic, ids) = said.split_once(" changed id from ")?;
    let (before, _) = ids.split_once(" to ")?;
    (!before.starts_with(NO_ID)).then_some(topic)
}

/// The group removes a member that sends no heartbeat for this long.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The user's session timeout, or the default, which must not exceed the user's
/// `max.poll.interval.ms`.
pub(crate) fn session_timeout(settings: &Settings) -> Duration {
    let most = settings.number("max.poll.interval.ms").map_or(SESSION_TIMEOUT, Duration::from_millis);
    settings.number("session.timeout.ms").map_or(SESSION_TIMEOUT.min(most), Duration::from_millis)
}

/// How often a member tells the group that it is alive. In the classic protocol the answer also
/// tells it of a rebalance, for which all members wait.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// A source with more partitions connects a second time, once their number is known.
pub(crate) const PARTITIONS_EXPECTED: usize = 8;

/// How the memory for prefetched records is divided.
struct Prefetch {
    queued_kbytes: u64,
    fetch_bytes: u64,
    fetch_partition_bytes: u64,
}

impl Prefetch {
    fn new(memory: ByteSize, partitions: usize) -> Prefetch {
        // The client fetches again for a partition that is below its limit, keeps a response as
        // long as it keeps one of its messages, and adds some 400 bytes of its own to each message.
        // So the queues get a quarter of the memory by their own count (measured: a million records
        // of 1.2 kB in 64 partitions).
        let share = memory.0 / 4 / partitions as u64;
        Prefetch {
            queued_kbytes: (share / 1024).clamp(1, 65_536),
            // The client refuses a limit below the largest message.
            fetch_bytes: (memory.0 / 4).clamp(1 << 20, 50 << 20),
            fetch_partition_bytes: share.clamp(1 << 14, 1 << 20),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_was_made_anew_is_told_from_a_new_one() {
        let line = "[thrd:main]: Topic orders changed id from q1Lx0tYDQfOBpFn5q0wPAA to bN2bYl0fQo6yqk3wqTn4VQ";
        assert_eq!(recreated_topic(line), Some("orders"));
        let line = "[thrd:main]: Topic orders changed id from AAAAAAAAAAAAAAAAAAAAAA to bN2bYl0fQo6yqk3wqTn4VQ";
        assert_eq!(recreated_topic(line), None);
        assert_eq!(recreated_topic("[thrd:main]:   Topic orders with 2 partitions"), None);
    }
}
