//! What one poll of one partition returned, and what a stage makes of it: values, with columns beside them that exist
//! only when somebody reads them. A struct of arrays, so that `map` never touches a time.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::admission::Receipt;
use super::{Admission, Bytes, EventTime, Moment, Offset, Partition};

/// Records on their way, in order, under one admission.
///
/// It is an iterator by value: [`map_batches`](crate::Stream::map_batches) hands it to a user's function whole. Values
/// that are never pulled count as consumed.
pub struct Batch<T> {
    values: VecDeque<T>,
    /// As long as `values`, or empty when the source gives none.
    times: VecDeque<EventTime>,
    admission: Option<Admission>,
    position: Option<(Partition, Offset)>,
    bytes: u64,
    repeated: u64,
    arrival: Option<Moment>,
    receipts: Vec<Receipt>,
    /// The time of the value pulled last; exists only between a user's hands and only when there are times.
    pulled: Option<Arc<AtomicI64>>,
    /// In a user's hands: what is dropped there was consumed.
    lent: bool,
}

impl<T> Batch<T> {
    /// A batch without records.
    pub fn new() -> Batch<T> {
        Batch::from_parts(VecDeque::new(), VecDeque::new())
    }

    pub(crate) fn from_parts(values: VecDeque<T>, times: VecDeque<EventTime>) -> Batch<T> {
        Batch {
            values,
            times,
            admission: None,
            position: None,
            bytes: 0,
            repeated: 0,
            arrival: None,
            receipts: Vec::new(),
            pulled: None,
            lent: false,
        }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no value.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Adds a record that a reader has read, with the memory it holds: its own size, what it points to, and
    /// [`RECORD_OVERHEAD`](crate::RECORD_OVERHEAD).
    pub fn push(&mut self, value: T, bytes: Bytes) {
        self.values.push_back(value);
        self.bytes += bytes.0;
    }

    /// Adds a record with its event time. All records of a batch have one, or none has.
    pub fn push_at(&mut self, value: T, time: EventTime, bytes: Bytes) {
        debug_assert_eq!(self.times.len(), self.values.len(), "all records of a batch have a time, or none has");
        self.times.push_back(time);
        self.push(value, bytes);
    }

    /// Adds many records, each holding `bytes`.
    pub fn extend(&mut self, values: impl IntoIterator<Item = T>, bytes: Bytes) {
        let before = self.values.len();
        self.values.extend(values);
        self.bytes += (self.values.len() - before) as u64 * bytes.0;
    }

    /// Says where the reader of `partition` stands after this batch: beyond its records and beyond holes and control
    /// records too. A batch holds records of one partition.
    pub fn read_to(&mut self, partition: Partition, next: Offset) {
        self.position = Some((partition, next));
    }

    /// Counts a record that the reader got a second time and dropped.
    pub fn note_repeated(&mut self) {
        self.repeated += 1;
    }

    /// Says when a record of this batch had arrived, by the job's clock: when the source had it, and a worker could have
    /// read it. The time that it waits for the worker is part of its latency then. The batch has one arrival, which is the
    /// earliest that was said. A reader that says nothing has its records arrive when they are polled.
    pub fn arrived(&mut self, at: Moment) {
        self.arrival = Some(self.arrival.map_or(at, |earliest| earliest.min(at)));
    }

    /// Says when the records were due, whatever the reader says of their arrival.
    pub(crate) fn due(&mut self, at: Moment) {
        self.arrival = Some(at);
    }

    pub(crate) fn arrival(&self) -> Option<Moment> {
        self.arrival
    }

    pub(crate) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Whether a reader has put a record or a position into it.
    pub(crate) fn has_moved(&self) -> bool {
        !self.values.is_empty() || self.position.is_some()
    }

    pub(crate) fn push_receipt(&mut self, receipt: Receipt) {
        self.receipts.push(receipt);
    }

    pub(crate) fn take_receipts(&mut self) -> Vec<Receipt> {
        mem::take(&mut self.receipts)
    }

    pub(crate) fn take_position(&mut self) -> Option<(Partition, Offset)> {
        self.position.take()
    }

    pub(crate) fn partition(&self) -> Option<&Partition> {
        self.position.as_ref().map(|(partition, _)| partition)
    }

    /// What the reader said its records hold.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.bytes)
    }

    pub(crate) fn admit(&mut self, admission: Admission) {
        self.admission = Some(admission);
    }

    pub(crate) fn admission(&self) -> Option<&Admission> {
        self.admission.as_ref()
    }

