//! The settings that consumers and producers share, the properties that the engine owns, and which
//! values may be printed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use millstream::{Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;

use super::client_events::ClientEvents;
use super::error;
use super::security::{Security, blamed};
use crate::security::{NEEDS_TLS, NOT_SHOWN, Secret};

/// How to reach a cluster.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) brokers: String,
    pub(crate) properties: BTreeMap<String, String>,
    pub(crate) security: Security,
    pub(crate) connect_within: Duration,
}

/// Properties that the engine sets itself, each with the reason or the option to use instead.
const OWNED: &[(&str, &str)] = &[
    ("acks", "the sink always waits for all in-sync replicas"),
    ("allow.auto.create.topics", "an unknown topic is an error"),
    ("auto.commit.interval.ms", "`Job::checkpoint_every` sets how often offsets are committed"),
    ("auto.offset.reset", "`start_at` and `on_data_loss` set where reading begins"),
    ("bootstrap.servers", "it is the argument of `Kafka::new`"),
    ("compression.codec", "`compression` sets it"),
    ("compression.type", "`compression` sets it"),
    ("delivery.report.only.error", "the sink needs every acknowledgement"),
    ("delivery.timeout.ms", "`deliver_within` sets it"),
    ("enable.auto.commit", "offsets are committed after their acknowledgements"),
    ("enable.auto.offset.store", "offsets are committed after their acknowledgements"),
    ("enable.idempotence", "without it, retries can reorder records"),
    ("enable.partition.eof", "bounded runs and watermarks set it"),
    ("group.id", "`group` sets it"),
    ("group.instance.id", "`group_instance` sets it"),
    ("group.protocol", "`group_protocol` sets it"),
    ("group.remote.assignor", "the broker's default assignor is used"),
    ("isolation.level", "`isolation` sets it"),
    ("log.queue", "the engine polls the queues"),
    ("max.in.flight", "more than five can reorder records"),
    ("max.in.flight.requests.per.connection", "more than five can reorder records"),
    ("message.timeout.ms", "`deliver_within` sets it"),
    ("metadata.broker.list", "it is the argument of `Kafka::new`"),
    ("partition.assignment.strategy", "`group_protocol` sets it"),
    ("partitioner", "`partitioner` sets it"),
    ("queue.buffering.max.kbytes", "`Job::memory` bounds it"),
    ("queue.buffering.max.messages", "`Job::memory` bounds it"),
    ("queued.max.messages.kbytes", "`Job::memory` bounds it"),
    ("queued.min.messages", "`Job::memory` bounds it"),
    ("request.required.acks", "the sink always waits for all in-sync replicas"),
    ("statistics.interval.ms", "the report needs the statistics"),
    ("topic.blacklist", "`Kafka::topics_matching` leaves out Kafka's own topics"),
    ("transactional.id", "the sink is at least once, without transactions"),
];

impl Settings {
    /// A configuration with the user's properties; properties that the caller sets afterwards
    /// override them. Waits for the first token if one is needed.
    pub(crate) fn config(&self) -> Result<ClientConfig> {
        let wrong = |doing: String| Err(Error::new(ErrorKind::Config, doing));
        if self.brokers.trim().is_empty() {
            return wrong("Kafka needs at least one bootstrap server".to_owned());
        }
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        // Short backoffs, so that the client reconnects soon after a broker restarts. If the user
        // sets one of the two, the default of the other adapts to it.
        let pause = self.number("reconnect.backoff.max.ms").map_or(20, |longest| longest.min(20));
        let longest = self.number("reconnect.backoff.ms").map_or(1_000, |pause| pause.max(1_000));
        config.set("reconnect.backoff.ms", pause.to_string()).set("reconnect.backoff.max.ms", longest.to_string());
        // The client logs why a connection was closed at this level and nowhere else.
        let level = if self.is_debugged() { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info };
        config.set_log_level(level);
        // Statically linked OpenSSL does not find the system's certificates by itself.
        #[cfg(feature = "tls")]
        config.set("ssl.ca.location", "probe");
        let typed = self.security.properties()?;
        for (property, value) in &self.properties {
            if let Some((_, why)) = OWNED.iter().find(|(owned, _)| owned == property) {
                return wrong(format!("the property `{property}` cannot be set: {why}"));
            }
            if Security::said_by(property, &typed) {
                return wrong(format!("the property `{property}` cannot be set with `Kafka::tls` or `Kafka::sasl`"));
            }
            if property.starts_with("sasl.mechanism") && value == "OAUTHBEARER" {
                return wrong(format!(
                    "the property `{property}` cannot be set: use `Sasl::oauth_bearer`, which takes a callback"
                ));
            }
            config.set(property, value);
        }
        for (property, value) in &typed {
            config.set(*property, value.expose());
        }
        let values = self.properties.iter().map(|(property, value)| (property.as_str(), value.as_str()));
        let mut values = values.chain(typed.iter().map(|(property, value)| (*property, value.expose())));
        if let Some((property, _)) = values.find(|(_, value)| value.contains('\0')) {
            return wrong(format!("the property `{property}` cannot be set: the value contains a NUL byte"));
        }
        if let Some(what) = self.security.readable().filter(|_| !is_loopback(&self.brokers)) {
            tracing::warn!(brokers = self.brokers, "without `Kafka::tls`, others on the network can read the {what}");
        }
        if let Some(tokens) = self.security.tokens() {
            tokens.await_first(self.connect_within)?;
        }
        Ok(config)
    }

