//! Writing topics. A sink has one idempotent producer per process. Each worker sends through it,
//! and a thread that blocks for its delivery reports acknowledges the records. rdkafka's own
//! polling threads spin for the last millisecond of every time-out, and its `flush` takes 100 ms
//! with messages in flight, so neither is used.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use millstream::connector::{
    Accepted, Batch, Delivery, Fingerprint, OpenSink, SharedSink, SinkEvent, Wake, Writer, spawn_watched,
};
use millstream::{Error, ErrorKind, Headers, Result};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{Header, Message as _, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::format::{Cause, Payload, of_record};

use super::producer::{Context, connect};
use super::resend::Next;
use super::sending::Sending;
use super::ticket::{Kind, Ticket};
use crate::kafka::error::{error, is_of_record};
use crate::kafka::letter::Place;
use crate::kafka::letter::{Letter, NOT_ENCODED};
use crate::kafka::message::Outgoing;
use crate::kafka::options::OnRefused;
use crate::kafka::topic::Topic;
use crate::lock;

/// Turns records into messages, by a format.
pub trait Write<T>: Send + Sync + 'static {
    /// The name of the sink.
    fn name(&self, topic: &Topic) -> String {
        topic.described()
    }

    /// Called once when the job starts. `topic` is the topic of all records, if they all go to one.
    ///
    /// # Errors
    /// When an option is known to be wrong.
    fn open(&mut self, topic: Option<&str>) -> Result<()> {
        let _ = topic;
        Ok(())
    }

    /// Appends the payload to `buffer`.
    ///
    /// # Errors
    /// When the record cannot be encoded.
    fn encode(&self, value: &T, buffer: &mut Vec<u8>) -> Result<Payload, Cause>;

    /// What is sent beside the payload, such as key and headers.
    fn metadata<'v>(&self, value: &'v T) -> Outgoing<'v>;

    /// Topic, partition and offset where the record was read. Called only for a record that is
    /// refused.
    fn origin(&self, value: &T) -> Option<Place> {
        let _ = value;
        None
    }
}

/// The half of a Kafka sink that a process has once.
pub struct KafkaOutlet<W> {
    producer: Arc<BaseProducer<Context>>,
    context: Arc<Context>,
    sending: Arc<Sending>,
    topic: Option<String>,
    fingerprint: Option<Arc<Fingerprint>>,
    write: W,
}

impl<W> KafkaOutlet<W> {
    pub(crate) fn connect<T>(topic: &Topic, mut write: W, open: &OpenSink) -> Result<KafkaOutlet<W>>
    where
        W: Write<T>,
    {
        let producer = connect(topic, open)?;
        // After the check of the topic: a format must not register anything for a topic that does
        // not exist.
        write.open(topic.names.first().map(String::as_str))?;
        let outlet = KafkaOutlet {
            context: Arc::clone(producer.context()),
            producer: Arc::new(producer),
            sending: Arc::default(),
            topic: topic.names.first().cloned(),
            fingerprint: open.fingerprint.clone(),
            write,
        };
        outlet.start_delivery_thread()?;
        Ok(outlet)
    }

    fn start_delivery_thread(&self) -> Result<()> {
        let (producer, context, sending) =
            (Arc::clone(&self.producer), Arc::clone(&self.context), Arc::clone(&self.sending));
        let failed = Arc::clone(&context);
        let body = move || deliver(&producer, &context, &sending);
        spawn_watched("kafka", body, move |error| failed.fail(error)).map(drop)
    }
}

