//! Keyed streams: what is computed by key and emitted, against a recomputation of the whole input,
//! under each trigger and with any number of workers.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream::{
    Change, Clock, ErrorKind, EventTime, Flow, Job, Quantiles, Stream, TestRun, Trigger, channel, collect, discard,
    generate, rows,
};

const TRIGGERS: [Trigger; 3] =
    [Trigger::Continuous, Trigger::AvailableNow, Trigger::MicroBatch { interval: Duration::ZERO }];

/// Numbers in an order that mixes their keys.
fn numbers() -> Vec<i64> {
    (0..3_000).map(|n: i64| n * 7_919 % 5_003 - 1_000).collect()
}

fn key(n: &i64) -> u8 {
    n.rem_euclid(10) as u8
}

/// Runs a pipeline over the numbers under every trigger and with 1 to 4 workers.
fn each<T: Send + 'static>(
    pipeline: impl for<'a> Fn(Stream<'a, i64>) -> Stream<'a, T> + Clone + Send + Sync + 'static,
    check: impl Fn(Trigger, Vec<T>),
) {
    for trigger in TRIGGERS {
        for workers in 1..=4 {
            let (results, pipeline) = (collect(), pipeline.clone());
            let sink = results.clone();
            let job = Job::new("keyed", move |flow: &Flow<'_>| {
                pipeline(flow.source(rows(numbers()).partitions(3))?).sink(&sink)
            });
            job.state_in_memory().trigger(trigger).workers(workers).run().unwrap();
            let values = results.take();
            assert!(!values.is_empty(), "{trigger:?}, {workers} workers: nothing came out");
            check(trigger, values);
        }
    }
}

fn by_key<V>(f: impl Fn(Vec<i64>) -> V) -> BTreeMap<u8, V> {
    let mut groups = BTreeMap::<u8, Vec<i64>>::new();
    numbers().into_iter().for_each(|n| groups.entry(key(&n)).or_default().push(n));
    groups.into_iter().map(|(key, group)| (key, f(group))).collect()
}

/// Checks that the last update of each key is the value of all its records, and that each record
/// has an update unless batches coalesce them.
fn check_updates<V: PartialEq + std::fmt::Debug + 'static>(
    expected: impl Fn(Vec<i64>) -> V,
) -> impl Fn(Trigger, Vec<(u8, V)>) {
    move |trigger, updates| {
        if matches!(trigger, Trigger::MicroBatch { .. }) {
            assert!(updates.len() < numbers().len(), "{} updates", updates.len());
        } else {
            assert_eq!(updates.len(), numbers().len(), "{trigger:?}");
        }
        assert_eq!(updates.into_iter().collect::<BTreeMap<_, _>>(), by_key(&expected), "{trigger:?}");
    }
}

#[test]
fn the_last_update_of_a_key_is_the_value_of_all_its_records() {
    each(|n| n.key_by(key).count().updates(), check_updates(|group| group.len() as u64));
    each(|n| n.key_by(key).sum(|n| *n).updates(), check_updates(|group| group.iter().sum::<i64>()));
    each(|n| n.key_by(key).min(|n| *n).updates(), check_updates(|group| *group.iter().min().unwrap()));
    each(|n| n.key_by(key).max(|n| *n).updates(), check_updates(|group| *group.iter().max().unwrap()));
    each(
        |n| n.key_by(key).mean(|n| *n as f64).updates(),
        check_updates(|group| group.iter().sum::<i64>() as f64 / group.len() as f64),
    );
    each(
        |n| n.key_by(key).reduce(|a, b| a ^ b).updates(),
        check_updates(|g| g.into_iter().reduce(|a, b| a ^ b).unwrap()),
    );
    each(
        |n| {
            n.key_by(key)
                .aggregate(BTreeSet::new, |all, n| {
                    all.insert(n);
                })
                .updates()
        },
        check_updates(|group| group.into_iter().collect::<BTreeSet<_>>()),
    );
    each(
        |n| n.key_by(key).top_k(3, |a, b| a.cmp(b)).updates(),
        check_updates(|mut group| {
            group.sort_by(|a, b| b.cmp(a));
            group.truncate(3);
            group
        }),
    );
}

