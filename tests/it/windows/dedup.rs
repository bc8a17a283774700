//! Deduplication by time, against a recomputation that knows only the order of records within their
//! partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream::{Collected, ErrorKind, EventTime, Flow, Job, Result, Trigger, Tumbling, collect, rows};

use super::millis;
use crate::recovery::Fuse;
use crate::support::PATIENCE;

/// A key, an event time, and the number of the record.
type Row = (i64, i64, i64);

#[derive(Clone, Debug)]
struct Plan {
    partitions: Vec<Vec<Row>>,
    delay: i64,
    /// How long a duplicate may come behind the first; otherwise it has the same time.
    within: Option<i64>,
    /// Whether windows follow.
    counts: bool,
    batch: u64,
}

type Sinks = (Collected<(i64, i64)>, Collected<i64>, Collected<(i64, u64)>);

impl Plan {
    fn drawn(random: &mut fastrand::Rng) -> Plan {
        let (count, each) = (random.usize(1..5), random.usize(10..500));
        let (keys, disorder, within) = (random.i64(1..20), random.i64(1..60), random.bool());
        let mut number = 0;
        let partitions = (0..count).map(|own| {
            let (mut now, pace) = (random.i64(-500..500), random.i64(1..10));
            let rows = (0..each).map(|_| {
                (now, number) = (now + random.i64(0..pace), number + 1);
                // Within a time, what is a duplicate is known only where a key lives in one
                // partition.
                let key = random.i64(0..keys);
                (if within { key * count as i64 + own as i64 } else { key }, now - random.i64(0..disorder), number)
            });
            rows.collect()
        });
        Plan {
            partitions: partitions.collect(),
            delay: random.i64(0..80),
            within: within.then(|| random.i64(1..100)),
            counts: random.bool(),
            batch: (count * each) as u64 / random.u64(2..10) + 1,
        }
    }

    fn build(&self, flow: &Flow<'_>, fuse: &Fuse, sinks: &Sinks) -> Result<()> {
        let fuse = fuse.clone();
        let rows = flow.source(rows(self.partitions.concat()).partitions(self.partitions.len()))?;
        let rows = rows.batch_at_most(self.batch).inspect(move |_| fuse.burn());
        let by_key =
            rows.with_watermark(|(_, at, _)| EventTime(*at), millis(self.delay as u64)).key_by(|(key, ..)| *key);
        let first = match self.within {
            Some(within) => by_key.dedup_within(millis(within as u64)),
            None => by_key.dedup_by_time(),
        };
        let (first, late) = first.named("first").late();
        late.map(|late| late.record.2).sink(&sinks.1)?;
        let first = first.records();
        if self.counts {
            let counts = first.clone().global().window(Tumbling::new(millis(50))).count().finals();
            counts.map(|pane| (pane.window.start.0, pane.value)).sink(&sinks.2)?;
        }
        first.map(|(key, at, _)| (key, at)).sink(&sinks.0)
    }

    /// The keys and times of the records that are no duplicates, and the late records.
    fn expected(&self) -> (BTreeSet<(i64, i64)>, BTreeSet<i64>) {
        let (mut first, mut late) = (BTreeSet::new(), BTreeSet::new());
        for partition in &self.partitions {
            let (mut largest, mut over) = (None::<i64>, BTreeMap::new());
            for (key, at, number) in partition {
                let mark = largest.map(|largest| largest - self.delay);
                largest = largest.max(Some(*at));
                if mark.is_some_and(|mark| *at <= mark) {
                    late.insert(*number);
                    continue;
                }
                let Some(within) = self.within else {
                    first.insert((*key, *at));
                    continue;
                };
                if over.get(key).is_none_or(|over| mark.is_some_and(|mark| *over <= mark)) {
                    over.insert(*key, at + within);
                    first.insert((*key, *at));
                }
            }
        }
        (first, late)
    }
}

fn survive(seed: u64) -> (bool, bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let plan = Plan::drawn(&mut random);
    let all = plan.partitions.concat().len() as u64;
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let sinks: Sinks = (collect(), collect(), collect());
    for run in 0.. {
        let trigger = match random.u8(0..3) {
            0 => Trigger::micro_batch(Duration::from_micros(random.u64(0..3_000))),
            1 => Trigger::AvailableNow,
            _ => Trigger::Continuous,
        };
        let fails_after = if run == 3 { -1 } else { random.i64(0..all as i64 * 2) };
        let (fuse, own, sink) = (Fuse::after(fails_after), plan.clone(), sinks.clone());
        let job = Job::new("dedup", move |flow| own.build(flow, &fuse, &sink));
        let (workers, every) = (random.usize(1..5), Duration::from_micros(random.u64(1_000..4_000)));
        let job = job.checkpoints(directory.path()).checkpoint_every(every).trigger(trigger).workers(workers);
        let what = || format!("seed {seed}, run {run} with {workers} workers under {trigger}: {plan:?}");
        match job.start().unwrap().wait_for(PATIENCE).unwrap_or_else(|| panic!("stuck: {}", what())) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Panic && fails_after >= 0 => continue,
            Err(error) => panic!("{}: {error:#}", what()),
        }
        let (first, late) = plan.expected();
        let came = sinks.0.take();
        if run == 0 {
            assert_eq!(came.len(), first.len(), "{}: each once", what());
        }
        assert_eq!(came.into_iter().collect::<BTreeSet<_>>(), first, "{}", what());
        assert_eq!(sinks.1.take().into_iter().collect::<BTreeSet<_>>(), late, "{}", what());
        if plan.counts {
            let mut counts = BTreeMap::new();
            first.iter().for_each(|(_, at)| *counts.entry(at - at.rem_euclid(50)).or_insert(0) += 1);
            assert_eq!(sinks.2.take().into_iter().collect::<BTreeMap<_, _>>(), counts, "{}", what());
        }
        return (!late.is_empty(), run > 0);
    }
    unreachable!("the last run goes to the end")
}

#[test]
fn duplicates_are_those_of_a_recomputation() {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let (first, seeds) = (number("MILLSTREAM_SEED").unwrap_or(1), number("MILLSTREAM_SEEDS").unwrap_or(300));
    let all: Vec<(bool, bool)> = (first..first + seeds).map(survive).collect();
    let count = |of: fn(&(bool, bool)) -> bool| all.iter().filter(|one| of(one)).count() as u64;
    let (late, failed) = (count(|one| one.0), count(|one| one.1));
    assert!(late * 3 > seeds && failed * 5 > seeds, "{late} with late records, {failed} with crashes, of {seeds}");
}