/// The body of the delivery thread. It waits for reports while records are in flight, otherwise for
/// a record to be sent.
fn deliver(producer: &BaseProducer<Context>, context: &Context, sending: &Sending) {
    // Waits are long and few, because each ends with up to a millisecond of spinning.
    const WAIT: Duration = Duration::from_secs(1);
    // Enough for what an idle client reports in a second.
    const TOLD_AT_ONCE: usize = 16;
    while !context.closing.load(SeqCst) {
        if producer.in_flight_count() > 0 {
            producer.poll(WAIT);
            continue;
        }
        let has_nothing = || producer.in_flight_count() == 0 && !context.closing.load(SeqCst);
        let mut is_idle = false;
        sending.sleep_if(has_nothing, |guard, changed| {
            let (guard, waited) = changed.wait_timeout(guard, WAIT).unwrap_or_else(PoisonError::into_inner);
            is_idle = waited.timed_out();
            guard
        });
        if is_idle {
            // An idle client also has events to serve and tokens to request. A poll that does not
            // wait serves one event without spinning; a poll that waits for a millisecond spins for
            // all of it.
            (0..TOLD_AT_ONCE).for_each(|_| producer.poll(Duration::ZERO));
        }
    }
}

impl<W: Send + Sync + 'static> SharedSink for KafkaOutlet<W> {
    fn serve(&self) -> Result<Vec<SinkEvent>> {
        // The client lowers its in-flight count only after the callback of the last report. A
        // writer that found the queue full in between would wait for a report that never comes.
        if self.context.full.swap(false, SeqCst) {
            self.context.wake_writers();
        }
        self.context.look_at_progress();
        Ok(Vec::new())
    }

    fn waiting(&self) -> Option<String> {
        self.context.events.waiting()
    }

    fn close(&self) {
        self.end();
    }
}

impl<W> Drop for KafkaOutlet<W> {
    /// Also ends a sink whose plan fails after it was connected.
    fn drop(&mut self) {
        self.end();
    }
}

impl<W> KafkaOutlet<W> {
    fn end(&self) {
        // Records in flight are not waited for: the run has ended or failed, and their reports are
        // not needed. The delivery thread notices within one wait and then destroys the producer,
        // so that no other thread is delayed by that.
        self.context.closing.store(true, SeqCst);
        self.producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
        self.sending.wake_always();
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
    /// What the buffer holds of the current record; `None` when it could not be encoded.
    encoded: Option<Payload>,
    /// Dead letters that are still to be sent.
    letters: VecDeque<(Letter, Delivery)>,
}

impl<W> KafkaWriter<W> {
    pub(crate) fn new(shared: &Arc<KafkaOutlet<W>>, wake: &Wake) -> KafkaWriter<W> {
        lock(&shared.context.writers).push(wake.clone());
        KafkaWriter { shared: Arc::clone(shared), buffer: Vec::new(), encoded: None, letters: VecDeque::new() }
    }
}

/// The result of an attempt to send.
enum Sent {
    Yes,
    /// Records of a refused batch are resent first.
    Later,
    NoRoom,
    Refused(Cause),
}

impl<W> KafkaWriter<W> {
    /// Sends a record. Its encoded payload stays in the buffer.
    fn send<T>(&mut self, value: &T, ticket: &Arc<Ticket>) -> Result<Sent>
    where
        W: Write<T>,
    {
        self.buffer.clear();
        self.encoded = None;
        let payload = match self.shared.write.encode(value, &mut self.buffer) {
            Ok(payload) => *self.encoded.insert(payload),
            Err(cause) => return Ok(Sent::Refused(of_record(cause)?)),
        };
        let outgoing = self.shared.write.metadata(value);
        let Some(topic) = outgoing.topic.or(self.shared.topic.as_deref()) else {
            return Ok(Sent::Refused("neither the message nor the sink has a topic".into()));
        };
        let len = (payload == Payload::Present).then_some(self.buffer.len());
        if let Some(cause) = self.shared.context.limits().refusal(topic, &outgoing, len) {
            return Ok(Sent::Refused(cause));
        }
        let ticket = match outgoing.timestamp {
            None => Arc::clone(ticket),
            timestamp => Arc::new(Ticket { timestamp, ..Ticket::clone(ticket) }),
        };
        let mut record = BaseRecord::with_opaque_to(topic, ticket);
        if payload == Payload::Present {
            record = record.payload(self.buffer.as_slice());
        }
        record.key = outgoing.key;
        record.partition = outgoing.partition;
        record.timestamp = outgoing.timestamp;
        record.headers = outgoing.headers.as_deref().map(owned);
        let sent = self.shared.try_to_send(record)?;
        if let (Sent::Yes, Some(fingerprint)) = (&sent, &self.shared.fingerprint) {
            let payload = (payload == Payload::Present).then_some(&self.buffer);
            fingerprint.add(&(topic, outgoing.partition, outgoing.timestamp, outgoing.key, payload, outgoing.headers));
        }
        Ok(sent)
    }

