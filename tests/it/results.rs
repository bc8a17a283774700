//! The same multiset of results under any trigger, any number of workers, random batches and random
//! pauses, with the order kept within each partition.

use std::time::Duration;

use millstream::{Clock, Collected, EventTime, Flow, Job, Result, Trigger, collect, rows};

use crate::support::script::Script;
use crate::support::{run_to_end, seed};

const TRIGGERS: [Trigger; 4] = [
    Trigger::Continuous,
    Trigger::MicroBatch { interval: Duration::ZERO },
    Trigger::MicroBatch { interval: Duration::from_millis(10) },
    Trigger::AvailableNow,
];

/// Computes from scratch what the pipeline below does.
fn oracle(numbers: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut results = Vec::new();
    for n in numbers {
        if n % 3 != 0 {
            // Even numbers are tripled in their branch, odd ones pass unchanged. Each also passes
            // through the fork.
            let values = if n % 2 == 0 { vec![n * 3; (n % 4) as usize] } else { vec![n] };
            results.extend(values.iter().map(|value| value + 1));
            results.push(n + 1_000_000);
        }
    }
    results.sort_unstable();
    results
}

fn pipeline(flow: &Flow<'_>, left: &Script, right: &Script, sink: &Collected<u64>, rebalance: bool) -> Result<()> {
    let both = flow.source(left)?.union(flow.source(right)?).filter(|n| n % 3 != 0);
    let both = if rebalance { both.rebalance() } else { both };
    both.clone().map(|n| n + 1_000_000).sink(sink)?;
    let (even, odd) = both.branch(|n| n % 2 == 0);
    even.flat_map(|n| vec![n * 3; (n % 4) as usize])
        .union(odd.inspect(|n| assert!(n % 2 == 1)))
        .map_batches(|batch| batch.map(|n| n + 1))
        .sink(sink)
}

#[test]
fn are_the_same_under_any_trigger_workers_batches_and_pauses() {
    let mut random = fastrand::Rng::with_seed(seed());
    for case in 0..60 {
        let (count, partitions) = (random.u64(200..3_000), random.usize(1..6));
        let left = Script::numbers(count, partitions, random.u64(..)).batches_of(random.usize(1..200));
        let right = Script::numbers(count / 2, 2, random.u64(..)).batches_of(random.usize(1..20));
        let (trigger, workers, rebalance) = (TRIGGERS[case % 4], random.usize(1..=4), random.bool());
        let (clock, results) = (Clock::simulated(), collect());
        let sink = results.clone();
        let job = Job::new("same", move |flow| pipeline(flow, &left, &right, &sink, rebalance));
        let running = job.workers(workers).trigger(trigger).clock(clock.clone()).start().unwrap();
        let report = run_to_end(running, &clock, Duration::from_millis(1)).unwrap();
        let mut values = results.values();
        values.sort_unstable();
        assert!(values.len() > 100, "case {case}: too few results to show anything");
        assert_eq!(values, oracle((0..count).chain(0..count / 2)), "case {case}: {trigger:?}, {workers} workers");
        assert_eq!(report.records_out(), values.len() as u64, "every record is acknowledged and counted");
    }
}

#[test]
fn keep_the_order_of_their_partition() {
    let mut random = fastrand::Rng::with_seed(seed());
    for trigger in TRIGGERS {
        for workers in 1..=4 {
            let script = Script::numbers(4_000, 8, random.u64(..)).batches_of(50);
            let (clock, results) = (Clock::simulated(), collect());
            let sink = results.clone();
            let job =
                Job::new("order", move |flow| flow.source(&script)?.filter(|n| n % 5 != 0).map(|n| n).sink(&sink));
            let running = job.workers(workers).trigger(trigger).clock(clock.clone()).start().unwrap();
            run_to_end(running, &clock, Duration::from_millis(1)).unwrap();
            let values = results.values();
            assert_eq!(values.len(), 3_200);
            for partition in 0..8 {
                let of_partition = values.iter().filter(|value| *value % 8 == partition);
                assert!(of_partition.is_sorted(), "partition {partition} out of order, {trigger:?}, {workers} workers");
            }
        }
    }
}

