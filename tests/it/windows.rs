//! Windows over event time, against a recomputation that knows only the order of records within
//! their partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream::{
    Calls, Change, Collected, ErrorKind, EventTime, Flow, InTime, Job, Late, Pane, Result, Session, Sliding, Stream,
    Trigger, Tumbling, Windowed, collect, rows,
};

mod calls;
mod clock;
mod cuts;
mod dedup;
mod edges;
mod migration;
mod mistakes;
mod policies;

use crate::recovery::Fuse;
use crate::support::PATIENCE;

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
    kind: Kind,
    shown: Shown,
    /// How long windows stay open behind their end; sessions never do.
    lateness: u64,
    /// Whether the values of records that are added one by one can be merged.
    merges: bool,
    /// Windows that follow, each over the rows of those before.
    later: Vec<Kind>,
    /// Before which of the windows there are calls that outlast checkpoints, if before any.
    calls_before: Option<usize>,
    hands_late_on: bool,
    /// Whether records change workers once more on their way. What sources report does not.
    detours: bool,
    batch: u64,
}

/// What windows there are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Fixed {
        length: i64,
        step: i64,
        offset: i64,
    },
    Session {
        gap: i64,
    },
    /// The number of a record is the gap behind it.
    Gaps,
}

/// What of them is emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Finals,
    Updates,
    EarlyUpdates,
    Changes,
    /// All windows, for which nothing is late.
    Complete,
}

/// By key, start and end of window.
type Sums = BTreeMap<(i64, i64, i64), i64>;

/// A record, and the starts of the windows that it missed.
type LateRow = (Row, Vec<i64>);

/// Where what is shown and late records go.
type Sinks = (Collected<Change<Pane<i64, i64>>>, Collected<LateRow>);

impl Kind {
    fn drawn(random: &mut fastrand::Rng, is_first: bool) -> Kind {
        let (length, offset) = (random.i64(1..300), random.i64(0..1_000));
        match random.u8(0..6) {
            0 | 1 => Kind::Fixed { length, step: length, offset },
            2 | 3 => {
                // Up to ten windows around a record, whose panes are those of both numbers.
                let step = random.i64((length / 10).max(1)..=length);
                Kind::Fixed { length, step, offset }
            }
            4 if is_first => Kind::Gaps,
            _ => Kind::Session { gap: random.i64(1..60) },
        }
    }

    /// The windows around a time, each with its start and end.
    fn around(self, at: i64) -> Vec<(i64, i64)> {
        let Kind::Fixed { length, step, offset } = self else { panic!("a session depends on the others") };
        let last = at - (at - offset).rem_euclid(step);
        let starts = (0..).map(|back| last - back * step).take_while(|start| start + length > at);
        let mut all: Vec<_> = starts.map(|start| (start, start + length)).collect();
        all.reverse();
        all
    }

    fn gap(self, number: i64) -> i64 {
        match self {
            Kind::Fixed { .. } => panic!("it has no gap"),
            Kind::Session { gap } => gap,
            Kind::Gaps => number.max(1),
        }
    }

    /// The sums of these rows, none of which is late for the windows that it comes with.
    fn sums(self, rows: impl Iterator<Item = (Row, Vec<(i64, i64)>)>) -> Sums {
        let mut sums = Sums::new();
        if let Kind::Fixed { .. } = self {
            for ((key, _, number), windows) in rows {
                windows.iter().for_each(|(start, end)| *sums.entry((key, *start, *end)).or_default() += number);
            }
            return sums;
        }
        let mut rows: Vec<Row> = rows.map(|(row, _)| row).collect();
        rows.sort_unstable_by_key(|(key, at, _)| (*key, *at));
        let mut open: Option<(i64, i64, i64, i64)> = None;
        for (key, at, number) in rows {
            let end = at + self.gap(number);
            match &mut open {
                Some((own, _, until, sum)) if *own == key && at <= *until => {
                    (*until, *sum) = (end.max(*until), *sum + number);
                }
                open => {
                    let before = open.replace((key, at, end, number));
                    sums.extend(before.map(|(key, start, end, sum)| ((key, start, end), sum)));
                }
            }
        }
        sums.extend(open.map(|(key, start, end, sum)| ((key, start, end), sum)));
        sums
    }

