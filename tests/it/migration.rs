//! State that begins with rows, or with what an earlier version of the program has kept as another
//! type.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use millstream::{Aggregated, Change, Collected, Flow, Job, Result, Stream, Trigger, collect, rows};
use serde::{Deserialize, Serialize};

fn job(directory: &Path, pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) -> Job {
    Job::new("migration", pipeline).checkpoints(directory).checkpoint_every(Duration::from_millis(2))
}

/// The numbers up to `end`. Each run reads on where the one before has ended.
fn numbers<'a>(flow: &Flow<'a>, end: u64) -> Result<Stream<'a, u64>> {
    flow.source(rows(0..end).partitions(1))
}

fn triggers() -> [Trigger; 2] {
    [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(2))]
}

type Emit = for<'a> fn(Aggregated<'a, u64, u64>, &Collected<(u64, u64)>) -> Result<()>;

fn updates(counts: Aggregated<'_, u64, u64>, sink: &Collected<(u64, u64)>) -> Result<()> {
    counts.updates().sink(sink)
}

fn complete(counts: Aggregated<'_, u64, u64>, sink: &Collected<(u64, u64)>) -> Result<()> {
    counts.complete().rows().sink(sink)
}

fn insertions(counts: Aggregated<'_, u64, u64>, sink: &Collected<(u64, u64)>) -> Result<()> {
    let is_insertion = |change| match change {
        Change::Insert(row) => Some(row),
        Change::Delete(_) => None,
    };
    counts.changes().flat_map(is_insertion).sink(sink)
}

/// Rows that end the run when they are asked for, unless they are wanted.
fn initial(wanted: bool) -> impl Iterator<Item = (u64, u64)> {
    // The second row of key 3 does not count.
    [(3, 1_000), (77, 500), (3, 1)].into_iter().inspect(move |_| assert!(wanted, "the rows are asked for again"))
}

#[test]
fn rows_are_the_beginning_of_a_job_and_not_of_a_run() {
    let emits: [(&str, Emit, bool); 3] =
        [("updates", updates, false), ("complete", complete, true), ("changes", insertions, false)];
    for (name, emit, shows_all) in emits {
        for trigger in triggers() {
            for workers in [[1, 1], [1, 3], [2, 1]] {
                let (directory, results) = (tempfile::tempdir().unwrap(), collect());
                let run = |end: u64, wanted: bool, workers: usize| {
                    let sink = results.clone();
                    let count = move |flow: &Flow<'_>| {
                        emit(numbers(flow, end)?.key_by(|n| n % 5).count().initial(initial(wanted)), &sink)
                    };
                    job(directory.path(), count).trigger(trigger).workers(workers).run().unwrap();
                    results.take().into_iter().collect::<BTreeMap<_, _>>()
                };
                let what = || format!("{name}, {trigger:?}, {workers:?}");
                let mut expected: BTreeMap<u64, u64> = (0..5).map(|key| (key, 2)).collect();
                expected.insert(3, 1_002);
                if shows_all {
                    expected.insert(77, 500);
                }
                assert_eq!(run(10, true, workers[0]), expected, "{}", what());
                expected.values_mut().filter(|count| **count != 500).for_each(|count| *count += 1);
                assert_eq!(run(15, false, workers[1]), expected, "{}, second run", what());
            }
        }
    }
}

/// Before the first checkpoint a run leaves nothing, so the next one begins with the rows too.
#[test]
fn rows_are_in_the_first_checkpoint_or_the_next_run_begins_with_them() {
    for fails_after in [1, 40, 400] {
        let (directory, results) = (tempfile::tempdir().unwrap(), collect());
        let run = |fails_after: i64| {
            let (sink, left) = (results.clone(), Arc::new(AtomicI64::new(fails_after)));
            let count = move |flow: &Flow<'_>| {
                let left = Arc::clone(&left);
                let numbers = numbers(flow, 1_000)?.batch_at_most(50);
                let numbers = numbers.inspect(move |_| assert!(left.fetch_sub(1, SeqCst) != 0, "the fuse"));
                numbers.key_by(|n| n % 5).count().initial(initial(true)).complete().rows().sink(&sink)
            };
            job(directory.path(), count).workers(2).run()
        };
        run(fails_after).unwrap_err();
        run(-1).unwrap();
        let last: BTreeMap<u64, u64> = results.take().into_iter().collect();
        assert_eq!(last, [(0, 200), (1, 200), (2, 200), (3, 1_200), (4, 200), (77, 500)].into());
    }
}

