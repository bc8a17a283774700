//! The settings that both kinds of client get, which properties the engine owns, and what may be printed of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use millstream::{Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::{error, lock};

/// How to reach a cluster.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) brokers: String,
    pub(super) properties: BTreeMap<String, String>,
    pub(super) connect_within: Duration,
}

/// Properties that the engine sets itself, and where the user says what is wanted.
const OWNED: &[(&str, &str)] = &[
    ("acks", "the sink always waits for all in-sync replicas"),
    ("allow.auto.create.topics", "an unknown topic is an error"),
    ("auto.commit.interval.ms", "`Job::checkpoint_every` says how often offsets are committed"),
    ("auto.offset.reset", "`start_at` and `on_data_loss` say where reading begins"),
    ("bootstrap.servers", "it is the argument of `Kafka::new`"),
    ("compression.codec", "`compression` sets it"),
    ("compression.type", "`compression` sets it"),
    ("delivery.report.only.error", "every acknowledgement is needed"),
    ("enable.auto.commit", "offsets are committed behind their acknowledgements"),
    ("enable.auto.offset.store", "offsets are committed behind their acknowledgements"),
    ("enable.idempotence", "retries without it lose the order"),
    ("enable.partition.eof", "bounded runs set it"),
    ("group.id", "`group` sets it"),
    ("group.instance.id", "`group_instance` sets it"),
    ("group.protocol", "`group_protocol` sets it"),
    ("group.remote.assignor", "the broker's own is used"),
    ("isolation.level", "`isolation` sets it"),
    ("log.queue", "the engine polls the queues"),
    ("max.in.flight", "more than five lose the order"),
    ("max.in.flight.requests.per.connection", "more than five lose the order"),
    ("metadata.broker.list", "it is the argument of `Kafka::new`"),
    ("partition.assignment.strategy", "partitions move one by one: cooperative-sticky"),
    ("partitioner", "`partitioner` sets it"),
    ("queue.buffering.max.kbytes", "`Job::memory` bounds it"),
    ("queue.buffering.max.messages", "`Job::memory` bounds it"),
    ("queued.max.messages.kbytes", "`Job::memory` bounds it"),
    ("queued.min.messages", "`Job::memory` bounds it"),
    ("request.required.acks", "the sink always waits for all in-sync replicas"),
    ("statistics.interval.ms", "the report reads it"),
    ("topic.blacklist", "patterns leave out Kafka's own topics with it"),
    ("transactional.id", "this sink is at least once"),
];

impl Settings {
    /// A configuration with the user's properties; what the caller sets afterwards wins.
    pub(super) fn config(&self) -> Result<ClientConfig> {
        let wrong = |doing: String| Err(Error::new(ErrorKind::Option, doing));
        if self.brokers.trim().is_empty() {
            return wrong("Kafka needs at least one bootstrap server".to_owned());
        }
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        // Short pauses, so that a broker's restart is over when it is over.
        config.set("reconnect.backoff.ms", "20").set("reconnect.backoff.max.ms", "1000");
        // Static OpenSSL does not find the system's certificates by itself.
        #[cfg(feature = "tls")]
        config.set("ssl.ca.location", "probe");
        for (property, value) in &self.properties {
            if let Some((_, why)) = OWNED.iter().find(|(owned, _)| owned == property) {
                return wrong(format!("the property `{property}` cannot be set: {why}"));
            }
            config.set(property, value);
        }
        Ok(config)
    }

    /// The error of a client that could not be made, without its secrets.
    pub(super) fn not_created(&self, cause: KafkaError) -> Error {
        match cause {
            // Its own text ends with the value.
            KafkaError::ClientConfig(_, description, property, _) => {
                let description = if is_secret(&property) { "the value is not accepted" } else { &*description };
                Error::new(ErrorKind::Option, format!("the property `{property}` cannot be set: {description}"))
            }
            other => {
                Error::new(ErrorKind::Option, format!("cannot make a client for {}", self.brokers)).caused_by(other)
            }
        }
    }

    /// The error of a broker that did not answer in time, with what the client heard last.
    pub(super) fn unreachable(&self, doing: &str, cause: KafkaError, heard: &Heard) -> Error {
        let doing = format!("cannot {doing} at {} within {:?}", self.brokers, self.connect_within);
        match heard.take() {
            Some((code, reason)) => {
                let kind = if error::is_refusal(code) { ErrorKind::Refused } else { ErrorKind::Unreachable };
                Error::new(kind, doing).caused_by(reason)
            }
            None => error::error(ErrorKind::Unreachable, doing, cause),
        }
    }
}

/// Whether the value of a property must not be printed.
fn is_secret(property: &str) -> bool {
    ["password", "secret", "pem", "key", "token", "sasl.", "oauthbearer", "credential", "jaas", "certificate"]
        .iter()
        .any(|part| property.contains(part))
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self
            .properties
            .iter()
            .map(|(property, value)| (property, if is_secret(property) { "[not shown]" } else { value.as_str() }));
        f.write_str(&self.brokers)?;
        f.write_str(" ")?;
        f.debug_map().entries(shown).finish()
    }
}

/// The last thing a client complained about; explains a time-out.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<Option<(Code, String)>>);

impl Heard {
    pub(super) fn note(&self, error: &KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka client");
        if let Some(code) = error.rdkafka_error_code() {
            let mut heard = lock(&self.0);
            // That all brokers are down says less than why each of them is.
            let is_better = code != Code::AllBrokersDown || heard.is_none();
            let was_refused = heard.as_ref().is_some_and(|(code, _)| error::is_refusal(*code));
            if is_better && !was_refused {
                *heard = Some((code, reason.to_owned()));
            }
        }
    }

    pub(super) fn take(&self) -> Option<(Code, String)> {
        lock(&self.0).take()
    }

    /// What the other side refused, when it did.
    pub(super) fn refusal(&self) -> Option<String> {
        let heard = lock(&self.0);
        heard.as_ref().filter(|(code, _)| error::is_refusal(*code)).map(|(_, reason)| reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(property: &str, value: &str) -> Settings {
        let properties = [(property.to_owned(), value.to_owned())].into();
        Settings { brokers: "localhost:9092".to_owned(), properties, connect_within: Duration::from_secs(1) }
    }

    #[test]
    fn owned_properties_are_refused_by_name() {
        let error = settings("enable.auto.commit", "true").config().expect_err("the engine owns it");
        assert!(error.to_string().contains("`enable.auto.commit`"), "{error}");
    }

    #[test]
    fn secrets_are_not_printed() {
        for property in ["sasl.password", "ssl.key.pem", "ssl.keystore.password", "sasl.oauthbearer.config"] {
            let printed = format!("{:?}", settings(property, "S3CR3T"));
            assert!(printed.contains(property) && !printed.contains("S3CR3T"), "{printed}");
        }
    }
}
