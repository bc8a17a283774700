//! Topics with their options and formats, which a pipeline uses as sources and as sinks. An option
//! that does not fit the use is an error at start.

use std::sync::Arc;
use std::time::Duration;

use millstream::connector::{OpenSink, OpenSource, Wake, Worker};
use millstream::{ByteSize, Error, ErrorKind, Keyed, KeyedSink, Malformed, Result, Sink, Source};

use crate::format::{self, Bytes, Cause, Compressed, Csv, Decode, Encode, Json, Measured, Payload, Text, Tombstones};

use super::client::Settings;
use super::dead::Place;
use super::message::{KafkaOrigin, Message, held_beside};
use super::options::{Compression, GroupProtocol, OnRefused, Partitioner, Profile, SinkOptions, SourceOptions};
use super::reader::{Incoming, KafkaReader, Read};
use super::sink::{KafkaOutlet, KafkaWriter, Outgoing, Write};
use super::source::KafkaShared;
use super::start::{DataLoss, End, Isolation, StartAt};

/// One or several topics, and how to read or write them. Choose a format to make it a source or a
/// sink.
#[derive(Clone, Debug)]
pub struct Topic {
    pub(super) settings: Arc<Settings>,
    pub(super) names: Vec<String>,
    /// The name is a pattern.
    pub(super) is_pattern: bool,
    /// Each message names its own topic.
    pub(super) by_message: bool,
    pub(super) source: SourceOptions,
    pub(super) sink: SinkOptions,
}

impl Topic {
    pub(super) fn new(settings: Arc<Settings>, names: Vec<String>) -> Topic {
        Topic {
            settings,
            names,
            is_pattern: false,
            by_message: false,
            source: SourceOptions::default(),
            sink: SinkOptions::default(),
        }
    }

    // As a source.

    /// The consumer group that the job commits its offsets to; the job's name by default.
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Topic {
        self.source.group = Some(group.into());
        self
    }

    /// How the members of the group agree on the assignment of partitions;
    /// [`GroupProtocol::Classic`] by default. Has no effect in a job that assigns its own
    /// partitions.
    #[must_use]
    pub fn group_protocol(mut self, protocol: GroupProtocol) -> Topic {
        self.source.protocol = Some(protocol);
        self
    }

    /// Makes this process a static member of its group, by a name that no other process has and
    /// that stays the same after a restart. Its partitions wait for it for the length of a session
    /// instead of moving twice. A second process with the same name fences the first. Has no effect
    /// in a job that assigns its own partitions.
    #[must_use]
    pub fn group_instance(mut self, name: impl Into<String>) -> Topic {
        self.source.instance = Some(name.into());
        self
    }

    /// Where reading begins when the group has no committed offset; [`StartAt::Earliest`] by
    /// default. Committed offsets take precedence. A partition without one begins at its earliest
    /// record if the group has committed offsets for others of its topic.
    #[must_use]
    pub fn start_at(mut self, start: StartAt) -> Topic {
        self.source.start_at = Some(start);
        self
    }

    /// Where reading ends; [`End::Never`] by default, and [`End::Latest`] under
    /// [`Trigger::AvailableNow`](millstream::Trigger::AvailableNow).
    #[must_use]
    pub fn end_at(mut self, end: End) -> Topic {
        self.source.end_at = Some(end);
        self
    }

