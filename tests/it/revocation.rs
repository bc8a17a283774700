//! Partitions that are revoked while a job runs: the records released from them are acknowledged
//! and committed before the source unassigns them. Lost partitions are not committed.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream::{Clock, Job, Trigger, channel};

use crate::support::eventually;
use crate::support::probe::Probe;
use crate::support::script::Script;
use crate::support::valve::Valve;

#[test]
fn a_revoked_partition_is_committed_before_it_is_unassigned() {
    let (script, valve, clock) =
        (Script::numbers(4_000, 4, 2).batches_of(16).endless(), Valve::shut(), Clock::simulated());
    let (log, sink, probe) = (script.log.clone(), valve.clone(), Probe::default());
    let beside = probe.clone();
    let job = Job::new("revoked", move |flow| {
        flow.source(&script)?.sink(&sink)?;
        beside.beside(flow)
    });
    let running = job.workers(2).clock(clock).drain_within(Duration::from_secs(30)).start().unwrap();
    eventually("the sink has taken some records", || valve.taken().len() > 500);
    log.revoke(&["p1", "p2"]);
    probe.rounds(20);
    assert!(log.unassigned.lock().unwrap().is_empty(), "the records are not acknowledged");
    valve.open();
    eventually("the partitions are unassigned", || log.unassigned.lock().unwrap().len() == 2);
    let of = |partition: u64| valve.taken().iter().filter(|n| *n % 4 == partition).count() as u64;
    let committed = log.committed.lock().unwrap().clone();
    assert_eq!((committed["p1"], committed["p2"]), (of(1), of(2)), "commits cover exactly the released records");
    running.stop();
    running.wait().unwrap();
    assert_eq!(log.committed.lock().unwrap()["p0"], 1_000, "a partition that was kept is read to its end");
    assert_eq!(log.committed.lock().unwrap()["p1"], committed["p1"], "a revoked partition is not read further");
}

#[test]
fn a_partition_that_cannot_be_drained_is_unassigned_at_the_deadline() {
    let (script, valve) = (Script::numbers(4_000, 4, 2).endless(), Valve::shut());
    let (log, sink) = (script.log.clone(), valve.clone());
    let job = Job::new("not drained", move |flow| flow.source(&script)?.sink(&sink));
    let running = job.drain_within(Duration::from_millis(100)).start().unwrap();
    eventually("the sink has taken some records", || valve.taken().len() > 500);
    log.revoke(&["p0"]);
    eventually("the partition is unassigned", || !log.unassigned.lock().unwrap().is_empty());
    // Later acknowledgements of its records are not committed. The partition that was kept is read
    // on.
    valve.open();
    running.stop();
    running.wait().unwrap();
    let committed = log.committed.lock().unwrap();
    assert!(!committed.contains_key("p0") && committed["p1"] == 1_000, "{committed:?}");
}

#[test]
fn a_lost_partition_is_not_committed() {
    let (script, valve, clock) = (Script::numbers(4_000, 4, 2).endless(), Valve::shut(), Clock::simulated());
    let (log, sink) = (script.log.clone(), valve.clone());
    let job = Job::new("lost", move |flow| flow.source(&script)?.sink(&sink)).clock(clock);
    let running = job.start().unwrap();
    eventually("the sink has taken all records", || valve.taken().len() == 4_000);
    log.lose(&["p3"]);
    eventually("the partition is unassigned", || !log.unassigned.lock().unwrap().is_empty());
    valve.open();
    running.stop();
    running.wait().unwrap();
    let committed = log.committed.lock().unwrap();
    assert!(!committed.contains_key("p3") && committed["p0"] == 1_000, "{committed:?}");
}

#[test]
fn a_partition_that_is_lost_while_it_drains_is_unassigned_at_once_and_once() {
    let (script, valve, clock) = (Script::numbers(4_000, 4, 2).endless(), Valve::shut(), Clock::simulated());
    let (log, sink) = (script.log.clone(), valve.clone());
    let job = Job::new("lost later", move |flow| flow.source(&script)?.sink(&sink)).clock(clock);
    let running = job.drain_within(Duration::from_secs(300)).start().unwrap();
    eventually("the sink has taken all records", || valve.taken().len() == 4_000);
    log.revoke(&["p2"]);
    log.lose(&["p2"]);
    eventually("the partition is unassigned", || !log.unassigned.lock().unwrap().is_empty());
    valve.open();
    running.stop();
    running.wait().unwrap();
    assert_eq!(*log.unassigned.lock().unwrap(), ["p2"]);
    let committed = log.committed.lock().unwrap();
    assert!(!committed.contains_key("p2") && committed["p0"] == 1_000, "{committed:?}");
}

/// A checkpoint that includes a partition is cut, and waits for acknowledgements. When the
/// partition is lost meanwhile, its offset is left out of the commit.
#[test]
fn offsets_gathered_of_a_lost_partition_are_not_committed() {
    let (script, valve, clock) = (Script::numbers(4_000, 4, 2).endless(), Valve::shut(), Clock::simulated());
    let (log, sink, probe) = (script.log.clone(), valve.clone(), Probe::default());
    let beside = probe.clone();
    let job = Job::new("lost", move |flow| {
        flow.source(&script)?.sink(&sink)?;
        beside.beside(flow)
    });
    let running = job.clock(clock.clone()).checkpoint_every(Duration::from_millis(10)).start().unwrap();
    eventually("the sink has taken all records", || valve.taken().len() == 4_000);
    clock.advance(Duration::from_millis(10));
    eventually("a checkpoint is cut", || running.report().epochs == 1);
    // It is gathered on the control thread.
    probe.rounds(20);
    log.lose(&["p3"]);
    eventually("the partition is unassigned", || !log.unassigned.lock().unwrap().is_empty());
    valve.open();
    running.stop();
    running.wait().unwrap();
    let committed = log.committed.lock().unwrap();
    assert!(!committed.contains_key("p3") && committed["p0"] == 1_000, "{committed:?}");
}

#[test]
fn a_revoked_partition_does_not_wait_for_a_tick() {
    let (script, valve, clock) = (Script::numbers(400, 4, 2).endless(), Valve::shut(), Clock::simulated());
    valve.open();
    let (log, sink) = (script.log.clone(), valve.clone());
    let job = Job::new("between ticks", move |flow| flow.source(&script)?.sink(&sink));
    let job = job.trigger(Trigger::micro_batch(Duration::from_secs(3_600))).clock(clock);
    let running = job.drain_within(Duration::from_secs(30)).start().unwrap();
    eventually("all records wait for the tick", || log.read.load(SeqCst) == 400);
    log.revoke(&["p0"]);
    eventually("the partition is unassigned", || !log.unassigned.lock().unwrap().is_empty());
    drop(running);
}

#[test]
fn a_partition_of_a_reader_that_has_ended_is_unassigned_at_once() {
    let ((orders, endless), script, valve) = (channel::<u64>(1), Script::numbers(400, 2, 2), Valve::shut());
    valve.open();
    let (log, sink) = (script.log.clone(), valve.clone());
    let job = Job::new("ended", move |flow| {
        flow.source(&endless)?.sink(millstream::discard())?;
        flow.source(&script)?.sink(&sink)
    });
    let job = job.drain_within(Duration::from_secs(300)).checkpoint_every(Duration::from_millis(10));
    let running = job.workers(2).start().unwrap();
    eventually("all records are committed", || log.committed() == 400);
    log.revoke(&["p0"]);
    eventually("the partition is unassigned", || !log.unassigned.lock().unwrap().is_empty());
    drop(orders);
    running.wait().unwrap();
}