/// Checks that the last estimate of each key is near the truth, and the same in each run.
fn check_estimates<K: Ord + Clone + std::fmt::Debug>(exact: BTreeMap<K, u64>) -> impl Fn(Trigger, Vec<(K, u64)>) {
    let first = OnceCell::new();
    move |trigger, updates| {
        let last: BTreeMap<K, u64> = updates.into_iter().collect();
        assert!(last.keys().eq(exact.keys()), "{trigger:?}");
        for (key, exact) in &exact {
            let error = last[key].abs_diff(*exact) as f64 / *exact as f64;
            assert!(error <= 0.05, "{trigger:?}: {} instead of {exact} of key {key:?}", last[key]);
        }
        assert_eq!(first.get_or_init(|| last.clone()), &last, "{trigger:?}");
    }
}

#[test]
fn different_values_are_counted_approximately() {
    let different = |numbers: Vec<i64>| numbers.into_iter().collect::<BTreeSet<_>>().len() as u64;
    each(|n| n.key_by(key).approx_count_distinct(|n| *n).updates(), check_estimates(by_key(different)));
    each(
        |n| n.global().approx_count_distinct(|n| n.to_string()).updates(),
        check_estimates([((), different(numbers()))].into()),
    );
    each(
        |n| n.key_by(key).approx_count_distinct(|n| n / 1_000).complete().rows(),
        check_estimates(by_key(|group| different(group.into_iter().map(|n| n / 1_000).collect()))),
    );
}

const PARTS: [f64; 5] = [0.0, 0.1, 0.5, 0.99, 1.0];

/// The exact quantiles.
fn quantiles(mut numbers: Vec<i64>) -> [i64; 5] {
    numbers.sort_unstable();
    PARTS.map(|part| numbers[(part * (numbers.len() - 1) as f64) as usize])
}

/// Checks that the last quantiles of each key are near the exact ones, and the same in each run.
fn check_quantiles<K: Ord + Clone + std::fmt::Debug>(
    exact: BTreeMap<K, (u64, [i64; 5])>,
) -> impl Fn(Trigger, Vec<(K, Quantiles)>) {
    let first = OnceCell::new();
    move |trigger, updates| {
        let last: BTreeMap<K, Quantiles> = updates.into_iter().collect();
        assert!(last.keys().eq(exact.keys()), "{trigger:?}");
        for (key, (count, exact)) in &exact {
            assert_eq!(last[key].count(), *count, "{trigger:?}");
            for (part, exact) in PARTS.into_iter().zip(exact) {
                let (estimate, exact) = (last[key].at(part).unwrap(), *exact as f64);
                let error = (estimate - exact).abs();
                assert!(error <= 0.010_001 * exact.abs(), "{trigger:?}: {estimate} instead of {exact} of key {key:?}");
            }
        }
        let last: BTreeMap<_, _> = last.into_iter().map(|(key, all)| (key, PARTS.map(|part| all.at(part)))).collect();
        assert_eq!(first.get_or_init(|| last.clone()), &last, "{trigger:?}");
    }
}

#[test]
fn quantiles_are_approximated() {
    let exact = |group: Vec<i64>| (group.len() as u64, quantiles(group));
    each(|n| n.key_by(key).approx_quantiles(|n| *n as f64).updates(), check_quantiles(by_key(exact)));
    each(|n| n.global().approx_quantiles(|n| *n as f64).updates(), check_quantiles([((), exact(numbers()))].into()));
    each(
        |n| n.key_by(key).approx_quantiles(|n| *n as f64).complete().sorted_by(|a, b| a.0.cmp(&b.0)).rows(),
        check_quantiles(by_key(exact)),
    );
}

#[test]
fn latest_is_the_record_with_the_largest_event_time() {
    for workers in 1..=3 {
        let results = collect();
        let sink = results.clone();
        let job = Job::new("latest", move |flow| {
            let numbers = rows(numbers()).partitions(3).timed(|n| EventTime(*n));
            flow.source(numbers)?.key_by(key).latest().updates().sink(&sink)
        });
        job.state_in_memory().workers(workers).run().unwrap();
        let last: BTreeMap<u8, i64> = results.take().into_iter().collect();
        assert_eq!(last, by_key(|group| *group.iter().max().unwrap()), "{workers} workers");
    }
}

