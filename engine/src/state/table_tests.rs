//! Tables, what is touched in them, and what a cut has, against a map.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};
use proptest::strategy::Strategy;

use super::super::keep::{Held, Keep, Strays};
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

/// A tag of a hash table has seven bits, and a group of it many entries with the same one.
#[test]
fn all_entries_of_a_window_are_taken_whatever_their_hashes() {
    let mut table = Table::<(u64, i64), u64, ByFirst>::new();
    let records = (0..100_000_u64).map(|key| ((key, (key % 3) as i64), ())).collect();
    table.update(records, || 1, |_, _, (), _, _| Ok(())).unwrap();
    for window in 0..3 {
        let places: Vec<Place> =
            table.places().filter(|(entry, _)| entry.key.1 == window).map(|(_, place)| place).collect();
        let mut taken: Vec<u64> = Vec::new();
        for place in places {
            let Taken { key, .. } = table.take(place, |(_, own), _| *own == window).unwrap().expect("it is there");
            taken.push(key.0);
        }
        taken.sort_unstable();
        assert!(taken.into_iter().eq((0..100_000).filter(|key| (key % 3) as i64 == window)));
    }
    assert_eq!(table.len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Entries are touched, altered and taken, also while the changes before a cut are encoded.
    #[test]
    fn what_is_taken_is_gone_from_what_is_loaded_too(
        steps in vec((0..8_u8, any::<u8>()), 0..300),
        slice in 1..5_usize,
    ) {
        let mut table = Table::<u8, u64>::new();
        let (mut expected, mut deltas) = (BTreeMap::<u8, u64>::new(), Vec::<Delta>::new());
        let mut cut: Option<BTreeMap<u8, u64>> = None;
        for (step, any) in steps {
            match step {
                3 => {
                    // As a firing does: it changes an entry, and may find that nothing is left.
                    let key = any % 40;
                    let place = table.places().find(|(entry, _)| entry.key == key).map(|(_, at)| at);
                    if let Some(place) = place {
                        *expected.get_mut(&key).unwrap() += 100;
                        table.alter(place, |_| true, |_, state, _| *state += 100).unwrap();
                        if any >= 128 {
                            let taken = table.take(place, |own, _| *own == key).unwrap().unwrap();
                            assert_eq!(expected.remove(&key), Some(taken.state));
                        }
                    }
                }
                0..4 => {
                    let key = any % 40;
                    *expected.entry(key).or_default() += 1;
                    let add = |_, _, (), state: &mut u64, _| {
                        *state += 1;
                        Ok(())
                    };
                    table.update(vec![(key, ())], || 0, add).unwrap();
                }
                4 => {
                    let of = any % 5;
                    let places: Vec<_> = table.places().filter(|(entry, _)| entry.key % 5 == of).map(|(_, at)| at).collect();
                    for place in places {
                        let Taken { key, state, .. } = table.take(place, |key, _| key % 5 == of).unwrap().unwrap();
                        assert_eq!(expected.remove(&key), Some(state));
                    }
                }
                5 if cut.is_none() => {
                    table.cut();
                    cut = Some(expected.clone());
                }
                _ => {}
            }
            if cut.is_some() && let Some(delta) = table.encode(slice).unwrap() {
                deltas.push(delta);
                let (mut loaded, mut strays) = (Table::<u8, u64>::new(), Strays::new());
                for (group, entries) in deltas.iter().flat_map(Delta::groups) {
                    loaded.load(group, &entries.bytes, &mut strays).unwrap();
                }
                let parts = 0..loaded.parts();
                let content: BTreeMap<u8, u64> =
                    parts.flat_map(|part| loaded.entries_of(part)).map(|entry| (entry.key, entry.state)).collect();
                assert_eq!(deltas.iter().map(|delta| delta.grown).sum::<i64>(), content.len() as i64);
                assert_eq!(Some(content), cut.take());
            }
        }
        assert_eq!(table.len(), expected.len() as u64);
    }
}
