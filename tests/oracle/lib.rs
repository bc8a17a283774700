//! The independent checker: compares input with output, without knowledge of the engine. It is for
//! a pipeline that makes at most one output of each input, under the same key and with the same
//! headers, at least once.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// A record as the checker sees it: its id, its key and its headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub id: u64,
    pub key: Vec<u8>,
    pub headers: Vec<(String, Option<String>)>,
}

/// What the checker found wrong: ids, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Expected, but missing.
    pub lost: Vec<u64>,
    /// Present more than once; wrong only where exactly once is promised.
    pub doubled: Vec<u64>,
    /// Present, but not expected, or under another key, or with other headers.
    pub alien: Vec<u64>,
    /// Present in another partition than the input is in, although both topics have the same number
    /// of partitions. The key decides which it is.
    pub misplaced: Vec<u64>,
    /// Present for the first time after a record of the same input partition and key that came
    /// later in the input.
    pub disordered: Vec<u64>,
    /// The number of outputs checked.
    pub looked_at: usize,
}

impl Findings {
    /// Whether every record arrived at least once, in its partition and in order.
    pub fn at_least_once(&self) -> bool {
        [&self.lost, &self.alien, &self.misplaced, &self.disordered].iter().all(|ids| ids.is_empty())
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = |ids: &[u64]| ids.iter().take(10).copied().collect::<Vec<_>>();
        write!(
            f,
            "{} outputs: {} lost {:?}, {} doubled {:?}, {} alien {:?}, {} misplaced {:?}, {} disordered {:?}",
            self.looked_at,
            self.lost.len(),
            some(&self.lost),
            self.doubled.len(),
            some(&self.doubled),
            self.alien.len(),
            some(&self.alien),
            self.misplaced.len(),
            some(&self.misplaced),
            self.disordered.len(),
            some(&self.disordered),
        )
    }
}

/// Compares `expected`, an ordered list for each input partition, with `outputs`, an ordered list
/// for each output partition.
pub fn compare(expected: &[Vec<Record>], outputs: &[Vec<Record>]) -> Findings {
    let mut findings = Findings::default();
    let mut known: HashMap<u64, (usize, usize, &Record)> = HashMap::new();
    for (partition, records) in expected.iter().enumerate() {
        known.extend(records.iter().enumerate().map(|(at, record)| (record.id, (partition, at, record))));
    }
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    // The furthest position that each key of each input partition has reached, by first
    // appearances.
    let mut reached: HashMap<(usize, &[u8]), usize> = HashMap::new();
    let places =
        outputs.iter().enumerate().flat_map(|(place, records)| records.iter().map(move |record| (place, record)));
    for (place, record) in places {
        findings.looked_at += 1;
        let Some((partition, at, _)) = known.get(&record.id).filter(|(_, _, known)| *known == record) else {
            findings.alien.push(record.id);
            continue;
        };
        if expected.len() == outputs.len() && place != *partition {
            findings.misplaced.push(record.id);
        }
        let times = seen.entry(record.id).or_default();
        *times += 1;
        if *times == 1 {
            let reached = reached.entry((*partition, &record.key)).or_insert(0);
            if *at < *reached {
                findings.disordered.push(record.id);
            }
            *reached = (*reached).max(*at);
        }
    }
    findings.lost = known.keys().filter(|id| !seen.contains_key(id)).copied().collect();
    findings.lost.sort_unstable();
    findings.doubled = seen.into_iter().filter(|(_, times)| *times > 1).map(|(id, _)| id).collect();
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(ids: impl IntoIterator<Item = u64>) -> Vec<Record> {
        let headers = |id: u64| vec![("id".to_owned(), Some(id.to_string()))];
        ids.into_iter().map(|id| Record { id, key: (id % 7).to_string().into_bytes(), headers: headers(id) }).collect()
    }

    fn plant(change: impl FnOnce(&mut Vec<Record>)) -> Findings {
        let expected = vec![records(0..100), records(100..200)];
        let mut outputs = vec![records(0..100), records(100..200)];
        change(&mut outputs[0]);
        compare(&expected, &outputs)
    }

    #[test]
    fn finds_nothing_where_nothing_is_wrong() {
        let findings = plant(|_| {});
        assert!(findings.at_least_once() && findings.doubled.is_empty() && findings.looked_at == 200);
    }

    #[test]
    fn finds_a_planted_loss() {
        assert_eq!(plant(|outputs| drop(outputs.remove(42))).lost, [42]);
        assert_eq!(plant(|outputs| outputs.truncate(98)).lost, [98, 99]);
        assert_eq!(plant(Vec::clear).lost.len(), 100);
    }

    #[test]
    fn finds_a_planted_duplicate() {
        let findings = plant(|outputs| outputs.push(outputs[3].clone()));
        assert_eq!(findings.doubled, [3]);
        assert!(findings.at_least_once(), "a repeat is neither a loss nor disorder");
    }

    #[test]
    fn finds_planted_disorder() {
        assert_eq!(plant(|outputs| outputs.swap(10, 17)).disordered, [10]);
        assert!(plant(|outputs| outputs.swap(10, 11)).at_least_once(), "they have different keys");
    }

    #[test]
    fn finds_aliens() {
        assert_eq!(plant(|outputs| outputs[5].id = 12_345).alien, [12_345]);
        assert_eq!(plant(|outputs| outputs[5].key = b"other".to_vec()).alien, [5]);
        assert_eq!(plant(|outputs| outputs[5].headers.clear()).alien, [5]);
        assert_eq!(plant(|outputs| outputs[5].headers[0].1 = None).alien, [5]);
    }

    #[test]
    fn finds_a_record_in_another_partition() {
        let expected = vec![records(0..100), records(100..200)];
        let outputs = vec![records(0..99), records((99..200).rev())];
        assert_eq!(compare(&expected, &outputs).misplaced, [99]);
        let one = vec![records(0..200)];
        assert!(compare(&expected, &one).at_least_once(), "another number of partitions places keys elsewhere");
    }
}
