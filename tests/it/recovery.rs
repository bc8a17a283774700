//! State that survives: jobs that fail, are aborted and start again, with another number of workers
//! and under another trigger, against a recomputation of the whole input.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use millstream::{
    Aggregated, ByteSize, Calls, Change, Collected, ErrorKind, Flow, Job, Quantiles, Restart, Result, State, Stream,
    Trigger, collect, rows,
};

/// Fails at a record, once.
#[derive(Clone)]
struct Fuse(Arc<AtomicI64>);

impl Fuse {
    /// After so many records; never if it is negative.
    fn after(records: i64) -> Fuse {
        Fuse(Arc::new(AtomicI64::new(records)))
    }

    fn burn(&self) {
        assert!(self.0.fetch_sub(1, SeqCst) != 0, "the fuse");
    }
}

fn job(directory: &Path, pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) -> Job {
    Job::new("recovery", pipeline).checkpoints(directory).checkpoint_every(Duration::from_millis(2))
}

/// Counts the records of `0..records` by their last digit, and fails after so many of them.
fn counting(directory: &Path, records: u64, fails_after: i64, counts: &Collected<(u64, u64)>) -> Job {
    let (fuse, counts) = (Fuse::after(fails_after), counts.clone());
    job(directory, move |flow| {
        let fuse = fuse.clone();
        // So that there are some checkpoints before a crash.
        let numbers = flow.source(rows(0..records).partitions(3))?.batch_at_most(records / 20);
        numbers.inspect(move |_| fuse.burn()).key_by(|n| n % 10).count().updates().sink(&counts)
    })
}

fn last<K: Ord, V>(updates: Vec<(K, V)>) -> BTreeMap<K, V> {
    updates.into_iter().collect()
}

fn even(records: u64) -> BTreeMap<u64, u64> {
    (0..10).map(|key| (key, records / 10)).collect()
}

#[test]
fn a_job_goes_on_where_its_checkpoint_is() {
    for workers in [[1, 1, 1], [1, 3, 2], [4, 1, 3]] {
        let (directory, counts) = (tempfile::tempdir().unwrap(), collect());
        let path = directory.path();
        for (fails_after, workers) in [(40_000, workers[0]), (30_000, workers[1])] {
            let failed = counting(path, 100_000, fails_after, &counts).workers(workers).run();
            assert_eq!(failed.expect_err("it has a fuse").kind(), ErrorKind::Panic);
        }
        let before = counts.len();
        let report = counting(path, 100_000, -1, &counts).workers(workers[2]).run().unwrap();
        let read = report.records_in();
        assert!(read < 100_000, "it goes on: {read}");
        assert_eq!(counts.len() - before, usize::try_from(read).unwrap(), "one update for each");
        assert_eq!(last(counts.take()), even(100_000), "{workers:?}");
        // All of it is done.
        let report = counting(path, 100_000, -1, &counts).run().unwrap();
        assert_eq!((report.records_in(), counts.len()), (0, 0));
    }
}

type Sketched = (Collected<(u64, u64)>, Collected<(u64, Quantiles)>);

/// Sketches the numbers up to `records` by their last digit.
fn sketching(directory: &Path, records: u64, results: &Sketched) -> Job {
    let results = results.clone();
    job(directory, move |flow| {
        let numbers = flow.source(rows(0..records).partitions(1))?;
        numbers.clone().key_by(|n| n % 10).approx_count_distinct(|n| *n).updates().sink(&results.0)?;
        numbers.key_by(|n| n % 10).approx_quantiles(|n| *n as f64).updates().sink(&results.1)
    })
}

#[test]
fn sketches_go_on_where_their_checkpoint_is() {
    let answers = |results: Sketched| {
        let all = last(results.1.take()).into_iter();
        let parts: Vec<_> = all.map(|(key, all)| (key, all.count(), all.at(0.5), all.at(0.99))).collect();
        (last(results.0.take()), parts)
    };
    let (directory, at_once) = (tempfile::tempdir().unwrap(), (collect(), collect()));
    sketching(directory.path(), 20_000, &at_once).run().unwrap();
    let (directory, results) = (tempfile::tempdir().unwrap(), (collect(), collect()));
    sketching(directory.path(), 8_000, &results).workers(2).run().unwrap();
    let report = sketching(directory.path(), 20_000, &results).workers(3).run().unwrap();
    assert_eq!(report.records_in(), 12_000, "it goes on");
    assert_eq!(answers(results), answers(at_once));
}

