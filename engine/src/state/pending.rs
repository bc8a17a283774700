//! State of records that an operator has taken and is not done with, such as those of open calls:
//! each under a number, until it is done. Most of them come and are done within one checkpoint, and
//! no delta ever has them.
//!
//! The operator uses the records up, so their bytes are made when they come, and are kept only
//! until the next cut.

use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::{fmt, mem, vec};

use serde::{Deserialize, Serialize};

use crate::words::{CheckpointId, Fingerprint, KeyGroup, Stamp};

use super::delta::{Delta, NotEntries, RawEntries, decode};
use super::describe::{Look, Schema, Types};
use super::keep::{Held, Keep, Strays};
use super::table::TableState;

/// The number of a record. A worker gives its records one *tag* after another run has given them
/// another: all records of a tag belong to one key group, so that they stay together, in their
/// order, when the number of workers changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Number {
    number: u64,
    tag: u64,
}

/// The group is that of the tag.
impl Hash for Number {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.tag);
    }
}

/// How records are written and read.
pub(crate) struct Codec<T> {
    write: fn(&T, Option<Stamp>) -> Result<Vec<u8>, postcard::Error>,
    read: fn(&[u8]) -> Result<Timed<T>, NotEntries>,
    look: Look,
}

/// A record, with its stamp if it has one.
type Timed<T> = (T, Option<Stamp>);

impl<T: TableState> Codec<T> {
    pub(crate) fn new() -> Codec<T> {
        Codec {
            write: |record, stamp| postcard::to_stdvec(&(record, stamp)),
            read: |bytes| decode(bytes).map_err(|_| NotEntries),
            look: Look::at::<Number, Timed<T>>(0),
        }
    }
}

impl<T> Codec<T> {
    pub(crate) fn schema(&self) -> Schema {
        Schema { now: self.look, older: Vec::new() }
    }
}

impl<T> fmt::Debug for Codec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Codec({:?})", self.look)
    }
}

/// The records of a worker that are not done.
pub(crate) struct Pending<T> {
    codec: Codec<T>,
    /// Whether checkpoints keep them.
    is_durable: bool,
    tag: u64,
    /// The next number.
    next: u64,
    /// All records that are not done, now and at the last cut.
    count: u64,
    count_before: u64,
    /// Those that no cut has yet, encoded.
    fresh: HashMap<Number, Vec<u8>>,
    /// The size of these.
    bytes: usize,
    /// Records that a cut has, and that are done since.
    done: Vec<Number>,
    cut: Cut,
    /// What the run begins with, until it is taken.
    loaded: BTreeMap<Number, Timed<T>>,
}

/// What was put aside to be encoded.
#[derive(Default)]
struct Cut {
    fresh: std::collections::hash_map::IntoIter<Number, Vec<u8>>,
    done: vec::IntoIter<Number>,
    /// The size of `fresh` at the cut.
    bytes: usize,
    delta: Delta,
}

impl<T> Pending<T> {
    /// No records, on this worker of so many, in a run that begins with this checkpoint.
    pub(crate) fn new(
        codec: Codec<T>,
        is_durable: bool,
        (worker, workers): (usize, usize),
        first: CheckpointId,
    ) -> Pending<T> {
        let own = |tag: &u64| KeyGroup::of(tag).worker(workers) == worker;
        // Beyond 256 workers some own no group. Their tags are of one run.
        let of_run = || first.number() << 20 | worker as u64;
        Pending {
            codec,
            is_durable,
            tag: (0..1 << 16).find(own).unwrap_or_else(of_run),
            next: 0,
            count: 0,
            count_before: 0,
            fresh: HashMap::new(),
            bytes: 0,
            done: Vec::new(),
            cut: Cut::default(),
            loaded: BTreeMap::new(),
        }
    }

    /// Adds a record, with its stamp if it has one.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub(crate) fn add(&mut self, record: &T, stamp: Option<Stamp>) -> Result<Number, postcard::Error> {
        let number = Number { number: self.next, tag: self.tag };
        self.next += 1;
        self.count += 1;
        if self.is_durable {
            let bytes = (self.codec.write)(record, stamp)?;
            self.bytes += bytes.len();
            self.fresh.insert(number, bytes);
        }
        Ok(number)
    }

    /// A record is done.
    pub(crate) fn finish(&mut self, number: Number) {
        self.count -= 1;
        match self.fresh.remove(&number) {
            Some(bytes) => self.bytes -= bytes.len(),
            None if self.is_durable => self.done.push(number),
            None => {}
        }
    }

    /// Takes what the run begins with, in the order of the numbers.
    pub(crate) fn take_loaded(&mut self) -> impl Iterator<Item = (Number, Timed<T>)> {
        mem::take(&mut self.loaded).into_iter()
    }

    fn insert_loaded(&mut self, number: Number, record: Timed<T>) {
        self.next = self.next.max(number.number + 1);
        self.count += u64::from(self.loaded.insert(number, record).is_none());
    }
}

