//! Writing topics. A sink has one idempotent producer per process; each worker sends through it, and its delivery
//! reports, heard on a thread that blocks for them, acknowledge. rdkafka's own threads for that spin for the last
//! millisecond of every time-out, and its `flush` takes 100 ms with messages in flight: neither is used.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use millstream::{Accepted, Batch, Bytes, Delivery, Error, ErrorKind, OpenSink, Result, SharedSink, Wake, Writer};
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use crate::format::{Cause, Payload};

use super::client::{Heard, Settings};
use super::error::{error, is_of_record};
use super::lock;
use super::message::Message;
use super::options::{OnRefused, Profile};
use super::start::partitions_of;
use super::topic::Topic;

/// What a format makes of a record.
pub trait Write<T>: Send + Sync + 'static {
    /// Appends the payload to `buffer`, and says what goes beside it.
    ///
    /// # Errors
    /// Why the record cannot be encoded.
    fn write<'v>(&self, value: &'v T, buffer: &mut Vec<u8>) -> Result<Outgoing<'v>, Cause>;
}

/// What goes beside a payload.
#[derive(Debug)]
pub struct Outgoing<'v> {
    pub(super) payload: Payload,
    pub(super) key: Option<&'v [u8]>,
    pub(super) headers: Option<&'v millstream::Headers>,
    pub(super) topic: Option<&'v str>,
    pub(super) partition: Option<i32>,
    pub(super) timestamp: Option<i64>,
}

impl Default for Outgoing<'_> {
    fn default() -> Self {
        Outgoing { payload: Payload::Present, key: None, headers: None, topic: None, partition: None, timestamp: None }
    }
}

impl<'v> Outgoing<'v> {
    pub(super) fn of<T>(message: &'v Message<T>, payload: Payload) -> Outgoing<'v> {
        Outgoing {
            payload,
            key: message.key.as_deref(),
            headers: Some(&message.headers).filter(|headers| !headers.is_empty()),
            topic: message.topic.as_deref(),
            partition: message.partition,
            timestamp: message.timestamp,
        }
    }
}

/// What the delivery thread and the writers share.
struct Context {
    heard: Heard,
    on_refused: OnRefused,
    closing: AtomicBool,
    /// A writer was told that there is no room.
    full: AtomicBool,
    failed: Mutex<Option<Error>>,
    writers: Mutex<Vec<Wake>>,
}

impl Context {
    fn wake_writers(&self) {
        lock(&self.writers).iter().for_each(Wake::wake);
    }

    fn fail(&self, error: Error) {
        lock(&self.failed).get_or_insert(error);
        self.wake_writers();
    }
}

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.note(&error, reason);
        if let KafkaError::Global(Code::Fatal) = error {
            self.fail(Error::new(ErrorKind::Sink, "the Kafka producer cannot go on").caused_by(reason.to_owned()));
        }
        if let Some(refused) = self.heard.refusal() {
            self.fail(Error::new(ErrorKind::Refused, "cannot write to Kafka").caused_by(refused));
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Arc<Delivery>;

    fn delivery(&self, result: &DeliveryResult<'_>, delivery: Arc<Delivery>) {
        match result {
            Ok(message) => delivery.acknowledge(1, Bytes(message.payload_len() as u64)),
            Err((cause, message)) => self.not_delivered(cause, message.topic(), message.partition(), &delivery),
        }
        if self.full.load(SeqCst) && self.full.swap(false, SeqCst) {
            self.wake_writers();
        }
    }
}

impl Context {
    fn not_delivered(&self, cause: &KafkaError, topic: &str, partition: i32, delivery: &Delivery) {
        if self.closing.load(SeqCst) {
            return;
        }
        match cause.rdkafka_error_code() {
            Some(code) if is_of_record(code) => {
                if let Err(error) = self.refuse(topic, Some(partition), cause.clone().into(), delivery) {
                    self.fail(error);
                }
            }
            _ => {
                self.fail(error(ErrorKind::Sink, format!("cannot deliver a record to topic `{topic}`"), cause.clone()));
            }
        }
    }