    /// The value at the front, which [`next`](Iterator::next) would return. A writer that may refuse looks before it
    /// takes: what is refused stays at the front.
    pub fn front(&self) -> Option<&T> {
        self.values.front()
    }

    /// The event time of the value at the front, when the source gives times.
    pub fn front_time(&self) -> Option<EventTime> {
        self.times.front().copied()
    }

    /// Keeps the first `len` values and returns the others, under the same admission.
    pub(crate) fn split_off(&mut self, len: usize) -> Batch<T> {
        let times = if self.times.is_empty() { VecDeque::new() } else { self.times.split_off(len) };
        let values = self.values.split_off(len);
        self.like(values, times)
    }

    /// A batch without records under an admission.
    pub(crate) fn under(admission: Option<Admission>) -> Batch<T> {
        let mut batch = Batch::new();
        batch.admission = admission;
        batch
    }

    /// Adds a record that a stage has made. All records of a batch have a time, or none has.
    pub(crate) fn append(&mut self, value: T, time: Option<EventTime>) {
        self.values.push_back(value);
        self.times.extend(time);
    }

    pub(crate) fn take_times(&mut self) -> VecDeque<EventTime> {
        mem::take(&mut self.times)
    }

    /// The values, for whoever answers for them from now on.
    pub(crate) fn take_values(&mut self) -> VecDeque<T> {
        mem::take(&mut self.values)
    }

    /// Another batch with the same admission.
    fn like<U>(&self, values: VecDeque<U>, times: VecDeque<EventTime>) -> Batch<U> {
        let mut batch = Batch::from_parts(values, times);
        batch.admission = self.admission.clone();
        batch
    }

    pub(crate) fn mapped<U>(mut self, f: impl FnMut(T) -> U) -> Batch<U> {
        // Through `Vec`, because its by-value iterator collects in place and compiles to a tight loop.
        let values: Vec<U> = Vec::from(mem::take(&mut self.values)).into_iter().map(f).collect();
        let times = mem::take(&mut self.times);
        self.like(values.into(), times)
    }

    /// As [`mapped`](Batch::mapped), until `f` says `None`; what comes after that is dropped.
    pub(crate) fn mapped_while<U>(mut self, f: impl FnMut(T) -> Option<U>) -> Batch<U> {
        let values: Vec<U> = Vec::from(mem::take(&mut self.values)).into_iter().map_while(f).collect();
        let mut times = mem::take(&mut self.times);
        times.truncate(values.len());
        self.like(values.into(), times)
    }

    pub(crate) fn filtered(mut self, mut keep: impl FnMut(&T) -> bool) -> Batch<T> {
        let values = mem::take(&mut self.values);
        if self.times.is_empty() {
            let values: Vec<T> = Vec::from(values).into_iter().filter(|value| keep(value)).collect();
            return self.like(values.into(), VecDeque::new());
        }
        let pairs = values.into_iter().zip(mem::take(&mut self.times)).filter(|(value, _)| keep(value));
        let (values, times) = pairs.unzip();
        self.like(values, times)
    }

    pub(crate) fn flat_mapped<I: IntoIterator>(mut self, mut f: impl FnMut(T) -> I) -> Batch<I::Item> {
        let values = mem::take(&mut self.values);
        if self.times.is_empty() {
            let values: Vec<I::Item> = values.into_iter().flat_map(f).collect();
            return self.like(values.into(), VecDeque::new());
        }
        let (mut outputs, mut times) = (VecDeque::new(), VecDeque::new());
        for (value, time) in values.into_iter().zip(mem::take(&mut self.times)) {
            outputs.extend(f(value));
            times.resize(outputs.len(), time);
        }
        self.like(outputs, times)
    }

    /// Hands the whole batch to `f`. An output takes the time of the last value pulled before it.
    pub(crate) fn map_whole<I: Iterator>(mut self, f: impl FnOnce(Batch<T>) -> I) -> Batch<I::Item> {
        let mut out = self.like(VecDeque::new(), VecDeque::new());
        self.lent = true;
        let Some(first) = self.times.front() else {
            let mut values = Vec::with_capacity(self.len());
            // `for_each` folds, and a fold over the vector inside is what the compiler can unroll.
            f(self).for_each(|value| values.push(value));
            out.values = values.into();
            return out;
        };
        let pulled = Arc::new(AtomicI64::new(first.0));
        self.pulled = Some(Arc::clone(&pulled));
        for value in f(self) {
            out.values.push_back(value);
            out.times.push_back(EventTime(pulled.load(Relaxed)));
        }
        out
    }

