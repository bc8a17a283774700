//! Jobs whose disk is full, read-only or silent for a while.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::io::{Collected, collect, generate};
use crate::state::faulty_disk::{FaultyDisk, Leaves, Trouble};

use super::job::Job;
use super::running::Running;
use super::trigger::Restart;

#[track_caller]
fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// A disk in place of a directory that does not exist.
fn mounted(disk: &FaultyDisk, name: &str) -> PathBuf {
    let path = PathBuf::from(format!("/nowhere/{name}"));
    disk.mount(&path);
    path
}

/// Counts numbers by their last digit, up to `end`. `tripped` ends the run at the next number,
/// once.
fn counting(path: PathBuf, end: u64, tripped: &Arc<AtomicBool>, counts: &Collected<(u64, u64)>) -> Job {
    let (counts, tripped) = (counts.clone(), Arc::clone(tripped));
    let job = Job::new("counting", move |flow| {
        let tripped = Arc::clone(&tripped);
        let numbers = flow.source(generate(|n| n).rate(5_000.0).count(end).partitions(2))?;
        let numbers = numbers.inspect(move |_| assert!(!tripped.swap(false, SeqCst), "tripped"));
        numbers.key_by(|n| n % 10).count().updates().sink(&counts)
    });
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    job.checkpoints(path).checkpoint_every(Duration::from_millis(5)).restart(restart)
}

fn durable(running: &Running) -> u64 {
    running.report().checkpoints.and_then(|checkpoints| checkpoints.durable).unwrap_or(0)
}

fn failing(running: &Running) -> Option<String> {
    running.report().checkpoints.and_then(|checkpoints| checkpoints.failing)
}

/// Runs the job to its end on what a crash would have left, and checks the last counts.
fn check_what_is_left(disk: &FaultyDisk, name: &str, end: u64) {
    for (place, leaves) in [Leaves::Nothing, Leaves::Half, Leaves::Everything].into_iter().enumerate() {
        let path = mounted(&disk.after_crash(leaves), &format!("{name} {place}"));
        let counts = collect();
        let report = counting(path, end, &Arc::default(), &counts).workers(2).run().unwrap();
        let last: BTreeMap<u64, u64> = counts.take().into_iter().collect();
        let expected = (0..10).map(|key| (key, end / 10)).collect();
        assert_eq!(last, expected, "{name}, {leaves:?} is left");
        assert!(report.records_in() < end, "{name}: it went on");
    }
}

#[test]
fn a_disk_in_trouble_stops_no_record() {
    let troubles = [
        (Trouble::Full, "no storage space"),
        (Trouble::ReadOnly, "read-only"),
        (Trouble::Hangs("write log"), "no answer"),
        (Trouble::Hangs("sync log"), "no answer"),
        (Trouble::Hangs("sync new manifest"), "no answer"),
        (Trouble::Hangs("rename to manifest"), "no answer"),
        (Trouble::Hangs("sync names"), "no answer"),
    ];
    for (trouble, says) in troubles {
        let (disk, counts, name) = (FaultyDisk::default(), collect(), format!("{trouble:?}"));
        let running = counting(mounted(&disk, &name), u64::MAX, &Arc::default(), &counts).start().unwrap();
        eventually("it works", || durable(&running) > 3);
        disk.trouble(Some(trouble));
        eventually("it says so", || failing(&running).is_some_and(|cause| cause.contains(says)));
        let report = running.report();
        assert!(report.to_string().contains("waiting for the disk"), "{name}: {report}");
        let (checkpoint, records) = (durable(&running), counts.len());
        eventually("records go on", || counts.len() > records + 1_000);
        assert_eq!(durable(&running), checkpoint, "{name}: nothing is durable meanwhile");
        disk.trouble(None);
        eventually("it recovers", || durable(&running) > checkpoint + 3 && failing(&running).is_none());
        assert_eq!(running.report().restarts, 0, "{name}");
        running.abort();
        drop(running.wait());
        // Beyond what was ever read.
        check_what_is_left(&disk, &name, (counts.len() as u64 / 10 + 100) * 10);
    }
}

/// The thread of the checkpoints hangs in a call, and its run is replaced. When the call returns,
/// the checkpoint of that run must not appear over those of the run that has taken over.
#[test]
fn a_run_that_was_replaced_while_its_disk_hung_publishes_nothing() {
    for step in
        ["create log", "write log", "sync log", "create new manifest", "write new manifest", "sync new manifest"]
    {
        let (disk, counts, tripped) = (FaultyDisk::default(), collect(), Arc::<AtomicBool>::default());
        let job = counting(mounted(&disk, step), 20_000, &tripped, &counts).stuck_after(Duration::from_millis(200));
        // A log is created with the first checkpoint that has changes.
        if step == "create log" {
            disk.trouble(Some(Trouble::HangsOnce(step)));
        }
        let running = job.start().unwrap();
        if step != "create log" {
            eventually("it works", || durable(&running) > 3);
            disk.trouble(Some(Trouble::HangsOnce(step)));
        }
        eventually("a step hangs", || disk.hanging() == 1);
        tripped.store(true, SeqCst);
        eventually("another run has taken over", || running.report().restarts == 1 && durable(&running) > 3);
        disk.trouble(None);
        eventually("the step returns", || disk.hanging() == 0);
        let checkpoint = durable(&running);
        eventually("checkpoints go on", || durable(&running) > checkpoint + 3);
        let report = running.wait().unwrap();
        assert_eq!(report.restarts, 1, "{step}");
        let last: BTreeMap<u64, u64> = counts.take().into_iter().collect();
        assert_eq!(last, (0..10).map(|key| (key, 2_000)).collect(), "{step}");
        // All of it is done, in the checkpoint that is left.
        let path = mounted(&disk.after_crash(Leaves::Nothing), &format!("{step} again"));
        let report = counting(path, 20_000, &Arc::default(), &counts).run().unwrap();
        assert_eq!((report.records_in(), counts.len()), (0, 0), "{step}");
    }
}
