//! Updates that leave at most every so often: once for each key, and nothing is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::{
    Aggregated, Change, Clock, Collected, ErrorKind, Flow, Job, Result, Stream, Trigger, channel, collect, discard,
    rows,
};

use crate::support::eventually;
use crate::support::probe::Probe;

const EVERY: Duration = Duration::from_millis(250);
const HOUR: Duration = Duration::from_secs(3600);

/// What is emitted of counts, as rows that were inserted.
type Emit = for<'a> fn(Aggregated<'a, u64, u64>) -> Stream<'a, (u64, u64)>;

const EMITS: [Emit; 2] = [
    |counts| counts.updates(),
    |counts| {
        counts.changes().flat_map(|change| match change {
            Change::Insert(row) => Some(row),
            Change::Delete(_) => None,
        })
    },
];

fn sorted(counts: &Collected<(u64, u64)>) -> Vec<(u64, u64)> {
    let mut counts = counts.take();
    counts.sort_unstable();
    counts
}

#[test]
fn what_has_changed_leaves_when_its_time_has_come() {
    for emit in EMITS {
        for workers in [1, 3] {
            let (clock, probe, counts) = (Clock::simulated(), Probe::default(), collect());
            let ((numbers, source), beside, sink) = (channel::<u64>(100), probe.clone(), counts.clone());
            let job = Job::new("every", move |flow: &Flow<'_>| {
                beside.beside(flow)?;
                emit(flow.source(&source)?.key_by(|n| n % 3).count().every(EVERY)).sink(&sink)
            });
            let job = job.state_in_memory().clock(clock.clone()).checkpoint_every(HOUR).workers(workers);
            let running = job.start().unwrap();
            let send = |count: u64, before: u64| {
                (0..count).for_each(|n| drop(numbers.try_send(n).unwrap()));
                eventually("they are counted", || {
                    running
                        .report()
                        .stages
                        .iter()
                        .any(|stage| stage.name == "count" && stage.records_in == before + count)
                });
                probe.rounds(20);
            };
            send(30, 0);
            assert_eq!(counts.len(), 0, "{workers} workers: its time has not come");
            clock.advance(EVERY);
            eventually("each key leaves once", || counts.len() == 3);
            assert_eq!(sorted(&counts), [(0, 10), (1, 10), (2, 10)]);
            // Nothing has changed.
            clock.advance(2 * EVERY);
            probe.rounds(20);
            assert_eq!(counts.len(), 0);
            send(2, 30);
            clock.advance(EVERY - Duration::from_millis(1));
            probe.rounds(20);
            assert_eq!(counts.len(), 0, "{workers} workers: it is early by a millisecond");
            clock.advance(Duration::from_millis(1));
            eventually("what has changed leaves", || counts.len() == 2);
            assert_eq!(sorted(&counts), [(0, 11), (1, 11)]);
            // The end leaves nothing behind.
            send(1, 32);
            running.stop();
            running.wait().unwrap();
            assert_eq!(sorted(&counts), [(0, 12)]);
        }
    }
}

/// A record whose checkpoint is committed has led to what it leads to.
#[test]
fn a_checkpoint_emits_what_has_changed() {
    let (clock, counts, (numbers, source)) = (Clock::simulated(), collect(), channel::<u64>(100));
    let sink = counts.clone();
    let job = Job::new("every", move |flow: &Flow<'_>| {
        flow.source(&source)?.key_by(|n| n % 3).count().every(HOUR).updates().sink(&sink)
    });
    let running = job.state_in_memory().clock(clock.clone()).checkpoint_every(HOUR).workers(2).start().unwrap();
    for round in 1..4 {
        let receipts: Vec<_> = (0..6).map(|n| numbers.try_send(n).unwrap()).collect();
        eventually("they are read", || running.report().records_in() == round * 6);
        clock.advance(HOUR);
        receipts.into_iter().for_each(|receipt| receipt.wait().unwrap());
        // Its time comes at the same moment, so some keys may leave twice.
        let last: BTreeMap<u64, u64> = counts.take().into_iter().collect();
        assert_eq!(last, (0..3).map(|key| (key, round * 2)).collect());
    }
}

/// Under a busy stream, what leaves is less than what comes, and its last values are right.
#[test]
fn the_last_values_are_those_of_all_records() {
    for (trigger, workers) in [
        (Trigger::Continuous, 1),
        (Trigger::Continuous, 3),
        (Trigger::AvailableNow, 2),
        (Trigger::micro_batch(EVERY), 2),
    ] {
        let counts = collect();
        let sink = counts.clone();
        let job = Job::new("every", move |flow: &Flow<'_>| {
            let numbers = flow.source(rows(0..200_000_u64).partitions(3))?;
            numbers.key_by(|n| n % 100).count().every(Duration::from_millis(2)).updates().sink(&sink)
        });
        job.state_in_memory().trigger(trigger).workers(workers).run().unwrap();
        assert!(counts.len() < 100_000, "{trigger}, {workers} workers: {} updates", counts.len());
        let last: BTreeMap<u64, u64> = counts.take().into_iter().collect();
        assert_eq!(last, (0..100).map(|key| (key, 2_000)).collect(), "{trigger}, {workers} workers");
    }
}

#[test]
fn times_that_cannot_be_are_refused() {
    let refused = |pipeline: fn(Aggregated<'_, u64, u64>) -> Result<()>, kind: ErrorKind, part: &str| {
        let job = Job::new("every", move |flow: &Flow<'_>| {
            pipeline(flow.source(rows(0..3_u64))?.key_by(|n| *n).count().named("counts"))
        });
        let error = job.state_in_memory().run().expect_err("it cannot be");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(
        |counts| counts.every(HOUR).updates().sink(discard()),
        ErrorKind::Config,
        "`counts`: `every(3600s)` must not be longer than the time between checkpoints",
    );
    refused(|counts| counts.every(Duration::ZERO).changes().sink(discard()), ErrorKind::Config, "greater than zero");
    refused(
        |counts| counts.every(EVERY).complete().rows().sink(discard()),
        ErrorKind::Pipeline,
        "`counts`: the complete table leaves with each checkpoint",
    );
}