#[test]
fn global_is_one_key() {
    each(
        |n| n.global().count().updates(),
        |_, updates| {
            assert_eq!(updates.last(), Some(&((), numbers().len() as u64)));
        },
    );
}

#[test]
fn the_first_record_of_each_key_is_handed_on_once() {
    each(
        |n| n.map(|n| n % 100).distinct(),
        |_, mut values| {
            values.sort_unstable();
            let expected: BTreeSet<_> = numbers().into_iter().map(|n| n % 100).collect();
            assert_eq!(values, expected.into_iter().collect::<Vec<_>>());
        },
    );
    each(
        |n| n.key_by(key).dedup(),
        |_, values| {
            let keys: Vec<_> = values.iter().map(key).collect();
            assert_eq!((keys.len(), keys.into_iter().collect::<BTreeSet<_>>().len()), (10, 10));
        },
    );
}

/// Applies changes to a table. A row is deleted only when it is there.
fn applied(changes: Vec<Change<(u8, u64)>>) -> BTreeMap<u8, u64> {
    let mut table = BTreeMap::new();
    for change in changes {
        match change {
            Change::Delete((key, count)) => assert_eq!(table.remove(&key), Some(count)),
            Change::Insert((key, count)) => assert_eq!(table.insert(key, count), None),
        }
    }
    table
}

#[test]
fn changes_make_the_table() {
    each(
        |n| n.key_by(key).count().changes(),
        |_, changes| {
            assert_eq!(applied(changes), by_key(|group| group.len() as u64));
        },
    );
}

/// What Spark answers in its output modes; see the scenario `clickstream` of its golden answers.
#[test]
fn a_micro_batch_emits_what_the_output_mode_says() {
    let ((words, source), updates, complete, sorted) = (channel(10), collect(), collect(), collect());
    let counts = (collect(), collect());
    let sinks = (updates.clone(), complete.clone(), sorted.clone(), counts.0.clone(), counts.1.clone());
    let job = Job::new("modes", move |flow| {
        let words = flow.source(&source)?;
        let count = || words.clone().key_by(|word: &String| word.clone());
        count().count().updates().sink(&sinks.0)?;
        count().count().complete().rows().sink(&sinks.1)?;
        count().count().complete().sorted_by(|a, b| b.1.cmp(&a.1)).limit(1).rows().sink(&sinks.2)?;
        words.clone().per_batch().count().sink(&sinks.3)?;
        words.per_batch().count_by_value().sink(&sinks.4)
    });
    let job = job.state_in_memory().workers(2).trigger(Trigger::micro_batch(Duration::from_secs(1)));
    let mut test = TestRun::start(job.clock(Clock::simulated())).unwrap();
    let row = |word: &str, count: u64| (word.to_owned(), count);
    let sorted_rows = |mut rows: Vec<(String, u64)>| {
        rows.sort_unstable();
        rows
    };
    for (batch, update, all, top) in [
        (
            &["viewed", "clicked", "clicked"][..],
            vec![row("clicked", 2), row("viewed", 1)],
            vec![row("clicked", 2), row("viewed", 1)],
            row("clicked", 2),
        ),
        (&["viewed", "viewed"], vec![row("viewed", 3)], vec![row("clicked", 2), row("viewed", 3)], row("viewed", 3)),
    ] {
        test.feed(&words, batch.iter().map(|word| (*word).to_owned())).unwrap();
        assert!(test.drain(&updates).unwrap().is_empty(), "the batch waits for its tick");
        test.advance(Duration::from_secs(1)).unwrap();
        assert_eq!(sorted_rows(test.drain(&updates).unwrap()), update);
        assert_eq!(sorted_rows(test.drain(&complete).unwrap()), all);
        assert_eq!(test.drain(&sorted).unwrap(), [top]);
        assert_eq!(test.drain(&counts.0).unwrap(), [batch.len() as u64]);
        let values: BTreeSet<&str> = batch.iter().copied().collect();
        assert_eq!(test.drain(&counts.1).unwrap().len(), values.len());
    }
}