#[test]
fn state_in_memory_survives_a_restart_of_the_run() {
    let (fuse, counts) = (Fuse::after(50_000), collect());
    let sink = counts.clone();
    let job = Job::new("in memory", move |flow| {
        let fuse = fuse.clone();
        let numbers = flow.source(rows(0..100_000_u64).partitions(3))?.batch_at_most(5_000);
        numbers.inspect(move |_| fuse.burn()).key_by(|n| n % 10).count().updates().sink(&sink)
    });
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let job = job.state_in_memory().restart(restart).checkpoint_every(Duration::from_millis(2)).workers(2);
    let report = job.run().unwrap();
    assert_eq!(report.restarts, 1);
    assert_eq!(last(counts.take()), even(100_000));
}

fn numbers<'a>(flow: &Flow<'a>) -> Result<Stream<'a, u64>> {
    flow.source(rows(0..100_u64).partitions(3))
}

#[test]
fn what_does_not_fit_the_checkpoint_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    counting(path, 100, -1, &collect()).run().unwrap();
    let refused = |job: Job, parts: &[&str]| {
        let error = job.run().expect_err("it does not fit").to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "{part} is not in: {error}"));
    };
    let renamed =
        move |flow: &Flow<'_>| numbers(flow)?.key_by(|n| n % 10).count().updates().named("tally").sink(collect());
    refused(job(path, renamed), &["state of `count`", "keeps state in `tally`", "forget_state"]);
    refused(job(path, renamed).forget_state(["count"]), &["`tally` keeps state", "has none of it", "start_empty"]);
    let retyped =
        move |flow: &Flow<'_>| numbers(flow)?.key_by(|n| (n % 10).to_string()).count().updates().sink(collect());
    refused(
        job(path, retyped),
        &[
            "`count` is of another type",
            "u64 by alloc::string::String (str)",
            "was u64 by u64",
            "keys cannot be converted",
        ],
    );
    // Its state has the same types, and means something else.
    let another =
        move |flow: &Flow<'_>| numbers(flow)?.key_by(|n| n % 10).sum(|n| *n).updates().named("count").sink(collect());
    refused(job(path, another), &["`count` is the operator `sum` now", "was kept by `count`"]);
    let other_source = |flow: &Flow<'_>| {
        let numbers = flow.source(rows(0..100_u64).partitions(3))?.named("numbers");
        numbers.key_by(|n| n % 10).count().updates().sink(collect())
    };
    refused(job(path, other_source), &["positions of source `rows`", "reads `numbers`"]);
    let two = |flow: &Flow<'_>| {
        let numbers = numbers(flow)?;
        numbers.clone().key_by(|n| n % 10).count().updates().sink(collect())?;
        numbers.key_by(|n| n % 3).count().updates().sink(collect())
    };
    refused(job(path, two), &["`count` and `count 2`", "name both"]);
    let other_job = Job::new("others", move |flow| numbers(flow)?.sink(collect())).checkpoints(path);
    refused(other_job, &["checkpoints of job `recovery`, not of `others`"]);
    // It is taken as it is said.
    refused(job(path, renamed).forget_state(["count"]).start_empty(["tallies"]), &["`tallies`, which keeps no state"]);
    refused(
        Job::new("in memory", renamed).state_in_memory().start_empty(["tally"]),
        &["`start_empty` are about checkpoints in a directory"],
    );
    refused(job(path, renamed).state_memory(ByteSize(0)), &["`state_memory` must be greater than zero"]);
    let report = job(path, renamed).forget_state(["count"]).start_empty(["tally"]).run().unwrap();
    assert_eq!(report.records_in(), 0);
    refused(counting(path, 100, -1, &collect()), &["state of `tally`"]);
}

