//! Kafka: topics as sources and sinks, at least once.
//!
//! A [`Topic`] with its options becomes a source or a sink when it gets a format ([`Records`]). A
//! record's path begins in `read` and ends in `write`; each is a folder with its own tour. `client`
//! holds the settings of all clients, with the reasons, and `client_events` what the clients
//! report.
//!
//! Offsets are committed to the consumer group only when every output of the records before them is
//! acknowledged. A quarter of [`Job::memory`](millstream::Job::memory) is for prefetched records. A
//! broker sends whole batches as a producer made them, so each partition may hold one more of
//! those, up to a megabyte by librdkafka's default.
//!
//! The group of a source has the job's name unless [`group`](Topic::group) sets another. A job
//! without an end joins the group: any number of its processes share the partitions, and a
//! partition that moves is drained and committed first. A bounded job, or one that names its
//! partitions or keeps state, assigns them to itself. One with state and without an end also reads
//! partitions that are added later, and topics that match its pattern later: it looks for them each
//! 30 s (`topic.metadata.refresh.interval.ms`). Two such jobs must not share a group: the second
//! fails at start, or it ends the first ([`fence_other_run`](Topic::fence_other_run)). The error
//! names the other run.

mod error;
mod options;
mod token;
mod security;
mod client_events;
mod client;

mod topic;
mod headers;
mod letter;
mod message;

mod read;
mod write;

mod messages;
mod records;

pub use letter::DeadLetter;
pub use message::{KafkaOrigin, Message};
pub use messages::Messages;
pub use options::{Compression, EndAt, GroupProtocol, Isolation, OnDataLoss, OnRefused, Partitioner, Profile, StartAt};
pub use records::{DeadLetters, Letters, MeasuredShape, OfFormat, Raw, Records, Value, Values, WithKey, WithMetadata};
pub use security::Sasl;
pub use token::Token;
pub use topic::Topic;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::security::Tls;

use client::Settings;
use security::Security;

/// A Kafka cluster and how to reach it. Cheap to clone.
///
/// Any property of librdkafka can be [`set`](Kafka::set), except those that the engine owns: these
/// are an error when the job starts. [`tls`](Kafka::tls) and [`sasl`](Kafka::sasl) set encryption
/// and authentication. Secrets, and values of properties that may be secret, are never printed: not
/// here, and not in any error, log or report.
///
/// Wrong credentials are an error at start, of the kind
/// [`Refused`](millstream::ErrorKind::Refused). If a broker stops accepting the credentials, a
/// running job ends with the same kind of error. A broker that is unreachable, or that closes a
/// connection, does not end the job.
#[derive(Clone)]
#[must_use = "a cluster is not connected until a pipeline uses one of its topics"]
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

    /// Encrypts connections, and sets which servers to trust. Needs the feature `tls`.
    pub fn tls(mut self, tls: Tls) -> Kafka {
        Arc::make_mut(&mut self.settings).security.tls = Some(tls);
        self
    }

    /// Sets how clients authenticate to the brokers.
    pub fn sasl(mut self, sasl: Sasl) -> Kafka {
        Arc::make_mut(&mut self.settings).security.sasl = Some(sasl);
        self
    }

    /// Sets a property of librdkafka for all clients of this cluster, such as `client.rack`.
    pub fn set(mut self, property: impl Into<String>, value: impl Into<String>) -> Kafka {
        Arc::make_mut(&mut self.settings).properties.insert(property.into(), value.into());
        self
    }

    /// How long a job waits at start for a broker to answer; 10 s by default, 24 days at most.
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

    /// All topics whose whole name matches a regular expression, such as `orders-\\d+`, to read as
    /// one source. Topics that begin with `__` are Kafka's own and are left out. The syntax is that
    /// of the [`regex`](https://docs.rs/regex) crate, for every trigger and group protocol: this
    /// library matches the names, and neither the client nor the broker sees the expression.
    ///
    /// A job without an end also reads topics that are created later, from their beginning. It
    /// looks for them every `topic.metadata.refresh.interval.ms`, 30 s by default, and every second
    /// while no topic matches.
    pub fn topics_matching(&self, pattern: impl Into<String>) -> Topic {
        Topic { is_pattern: true, ..self.topic(pattern) }
    }

    /// A sink for malformed records. Value, key and headers are the original ones; further headers,
    /// which begin with `millstream.`, say where each record was read, why it failed and when its
    /// letter was made ([`Message::dead_letter`]). [`Message::revived`] restores the original
    /// message.
    pub fn dead_letters(&self, topic: impl Into<String>) -> DeadLetters {
        let topic = topic.into();
        // A record that is too large for a letter leaves a letter that says so.
        self.topic(&topic).on_refused(OnRefused::DeadLetters(topic)).letters()
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
