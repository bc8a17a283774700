//! The worker's half of the source: decodes the records of the blocks that the feed thread has cut.

use std::fmt;
use std::sync::Arc;

use millstream::connector::{Offset, Partition, Polled, RECORD_OVERHEAD, ReadBatch, Reader, Room, Worker};
use millstream::{ByteSize, End, EventTime, Malformed, Origin, Result};

use crate::format::{Cause, Decode, Framing, of_record, without_mark};

use super::ahead::Next;
use super::block::{Block, Content, Records, too_long};
use super::source::FilesShared;

/// How a record is decoded and what it becomes.
pub trait Shape: Clone + Send + Sync + 'static {
    /// The format of the records.
    type Format: Decode;
    /// What the source returns for a record.
    type Value: 'static;

    /// The format of the records.
    fn format(&self) -> &Self::Format;

    /// The same, so that it can be opened.
    fn format_mut(&mut self) -> &mut Self::Format;

    /// Makes what the source returns from a decoded value and its origin.
    fn shape(&self, value: <Self::Format as Decode>::Value, origin: impl FnOnce() -> Origin) -> Self::Value;
}

/// Records as bare values.
#[derive(Clone, Debug)]
pub struct Values<F>(pub(super) F);

/// Records as pairs of a value and its origin.
#[derive(Clone, Debug)]
pub struct WithOrigin<F>(pub(super) F);

impl<F: Decode + Clone + Send + Sync> Shape for Values<F> {
    type Format = F;
    type Value = F::Value;

    fn format(&self) -> &F {
        &self.0
    }

    fn format_mut(&mut self) -> &mut F {
        &mut self.0
    }

    fn shape(&self, value: F::Value, _: impl FnOnce() -> Origin) -> F::Value {
        value
    }
}

impl<F: Decode + Clone + Send + Sync> Shape for WithOrigin<F> {
    type Format = F;
    type Value = (F::Value, Origin);

    fn format(&self) -> &F {
        &self.0
    }

    fn format_mut(&mut self) -> &mut F {
        &mut self.0
    }

    fn shape(&self, value: F::Value, origin: impl FnOnce() -> Origin) -> (F::Value, Origin) {
        (value, origin())
    }
}

/// Reads the files of one worker.
pub struct FileReader<S> {
    shared: Arc<FilesShared<S>>,
    worker: usize,
    /// A block that did not fit into the last batch completely, and how many of its records did.
    begun: Option<(Box<Block>, usize)>,
    is_assigned: bool,
}

impl<S: Shape> FileReader<S> {
    pub(super) fn new(shared: Arc<FilesShared<S>>, worker: Worker) -> FileReader<S> {
        FileReader { shared, worker: worker.index, begun: None, is_assigned: false }
    }

    /// Adds the records of a block from index `next` on. Returns the index of the first record that
    /// was not added.
    fn add(&self, block: &Block, mut next: usize, batch: &mut ReadBatch<Item<S>>, room: Room) -> Result<usize> {
        let records = match &block.content {
            Content::Records(records) => records,
            Content::Flaw(flaw) => {
                let malformed = malformed(&block.path, flaw.at, flaw.bytes.as_deref(), flaw.cause.clone());
                let bytes = taken::<S>(flaw.bytes.as_ref().map_or(0, Vec::len) as u64);
                match self.shared.wants_times {
                    // A flaw of a file has no time.
                    true => batch.push_at(Err(malformed), EventTime(i64::MIN), bytes),
                    false => batch.push(Err(malformed), bytes),
                }
                return Ok(1);
            }
        };
        while next < records.ranges.len() && batch.len() < room.records && batch.bytes() < room.bytes {
            self.add_record(&block.path, records, next, batch)?;
            next += 1;
        }
        Ok(next)
    }