    /// Applies the policy to a record that cannot be written.
    fn refuse<T>(&mut self, value: &T, cause: Cause, delivery: &Delivery) -> Result<()>
    where
        W: Write<T>,
    {
        let outgoing = self.shared.write.metadata(value);
        let topic = outgoing.topic.or(self.shared.topic.as_deref()).unwrap_or_default();
        let letter = || Letter {
            key: outgoing.key.map(<[u8]>::to_vec),
            value: (self.encoded == Some(Payload::Present)).then(|| self.buffer.clone()),
            stripped: self.encoded.is_none().then_some(NOT_ENCODED),
            headers: outgoing.headers.as_deref().cloned().unwrap_or_default(),
            origin: self.shared.write.origin(value),
            ..Letter::default()
        };
        if let Some(letter) = self.shared.context.refuse(topic, None, cause, delivery, letter)? {
            self.letters.push_back((letter, delivery.clone()));
        }
        Ok(())
    }

    /// Resends the next record of a refused batch, when nothing else is in flight.
    fn send_again(&self) -> Result<()> {
        let context = &self.shared.context;
        let (message, ticket) = match context.resend.next() {
            Next::Send(message, ticket) => (message, ticket),
            Next::GoOn => {
                context.wake_writers();
                return Ok(());
            }
            Next::Nothing => return Ok(()),
        };
        let sent = self.shared.producer.send(record_of(&message, Ticket { is_alone: true, ..ticket.clone() }));
        if let Err((KafkaError::MessageProduction(Code::QueueFull), _)) = sent {
            // The client frees the room of a reported record a moment after the report.
            context.resend.put_back(message, ticket);
            context.full.store(true, SeqCst);
            return Ok(());
        }
        if let Err((cause, _)) = sent {
            context.resend.not_sent();
            let doing = format!("cannot resend a record to topic `{}`", message.topic());
            return Err(error(ErrorKind::Sink, doing, cause));
        }
        self.shared.sending.wake();
        Ok(())
    }

