//! The positions of a source: a next offset for each of its partitions.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::iter::Map;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::EventTime;

/// The name of a partition within its source, such as `orders/3` or a path. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Partition(Arc<str>);

impl Partition {
    /// A partition by its name.
    pub fn new(name: impl Into<Arc<str>>) -> Partition {
        Partition(name.into())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A position in a partition: the offset of the *next* record to read, so that gaps need no record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The positions of a source, by partition. A partition that is absent did not move.
///
/// The type is opaque: what a source has to remember can grow without a change to the code that
/// passes it on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Offsets {
    next: BTreeMap<Partition, Offset>,
    /// What is known of event time in partitions whose stream has a watermark.
    times: BTreeMap<Partition, PartitionTime>,
}

/// What is known of event time in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct PartitionTime {
    /// The largest event time so far; [`EventTime::END`] when it has ended.
    pub(crate) largest: EventTime,
    /// Whether it has had no records for a while, and does not hold time back.
    pub(crate) is_idle: bool,
}

impl PartitionTime {
    /// Nothing is known.
    pub(crate) const UNKNOWN: PartitionTime = PartitionTime { largest: EventTime::NONE, is_idle: false };
}

impl Offsets {
    /// Positions of no partition.
    pub fn new() -> Offsets {
        Offsets::default()
    }

    /// Sets the next offset of a partition.
    pub fn set(&mut self, partition: Partition, next: Offset) {
        self.next.insert(partition, next);
    }

    /// The next offset of a partition.
    pub fn get(&self, partition: &Partition) -> Option<Offset> {
        self.next.get(partition).copied()
    }

    /// Adds the positions of `newer`, which replace those of the same partitions.
    pub fn merge(&mut self, newer: &Offsets) {
        self.merge_positions(newer);
        self.times.extend(newer.times.iter().map(|(partition, time)| (partition.clone(), *time)));
    }

    /// Adds the positions of `newer`, and nothing else of it.
    pub(crate) fn merge_positions(&mut self, newer: &Offsets) {
        self.next.extend(newer.next.iter().map(|(partition, next)| (partition.clone(), *next)));
    }

    /// Adds what is known of event time in partitions.
    pub(crate) fn set_times(&mut self, times: impl IntoIterator<Item = (Partition, PartitionTime)>) {
        self.times.extend(times);
    }

    /// What is known of event time in partitions.
    pub(crate) fn times(&self) -> &BTreeMap<Partition, PartitionTime> {
        &self.times
    }

    /// These positions, with those of `newer` in place of the same partitions.
    #[must_use]
    pub(crate) fn merged(mut self, newer: &Offsets) -> Offsets {
        self.merge(newer);
        self
    }

    /// Removes a partition.
    pub fn remove(&mut self, partition: &Partition) {
        self.next.remove(partition);
        self.times.remove(partition);
    }

    /// Whether it has no partition.
    pub fn is_empty(&self) -> bool {
        self.next.is_empty() && self.times.is_empty()
    }

    /// All partitions with their next offsets, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Partition, Offset)> {
        self.into_iter()
    }
}

impl Extend<(Partition, Offset)> for Offsets {
    fn extend<I: IntoIterator<Item = (Partition, Offset)>>(&mut self, entries: I) {
        self.next.extend(entries);
    }
}

impl FromIterator<(Partition, Offset)> for Offsets {
    fn from_iter<I: IntoIterator<Item = (Partition, Offset)>>(entries: I) -> Offsets {
        Offsets { next: entries.into_iter().collect(), times: BTreeMap::new() }
    }
}

impl IntoIterator for Offsets {
    type Item = (Partition, Offset);
    type IntoIter = btree_map::IntoIter<Partition, Offset>;

    fn into_iter(self) -> Self::IntoIter {
        self.next.into_iter()
    }
}

impl<'o> IntoIterator for &'o Offsets {
    type Item = (&'o Partition, Offset);
    type IntoIter = Map<btree_map::Iter<'o, Partition, Offset>, fn((&'o Partition, &'o Offset)) -> Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.next.iter().map(|(partition, next)| (partition, *next))
    }
}
