//! Records on their way through a job: values, and beside them a column of [`Stamp`]s that exists
//! only when the source has event times. A struct of arrays, so that `map` never touches a time.
//!
//! A reader fills a [`ReadBatch`](super::ReadBatch); it travels as a [`Batch`]; a user's function
//! is handed [`BatchValues`].

use std::collections::VecDeque;
use std::fmt;
use std::mem;

use super::{Admission, BatchValues, EventTime, Stamp};

/// Records on their way, in order, under one admission. A [`Writer`](crate::connector::Writer)
/// takes them from the front, as from an iterator.
///
/// Values that are still in it when it is dropped count as not processed, and their receipts say
/// so.
pub struct Batch<T> {
    values: VecDeque<T>,
    /// As long as `values`, or empty when the source has no event times.
    stamps: VecDeque<Stamp>,
    admission: Option<Admission>,
}

impl<T> Batch<T> {
    pub(crate) fn from_parts(values: VecDeque<T>, stamps: VecDeque<Stamp>) -> Batch<T> {
        Batch { values, stamps, admission: None }
    }

    pub(crate) fn admitted(values: VecDeque<T>, stamps: VecDeque<Stamp>, admission: Admission) -> Batch<T> {
        Batch { values, stamps, admission: Some(admission) }
    }

    /// A batch without records under an admission.
    pub(crate) fn under(admission: Option<Admission>) -> Batch<T> {
        Batch { values: VecDeque::new(), stamps: VecDeque::new(), admission }
    }

    /// The same records under another admission.
    pub(crate) fn admitted_as(mut self, admission: Option<Admission>) -> Batch<T> {
        self.admission = admission;
        self
    }

    /// The number of records.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The value at the front, which [`next`](Iterator::next) would return. A writer that may
    /// refuse a record looks at it before it takes it: refused records stay at the front.
    pub fn front(&self) -> Option<&T> {
        self.values.front()
    }

    /// The event time of the value at the front, when the source has event times.
    pub fn front_time(&self) -> Option<EventTime> {
        self.stamps.front().and_then(|stamp| stamp.time())
    }

    pub(crate) fn admission(&self) -> Option<&Admission> {
        self.admission.as_ref()
    }

    /// Keeps the first `len` values and returns the others, under the same admission.
    pub(crate) fn split_off(&mut self, len: usize) -> Batch<T> {
        let stamps = if self.stamps.is_empty() { VecDeque::new() } else { self.stamps.split_off(len) };
        let values = self.values.split_off(len);
        self.like(values, stamps)
    }

    /// Adds a record that a stage has made. Either all records of a batch have a stamp,
    /// or none has.
    pub(crate) fn append(&mut self, value: T, stamp: Option<Stamp>) {
        self.values.push_back(value);
        self.stamps.extend(stamp);
    }

    /// Sets all records at once, with a stamp for each or none.
    pub(crate) fn fill(&mut self, values: Vec<T>, stamps: VecDeque<Stamp>) {
        debug_assert!(stamps.is_empty() || stamps.len() == values.len());
        (self.values, self.stamps) = (values.into(), stamps);
    }

    /// Gives each record a stamp, in place of the one it had.
    pub(crate) fn set_stamps(&mut self, stamps: VecDeque<Stamp>) {
        debug_assert_eq!(stamps.len(), self.values.len(), "each record has a stamp");
        self.stamps = stamps;
    }

    pub(crate) fn take_stamps(&mut self) -> VecDeque<Stamp> {
        mem::take(&mut self.stamps)
    }

    /// Takes the values out. From now on the caller is responsible for their outcome.
    pub(crate) fn take_values(&mut self) -> VecDeque<T> {
        mem::take(&mut self.values)
    }

    /// Another batch with the same admission.
    fn like<U>(&self, values: VecDeque<U>, stamps: VecDeque<Stamp>) -> Batch<U> {
        Batch { values, stamps, admission: self.admission.clone() }
    }

    pub(crate) fn mapped<U>(mut self, f: impl FnMut(T) -> U) -> Batch<U> {
        // Through `Vec`, because its by-value iterator collects in place and compiles to a tight
        // loop.
        let values: Vec<U> = Vec::from(mem::take(&mut self.values)).into_iter().map(f).collect();
        let stamps = mem::take(&mut self.stamps);
        self.like(values.into(), stamps)
    }

    /// Each value with its key; `input` makes of it what is needed further on.
    pub(crate) fn keyed<K, I>(mut self, keys: impl Fn(&[T]) -> Vec<K>, input: impl Fn(T) -> I) -> Batch<(K, I)> {
        let values = Vec::from(mem::take(&mut self.values));
        let keyed: Vec<(K, I)> = keys(&values).into_iter().zip(values.into_iter().map(input)).collect();
        let stamps = mem::take(&mut self.stamps);
        self.like(keyed.into(), stamps)
    }

    /// As [`mapped`](Batch::mapped), until `f` returns `None`; the values after that are dropped.
    pub(crate) fn mapped_while<U>(mut self, f: impl FnMut(T) -> Option<U>) -> Batch<U> {
        let values: Vec<U> = Vec::from(mem::take(&mut self.values)).into_iter().map_while(f).collect();
        let mut stamps = mem::take(&mut self.stamps);
        stamps.truncate(values.len());
        self.like(values.into(), stamps)
    }

