//! The limits of a topic. Its settings are read when the job starts, so that the client makes
//! batches that fit, and a record that the broker would refuse is refused before it is sent. A
//! broker refuses whole batches, and with one record all others in its batch.
//!
//! On a record's path, the format comes before it and the producer after it. Limits that cannot be
//! read here (a user without the right to describe a topic, topics that messages name) show when
//! the broker refuses a record, and `again` handles that.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_executor::block_on;
use millstream::connector::spawn;
use millstream::{Headers, Result};
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigEntry, ConfigResource, ConfigSource, ResourceSpecifier};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::KafkaError;

use crate::format::Cause;

use crate::kafka::client::Settings;
use crate::kafka::message::Outgoing;
use crate::kafka::options::Compression;

/// The limits of the topics that a sink is known to write.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    /// By name. There are at most two, including the dead-letter topic.
    topics: Vec<(String, TopicLimits)>,
    /// The broker measures the compressed batch, and the compressed size of a record is not known
    /// before.
    is_compressed: bool,
}

/// The limits of one topic.
#[derive(Clone, Debug, Default)]
struct TopicLimits {
    /// The largest batch.
    batch: Option<Limit>,
    /// Where `cleanup.policy` is set, if it contains `compact`.
    compacts: Option<&'static str>,
    /// How far ahead of the broker's clock a timestamp may be.
    ahead: Option<Limit>,
    /// How far behind the broker's clock a timestamp may be.
    behind: Option<Limit>,
}

/// A number with the property that sets it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    value: u64,
    property: &'static str,
    set_in: &'static str,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}, {}", self.property, self.value, self.set_in)
    }
}

/// How far two clocks may differ: the broker decides on a timestamp that is out of range by no more
/// than this.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

impl Limits {
    /// The largest batch that all of the topics accept.
    pub(crate) fn batch_max(&self) -> Option<u64> {
        self.topics.iter().filter_map(|(_, topic)| topic.batch.as_ref()).map(|limit| limit.value).min()
    }

    /// Why a record cannot be written, if that is known before it is sent. `payload` is its length.
    pub(crate) fn refusal(&self, topic: &str, outgoing: &Outgoing<'_>, payload: Option<usize>) -> Option<Cause> {
        if let Some(cause) = outgoing.timestamp.and_then(unwritable) {
            return Some(cause.into());
        }
        let (_, limits) = self.topics.iter().find(|(name, _)| name == topic)?;
        if let Some(set_in) = limits.compacts.filter(|_| outgoing.key.is_none()) {
            let cause = format!("it has no key, and topic `{topic}` is compacted (`cleanup.policy`, {set_in})");
            return Some(cause.into());
        }
        if let Some(cause) = outgoing.timestamp.and_then(|timestamp| limits.out_of_range(timestamp)) {
            return Some(cause.into());
        }
        let limit = limits.batch.as_ref().filter(|_| !self.is_compressed)?;
        let size = batch_of_one(outgoing.key, payload, outgoing.headers.as_deref());
        (size > limit.value).then(|| {
            format!("it is too large for topic `{topic}`: {size} bytes with its key and headers, but {limit}").into()
        })
    }
}

/// The client treats 0 as no timestamp, and every broker refuses a timestamp before 1970.
fn unwritable(timestamp: i64) -> Option<String> {
    match timestamp {
        0 => Some("its timestamp is 0, which the Kafka client replaces with the current time".to_owned()),
        ..0 => Some(format!("its timestamp is {timestamp}, which is before 1970")),
        1.. => None,
    }
}

impl TopicLimits {
    fn out_of_range(&self, timestamp: i64) -> Option<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let (timestamp, skew) = (u64::try_from(timestamp).unwrap_or(0), CLOCK_SKEW.as_millis() as u64);
        let is_beyond = |limit: &&Limit, distance: u64| distance > limit.value.saturating_add(skew);
        let ahead = self.ahead.as_ref().filter(|limit| is_beyond(limit, timestamp.saturating_sub(now)));
        let behind = self.behind.as_ref().filter(|limit| is_beyond(limit, now.saturating_sub(timestamp)));
        let (limit, where_it_lies) = ahead.map(|limit| (limit, "ahead of")).or(behind.map(|limit| (limit, "behind")))?;
        Some(format!("its timestamp {timestamp} is too far {where_it_lies} the current time: {limit}"))
    }

    fn read(resource: &ConfigResource) -> TopicLimits {
        let entries = resource.entry_map();
        let text =
            |property: &str| entries.get(property).and_then(|entry| Some((entry.value.as_deref()?, set_in(entry))));
        let number = |property: &'static str| {
            let (value, set_in) = text(property)?;
            Some(Limit { value: value.parse().ok()?, property, set_in })
        };
        let is_the_clients = text("message.timestamp.type").is_none_or(|(kind, _)| kind == "CreateTime");
        TopicLimits {
            batch: [number("max.message.bytes"), number("segment.bytes")]
                .into_iter()
                .flatten()
                .min_by_key(|limit| limit.value),
            compacts: text("cleanup.policy").filter(|(policy, _)| policy.contains("compact")).map(|(_, set_in)| set_in),
            ahead: number("message.timestamp.after.max.ms").filter(|_| is_the_clients),
            behind: number("message.timestamp.before.max.ms").filter(|_| is_the_clients),
        }
    }
}

fn set_in(entry: &ConfigEntry) -> &'static str {
    match entry.source {
        ConfigSource::DynamicTopic => "set for the topic",
        ConfigSource::DynamicBroker | ConfigSource::StaticBroker => "set for the broker",
        ConfigSource::DynamicDefaultBroker => "set for all brokers",
        ConfigSource::Default => "the broker's default",
        ConfigSource::Unknown => "reported by the broker",
    }
}

