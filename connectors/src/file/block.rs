//! What the thread hands to a worker: a piece of one file, cut into records but not decoded.

use std::ops::Range;
use std::sync::Arc;

use millstream::{Moment, Offset, Partition};

use crate::format::Header;

/// A piece of one file.
#[derive(Debug)]
pub(super) struct Block {
    /// The file's path.
    pub(super) path: Partition,
    pub(super) content: Content,
    /// Where its partition stands after all of it, when that moved.
    pub(super) position: Option<(Partition, Offset)>,
    /// When the thread had read it, and a worker could have.
    pub(super) arrived: Moment,
}

#[derive(Debug)]
pub(super) enum Content {
    Records(Records),
    /// One malformed record.
    Flaw(Flaw),
}

/// Whole records, with their ends.
#[derive(Debug)]
pub(super) struct Records {
    pub(super) bytes: Vec<u8>,
    /// Where in the file the bytes begin.
    pub(super) offset: u64,
    pub(super) ranges: Vec<Range<usize>>,
    pub(super) header: Option<Arc<Header>>,
}

/// What is wrong with a file, or with a record that is too long to be held.
#[derive(Debug)]
pub(super) struct Flaw {
    pub(super) at: u64,
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) cause: String,
}

/// What a block takes beside what it holds.
const BLOCK_OVERHEAD: usize = 256;

impl Block {
    /// A malformed record.
    pub(super) fn flaw(path: &Partition, flaw: Flaw) -> Block {
        Block { path: path.clone(), content: Content::Flaw(flaw), position: None, arrived: Moment::default() }
    }

    /// The memory that it takes.
    pub(super) fn size(&self) -> u64 {
        let content = match &self.content {
            Content::Records(records) => records.bytes.capacity() + size_of_val(&records.ranges[..]),
            Content::Flaw(flaw) => flaw.cause.len() + flaw.bytes.as_ref().map_or(0, Vec::len),
        };
        (BLOCK_OVERHEAD + content) as u64
    }

    /// Whether it is a piece of one of these partitions.
    pub(super) fn is_of(&self, partitions: &[Partition]) -> bool {
        self.position.as_ref().is_some_and(|(partition, _)| partitions.contains(partition))
    }
}

/// Why a record is too long.
pub(super) fn too_long(most: usize) -> String {
    format!("the record is longer than {most} bytes")
}
