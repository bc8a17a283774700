//! The producer of a sink: its settings, each with its reason, and what it tells of what was sent.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream::{Bytes, Delivery, Error, ErrorKind, OpenSink, Result, Wake};
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};

use crate::format::Cause;

use super::client::Settings;
use super::dead::Letter;
use super::error::{error, is_of_record};
use super::heard::Heard;
use super::lock;
use super::options::{OnRefused, Profile};
use super::start::partitions_of;
use super::topic::Topic;

/// What is told of a record that was sent: who waits for it.
pub(super) struct Ticket {
    pub(super) delivery: Delivery,
    /// It stands for a record that was refused.
    pub(super) is_letter: bool,
}

/// What the delivery thread and the writers share.
pub(super) struct Context {
    heard: Heard,
    pub(super) on_refused: OnRefused,
    pub(super) closing: AtomicBool,
    /// A writer was told that there is no room.
    pub(super) full: AtomicBool,
    pub(super) failed: Mutex<Option<Error>>,
    pub(super) writers: Mutex<Vec<Wake>>,
    /// Of records that were refused by the other side, for a writer to send.
    pub(super) letters: Mutex<Vec<(Letter, Delivery)>>,
}

impl Context {
    pub(super) fn wake_writers(&self) {
        lock(&self.writers).iter().for_each(Wake::wake);
    }