    /// The windows that a row missed at that mark, and those that it counts in.
    fn judge(self, (_, at, number): Row, mark: Option<i64>, lateness: i64) -> (Vec<i64>, Vec<(i64, i64)>) {
        let is_late = |end: i64| mark.is_some_and(|mark| end + lateness <= mark);
        match self {
            Kind::Fixed { .. } => {
                let (late, others) = self.around(at).into_iter().partition::<Vec<_>, _>(|(_, end)| is_late(*end));
                (late.into_iter().map(|(start, _)| start).collect(), others)
            }
            _ if mark.is_some_and(|mark| at <= mark) => (vec![at], Vec::new()),
            _ => (Vec::new(), vec![(at, at + self.gap(number))]),
        }
    }
}

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
        let kind = Kind::drawn(random, true);
        let is_fixed = matches!(kind, Kind::Fixed { .. });
        let shown = match random.u8(0..7) {
            0 if is_fixed => Shown::Updates,
            1 if is_fixed => Shown::EarlyUpdates,
            2 => Shown::Changes,
            3 if is_fixed => Shown::Complete,
            _ => Shown::Finals,
        };
        let is_chained = shown == Shown::Finals && random.bool();
        let later =
            if is_chained { (0..random.u8(1..3)).map(|_| Kind::drawn(random, false)).collect() } else { vec![] };
        Plan {
            partitions: (0..count).map(|_| partition(random)).collect(),
            in_first: if random.bool() { count } else { random.usize(1..=count) },
            delays: [(); 2].map(|()| random.u64(0..300)),
            kind,
            shown,
            lateness: if is_fixed && shown != Shown::Complete && random.bool() { random.u64(0..300) } else { 0 },
            merges: random.bool(),
            calls_before: random.bool().then(|| random.usize(0..=later.len())),
            later,
            hands_late_on: shown != Shown::Complete && random.bool(),
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

    fn build(&self, flow: &Flow<'_>, fuse: &Fuse, sinks: &Sinks) -> Result<()> {
        let first = self.source(flow, 0, fuse)?.expect("it has a partition");
        let timed = match self.source(flow, 1, fuse)? {
            Some(second) => first.union(second),
            None => first,
        };
        let timed = if self.detours { timed.rebalance() } else { timed };
        let timed = self.call(timed, 0);
        let by_key = timed.key_by(|(key, ..)| *key);
        let rows = match self.kind {
            Kind::Fixed { length, step, offset } => {
                let (length, step, offset) = (millis(length as u64), millis(step as u64), millis(offset as u64));
                let windows = match length == step {
                    true => by_key.window(Tumbling::new(length).offset(offset)),
                    false => by_key.window(Sliding::new(length, step).offset(offset)),
                };
                let windows = self.late(windows.allowed_lateness(millis(self.lateness)), sinks)?;
                let sums = match self.merges {
                    true => windows.sum(|(.., number)| *number),
                    false => windows.aggregate(|| 0, |sum, (.., number)| *sum += number),
                };
                let sums = sums.named("first");
                match self.shown {
                    Shown::Updates => sums.updates().map(Change::Insert),
                    Shown::EarlyUpdates => sums.early(millis(1)).updates().map(Change::Insert),
                    Shown::Changes => sums.changes(),
                    Shown::Complete => sums.complete().map(Change::Insert),
                    Shown::Finals => return self.follow(sums.finals(), &sinks.0),
                }
            }
            Kind::Session { gap } => {
                let windows = self.late(by_key.window(Session::with_gap(millis(gap as u64))), sinks)?;
                let sums = windows.sum(|(.., number)| *number).named("first");
                match self.shown {
                    Shown::Changes => sums.changes(),
                    _ => return self.follow(sums.finals(), &sinks.0),
                }
            }
            Kind::Gaps => {
                let windows = by_key.window(Session::by_record(|(.., number): &Row| millis(*number as u64)));
                let windows = self.late(windows, sinks)?;
                let sums = windows.aggregate(|| 0, |sum, (.., number)| *sum += number).merge(|a, b| *a += b);
                match self.shown {
                    Shown::Changes => sums.named("first").changes(),
                    _ => return self.follow(sums.named("first").finals(), &sinks.0),
                }
            }
        };
        rows.sink(&sinks.0)
    }

    fn late<'a, W: InTime>(
        &self,
        windows: Windowed<'a, i64, Row, W>,
        sinks: &Sinks,
    ) -> Result<Windowed<'a, i64, Row, W>> {
        if !self.hands_late_on {
            return Ok(windows);
        }
        let (windows, late) = windows.late();
        let starts = |late: &Late<Row>| late.windows.iter().map(|window| window.start.0).collect();
        late.map(move |late| (late.record, starts(&late))).sink(&sinks.1)?;
        Ok(windows)
    }

    /// Makes calls before these windows, of which a few are slow, if the plan has them there.
    fn call<'a, T>(&self, rows: Stream<'a, T>, before: usize) -> Stream<'a, T>
    where
        T: serde::Serialize + serde::de::DeserializeOwned + Send + 'static,
    {
        if self.calls_before != Some(before) {
            return rows;
        }
        let nth = std::cell::Cell::new(0_u64);
        let call = move |row: T| {
            let n = nth.replace(nth.get() + 1);
            async move {
                if n % 37 == 3 {
                    tokio::time::sleep(Duration::from_micros(n * 7_919 % 9_000)).await;
                }
                row
            }
        };
        rows.map_async(Calls::unordered(32).kept(), call).or_stop()
    }

    fn follow(&self, finals: Stream<'_, Pane<i64, i64>>, sink: &Collected<Change<Pane<i64, i64>>>) -> Result<()> {
        let mut finals = finals;
        for (index, kind) in self.later.iter().enumerate() {
            let by_key = self.call(finals, index + 1).key_by(|pane| pane.key % 3);
            let name = ["second", "third"][index];
            finals = match *kind {
                Kind::Fixed { length, step, offset } => {
                    let windows =
                        Sliding::new(millis(length as u64), millis(step as u64)).offset(millis(offset as u64));
                    by_key.window(windows).sum(|pane| pane.value).named(name).finals()
                }
                kind => {
                    let windows = Session::with_gap(millis(kind.gap(0) as u64));
                    by_key.window(windows).sum(|pane| pane.value).named(name).finals()
                }
            };
        }
        finals.map(Change::Insert).sink(sink)
    }

    /// The sums by key and window, and the late records with the starts that they missed.
    fn expected(&self) -> (Sums, Vec<LateRow>) {
        let (mut in_time, mut late) = (Vec::new(), Vec::new());
        for (index, partition) in self.partitions.iter().enumerate() {
            let delay = self.delays[usize::from(index >= self.in_first)];
            let mut largest = None;
            for row in partition {
                let mark = largest.map(|largest: i64| largest - delay as i64).filter(|_| self.shown != Shown::Complete);
                let (missed, windows) = self.kind.judge(*row, mark, self.lateness as i64);
                if !missed.is_empty() {
                    late.push((*row, missed));
                }
                if !windows.is_empty() {
                    in_time.push((*row, windows));
                }
                largest = largest.max(Some(row.1));
            }
        }
        let sums = self.later.iter().fold(self.kind.sums(in_time.into_iter()), |sums, kind| {
            kind.sums(sums.into_iter().map(|((key, _, end), sum)| {
                let row = (key % 3, end - 1, sum);
                (row, kind.judge(row, None, 0).1)
            }))
        });
        (sums, late)
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
        // What is deleted before a crash may never have been, behind it.
        let never_fails = run == 3 || plan.shown == Shown::Changes;
        let fails_after = if never_fails { -1 } else { random.i64(0..all as i64 * 2) };
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
        let at = |pane: &Pane<i64, i64>| (pane.key, pane.window.start.0, pane.window.end.0);
        for change in sinks.0.take() {
            match change {
                Change::Insert(pane) => {
                    let before = came.insert(at(&pane), pane.value);
                    if plan.shown == Shown::Finals {
                        let is_same = before.is_none_or(|before| before == pane.value);
                        assert!(is_same, "{}: another final: {pane:?}", what());
                    }
                    assert!(plan.shown != Shown::Changes || before.is_none(), "{}: twice there: {pane:?}", what());
                }
                Change::Delete(pane) => {
                    assert_eq!(came.remove(&at(&pane)), Some(pane.value), "{}: deleted: {pane:?}", what());
                }
            }
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
            assert_eq!(came, late.iter().cloned().collect(), "{}", what());
        }
        for name in ["second", "third"].iter().take(plan.later.len()) {
            assert_eq!(stage(name).late, 0, "what is final is in time: {}", what());
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
    assert!(late * 3 > seeds && went_on * 8 > seeds, "{late} with late records, {went_on} went on, of {seeds}");
}

#[test]
fn finals_are_those_of_a_recomputation() {
    survive_all(0);
}

#[test]
fn finals_are_those_of_a_recomputation_2() {
    survive_all(1);
}