    /// What the policy does with a record that cannot be taken.
    fn refuse(&self, topic: &str, partition: Option<i32>, cause: Cause, delivery: &Delivery) -> Result<()> {
        let partition = partition.filter(|partition| *partition >= 0);
        let place = partition.map_or_else(|| format!("topic `{topic}`"), |partition| format!("{topic}/{partition}"));
        match self.on_refused {
            OnRefused::Skip => {
                tracing::warn!(topic, partition, %cause, "skipping a record that cannot be written");
                delivery.dispose(1);
                Ok(())
            }
            OnRefused::Stop => {
                let doing =
                    format!("cannot write a record to {place} (`on_refused(OnRefused::Skip)` drops and counts it)");
                Err(Error::new(ErrorKind::Malformed, doing).caused_by(cause))
            }
        }
    }
}

/// The half of a Kafka sink that a process has once.
pub struct KafkaOutlet<W> {
    producer: Arc<BaseProducer<Context>>,
    context: Arc<Context>,
    sending: Arc<Sending>,
    topic: Option<String>,
    write: W,
}

/// Whether the delivery thread has something to wait for.
#[derive(Default)]
struct Sending {
    asleep: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Sending {
    fn wake(&self) {
        if self.asleep.load(SeqCst) {
            drop(lock(&self.lock));
            self.changed.notify_one();
        }
    }
}

impl<W> KafkaOutlet<W> {
    pub(super) fn connect(topic: &Topic, write: W, open: &OpenSink) -> Result<KafkaOutlet<W>> {
        let settings = &topic.settings;
        let producer = create(topic, open)?;
        check_topic(&producer, topic, settings)?;
        let outlet = KafkaOutlet {
            context: Arc::clone(producer.context()),
            producer: Arc::new(producer),
            sending: Arc::default(),
            topic: topic.names.first().cloned(),
            write,
        };
        outlet.start_delivery_thread()?;
        Ok(outlet)
    }

    fn start_delivery_thread(&self) -> Result<()> {
        let (producer, context, sending) =
            (Arc::clone(&self.producer), Arc::clone(&self.context), Arc::clone(&self.sending));
        let thread = thread::Builder::new().name("millstream-kafka".to_owned());
        let started = thread.spawn(move || deliver(&producer, &context, &sending));
        started.map(drop).map_err(|cause| {
            Error::new(ErrorKind::Sink, "cannot start the thread for delivery reports").caused_by(cause)
        })
    }
}

/// The body of the delivery thread: waits for reports while anything is in flight, else for something to be sent.
fn deliver(producer: &BaseProducer<Context>, context: &Context, sending: &Sending) {
    // One long wait after the other: a wait ends with up to a millisecond of spinning, so few of them.
    const WAIT: Duration = Duration::from_secs(1);
    while !context.closing.load(SeqCst) {
        if producer.in_flight_count() > 0 {
            producer.poll(WAIT);
            continue;
        }
        let guard = lock(&sending.lock);
        sending.asleep.store(true, SeqCst);
        if producer.in_flight_count() == 0 && !context.closing.load(SeqCst) {
            drop(sending.changed.wait_timeout(guard, WAIT));
        }
        sending.asleep.store(false, SeqCst);
    }
}

fn create(topic: &Topic, open: &OpenSink) -> Result<BaseProducer<Context>> {
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
        heard: Heard::default(),
        on_refused: options.on_refused.unwrap_or_default(),
        closing: AtomicBool::new(false),
        full: AtomicBool::new(false),
        failed: Mutex::default(),
        writers: Mutex::default(),
    };
    config.create_with_context(context).map_err(|cause| topic.settings.not_created(cause))
}

/// An absent broker and an unknown topic are errors at start, and metadata are there for the first record.
fn check_topic(producer: &BaseProducer<Context>, topic: &Topic, settings: &Settings) -> Result<()> {
    let metadata = |topic: Option<&str>| {
        let metadata = producer.client().fetch_metadata(topic, settings.connect_within);
        metadata.map_err(|cause| settings.unreachable("reach Kafka", cause, &producer.context().heard))
    };
    // Of all topics first: to ask for one by its name would create it where brokers do that.
    let all = metadata(None)?;
    let Some(name) = topic.names.first() else { return Ok(()) };
    partitions_of(&all, name, &settings.brokers)?;
    metadata(Some(name)).map(drop)
}

impl<W: Send + Sync + 'static> SharedSink for KafkaOutlet<W> {
    fn serve(&self) -> Result<()> {
        // The client lowers its count only after the last report's callback: a writer that was told in between that
        // there is no room would wait for a report that never comes.
        if self.context.full.swap(false, SeqCst) {
            self.context.wake_writers();
        }
        Ok(())
    }

    fn close(&self) {
        self.end();
    }
}

impl<W> Drop for KafkaOutlet<W> {
    /// Also when the plan fails after this sink was connected.
    fn drop(&mut self) {
        self.end();
    }
}