    /// Sends the waiting dead letters in order, as far as there is room.
    fn send_letters(&mut self) -> Result<()> {
        let OnRefused::DeadLetters(dead) = &self.shared.context.on_refused else { return Ok(()) };
        if self.shared.context.resend.is_needed() {
            return Ok(());
        }
        while let Some((letter, delivery)) = self.letters.front_mut() {
            let ticket = Arc::new(Ticket::new(delivery, Kind::Letter));
            let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(dead, ticket);
            (record.key, record.payload) = (letter.key.as_deref(), letter.value.as_deref());
            record.headers = Some(owned(&letter.all_headers()));
            match self.shared.try_to_send(record)? {
                Sent::Yes => drop(self.letters.pop_front()),
                Sent::Later => return Ok(()),
                Sent::NoRoom => {
                    self.shared.context.full.store(true, SeqCst);
                    return Ok(());
                }
                Sent::Refused(_) if !letter.is_stripped() => letter.strip(),
                Sent::Refused(cause) => {
                    let doing = format!("cannot write a dead letter to topic `{dead}`");
                    return Err(Error::new(ErrorKind::Malformed, doing).caused_by(cause));
                }
            }
        }
        Ok(())
    }
}

impl<W> KafkaOutlet<W> {
    fn try_to_send(&self, record: BaseRecord<'_, [u8], [u8], Arc<Ticket>>) -> Result<Sent> {
        let topic = record.topic;
        self.context.resend.send();
        // The order matters: either the writer that resends a record alone sees this record in
        // flight, or this writer sees that a record is to be resent.
        if self.context.resend.is_needed() {
            self.context.resend.not_sent();
            return Ok(Sent::Later);
        }
        let sent = self.producer.send(record);
        if sent.is_err() {
            self.context.resend.not_sent();
        }
        match sent {
            Ok(()) => Ok(Sent::Yes),
            Err((KafkaError::MessageProduction(Code::QueueFull), _)) => Ok(Sent::NoRoom),
            Err((cause, _)) if cause.rdkafka_error_code().is_none_or(is_of_record) => Ok(Sent::Refused(cause.into())),
            Err((cause, _)) => Err(error(ErrorKind::Sink, format!("cannot write to topic `{topic}`"), cause)),
        }
    }
}

/// The same record as was sent before.
fn record_of(message: &OwnedMessage, ticket: Ticket) -> BaseRecord<'_, [u8], [u8], Arc<Ticket>> {
    let timestamp = ticket.timestamp;
    let mut record = BaseRecord::with_opaque_to(message.topic(), Arc::new(ticket));
    record.key = message.key();
    record.payload = message.payload();
    record.partition = Some(message.partition()).filter(|partition| *partition >= 0);
    record.timestamp = timestamp;
    record.headers = message.headers().cloned();
    record
}

fn owned(headers: &Headers) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers.iter().fold(empty, |owned, (key, value)| owned.insert(Header { key, value }))
}

impl<T, W: Write<T>> Writer<T> for KafkaWriter<W> {
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted> {
        self.send_again()?;
        if self.shared.context.resend.is_needed() {
            return Ok(Accepted::Full);
        }
        let ticket = Arc::new(Ticket::new(delivery, Kind::Record));
        let mut accepted = Accepted::All;
        let mut looked_again = false;
        while let Some(value) = batch.front() {
            match self.send(value, &ticket)? {
                Sent::Yes => {}
                Sent::Later => {
                    accepted = Accepted::Full;
                    break;
                }
                Sent::Refused(cause) => self.refuse(value, cause, delivery)?,
                Sent::NoRoom => {
                    self.shared.context.full.store(true, SeqCst);
                    if self.shared.producer.in_flight_count() > 0 {
                        accepted = Accepted::Full;
                        break;
                    }
                    // Tried once more, because the last report may have come just before the flag
                    // was set. A record that does not fit into an empty queue never will.
                    if !looked_again {
                        looked_again = true;
                        continue;
                    }
                    let cause = "it is larger than the memory for outgoing records (`Job::memory`)";
                    self.refuse(value, cause.into(), delivery)?;
                }
            }
            looked_again = false;
            batch.next();
        }
        self.send_letters()?;
        // A record that the client rejected counted as in flight for a moment. A report in that
        // moment woke no writer, so the resend is tried here.
        self.send_again()?;
        self.shared.sending.wake();
        Ok(accepted)
    }

    fn poll(&mut self) -> Result<()> {
        if let Some(error) = lock(&self.shared.context.failed).take() {
            return Err(error);
        }
        self.send_again()?;
        self.letters.extend(lock(&self.shared.context.letters).drain(..));
        if !self.letters.is_empty() {
            self.send_letters()?;
            // As at the end of `write`.
            self.send_again()?;
            self.shared.sending.wake();
        }
        Ok(())
    }
}

impl<W> Drop for KafkaWriter<W> {
    /// A writer whose operator has ended passes on its unsent dead letters: other writers' records
    /// wait for them.
    fn drop(&mut self) {
        if !self.letters.is_empty() {
            lock(&self.shared.context.letters).extend(self.letters.drain(..));
            self.shared.context.wake_writers();
        }
    }
}

impl<W> fmt::Debug for KafkaWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaWriter to {:?}", self.shared.topic)
    }
}
