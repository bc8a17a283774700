//! Key groups: how keys are spread over workers, and over the sections of a checkpoint. The group
//! of a key is the same in every process and with every number of workers, so another number of
//! workers changes only who owns which group.

use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The number of key groups.
pub(crate) const KEY_GROUPS: usize = 256;

/// One of the [`KEY_GROUPS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyGroup(u8);

impl KeyGroup {
    /// The group of a key, by its [`stable_hash`].
    #[inline(always)]
    pub(crate) fn of<K: Hash + ?Sized>(key: &K) -> KeyGroup {
        KeyGroup((stable_hash(key) >> 56) as u8)
    }

    /// All of them, in order.
    pub(crate) fn all() -> impl Iterator<Item = KeyGroup> {
        (0..=u8::MAX).map(KeyGroup)
    }

    /// The group of that number.
    pub(crate) fn from_index(index: u8) -> KeyGroup {
        KeyGroup(index)
    }

    /// The worker that owns the group. Each worker owns neighboring groups.
    #[inline]
    pub(crate) fn worker(self, peers: usize) -> usize {
        self.index() * peers / KEY_GROUPS
    }

    /// Its number.
    #[inline]
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A hash that is the same in every process and on every machine: xxh3 of what the value's `Hash`
/// feeds to a hasher. The standard library's hasher may change with any release, and has another
/// seed in each process.
#[inline(always)]
pub(crate) fn stable_hash<T: Hash + ?Sized>(value: &T) -> u64 {
    let mut fed = Fed::default();
    value.hash(&mut fed);
    fed.finish()
}

/// What a value feeds to its hasher. Most keys are short: then one call hashes all of it.
struct Fed {
    short: [u8; 32],
    length: usize,
    long: Option<Box<Xxh3>>,
}

impl Default for Fed {
    #[inline]
    fn default() -> Fed {
        Fed { short: [0; 32], length: 0, long: None }
    }
}

impl Fed {
    #[cold]
    #[inline(never)]
    fn write_long(&mut self, bytes: &[u8]) {
        let (short, length) = (&self.short, self.length);
        let long = self.long.get_or_insert_with(|| {
            let mut long = Box::new(Xxh3::new());
            long.update(&short[..length]);
            long
        });
        long.update(bytes);
    }
}

#[cold]
#[inline(never)]
fn digest(long: &Xxh3) -> u64 {
    long.digest()
}

impl Hasher for Fed {
    // Inlined, so that for a key of one size nothing is left of the choice by length.
    #[inline(always)]
    fn finish(&self) -> u64 {
        match &self.long {
            None => xxh3_64(&self.short[..self.length]),
            Some(long) => digest(long),
        }
    }

    #[inline(always)]
    fn write(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        match self.short.get_mut(self.length..end) {
            Some(free) if self.long.is_none() => {
                free.copy_from_slice(bytes);
                self.length = end;
            }
            _ => self.write_long(bytes),
        }
    }

    // As little-endian bytes, so that the group is the same on every machine.

    #[inline]
    fn write_u16(&mut self, number: u16) {
        self.write(&number.to_le_bytes());
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    #[inline]
    fn write_u128(&mut self, number: u128) {
        self.write(&number.to_le_bytes());
    }

    #[inline]
    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

    use super::*;

    /// Checkpoints are cut by group: these must never change.
    #[test]
    fn the_group_of_a_key_never_changes() {
        // The bytes that are hashed, and what the xxhash package of Python says of them.
        assert_eq!(stable_hash(&7_u64), xxh3_64(&[7, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(stable_hash("key"), xxh3_64(b"key\xff"));
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2);
        let groups = [0_u64, 1, 7, 1 << 40].map(|key| KeyGroup::of(&key).index());
        assert_eq!(groups, [199, 47, 129, 180]);
        assert_eq!(KeyGroup::of("customer-17").index(), 62);
    }

    #[test]
    fn every_worker_owns_groups_and_every_group_has_one_owner() {
        for peers in [1, 2, 3, 4, 7, 64, 256] {
            let owners: Vec<usize> = (0..=255).map(|group| KeyGroup(group).worker(peers)).collect();
            assert!(owners.is_sorted());
            assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), peers);
            assert_eq!(owners.last(), Some(&(peers - 1)));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn what_is_fed_in_parts_hashes_as_a_whole(parts in vec(vec(any::<u8>(), 0..20), 0..12)) {
            let mut fed = Fed::default();
            parts.iter().for_each(|part| fed.write(part));
            prop_assert_eq!(fed.finish(), xxh3_64(&parts.concat()));
        }
    }
}
