//! Random pipelines with state under random crashes and restarts, with another number of workers
//! and under another trigger, against a recomputation of the whole input.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use millstream::{
    Aggregated, Calls, Change, ErrorKind, Job, Key, KeyedStream, Quantiles, State, Stream, Trigger, collect, rows,
};

use crate::recovery::Fuse;

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
    Initial,
    Different,
    Median,
    Global,
    Batches(Batched),
    /// The first rows of the sorted table.
    Ranked,
}

/// What is made of each batch. Added up over all batches it is the sum or the count by key.
#[derive(Clone, Copy, Debug)]
enum Batched {
    Count,
    Reduce,
    Group,
    CountByValue,
    Transform,
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
    /// By all of its key.
    Sum,
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
            First::Initial,
            First::Different,
            First::Median,
            First::Global,
            First::Batches(Batched::Count),
            First::Batches(Batched::Reduce),
            First::Batches(Batched::Group),
            First::Batches(Batched::CountByValue),
            First::Batches(Batched::Transform),
            First::Ranked,
        ];
        let first = *random.choice(&all).unwrap();
        let second = match first {
            First::Dedup => &[Second::None, Second::Count, Second::Max, Second::Distinct][..],
            // Their values grow, so the largest of all updates is the largest of the last ones.
            First::Count
            | First::Max
            | First::Sum
            | First::Reduce
            | First::Fold
            | First::TopK
            | First::Initial
            | First::Global => &[Second::None, Second::Max],
            First::Min | First::Mean | First::Latest | First::Different | First::Median | First::Ranked => {
                &[Second::None]
            }
            // A batch is as large as it happens to be.
            First::Batches(_) => &[Second::Sum],
        };
        let records = (random.i64(100..2_000) >> shrink).max(20);
        Plan {
            records,
            batch: records as u64 / random.u64(3..10),
            partitions: if matches!(first, First::Latest) { 1 } else { random.usize(1..6) },
            keys: if matches!(first, First::Global) { 1 } else { random.i64(1..2_000) },
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
        if matches!(self.first, First::Global) {
            let first = self.emitted(numbers.global().count(), |()| 0, |count| count as i64);
            return self.then(first);
        }
        let by_key = numbers.key_by(move |n| n % keys);
        let first = match self.first {
            First::Dedup => by_key.dedup().named("first").map(move |n| (n % keys, n % keys)),
            First::Count => self.emitted(by_key.count(), |key| key, |count| count as i64),
            First::Max => self.emitted(by_key.max(|n| *n), |key| key, |max| max),
            First::Min => self.emitted(by_key.min(|n| *n), |key| key, |min| min),
            First::Sum => self.emitted(by_key.sum(|n| *n), |key| key, |sum| sum),
            First::Mean => self.emitted(by_key.mean(|n| *n as f64), |key| key, |mean| (mean * 1e3) as i64),
            First::Reduce => self.emitted(by_key.reduce(|a, b| a + b), |key| key, |sum| sum),
            First::Fold => self.emitted(by_key.aggregate(|| 7, |sum, n| *sum += n), |key| key, |sum| sum),
            First::TopK => self.emitted(by_key.top_k(3, Ord::cmp), |key| key, |top| top.iter().sum()),
            First::Latest => self.emitted(by_key.latest(), |key| key, |latest| latest),
            First::Initial => {
                self.emitted(by_key.count().initial([(0, 1_000), (0, 1)]), |key| key, |count| count as i64)
            }
            First::Different => {
                self.emitted(by_key.approx_count_distinct(|n| n % 500), |key| key, |count| count as i64)
            }
            First::Median => self.emitted(by_key.approx_quantiles(|n| *n as f64), |key| key, |all| median(&all)),
            First::Ranked => {
                let sums = by_key.sum(|n| *n).named("first").complete();
                sums.sorted_by(|a, b| rank(*a).cmp(&rank(*b))).limit(self.limit()).rows()
            }
            First::Batches(batched) => self.batched(batched, by_key),
            First::Global => unreachable!("it has no keys"),
        };
        self.then(first)
    }

    /// How many rows a sorted table shows: all of them, or not.
    fn limit(&self) -> usize {
        if self.keys % 2 == 0 { 7 } else { usize::MAX }
    }

    fn batched<'a>(&self, batched: Batched, by_key: KeyedStream<'a, i64, i64>) -> Stream<'a, (i64, i64)> {
        let keys = self.keys;
        let by_key = by_key.per_batch();
        match batched {
            Batched::Count => by_key.count().map(|(key, count)| (key, count as i64)),
            Batched::Reduce => by_key.reduce(|a, b| a + b),
            Batched::Group => by_key.group().map(|(key, numbers)| (key, numbers.iter().sum())),
            Batched::CountByValue => {
                let counts = by_key.group().flat_map(|(_, numbers)| numbers).per_batch().count_by_value();
                counts.map(move |(n, count)| (n % keys, count as i64))
            }
            Batched::Transform => {
                let numbers = by_key.group().flat_map(|(_, numbers)| numbers);
                numbers.per_batch().transform(|numbers| numbers).map(move |n| (n % keys, n))
            }
        }
    }

    /// What is done with what comes out of the first operator.
    fn then<'a>(&self, first: Stream<'a, (i64, i64)>) -> Stream<'a, (i64, i64)> {
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
            Second::Sum => first.key_by(|(key, _)| *key).sum(|(_, value)| *value).updates(),
        };
        second.named("second")
    }

    /// What a table emits, without deletions.
    fn emitted<'a, K: Key, V: State + Send>(
        &self,
        values: Aggregated<'a, K, V>,
        key: fn(K) -> i64,
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
        rows.map(move |(of, value)| (key(of), number(value)))
    }

    /// The last value under each key, computed from the whole input.
    fn expected(&self) -> BTreeMap<i64, i64> {
        let mut groups = BTreeMap::<i64, Vec<i64>>::new();
        (0..self.records).map(|n| self.number(n)).for_each(|n| groups.entry(self.key(n)).or_default().push(n));
        let value = |(key, group): (&i64, &Vec<i64>)| {
            let value = match self.first {
                First::Dedup => *key,
                First::Count | First::Global => group.len() as i64,
                First::Batches(Batched::Count | Batched::CountByValue) => group.len() as i64,
                First::Initial if *key == 0 => 1_000 + group.len() as i64,
                First::Initial => group.len() as i64,
                First::Different => different(group),
                First::Median => {
                    let mut all = Quantiles::new();
                    group.iter().for_each(|n| all.add(*n as f64));
                    median(&all)
                }
                First::Max => *group.iter().max().unwrap(),
                First::Min => *group.iter().min().unwrap(),
                First::Sum | First::Reduce | First::Ranked | First::Batches(_) => group.iter().sum(),
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
            Second::None | Second::Sum => return first,
            Second::Count => first.keys().for_each(|key| *second.entry(key % 10).or_default() += 1),
            Second::Max => first.iter().for_each(|(key, value)| {
                let max = second.entry(key % 10).or_insert(*value);
                *max = (*max).max(*value);
            }),
            Second::Distinct => second.extend(first.keys().map(|key| (key % 100, 0))),
        }
        second
    }

    /// Compares what came out with what had to.
    fn check(&self, results: Vec<(i64, i64)>, what: &str) {
        let expected = self.expected();
        if let First::Ranked = self.first {
            let mut rows: Vec<(i64, i64)> = expected.into_iter().collect();
            rows.sort_unstable_by_key(|row| rank(*row));
            rows.truncate(self.limit());
            let table = &results[results.len().saturating_sub(rows.len())..];
            return assert_eq!(table, rows, "{what}");
        }
        let last: BTreeMap<i64, i64> = results.into_iter().collect();
        assert!(!last.is_empty(), "{what}: nothing came out");
        assert_eq!(last, expected, "{what}");
    }
}

/// The largest first; no two rows are the same.
fn rank((key, value): (i64, i64)) -> (std::cmp::Reverse<i64>, i64) {
    (std::cmp::Reverse(value), key)
}

fn median(all: &Quantiles) -> i64 {
    (all.at(0.5).unwrap() * 1e3) as i64
}

/// The estimate does not depend on the order, so this is what the other run must come to.
fn different(group: &[i64]) -> i64 {
    let (group, counts) = (group.to_vec(), collect());
    let sink = counts.clone();
    let job = Job::new("different", move |flow| {
        flow.source(rows(group.clone()))?.global().approx_count_distinct(|n| n % 500).updates().sink(&sink)
    });
    job.state_in_memory().trigger(Trigger::micro_batch(Duration::ZERO)).run().unwrap();
    counts.take().pop().unwrap().1 as i64
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
        plan.check(results.take(), &what());
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