    fn add_record(
        &self,
        path: &Partition,
        records: &Records,
        index: usize,
        batch: &mut ReadBatch<Item<S>>,
    ) -> Result<()> {
        let (shape, framing) = (&self.shared.shape, self.shared.framing);
        let range = &records.ranges[index];
        let (skipped, record) = content(framing, &records.bytes[range.clone()]);
        if framing == Framing::FilledLines && without_mark(record).trim_ascii().is_empty() {
            return Ok(());
        }
        let offset = records.offset + (range.start + skipped) as u64;
        let mut push = |item, bytes| match self.shared.wants_times {
            true => batch.push_at(item, records.modified, bytes),
            false => batch.push(item, bytes),
        };
        let most = self.shared.record_max;
        if record.len() > most {
            push(Err(malformed(path, offset, Some(&record[..most]), too_long(most))), taken::<S>(most as u64));
            return Ok(());
        }
        let origin = || Origin::new(path.clone(), Offset(offset));
        let decoded: Result<_, Cause> = match &records.header {
            Some(header) => shape.format().decode_under(header, record).map(|value| {
                let held = shape.format().held(Some(record), &value);
                (value, held)
            }),
            None => shape.format().decode_sized(Some(record)),
        };
        let (item, held) = match decoded {
            Ok((value, held)) => (Ok(shape.shape(value, origin)), held.0),
            Err(cause) => {
                let cause = of_record(cause)?.to_string();
                let held = (record.len() + cause.len()) as u64;
                (Err(malformed(path, offset, Some(record), cause)), held)
            }
        };
        push(item, taken::<S>(held));
        Ok(())
    }
}

type Item<S> = Result<<S as Shape>::Value, Malformed>;

pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The engine's memory that a record takes; `held` is what it holds in addition to its own size.
fn taken<S: Shape>(held: u64) -> ByteSize {
    ByteSize(held + size_of::<Item<S>>() as u64 + RECORD_OVERHEAD.0)
}

/// A record without its end and without empty lines before it, and the number of bytes before it.
pub(super) fn content(framing: Framing, bytes: &[u8]) -> (usize, &[u8]) {
    let (begin, is_row) = match framing {
        // Empty lines before a row.
        Framing::Csv { .. } => (bytes.iter().take_while(|byte| b"\r\n".contains(byte)).count(), true),
        Framing::Lines | Framing::FilledLines => (0, false),
    };
    let record = &bytes[begin..];
    let without_feed = record.strip_suffix(b"\n");
    let record = match without_feed.unwrap_or(record) {
        // A row may end with `\r` alone.
        line if without_feed.is_some() || is_row => line.strip_suffix(b"\r").unwrap_or(line),
        line => line,
    };
    (begin, record)
}

fn malformed(path: &Partition, offset: u64, bytes: Option<&[u8]>, cause: String) -> Malformed {
    let mut malformed = Malformed::new(cause);
    malformed.origin = Some(Origin::new(path.clone(), Offset(offset)));
    malformed.bytes = bytes.map(<[u8]>::to_vec);
    malformed
}

impl<S: Shape> Reader for FileReader<S> {
    type Item = Item<S>;

    fn poll(&mut self, batch: &mut ReadBatch<Item<S>>, room: Room) -> Result<Polled> {
        let (block, next) = match self.begun.take() {
            Some(begun) => begun,
            None => match self.shared.ahead.take(self.worker) {
                Next::Block(block) => (block, 0),
                Next::Nothing => return Ok(Polled::Idle),
                // A directory may get more files.
                Next::End => return Ok(Polled::Ended(End::OfRun)),
            },
        };
        let next = self.add(&block, next, batch, room)?;
        batch.arrived(block.arrived);
        match (&block.content, &block.position) {
            (Content::Records(records), Some((partition, _))) if next < records.ranges.len() => {
                // Up to the beginning of the next record, which is the end of the one before it.
                batch.read_to(partition.clone(), Offset(records.offset + records.ranges[next].start as u64));
                self.begun = Some((block, next));
            }
            (_, Some((partition, position))) => batch.read_to(partition.clone(), *position),
            (_, None) => {}
        }
        Ok(Polled::More)
    }

    /// Each file is a partition that is found later.
    fn assigned(&mut self) -> Option<Vec<Partition>> {
        (!std::mem::replace(&mut self.is_assigned, true)).then(Vec::new)
    }

    fn has_ended(&self) -> Option<End> {
        (self.begun.is_none() && self.shared.ahead.is_through(self.worker)).then_some(End::OfRun)
    }

    /// Has an effect only where the engine has enough of a file. In all other runs the file is gone
    /// from the directory, and may come back.
    fn unassign(&mut self, partitions: &[Partition]) {
        if self.shared.is_sample {
            self.begun.take_if(|(block, _)| block.is_of(partitions));
            self.shared.ahead.refuse(self.worker, partitions);
        }
    }
}

impl<S> fmt::Debug for FileReader<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileReader of worker {}", self.worker)
    }
}
