//! The settings that both kinds of client get, which properties the engine owns, and what may be printed of them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use millstream::{Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use super::error;
use super::heard::Heard;
use super::secret::{NOT_SHOWN, Secret};
use super::security::{NEEDS_TLS, Security};

/// How to reach a cluster.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) brokers: String,
    pub(super) properties: BTreeMap<String, String>,
    pub(super) security: Security,
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
    ("delivery.timeout.ms", "`deliver_within` sets it"),
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
    ("message.timeout.ms", "`deliver_within` sets it"),
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
    /// A configuration with the user's properties; what the caller sets afterwards wins. Waits for a token where one is
    /// needed.
    pub(super) fn config(&self) -> Result<ClientConfig> {
        let wrong = |doing: String| Err(Error::new(ErrorKind::Option, doing));
        if self.brokers.trim().is_empty() {
            return wrong("Kafka needs at least one bootstrap server".to_owned());
        }
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        // Short pauses, so that a broker's restart is over when it is over. Each gives way to what the user says of the other.
        let pause = self.number("reconnect.backoff.max.ms").map_or(20, |longest| longest.min(20));
        let longest = self.number("reconnect.backoff.ms").map_or(1_000, |pause| pause.max(1_000));
        config.set("reconnect.backoff.ms", pause.to_string()).set("reconnect.backoff.max.ms", longest.to_string());
        // Why a connection was closed is told at this level and nowhere else.
        let level = if self.is_debugged() { RDKafkaLogLevel::Debug } else { RDKafkaLogLevel::Info };
        config.set_log_level(level);
        // Static OpenSSL does not find the system's certificates by itself.
        #[cfg(feature = "tls")]
        config.set("ssl.ca.location", "probe");
        let typed = self.security.properties()?;
        for (property, value) in &self.properties {
            if let Some((_, why)) = OWNED.iter().find(|(owned, _)| owned == property) {
                return wrong(format!("the property `{property}` cannot be set: {why}"));
            }
            if Security::said_by(property, &typed) {
                return wrong(format!("the property `{property}` cannot be set beside `Kafka::tls` and `Kafka::sasl`"));
            }
            if property.starts_with("sasl.mechanism") && value == "OAUTHBEARER" {
                return wrong(format!(
                    "the property `{property}` cannot be set: `Sasl::oauth_bearer` has the callback"
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
            return wrong(format!("the property `{property}` cannot be set: the value has a zero byte"));
        }
        if let Some(what) = self.security.readable().filter(|_| !is_loopback(&self.brokers)) {
            tracing::warn!(brokers = self.brokers, "without `Kafka::tls` anybody on the way can read the {what}");
        }
        if let Some(tokens) = self.security.tokens() {
            tokens.await_first(self.connect_within)?;
        }
        Ok(config)
    }

    /// Whether the user wants to see what the client logs.
    pub(super) fn is_debugged(&self) -> bool {
        self.properties.contains_key("debug")
    }

    /// A property that the user has set to a number.
    pub(super) fn number(&self, property: &str) -> Option<u64> {
        self.properties.get(property)?.parse().ok()
    }

    /// The error of a client that could not be made, without its secrets.
    pub(super) fn not_created(&self, cause: KafkaError) -> Error {
        match cause {
            // Its own text ends with the value.
            KafkaError::ClientConfig(_, description, property, _) => {
                let description = if is_secret(&property) { "the value is not accepted" } else { &*description };
                let doing = format!("the property `{property}` cannot be set: {description}");
                let is_missing = !cfg!(feature = "tls") && (property.contains("ssl") || description.contains("SSL"));
                let doing = if is_missing { format!("{doing}; it {NEEDS_TLS}") } else { doing };
                Error::new(ErrorKind::Option, doing)
            }
            KafkaError::ClientCreation(complaint) => {
                let blamed = self.security.tls.as_ref().and_then(|tls| tls.blamed(&complaint));
                let doing = blamed.unwrap_or_else(|| format!("cannot make a client for {}", self.brokers));
                let is_missing = !cfg!(feature = "tls") && complaint.contains("SASL mechanism");
                let doing = if is_missing { format!("{doing}: it {NEEDS_TLS}") } else { doing };
                Error::new(ErrorKind::Option, doing).caused_by(self.hide_in(&complaint))
            }
            other => {
                Error::new(ErrorKind::Option, format!("cannot make a client for {}", self.brokers)).caused_by(other)
            }
        }
    }

    /// Asks brokers for something in longer and longer waits and listens in between, because why there is no answer is told
    /// beside it. What they refuse is an error at once, silence when the time is over.
    pub(super) fn ask<T>(
        &self,
        doing: &str,
        heard: &Heard,
        listen: impl Fn(),
        mut ask: impl FnMut(Duration) -> Result<T, KafkaError>,
    ) -> Result<T> {
        let deadline = Instant::now() + self.connect_within;
        let mut wait = Duration::from_millis(100);
        // The client wants its first token.
        listen();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let asked = ask(wait.min(left));
            listen();
            match asked {
                Ok(answer) => {
                    heard.goes_on();
                    return Ok(answer);
                }
                Err(cause) if wait < left && heard.refusal().is_none() && error::is_silence(&cause) => wait *= 2,
                Err(cause) => return Err(self.unreachable(doing, cause, heard)),
            }
        }
    }

    /// The error of a broker that did not answer in time, with what the client heard last.
    pub(super) fn unreachable(&self, doing: &str, cause: KafkaError, heard: &Heard) -> Error {
        if let Some(error) = heard.refused(&format!("cannot {doing} at {}", self.brokers)) {
            return error;
        }
        let doing = format!("cannot {doing} at {} within {:?}", self.brokers, self.connect_within);
        match heard.take() {
            Some(reason) => Error::new(ErrorKind::Unreachable, doing).caused_by(self.suspect(reason)),
            None => error::error(ErrorKind::Unreachable, doing, cause),
        }
    }

    /// Of a broker that hangs up without a word, what it may want.
    fn suspect(&self, reason: String) -> String {
        let hung_up =
            ["Disconnected", "Broken pipe", "reset by peer", "unexpected eof"].iter().any(|part| reason.contains(part));
        let wants = match (&self.security.tls, &self.security.sasl) {
            _ if !hung_up || self.properties.contains_key("security.protocol") => return reason,
            (Some(_), _) if reason.contains("SSL_HANDSHAKE") => "it may not speak TLS here",
            (Some(_), Some(_)) => return reason,
            (Some(_), None) => "it may want to know who we are (`Kafka::sasl`)",
            (None, Some(_)) => "it may speak TLS (`Kafka::tls`)",
            (None, None) => "it may speak TLS (`Kafka::tls`), or want to know who we are (`Kafka::sasl`)",
        };
        format!("the broker hangs up, {wants}: {reason}")
    }

    /// Crosses out secrets in what the client says.
    pub(super) fn hide_in(&self, text: &str) -> String {
        let secrets = self.properties.iter().filter(|(property, _)| is_secret(property) && !is_public(property));
        let text = self.security.hide_in(text);
        secrets.fold(text, |text, (_, value)| Secret::from(value.as_str()).hide_in(&text))
    }
}

/// Whether nothing leaves this machine on the way to any of these.
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

/// What is hidden by its name only: as a value it stands in many a message.
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
