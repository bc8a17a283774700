//! Topics with a format: what a pipeline opens as a source or ends in as a sink. There is one
//! source and one sink for all of them; what is read of a message and written of a record is their
//! shape.

use std::borrow::Cow;
use std::sync::Arc;

use millstream::connector::{OpenSink, OpenSource, Wake, Worker};
use millstream::{ByteSize, Keyed, KeyedSink, Malformed, Result, Sink, Source};

use crate::format::{self, Bytes, Cause, Compressed, Csv, Decode, Encode, Json, Measured, Payload, Text, Tombstones};

use super::headers::held_beside;
use super::letter::{Letter, Place, place};
use super::message::{KafkaOrigin, Message, Outgoing};
use super::read::{Incoming, KafkaReader, KafkaShared, Read};
use super::topic::Topic;
use super::write::{KafkaOutlet, KafkaWriter, Write};

/// A topic and the shape in which it is read and written: bare [`Values`], messages
/// [`WithMetadata`], or [`Raw`] ones.
#[derive(Clone, Debug)]
#[must_use = "a topic does nothing until a pipeline uses it"]
pub struct Records<S> {
    topic: Topic,
    shape: S,
}

/// A sink for [`Malformed`] records; see [`Kafka::dead_letters`](super::Kafka::dead_letters).
pub type DeadLetters = Records<Letters>;

/// Reads and writes bare values.
#[derive(Clone, Debug)]
pub struct Values<F>(F);

/// Reads and writes messages with key, headers and origin.
#[derive(Clone, Debug)]
pub struct WithMetadata<F>(F);

/// Writes values with a key; what `sink_by` makes of [`Values`].
#[derive(Clone, Debug)]
pub struct WithKey<F>(F);

/// Reads and writes messages as they are; see [`Topic::raw`].
#[derive(Clone, Debug)]
pub struct Raw;

/// Writes the original bytes of malformed records.
#[derive(Clone, Debug)]
pub struct Letters;

/// A shape that has a format.
pub trait OfFormat {
    /// The format.
    type Format;
    /// The same shape with another format.
    type With<G>;

    /// Replaces the format.
    fn with<G>(self, change: impl FnOnce(Self::Format) -> G) -> Self::With<G>;
}

impl<F> OfFormat for Values<F> {
    type Format = F;
    type With<G> = Values<G>;

    fn with<G>(self, change: impl FnOnce(F) -> G) -> Values<G> {
        Values(change(self.0))
    }
}

impl<F> OfFormat for WithMetadata<F> {
    type Format = F;
    type With<G> = WithMetadata<G>;

    fn with<G>(self, change: impl FnOnce(F) -> G) -> WithMetadata<G> {
        WithMetadata(change(self.0))
    }
}

impl Topic {
    /// Values as JSON, typed by serde. As a source it yields `Result<T, Malformed>`.
    pub fn json<T>(self) -> Records<Values<Json<T>>> {
        Records { topic: self, shape: Values(Json::new()) }
    }

    /// Values as CSV, typed by serde: each message is one row without a header, with its columns in
    /// the order of `T`'s fields. As a source it yields `Result<T, Malformed>`. Another delimiter
    /// is an option of the format: `format(Csv::<T>::new().delimiter(b';'))`, see [`Csv`].
    pub fn csv<T>(self) -> Records<Values<Csv<T>>> {
        Records { topic: self, shape: Values(Csv::new()) }
    }

    /// Values as UTF-8 text. As a source it yields `Result<String, Malformed>`.
    pub fn text(self) -> Records<Values<Text>> {
        Records { topic: self, shape: Values(Text) }
    }

    /// Values as bytes. As a source it yields `Result<Vec<u8>, Malformed>`, of which only
    /// tombstones are malformed.
    pub fn bytes(self) -> Records<Values<Bytes>> {
        Records { topic: self, shape: Values(Bytes) }
    }

    /// Values in any other format: one that needs a schema registry, or one of your own.
    pub fn format<F>(self, format: F) -> Records<Values<F>> {
        Records { topic: self, shape: Values(format) }
    }

    /// Messages as they are: `Message<Option<Vec<u8>>>`, where `None` is a tombstone. As a source
    /// it yields `Result<Message<_>, Malformed>`, of which only messages with a header whose name
    /// is not valid UTF-8 are malformed.
    pub fn raw(self) -> Records<Raw> {
        Records { topic: self, shape: Raw }
    }

    /// As a sink of dead letters.
    pub(crate) fn letters(self) -> DeadLetters {
        Records { topic: self, shape: Letters }
    }
}

