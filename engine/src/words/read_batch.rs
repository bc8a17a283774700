//! A batch while a reader fills it: what one poll of one partition returns.

use std::collections::VecDeque;
use std::fmt;

use super::admission::Receipt;
use super::{Admission, Batch, BatchValues, ByteSize, EventTime, Moment, Offset, Partition, Stamp};

/// The records that a reader adds in one poll: all of one partition, in order.
///
/// ```
/// use millstream::connector::{Offset, Partition, ReadBatch};
/// use millstream::ByteSize;
///
/// let mut batch = ReadBatch::new();
/// batch.push("first", ByteSize(5));
/// batch.read_to(Partition::new("lines/0"), Offset(1));
/// assert_eq!(batch.len(), 1);
/// assert_eq!(batch.into_iter().collect::<Vec<_>>(), ["first"]);
/// ```
pub struct ReadBatch<T> {
    values: VecDeque<T>,
    /// As long as `values`, or empty when the source has no event times.
    times: VecDeque<EventTime>,
    position: Option<(Partition, Offset)>,
    ends_partition: bool,
    bytes: u64,
    repeated: u64,
    arrival: Option<Moment>,
    receipts: Vec<Receipt>,
}

impl<T> ReadBatch<T> {
    /// A batch without records.
    pub fn new() -> ReadBatch<T> {
        ReadBatch {
            values: VecDeque::new(),
            times: VecDeque::new(),
            position: None,
            ends_partition: false,
            bytes: 0,
            repeated: 0,
            arrival: None,
            receipts: Vec::new(),
        }
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Adds a record, with the memory it holds: its own size, what it points to, and
    /// [`RECORD_OVERHEAD`](crate::connector::RECORD_OVERHEAD).
    pub fn push(&mut self, value: T, bytes: ByteSize) {
        self.values.push_back(value);
        self.bytes += bytes.0;
    }

    /// Adds a record with its event time. Either all records of a batch have one, or none has.
    pub fn push_at(&mut self, value: T, time: EventTime, bytes: ByteSize) {
        debug_assert_eq!(self.times.len(), self.values.len(), "all records of a batch have a time, or none has");
        self.times.push_back(time);
        self.push(value, bytes);
    }

    /// Adds many records of `bytes` each.
    pub fn extend(&mut self, values: impl IntoIterator<Item = T>, bytes: ByteSize) {
        let before = self.values.len();
        self.values.extend(values);
        self.bytes += (self.values.len() - before) as u64 * bytes.0;
    }

    /// Sets the position of the reader in `partition` after this batch: beyond its records, and
    /// beyond gaps and control records too. A batch holds records of one partition.
    pub fn read_to(&mut self, partition: Partition, next: Offset) {
        self.position = Some((partition, next));
    }

    /// No record will ever follow those of this batch in its partition. So the partition holds back
    /// no window any more.
    pub fn end_partition(&mut self) {
        self.ends_partition = true;
    }

    /// Counts a record that the reader received a second time and dropped.
    pub fn note_repeated(&mut self) {
        self.repeated += 1;
    }

    /// Sets when a record of this batch arrived, by the job's clock: when the source had it and a
    /// worker could have read it. Its latency then includes the time until this poll. A batch has
    /// one arrival, the earliest that was set. If none is set, its records arrive when they are
    /// polled.
    pub fn arrived(&mut self, at: Moment) {
        self.arrival = Some(self.arrival.map_or(at, |earliest| earliest.min(at)));
    }

    /// The memory that its records hold, as the reader counted it.
    pub fn bytes(&self) -> ByteSize {
        ByteSize(self.bytes)
    }

    /// Sets when the records were due, whatever arrival the reader has set.
    pub(crate) fn due(&mut self, at: Moment) {
        self.arrival = Some(at);
    }

    pub(crate) fn arrival(&self) -> Option<Moment> {
        self.arrival
    }

    pub(crate) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Whether the reader has added a record or moved its position.
    pub(crate) fn has_moved(&self) -> bool {
        !self.values.is_empty() || self.position.is_some()
    }

    pub(crate) fn push_receipt(&mut self, receipt: Receipt) {
        self.receipts.push(receipt);
    }

    pub(crate) fn receipts(&self) -> usize {
        self.receipts.len()
    }

    pub(crate) fn ends_partition(&self) -> bool {
        self.ends_partition
    }

    pub(crate) fn partition(&self) -> Option<&Partition> {
        self.position.as_ref().map(|(partition, _)| partition)
    }

    pub(crate) fn take_position(&mut self) -> Option<(Partition, Offset)> {
        self.position.take()
    }

    /// Drops all records but the first `len`.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.values.truncate(len);
        self.times.truncate(len);
    }

    /// Turns the records into a batch under an admission that `admit` makes of their receipts.
    pub(crate) fn admit(self, admit: impl FnOnce(Vec<Receipt>) -> Admission) -> Batch<T> {
        Batch::admitted(self.values, stamped(self.times), admit(self.receipts))
    }
}

/// What a source says of its records; only a watermark makes them late.
fn stamped(times: VecDeque<EventTime>) -> VecDeque<Stamp> {
    times.into_iter().map(Stamp::in_time).collect()
}

impl<T> IntoIterator for ReadBatch<T> {
    type Item = T;
    type IntoIter = BatchValues<T>;

    fn into_iter(self) -> BatchValues<T> {
        BatchValues::new(self.values, stamped(self.times))
    }
}

impl<T> Default for ReadBatch<T> {
    fn default() -> ReadBatch<T> {
        ReadBatch::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for ReadBatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.values).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_arrives_with_its_first_record() {
        let mut batch = ReadBatch::<u32>::new();
        assert_eq!(batch.arrival(), None);
        [20, 10, 30].into_iter().for_each(|nanos| batch.arrived(Moment::from_nanos(nanos)));
        assert_eq!(batch.arrival(), Some(Moment::from_nanos(10)));
        // A comparison measures from when records were due.
        batch.due(Moment::from_nanos(40));
        assert_eq!(batch.arrival(), Some(Moment::from_nanos(40)));
    }
}
