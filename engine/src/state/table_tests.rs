//! Tables, what is touched in them, and what a cut has, against a map.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};
use proptest::strategy::Strategy;

use super::*;

/// All keys have one hash: an entry is still the one of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
struct Colliding(u8);

impl Hash for Colliding {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u8(0);
    }
}

/// Counts keys in generations, and compares what was touched in each with a map of the counts.
fn count<K: TableKey + Copy + Ord + std::fmt::Debug>(generations: Vec<Vec<K>>) {
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
            let count = |_, _, (), state: &mut u64, now| {
                *state += 1;
                assert_eq!((now, *state), (found, expected[&key]));
                Ok(())
            };
            table.update(vec![(key, ())], || 0, count).unwrap();
            if found != Found::Touched {
                first.push(key);
            }
        }
        let before = table.entries_before;
        table.cut();
        assert_eq!(table.cut.delta.grown, table.entries as i64 - before as i64);
        let places = (0..table.cut_len()).map(|place| table.cut_entry(place).unwrap());
        let places: Vec<(K, u64)> = places.map(|entry| (entry.key, entry.state)).collect();
        assert_eq!(places, first.iter().map(|key| (*key, expected[key])).collect::<Vec<_>>());
        table.drop_cut();
    }
    assert_eq!(table.len(), expected.len() as u64);
    assert_eq!(content(&table), expected);
}

fn content<K: TableKey + Copy + Ord>(table: &Table<K, u64>) -> BTreeMap<K, u64> {
    let all = (0..table.parts()).flat_map(|part| table.entries_of(part));
    all.map(|entry| (entry.key, entry.state)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_is_touched_is_found_again(generations in vec(vec(0..40_u64, 0..60), 0..5)) {
        count(generations);
    }

    /// Records go on while the changes before a cut are encoded, a few entries at a time.
    #[test]
    fn a_delta_is_what_was_so_at_the_cut(
        generations in vec(vec((0..60_u64, any::<bool>()), 0..60), 1..6),
        slice in 1..5_usize,
    ) {
        let (mut table, mut copy, mut strays) = (Table::new(), Table::<u64, u64>::new(), Strays::new());
        let (mut at_cut, mut is_encoding) = (BTreeMap::new(), false);
        for records in generations {
            for (key, encodes) in records {
                let add = |_, _, (), state: &mut u64, _| {
                    *state += 1;
                    Ok(())
                };
                table.update(vec![(key, ())], || 0, add).unwrap();
                if encodes && is_encoding && let Some(delta) = table.encode(slice).unwrap() {
                    is_encoding = false;
                    delta.groups().for_each(|(group, e)| copy.load(group, &e.bytes, &mut strays).unwrap());
                    assert_eq!(content(&copy), at_cut);
                }
            }
            while is_encoding {
                if let Some(delta) = table.encode(slice).unwrap() {
                    is_encoding = false;
                    delta.groups().for_each(|(group, e)| copy.load(group, &e.bytes, &mut strays).unwrap());
                }
            }
            assert_eq!(content(&copy), at_cut);
            table.cut();
            (at_cut, is_encoding) = (content(&table), true);
        }
    }

    #[test]
    fn keys_with_one_hash_are_told_apart(generations in vec(vec(any::<u8>().prop_map(Colliding), 0..40), 0..4)) {
        count(generations);
    }
}