impl<F> Records<Values<F>> {
    /// Messages with key, headers and origin instead of bare values.
    pub fn with_metadata(self) -> Records<WithMetadata<F>> {
        Records { topic: self.topic, shape: WithMetadata(self.shape.0) }
    }
}

impl<S: OfFormat> Records<S> {
    /// Keeps tombstones: values become `Option`s, and `None` is a tombstone.
    pub fn with_tombstones(self) -> Records<S::With<Tombstones<S::Format>>> {
        Records { topic: self.topic, shape: self.shape.with(Tombstones) }
    }

    /// Values that may be compressed, each by itself: gzip and zstd are read, and gzip is written.
    /// For more see [`Compressed`]. Batches that a producer compresses need no option; see
    /// [`Topic::compression`].
    pub fn compressed(self) -> Records<S::With<Compressed<S::Format>>> {
        Records { topic: self.topic, shape: self.shape.with(Compressed::new) }
    }

    /// How much memory a value holds in addition to its own size, for a format whose own estimate
    /// ([`Decode::held`]) is far off. [`Job::memory`](millstream::Job::memory) bounds the sum.
    /// Called for each record that is read.
    pub fn sized(self, held: fn(&Value<S>) -> ByteSize) -> Records<MeasuredShape<S>>
    where
        S::Format: Decode,
    {
        Records { topic: self.topic, shape: self.shape.with(|format| Measured::new(format, held)) }
    }
}

/// A shape whose values are measured by a function; see [`Records::sized`].
pub type MeasuredShape<S> = <S as OfFormat>::With<Measured<<S as OfFormat>::Format, Value<S>>>;

/// What the format of a shape decodes.
pub type Value<S> = <<S as OfFormat>::Format as Decode>::Value;

impl<R: Read> Source for Records<R> {
    type Item = R::Item;
    type Shared = KafkaShared<R>;
    type Reader = KafkaReader<R>;

    fn name(&self) -> String {
        self.topic.described()
    }

    fn connect(self, open: OpenSource) -> Result<KafkaShared<R>> {
        self.topic.check_source()?;
        KafkaShared::connect(&self.topic, self.shape, open)
    }

    fn reader(shared: &Arc<KafkaShared<R>>, worker: Worker, wake: Wake) -> Result<KafkaReader<R>> {
        Ok(KafkaReader::new(shared, worker, &wake))
    }
}

impl<T: 'static, W: Write<T>> Sink<T> for Records<W> {
    type Shared = KafkaOutlet<W>;
    type Writer = KafkaWriter<W>;

    fn name(&self) -> String {
        self.shape.name(&self.topic)
    }

    fn connect(self, open: OpenSink) -> Result<KafkaOutlet<W>> {
        self.topic.check_sink()?;
        KafkaOutlet::connect::<T>(&self.topic, self.shape, &open)
    }

    fn writer(shared: &Arc<KafkaOutlet<W>>, _: Worker, wake: Wake) -> Result<KafkaWriter<W>> {
        Ok(KafkaWriter::new(shared, &wake))
    }
}

impl<V: 'static, F: Encode<V> + Clone + Send + Sync> KeyedSink<V> for Records<Values<F>> {
    fn keyed(self) -> impl Sink<Keyed<V>> {
        Records { topic: self.topic, shape: WithKey(self.shape.0) }
    }
}

impl<F: Decode + Clone + Send + Sync> Read for Values<F> {
    type Item = Result<F::Value, Malformed>;

    fn open(&mut self) -> Result<()> {
        self.0.open()
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<(Self::Item, ByteSize)> {
        decode(&self.0, incoming)
    }
}

impl<F: Decode + Clone + Send + Sync> Read for WithMetadata<F> {
    type Item = Result<Message<F::Value>, Malformed>;

    fn open(&mut self) -> Result<()> {
        self.0.open()
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<(Self::Item, ByteSize)> {
        let (decoded, held) = decode(&self.0, incoming)?;
        let message = decoded.and_then(|value| incoming.message(value));
        let beside = message.as_ref().map_or(0, Message::held_beside);
        Ok((message, ByteSize(held.0 + beside)))
    }
}

/// A value that cannot be decoded is malformed; a format that has failed ends the run.
fn decode<F: Decode>(format: &F, incoming: &Incoming<'_>) -> Result<(Result<F::Value, Malformed>, ByteSize)> {
    Ok(match format.decode_sized(incoming.payload()) {
        Ok((value, held)) => (Ok(value), held),
        Err(cause) => {
            let malformed = incoming.malformed(&*format::of_record(cause)?);
            let beside = held_beside(malformed.key.as_deref(), &malformed.headers);
            let held = beside + (incoming.payload_len() + malformed.cause.len()) as u64;
            (Err(malformed), ByteSize(held))
        }
    })
}

impl Read for Raw {
    type Item = Result<Message<Option<Vec<u8>>>, Malformed>;