    pub(crate) fn filtered(mut self, mut keep: impl FnMut(&T) -> bool) -> Batch<T> {
        let values = mem::take(&mut self.values);
        if self.stamps.is_empty() {
            let values: Vec<T> = Vec::from(values).into_iter().filter(|value| keep(value)).collect();
            return self.like(values.into(), VecDeque::new());
        }
        let pairs = values.into_iter().zip(mem::take(&mut self.stamps)).filter(|(value, _)| keep(value));
        let (values, stamps) = pairs.unzip();
        self.like(values, stamps)
    }

    pub(crate) fn flat_mapped<I: IntoIterator>(mut self, mut f: impl FnMut(T) -> I) -> Batch<I::Item> {
        let values = mem::take(&mut self.values);
        if self.stamps.is_empty() {
            let values: Vec<I::Item> = values.into_iter().flat_map(f).collect();
            return self.like(values.into(), VecDeque::new());
        }
        let (mut outputs, mut stamps) = (VecDeque::new(), VecDeque::new());
        for (value, time) in values.into_iter().zip(mem::take(&mut self.stamps)) {
            outputs.extend(f(value));
            stamps.resize(outputs.len(), time);
        }
        self.like(outputs, stamps)
    }

    /// Hands all values to `f`. An output takes the time of the last value pulled before it.
    pub(crate) fn map_whole<I: Iterator>(mut self, f: impl FnOnce(BatchValues<T>) -> I) -> Batch<I::Item> {
        let mut out = self.like(VecDeque::new(), VecDeque::new());
        let records = self.len();
        let values = BatchValues::new(mem::take(&mut self.values), mem::take(&mut self.stamps));
        let Some(pulled) = values.pulled() else {
            let mut outputs = Vec::with_capacity(records);
            // `for_each` folds, and a fold over the vector inside is what the compiler can unroll.
            f(values).for_each(|output| outputs.push(output));
            out.values = outputs.into();
            return out;
        };
        for output in f(values) {
            out.values.push_back(output);
            out.stamps.push_back(pulled.get());
        }
        out
    }

    /// The values that `test` makes `Ok`, and those that it makes `Err`, each in order.
    pub(crate) fn split<A, B>(mut self, mut test: impl FnMut(T) -> Result<A, B>) -> (Batch<A>, Batch<B>) {
        let (mut yes, mut no) =
            (self.like(VecDeque::new(), VecDeque::new()), self.like(VecDeque::new(), VecDeque::new()));
        let mut stamps = mem::take(&mut self.stamps).into_iter();
        for value in mem::take(&mut self.values) {
            let time = stamps.next();
            match test(value) {
                Ok(value) => yes.append(value, time),
                Err(value) => no.append(value, time),
            }
        }
        (yes, no)
    }

    /// As many records without an input behind the others, under the first key.
    pub(crate) fn with_notices<K: Clone, I>(self, notices: usize) -> Batch<(K, Option<I>)>
    where
        T: Into<(K, I)>,
    {
        let mut key = None;
        let mut out = self.mapped(|record| {
            let (own, input) = record.into();
            key.get_or_insert_with(|| own.clone());
            (own, Some(input))
        });
        let time = out.stamps.back().copied();
        if let Some(key) = key {
            (0..notices).for_each(|_| out.append((key.clone(), None), time));
        }
        out
    }

    /// Drops the values as consumed.
    pub(crate) fn let_go(mut self) {
        self.values.clear();
    }

    /// Calls `f` with each value.
    pub(crate) fn for_each_ref(&self, mut f: impl FnMut(&T)) {
        self.values.iter().for_each(&mut f);
    }

    pub(crate) fn parts(&self) -> (&VecDeque<T>, &VecDeque<Stamp>) {
        (&self.values, &self.stamps)
    }
}

impl<T> Iterator for Batch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let value = self.values.pop_front()?;
        self.stamps.pop_front();
        Some(value)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.values.len(), Some(self.values.len()))
    }

    /// All at once, as `for_each` and `extend` want them: a loop that the compiler can unroll.
    fn fold<B, F: FnMut(B, T) -> B>(mut self, init: B, f: F) -> B {
        Vec::from(mem::take(&mut self.values)).into_iter().fold(init, f)
    }
}

impl<T> Default for Batch<T> {
    fn default() -> Batch<T> {
        Batch::from_parts(VecDeque::new(), VecDeque::new())
    }
}

impl<T: Clone> Clone for Batch<T> {
    fn clone(&self) -> Batch<T> {
        self.like(self.values.clone(), self.stamps.clone())
    }
}

impl<T> Drop for Batch<T> {
    fn drop(&mut self) {
        if !self.values.is_empty()
            && let Some(admission) = &self.admission
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
        let mut batch = Batch::default();
        (1..=4).for_each(|n| batch.append(n, Some(Stamp::in_time(EventTime(i64::from(n) * 10)))));
        batch
    }

    fn times<T>(batch: &Batch<T>) -> Vec<i64> {
        batch.stamps.iter().map(|stamp| stamp.time.0).collect()
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
    fn a_split_batch_keeps_its_columns_together() {
        let mut front = timed();
        let back = front.split_off(3);
        assert_eq!((times(&front), times(&back)), (vec![10, 20, 30], vec![40]));
    }
}