#[test]
fn batches_know_nothing_of_each_other() {
    each(
        |n| n.key_by(key).per_batch().group(),
        |_, groups| {
            let mut all = BTreeMap::<u8, Vec<i64>>::new();
            groups.into_iter().for_each(|(key, mut group)| all.entry(key).or_default().append(&mut group));
            all.values_mut().for_each(|group| group.sort_unstable());
            let expected = by_key(|mut group| {
                group.sort_unstable();
                group
            });
            assert_eq!(all, expected);
        },
    );
}

#[test]
fn state_needs_a_place() {
    let job =
        || Job::new("stateful", |flow| flow.source(rows(0..9_i64))?.key_by(key).count().updates().sink(collect()));
    let error = job().run().expect_err("there is no place for its state");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("`count` keeps state"), "{error}");
}

#[test]
fn a_sum_out_of_range_ends_the_run() {
    let job = Job::new("sum", |flow| flow.source(rows([200_u8, 100]))?.global().sum(|n| *n).updates().sink(collect()));
    let error = job.state_in_memory().run().expect_err("300 is not a u8");
    assert!(error.to_string().contains("sum"), "{error}");
}

/// What a batch emits as a whole has waited since its records came, and not since the batch was
/// closed: the difference between the triggers would not be seen.
#[test]
fn what_waits_for_its_batch_has_waited_since_its_records_came() {
    type Pipeline = for<'a> fn(Stream<'a, u64>) -> Stream<'a, (u64, u64)>;
    let pipelines: [(&str, Pipeline, bool); 5] = [
        ("updates", |numbers| numbers.key_by(|n| *n).count().updates(), true),
        (
            "changes",
            |numbers| {
                numbers.key_by(|n| *n).count().changes().map(|change| match change {
                    Change::Insert(row) | Change::Delete(row) => row,
                })
            },
            true,
        ),
        ("per batch", |numbers| numbers.key_by(|n| *n).per_batch().count(), true),
        ("complete", |numbers| numbers.key_by(|n| *n).count().complete().rows(), false),
        ("sorted", |numbers| numbers.key_by(|n| *n).count().complete().sorted_by(Ord::cmp).rows(), false),
    ];
    for (name, pipeline, by_row) in pipelines {
        for workers in [1, 3] {
            let (numbers, source) = channel::<u64>(100);
            let job = Job::new("waits", move |flow: &Flow<'_>| pipeline(flow.source(&source)?).sink(discard()));
            let job = job.state_in_memory().workers(workers).trigger(Trigger::micro_batch(Duration::from_millis(100)));
            let mut test = TestRun::start(job).unwrap();
            // Of a key that comes twice, the first record has waited longest.
            for (after, number) in [(10, 1), (20, 2), (30, 1), (40, 3)] {
                test.advance(Duration::from_millis(after)).unwrap();
                test.feed(&numbers, [number]).unwrap();
            }
            test.advance(Duration::from_millis(100)).unwrap();
            let latency = test.report().sinks[0].latency;
            let shown = [latency.p50, latency.max].map(|latency| (latency.as_secs_f64() * 1_000.0).round());
            // The first batch closes at 100 ms: its keys have waited since 10 and 30, and the whole
            // since 10. The next one begins with the record of that moment.
            let expected = if by_row { [90.0, 100.0] } else { [100.0, 100.0] };
            assert_eq!(shown, expected, "{name}, {workers} workers: {latency:?}");
            test.end().unwrap();
        }
    }
}

/// Larger than what is emitted at once, and so are the parts of it that a worker keeps together.
#[test]
fn a_large_table_leaves_whole_and_each_row_once() {
    const KEYS: u64 = 1_300_000;
    let rows_seen = collect();
    let sink = rows_seen.clone();
    let job = Job::new("large", move |flow: &Flow<'_>| {
        let numbers = flow.source(generate(|n| n).count(KEYS).partitions(1))?;
        numbers.key_by(|n| *n).count().complete().rows().sink(&sink)
    });
    job.state_in_memory().checkpoint_every(Duration::from_secs(3600)).run().unwrap();
    let mut seen: Vec<(u64, u64)> = rows_seen.take();
    seen.sort_unstable();
    assert_eq!(seen.len() as u64, KEYS);
    assert!(seen.into_iter().zip(0..).all(|((key, count), expected)| (key, count) == (expected, 1)));
}