    /// Values for which `test` holds, and the others, each in order.
    pub(crate) fn split<A, B>(mut self, mut test: impl FnMut(T) -> Result<A, B>) -> (Batch<A>, Batch<B>) {
        let (mut yes, mut no) =
            (self.like(VecDeque::new(), VecDeque::new()), self.like(VecDeque::new(), VecDeque::new()));
        let mut times = mem::take(&mut self.times).into_iter();
        for value in mem::take(&mut self.values) {
            let time = times.next();
            match test(value) {
                Ok(value) => {
                    yes.values.push_back(value);
                    yes.times.extend(time);
                }
                Err(value) => {
                    no.values.push_back(value);
                    no.times.extend(time);
                }
            }
        }
        (yes, no)
    }

    /// Lets the values go: they are consumed.
    pub(crate) fn let_go(mut self) {
        self.values.clear();
    }

    /// Looks at each value.
    pub(crate) fn for_each_ref(&self, mut f: impl FnMut(&T)) {
        self.values.iter().for_each(&mut f);
    }

    pub(crate) fn parts(&self) -> (&VecDeque<T>, &VecDeque<EventTime>) {
        (&self.values, &self.times)
    }
}

impl<T> Iterator for Batch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let value = self.values.pop_front()?;
        if let Some(time) = self.times.pop_front()
            && let Some(pulled) = &self.pulled
        {
            pulled.store(time.0, Relaxed);
        }
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.values.len(), Some(self.values.len()))
    }

    fn fold<B, F: FnMut(B, T) -> B>(mut self, init: B, mut f: F) -> B {
        if self.times.is_empty() {
            return Vec::from(mem::take(&mut self.values)).into_iter().fold(init, f);
        }
        let mut folded = init;
        for value in self {
            folded = f(folded, value);
        }
        folded
    }
}

impl<T> ExactSizeIterator for Batch<T> {}

impl<T> Default for Batch<T> {
    fn default() -> Batch<T> {
        Batch::new()
    }
}

impl<T: Clone> Clone for Batch<T> {
    fn clone(&self) -> Batch<T> {
        let mut copy = self.like(self.values.clone(), self.times.clone());
        // What is made of a batch in a user's hands is in their hands too.
        copy.lent = self.lent;
        copy
    }
}

impl<T> Drop for Batch<T> {
    fn drop(&mut self) {
        if let Some(admission) = &self.admission
            && ((!self.values.is_empty() && !self.lent) || std::thread::panicking())
        {
            admission.lose();
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.values).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed() -> Batch<u32> {
        let mut batch = Batch::new();
        (1..=4).for_each(|n| batch.push_at(n, EventTime(i64::from(n) * 10), Bytes(4)));
        batch
    }

    fn times<T>(batch: &Batch<T>) -> Vec<i64> {
        batch.times.iter().map(|time| time.0).collect()
    }

    #[test]
    fn times_follow_their_values() {
        assert_eq!(times(&timed().filtered(|n| n % 2 == 0)), [20, 40]);
        assert_eq!(times(&timed().flat_mapped(|n| vec![n; (n % 3) as usize])), [10, 20, 20, 40]);
        let (even, odd) = timed().split(|n| if n % 2 == 0 { Ok(n) } else { Err(n) });
        assert_eq!((times(&even), times(&odd)), (vec![20, 40], vec![10, 30]));
    }

    #[test]
    fn an_output_takes_the_time_of_the_last_value_pulled() {
        let sums = timed().map_whole(|mut batch| std::iter::from_fn(move || Some(batch.next()? + batch.next()?)));
        assert_eq!((sums.values.iter().copied().collect::<Vec<_>>(), times(&sums)), (vec![3, 7], vec![20, 40]));
    }

    #[test]
    fn a_batch_has_arrived_when_its_first_record_had() {
        let mut batch = Batch::<u32>::new();
        assert_eq!(batch.arrival(), None);
        [20, 10, 30].into_iter().for_each(|nanos| batch.arrived(Moment::from_nanos(nanos)));
        assert_eq!(batch.arrival(), Some(Moment::from_nanos(10)));
        // A comparison measures from when records were due.
        batch.due(Moment::from_nanos(40));
        assert_eq!(batch.arrival(), Some(Moment::from_nanos(40)));
    }

    #[test]
    fn a_split_batch_keeps_its_columns_together() {
        let mut front = timed();
        let back = front.split_off(3);
        assert_eq!((times(&front), times(&back)), (vec![10, 20, 30], vec![40]));
    }
}
