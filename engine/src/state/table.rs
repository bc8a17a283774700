//! State by key: a hash table for each key group, so that only one group at a time grows. One table
//! of a million entries stops its worker for 135 to 212 ms when it doubles, 256 of them for 1.8 ms,
//! at 0.8 to 0.9 of its speed. Checkpoints are loaded group by group, so that what is loaded stays
//! in the caches: with entries anywhere in all tables it took three times as long.
//!
//! The first touch of an entry in a checkpoint is noted. So the changes of a checkpoint are a list,
//! and a cut only puts that list aside. It is encoded later, in slices between batches; a record
//! that changes an entry of the list before its turn has it encoded first.

use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::mem;

use hashbrown::DefaultHashBuilder;
use hashbrown::hash_table::{Entry as Slot, HashTable};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::words::{KEY_GROUPS, KeyGroup, Result};

use super::delta::Delta;
use super::origin::Origin;
pub(crate) use super::place::{ByFirst, ByKey, Grouping, Place};

mod kept;

/// A key of the engine's tables.
pub(crate) trait TableKey: Hash + Eq + Clone + Serialize + DeserializeOwned + 'static {}

impl<K: Hash + Eq + Clone + Serialize + DeserializeOwned + 'static> TableKey for K {}

/// A state of the engine's tables.
pub(crate) trait TableState: Serialize + DeserializeOwned + 'static {}

impl<S: Serialize + DeserializeOwned + 'static> TableState for S {}

/// Tables with more entries than this do not fit into the caches of a core.
const CACHED_MAX: usize = 32_768;
/// So many entries are loaded into the caches before the first of them is used.
const AHEAD: usize = 16;

/// So many entries are looked at to see how large they are, and so many records come before the
/// first look: few entries may become large.
const SAMPLE: usize = 64;
const LOOK_AFTER: usize = 1_024;
/// What an allocation takes in addition to its content.
const ALLOCATION: usize = 16;

/// A key with its state.
#[derive(Debug)]
pub(crate) struct Entry<K, S> {
    pub(crate) key: K,
    pub(crate) state: S,
    /// The generation in which it was touched last, and its place among what that one touched.
    generation: u32,
    place: u32,
}

/// An entry that is removed.
#[derive(Debug)]
pub(crate) struct Taken<K, S> {
    pub(crate) key: K,
    pub(crate) state: S,
    /// Its place among what was touched since the last cut, if it was.
    pub(crate) touched: Option<usize>,
}

/// What a touch has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No entry: it was added.
    Nothing,
    /// An entry that was not touched since the last [cut](Table::cut).
    Untouched,
    Touched,
}

/// The state of an operator on a worker.
#[derive(Debug)]
pub(crate) struct Table<K, S, G = ByKey> {
    /// By key group; none before the first entry, because a job may have thousands of operators.
    groups: Vec<HashTable<Entry<K, S>>>,
    /// Seeded for each table: keys may come from an attacker who wants them to collide.
    hasher: DefaultHashBuilder,
    entries: usize,
    /// A table of a group has grown.
    has_grown: bool,
    /// The number of entries at the last cut.
    entries_before: usize,
    /// Counts cuts. Entries that were loaded, and never touched, have generation 0.
    generation: u32,
    /// Where each entry is that was touched in this generation.
    touched: Vec<Place>,
    /// What was touched in the generation before, until it is encoded.
    cut: Cut,
    /// The keys that were removed in this generation.
    removed: Delta,
    /// What an entry points to, on average, in bytes.
    beside: u64,
    /// The number of records since the last cut, and that at which entries are looked at again.
    records: usize,
    look_at: usize,
    /// The number of entries that were loaded, and what they point to.
    loaded: (u64, u64),
    /// Where the entries of a batch are, kept for the memory.
    places: Vec<Place>,
    /// What its operator holds in addition, in bytes: it counts as part of the table.
    pub(crate) held_beside: usize,
    origin: Origin<K, S>,
    grouping: PhantomData<G>,
}

