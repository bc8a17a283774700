//! Windows over event time, against a recomputation that knows only the order of records within
//! their partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream::{
    Calls, Clock, Collected, ErrorKind, EventTime, Flow, Job, Late, Lateness, Pane, Result, Stream, Trigger, Tumbling,
    Watermark, channel, collect, discard, rows,
};

use crate::recovery::Fuse;
use crate::support::{PATIENCE, eventually};

/// A record: its key, its event time, and a number.
type Row = (i64, i64, i64);

/// A random stream, and what is done with it.
#[derive(Clone, Debug)]
struct Plan {
    /// In each partition as many rows.
    partitions: Vec<Vec<Row>>,
    /// So many of them belong to the first source, the others to a second.
    in_first: usize,
    /// The delay of each.
    delays: [u64; 2],
    /// The length of windows, and their offset.
    length: u64,
    offset: u64,
    /// Windows that follow, over the rows of the first.
    second: Option<u64>,
    hands_late_on: bool,
    /// Whether records change workers once more on their way. What sources report does not.
    detours: bool,
    batch: u64,
}

/// By key and start of window.
type Sums = BTreeMap<(i64, i64), i64>;

/// Where finals and late records go.
type Sinks = (Collected<Pane<i64, i64>>, Collected<(Row, i64)>);

