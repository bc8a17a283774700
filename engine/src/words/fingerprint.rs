//! What a sink wrote, as a number: the same for the same records in any order, and different when a
//! record is missing, duplicated or changed. A comparison compares its runs by it, without keeping
//! what they wrote.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The sum of the hashes of all records that a sink wrote. It is only meaningful within one
/// process.
#[derive(Debug, Default)]
pub struct Fingerprint {
    // Relaxed: both are read after the threads that add to them have ended their run.
    records: AtomicU64,
    sum: AtomicU64,
}

impl Fingerprint {
    /// Adds a record, in the form in which the other side gets it.
    pub fn add(&self, record: &impl Hash) {
        let mut hasher = DefaultHasher::new();
        record.hash(&mut hasher);
        // A sum, because records may come in any order. Not an exclusive or, in which two equal
        // records would cancel out.
        self.sum.fetch_add(hasher.finish(), Relaxed);
        self.records.fetch_add(1, Relaxed);
    }

    pub(crate) fn print(&self) -> Print {
        Print { records: self.records.load(Relaxed), sum: self.sum.load(Relaxed) }
    }
}

/// The value of a fingerprint when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Print {
    pub(crate) records: u64,
    pub(crate) sum: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(records: &[&str]) -> Print {
        let fingerprint = Fingerprint::default();
        records.iter().for_each(|record| fingerprint.add(record));
        fingerprint.print()
    }

    #[test]
    fn it_is_of_the_records_and_not_of_their_order() {
        assert_eq!(print(&["a", "b", "c"]), print(&["c", "a", "b"]));
        assert_ne!(print(&["a", "b"]), print(&["a", "c"]));
        assert_ne!(print(&["a"]), print(&["a", "a"]));
        assert_ne!(print(&[]), print(&["a", "a"]), "equal records do not cancel out");
    }
}
