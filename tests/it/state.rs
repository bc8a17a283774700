//! Keyed state beside the rest of a job: receipts, streams that fall quiet, and disks that fail.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream::{
    ByteSize, Clock, ErrorKind, Flow, Job, Restart, Result, Stream, Trigger, channel, collect, discard, rows,
};

use crate::support::eventually;
use crate::support::probe::Probe;

const HOUR: Duration = Duration::from_secs(3600);

type Pipeline = for<'a> fn(Stream<'a, u64>) -> Result<()>;

/// Pipelines whose state takes a record, with and without an output of it.
const PIPELINES: [(&str, Pipeline); 5] = [
    ("updates", |numbers| numbers.key_by(|n| *n).count().updates().sink(discard())),
    ("nothing comes out", |numbers| numbers.key_by(|_| 0).dedup().filter(|_| false).sink(discard())),
    ("complete", |numbers| numbers.key_by(|n| *n).count().complete().rows().sink(discard())),
    ("per batch", |numbers| numbers.per_batch().count().sink(discard())),
    ("two in a row", |numbers| {
        numbers.key_by(|n| *n).dedup().key_by(|n| n % 2).count().updates().rebalance().sink(discard())
    }),
];

/// A service that answers its client by receipts would otherwise confirm what only memory has.
#[test]
fn a_receipt_of_a_record_in_state_waits_for_its_checkpoint() {
    for (name, pipeline) in PIPELINES {
        for workers in [1, 2] {
            for is_kept in [false, true] {
                let (clock, probe, directory) = (Clock::simulated(), Probe::default(), tempfile::tempdir().unwrap());
                let ((numbers, source), beside) = (channel::<u64>(10), probe.clone());
                let job = Job::new(name, move |flow: &Flow<'_>| {
                    beside.beside(flow)?;
                    pipeline(flow.source(&source)?)
                });
                let job = if is_kept { job.checkpoints(directory.path()) } else { job.state_in_memory() };
                let job = job.clock(clock.clone()).checkpoint_every(HOUR);
                let running = job.workers(workers).start().unwrap();
                let answered = Arc::<AtomicUsize>::default();
                let waiting: Vec<_> = [1, 2, 2]
                    .map(|n| {
                        let (receipt, answered) = (numbers.try_send(n).unwrap(), Arc::clone(&answered));
                        std::thread::spawn(move || {
                            let outcome = receipt.wait();
                            answered.fetch_add(1, SeqCst);
                            outcome
                        })
                    })
                    .into();
                let what = || format!("{name}, {workers} workers, kept: {is_kept}");
                eventually("they are read", || running.report().records_in() == 3);
                probe.rounds(20);
                assert_eq!(answered.load(SeqCst), 0, "{}: no checkpoint was taken", what());
                clock.advance(HOUR);
                eventually("the checkpoint is committed", || answered.load(SeqCst) == 3);
                waiting.into_iter().for_each(|receipt| assert_eq!(receipt.join().unwrap(), Ok(()), "{}", what()));
                // What is in state when the job is aborted is not safe.
                let receipt = numbers.try_send(3).unwrap();
                eventually("it is read", || running.report().records_in() == 4);
                running.abort();
                drop(running.wait());
                assert!(receipt.wait().is_err(), "{}", what());
            }
        }
    }
}