/// The list of a checkpoint that is being encoded.
#[derive(Debug, Default)]
struct Cut {
    touched: Vec<Place>,
    /// The next one to encode, once encoding has begun.
    next: usize,
    delta: Delta,
    /// The first entry that could not be encoded.
    failed: Option<postcard::Error>,
}

impl<K: TableKey, S: TableState, G: Grouping<K>> Table<K, S, G> {
    pub(crate) fn new() -> Table<K, S, G> {
        Table::with(Origin::default())
    }

    pub(crate) fn with(origin: Origin<K, S>) -> Table<K, S, G> {
        Table {
            groups: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            entries: 0,
            has_grown: false,
            entries_before: 0,
            generation: 1,
            touched: Vec::new(),
            cut: Cut::default(),
            removed: Delta::default(),
            beside: 0,
            records: 0,
            look_at: LOOK_AFTER,
            loaded: (0, 0),
            places: Vec::new(),
            held_beside: 0,
            origin,
            grouping: PhantomData,
        }
    }

    /// Calls `change` for each record, in order, with its index and the state of its key, which
    /// begins as `zero`.
    ///
    /// # Errors
    /// The first error of `change`.
    #[inline]
    pub(crate) fn update<I>(
        &mut self,
        records: Vec<(K, I)>,
        zero: impl Fn() -> S,
        change: impl FnMut(usize, K, I, &mut S, Found) -> Result<()>,
    ) -> Result<()> {
        self.update_looking(records, |_| 0, zero, change)
    }

    /// As [`update`](Table::update). `look` reads what a state points to, some records before that
    /// is needed: then it is in the processor's caches.
    ///
    /// # Errors
    /// The first error of `change`.
    #[inline]
    pub(crate) fn update_looking<I>(
        &mut self,
        records: Vec<(K, I)>,
        look: impl Fn(&S) -> u32 + Copy,
        zero: impl Fn() -> S,
        mut change: impl FnMut(usize, K, I, &mut S, Found) -> Result<()>,
    ) -> Result<()> {
        let mut places = mem::take(&mut self.places);
        places.clear();
        // In a pass of their own: a loop this short keeps many records in the processor at once.
        places.extend(records.iter().map(|(key, _)| Place::of::<G, K>(key, &self.hasher)));
        self.allocate();
        self.records += records.len();
        let mut records = records.into_iter().enumerate();
        for ahead in places.chunks(AHEAD) {
            self.look_at(ahead.iter(), look);
            let Table { groups, hasher, generation, touched, cut, entries, has_grown, .. } = self;
            for (&place, (index, (key, input))) in ahead.iter().zip(&mut records) {
                let group = &mut groups[place.group().index()];
                // `entry` would make room for one more first.
                if let Some(entry) = group.find_mut(place.0, |entry| entry.key == key) {
                    if entry.generation == *generation {
                        change(index, key, input, &mut entry.state, Found::Touched)?;
                        continue;
                    }
                    cut.encode_before_its_turn(place.group(), entry, *generation);
                    (entry.generation, entry.place) = (*generation, touched.len() as u32);
                    touched.push(place);
                    change(index, key, input, &mut entry.state, Found::Untouched)?;
                    continue;
                }
                let entry =
                    Entry { key: key.clone(), state: zero(), generation: *generation, place: touched.len() as u32 };
                touched.push(place);
                *entries += 1;
                *has_grown |= group.len() == group.capacity();
                let mut entry = group.insert_unique(place.0, entry, |entry| hasher.hash_one(&entry.key));
                change(index, key, input, &mut entry.get_mut().state, Found::Nothing)?;
            }
        }
        self.places = places;
        Ok(())
    }

