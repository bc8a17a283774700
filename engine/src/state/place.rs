//! Where the entry of a key is in a table: its key group, and its hash there.

use std::hash::{BuildHasher, Hash};

use hashbrown::DefaultHashBuilder;

use crate::words::KeyGroup;

/// Which key group a key of a table belongs to: that by which its records came to this worker.
pub(crate) trait Grouping<K>: 'static {
    fn group(key: &K) -> KeyGroup;
}

/// The group of the key.
#[derive(Debug)]
pub(crate) enum ByKey {}

impl<K: Hash> Grouping<K> for ByKey {
    #[inline(always)]
    fn group(key: &K) -> KeyGroup {
        KeyGroup::of(key)
    }
}

/// The group of the first part of the key: records came by it alone.
#[derive(Debug)]
pub(crate) enum ByFirst {}

impl<K: Hash, W: 'static> Grouping<(K, W)> for ByFirst {
    #[inline(always)]
    fn group((first, _): &(K, W)) -> KeyGroup {
        KeyGroup::of(first)
    }
}

/// Where the entry of a key is: the hash of the key, with its group in those of its bits that a
/// hash table does not use. A table takes its slots from the lowest bits and its tags from the
/// highest seven.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place(pub(super) u64);

impl Place {
    const SHIFT: u32 = 40;

    #[inline]
    pub(super) fn of<G: Grouping<K>, K: Hash>(key: &K, hasher: &DefaultHashBuilder) -> Place {
        let (group, hash) = (G::group(key).index() as u64, hasher.hash_one(key));
        Place(hash & !(0xff << Place::SHIFT) | group << Place::SHIFT)
    }

    /// Whether a key of its group is at this place. A hash table itself compares only seven bits.
    pub(super) fn is_of<K: Hash>(self, key: &K, hasher: &DefaultHashBuilder) -> bool {
        (self.0 ^ hasher.hash_one(key)) & !(0xff << Place::SHIFT) == 0
    }

    #[inline]
    pub(super) fn group(self) -> KeyGroup {
        KeyGroup::from_index((self.0 >> Place::SHIFT) as u8)
    }
}
