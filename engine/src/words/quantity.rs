//! Quantities with a meaning, so that no signature takes a bare number.

use std::fmt;

/// An amount of memory or data, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `count` mebibytes.
    pub const fn mebibytes(count: u64) -> ByteSize {
        ByteSize(count << 20)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 10 << 20 => write!(f, "{} MiB", bytes >> 20),
            bytes if bytes >= 10 << 10 => write!(f, "{} KiB", bytes >> 10),
            bytes => write!(f, "{bytes} B"),
        }
    }
}

/// The memory that a record takes in addition to its value: its places in queues and batches, its
/// share of the admission, the delivery and the receipt. A reader adds it to the size of each
/// record ([`ReadBatch::push`](crate::connector::ReadBatch::push)).
pub const RECORD_OVERHEAD: ByteSize = ByteSize(128);

/// One of a job's workers, counted from 0. It decides which partitions a reader gets and never
/// reaches user code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct Worker {
    /// Its index, below `peers`.
    pub index: usize,
    /// The number of workers of the job.
    pub peers: usize,
}

impl Worker {
    /// The worker of this index, one of `peers`.
    pub fn new(index: usize, peers: usize) -> Worker {
        Worker { index, peers }
    }
}

/// How much the caller of a reader can take in one poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Room {
    /// The largest number of records.
    pub records: usize,
    /// Stop after the record that reaches this; one record is always allowed, however large.
    pub bytes: ByteSize,
}

impl Room {
    /// Room for this many records, and for this much memory.
    pub fn new(records: usize, bytes: ByteSize) -> Room {
        Room { records, bytes }
    }
}