impl Plan {
    fn drawn(random: &mut fastrand::Rng) -> Plan {
        let (count, each) = (random.usize(1..6), random.usize(10..600));
        let (keys, disorder) = (*random.choice(&[3, 30, 3_000]).unwrap(), random.i64(1..400));
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
            in_first: if random.bool() { count } else { random.usize(1..=count) },
            delays: [(); 2].map(|()| random.u64(0..300)),
            length,
            offset: random.u64(0..1_000),
            second: random.bool().then(|| length * random.u64(1..5)),
            hands_late_on: random.bool(),
            detours: random.bool(),
            batch: (count * each) as u64 / random.u64(2..12) + 1,
        }
    }

    /// The rows of a source, with a watermark.
    fn source<'a>(&self, flow: &Flow<'a>, index: usize, fuse: &Fuse) -> Result<Option<Stream<'a, Row>>> {
        let (first, second) = self.partitions.split_at(self.in_first);
        let partitions = [first, second][index];
        if partitions.is_empty() {
            return Ok(None);
        }
        let (fuse, delay) = (fuse.clone(), millis(self.delays[index]));
        let source = flow.source(rows(partitions.concat()).partitions(partitions.len()))?.named(["one", "two"][index]);
        let rows = source.batch_at_most(self.batch).inspect(move |_| fuse.burn());
        Ok(Some(rows.with_watermark(|(_, at, _)| EventTime(*at), delay)))
    }

    fn windows(&self) -> Tumbling {
        Tumbling::new(millis(self.length)).offset(millis(self.offset))
    }

    fn build(&self, flow: &Flow<'_>, fuse: &Fuse, (finals, late): &Sinks) -> Result<()> {
        let first = self.source(flow, 0, fuse)?.expect("it has a partition");
        let timed = match self.source(flow, 1, fuse)? {
            Some(second) => first.union(second),
            None => first,
        };
        let timed = if self.detours { timed.rebalance() } else { timed };
        let mut windows = timed.key_by(|(key, ..)| *key).window(self.windows());
        if self.hands_late_on {
            let (others, records) = windows.late();
            windows = others;
            records.map(|late| (late.record, late.windows[0].start.0)).sink(late)?;
        }
        let sums = windows.sum(|(.., number)| *number).named("first").finals();
        let Some(length) = self.second else { return sums.sink(finals) };
        let by_key = sums.key_by(|pane| pane.key % 3).window(Tumbling::new(millis(length)));
        by_key.sum(|pane| pane.value).named("second").finals().sink(finals)
    }

    /// The sums by key and start of window, and the late records with the starts that they missed.
    fn expected(&self) -> (Sums, Vec<(Row, i64)>) {
        let (mut sums, mut late) = (BTreeMap::new(), Vec::new());
        let start = |at: i64, length: u64, offset: u64| at - (at - offset as i64).rem_euclid(length as i64);
        for (index, partition) in self.partitions.iter().enumerate() {
            let delay = self.delays[usize::from(index >= self.in_first)];
            let mut largest = None;
            for (key, at, number) in partition {
                let start = start(*at, self.length, self.offset);
                let mark = largest.map(|largest: i64| largest - delay as i64);
                match mark.is_some_and(|mark| start + self.length as i64 <= mark) {
                    true => late.push(((*key, *at, *number), start)),
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
    let all = plan.partitions.concat().len() as u64;
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let sinks: Sinks = (collect(), collect());
    for run in 0.. {
        let trigger = match random.u8(0..3) {
            0 => Trigger::micro_batch(Duration::from_micros(random.u64(0..3_000))),
            1 => Trigger::AvailableNow,
            _ => Trigger::Continuous,
        };
        // The last run goes to the end.
        let fails_after = if run == 3 { -1 } else { random.i64(0..all as i64 * 2) };
        let (fuse, own, sink) = (Fuse::after(fails_after), plan.clone(), sinks.clone());
        let job = Job::new("windows", move |flow| own.build(flow, &fuse, &sink));
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
        for pane in sinks.0.take() {
            let before = came.insert((pane.key, pane.window.start.0), pane.value);
            assert!(before.is_none_or(|before| before == pane.value), "{}: another final: {pane:?}", what());
        }
        assert_eq!(came, expected, "{}", what());
        assert!(!came.is_empty(), "{}: nothing came out", what());
        let went_on = report.records_in() < all;
        let stage = |name: &str| report.stages.iter().find(|stage| stage.name == name).unwrap().clone();
        if !went_on {
            assert_eq!(stage("first").late, late.len() as u64, "{}", what());
        }
        if plan.hands_late_on {
            let came: BTreeSet<_> = sinks.1.take().into_iter().collect();
            assert_eq!(came, late.iter().copied().collect(), "{}", what());
        }
        if plan.second.is_some() {
            assert_eq!(stage("second").late, 0, "what is final is in time: {}", what());
        }
        return (!late.is_empty(), went_on);
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
    assert!(late * 3 > seeds && went_on * 5 > seeds, "{late} with late records, {went_on} went on, of {seeds}");
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
    let error = mistake(|flow| {
        let calls = timed(numbers(flow)?).map_async(Calls::ordered(4).kept(), |n| async move { n });
        windows(calls.or_stop())
    });
    assert!(error.contains("`map_async` before it hands records on"), "{error}");
    let error = mistake(|flow| {
        let (counts, late) = timed(numbers(flow)?).key_by(|n| *n).window(Tumbling::new(millis(10))).late();
        counts.count().named("first").finals().sink(discard())?;
        windows(late.map(|late| late.record))
    });
    assert!(error.contains("the rows of `late` have none"), "{error}");
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

/// Epochs are 100 ms long, and a window does not wait for the end of one.
#[test]
fn a_window_closes_with_the_record_that_lets_it() {
    let (clock, finals) = (Clock::simulated(), collect());
    let (sender, numbers) = channel(100);
    let sink = finals.clone();
    let job = Job::new("prompt", move |flow| {
        let by_number = timed(flow.source(&numbers)?).key_by(|n| n % 2);
        let counts = by_number.window(Tumbling::new(millis(10))).count().finals();
        counts.map(|pane| (pane.key, pane.window.end.0, pane.value)).sink(&sink)
    });
    let job = job.state_in_memory().checkpoint_every(Duration::from_secs(3_600)).clock(clock.clone());
    let running = job.workers(2).start().unwrap();
    [1, 2, 10].into_iter().for_each(|n| drop(sender.try_send(n).unwrap()));
    eventually("the records are there", || {
        running.report().stages.iter().find(|stage| stage.name == "count").is_some_and(|stage| stage.records_in == 3)
    });
    // The delay is a millisecond: this lets the first window close, and opens the second epoch.
    drop(sender.try_send(11).unwrap());
    let mut advanced = 0;
    eventually("the window is closed", || {
        clock.advance(millis(1));
        advanced += 1;
        finals.len() == 2
    });
    let mut finals = finals.take();
    finals.sort_unstable();
    assert_eq!(finals, [(0, 10, 1), (1, 10, 1)]);
    drop((sender, running.report()));
    running.handle().stop();
    let report = running.wait().unwrap();
    assert!(report.epochs < 20, "{advanced} ms, {} epochs", report.epochs);
}

type LateTimes = Vec<Late<Option<i64>>>;

/// What comes out of windows of 10 ms with a delay of 5 ms, and the late records.
fn outcome(times: &[Option<i64>]) -> (Vec<(i64, u64)>, LateTimes) {
    let (counts, late, times) = (collect(), collect(), times.to_vec());
    let sinks = (counts.clone(), late.clone());
    let job = Job::new("edges", move |flow| {
        let times = flow.source(rows(times.clone()).partitions(1))?;
        let timed = times.with_watermark(|at| at.map(EventTime), millis(5));
        let (windows, late) = timed.global().window(Tumbling::new(millis(10))).late();
        late.sink(&sinks.1)?;
        windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sinks.0)
    });
    job.state_in_memory().start().unwrap().wait_for(PATIENCE).expect("it ends").unwrap();
    (counts.values(), late.values())
}

#[test]
fn a_record_is_late_by_its_mark_to_the_millisecond() {
    for began in [-1_764_000_000_000, -10, 0, 1_764_000_000_000] {
        // The mark is a millisecond before the end of the first window, and then at it.
        let (counts, late) = outcome(&[Some(began + 14), Some(began + 9)]);
        assert_eq!((counts, late.len()), (vec![(began, 1), (began + 10, 1)], 0));
        let (counts, late) = outcome(&[Some(began + 15), Some(began + 9), Some(began + 10)]);
        assert_eq!(counts, [(began + 10, 2)]);
        assert_eq!(late.len(), 1);
        assert_eq!((late[0].record, late[0].why), (Some(began + 9), Lateness::Closed));
        assert_eq!((late[0].windows[0].start.0, late[0].windows[0].end.0), (began, began + 10));
        // It is judged by the mark before it.
        let (counts, late) = outcome(&[Some(began), Some(began + 1_000), Some(began + 1_001)]);
        assert_eq!((counts, late.len()), (vec![(began, 1), (began + 1_000, 2)], 0));
    }
}

#[test]
fn a_record_without_a_time_moves_nothing_and_is_late() {
    let (counts, late) = outcome(&[Some(3), None, Some(i64::MIN), Some(4)]);
    assert_eq!(counts, [(0, 2)]);
    let late: Vec<_> = late.into_iter().map(|late| (late.record, late.time, late.windows.len(), late.why)).collect();
    assert_eq!(late, [(None, None, 0, Lateness::NoTime), (Some(i64::MIN), None, 0, Lateness::NoTime)]);
}

#[test]
fn a_time_that_is_too_far_ahead_moves_nothing_and_is_late() {
    let (counts, late) = (collect(), collect());
    let sinks = (counts.clone(), late.clone());
    let job = Job::new("ahead", move |flow| {
        let times = flow.source(rows([3, 101, 100, i64::MAX, 4]).partitions(1))?;
        let watermark = Watermark::delay(millis(200)).ahead_at_most(millis(100));
        let timed = times.with_watermark(|at| EventTime(*at), watermark);
        let (windows, late) = timed.global().window(Tumbling::new(millis(10))).late();
        late.map(|late| (late.record, late.windows.len(), late.why)).sink(&sinks.1)?;
        windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sinks.0)
    });
    // Its clock stands at 1970.
    let mut running = job.state_in_memory().clock(Clock::simulated()).start().unwrap();
    running.wait_for(PATIENCE).expect("it ends").unwrap();
    assert_eq!(counts.values(), [(0, 2), (100, 1)]);
    assert_eq!(late.values(), [(101, 1, Lateness::Ahead), (i64::MAX, 1, Lateness::Ahead)]);
}

#[test]
fn the_ends_of_time_are_in_windows() {
    let (counts, late) = outcome(&[Some(i64::MIN + 1), Some(i64::MAX - 1), Some(i64::MAX)]);
    assert_eq!((counts.iter().map(|(_, count)| *count).collect::<Vec<_>>(), late.len()), (vec![1, 2], 0));
}
