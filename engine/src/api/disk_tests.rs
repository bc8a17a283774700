//! Jobs whose disk is full, read-only or silent for a while.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::io::{
    Accepted, Acknowledges, Collected, Committed, Delivery, OpenSink, SharedSink, Sink, Writer, collect, generate,
};
use crate::run::health::HealthLimits;
use crate::state::disk::Disk;
use crate::state::faulty_disk::{FaultyDisk, Leaves, Trouble};
use crate::state::manifest::Manifest;

use crate::words::{Batch, ByteSize, CheckpointId, Result, Wake, Worker};

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
        let limits = HealthLimits::new().commit_within(Duration::from_millis(50));
        eventually("its health says so", || {
            let health = running.health(&limits);
            health.is_alive() && health.not_ready.iter().any(|why| why.contains("has not been written to its disk"))
        });
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

/// What is appended to a damaged file is of no use, so the run does not go on with it.
#[test]
fn a_file_that_is_damaged_while_the_job_runs_is_named_and_left() {
    let (disk, counts) = (FaultyDisk::default(), collect());
    let running = counting(mounted(&disk, "damaged"), 20_000, &Arc::default(), &counts).start().unwrap();
    eventually("it works", || durable(&running) > 3);
    let names = disk.names().unwrap();
    let image = names.iter().find(|name| name.starts_with("image-")).expect("the state has a copy").clone();
    disk.damage(&image, |bytes| bytes[20] ^= 1);
    eventually("another run has taken over", || running.report().restarts == 1);
    let report = running.wait().unwrap();
    assert_eq!(report.restarts, 1);
    let last: BTreeMap<u64, u64> = counts.take().into_iter().collect();
    assert_eq!(last, (0..10).map(|key| (key, 2_000)).collect());
}

/// A sink that publishes with a commit, and looks at each what the disk has.
#[derive(Clone)]
struct AtCommit {
    disk: FaultyDisk,
    /// Commits, and those of checkpoints that were durable already.
    commits: Arc<[AtomicU64; 2]>,
}

impl<T: 'static> Sink<T> for AtCommit {
    type Shared = AtCommit;
    type Writer = AtCommit;

    fn name(&self) -> String {
        "at commit".to_owned()
    }

    fn connect(self, _: OpenSink) -> Result<AtCommit> {
        Ok(self)
    }

    fn writer(shared: &Arc<AtCommit>, _: Worker, _: Wake) -> Result<AtCommit> {
        Ok(AtCommit::clone(shared))
    }
}

impl SharedSink for AtCommit {
    fn acknowledges(&self) -> Acknowledges {
        Acknowledges::WhenCommitted
    }

    fn commit(&self, checkpoint: CheckpointId) -> Result<Committed> {
        let is_durable = self.disk.names().unwrap().contains(&Manifest::name(checkpoint));
        self.commits[0].fetch_add(1, SeqCst);
        self.commits[1].fetch_add(u64::from(is_durable), SeqCst);
        Ok(Committed::Now)
    }
}

impl<T: 'static> Writer<T> for AtCommit {
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted> {
        let records = batch.by_ref().count() as u64;
        delivery.stage(records);
        delivery.settle(records, ByteSize(0));
        Ok(Accepted::All)
    }
}

/// The next run begins behind the newest durable checkpoint. What a sink had held back for its
/// commit would be lost with the process, had the checkpoint been durable first.
#[test]
fn a_checkpoint_is_durable_only_when_its_sinks_have_published() {
    let disk = FaultyDisk::default();
    let sink = AtCommit { disk: disk.clone(), commits: Arc::default() };
    let of_job = sink.clone();
    let job = Job::new("publishing", move |flow| {
        let numbers = flow.source(generate(|n| n).rate(5_000.0).count(2_000).partitions(2))?;
        numbers.key_by(|n| n % 10).count().updates().sink(&of_job)
    });
    let job = job.checkpoints(mounted(&disk, "publishing")).checkpoint_every(Duration::from_millis(5));
    job.run().unwrap();
    let [commits, late] = [0, 1].map(|index| sink.commits[index].load(SeqCst));
    assert!(commits > 10 && late == 0, "{late} of {commits} checkpoints were durable before");
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