impl<W> KafkaOutlet<W> {
    fn end(&self) {
        // What is still in flight is not waited for: the run has ended, or failed, and nobody hears it. The thread
        // takes at most its wait to see that, and destroys the producer then, away from everybody.
        self.context.closing.store(true, SeqCst);
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        drop(lock(&self.sending.lock));
        self.sending.changed.notify_one();
    }
}

impl<W> fmt::Debug for KafkaOutlet<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kafka topic {:?}, {} records in flight", self.topic, self.producer.in_flight_count())
    }
}

/// Sends one worker's records.
pub struct KafkaWriter<W> {
    shared: Arc<KafkaOutlet<W>>,
    buffer: Vec<u8>,
}

impl<W> KafkaWriter<W> {
    pub(super) fn new(shared: &Arc<KafkaOutlet<W>>, wake: &Wake) -> KafkaWriter<W> {
        lock(&shared.context.writers).push(wake.clone());
        KafkaWriter { shared: Arc::clone(shared), buffer: Vec::new() }
    }
}

/// What became of an attempt to send.
enum Sent {
    Yes,
    NoRoom,
    Refused(Cause),
}

impl<W> KafkaWriter<W> {
    fn send<T>(&mut self, value: &T, delivery: &Arc<Delivery>) -> Result<(Sent, Option<String>)>
    where
        W: Write<T>,
    {
        self.buffer.clear();
        let outgoing = match self.shared.write.write(value, &mut self.buffer) {
            Ok(outgoing) => outgoing,
            Err(cause) => return Ok((Sent::Refused(cause), None)),
        };
        let Some(topic) = outgoing.topic.or(self.shared.topic.as_deref()) else {
            return Ok((Sent::Refused("the message names no topic, and the sink has none".into()), None));
        };
        let mut record = BaseRecord::with_opaque_to(topic, Arc::clone(delivery));
        if outgoing.payload == Payload::Present {
            record = record.payload(self.buffer.as_slice());
        }
        record.key = outgoing.key;
        record.partition = outgoing.partition;
        record.timestamp = outgoing.timestamp;
        record.headers = outgoing.headers.map(owned);
        match self.shared.producer.send(record) {
            Ok(()) => Ok((Sent::Yes, None)),
            Err((KafkaError::MessageProduction(Code::QueueFull), _)) => Ok((Sent::NoRoom, None)),
            Err((cause, _)) if cause.rdkafka_error_code().is_none_or(is_of_record) => {
                Ok((Sent::Refused(cause.into()), Some(topic.to_owned())))
            }
            Err((cause, _)) => Err(error(ErrorKind::Sink, format!("cannot write to topic `{topic}`"), cause)),
        }
    }
}

fn owned(headers: &millstream::Headers) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers.iter().fold(empty, |owned, (key, value)| owned.insert(Header { key, value }))
}

impl<T, W: Write<T>> Writer<T> for KafkaWriter<W> {
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted> {
        let shared_delivery = Arc::new(delivery.clone());
        let mut accepted = Accepted::All;
        let mut looked_again = false;
        while let Some(value) = batch.front() {
            match self.send(value, &shared_delivery)? {
                (Sent::Yes, _) => {}
                (Sent::Refused(cause), topic) => {
                    let topic = topic.or_else(|| self.shared.topic.clone()).unwrap_or_default();
                    self.shared.context.refuse(&topic, None, cause, delivery)?;
                }
                (Sent::NoRoom, _) => {
                    self.shared.context.full.store(true, SeqCst);
                    if self.shared.producer.in_flight_count() > 0 {
                        accepted = Accepted::Full;
                        break;
                    }
                    // Looked at again, because the last report may have come just before the flag; a record that finds
                    // no room in an empty queue never will.
                    if !looked_again {
                        looked_again = true;
                        continue;
                    }
                    let topic = self.shared.topic.clone().unwrap_or_default();
                    let cause = "it is larger than the memory for records on their way out (`Job::memory`)";
                    self.shared.context.refuse(&topic, None, cause.into(), delivery)?;
                }
            }
            looked_again = false;
            batch.next();
        }
        self.shared.sending.wake();
        Ok(accepted)
    }

    fn poll(&mut self) -> Result<()> {
        lock(&self.shared.context.failed).take().map_or(Ok(()), Err)
    }
}

impl<W> fmt::Debug for KafkaWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaWriter to {:?}", self.shared.topic)
    }
}
