//! Windows over event time, against a recomputation that knows only the order of records within
//! their partitions.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::{ErrorKind, EventTime, Flow, Job, Pane, Result, Stream, Trigger, Tumbling, collect, discard, rows};

use crate::recovery::Fuse;
use crate::support::PATIENCE;

/// A record: its key, its event time, and a number.
type Row = (i64, i64, i64);

/// A random stream, and what is done with it.
#[derive(Clone, Debug)]
struct Plan {
    /// In each partition as many rows.
    partitions: Vec<Vec<Row>>,
    delay: u64,
    /// The length of windows, and their offset.
    length: u64,
    offset: u64,
    /// Windows that follow, over the rows of the first.
    second: Option<u64>,
    batch: u64,
}

impl Plan {
    fn drawn(random: &mut fastrand::Rng) -> Plan {
        let (count, each) = (random.usize(1..6), random.usize(10..300));
        let (keys, disorder) = (random.i64(1..40), random.i64(1..400));
        let began = *random.choice(&[-5_000, 0, 1_764_000_000_000_i64]).unwrap();
        let partition = |random: &mut fastrand::Rng| {
            let (mut now, pace) = (began + random.i64(0..500), random.i64(1..20));
            let rows = (0..each).map(|_| {
                now += random.i64(0..pace);
                (random.i64(0..keys), now - random.i64(0..disorder), random.i64(0..100))
            });
            rows.collect()
        };
        let length = random.u64(1..300);
        Plan {
            partitions: (0..count).map(|_| partition(random)).collect(),
            delay: random.u64(0..300),
            length,
            offset: random.u64(0..1_000),
            second: random.bool().then(|| length * random.u64(1..5)),
            batch: (count * each) as u64 / random.u64(2..12) + 1,
        }
    }

    fn rows(&self) -> Vec<Row> {
        self.partitions.concat()
    }

    fn windows(&self) -> Tumbling {
        Tumbling::new(millis(self.length)).offset(millis(self.offset))
    }

    fn build<'a>(&self, rows: Stream<'a, Row>) -> Stream<'a, Pane<i64, i64>> {
        let timed = rows.with_watermark(|(_, at, _)| EventTime(*at), millis(self.delay));
        let sums = timed.key_by(|(key, ..)| *key).window(self.windows()).sum(|(.., number)| *number);
        let sums = sums.named("first").finals();
        match self.second {
            None => sums,
            Some(length) => {
                let by_key = sums.key_by(|pane| pane.key % 3).window(Tumbling::new(millis(length)));
                by_key.sum(|pane| pane.value).named("second").finals()
            }
        }
    }

    /// The sums by key and start of window, and the number of late records.
    fn expected(&self) -> (BTreeMap<(i64, i64), i64>, u64) {
        let (mut sums, mut late) = (BTreeMap::new(), 0);
        let start = |at: i64, length: u64, offset: u64| at - (at - offset as i64).rem_euclid(length as i64);
        for partition in &self.partitions {
            let mut largest = None;
            for (key, at, number) in partition {
                let start = start(*at, self.length, self.offset);
                let mark = largest.map(|largest: i64| largest - self.delay as i64);
                match mark.is_some_and(|mark| start + self.length as i64 <= mark) {
                    true => late += 1,
                    false => *sums.entry((*key, start)).or_default() += number,
                }
                largest = largest.max(Some(*at));
            }
        }
        let Some(length) = self.second else { return (sums, late) };
        let mut second = BTreeMap::new();
        for ((key, first), sum) in sums {
            let last = first + self.length as i64 - 1;
            *second.entry((key % 3, start(last, length, 0))).or_default() += sum;
        }
        (second, late)
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Runs a random plan with random crashes. Returns whether anything was late, and whether it went
/// on from a checkpoint.
fn survive(seed: u64) -> (bool, bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let plan = Plan::drawn(&mut random);
    let all = plan.rows().len() as u64;
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let finals = collect();
    for run in 0.. {
        let trigger = match random.u8(0..3) {
            0 => Trigger::micro_batch(Duration::from_micros(random.u64(0..3_000))),
            1 => Trigger::AvailableNow,
            _ => Trigger::Continuous,
        };
        // The last run goes to the end.
        let fails_after = if run == 3 { -1 } else { random.i64(0..all as i64 * 2) };
        let (fuse, own, sink) = (Fuse::after(fails_after), plan.clone(), finals.clone());
        let job = Job::new("windows", move |flow| {
            let fuse = fuse.clone();
            let rows = flow.source(rows(own.rows()).partitions(own.partitions.len()))?.batch_at_most(own.batch);
            own.build(rows.inspect(move |_| fuse.burn())).sink(&sink)
        });
        let (workers, every) = (random.usize(1..5), Duration::from_micros(random.u64(1_000..4_000)));
        let job = job.checkpoints(directory.path()).checkpoint_every(every).trigger(trigger).workers(workers);
        let what = || format!("seed {seed}, run {run} with {workers} workers under {trigger}: {plan:?}");
        let report = match job.start().unwrap().wait_for(PATIENCE).unwrap_or_else(|| panic!("stuck: {}", what())) {
            Ok(report) => report,
            Err(error) if error.kind() == ErrorKind::Panic && fails_after >= 0 => continue,
            Err(error) => panic!("{}: {error:#}", what()),
        };
        let (expected, late) = plan.expected();
        let mut came = BTreeMap::new();
        for pane in finals.take() {
            let before = came.insert((pane.key, pane.window.start.0), pane.value);
            assert!(before.is_none_or(|before| before == pane.value), "{}: another final: {pane:?}", what());
        }
        assert_eq!(came, expected, "{}", what());
        assert!(!came.is_empty(), "{}: nothing came out", what());
        let went_on = report.records_in() < all;
        let stage = |name: &str| report.stages.iter().find(|stage| stage.name == name).unwrap().clone();
        if !went_on {
            assert_eq!(stage("first").late, late, "{}", what());
        }
        if plan.second.is_some() {
            assert_eq!(stage("second").late, 0, "what is final is in time: {}", what());
        }
        return (late > 0, went_on);
    }
    unreachable!("the last run goes to the end")
}

fn survive_all(half: u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let seeds = number("MILLSTREAM_SEEDS").unwrap_or(1_000).div_ceil(2);
    let first = number("MILLSTREAM_SEED").unwrap_or(1) + half * seeds;
    let all: Vec<(bool, bool)> = (first..first + seeds).map(survive).collect();
    let count = |of: fn(&(bool, bool)) -> bool| all.iter().filter(|one| of(one)).count() as u64;
    let (late, went_on) = (count(|one| one.0), count(|one| one.1));
    assert!(late * 3 > seeds && went_on * 3 > seeds, "{late} with late records, {went_on} went on, of {seeds}");
}

#[test]
fn finals_are_those_of_a_recomputation() {
    survive_all(0);
}

#[test]
fn finals_are_those_of_a_recomputation_2() {
    survive_all(1);
}

/// The error of a pipeline at its start.
fn mistake(pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) -> String {
    let error = Job::new("mistake", pipeline).state_in_memory().run().expect_err("it cannot be built");
    assert_eq!(error.kind(), ErrorKind::Pipeline, "{error:#}");
    format!("{error:#}")
}

fn numbers<'a>(flow: &Flow<'a>) -> Result<Stream<'a, i64>> {
    flow.source(rows(0..10_i64))
}