/// A worker that gets no record has rows too, and so has a run that gets none: they are in its
/// checkpoint, if it takes one.
#[test]
fn rows_are_kept_without_a_record() {
    for (records, workers) in [(0, 1), (0, 3), (1, 3)] {
        let (directory, results) = (tempfile::tempdir().unwrap(), collect());
        for (end, has_begun) in [(records, false), (100, records > 0)] {
            let sink = results.clone();
            let count = move |flow: &Flow<'_>| {
                let before = (100..200).map(|key| (key, 7)).inspect(move |_| assert!(!has_begun, "asked for again"));
                numbers(flow, end)?.key_by(|n| n % 5).count().initial(before).complete().rows().sink(&sink)
            };
            job(directory.path(), count).workers(workers).run().unwrap();
        }
        let last: BTreeMap<u64, u64> = results.take().into_iter().collect();
        let expected = (0..5).map(|key| (key, 20)).chain((100..200).map(|key| (key, 7)));
        assert_eq!(last, expected.collect(), "{records} records, {workers} workers");
    }
}

/// What a value was a number before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    name: String,
    number: u64,
}

fn named(number: u64) -> Named {
    Named { name: format!("number {number}"), number }
}

/// One key has its only record among the first ten.
fn key(n: u64) -> u64 {
    if n == 5 { 100 } else { n % 3 }
}

type OfNumbers = for<'a> fn(Stream<'a, u64>) -> Aggregated<'a, u64, u64>;
type OfNamed = for<'a> fn(Stream<'a, Named>) -> Aggregated<'a, u64, Named>;

/// What a number leads to with what there was before.
type Plus = fn(u64, u64) -> u64;

/// The same aggregates of numbers and of named numbers, and what a number adds to another.
const AGGREGATES: [(&str, OfNumbers, OfNamed, Plus); 4] = [
    (
        "aggregate",
        |numbers| numbers.key_by(|n| key(*n)).aggregate(|| 0, |sum, n| *sum += n),
        |numbers| {
            let by_key = numbers.key_by(|n| key(n.number));
            by_key.aggregate(|| named(0), |sum, n| *sum = named(sum.number + n.number))
        },
        |sum, n| sum + n,
    ),
    (
        "reduce",
        |numbers| numbers.key_by(|n| key(*n)).reduce(|a, b| a + b),
        |numbers| numbers.key_by(|n| key(n.number)).reduce(|a, b| named(a.number + b.number)),
        |sum, n| sum + n,
    ),
    (
        "latest",
        |numbers| numbers.key_by(|n| key(*n)).latest(),
        |numbers| numbers.key_by(|n| key(n.number)).latest(),
        |_, n| n,
    ),
    (
        "max",
        |numbers| numbers.key_by(|n| key(*n)).max(|n| *n),
        |numbers| numbers.key_by(|n| key(n.number)).reduce(|a, b| if b.number > a.number { b } else { a }).named("max"),
        u64::max,
    ),
];

/// Runs a version of the program, from where the one before has ended up to that number, and fails
/// after so many records. Returns the table at the end.
struct Version {
    /// The version of the state; version 0 keeps numbers, the others named numbers.
    version: u32,
    end: u64,
    fails_after: i64,
    workers: usize,
}

fn run(directory: &Path, (numeric, of_named): (OfNumbers, OfNamed), version: Version) -> Option<BTreeMap<u64, u64>> {
    let Version { version, end, fails_after, workers } = version;
    let (results, left) = (collect(), Arc::new(AtomicI64::new(fails_after)));
    let sink = results.clone();
    let pipeline = move |flow: &Flow<'_>| {
        let left = Arc::clone(&left);
        let numbers = numbers(flow, end)?.batch_at_most(3);
        let numbers = numbers.inspect(move |_| assert!(left.fetch_sub(1, SeqCst) != 0, "the fuse"));
        if version == 0 {
            return numeric(numbers).complete().rows().sink(&sink);
        }
        let more = u64::from(version - 1) * 1_000;
        let of_named = of_named(numbers.map(named)).state_version(version);
        // The second version of named numbers has a thousand more of what was kept before.
        let of_named = of_named.migrate_from(0, move |number: u64| named(number + more));
        let of_named = match version {
            1 => of_named,
            _ => of_named.migrate_from(1, move |old: Named| named(old.number + more)),
        };
        of_named.complete().rows().map(|(key, value)| (key, value.number)).sink(&sink)
    };
    let done = job(directory, pipeline).workers(workers).run();
    assert_eq!(done.is_err(), fails_after >= 0, "{:?}", done.err());
    done.ok().map(|_| results.take().into_iter().collect())
}