    /// Reads only these partitions of each topic. The job assigns them to itself instead of joining
    /// the group, as a job that ends always does. Two such runs must not share a group: see
    /// [`take_over`](Topic::take_over).
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = i32>) -> Topic {
        self.source.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Takes the partitions over from another run that assigned them to itself, and fences that
    /// run. Use it when that run is known to be dead. Without it, start waits until a run that did
    /// not shut down cleanly has shown no sign of life for 10 s, and fails if that run is still
    /// alive. A job that joins its group does not need it and ignores it.
    #[must_use]
    pub fn take_over(mut self) -> Topic {
        self.source.takes_over = true;
        self
    }

    /// What happens when records are gone before they could be read; [`DataLoss::Fail`] by default.
    #[must_use]
    pub fn on_data_loss(mut self, policy: DataLoss) -> Topic {
        self.source.on_data_loss = Some(policy);
        self
    }

    /// Whether records of open and aborted transactions are read; [`Isolation::ReadCommitted`] by
    /// default.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Topic {
        self.source.isolation = Some(isolation);
        self
    }

    // As a sink.

    /// What the producer is tuned for; [`Profile::Latency`] by default.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Topic {
        self.sink.profile = Some(profile);
        self
    }

    /// How batches are compressed; not at all by default.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Topic {
        self.sink.compression = Some(compression);
        self
    }

    /// Which partition a key belongs to; [`Partitioner::Murmur2`] by default.
    #[must_use]
    pub fn partitioner(mut self, partitioner: Partitioner) -> Topic {
        self.sink.partitioner = Some(partitioner);
        self
    }

    /// What the sink does with a record that it cannot write; [`OnRefused::Stop`] by default.
    #[must_use]
    pub fn on_refused(mut self, policy: OnRefused) -> Topic {
        self.sink.on_refused = Some(policy);
        self
    }

    /// How long the delivery of a record may take before the run ends with an error. By default
    /// there is no limit: a job waits for its broker for as long as that is away, and nothing is
    /// lost.
    #[must_use]
    pub fn deliver_within(mut self, limit: Duration) -> Topic {
        self.sink.deliver_within = Some(limit);
        self
    }

    // Formats.

    /// Values as JSON, typed by serde. As a source it yields `Result<T, Malformed>`.
    pub fn json<T>(self) -> Records<Json<T>> {
        Records { topic: self, format: Json::new() }
    }

    /// Values as CSV, typed by serde: each message is one row without a header, with its columns in
    /// the order of `T`'s fields. As a source it yields `Result<T, Malformed>`. Another delimiter
    /// is an option of the format: `format(Csv::<T>::new().delimiter(b';'))`, see [`Csv`].
    pub fn csv<T>(self) -> Records<Csv<T>> {
        Records { topic: self, format: Csv::new() }
    }

    /// Values as UTF-8 text. As a source it yields `Result<String, Malformed>`.
    pub fn text(self) -> Records<Text> {
        Records { topic: self, format: Text }
    }

    /// Values as bytes. As a source it yields `Result<Vec<u8>, Malformed>`, of which only
    /// tombstones are malformed.
    pub fn bytes(self) -> Records<Bytes> {
        Records { topic: self, format: Bytes }
    }

    /// Values in any other format: one that needs a schema registry, or one of your own.
    pub fn format<F>(self, format: F) -> Records<F> {
        Records { topic: self, format }
    }

    /// Messages as they are: `Message<Option<Vec<u8>>>`, where `None` is a tombstone. As a source
    /// it yields `Result<Message<_>, Malformed>`, of which only messages with a header whose name
    /// is not valid UTF-8 are malformed.
    pub fn raw(self) -> RawRecords {
        RawRecords { topic: self }
    }

    fn described(&self) -> String {
        if self.names.is_empty() { "kafka messages".to_owned() } else { format!("kafka {}", self.names.join(" ")) }
    }

    /// Rejects options that a source cannot have.
    fn check_source(&self) -> Result<()> {
        let options = &self.sink;
        let set = [
            ("profile", options.profile.is_some()),
            ("compression", options.compression.is_some()),
            ("partitioner", options.partitioner.is_some()),
            ("on_refused", options.on_refused.is_some()),
            ("deliver_within", options.deliver_within.is_some()),
        ];
        self.check(&set, "a source")?;
        if self.names.is_empty() {
            let doing = match self.by_message {
                true => "`kafka.messages()` is a sink: it has no topic to read",
                false => "`kafka.topics` names no topic to read",
            };
            return Err(Error::new(ErrorKind::Config, doing));
        }
        Ok(())
    }

    /// Rejects options that a sink cannot have.
    fn check_sink(&self) -> Result<()> {
        let options = &self.source;
        let set = [
            ("group", options.group.is_some()),
            ("start_at", options.start_at.is_some()),
            ("end_at", options.end_at.is_some()),
            ("partitions", options.partitions.is_some()),
            ("on_data_loss", options.on_data_loss.is_some()),
            ("isolation", options.isolation.is_some()),
            ("group_protocol", options.protocol.is_some()),
            ("group_instance", options.instance.is_some()),
            ("take_over", options.takes_over),
        ];
        self.check(&set, "a sink")?;
        if self.names.len() != usize::from(!self.by_message) || self.is_pattern {
            let doing =
                format!("{}: a sink has one topic; with `kafka.messages()` each message names it", self.described());
            return Err(Error::new(ErrorKind::Config, doing));
        }
        Ok(())
    }

    fn check(&self, set: &[(&str, bool)], what: &str) -> Result<()> {
        let wrong = set.iter().find(|(_, is_set)| *is_set);
        wrong.map_or(Ok(()), |(option, _)| {
            let doing = format!("{}: `{option}` cannot be set on {what}", self.described());
            Err(Error::new(ErrorKind::Config, doing))
        })
    }
}

