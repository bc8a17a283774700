//! The producer of a sink: its settings, each with its reason, and the handling of its delivery
//! reports.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use millstream::connector::{Delivery, OpenSink, Wake};
use millstream::{ByteSize, Error, ErrorKind, Result};
use rdkafka::ClientContext;
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer, ProducerContext};

use crate::format::Cause;

use super::limits::{self, Limits};
use super::resend::Resend;
use super::ticket::{Kind, Ticket};
use crate::kafka::client::partitions_of;
use crate::kafka::client_events::ClientEvents;
use crate::kafka::error::{error, is_of_batch, is_of_record};
use crate::kafka::letter::Letter;
use crate::kafka::options::{OnRefused, Profile};
use crate::kafka::topic::Topic;
use crate::lock;

/// What the delivery thread and the writers share.
pub(crate) struct Context {
    pub(crate) events: ClientEvents,
    pub(crate) on_refused: OnRefused,
    /// Known once the producer is connected.
    limits: OnceLock<Limits>,
    pub(crate) resend: Resend,
    /// How many records were reported at the last call of `look_at_progress`.
    reported: Mutex<u64>,
    /// Set before the client's queue is purged: reports of purged records are not faults.
    pub(crate) closing: AtomicBool,
    /// A writer found the client's queue full. It sets this after its attempt, so the last report
    /// may come before: then the writer looks once more, or `serve` wakes it.
    pub(crate) full: AtomicBool,
    pub(crate) failed: Mutex<Option<Error>>,
    pub(crate) writers: Mutex<Vec<Wake>>,
    /// Dead letters of records that the broker refused, for a writer to send.
    pub(crate) letters: Mutex<Vec<(Letter, Delivery)>>,
}

impl Context {
    pub(crate) fn wake_writers(&self) {
        lock(&self.writers).iter().for_each(Wake::wake);
    }

    /// The limits of the topics.
    pub(crate) fn limits(&self) -> &Limits {
        self.limits.get().expect("a sink is created from a connected producer")
    }

    /// Checks for progress; called several times a second. A producer that has reported records
    /// since the last call, or has none in flight, does not wait for the broker.
    pub(crate) fn look_at_progress(&self) {
        let (open, now) = self.resend.progress();
        let before = std::mem::replace(&mut *lock(&self.reported), now);
        if open == 0 || now != before {
            self.events.progressed();
        } else {
            self.events.stalled();
        }
        self.events.log_what_lasts();
    }