fn add(table: &mut BTreeMap<u64, u64>, numbers: std::ops::Range<u64>, add: Plus) {
    for n in numbers {
        let before = table.get(&key(n)).copied();
        table.insert(key(n), before.map_or(n, |before| add(before, n)));
    }
}

#[test]
fn state_of_an_earlier_version_is_converted_once() {
    for (name, numeric, of_named, plus) in AGGREGATES {
        for fails_after in [0, 4, 9, -1] {
            let directory = tempfile::tempdir().unwrap();
            let go = |version| run(directory.path(), (numeric, of_named), version);
            let go_on = |version, end, workers| go(Version { version, end, fails_after: -1, workers }).unwrap();
            let mut expected = BTreeMap::new();
            add(&mut expected, 0..10, plus);
            assert_eq!(go_on(0, 10, 1), expected, "{name}");
            if fails_after >= 0 {
                go(Version { version: 1, end: 20, fails_after, workers: 3 });
            }
            add(&mut expected, 10..20, plus);
            assert_eq!(go_on(1, 20, 2), expected, "{name}, converted, after {fails_after} records");
            add(&mut expected, 20..30, plus);
            assert_eq!(go_on(1, 30, 3), expected, "{name}, not converted again");
            if fails_after >= 0 {
                go(Version { version: 2, end: 40, fails_after, workers: 1 });
            }
            expected.values_mut().for_each(|value| *value += 1_000);
            add(&mut expected, 30..40, plus);
            assert_eq!(go_on(2, 40, 2), expected, "{name}, another meaning, after {fails_after} records");
        }
        // A version may be left out.
        let directory = tempfile::tempdir().unwrap();
        let mut expected = BTreeMap::new();
        for (version, numbers) in [(0, 0..10), (2, 10..20)] {
            let version = Version { version, end: numbers.end, fails_after: -1, workers: 2 };
            let table = run(directory.path(), (numeric, of_named), version).unwrap();
            add(&mut expected, numbers.clone(), plus);
            if numbers.start == 0 {
                expected.values_mut().for_each(|value| *value += 1_000);
            } else {
                assert_eq!(table, expected, "{name}, two versions at once");
            }
        }
    }
}

#[test]
fn what_cannot_begin_so_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let refused = |parts: &[&str], pipeline: fn(&Flow<'_>) -> Result<()>| {
        let error = job(path, pipeline).run().expect_err("it does not fit").to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "{part} is not in: {error}"));
    };
    refused(&["`mean`: it keeps more than its value, so `initial` cannot"], |flow| {
        let means = numbers(flow, 10)?.key_by(|n| n % 2).mean(|n| *n as f64);
        means.initial([(1, 1.0)]).updates().sink(collect())
    });
    refused(&["`visitors`: it keeps more", "`migrate_from` cannot"], |flow| {
        let visitors = numbers(flow, 10)?.key_by(|n| n % 2).approx_count_distinct(|n| *n).named("visitors");
        visitors.migrate_from(0, |count: u64| count).updates().sink(collect())
    });
    refused(&["checkpoints keep `count` and `count 2`", "`named`"], |flow| {
        let numbers = numbers(flow, 10)?;
        numbers.clone().key_by(|n| n % 2).count().updates().sink(collect())?;
        numbers.key_by(|n| n % 3).count().updates().sink(collect())
    });
    // The name of the table, not of the rows that are sorted behind it.
    let both = |flow: &Flow<'_>| {
        let numbers = numbers(flow, 10)?;
        let sorted = numbers.clone().key_by(|n| n % 2).count().named("by two").complete().limit(1);
        sorted.rows().sink(collect())?;
        numbers.key_by(|n| n % 3).count().named("by three").changes().sink(collect())
    };
    let report = job(path, both).run().unwrap();
    let with_state = report.stages.iter().filter(|stage| stage.entries > 0);
    let with_state: Vec<_> = with_state.map(|stage| (stage.name.as_str(), stage.entries)).collect();
    assert_eq!(with_state, [("by two", 2), ("by three", 3)]);
    // Of the same types, and said to be another version.
    refused(&["state of `by two`", "u64 by u64, version 3 now", "was u64 by u64, version 0", "migrate_from"], |flow| {
        let numbers = numbers(flow, 10)?;
        numbers.clone().key_by(|n| n % 2).count().named("by two").state_version(3).updates().sink(collect())?;
        numbers.key_by(|n| n % 3).count().named("by three").updates().sink(collect())
    });
}