#[test]
fn a_directory_belongs_to_one_job_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let (numbers, source) = millstream::channel::<u64>(10);
    let running = job(directory.path(), move |flow| flow.source(&source)?.sink(collect())).start().unwrap();
    let error = counting(directory.path(), 10, -1, &collect()).run().expect_err("it is in use");
    assert!(error.to_string().contains("another job uses"), "{error}");
    drop(numbers);
    running.wait().unwrap();
    let file = directory.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let error = counting(&file, 10, -1, &collect()).run().expect_err("it is no directory");
    assert_eq!(error.kind(), ErrorKind::Checkpoint);
}

/// What a random pipeline does with its records, by key: first one thing, then perhaps another with
/// what comes out of it.
#[derive(Clone, Copy, Debug)]
enum First {
    Dedup,
    Count,
    Max,
    Min,
    Sum,
    Mean,
    Reduce,
    Fold,
    TopK,
    /// Of keys whose records are in one partition.
    Latest,
}

/// What the first operator emits, unless it is a deduplication.
#[derive(Clone, Copy, Debug)]
enum Emit {
    Updates,
    Complete,
    Changes,
    Every,
}

#[derive(Clone, Copy, Debug)]
enum Second {
    None,
    /// Only of what comes out once.
    Count,
    Max,
    Distinct,
}

/// Calls of a random pipeline, in one of three orders.
#[derive(Clone, Copy, Debug)]
enum Order {
    AsRecords,
    ByKey,
    AsAnswers,
}

impl Order {
    /// Makes calls of which a few take longer than a checkpoint.
    fn call<'a, T: State + Send>(self, name: &str, records: Stream<'a, T>, key: fn(&T) -> i64) -> Stream<'a, T> {
        let call = move |record: T| async move {
            if key(&record) % 64 == 7 {
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            record
        };
        let answers = match self {
            Order::AsRecords => records.map_async(Calls::ordered(64).kept(), call),
            Order::ByKey => records.map_async(Calls::by_key(key, 64).kept(), call),
            Order::AsAnswers => records.map_async(Calls::unordered(64).kept(), call),
        };
        answers.named(name).or_stop()
    }
}

#[derive(Clone, Debug)]
struct Plan {
    records: i64,
    partitions: usize,
    keys: i64,
    batch: u64,
    first: First,
    emit: Emit,
    second: Second,
    /// Calls before each of the two.
    calls: [Option<Order>; 2],
}

impl Plan {
    /// A random plan; each `shrink` halves its records.
    fn drawn(random: &mut fastrand::Rng, shrink: u32) -> Plan {
        let all = [
            First::Dedup,
            First::Count,
            First::Max,
            First::Min,
            First::Sum,
            First::Mean,
            First::Reduce,
            First::Fold,
            First::TopK,
            First::Latest,
        ];
        let first = *random.choice(&all).unwrap();
        let second = match first {
            First::Dedup => &[Second::None, Second::Count, Second::Max, Second::Distinct][..],
            // Their values grow, so the largest of all updates is the largest of the last ones.
            First::Count | First::Max | First::Sum | First::Reduce | First::Fold | First::TopK => {
                &[Second::None, Second::Max]
            }
            First::Min | First::Mean | First::Latest => &[Second::None],
        };
        let records = (random.i64(100..2_000) >> shrink).max(20);
        Plan {
            records,
            batch: records as u64 / random.u64(3..10),
            partitions: if matches!(first, First::Latest) { 1 } else { random.usize(1..6) },
            keys: random.i64(1..2_000),
            first,
            emit: *random.choice(&[Emit::Updates, Emit::Complete, Emit::Changes, Emit::Every]).unwrap(),
            second: *random.choice(second).unwrap(),
            calls: [(); 2].map(|()| match random.u8(0..6) {
                0 => Some(Order::AsRecords),
                1 => Some(Order::ByKey),
                2 => Some(Order::AsAnswers),
                _ => None,
            }),
        }
    }

    fn number(&self, n: i64) -> i64 {
        n * 7_919 % 10_007
    }

