//! Kafka: topics as sources and sinks, at least once.
//!
//! A record's path begins in `reader` (the worker polls the queues of its own partitions) and ends in `sink` (one
//! producer per sink and process, whose delivery reports acknowledge). `source` is their consumer, `group` what its consumer
//! group asks of it, `signature` how runs that are no members of it know of each other, `start` finds where reading begins, `coordinator` does what waits for the group: above all it commits
//! how far reading is done. `client` holds the settings that both clients get and why.
//!
//! Offsets are committed to the consumer group only when every output of the records before them is acknowledged.
//! Of [`Job::memory`](millstream::Job::memory) a quarter is for records fetched ahead. A broker sends whole batches as a
//! producer made them, so each partition may hold one of those, up to a megabyte by librdkafka's default, beyond that.
//!
//! Without a group of its own name a source uses the job's. A job without an end joins it: as many processes of it as you
//! like share its partitions out, and a partition that moves is drained and committed first. A job that ends, or names its
//! partitions, assigns them to itself; two such must not share a group: the second is an error at start, or the first is
//! ended, with the other's name ([`take_over`](Topic::take_over)).

mod again;
mod client;
mod complaints;
mod consumer;
mod coordinator;
mod dead;
mod error;
mod group;
mod heard;
mod limits;
mod message;
mod messages;
mod options;
mod orders;
mod partition;
mod pattern;
mod producer;
mod reader;
mod secret;
pub(crate) mod security;
mod signature;
mod sink;
mod source;
mod start;
mod token;
mod topic;

pub use dead::{DeadLetter, DeadLetters};
pub use message::{KafkaOrigin, Message};
pub use messages::Messages;
pub use options::{Compression, GroupProtocol, OnRefused, Partitioner, Profile};
pub use reader::KafkaReader;
pub use secret::Secret;
pub use security::{Sasl, Tls};
pub use sink::{KafkaOutlet, KafkaWriter};
pub use source::KafkaShared;
pub use start::{DataLoss, End, Isolation, StartAt};
pub use token::Token;
pub use topic::{KeyedRecords, RawRecords, Records, RecordsWithMetadata, Topic};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::lock;

use client::Settings;
use security::Security;

/// A Kafka cluster and how to reach it. Cheap to clone.
///
/// Any property of librdkafka can be [`set`](Kafka::set); those that the engine owns are refused when the job starts.
/// [`tls`](Kafka::tls) and [`sasl`](Kafka::sasl) say how it is reached where not everybody may. Secrets, and values of
/// properties that may be secret, are never printed: not here, in no error, no log and no report.
///
/// Credentials that are wrong are an error at start, of the kind [`Refused`](millstream::ErrorKind::Refused).
/// Credentials that a broker stops accepting end a running job with the same kind of error; a broker that is away, or breaks
/// a connection off, does not.
#[derive(Clone)]
pub struct Kafka {
    settings: Arc<Settings>,
}

impl Kafka {
    /// A cluster by its bootstrap servers, such as `localhost:9092` or `one:9092,two:9092`.
    pub fn new(brokers: impl Into<String>) -> Kafka {
        let settings = Settings {
            brokers: brokers.into(),
            properties: BTreeMap::new(),
            security: Security::default(),
            connect_within: Duration::from_secs(10),
        };
        Kafka { settings: Arc::new(settings) }
    }

    /// Encrypts connections, and says whom to trust. Needs the feature `tls`.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Kafka {
        Arc::make_mut(&mut self.settings).security.tls = Some(tls);
        self
    }

    /// Says who we are.
    #[must_use]
    pub fn sasl(mut self, sasl: Sasl) -> Kafka {
        Arc::make_mut(&mut self.settings).security.sasl = Some(sasl);
        self
    }

    /// Sets a property of librdkafka for all clients of this cluster, such as `client.rack`.
    #[must_use]
    pub fn set(mut self, property: impl Into<String>, value: impl Into<String>) -> Kafka {
        Arc::make_mut(&mut self.settings).properties.insert(property.into(), value.into());
        self
    }

    /// How long a job waits at start for a broker to answer; 10 s by default, 24 days at most.
    #[must_use]
    pub fn connect_within(mut self, limit: Duration) -> Kafka {
        // The client counts milliseconds in 31 bits.
        const MOST: Duration = Duration::from_secs(24 * 86_400);
        Arc::make_mut(&mut self.settings).connect_within = limit.min(MOST);
        self
    }

    /// A topic to read or write.
    pub fn topic(&self, name: impl Into<String>) -> Topic {
        Topic::new(Arc::clone(&self.settings), vec![name.into()])
    }

    /// Several topics to read as one source.
    pub fn topics(&self, names: impl IntoIterator<Item = impl Into<String>>) -> Topic {
        Topic::new(Arc::clone(&self.settings), names.into_iter().map(Into::into).collect())
    }

    /// All topics whose whole name matches a regular expression, such as `orders-\\d+`, to read as one source; topics that
    /// begin with `__` are Kafka's own and are left out. The dialect is the one of the [`regex`](https://docs.rs/regex) crate,
    /// whatever the trigger and the group protocol: this library matches the names, and neither the client nor the broker sees
    /// the expression.
    ///
    /// A job without an end also reads topics that are made later, from their beginning. It looks for them each
    /// `topic.metadata.refresh.interval.ms`, 30 s unless it is set, and each second while no topic matches.
    pub fn topics_matching(&self, pattern: impl Into<String>) -> Topic {
        Topic { is_pattern: true, ..self.topic(pattern) }
    }

    /// A sink of malformed records, as they were: value, key and headers are the original ones, and headers that begin with
    /// `millstream.` say where each was read, why it is here and since when ([`Message::dead_letter`]).
    /// [`Message::revived`] is the way back.
    pub fn dead_letters(&self, topic: impl Into<String>) -> DeadLetters {
        let topic = topic.into();
        // One that is too large for its letter leaves one that says so.
        DeadLetters(self.topic(&topic).on_refused(OnRefused::DeadLetters(topic)))
    }

    /// A sink for messages that each name their topic.
    pub fn messages(&self) -> Messages {
        Messages::new(Topic::new(Arc::clone(&self.settings), Vec::new()))
    }
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kafka({:?})", self.settings)
    }
}