/// The record before the silence is in a checkpoint, although nothing moves any frontier after it.
#[test]
fn a_stream_that_falls_quiet_is_cut() {
    for (name, pipeline) in PIPELINES {
        for (workers, trigger) in
            [(1, Trigger::Continuous), (3, Trigger::Continuous), (2, Trigger::micro_batch(Duration::from_millis(3)))]
        {
            let (numbers, source) = channel::<u64>(10);
            let directory = tempfile::tempdir().unwrap();
            let job = Job::new(name, move |flow: &Flow<'_>| pipeline(flow.source(&source)?));
            let job = job.checkpoints(directory.path()).checkpoint_every(Duration::from_millis(2));
            let running = job.workers(workers).trigger(trigger).start().unwrap();
            for n in 0..5 {
                assert_eq!(numbers.try_send(n % 2).unwrap().wait(), Ok(()), "{name}, {workers} workers, {trigger}");
            }
            let report = running.report();
            let checkpoints = report.checkpoints.as_ref().expect("it keeps checkpoints");
            assert!(checkpoints.durable.is_some_and(|durable| durable >= report.committed), "{report}");
            // And it is idle then.
            running.stop();
            running.wait().unwrap();
        }
    }
}

fn counting(numbers: Stream<'_, u64>, counts: &millstream::Collected<(u64, u64)>) -> Result<()> {
    numbers.key_by(|n| n % 3).count().updates().sink(counts)
}

#[test]
fn a_disk_that_fails_for_a_while_stops_no_record() {
    let home = tempfile::tempdir().unwrap();
    let (directory, away) = (home.path().join("state"), home.path().join("away"));
    let (counts, numbers) = (collect(), || millstream::generate(|n| n).rate(5_000.0));
    let sink = counts.clone();
    let job = Job::new("disk", move |flow| counting(flow.source(numbers())?, &sink));
    let job = job.checkpoints(&directory).checkpoint_every(Duration::from_millis(5));
    let running = job.start().unwrap();
    let state = || running.report().checkpoints.expect("it keeps checkpoints");
    let written = || counts.len();
    eventually("it works", || state().durable > Some(3));
    fs::rename(&directory, &away).unwrap();
    eventually("it says so", || state().failing.is_some());
    let (durable, records) = (state().durable, written());
    eventually("records go on", || written() > records + 1_000);
    assert_eq!(state().durable, durable, "nothing is durable meanwhile");
    assert!(running.report().to_string().contains("waiting for the disk"), "{}", running.report());
    fs::rename(&away, &directory).unwrap();
    eventually("it recovers", || state().durable > durable && state().failing.is_none());
    assert!(state().failures > 0);
    running.abort();
    drop(running.wait());
    // What it has kept is whole.
    let (again, before) = (collect(), counts.values());
    let sink = again.clone();
    let limited = millstream::generate(|n| n).rate(5_000.0).count(before.len() as u64 + 1_000);
    let job = Job::new("disk", move |flow| counting(flow.source(&limited)?, &sink));
    let total: u64 = job.checkpoints(&directory).run().unwrap().sources[0].lag.iter().map(|lag| lag.end).sum();
    let last: BTreeMap<u64, u64> = again.values().into_iter().collect();
    assert_eq!(last.values().sum::<u64>(), total, "{last:?}");
}

#[test]
fn state_that_outgrows_its_memory_ends_the_run_with_figure_and_operator() {
    let run = |keys: u64, text: usize, limit: ByteSize| {
        let job = Job::new("large", move |flow| {
            let words = flow.source(rows((0..keys).map(move |n| format!("{n:0text$}"))))?;
            words.key_by(String::clone).count().updates().named("words").sink(discard())
        });
        job.state_in_memory().workers(2).checkpoint_every(Duration::from_millis(2)).state_memory(limit).run()
    };
    // 100 000 entries of 40 bytes in tables that are at least half full, and what they point to.
    for text in [1, 400] {
        let report = run(100_000, text, ByteSize::mebibytes(200)).unwrap();
        let stage = report.stages.iter().find(|stage| stage.name == "words").unwrap();
        let (entries, bytes) = (stage.entries, stage.state_bytes as usize);
        assert_eq!(entries, 100_000);
        let at_least = 100_000 * (40 + text);
        assert!((at_least..at_least * 3 + 5_000_000).contains(&bytes), "{text}: {bytes} of {at_least}");
    }
    let error = run(1_000_000, 1, ByteSize::mebibytes(10)).expect_err("it does not fit");
    assert_eq!(error.kind(), ErrorKind::State);
    let message = error.to_string();
    assert!(message.contains("`words`") && message.contains("of 10 MiB"), "{message}");
}

/// A job without state that may keep it in memory was taken for one whose memory are checkpoints:
/// a group that refuses its commits would not have been an error.
#[test]
fn a_source_is_told_of_checkpoints_only_where_there_are_any() {
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let (directory, limits) = (tempfile::tempdir().unwrap(), [false, true]);
    for (keeps_state, in_directory) in limits.into_iter().flat_map(|a| limits.map(|b| (a, b))) {
        let (probe, (numbers, source)) = (Probe::default(), channel::<u64>(1));
        let beside = probe.clone();
        let job = Job::new(format!("{keeps_state}"), move |flow: &Flow<'_>| {
            beside.beside(flow)?;
            let numbers = flow.source(&source)?;
            if keeps_state { numbers.global().count().updates().sink(discard()) } else { numbers.sink(discard()) }
        });
        let place = directory.path().join(format!("{keeps_state}"));
        let job = if in_directory { job.checkpoints(place) } else { job.state_in_memory() };
        let running = job.restart(restart).start().unwrap();
        assert_eq!(probe.is_checkpointed(), keeps_state || in_directory, "{keeps_state}, {in_directory}");
        running.abort();
        drop((running.wait(), numbers));
    }
}
