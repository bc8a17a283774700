//! What topics may be told, as sources and as sinks.

use std::time::Duration;

use super::start::{DataLoss, End, Isolation, StartAt};

/// What a source may be told.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceOptions {
    pub(super) group: Option<String>,
    pub(super) start_at: Option<StartAt>,
    pub(super) end_at: Option<End>,
    pub(super) partitions: Option<Vec<i32>>,
    pub(super) on_data_loss: Option<DataLoss>,
    pub(super) isolation: Option<Isolation>,
    pub(super) protocol: Option<GroupProtocol>,
    pub(super) instance: Option<String>,
    pub(super) takes_over: bool,
}

impl SourceOptions {
    /// Whether the start of what nobody has read is another one when it is looked for later.
    pub(super) fn start_is_passing(&self) -> bool {
        !matches!(self.start_at, None | Some(StartAt::Earliest | StartAt::Committed))
    }
}

/// How the members of a group agree on who reads what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// One of the members decides, and partitions move one by one (cooperative-sticky): every broker speaks it. A member
    /// that is gone without a word is missed after `session.timeout.ms`, 10 s unless it is set.
    #[default]
    Classic,
    /// As `Classic`, with the assignors that hand-written consumers have by default, range and round-robin: at each change of
    /// the group every member gives back all partitions, drained and committed, before any is given again. For a group that
    /// still has such members, above all while it moves over to this library: all members of a group must have an assignor
    /// in common. A group that is through with that changes to `Classic` when all its members have stopped once.
    Eager,
    /// The broker decides (KIP-848, Kafka 4.0 and later). A partition moves within one of the broker's heart-beats, 5 s by
    /// its default, and only the broker sets when a member is missed, after 45 s by its default.
    Consumer,
}

/// What a sink may be told.
#[derive(Clone, Debug, Default)]
pub(super) struct SinkOptions {
    pub(super) profile: Option<Profile>,
    pub(super) compression: Option<Compression>,
    pub(super) partitioner: Option<Partitioner>,
    pub(super) on_refused: Option<OnRefused>,
    pub(super) deliver_within: Option<Duration>,
}

/// What a sink's producer aims at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Every record leaves at once; batches form by themselves under load.
    #[default]
    Latency,
    /// Records wait up to 10 ms for a fuller batch.
    Throughput,
}

/// How a sink's batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    pub(super) fn name(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        }
    }
}

/// Which partition a key belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Partitioner {
    /// As the Java clients do by default: murmur2 of the key, any partition without one. Needed wherever the topic is
    /// joined with one that a Java program wrote.
    #[default]
    Murmur2,
    /// As librdkafka does by default: CRC32 of the key, any partition without one.
    Crc32,
    /// FNV-1a of the key, any partition without one.
    Fnv1a,
}

impl Partitioner {
    pub(super) fn name(self) -> &'static str {
        match self {
            Partitioner::Murmur2 => "murmur2_random",
            Partitioner::Crc32 => "consistent_random",
            Partitioner::Fnv1a => "fnv1a_random",
        }
    }
}

/// What becomes of a record that the sink cannot take: too large, not encodable, no such topic or partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnRefused {
    /// The run ends with an error that names the record, and is not restarted.
    #[default]
    Stop,
    /// It is dropped and counted.
    Skip,
    /// It goes to this topic as a dead letter, and counts as done when that has it. What is too large for a dead letter too
    /// leaves one that says where it was read and why it was refused.
    DeadLetters(String),
}