/// The salt of the hash of [`Salted`].
static SALT: AtomicU64 = AtomicU64::new(0);

/// A key whose hash is another one in each version of the program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Salted(u64);

impl std::hash::Hash for Salted {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0, SALT.load(SeqCst)).hash(state);
    }
}

/// Entries that go to another worker are no updates: nothing is emitted of them until a record
/// comes for their key, and what comes then is the change of that key.
#[test]
fn keys_whose_hash_has_changed_keep_their_state() {
    for trigger in triggers() {
        for (salt, workers) in [(1, 1), (2, 3)] {
            let directory = tempfile::tempdir().unwrap();
            let run = |end: u64, workers: usize| {
                let changes = collect();
                let sink = changes.clone();
                let count = move |flow: &Flow<'_>| {
                    // The keys 0 to 39, of which a run behind the first sees those that divide by
                    // 4.
                    let numbers = numbers(flow, end)?.filter(|n| *n < 40 || n % 4 == 0);
                    numbers.key_by(|n| Salted(n % 40)).count().changes().sink(&sink)
                };
                job(directory.path(), count).trigger(trigger).workers(workers).run().unwrap();
                let mut changes: Vec<Change<(Salted, u64)>> = changes.take();
                changes.sort_by_key(|change| match change {
                    Change::Delete((Salted(key), _)) => (*key, 0),
                    Change::Insert((Salted(key), _)) => (*key, 1),
                });
                changes
            };
            let inserted = |key: u64, count| Change::Insert((Salted(key), count));
            let deleted = |key: u64, count| Change::Delete((Salted(key), count));
            SALT.store(0, SeqCst);
            assert_eq!(run(40, 2), (0..40).map(|key| inserted(key, 1)).collect::<Vec<_>>());
            for (rounds, salt) in [(1, salt), (2, 0)] {
                SALT.store(salt, SeqCst);
                let keys = (0..40).step_by(4);
                let expected: Vec<_> = keys.flat_map(|key| [deleted(key, rounds), inserted(key, rounds + 1)]).collect();
                assert_eq!(run(40 + rounds * 40, workers), expected, "{trigger:?}, {workers} workers, salt {salt}");
            }
        }
    }
}

mod before {
    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    pub(super) struct Visits {
        pub(super) count: u64,
    }
}

mod now {
    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    pub(super) struct Visits {
        pub(super) count: u64,
        pub(super) last: Option<u64>,
    }
}

/// The names of both are alike: what differs is in them.
#[test]
fn a_field_that_was_added_is_named_in_the_refusal() {
    let directory = tempfile::tempdir().unwrap();
    let before = |flow: &Flow<'_>| {
        let visits = numbers(flow, 10)?
            .key_by(|n| n % 2)
            .aggregate(|| before::Visits { count: 0 }, |visits, _| visits.count += 1);
        visits.named("visits").updates().map(|(key, visits)| (key, visits.count)).sink(collect())
    };
    job(directory.path(), before).run().unwrap();
    let now = |flow: &Flow<'_>| {
        let zero = || now::Visits { count: 0, last: None };
        let visits = numbers(flow, 20)?.key_by(|n| n % 2).aggregate(zero, |visits, n| visits.last = Some(n));
        visits.named("visits").updates().map(|(key, visits)| (key, visits.count)).sink(collect())
    };
    let error = job(directory.path(), now).run().unwrap_err().to_string();
    for part in
        ["Visits is { count: u64, last: Option<u64> }) by", "and was", "Visits is { count: u64 }) by", "migrate_from"]
    {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}