    /// Looks at entries that are needed next. These looks do not depend on each other, so the
    /// processor waits for many of them at once.
    #[inline]
    pub(crate) fn look_at<'p>(&self, places: impl Iterator<Item = &'p Place>, look: impl Fn(&S) -> u32) {
        if self.entries <= CACHED_MAX {
            return;
        }
        let of = |entry: &Entry<K, S>| entry.generation ^ look(&entry.state);
        let look = |place: &Place| self.groups[place.group().index()].find(place.0, |_| true).map_or(0, of);
        std::hint::black_box(places.map(look).fold(0, u32::wrapping_add));
    }

    fn allocate(&mut self) {
        self.groups.extend((self.groups.len()..KEY_GROUPS).map(|_| HashTable::new()));
    }

    /// Estimates what an entry points to: as much as it is long when it is encoded.
    fn look_beside(&mut self) {
        if !Self::POINTS || self.touched.is_empty() {
            return;
        }
        let sample = self.touched.iter().step_by(self.touched.len().div_ceil(SAMPLE)).filter_map(|place| {
            // By the hash alone: which of two entries with one hash it is does not matter here.
            self.groups[place.group().index()].find(place.0, |_| true)
        });
        let size = |entry: &Entry<K, S>| {
            let size = postcard::experimental::serialized_size(&entry.key).unwrap_or(0);
            size + postcard::experimental::serialized_size(&entry.state).unwrap_or(0) + ALLOCATION
        };
        let (count, bytes) = sample.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + size(entry)));
        let now = bytes as u64 / count.max(1);
        // Moves slowly when few of the entries were touched.
        let (few, all) = (self.touched.len() as u64, self.entries.max(1) as u64);
        self.beside = (self.beside * all.saturating_sub(few) + now * few.min(all)) / all;
    }

    /// Whether entries point to anything.
    const POINTS: bool = mem::needs_drop::<K>() || mem::needs_drop::<S>();

    /// An entry is loaded that was so long when it was encoded.
    fn note_loaded(&mut self, length: usize) {
        if Self::POINTS {
            let (count, bytes) = &mut self.loaded;
            (*count, *bytes) = (*count + 1, *bytes + (length + ALLOCATION) as u64);
            self.beside = *bytes / *count;
        }
    }

    /// The number of entries that were touched since the last cut.
    pub(crate) fn touched_len(&self) -> usize {
        self.touched.len()
    }

    /// The number of entries that were touched between the last two cuts.
    pub(crate) fn cut_len(&self) -> usize {
        self.cut.touched.len()
    }

    /// One of them, in the order of the first touch, as long as it is not encoded and nothing was
    /// touched since the cut.
    pub(crate) fn cut_entry(&self, place: usize) -> Option<&Entry<K, S>> {
        self.cut.find(place, &self.groups, self.generation)
    }

    /// Where the entry of a record of the last [update](Table::update) is.
    pub(crate) fn updated_place(&self, record: usize) -> Place {
        self.places[record]
    }

    /// Changes an entry of that place for which `is_it` holds. Of two entries with one hash it is
    /// any. It counts as touched; `alter` is told its place among what was touched since the last
    /// cut, if it was before.
    pub(crate) fn alter<R>(
        &mut self,
        place: Place,
        is_it: impl Fn(&S) -> bool,
        alter: impl FnOnce(&K, &mut S, Option<usize>) -> R,
    ) -> Option<R> {
        let Table { groups, hasher, generation, touched, cut, .. } = self;
        let group = groups.get_mut(place.group().index())?;
        let entry = group.find_mut(place.0, |entry| is_it(&entry.state) && place.is_of(&entry.key, hasher))?;
        let before = (entry.generation == *generation).then_some(entry.place as usize);
        if before.is_none() {
            cut.encode_before_its_turn(place.group(), entry, *generation);
            (entry.generation, entry.place) = (*generation, touched.len() as u32);
            touched.push(place);
        }
        Some(alter(&entry.key, &mut entry.state, before))
    }

    /// Calls `f` with each state that was loaded, and its place, before any record.
    pub(crate) fn look_through(&mut self, mut f: impl FnMut(&mut S, Place)) {
        for entry in self.groups.iter_mut().flatten() {
            f(&mut entry.state, Place::of::<G, K>(&entry.key, &self.hasher));
        }
    }

    /// Removes an entry of that place for which `is_it` holds. Of two with one hash it is any.
    ///
    /// # Errors
    /// When the key cannot be encoded.
    pub(crate) fn take(
        &mut self,
        place: Place,
        is_it: impl Fn(&K, &S) -> bool,
    ) -> Result<Option<Taken<K, S>>, postcard::Error> {
        let Some(group) = self.groups.get_mut(place.group().index()) else { return Ok(None) };
        let hasher = &self.hasher;
        let is_it = |entry: &Entry<K, S>| is_it(&entry.key, &entry.state) && place.is_of(&entry.key, hasher);
        let Ok(found) = group.find_entry(place.0, is_it) else { return Ok(None) };
        self.cut.encode_before_its_turn(place.group(), found.get(), self.generation);
        let (Entry { key, state, generation, place: touched }, _) = found.remove();
        self.entries -= 1;
        self.removed.remove(place.group(), &key)?;
        Ok(Some(Taken { key, state, touched: (generation == self.generation).then_some(touched as usize) }))
    }

    /// All entries, with their places, in no order.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&Entry<K, S>, Place)> {
        self.groups.iter().flatten().map(|entry| (entry, Place::of::<G, K>(&entry.key, &self.hasher)))
    }

    /// The parts of the table, for [`entries_of`](Table::entries_of).
    pub(crate) fn parts(&self) -> usize {
        self.groups.len()
    }

    /// The entries of a part, in no order.
    pub(crate) fn entries_of(&self, part: usize) -> impl Iterator<Item = &Entry<K, S>> {
        self.groups[part].iter()
    }

    /// Adds an entry, or replaces its state. It counts as not touched.
    fn insert(&mut self, at: Place, key: K, state: S) {
        self.allocate();
        let hasher = &self.hasher;
        let group = &mut self.groups[at.group().index()];
        match group.entry(at.0, |entry| entry.key == key, |entry| hasher.hash_one(&entry.key)) {
            Slot::Vacant(slot) => {
                slot.insert(Entry { key, state, generation: 0, place: 0 });
                self.entries += 1;
            }
            Slot::Occupied(slot) => slot.into_mut().state = state,
        }
    }

    /// Adds an entry, unless its key has one, that no file of a checkpoint has.
    fn insert_unwritten(&mut self, key: K, state: S) -> Result<(), postcard::Error> {
        let at = Place::of::<G, K>(&key, &self.hasher);
        self.allocate();
        if self.groups[at.group().index()].find(at.0, |entry| entry.key == key).is_none() {
            // It was not touched: it is no update.
            let before = self.cut.delta.bytes();
            self.cut.delta.put(at.group(), &key, &state)?;
            self.note_loaded(self.cut.delta.bytes() - before);
            self.insert(at, key, state);
        }
        Ok(())
    }

    fn remove_loaded(&mut self, at: Place, key: &K) {
        let Some(group) = self.groups.get_mut(at.group().index()) else { return };
        if let Ok(entry) = group.find_entry(at.0, |entry| entry.key == *key) {
            entry.remove();
            self.entries -= 1;
        }
    }
}

impl Cut {
    /// The entry of that place in the list, unless it was touched again since.
    fn find<'g, K, S>(
        &self,
        place: usize,
        groups: &'g [HashTable<Entry<K, S>>],
        generation: u32,
    ) -> Option<&'g Entry<K, S>> {
        let at = *self.touched.get(place)?;
        let is_it = |entry: &Entry<K, S>| entry.place as usize == place && entry.generation + 1 == generation;
        groups[at.group().index()].find(at.0, is_it)
    }

    /// A record changes an entry that may be in the list and not encoded yet.
    #[inline]
    fn encode_before_its_turn<K: TableKey, S: TableState>(
        &mut self,
        group: KeyGroup,
        entry: &Entry<K, S>,
        generation: u32,
    ) {
        if entry.generation + 1 == generation && (self.next..self.touched.len()).contains(&(entry.place as usize)) {
            self.encode(group, entry);
        }
    }

    fn encode<K: TableKey, S: TableState>(&mut self, group: KeyGroup, entry: &Entry<K, S>) {
        let encoded = self.delta.put(group, &entry.key, &entry.state);
        if let Err(error) = encoded {
            self.failed.get_or_insert(error);
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