fn timed(numbers: Stream<'_, i64>) -> Stream<'_, i64> {
    numbers.with_watermark(|n| EventTime(*n), millis(1))
}

fn windows(numbers: Stream<'_, i64>) -> Result<()> {
    numbers.key_by(|n| *n).window(Tumbling::new(millis(10))).count().finals().sink(discard())
}

#[test]
fn mistakes_are_errors_that_say_where_it_belongs() {
    let error = mistake(|flow| windows(numbers(flow)?));
    assert!(error.contains("`count` waits for event time, and the stream of `rows` has no watermark"), "{error}");
    let error = mistake(|flow| windows(timed(numbers(flow)?).union(numbers(flow)?)));
    assert!(error.contains("a part of its stream has no watermark, that of `rows 2`"), "{error}");
    let error = mistake(|flow| {
        let counts = timed(numbers(flow)?).key_by(|n| *n).count().named("running").updates();
        windows(counts.map(|(n, _)| n))
    });
    assert!(error.contains("the rows of `running` have none"), "{error}");
    let error = mistake(|flow| windows(timed(numbers(flow)?.rebalance())));
    assert!(error.contains("must stand behind its source") && error.contains("`rebalance`"), "{error}");
    let error = mistake(|flow| {
        let (even, odd) = numbers(flow)?.branch(|n| n % 2 == 0);
        odd.sink(discard())?;
        windows(timed(even))
    });
    assert!(error.contains("must stand behind its source") && error.contains("`branch`"), "{error}");
    let error = mistake(|flow| windows(timed(timed(numbers(flow)?))));
    assert!(error.contains("the stream has a watermark already"), "{error}");
    for length in [Duration::ZERO, Duration::from_micros(1_500)] {
        let error = mistake(move |flow| {
            let by_number = timed(numbers(flow)?).key_by(|n| *n);
            by_number.window(Tumbling::new(length)).count().finals().sink(discard())
        });
        assert!(error.contains(&format!("not {length:?}")), "{error}");
    }
}
