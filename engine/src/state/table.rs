//! State by key: a hash table for each key group, so that only one group at a time grows. One table
//! of a million entries stops its worker for 135 to 212 ms when it doubles, 256 of them for 1.8 ms,
//! at 0.8 to 0.9 of its speed.
//!
//! The first touch of an entry in a checkpoint is noted. So the changes of a checkpoint are a list,
//! and taking them costs nothing while records run.

use std::hash::{BuildHasher, Hash};
use std::mem;

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry as Slot, HashTable};

use crate::words::{KEY_GROUPS, KeyGroup};

/// A key with its state.
#[derive(Debug)]
pub(crate) struct Entry<K, S> {
    pub(crate) key: K,
    pub(crate) state: S,
    /// The generation in which it was touched last, and its place among what that one touched.
    generation: u32,
    place: u32,
}

/// What a touch has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No entry: it was added.
    Nothing,
    /// An entry that was not touched since [`Table::take_touched`].
    Untouched,
    Touched,
}

/// An entry that was touched: where to find it again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touched {
    group: KeyGroup,
    hash: u64,
}

/// The state of an operator on a worker.
#[derive(Debug)]
pub(crate) struct Table<K, S> {
    groups: Vec<HashTable<Entry<K, S>>>,
    /// Seeded for each table: keys may come from somebody who wants them to collide.
    hasher: DefaultHashBuilder,
    generation: u32,
    touched: Vec<Touched>,
}

impl<K: Hash + Eq, S> Table<K, S> {
    pub(crate) fn new() -> Table<K, S> {
        let groups = (0..KEY_GROUPS).map(|_| HashTable::new()).collect();
        Table { groups, hasher: DefaultHashBuilder::default(), generation: 1, touched: Vec::new() }
    }

    /// The entry of a key, which is added with the state that `zero` makes if there is none.
    #[inline]
    pub(crate) fn touch(&mut self, key: K, zero: impl FnOnce() -> S) -> (&mut Entry<K, S>, Found) {
        let (group, hash) = (KeyGroup::of(&key), self.hasher.hash_one(&key));
        let Table { groups, hasher, generation, touched } = self;
        let place = touched.len() as u32;
        let slot = groups[group.index()].entry(hash, |entry| entry.key == key, |entry| hasher.hash_one(&entry.key));
        match slot {
            Slot::Vacant(slot) => {
                touched.push(Touched { group, hash });
                let entry = Entry { key, state: zero(), generation: *generation, place };
                (slot.insert(entry).into_mut(), Found::Nothing)
            }
            Slot::Occupied(slot) => {
                let entry = slot.into_mut();
                if entry.generation == *generation {
                    return (entry, Found::Touched);
                }
                (entry.generation, entry.place) = (*generation, place);
                touched.push(Touched { group, hash });
                (entry, Found::Untouched)
            }
        }
    }

    /// What was touched since the last call, in the order of the first touch. A new generation
    /// begins.
    pub(crate) fn take_touched(&mut self) -> Vec<Touched> {
        self.generation += 1;
        mem::take(&mut self.touched)
    }

    /// The entry of a place in what was just taken, as long as nothing was touched since.
    pub(crate) fn find(&self, touched: &[Touched], place: usize) -> Option<&Entry<K, S>> {
        let Touched { group, hash } = *touched.get(place)?;
        let is_it = |entry: &Entry<K, S>| entry.place as usize == place && entry.generation + 1 == self.generation;
        self.groups[group.index()].find(hash, is_it)
    }

    /// The entries of a key group, in no order.
    pub(crate) fn group(&self, group: usize) -> impl Iterator<Item = &Entry<K, S>> {
        self.groups[group].iter()
    }

    /// The number of entries.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.groups.iter().map(HashTable::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, proptest};
    use proptest::strategy::Strategy;

    use super::*;

    /// All keys have one hash: an entry is still the one of its key.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    struct Colliding(u8);

    impl Hash for Colliding {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            state.write_u8(0);
        }
    }

    /// Counts keys in generations, and compares what was touched in each with a map of the counts.
    fn count<K: Hash + Eq + Copy + Ord + std::fmt::Debug>(generations: Vec<Vec<K>>) {
        let (mut table, mut expected) = (Table::new(), BTreeMap::<K, u64>::new());
        for keys in generations {
            let mut first = Vec::new();
            for key in keys {
                let is_new = !expected.contains_key(&key);
                let found = match (is_new, first.contains(&key)) {
                    (true, _) => Found::Nothing,
                    (false, false) => Found::Untouched,
                    (false, true) => Found::Touched,
                };
                *expected.entry(key).or_default() += 1;
                let (entry, now) = table.touch(key, || 0);
                entry.state += 1;
                assert_eq!((now, entry.state), (found, expected[&key]));
                if found != Found::Touched {
                    first.push(key);
                }
            }
            let touched = table.take_touched();
            let places = (0..touched.len()).map(|place| table.find(&touched, place).unwrap());
            let places: Vec<(K, u64)> = places.map(|entry| (entry.key, entry.state)).collect();
            assert_eq!(places, first.iter().map(|key| (*key, expected[key])).collect::<Vec<_>>());
        }
        assert_eq!(table.len(), expected.len());
        let all = (0..KEY_GROUPS).flat_map(|group| table.group(group)).map(|entry| (entry.key, entry.state));
        assert_eq!(all.collect::<BTreeMap<_, _>>(), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn what_is_touched_is_found_again(generations in vec(vec(0..40_u64, 0..60), 0..5)) {
            count(generations);
        }

        #[test]
        fn keys_with_one_hash_are_told_apart(generations in vec(vec(any::<u8>().prop_map(Colliding), 0..40), 0..4)) {
            count(generations);
        }
    }
}