    fn fail(&self, error: Error) {
        lock(&self.failed).get_or_insert(error);
        self.wake_writers();
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn StdError>> {
        self.heard.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.heard.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.note(&error, reason);
        if let KafkaError::Global(Code::Fatal) = error {
            self.fail(Error::new(ErrorKind::Sink, "the Kafka producer cannot go on").caused_by(reason.to_owned()));
        }
        if let Some(refused) = self.heard.refused("cannot write to Kafka") {
            self.fail(refused);
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Arc<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Arc<Ticket>) {
        match result {
            Ok(_) if ticket.is_letter => ticket.delivery.dispose(1),
            Ok(message) => ticket.delivery.acknowledge(1, Bytes(message.payload_len() as u64)),
            Err((cause, message)) => self.not_delivered(cause, message, &ticket),
        }
        if self.full.load(SeqCst) && self.full.swap(false, SeqCst) {
            self.wake_writers();
        }
    }
}

impl Context {
    fn not_delivered(&self, cause: &KafkaError, message: &BorrowedMessage<'_>, ticket: &Ticket) {
        if self.closing.load(SeqCst) {
            return;
        }
        let topic = message.topic();
        if !cause.rdkafka_error_code().is_some_and(is_of_record) {
            self.fail(error(ErrorKind::Sink, format!("cannot deliver a record to topic `{topic}`"), cause.clone()));
            return;
        }
        if ticket.is_letter {
            let mut letter = Letter::of(message);
            if letter.is_stripped() {
                let doing = format!("cannot write a dead letter to topic `{topic}`");
                self.fail(Error::new(ErrorKind::Malformed, doing).caused_by(cause.clone()));
                return;
            }
            letter.strip();
            self.send_later(letter, ticket);
            return;
        }
        let letter = || Letter::of(message);
        match self.refuse(topic, Some(message.partition()), cause.clone().into(), &ticket.delivery, letter) {
            Ok(None) => {}
            Ok(Some(letter)) => self.send_later(letter, ticket),
            Err(error) => self.fail(error),
        }
    }

    /// Only writers send.
    fn send_later(&self, letter: Letter, ticket: &Ticket) {
        lock(&self.letters).push((letter, ticket.delivery.clone()));
        self.wake_writers();
    }

    /// What the policy does with a record that cannot be taken; perhaps a letter is to be sent.
    pub(super) fn refuse(
        &self,
        topic: &str,
        partition: Option<i32>,
        cause: Cause,
        delivery: &Delivery,
        letter: impl FnOnce() -> Letter,
    ) -> Result<Option<Letter>> {
        let partition = partition.filter(|partition| *partition >= 0);
        let place = partition.map_or_else(|| format!("topic `{topic}`"), |partition| format!("{topic}/{partition}"));
        match &self.on_refused {
            OnRefused::Skip => {
                tracing::warn!(topic, partition, %cause, "skipping a record that cannot be written");
                delivery.dispose(1);
                Ok(None)
            }
            OnRefused::DeadLetters(dead) => {
                tracing::warn!(topic, partition, %cause, dead, "a record that cannot be written becomes a dead letter");
                let mut letter = letter();
                if letter.cause.is_empty() {
                    letter.cause = cause.to_string();
                    letter.refused_by = Some(topic.to_owned()).filter(|topic| !topic.is_empty());
                } else {
                    // It was on its way to the dead letters already.
                    letter.cause = format!("{cause}; before that: {}", letter.cause);
                    letter.strip();
                }
                Ok(Some(letter))
            }
            OnRefused::Stop => {
                let doing =
                    format!("cannot write a record to {place} (`on_refused(OnRefused::Skip)` drops and counts it)");
                Err(Error::new(ErrorKind::Malformed, doing).caused_by(cause))
            }
        }
    }
}

/// The producer, not connected yet.
pub(super) fn create(topic: &Topic, open: &OpenSink) -> Result<BaseProducer<Context>> {
    let mut config = topic.settings.config()?;
    let options = &topic.sink;
    let linger = match options.profile.unwrap_or_default() {
        Profile::Latency => "0",
        Profile::Throughput => "10",
    };
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", options.partitioner.unwrap_or_default().name())
        .set("compression.type", options.compression.unwrap_or_default().name())
        .set("queue.buffering.max.kbytes", (open.buffer.0 / 1024).clamp(1, 2_097_151).to_string())
        // A message in the queue takes some 300 bytes of the client's own beside its payload.
        .set("queue.buffering.max.messages", (open.buffer.0 / 300).clamp(1, 2_147_483_647).to_string());
    for (property, value) in [
        ("linger.ms", linger),
        ("sticky.partitioning.linger.ms", linger),
        ("delivery.timeout.ms", "120000"),
        ("request.timeout.ms", "10000"),
        ("retry.backoff.ms", "20"),
        ("retry.backoff.max.ms", "1000"),
    ] {
        let aliases: &[&str] = match property {
            "linger.ms" => &["queue.buffering.max.ms"],
            "delivery.timeout.ms" => &["message.timeout.ms"],
            _ => &[],
        };
        if !aliases.iter().chain([&property]).any(|name| topic.settings.properties.contains_key(*name)) {
            config.set(property, value);
        }
    }
    let context = Context {
        heard: Heard::new(&topic.settings),
        on_refused: options.on_refused.clone().unwrap_or_default(),
        closing: AtomicBool::new(false),
        full: AtomicBool::new(false),
        failed: Mutex::default(),
        writers: Mutex::default(),
        letters: Mutex::default(),
    };
    config.create_with_context(context).map_err(|cause| topic.settings.not_created(cause))
}

/// An absent broker and an unknown topic are errors at start, and metadata are there for the first record.
pub(super) fn check_topic(producer: &BaseProducer<Context>, topic: &Topic, settings: &Settings) -> Result<()> {
    let metadata = |topic: Option<&str>| {
        let ask = |wait: Duration| producer.client().fetch_metadata(topic, wait);
        settings.ask("reach Kafka", &producer.context().heard, || listen(producer), ask)
    };
    // Of all topics first: to ask for one by its name would create it where brokers do that.
    let all = metadata(None)?;
    if let Some(OnRefused::DeadLetters(dead)) = &topic.sink.on_refused {
        partitions_of(&all, dead, &settings.brokers)?;
    }
    let Some(name) = topic.names.first() else { return Ok(()) };
    partitions_of(&all, name, &settings.brokers)?;
    metadata(Some(name)).map(drop)
}

/// Takes in what the client has to tell; one poll takes one thing.
pub(super) fn listen(producer: &BaseProducer<Context>) {
    producer.poll(Duration::from_millis(1));
}
