//! Faults: the first one ends the run with the name of its operator, and nothing hangs. Nothing is
//! committed beyond what was acknowledged. A restart resumes there with new clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use millstream::connector::{OpenSink, Wake, Worker};
use millstream::{ByteSize, Error, ErrorKind, Job, Malformed, Restart, Sink, Trigger, collect, rows};

use crate::support::script::{RECORD, Script};
use crate::support::valve::Valve;
use crate::support::{PATIENCE, eventually};

const QUICKLY: Restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(5) };

/// The error of a job that ends by itself.
#[track_caller]
fn error_of(job: Job) -> Error {
    let mut running = job.start().unwrap();
    let ended = running.wait_for(PATIENCE);
    ended.unwrap_or_else(|| panic!("the job hangs:\n{}", running.report())).expect_err("it fails")
}

#[test]
fn a_panic_on_one_of_four_workers_ends_the_job_with_the_operators_name() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(1))] {
        let script = Script::numbers(100_000, 4, 3).endless();
        let job = Job::new("panic", move |flow| {
            flow.source(&script)?
                .inspect(|n| assert_ne!(*n, 77_777, "no sevens"))
                .named("seventh heaven")
                .filter(|_| true)
                .rebalance()
                .sink(millstream::discard())
        });
        let error = error_of(job.workers(4).trigger(trigger));
        assert_eq!(error.kind(), ErrorKind::Panic);
        assert!(error.to_string().contains("seventh heaven") && error.to_string().contains("no sevens"), "{error}");
    }
}

#[test]
fn a_fault_in_a_source_ends_the_job_and_commits_no_more_than_was_acknowledged() {
    let (script, valve) = (Script::numbers(10_000, 4, 5).batches_of(4).endless(), Valve::shut());
    let (log, sink) = (script.log.clone(), valve.clone());
    let job = Job::new("source fault", move |flow| flow.source(&script)?.sink(&sink)).workers(4);
    let mut running = job.checkpoint_every(Duration::from_millis(1)).start().unwrap();
    let mut acknowledged = 0;
    eventually("something is committed", || {
        acknowledged += valve.acknowledge(7);
        log.committed() > 0
    });
    log.fails.store(true, SeqCst);
    let error = running.wait_for(PATIENCE).expect("the job does not hang").expect_err("the readers fail");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Source, "operator `script`: the script says to fail")
    );
    // What is acknowledged after the end is not committed any more.
    valve.open();
    let committed = log.committed();
    assert!(committed <= acknowledged, "{committed} committed, {acknowledged} acknowledged");
}

#[test]
fn a_fault_in_a_sink_with_records_in_flight_commits_nothing_beyond_the_acknowledged() {
    let (script, valve) = (Script::numbers(1_000_000, 1, 6).batches_of(10), Valve::shut());
    let (log, sink) = (script.log.clone(), valve.clone());
    let job = Job::new("sink fault", move |flow| flow.source(&script)?.sink(&sink)).workers(4);
    // Records arrive only as others are acknowledged.
    let job = job.memory(ByteSize(1_000 * RECORD.0)).checkpoint_every(Duration::from_millis(1));
    let mut running = job.start().unwrap();
    let mut acknowledged = 0;
    eventually("something is committed", || {
        let committed = log.committed();
        assert!(committed <= acknowledged, "{committed} committed, {acknowledged} acknowledged");
        acknowledged += valve.acknowledge(7);
        committed > 0
    });
    valve.inner.fails.store(true, SeqCst);
    let mut ended = None;
    eventually("the writer fails", || {
        acknowledged += valve.acknowledge(7);
        ended = running.wait_for(Duration::ZERO);
        ended.is_some()
    });
    let error = ended.expect("it was waited for").expect_err("the writer fails");
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Sink, "operator `valve`: the valve broke"));
    let committed = log.committed();
    assert!(committed <= acknowledged, "{committed} committed, {acknowledged} acknowledged");
}

#[test]
fn a_fault_in_a_source_or_a_sink_ends_all_workers() {
    for (failing, trigger) in [
        ("source", Trigger::Continuous),
        ("sink", Trigger::Continuous),
        ("source", Trigger::micro_batch(Duration::from_millis(1))),
        ("sink", Trigger::micro_batch(Duration::from_millis(1))),
    ] {
        let script = Script::numbers(1_000_000, 8, 3).endless();
        let (script, valve) = match failing {
            "source" => (script.failing_at(200), Valve::shut()),
            _ => (script, Valve::failing_after(20_000)),
        };
        if failing == "sink" {
            // Otherwise no micro-batch is committed, and the third one would never be cut.
            valve.open();
        }
        let job = Job::new("all end", move |flow| flow.source(&script)?.rebalance().sink(&valve));
        let error = error_of(job.workers(4).trigger(trigger));
        let kind = if failing == "source" { ErrorKind::Source } else { ErrorKind::Sink };
        assert_eq!(error.kind(), kind, "a fault in a {failing} under {trigger:?}");
    }
}

#[test]
fn a_stop_does_not_wait_for_a_connection() {
    let may_connect = Arc::new(AtomicBool::new(false));
    let script = Script::numbers(100, 1, 3).failing_at(1).connecting_again_when(Arc::clone(&may_connect));
    let log = script.log.clone();
    let job = Job::new("connecting", move |flow| flow.source(&script)?.sink(millstream::discard()));
    let mut running = job.restart(QUICKLY).start().unwrap();
    eventually("the source connects again", || log.connects.load(SeqCst) == 2);
    running.stop_within(PATIENCE * 10);
    let error = running.wait_for(PATIENCE).expect("the job ends before the source is connected");
    assert_eq!(error.expect_err("the job was not connected").kind(), ErrorKind::Aborted);
    may_connect.store(true, SeqCst);
}