/// A topic with a format, read and written as bare values.
#[derive(Clone, Debug)]
pub struct Records<F> {
    topic: Topic,
    format: F,
}

impl<F> Records<F> {
    /// Messages with key, headers and origin instead of bare values.
    pub fn with_metadata(self) -> RecordsWithMetadata<F> {
        RecordsWithMetadata { topic: self.topic, format: self.format }
    }

    /// Keeps tombstones: values become `Option`s, and `None` is a tombstone.
    pub fn with_tombstones(self) -> Records<Tombstones<F>> {
        Records { topic: self.topic, format: Tombstones(self.format) }
    }

    /// Values that may be compressed, each by itself: gzip and zstd are read, and gzip is written.
    /// For more see [`Compressed`]. Batches that a producer compresses need no option; see
    /// [`Topic::compression`].
    pub fn compressed(self) -> Records<Compressed<F>> {
        Records { topic: self.topic, format: Compressed::new(self.format) }
    }

    /// How much memory a value holds in addition to its own size, for a format whose own estimate
    /// ([`Decode::held`]) is far off. [`Job::memory`](millstream::Job::memory) bounds the sum.
    /// Called for each record that is read.
    pub fn sized(self, held: fn(&F::Value) -> ByteSize) -> Records<Measured<F, F::Value>>
    where
        F: Decode,
    {
        Records { topic: self.topic, format: Measured::new(self.format, held) }
    }
}

/// A topic with a format, read and written as messages with their metadata.
#[derive(Clone, Debug)]
pub struct RecordsWithMetadata<F> {
    topic: Topic,
    format: F,
}

impl<F> RecordsWithMetadata<F> {
    /// Keeps tombstones: values become `Option`s, and `None` is a tombstone.
    pub fn with_tombstones(self) -> RecordsWithMetadata<Tombstones<F>> {
        RecordsWithMetadata { topic: self.topic, format: Tombstones(self.format) }
    }

    /// Values that may be compressed, each by itself: gzip and zstd are read, and gzip is written.
    /// For more see [`Compressed`]. Batches that a producer compresses need no option; see
    /// [`Topic::compression`].
    pub fn compressed(self) -> RecordsWithMetadata<Compressed<F>> {
        RecordsWithMetadata { topic: self.topic, format: Compressed::new(self.format) }
    }

    /// How much memory a value holds in addition to its own size, for a format whose own estimate
    /// ([`Decode::held`]) is far off. [`Job::memory`](millstream::Job::memory) bounds the sum.
    /// Called for each record that is read.
    pub fn sized(self, held: fn(&F::Value) -> ByteSize) -> RecordsWithMetadata<Measured<F, F::Value>>
    where
        F: Decode,
    {
        RecordsWithMetadata { topic: self.topic, format: Measured::new(self.format, held) }
    }
}

/// A topic without a format; see [`Topic::raw`].
#[derive(Clone, Debug)]
pub struct RawRecords {
    topic: Topic,
}

/// A topic with a format and a key beside each value; what `sink_by` makes of [`Records`].
#[derive(Clone, Debug)]
pub struct KeyedRecords<F> {
    topic: Topic,
    format: F,
}