impl<T> Held for Pending<T> {
    fn has_grown(&mut self) -> bool {
        false
    }

    fn len(&self) -> u64 {
        self.count
    }

    fn bytes(&self) -> u64 {
        let each = size_of::<(Number, Vec<u8>)>();
        let fresh = self.fresh.capacity() * each + self.bytes;
        let cut = self.cut.fresh.len() * each + self.cut.bytes + self.cut.delta.bytes();
        let done = (self.done.capacity() + self.cut.done.len()) * size_of::<Number>();
        (fresh + cut + done) as u64
    }
}

impl<T> Keep for Pending<T> {
    fn cut(&mut self) {
        debug_assert!(self.cut.fresh.len() + self.cut.done.len() == 0, "the checkpoint before is encoded");
        self.cut.fresh = mem::take(&mut self.fresh).into_iter();
        self.cut.done = mem::take(&mut self.done).into_iter();
        self.cut.bytes = mem::take(&mut self.bytes);
        self.cut.delta.grown += self.count as i64 - self.count_before as i64;
        self.count_before = self.count;
    }

    fn drop_cut(&mut self) {
        self.cut = Cut::default();
    }

    fn encode(&mut self, entries: usize) -> Result<Option<Delta>, postcard::Error> {
        let Cut { fresh, done, delta, .. } = &mut self.cut;
        let key = |number: &Number| postcard::to_stdvec(number);
        for (number, bytes) in fresh.by_ref().take(entries) {
            delta.put_encoded(KeyGroup::of(&number), &key(&number)?, &bytes);
        }
        for number in done.by_ref().take(entries) {
            delta.delete(KeyGroup::of(&number), &key(&number)?);
        }
        Ok((fresh.len() + done.len() == 0).then(|| mem::take(&mut self.cut).delta))
    }

    fn begin(&mut self, _: &dyn Fn(KeyGroup) -> bool) -> Result<(), postcard::Error> {
        Ok(())
    }

    fn expect_types(&mut self, _: &Types) {}

    fn loaded(&mut self) -> Result<(), postcard::Error> {
        self.count_before = self.count;
        Ok(())
    }

    fn expect(&mut self, _: Range<usize>, _: u64) {}

    fn load(&mut self, group: KeyGroup, entries: &[u8], strays: &mut Strays) -> Result<(), NotEntries> {
        for entry in RawEntries::new(entries) {
            let raw = entry?;
            let number: Number = decode(raw.key).map_err(|_| NotEntries)?;
            let own = KeyGroup::of(&number);
            match raw.state {
                Some(record) if own == group => self.insert_loaded(number, (self.codec.read)(record)?),
                Some(record) => drop(strays.insert((group, raw.key.to_vec()), (own, record.to_vec()))),
                None if own == group => self.count -= u64::from(self.loaded.remove(&number).is_some()),
                None => drop(strays.remove(&(group, raw.key.to_vec()))),
            }
        }
        Ok(())
    }

    fn adopt(&mut self, key: &[u8], record: &[u8]) -> Result<(), NotEntries> {
        let number: Number = decode(key).map_err(|_| NotEntries)?;
        self.insert_loaded(number, (self.codec.read)(record)?);
        self.bytes += record.len();
        self.fresh.insert(number, record.to_vec());
        Ok(())
    }

    fn disown(&mut self, group: KeyGroup, key: &[u8]) {
        self.cut.delta.delete(group, key);
        self.cut.delta.grown -= 1;
    }

    fn has_changed(&self) -> bool {
        !self.fresh.is_empty() || !self.done.is_empty() || self.cut.delta.count() > 0
    }

    fn schema(&self) -> Schema {
        self.codec.schema()
    }

    /// Nothing is pending when a run has ended.
    fn add_to(&self, _: &Fingerprint) {}
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::words::EventTime;

    fn pending(worker: (usize, usize)) -> Pending<String> {
        Pending::new(Codec::new(), true, worker, CheckpointId::FIRST)
    }

    /// Encodes a cut, a few entries at a time.
    fn encoded(pending: &mut Pending<String>, slice: usize) -> Delta {
        std::iter::repeat_with(|| pending.encode(slice).unwrap()).flatten().next().unwrap()
    }

