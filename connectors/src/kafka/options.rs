//! The options of a topic, as a source and as a sink.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// The options of a source.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceOptions {
    pub(crate) group: Option<String>,
    pub(crate) start_at: Option<StartAt>,
    pub(crate) end_at: Option<EndAt>,
    pub(crate) partitions: Option<Vec<i32>>,
    pub(crate) on_data_loss: Option<OnDataLoss>,
    pub(crate) isolation: Option<Isolation>,
    pub(crate) protocol: Option<GroupProtocol>,
    pub(crate) instance: Option<String>,
    pub(crate) fences: bool,
}

impl SourceOptions {
    /// Whether the start of a partition that the group has not read may change when it is looked up
    /// again.
    pub(crate) fn start_is_time_dependent(&self) -> bool {
        !matches!(self.start_at, None | Some(StartAt::Earliest | StartAt::Committed))
    }
}

/// Where reading begins in a partition without a committed offset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartAt {
    /// At the earliest record that still exists.
    #[default]
    Earliest,
    /// After the last record at the moment of start. Records written after
    /// [`Job::start`](millstream::Job::start) has returned are read, however long the group takes
    /// to assign partitions. Partitions and topics that are created later begin at their earliest
    /// record.
    Latest,
    /// A partition without a committed offset is an error.
    Committed,
    /// At these offsets by topic and partition; a partition that is not named begins at its
    /// earliest record.
    Offsets(BTreeMap<(String, i32), i64>),
    /// At the first record with this timestamp or a later one; after the last record if there is
    /// none.
    Timestamp(SystemTime),
}

/// Where reading ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndAt {
    /// Never.
    #[default]
    Never,
    /// After the last record at the moment of start.
    Latest,
    /// Before these offsets by topic and partition; a partition that is not named ends after its
    /// last record at the moment of start.
    Offsets(BTreeMap<(String, i32), i64>),
}

/// What happens when records are gone before they could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnDataLoss {
    /// The job ends with an error that names the gap.
    #[default]
    Stop,
    /// Reading continues at the earliest record that exists, and the gap is logged.
    Skip,
}

/// Which records of transactions are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// Only committed records, and none after the start of an open transaction.
    #[default]
    ReadCommitted,
    /// All records.
    ReadUncommitted,
}

impl Isolation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read_committed",
            Isolation::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// How the members of a consumer group agree on the assignment of partitions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupProtocol {
    /// One of the members decides, and partitions move one by one (cooperative-sticky). Every
    /// broker supports it. A member that disappears without leaving the group is removed after
    /// `session.timeout.ms`, 10 s unless it is set.
    #[default]
    Classic,
    /// As `Classic`, with the assignors that hand-written consumers have by default, range and
    /// round-robin. At each rebalance every member gives up all its partitions, drained and
    /// committed, before any is assigned again. Use it for a group that still has such members,
    /// above all while it moves to this library: all members of a group must have an assignor in
    /// common. After the move, stop all members once to change the group to `Classic`.
    Eager,
    /// The broker decides (KIP-848, Kafka 4.0 and later). A partition moves within one heartbeat
    /// interval of the broker, 5 s by the broker's default. The broker alone sets the session
    /// timeout, 45 s by its default.
    Consumer,
}

/// The options of a sink.
#[derive(Clone, Debug, Default)]
pub(crate) struct SinkOptions {
    pub(crate) profile: Option<Profile>,
    pub(crate) compression: Option<Compression>,
    pub(crate) partitioner: Option<Partitioner>,
    pub(crate) on_refused: Option<OnRefused>,
    pub(crate) deliver_within: Option<Duration>,
}

/// What a sink's producer is tuned for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Profile {
    /// Sends every record at once; batches form by themselves under load.
    #[default]
    Latency,
    /// Records wait up to 10 ms for a fuller batch.
    Throughput,
}

/// How a sink's batches are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// No compression.
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
    pub(crate) fn name(self) -> &'static str {
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Partitioner {
    /// As the Java clients by default: murmur2 of the key, or any partition for a record without a
    /// key. Needed wherever the topic is joined with one that a Java program wrote.
    #[default]
    Murmur2,
    /// As librdkafka by default: CRC32 of the key, or any partition for a record without a key.
    Crc32,
    /// FNV-1a of the key, or any partition for a record without a key.
    Fnv1a,
}

impl Partitioner {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Partitioner::Murmur2 => "murmur2_random",
            Partitioner::Crc32 => "consistent_random",
            Partitioner::Fnv1a => "fnv1a_random",
        }
    }
}

/// What a sink does with a record that it cannot write: one that is too large or cannot be encoded,
/// or whose topic or partition does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnRefused {
    /// The run ends with an error that names the record, and is not restarted.
    #[default]
    Stop,
    /// The record is dropped and counted.
    Skip,
    /// The record is written to this topic as a dead letter, and counts as done when that is
    /// acknowledged. A record that is too large for a dead letter too leaves one that says where it
    /// was read and why it was refused.
    DeadLetters(String),
}
