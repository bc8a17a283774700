//! What the feed thread hands to a worker: a piece of one file, cut into records but not decoded.

use std::ops::Range;
use std::sync::Arc;

use millstream::EventTime;
use millstream::connector::{Moment, Offset, Partition};

use crate::format::Header;

/// A piece of one file.
#[derive(Debug)]
pub(super) struct Block {
    /// The file's path.
    pub(super) path: Partition,
    pub(super) content: Content,
    /// The offset of its partition after all of the block, if the block moves it.
    pub(super) position: Option<(Partition, Offset)>,
    /// When the feed thread had read it, so that a worker could take it.
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
    /// The offset in the file where the bytes begin.
    pub(super) offset: u64,
    pub(super) ranges: Vec<Range<usize>>,
    pub(super) header: Option<Arc<Header>>,
    /// When the file was modified, as it was known when the file was opened.
    pub(super) modified: EventTime,
}

/// What is wrong with a file, or with a record that is too long to be kept.
#[derive(Debug)]
pub(super) struct Flaw {
    pub(super) at: u64,
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) cause: String,
}

/// The memory that a block takes in addition to its contents, so that many small ones count too.
const BLOCK_OVERHEAD: usize = 256;

impl Block {
    /// A malformed record.
    pub(super) fn flaw(path: &Partition, flaw: Flaw) -> Block {
        Block { path: path.clone(), content: Content::Flaw(flaw), position: None, arrived: Moment::default() }
    }

    /// The memory that it takes, in bytes.
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

/// The cause of a record that is too long.
pub(super) fn too_long(most: usize) -> String {
    format!("the record is longer than {most} bytes")
}