    fn key(&self, number: i64) -> i64 {
        number % self.keys
    }

    /// The pipeline: all values that come out, under their keys.
    fn build<'a>(&self, numbers: Stream<'a, i64>) -> Stream<'a, (i64, i64)> {
        let keys = self.keys;
        let numbers = match self.calls[0] {
            // With another number of workers the order is lost.
            Some(order) if !matches!(self.first, First::Latest) => order.call("calls", numbers, |n| *n),
            _ => numbers,
        };
        let by_key = numbers.key_by(move |n| n % keys);
        let first = match self.first {
            First::Dedup => by_key.dedup().named("first").map(move |n| (n % keys, n % keys)),
            First::Count => self.emitted(by_key.count(), |count| count as i64),
            First::Max => self.emitted(by_key.max(|n| *n), |max| max),
            First::Min => self.emitted(by_key.min(|n| *n), |min| min),
            First::Sum => self.emitted(by_key.sum(|n| *n), |sum| sum),
            First::Mean => self.emitted(by_key.mean(|n| *n as f64), |mean| (mean * 1e3) as i64),
            First::Reduce => self.emitted(by_key.reduce(|a, b| a + b), |sum| sum),
            First::Fold => self.emitted(by_key.aggregate(|| 7, |sum, n| *sum += n), |sum| sum),
            First::TopK => self.emitted(by_key.top_k(3, Ord::cmp), |top| top.iter().sum()),
            First::Latest => self.emitted(by_key.latest(), |latest| latest),
        };
        let first = match self.calls[1] {
            // What comes out of the last one must be in order, also with another number of workers.
            Some(order) if !matches!(self.second, Second::None) => order.call("more calls", first, |(key, _)| *key),
            _ => first,
        };
        let second = match self.second {
            Second::None => return first,
            Second::Count => {
                first.key_by(|(key, _)| key % 10).count().updates().map(|(key, count)| (key, count as i64))
            }
            Second::Max => first.key_by(|(key, _)| key % 10).max(|(_, value)| *value).updates(),
            Second::Distinct => first.map(|(key, _)| key % 100).distinct().map(|key| (key, 0)),
        };
        second.named("second")
    }

    /// What a table emits, without deletions.
    fn emitted<'a, V: Send + Clone + serde::Serialize + serde::de::DeserializeOwned + 'static>(
        &self,
        values: Aggregated<'a, i64, V>,
        number: fn(V) -> i64,
    ) -> Stream<'a, (i64, i64)> {
        let values = values.named("first");
        let rows = match self.emit {
            Emit::Updates => values.updates(),
            Emit::Every => values.every(Duration::from_micros(300)).updates(),
            Emit::Complete => values.complete().rows(),
            Emit::Changes => values.changes().flat_map(|change| match change {
                Change::Insert(row) => Some(row),
                Change::Delete(_) => None,
            }),
        };
        rows.map(move |(key, value)| (key, number(value)))
    }

    /// The last value under each key, computed from the whole input.
    fn expected(&self) -> BTreeMap<i64, i64> {
        let mut groups = BTreeMap::<i64, Vec<i64>>::new();
        (0..self.records).map(|n| self.number(n)).for_each(|n| groups.entry(self.key(n)).or_default().push(n));
        let value = |(key, group): (&i64, &Vec<i64>)| {
            let value = match self.first {
                First::Dedup => *key,
                First::Count => group.len() as i64,
                First::Max => *group.iter().max().unwrap(),
                First::Min => *group.iter().min().unwrap(),
                First::Sum | First::Reduce => group.iter().sum(),
                First::Mean => (group.iter().sum::<i64>() as f64 / group.len() as f64 * 1e3) as i64,
                First::Fold => 7 + group.iter().sum::<i64>(),
                First::TopK => {
                    let mut sorted = group.clone();
                    sorted.sort_unstable_by_key(|n| std::cmp::Reverse(*n));
                    sorted.iter().take(3).sum()
                }
                First::Latest => *group.last().unwrap(),
            };
            (*key, value)
        };
        let first: BTreeMap<i64, i64> = groups.iter().map(value).collect();
        let mut second = BTreeMap::<i64, i64>::new();
        match self.second {
            Second::None => return first,
            Second::Count => first.keys().for_each(|key| *second.entry(key % 10).or_default() += 1),
            Second::Max => first.iter().for_each(|(key, value)| {
                let max = second.entry(key % 10).or_insert(*value);
                *max = (*max).max(*value);
            }),
            Second::Distinct => second.extend(first.keys().map(|key| (key % 100, 0))),
        }
        second
    }
}

