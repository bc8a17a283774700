//! What of a table checkpoints keep: how it is cut, encoded and loaded.

use std::hash::BuildHasher;
use std::mem;
use std::ops::Range;

use hashbrown::hash_table::HashTable;

use crate::words::{Fingerprint, KeyGroup, Result};

use super::super::delta::{Delta, NotEntries, RawEntries, decode};
use super::super::describe::{Schema, Types};
use super::super::keep::{Held, Keep, Strays};
use super::{AHEAD, Cut, Grouping, LOOK_AFTER, Place, Table, TableKey, TableState};

impl<K: TableKey, S: TableState, G: Grouping<K>> Held for Table<K, S, G> {
    fn has_grown(&mut self) -> bool {
        let has_grown = mem::take(&mut self.has_grown) || Self::POINTS && self.records >= self.look_at;
        if has_grown {
            self.look_at = self.records + self.records / 4 + LOOK_AFTER;
            self.look_beside();
        }
        has_grown
    }

    fn len(&self) -> u64 {
        self.entries as u64
    }

    fn bytes(&self) -> u64 {
        let tables: usize = self.groups.iter().map(HashTable::allocation_size).sum();
        let lists = (self.touched.capacity() + self.cut.touched.capacity()) * size_of::<Place>();
        let deltas = self.cut.delta.bytes() + self.removed.bytes();
        (tables + lists + deltas + self.held_beside) as u64 + self.entries as u64 * self.beside
    }
}

impl<K: TableKey, S: TableState, G: Grouping<K>> Keep for Table<K, S, G> {
    fn cut(&mut self) {
        self.look_beside();
        debug_assert!(self.cut.touched.is_empty(), "the checkpoint before is encoded");
        self.cut.touched = mem::take(&mut self.touched);
        self.cut.next = 0;
        (self.records, self.look_at) = (0, LOOK_AFTER);
        // Behind what was encoded of the start of the run.
        self.cut.delta.append(mem::take(&mut self.removed));
        self.cut.delta.grown += self.entries as i64 - self.entries_before as i64;
        self.entries_before = self.entries;
        if self.generation == u32::MAX {
            // Once in more than 4 billion checkpoints.
            self.groups.iter_mut().flat_map(HashTable::iter_mut).for_each(|entry| {
                entry.generation = u32::from(entry.generation == u32::MAX);
            });
            self.generation = 1;
        }
        self.generation += 1;
    }

    fn drop_cut(&mut self) {
        self.cut = Cut::default();
    }

    fn encode(&mut self, entries: usize) -> Result<Option<Delta>, postcard::Error> {
        let end = self.cut.touched.len().min(self.cut.next + entries);
        for from in (self.cut.next..end).step_by(AHEAD) {
            let ahead = from..end.min(from + AHEAD);
            self.look_at(self.cut.touched[ahead.clone()].iter(), |_| 0);
            for place in ahead {
                // It is not found when a record has changed it since: then it was encoded before.
                if let Some(entry) = self.cut.find(place, &self.groups, self.generation) {
                    self.cut.encode(self.cut.touched[place].group(), entry);
                }
            }
        }
        self.cut.next = end;
        if let Some(error) = self.cut.failed.take() {
            return Err(error);
        }
        Ok((end == self.cut.touched.len()).then(|| mem::take(&mut self.cut).delta))
    }

    fn begin(&mut self, owns: &dyn Fn(KeyGroup) -> bool) -> Result<(), postcard::Error> {
        let rows = self.origin.rows.take();
        let own = rows.into_iter().flatten().filter(|(key, _)| owns(G::group(key)));
        own.into_iter().try_for_each(|(key, state)| self.insert_unwritten(key, state))
    }

    fn expect_types(&mut self, known: &Types) {
        self.origin.expect(known);
    }

    fn loaded(&mut self) -> Result<(), postcard::Error> {
        self.entries_before = self.entries;
        if !self.origin.converts() {
            return Ok(());
        }
        let Table { groups, cut, .. } = self;
        let groups = KeyGroup::all().zip(groups.iter());
        let mut all = groups.flat_map(|(group, entries)| entries.iter().map(move |entry| (group, entry)));
        all.try_for_each(|(group, entry)| cut.delta.put(group, &entry.key, &entry.state))
    }

    fn expect(&mut self, groups: Range<usize>, entries: u64) {
        self.allocate();
        let each = usize::try_from(entries).unwrap_or(0) / groups.len().max(1);
        let hasher = &self.hasher;
        for group in &mut self.groups[groups] {
            // A little more: they are not filled evenly.
            group.reserve(each + each / 16, |entry| hasher.hash_one(&entry.key));
        }
    }

    fn load(&mut self, group: KeyGroup, entries: &[u8], strays: &mut Strays) -> Result<(), NotEntries> {
        let (mut entries, mut ahead) = (RawEntries::new(entries), Vec::with_capacity(AHEAD));
        loop {
            for entry in entries.by_ref().take(AHEAD) {
                let raw = entry?;
                let key: K = decode(raw.key).map_err(|_| NotEntries)?;
                ahead.push((Place::of::<G, K>(&key, &self.hasher), key, raw));
            }
            if ahead.is_empty() {
                return Ok(());
            }
            self.look_at(ahead.iter().map(|(at, ..)| at), |_| 0);
            for (at, key, raw) in ahead.drain(..) {
                match raw.state {
                    Some(state) if at.group() == group => {
                        self.note_loaded(raw.key.len() + state.len());
                        let state = self.origin.read(state)?;
                        self.insert(at, key, state);
                    }
                    Some(state) => drop(strays.insert((group, raw.key.to_vec()), (at.group(), state.to_vec()))),
                    None if at.group() == group => self.remove_loaded(at, &key),
                    None => drop(strays.remove(&(group, raw.key.to_vec()))),
                }
            }
        }
    }

    fn adopt(&mut self, key: &[u8], state: &[u8]) -> Result<(), NotEntries> {
        let key: K = decode(key).map_err(|_| NotEntries)?;
        let state = self.origin.read(state)?;
        // An entry under its own group is newer than one under another.
        self.insert_unwritten(key, state).map_err(|_| NotEntries)
    }

    fn disown(&mut self, group: KeyGroup, key: &[u8]) {
        self.cut.delta.delete(group, key);
        self.cut.delta.grown -= 1;
    }

    fn has_changed(&self) -> bool {
        !self.touched.is_empty() || self.cut.delta.count() + self.removed.count() > 0
    }

    fn schema(&self) -> Schema {
        self.origin.schema()
    }

    fn add_to(&self, print: &Fingerprint) {
        for entry in self.groups.iter().flatten() {
            let state = match self.origin.same {
                None => postcard::to_stdvec(&entry.state).ok(),
                Some(same) => Some(same(&entry.state)),
            };
            print.add(&(postcard::to_stdvec(&entry.key).ok(), state));
        }
    }
}