/// The values of each partition of each stream are in order: a copy of a fork, a side of a branch,
/// and each of the streams that a union joins.
#[test]
fn keep_the_order_of_their_partition_over_forks_branches_and_unions() {
    const OTHER: u64 = 1 << 32;
    let mut random = fastrand::Rng::with_seed(seed());
    for trigger in TRIGGERS {
        for workers in 1..=3 {
            let left = Script::numbers(4_000, 4, random.u64(..)).batches_of(50);
            let right = Script::numbers(2_000, 4, random.u64(..)).batches_of(20);
            let (clock, [copies, joined]) = (Clock::simulated(), [(); 2].map(|()| collect()));
            let sinks = [copies.clone(), joined.clone()];
            let job = Job::new("order", move |flow| {
                let both = flow.source(&left)?.union(flow.source(&right)?.map(|n| n + OTHER));
                both.clone().sink(&sinks[0])?;
                let (even, odd) = both.branch(|n| n / 4 % 2 == 0);
                even.map(|n| n).union(odd.filter(|_| true)).sink(&sinks[1])
            });
            let running = job.workers(workers).trigger(trigger).clock(clock.clone()).start().unwrap();
            run_to_end(running, &clock, Duration::from_millis(1)).unwrap();
            let in_order = |values: &[u64], is_own: &dyn Fn(u64) -> bool| {
                for (source, partition) in (0..2).flat_map(|source| (0..4).map(move |partition| (source, partition))) {
                    let own = values.iter().filter(|n| **n / OTHER == source && **n % 4 == partition && is_own(**n));
                    assert!(own.is_sorted(), "{source}, {partition}, {trigger:?}, {workers} workers");
                }
            };
            let (copies, joined) = (copies.values(), joined.values());
            assert_eq!((copies.len(), joined.len()), (6_000, 6_000));
            in_order(&copies, &|_| true);
            in_order(&joined, &|n| n / 4 % 2 == 0);
            in_order(&joined, &|n| n / 4 % 2 == 1);
        }
    }
}

#[test]
fn carry_event_times_through_stages() {
    let results = collect();
    let sink = results.clone();
    Job::new("timed", move |flow| {
        let timed = rows(0..100u64).timed(|n| EventTime(*n as i64 * 10));
        flow.source(timed)?
            .filter(|n| n % 2 == 0)
            .map_batches(|batch| {
                let mut batch = batch;
                std::iter::from_fn(move || {
                    let time = batch.front_time();
                    batch.next().map(|n| (n, time))
                })
            })
            .sink(&sink)
    })
    .run()
    .unwrap();
    let mut values = results.values();
    values.sort_unstable();
    let expected: Vec<_> = (0..100).step_by(2).map(|n| (n, Some(EventTime(n as i64 * 10)))).collect();
    assert_eq!(values, expected);
}

#[test]
fn are_computed_by_all_workers_after_a_rebalance() {
    let threads = collect();
    let sink = threads.clone();
    Job::new("spread", move |flow| {
        let names = |_| std::thread::current().name().unwrap_or_default().to_owned();
        flow.source(rows(0..1_000u64).partitions(1))?.rebalance().map(names).sink(&sink)
    })
    .workers(3)
    .run()
    .unwrap();
    let mut names = threads.values();
    names.sort_unstable();
    let shares: Vec<usize> = names.chunk_by(|left, right| left == right).map(<[String]>::len).collect();
    assert_eq!(shares.len(), 3, "not every worker computed: {shares:?}");
    assert!(shares.iter().all(|share| (300..=370).contains(share)), "the shares are uneven: {shares:?}");
}

#[test]
fn of_two_jobs_in_one_process_do_not_meet() {
    let (left, right) = (collect(), collect());
    let start = |results: &Collected<u64>, offset: u64| {
        let sink = results.clone();
        Job::new("one of two", move |flow| flow.source(rows(0..10_000u64))?.map(move |n| n + offset).sink(&sink))
            .workers(2)
            .start()
            .unwrap()
    };
    let (first, second) = (start(&left, 0), start(&right, 1_000_000));
    first.wait().unwrap();
    second.wait().unwrap();
    assert_eq!((left.len(), right.len()), (10_000, 10_000));
    assert!(left.values().iter().all(|n| *n < 10_000) && right.values().iter().all(|n| *n >= 1_000_000));
}

#[test]
fn of_results_part_into_values_and_errors() {
    let (values, errors) = (collect(), collect());
    let (good, bad) = (values.clone(), errors.clone());
    Job::new("parse", move |flow| {
        let parsed = flow.source(rows(["1", "two", "3"]))?.map(str::parse::<u64>);
        let (numbers, failures) = parsed.partition_results();
        numbers.sink(&good)?;
        failures.map(|error| error.to_string()).sink(&bad)
    })
    .run()
    .unwrap();
    assert_eq!((values.values(), errors.len()), (vec![1, 3], 1));
}