macro_rules! source {
    ([$($bounds:tt)*] $kind:ty, $item:ty, $read:ty, $make:expr) => {
        impl<$($bounds)*> Source for $kind {
            type Item = $item;
            type Shared = KafkaShared<$read>;
            type Reader = KafkaReader<$read>;

            fn name(&self) -> String {
                self.topic.described()
            }

            fn connect(self, open: OpenSource) -> Result<Self::Shared> {
                self.topic.check_source()?;
                let make: fn(Self) -> (Topic, $read) = $make;
                let (topic, read) = make(self);
                KafkaShared::connect(&topic, read, open)
            }

            fn reader(shared: &Arc<Self::Shared>, worker: Worker, wake: Wake) -> Result<Self::Reader> {
                Ok(KafkaReader::new(shared, worker, &wake))
            }
        }
    };
}

source!([F: Decode + Clone + Send + Sync] Records<F>, Result<F::Value, Malformed>, Values<F>,
    |records| (records.topic, Values(records.format)));
source!([F: Decode + Clone + Send + Sync] RecordsWithMetadata<F>, Result<Message<F::Value>, Malformed>,
    WithMetadata<F>, |records| (records.topic, WithMetadata(records.format)));
source!([] RawRecords, Result<Message<Option<Vec<u8>>>, Malformed>, Raw, |records| (records.topic, Raw));

macro_rules! sink {
    ([$($bounds:tt)*] $kind:ty, $item:ty, $write:ty, $make:expr) => {
        impl<$($bounds)*> Sink<$item> for $kind {
            type Shared = KafkaOutlet<$write>;
            type Writer = KafkaWriter<$write>;

            fn name(&self) -> String {
                self.topic.described()
            }

            fn connect(self, open: OpenSink) -> Result<Self::Shared> {
                self.topic.check_sink()?;
                let make: fn(Self) -> (Topic, $write) = $make;
                let (topic, write) = make(self);
                KafkaOutlet::connect::<$item>(&topic, write, &open)
            }

            fn writer(shared: &Arc<Self::Shared>, _: Worker, wake: Wake) -> Result<Self::Writer> {
                Ok(KafkaWriter::new(shared, &wake))
            }
        }
    };
}

sink!([V: 'static, F: Encode<V> + Clone + Send + Sync] Records<F>, V, Values<F>,
    |records| (records.topic, Values(records.format)));
sink!([V: 'static, F: Encode<V> + Clone + Send + Sync] RecordsWithMetadata<F>, Message<V>, WithMetadata<F>,
    |records| (records.topic, WithMetadata(records.format)));
sink!([V: 'static, F: Encode<V> + Clone + Send + Sync] KeyedRecords<F>, Keyed<V>, WithKey<F>,
    |records| (records.topic, WithKey(records.format)));
sink!([] RawRecords, Message<Option<Vec<u8>>>, Raw, |records| (records.topic, Raw));

impl<V: 'static, F: Encode<V> + Clone + Send + Sync> KeyedSink<V> for Records<F> {
    fn keyed(self) -> impl Sink<Keyed<V>> {
        KeyedRecords { topic: self.topic, format: self.format }
    }
}

/// Reads and writes bare values.
#[derive(Clone, Debug)]
pub struct Values<F>(F);

/// Reads and writes messages.
#[derive(Clone, Debug)]
pub struct WithMetadata<F>(F);

/// Writes values with a key.
#[derive(Clone, Debug)]
pub struct WithKey<F>(F);

/// Reads and writes messages as they are.
#[derive(Clone, Debug)]
pub struct Raw;

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

    fn beside<'v>(&self, _: &'v V) -> Outgoing<'v> {
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

    fn beside<'v>(&self, keyed: &'v Keyed<V>) -> Outgoing<'v> {
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

    fn beside<'v>(&self, message: &'v Message<V>) -> Outgoing<'v> {
        Outgoing::of(message)
    }

    fn place(&self, message: &Message<V>) -> Option<Place> {
        message.origin().map(KafkaOrigin::place)
    }
}

impl Write<Message<Option<Vec<u8>>>> for Raw {
    fn encode(&self, message: &Message<Option<Vec<u8>>>, buffer: &mut Vec<u8>) -> Result<Payload, Cause> {
        Tombstones(Bytes).encode(message.value(), buffer)
    }

    fn beside<'v>(&self, message: &'v Message<Option<Vec<u8>>>) -> Outgoing<'v> {
        Outgoing::of(message)
    }

    fn place(&self, message: &Message<Option<Vec<u8>>>) -> Option<Place> {
        message.origin().map(KafkaOrigin::place)
    }
}