    fn load(deltas: &[Delta], worker: usize, workers: usize) -> Pending<String> {
        let (mut loaded, mut strays) = (pending((worker, workers)), Strays::new());
        for (group, entries) in deltas.iter().flat_map(Delta::groups) {
            if group.worker(workers) == worker {
                loaded.load(group, &entries.bytes, &mut strays).unwrap();
            }
        }
        assert!(strays.is_empty());
        loaded
    }

    fn records(loaded: &mut Pending<String>) -> Vec<Timed<String>> {
        loaded.take_loaded().map(|(_, record)| record).collect()
    }

    #[test]
    fn what_is_done_before_the_cut_leaves_no_trace() {
        let mut pending = pending((0, 1));
        let numbers = ["a", "b"].map(|record| pending.add(&record.to_owned(), None).unwrap());
        pending.finish(numbers[0]);
        pending.cut();
        assert_eq!(encoded(&mut pending, 1).count(), 1);
        pending.finish(numbers[1]);
        let number = pending.add(&"c".to_owned(), None).unwrap();
        pending.finish(number);
        pending.cut();
        let delta = encoded(&mut pending, 1);
        assert_eq!((delta.count(), pending.len()), (1, 0), "only that the second is done");
        assert!(!pending.has_changed() && pending.bytes() < 1_000);
    }

    #[test]
    fn the_records_of_a_worker_stay_together_and_new_ones_come_behind_them() {
        let names = |worker: usize| (0..20).map(|n| format!("{worker}.{n:02}")).collect::<Vec<_>>();
        let mut deltas = Vec::new();
        for worker in 0..3 {
            let mut pending = pending((worker, 3));
            assert_eq!(KeyGroup::of(&Number { number: 7, tag: pending.tag }).worker(3), worker);
            names(worker)
                .iter()
                .for_each(|name| assert!(pending.add(name, Some(Stamp::in_time(EventTime(5)))).is_ok()));
            pending.cut();
            deltas.push(encoded(&mut pending, 7));
        }
        for workers in 1..5 {
            let mut all = Vec::new();
            for worker in 0..workers {
                let mut loaded = load(&deltas, worker, workers);
                let (before, own) = (loaded.len(), records(&mut loaded));
                assert_eq!(before as usize, own.len());
                assert!(own.iter().all(|(_, time)| *time == Some(Stamp::in_time(EventTime(5)))));
                let own: Vec<String> = own.into_iter().map(|(name, _)| name).collect();
                for before in 0..3 {
                    let of_one: Vec<_> = own.iter().filter(|name| name.starts_with(&before.to_string())).collect();
                    assert!(of_one.is_sorted() && [0, 20].contains(&of_one.len()), "{of_one:?}");
                }
                let new = loaded.add(&"new".to_owned(), None).unwrap();
                assert!(own.is_empty() || new.number == 20);
                all.extend(own);
            }
            all.sort_unstable();
            assert_eq!(all, (0..3).flat_map(names).collect::<Vec<_>>(), "{workers}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

        /// Records come and are done, also while the changes before a cut are encoded.
        #[test]
        fn what_is_loaded_is_what_was_open_at_the_cut(
            steps in vec((0..6_u8, any::<usize>()), 0..200),
            slice in 1..4_usize,
        ) {
            let mut pending = pending((0, 1));
            let (mut open, mut deltas) = (BTreeMap::new(), Vec::new());
            let mut cut: Option<Vec<String>> = None;
            for (step, any) in steps {
                match step {
                    0 | 1 => {
                        let record = any.to_string();
                        open.insert(pending.add(&record, None).unwrap(), record);
                    }
                    2 | 3 => if let Some(number) = open.keys().nth(any % open.len().max(1)).copied() {
                        open.remove(&number);
                        pending.finish(number);
                    },
                    4 if cut.is_none() => {
                        pending.cut();
                        cut = Some(open.values().cloned().collect());
                    }
                    _ => {}
                }
                if cut.is_some() && let Some(delta) = pending.encode(slice).unwrap() {
                    deltas.push(delta);
                    let mut loaded = load(&deltas, 0, 1);
                    prop_assert_eq!(deltas.iter().map(|delta| delta.grown).sum::<i64>(), loaded.len() as i64);
                    let records: Vec<String> = records(&mut loaded).into_iter().map(|(record, _)| record).collect();
                    prop_assert_eq!(Some(records), cut.take());
                }
                prop_assert_eq!(pending.len(), open.len() as u64);
            }
        }

        #[test]
        fn arbitrary_bytes_are_records_or_an_error(bytes in vec(any::<u8>(), 0..60), group in any::<u8>()) {
            let loaded = pending((0, 1)).load(KeyGroup::from_index(group), &bytes, &mut Strays::new());
            prop_assert!(loaded.is_ok() || !bytes.is_empty());
        }
    }
}