#[test]
fn a_restart_begins_from_what_was_committed_with_fresh_clients() {
    for workers in [1, 3] {
        let (script, results) = (Script::numbers(5_000, 4, 8).failing_at(30), collect());
        let (log, sink) = (script.log.clone(), results.clone());
        let job = Job::new("restart", move |flow| flow.source(&script)?.sink(&sink)).workers(workers).restart(QUICKLY);
        let report = job.checkpoint_every(Duration::from_millis(1)).run().unwrap();
        assert_eq!((report.restarts, log.connects.load(SeqCst)), (1, 2));
        let mut values = results.values();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values, (0..5_000).collect::<Vec<_>>(), "nothing is lost");
        assert_eq!(log.committed(), 5_000);
    }
}

#[test]
fn a_sink_that_failed_is_opened_again() {
    let (script, valve) = (Script::numbers(2_000, 2, 9), Valve::failing_after(500));
    let (log, sink) = (script.log.clone(), valve.clone());
    let running =
        Job::new("sink again", move |flow| flow.source(&script)?.sink(&sink)).restart(QUICKLY).start().unwrap();
    eventually("the second run takes everything", || valve.taken().len() >= 2_500);
    valve.open();
    let report = running.wait().unwrap();
    assert_eq!(report.restarts, 1);
    let mut taken = valve.taken();
    taken.sort_unstable();
    taken.dedup();
    assert_eq!((taken.len(), log.committed()), (2_000, 2_000));
}

#[test]
fn a_record_that_panics_every_time_ends_the_job() {
    let runs = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&runs);
    let job = Job::new("poison", move |flow| {
        let runs = Arc::clone(&counted);
        flow.source(rows(0..10u64).partitions(1))?
            .inspect(move |n| {
                if *n == 3 {
                    runs.fetch_add(1, SeqCst);
                    panic!("poison");
                }
            })
            .sink(millstream::discard())
    });
    let error = job.restart(QUICKLY).run().expect_err("the record fails in every run");
    assert_eq!((error.kind(), runs.load(SeqCst)), (ErrorKind::Panic, 3));
}

#[test]
fn a_malformed_record_stops_without_a_restart() {
    let malformed =
        |n: u64| -> Result<u64, Malformed> { if n == 5 { Err(Malformed::new("five is right out")) } else { Ok(n) } };
    let job = Job::new("malformed", move |flow| {
        flow.source(rows(0..10))?.map(malformed).or_stop().sink(millstream::discard())
    });
    let error = job.restart(QUICKLY).run().expect_err("record 5 is malformed");
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.to_string().contains("five is right out"));
}

#[test]
fn skipped_errors_show_in_the_report() {
    let check =
        |n: u64| if n.is_multiple_of(10) { Err(Error::new(ErrorKind::Malformed, "a round number")) } else { Ok(n) };
    let job = Job::new("skip", move |flow| flow.source(rows(0..100))?.map(check).or_skip().sink(millstream::discard()));
    let report = job.run().unwrap();
    let stage = report.stages.iter().find(|stage| stage.name == "or_skip").unwrap();
    assert_eq!((stage.records_in, stage.records_out), (100, 90));
}

#[test]
fn a_worker_that_does_not_return_is_a_fault() {
    let job = Job::new("stuck", |flow| {
        let sleep = |_: &u64| std::thread::sleep(Duration::from_secs(3));
        flow.source(rows(0..1u64))?.inspect(sleep).sink(millstream::discard())
    });
    let error = job.stuck_after(Duration::from_millis(200)).run().expect_err("it sleeps");
    assert_eq!(error.kind(), ErrorKind::Stuck);
}

#[test]
fn a_pipeline_that_panics_when_it_is_planned_again_ends_the_job() {
    let plans = Arc::new(AtomicU64::new(0));
    let script = Script::numbers(1_000, 1, 1).failing_at(5);
    let job = Job::new("planned twice", move |flow| {
        // Each run calls this to count, to plan, and once per worker: here three times.
        assert!(plans.fetch_add(1, SeqCst) < 3, "not again");
        flow.source(&script)?.sink(millstream::discard())
    });
    let running = job.restart(QUICKLY).start().expect("the first run is planned");
    let error = running.wait().expect_err("the plan of the second run panics");
    assert_eq!(error.kind(), ErrorKind::Panic);
    assert!(format!("{error:#}").contains("not again"), "{error:#}");
}

/// A sink whose writers cannot be created.
#[derive(Clone)]
struct Broken;

impl Sink<u64> for Broken {
    type Shared = ();
    type Writer = millstream::Discard;

    fn name(&self) -> String {
        "broken".to_owned()
    }

    fn connect(self, _: OpenSink) -> millstream::Result<()> {
        Ok(())
    }

    fn writer(_: &Arc<()>, _: Worker, _: Wake) -> millstream::Result<millstream::Discard> {
        Err(Error::new(ErrorKind::Sink, "no writer today"))
    }
}

#[test]
fn a_writer_that_cannot_be_made_is_an_error_at_start() {
    for workers in [1, 3] {
        let fused = Job::new("no writer", |flow| flow.source(rows(0..10))?.sink(&Broken));
        let apart = Job::new("no writer", |flow| flow.source(rows(0..10))?.rebalance().sink(&Broken));
        for job in [fused, apart] {
            let error = job.workers(workers).start().expect_err("its writers cannot be created");
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Sink, "no writer today"));
        }
    }
}