    pub(crate) fn fail(&self, error: Error) {
        lock(&self.failed).get_or_insert(error);
        self.wake_writers();
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn StdError>> {
        self.events.token()
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.events.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.events.note(&error, reason);
        if let KafkaError::Global(Code::Fatal) = error {
            self.fail(Error::new(ErrorKind::Sink, "the Kafka producer had a fatal error").caused_by(reason.to_owned()));
        }
        if let Some(refused) = self.events.refused("cannot write to Kafka") {
            self.fail(refused);
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Arc<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Arc<Ticket>) {
        match result {
            Ok(_) if ticket.kind == Kind::Letter => ticket.delivery.dispose(1),
            Ok(message) => ticket.delivery.acknowledge(1, ByteSize(message.payload_len() as u64)),
            Err((cause, message)) => self.not_delivered(cause, message, &ticket),
        }
        // Loaded first, because it is almost never set, and a swap takes the cache line each time.
        let is_full = self.full.load(SeqCst) && self.full.swap(false, SeqCst);
        if self.resend.report() || is_full {
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
        if !ticket.is_alone && cause.rdkafka_error_code().is_some_and(is_of_batch) {
            tracing::debug!(topic, %cause, "a batch was refused, resending its records one by one");
            self.resend.add(message, ticket);
            return;
        }
        if !cause.rdkafka_error_code().is_some_and(is_of_record) {
            let doing = match cause.rdkafka_error_code() {
                Some(Code::MessageTimedOut) => {
                    format!("cannot deliver a record to topic `{topic}` in time (`deliver_within` sets the limit)")
                }
                _ => format!("cannot deliver a record to topic `{topic}`"),
            };
            self.fail(error(ErrorKind::Sink, doing, cause.clone()));
            return;
        }
        if ticket.kind == Kind::Letter {
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

    /// Leaves the letter to a writer: only writers send.
    fn send_later(&self, letter: Letter, ticket: &Ticket) {
        lock(&self.letters).push((letter, ticket.delivery.clone()));
        self.wake_writers();
    }

    /// Applies the policy to a record that cannot be written. Returns the dead letter to send, if
    /// there is one.
    pub(crate) fn refuse(
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
                    // The record was a dead letter itself.
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

/// The batch size unless a topic needs a smaller one; librdkafka's default.
const BATCH: u64 = 1_000_000;

/// Connects the producer of an existing topic, with batches no larger than the topic takes.
pub(crate) fn connect(topic: &Topic, open: &OpenSink) -> Result<BaseProducer<Context>> {
    let dead = match &topic.sink.on_refused {
        Some(OnRefused::DeadLetters(dead)) => Some(dead.as_str()),
        _ => None,
    };
    let mut written: Vec<&str> = topic.names.iter().map(String::as_str).chain(dead).collect();
    written.dedup();
    let asked = limits::ask(&topic.settings, &written, topic.sink.compression.unwrap_or_default())?;
    let mut producer = create(topic, open, BATCH)?;
    check_topic(&producer, topic, dead)?;
    let limits = asked.limits();
    if let Some(max) = limits.batch_max().filter(|max| *max < BATCH) {
        // The batch size of an existing client cannot be changed.
        producer = create(topic, open, max)?;
        check_topic(&producer, topic, dead)?;
    }
    producer.context().limits.set(limits).expect("a producer is connected once");
    Ok(producer)
}

fn create(topic: &Topic, open: &OpenSink, batch: u64) -> Result<BaseProducer<Context>> {
    let mut config = topic.settings.config()?;
    let options = &topic.sink;
    let properties = &topic.settings.properties;
    let linger = match options.profile.unwrap_or_default() {
        Profile::Latency => "0",
        Profile::Throughput => "10",
    };
    // Zero means no limit: a record waits for as long as its broker is away.
    let deliver_within = options.deliver_within.map_or(0, |limit| limit.as_millis().clamp(1, MILLISECONDS_MAX));
    let wanted: Option<u64> = properties.get("batch.size").and_then(|size| size.parse().ok());
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", options.partitioner.unwrap_or_default().name())
        .set("compression.type", options.compression.unwrap_or_default().name())
        .set("delivery.timeout.ms", deliver_within.to_string())
        .set("batch.size", wanted.map_or(batch, |wanted| wanted.min(batch)).to_string())
        .set("queue.buffering.max.kbytes", (open.buffer.0 / 1024).clamp(1, 2_097_151).to_string())
        // A queued message takes about 300 bytes of the client's memory in addition to its payload.
        .set("queue.buffering.max.messages", (open.buffer.0 / 300).clamp(1, 2_147_483_647).to_string());
    let pause = topic.settings.number("retry.backoff.max.ms").map_or(20, |longest| longest.min(20)).to_string();
    let longest = topic.settings.number("retry.backoff.ms").map_or(1_000, |pause| pause.max(1_000)).to_string();
    for (property, value) in [
        ("linger.ms", linger),
        ("sticky.partitioning.linger.ms", linger),
        ("request.timeout.ms", "10000"),
        ("retry.backoff.ms", &pause),
        ("retry.backoff.max.ms", &longest),
        // The topic has its own limit, and the client's default is below the brokers' default.
        ("message.max.bytes", "1000000000"),
    ] {
        let aliases = ["queue.buffering.max.ms"].iter().filter(|_| property == "linger.ms");
        if !aliases.copied().chain([property]).any(|name| properties.contains_key(name)) {
            config.set(property, value);
        }
    }
    let context = Context {
        events: ClientEvents::new(&topic.settings),
        on_refused: options.on_refused.clone().unwrap_or_default(),
        limits: OnceLock::new(),
        resend: Resend::default(),
        reported: Mutex::default(),
        closing: AtomicBool::new(false),
        full: AtomicBool::new(false),
        failed: Mutex::default(),
        writers: Mutex::default(),
        letters: Mutex::default(),
    };
    config.create_with_context(context).map_err(|cause| topic.settings.not_created(cause))
}

/// The longest time that librdkafka accepts.
const MILLISECONDS_MAX: u128 = i32::MAX as u128;

/// Makes an absent broker and an unknown topic errors at start, and loads the metadata before the
/// first record.
fn check_topic(producer: &BaseProducer<Context>, topic: &Topic, dead: Option<&str>) -> Result<()> {
    let settings = &topic.settings;
    let metadata = |topic: Option<&str>| {
        let ask = |wait: Duration| producer.client().fetch_metadata(topic, wait);
        settings.ask("reach Kafka", &producer.context().events, || listen(producer), ask)
    };
    // All topics first: a request for one by name would create it on a broker that creates topics
    // automatically.
    let all = metadata(None)?;
    if let Some(dead) = dead {
        partitions_of(&all, dead, &settings.brokers)?;
    }
    let Some(name) = topic.names.first() else { return Ok(()) };
    partitions_of(&all, name, &settings.brokers)?;
    metadata(Some(name)).map(drop)
}

/// Serves one event of the client; a poll never serves more.
fn listen(producer: &BaseProducer<Context>) {
    producer.poll(Duration::from_millis(1));
}