/// A directory in memory where there is one: thousands of syncs take minutes on a disk.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Runs a random plan with random crashes. Returns how often it went on from a checkpoint.
fn survive(seed: u64, shrink: u32) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let plan = Plan::drawn(&mut random, shrink);
    let (directory, results) = (directory(), collect());
    for run in 0.. {
        let trigger = match random.u8(0..3) {
            0 => Trigger::micro_batch(Duration::from_micros(random.u64(0..3_000))),
            1 => Trigger::AvailableNow,
            _ => Trigger::Continuous,
        };
        // The last run goes to the end.
        let fails_after = if run == 4 { -1 } else { random.i64(0..plan.records) };
        let (fuse, own, sink) = (Fuse::after(fails_after), plan.clone(), results.clone());
        let job = Job::new("random", move |flow| {
            let (fuse, plan) = (fuse.clone(), own.clone());
            let numbers: Vec<i64> = (0..own.records).map(|n| plan.number(n)).collect();
            // So that there are some checkpoints before a crash.
            let numbers = flow.source(rows(numbers).partitions(own.partitions))?.batch_at_most(own.batch);
            own.build(numbers.inspect(move |_| fuse.burn())).sink(&sink)
        });
        let (workers, every) = (random.usize(1..5), Duration::from_micros(random.u64(1_000..4_000)));
        let job = job.checkpoints(directory.path()).checkpoint_every(every).trigger(trigger).workers(workers);
        let what = || format!("seed {seed}, run {run} with {workers} workers under {trigger}: {plan:?}");
        let read = match job.run() {
            Ok(report) => report.records_in(),
            Err(error) if error.kind() == ErrorKind::Panic && fails_after >= 0 => continue,
            Err(error) => panic!("{}: {error:#}", what()),
        };
        let last: BTreeMap<i64, i64> = results.take().into_iter().collect();
        assert!(!last.is_empty(), "{}: nothing came out", what());
        assert_eq!(last, plan.expected(), "{}", what());
        return usize::from(read < plan.records as u64);
    }
    unreachable!("the last run goes to the end")
}

/// As [`survive`]. A plan that fails is tried with half of its records, and half of those, as long
/// as it still fails: a few runs each, for what fails may depend on the moment.
fn shrinking(seed: u64) -> usize {
    let fails = |shrink| catch_unwind(AssertUnwindSafe(|| survive(seed, shrink)));
    let mut failure = match fails(0) {
        Ok(resumed) => return resumed,
        Err(failure) => failure,
    };
    for shrink in 1..8 {
        match (0..5).find_map(|_| fails(shrink).err()) {
            Some(smaller) => failure = smaller,
            None => break,
        }
    }
    resume_unwind(failure)
}

/// A quarter of the cases: the quarters run at the same time.
fn survive_all(quarter: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let seeds = number("MILLSTREAM_SEEDS").unwrap_or(2_000).div_ceil(4);
    let first = number("MILLSTREAM_SEED").unwrap_or(1) + quarter * seeds;
    let resumed: usize = (first..first + seeds).map(shrinking).sum();
    assert!(resumed as u64 * 2 > seeds, "only {resumed} of {seeds} went on from a checkpoint");
}

#[test]
fn random_pipelines_survive_random_crashes() {
    survive_all(0);
}

#[test]
fn random_pipelines_survive_random_crashes_2() {
    survive_all(1);
}

#[test]
fn random_pipelines_survive_random_crashes_3() {
    survive_all(2);
}

#[test]
fn random_pipelines_survive_random_crashes_4() {
    survive_all(3);
}