    /// Whether the user has turned on the client's debug log.
    pub(crate) fn is_debugged(&self) -> bool {
        self.properties.contains_key("debug")
    }

    /// The value of a property that the user has set to a number.
    pub(crate) fn number(&self, property: &str) -> Option<u64> {
        self.properties.get(property)?.parse().ok()
    }

    /// The error for a client that could not be created, without its secrets.
    pub(crate) fn not_created(&self, cause: KafkaError) -> Error {
        match cause {
            // The cause's own text ends with the value.
            KafkaError::ClientConfig(_, description, property, _) => {
                let description = if is_secret(&property) { "the value is not accepted" } else { &*description };
                let doing = format!("the property `{property}` cannot be set: {description}");
                let is_missing = !cfg!(feature = "tls") && (property.contains("ssl") || description.contains("SSL"));
                let doing = if is_missing { format!("{doing}; it {NEEDS_TLS}") } else { doing };
                Error::new(ErrorKind::Config, doing)
            }
            KafkaError::ClientCreation(complaint) => {
                let option = self.security.tls.as_ref().and_then(|tls| blamed(tls, &complaint));
                let doing = option.unwrap_or_else(|| format!("cannot create a client for {}", self.brokers));
                let is_missing = !cfg!(feature = "tls") && complaint.contains("SASL mechanism");
                let doing = if is_missing { format!("{doing}: it {NEEDS_TLS}") } else { doing };
                Error::new(ErrorKind::Config, doing).caused_by(self.hide_in(&complaint))
            }
            other => {
                Error::new(ErrorKind::Config, format!("cannot create a client for {}", self.brokers)).caused_by(other)
            }
        }
    }

    /// Asks the brokers with timeouts that double, and polls the client's events in between,
    /// because they say why there is no answer. A refusal is an error at once, silence after
    /// `connect_within`.
    pub(crate) fn ask<T>(
        &self,
        doing: &str,
        events: &ClientEvents,
        listen: impl Fn(),
        mut ask: impl FnMut(Duration) -> Result<T, KafkaError>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.connect_within;
        let mut wait = Duration::from_millis(100);
        // Serves the client's request for its first token.
        listen();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked = ask(wait.min(left));
            listen();
            match asked {
                Ok(answer) => {
                    events.progressed();
                    return Ok(answer);
                }
                Err(cause) if wait < left && events.refusal().is_none() && error::is_silence(&cause) => wait *= 2,
                Err(cause) if wait < left && error::is_unheard_of(&cause) => {
                    thread::sleep(wait);
                    wait *= 2;
                }
                Err(cause) => return Err(self.unreachable(doing, cause, events)),
            }
        }
    }

    /// The error for a broker that refused or did not answer in time, with the client's last
    /// complaint as the cause.
    pub(crate) fn unreachable(&self, doing: &str, cause: KafkaError, events: &ClientEvents) -> Error {
        if let Some(error) = events.refused(&format!("cannot {doing} at {}", self.brokers)) {
            return error;
        }
        let doing = format!("cannot {doing} at {} within {:?}", self.brokers, self.connect_within);
        match events.take() {
            Some(reason) => Error::new(ErrorKind::Unreachable, doing).caused_by(self.suspect(reason)),
            None => error::error(ErrorKind::Unreachable, doing, cause),
        }
    }

    /// If the broker closed the connection without a reason, adds what it may require.
    fn suspect(&self, reason: String) -> String {
        let hung_up =
            ["Disconnected", "Broken pipe", "reset by peer", "unexpected eof"].iter().any(|part| reason.contains(part));
        let wants = match (&self.security.tls, &self.security.sasl) {
            _ if !hung_up || self.properties.contains_key("security.protocol") => return reason,
            (Some(_), _) if reason.contains("SSL_HANDSHAKE") => "this listener may not use TLS",
            (Some(_), Some(_)) => return reason,
            (Some(_), None) => "it may require authentication (`Kafka::sasl`)",
            (None, Some(_)) => "it may require TLS (`Kafka::tls`)",
            (None, None) => "it may require TLS (`Kafka::tls`) or authentication (`Kafka::sasl`)",
        };
        format!("the broker closed the connection; {wants}: {reason}")
    }

    /// Replaces the secrets in a text from the client.
    pub(crate) fn hide_in(&self, text: &str) -> String {
        let secrets = self.properties.iter().filter(|(property, _)| is_secret(property) && !is_public(property));
        let text = self.security.hide_in(text);
        secrets.fold(text, |text, (_, value)| Secret::from(value.as_str()).hide_in(&text))
    }
}