    fn read(&self, incoming: &Incoming<'_>) -> Result<(Self::Item, ByteSize)> {
        let message = incoming.message(incoming.payload().map(<[u8]>::to_vec));
        let beside = message.as_ref().map_or(0, Message::held_beside);
        Ok((message, ByteSize(beside + incoming.payload_len() as u64)))
    }
}

impl<V: 'static, F: Encode<V> + Clone + Send + Sync> Write<V> for Values<F> {
    fn open(&mut self, topic: Option<&str>) -> Result<()> {
        self.0.open(topic)
    }

    fn encode(&self, value: &V, buffer: &mut Vec<u8>) -> Result<Payload, Cause> {
        self.0.encode(value, buffer)
    }

    fn metadata<'v>(&self, _: &'v V) -> Outgoing<'v> {
        Outgoing::default()
    }
}

impl<V: 'static, F: Encode<V> + Clone + Send + Sync> Write<Keyed<V>> for WithKey<F> {
    fn open(&mut self, topic: Option<&str>) -> Result<()> {
        self.0.open(topic)
    }

    fn encode(&self, keyed: &Keyed<V>, buffer: &mut Vec<u8>) -> Result<Payload, Cause> {
        self.0.encode(&keyed.value, buffer)
    }

    fn metadata<'v>(&self, keyed: &'v Keyed<V>) -> Outgoing<'v> {
        Outgoing { key: Some(&keyed.key), ..Outgoing::default() }
    }
}

impl<V: 'static, F: Encode<V> + Clone + Send + Sync> Write<Message<V>> for WithMetadata<F> {
    fn open(&mut self, topic: Option<&str>) -> Result<()> {
        self.0.open(topic)
    }

    fn encode(&self, message: &Message<V>, buffer: &mut Vec<u8>) -> Result<Payload, Cause> {
        self.0.encode(message.value(), buffer)
    }

    fn metadata<'v>(&self, message: &'v Message<V>) -> Outgoing<'v> {
        Outgoing::of(message)
    }

    fn origin(&self, message: &Message<V>) -> Option<Place> {
        message.origin().map(KafkaOrigin::place)
    }
}

impl Write<Message<Option<Vec<u8>>>> for Raw {
    fn encode(&self, message: &Message<Option<Vec<u8>>>, buffer: &mut Vec<u8>) -> Result<Payload, Cause> {
        Tombstones(Bytes).encode(message.value(), buffer)
    }

    fn metadata<'v>(&self, message: &'v Message<Option<Vec<u8>>>) -> Outgoing<'v> {
        Outgoing::of(message)
    }

    fn origin(&self, message: &Message<Option<Vec<u8>>>) -> Option<Place> {
        message.origin().map(KafkaOrigin::place)
    }
}

impl Write<Malformed> for Letters {
    fn name(&self, topic: &Topic) -> String {
        format!("kafka dead letters {}", topic.names.join(" "))
    }

    fn encode(&self, malformed: &Malformed, buffer: &mut Vec<u8>) -> Result<Payload, Cause> {
        let Some(bytes) = &malformed.bytes else { return Ok(Payload::Tombstone) };
        buffer.extend_from_slice(bytes);
        Ok(Payload::Present)
    }

    fn metadata<'v>(&self, malformed: &'v Malformed) -> Outgoing<'v> {
        let letter = Letter::of_malformed(malformed);
        Outgoing {
            key: malformed.key.as_deref(),
            headers: Some(Cow::Owned(letter.all_headers())),
            ..Outgoing::default()
        }
    }

    fn origin(&self, malformed: &Malformed) -> Option<Place> {
        malformed.origin.as_ref().and_then(place)
    }
}

#[cfg(test)]
mod tests {
    use millstream::connector::{Offset, Partition};

    use millstream::Origin;

    use super::*;

    #[test]
    fn a_letter_from_a_file_says_where() {
        let mut malformed = Malformed::new("bad");
        malformed.origin = Some(Origin::new(Partition::new("/in/orders.csv"), Offset(42)));
        let headers = Letters.metadata(&malformed).headers.expect("they say why").into_owned();
        let told = Message { headers, ..Message::new(()) }.dead_letter().expect("it is one");
        assert_eq!((told.path, told.origin), (Some(("/in/orders.csv".to_owned(), 42)), None));
    }
}