/// The size of an uncompressed batch with this record only, in Kafka's record format 2.
fn batch_of_one(key: Option<&[u8]>, payload: Option<usize>, headers: Option<&Headers>) -> u64 {
    const BATCH: usize = 61;
    // Attributes, and the deltas of time and offset from the batch's own, which are 0.
    const RECORD: usize = 3;
    let field = |len: Option<usize>| len.map_or(1, |len| varint(len as u64) + len);
    let names = headers.into_iter().flat_map(Headers::iter);
    let headers_len: usize = names.map(|(name, value)| field(Some(name.len())) + field(value.map(<[u8]>::len))).sum();
    let count = varint(headers.map_or(0, Headers::len) as u64);
    let record = RECORD + field(key.map(<[u8]>::len)) + field(payload) + count + headers_len;
    (BATCH + varint(record as u64) + record) as u64
}

/// How many bytes a length takes in zigzag encoding.
fn varint(len: u64) -> usize {
    (64 - (len << 1).leading_zeros() as usize).div_ceil(7).max(1)
}

/// How long a start waits for the settings of its topics once it has their metadata.
const WAIT: Duration = Duration::from_secs(2);

/// A pending answer: the settings are requested on a separate thread, during the rest of the start.
pub(crate) struct PendingLimits {
    answer: Receiver<Vec<(String, TopicLimits)>>,
    compression: Compression,
}

/// Requests the settings of these topics, on a separate thread: destroying an admin client takes up
/// to 100 ms, and the start should not wait for that.
pub(crate) fn ask(settings: &Arc<Settings>, topics: &[&str], compression: Compression) -> Result<PendingLimits> {
    // Carries one answer.
    let (sender, answer) = mpsc::channel();
    // A client gets a token only while its queue is polled, and nothing here polls that of the
    // admin client.
    let is_askable = !topics.is_empty() && settings.security.tokens().is_none();
    if is_askable {
        let (settings, topics) =
            (Arc::clone(settings), topics.iter().map(|&topic| topic.to_owned()).collect::<Vec<_>>());
        let config = settings.config()?;
        spawn("limits", move || {
            // If no client can be created, the producer reports why, with secrets hidden.
            let Ok(admin) = AdminClient::from_config_and_context(&config, Quiet(settings)) else { return };
            let ask = || {
                let resources: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
                let options = AdminOptions::new().request_timeout(Some(WAIT));
                let described = block_on(admin.describe_configs(&resources, &options))?;
                let known = topics.iter().zip(described);
                let known = known.filter_map(|(topic, found)| Some((topic.clone(), TopicLimits::read(&found.ok()?))));
                // The receiver is gone if the start has failed.
                drop(sender.send(known.collect()));
                Ok::<(), KafkaError>(())
            };
            if let Err(cause) = ask() {
                tracing::debug!(%cause, "cannot read the settings of the output topics");
            }
        })?;
    }
    Ok(PendingLimits { answer, compression })
}

impl PendingLimits {
    /// Waits for the answer. Topics whose settings are unknown are missing.
    pub(crate) fn limits(self) -> Limits {
        let topics = self.answer.recv_timeout(WAIT).unwrap_or_default();
        Limits { topics, is_compressed: self.compression != Compression::None }
    }
}

/// Logs an admin client's events for debugging only: the producer reports the same.
struct Quiet(Arc<Settings>);

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        tracing::debug!(?level, facility, line = self.0.hide_in(line), "kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason = self.0.hide_in(reason), "kafka client");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(topic: TopicLimits) -> Limits {
        Limits { topics: vec![("orders".to_owned(), topic)], is_compressed: false }
    }

    fn limit(value: u64) -> Option<Limit> {
        Some(Limit { value, property: "max.message.bytes", set_in: "set for the topic" })
    }

    #[test]
    fn a_refusal_names_the_limit_and_where_it_is_set() {
        let limits = limits(TopicLimits { batch: limit(1_000), ..TopicLimits::default() });
        let cause = limits.refusal("orders", &Outgoing::default(), Some(2_000)).expect("it is too large").to_string();
        for part in ["`orders`", "`max.message.bytes` is 1000", "set for the topic", "too large"] {
            assert!(cause.contains(part), "`{cause}` does not name `{part}`");
        }
        assert!(limits.refusal("orders", &Outgoing::default(), Some(900)).is_none());
        assert!(limits.refusal("others", &Outgoing::default(), Some(2_000)).is_none());
    }

    #[test]
    fn lengths_are_counted_as_kafka_counts_them() {
        assert_eq!([0, 63, 64, 8_191, 8_192, 1_048_575, 1_048_576].map(varint), [1, 1, 2, 2, 3, 3, 4]);
        // An empty record: 61 of the batch, a length, attributes, two deltas, no key, no value, no
        // headers.
        assert_eq!(batch_of_one(None, None, None), 61 + 1 + 3 + 1 + 1 + 1);
    }

    #[test]
    fn within_the_skew_of_two_clocks_the_broker_decides() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let limits = limits(TopicLimits { ahead: limit(3_600_000), ..TopicLimits::default() });
        let at = |timestamp| Outgoing { timestamp: Some(timestamp), ..Outgoing::default() };
        for (timestamp, is_refused) in [
            (now, false),
            (now + 3_700_000, false),
            (now + 4_000_000, true),
            (now * 1_000, true),
            (0, true),
            (-1, true),
        ] {
            assert_eq!(limits.refusal("orders", &at(timestamp), None).is_some(), is_refused, "{timestamp}");
        }
    }
}