/// Whether connections to all of these brokers stay on this machine.
fn is_loopback(brokers: &str) -> bool {
    let host = |broker: &str| {
        let address = broker.trim().rsplit("://").next().unwrap_or_default().to_owned();
        address.rsplit_once(':').map_or(address.clone(), |(host, _)| host.to_owned())
    };
    brokers.split(',').map(host).all(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

/// Whether the value of a property must not be printed.
fn is_secret(property: &str) -> bool {
    ["password", "secret", "pem", "key", "token", "sasl.", "oauthbearer", "credential", "jaas", "certificate"]
        .iter()
        .any(|part| property.contains(part))
}

/// Properties that `Debug` hides because of their names, but whose values are left in the client's
/// texts: they are common words that occur in many messages.
fn is_public(property: &str) -> bool {
    ["sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.oauthbearer.method"].contains(&property)
        || property.ends_with(".location")
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self
            .properties
            .iter()
            .map(|(property, value)| (property, if is_secret(property) { NOT_SHOWN } else { value.as_str() }));
        f.write_str(&self.brokers)?;
        f.write_str(" ")?;
        f.debug_map().entries(shown).finish()?;
        if let Some(tls) = &self.security.tls {
            write!(f, " {tls:?}")?;
        }
        if let Some(sasl) = &self.security.sasl {
            write!(f, " {sasl:?}")?;
        }
        Ok(())
    }
}

/// The partitions of a topic, or an error that says why there are none.
pub(crate) fn partitions_of(metadata: &Metadata, topic: &str, brokers: &str) -> Result<Vec<i32>> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let cause = found.and_then(rdkafka::metadata::MetadataTopic::error).map(Code::from);
    match (found, cause) {
        (Some(found), None) if !found.partitions().is_empty() => {
            Ok(found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect())
        }
        (_, Some(code)) if code != Code::UnknownTopicOrPartition => {
            let cause = KafkaError::MetadataFetch(code);
            Err(error::error(ErrorKind::NotFound, format!("cannot use topic `{topic}` at {brokers}"), cause))
        }
        _ => Err(Error::new(ErrorKind::NotFound, format!("topic `{topic}` does not exist at {brokers}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(property: &str, value: &str) -> Settings {
        let properties = [(property.to_owned(), value.to_owned())].into();
        Settings {
            brokers: "localhost:9092".to_owned(),
            properties,
            security: Security::default(),
            connect_within: Duration::from_secs(1),
        }
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
            let said = settings(property, "S3CR3T").hide_in("bad value S3CR3T");
            assert_eq!(said, "bad value [not shown]");
        }
    }

    #[test]
    fn a_host_on_the_way_is_no_loopback() {
        for brokers in ["localhost:9092", "127.0.0.1:9092,[::1]:9093", "sasl_plaintext://127.0.0.2:1"] {
            assert!(is_loopback(brokers), "{brokers}");
        }
        for brokers in ["kafka:9092", "localhost:9092,10.0.0.1:9092", "127.0.0.1.example:9092"] {
            assert!(!is_loopback(brokers), "{brokers}");
        }
    }
}
