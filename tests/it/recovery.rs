//! State that survives: jobs that fail, are aborted and start again, with another number of workers
//! and under another trigger, against a recomputation of the whole input.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use millstream::{ByteSize, Collected, ErrorKind, Flow, Job, Quantiles, Restart, Result, Stream, collect, rows};

/// Fails at a record, once.
#[derive(Clone)]
pub struct Fuse(Arc<AtomicI64>);

impl Fuse {
    /// After so many records; never if it is negative.
    pub fn after(records: i64) -> Fuse {
        Fuse(Arc::new(AtomicI64::new(records)))
    }

    pub fn burn(&self) {
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
