//! Limits of what is read: a pause, a rate, a batch size, and several sources under one budget. No
//! limit holds back a cut, a commit or a stop.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream::{ByteSize, ChannelSource, Clock, ErrorKind, Job, TestRun, Trigger, channel, collect, discard, rows};

use crate::support::probe::Probe;
use crate::support::script::Script;
use crate::support::valve::Valve;
use crate::support::{PATIENCE, eventually};

const TRIGGERS: [Trigger; 2] = [Trigger::Continuous, Trigger::MicroBatch { interval: Duration::from_millis(5) }];

#[test]
fn a_rate_holds_over_all_workers_and_records_come_when_the_clock_has_moved() {
    for trigger in TRIGGERS {
        let ((numbers, source), results) = (channel(2_000), collect());
        let sink = results.clone();
        let job = Job::new("rate", move |flow| flow.source(&source)?.rate_at_most(100.0).sink(&sink));
        let mut test = TestRun::start(job.trigger(trigger).workers(2)).unwrap();
        test.feed(&numbers, 0..1_000u64).unwrap();
        test.advance(Duration::from_millis(10)).unwrap();
        let mut drained = test.drain(&results).unwrap().len();
        assert!(drained <= 11, "{trigger:?}: {drained} at once");
        for _ in 0..100 {
            test.advance(Duration::from_millis(10)).unwrap();
            // A limited source is read a moment after the clock has advanced.
            drained += test.drain(&results).unwrap().len();
        }
        let ten_in_a_second = |drained: usize| (90..=112).contains(&drained);
        eventually("the last of them arrive", || {
            drained += results.take().len();
            ten_in_a_second(drained)
        });
        test.advance(Duration::from_secs(3_600)).unwrap();
        eventually("more records arrive after the pause", || {
            drained += results.take().len();
            drained > 100
        });
        assert!(drained <= 123, "{trigger:?}: {drained}, the pause was made up for");
        // Records that were sent and not yet read are still processed: no later run can read them.
        let report = test.end().unwrap();
        assert_eq!(report.records_in(), 1_000, "{trigger:?}");
    }
}

#[test]
fn a_rate_holds_on_the_machines_clock() {
    let job = Job::new("rate", move |flow| flow.source(rows(0..300u64))?.rate_at_most(1_000.0).sink(discard()));
    let report = job.workers(2).start().unwrap().wait_for(PATIENCE).expect("the job ends").unwrap();
    assert_eq!(report.records_in(), 300);
    // The records of a tenth of a second arrive at once.
    assert!(report.elapsed_seconds >= 0.19, "{report}");
}

#[test]
fn a_batch_has_so_many_records_at_most() {
    let (script, results) = (Script::numbers(1_000, 4, 3).batches_of(64), collect());
    let (log, sink, probe) = (script.log.clone(), results.clone(), Probe::default());
    let (beside, clock) = (probe.clone(), Clock::simulated());
    let job = Job::new("batch", move |flow| {
        flow.source(&script)?.batch_at_most(50).sink(&sink)?;
        beside.beside(flow)
    });
    let running =
        job.trigger(Trigger::micro_batch(Duration::from_secs(1))).workers(2).clock(clock.clone()).start().unwrap();
    for batch in 1..=4usize {
        eventually("the batch is full", || log.read.load(SeqCst) == 50 * batch);
        probe.rounds(20);
        assert_eq!(log.read.load(SeqCst), 50 * batch, "more is read before the batch has left");
        clock.advance(Duration::from_secs(1));
        eventually("the batch arrives", || results.len() == 50 * batch);
        probe.rounds(20);
        assert!(results.len() <= 50 * batch, "{} records in {batch} batches", results.len());
        eventually("the batch is committed", || log.committed() as usize == results.len());
    }
    drop(running);
}

#[test]
fn a_batch_of_a_continuous_job_lies_between_two_checkpoints() {
    let (script, results) = (Script::numbers(1_000, 2, 3).batches_of(64), collect());
    let (log, sink, probe) = (script.log.clone(), results.clone(), Probe::default());
    let (beside, clock) = (probe.clone(), Clock::simulated());
    let job = Job::new("batch", move |flow| {
        flow.source(&script)?.batch_at_most(50).sink(&sink)?;
        beside.beside(flow)
    });
    let running = job.clock(clock.clone()).start().unwrap();
    for batch in 1..=4u64 {
        eventually("the batch is full", || results.len() as u64 == 50 * batch);
        probe.rounds(20);
        assert_eq!(results.len() as u64, 50 * batch);
        clock.advance(Duration::from_secs(1));
        eventually("a checkpoint is cut and committed all the same", || log.committed() >= 50 * batch);
    }
    drop(running);
}

#[test]
fn a_pause_keeps_records_out_and_neither_commits_nor_a_stop_wait_for_its_end() {
    for trigger in TRIGGERS {
        let (script, results) = (Script::numbers(100_000, 2, 5).batches_of(8), collect());
        let (log, sink, probe) = (script.log.clone(), results.clone(), Probe::default());
        let beside = probe.clone();
        let job = Job::new("pause", move |flow| {
            flow.source(&script)?.named("numbers").sink(&sink)?;
            beside.beside(flow)
        });
        let job = job.trigger(trigger).checkpoint_every(Duration::from_millis(10));
        let running = job.start().unwrap();
        eventually("the job runs", || !results.is_empty());
        running.source("numbers").expect("the source has this name").pause();
        assert!(running.source("others").is_none());
        assert!(running.report().to_string().contains("paused"), "{}", running.report());
        eventually("what was read is committed", || {
            let read = log.read.load(SeqCst);
            results.len() == read && log.committed() as usize == read
        });
        // A worker that was polling its reader when the pause began has come back.
        probe.rounds(2);
        let read = log.read.load(SeqCst);
        probe.rounds(20);
        assert_eq!(log.read.load(SeqCst), read, "a source that is paused is read");
        running.resume();
        let read = results.len();
        eventually("the job reads on", || results.len() > read);
        running.pause();
        running.stop();
        running.wait().unwrap();
        assert_eq!(log.committed() as usize, results.len(), "{trigger:?}");
    }
}

#[test]
fn limits_set_by_the_program_last_over_a_restart() {
    let (script, results) = (Script::numbers(1_000, 1, 7).batches_of(8).failing_at(20), collect());
    let (log, sink) = (script.log.clone(), results.clone());
    let job = Job::new("again", move |flow| flow.source(&script)?.sink(&sink));
    let restart = millstream::Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let running = job.restart(restart).start().unwrap();
    running.source("script").expect("a source is named after its kind").rate_at_most(Some(0.001));
    running.source("script").expect("a source is named after its kind").rate_at_most(None);
    running.source("script").expect("a source is named after its kind").batch_at_most(Some(1_000_000));
    eventually("all records are read", || results.len() >= 1_000);
    eventually("the second run begins", || log.connects.load(SeqCst) == 2);
    running.pause();
    assert!(running.report().sources[0].paused);
    drop(running);
}

#[test]
fn an_invalid_limit_is_named_at_start() {
    #[track_caller]
    fn check(job: Job, names: &str) {
        let error = job.start().expect_err("the limit is invalid");
        assert_eq!(error.kind(), ErrorKind::Pipeline, "{error:?}");
        assert!(error.to_string().contains(names), "`{error}` does not name `{names}`");
    }
    let job = |rate: f64| Job::new("x", move |flow| flow.source(rows([1]))?.rate_at_most(rate).sink(discard()));
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        check(job(rate), "`rate_at_most`");
    }
    let job = Job::new("x", |flow| flow.source(rows([1]))?.batch_at_most(0).sink(discard()));
    check(job, "`batch_at_most`");
    let job = Job::new("x", |flow| flow.source(rows([1]))?.map(|n| n).rate_at_most(1.0).sink(discard()));
    check(job, "directly follow");
}

/// The first source used to take all of the room each time, and the second had none.
#[test]
fn a_source_with_a_backlog_leaves_the_others_their_turn() {
    let (many, one) = (rows(0..1_000_000u64).partitions(1), rows([u64::MAX]).partitions(1));
    let valve = Valve::shut();
    let sink = valve.clone();
    let job = Job::new("turns", move |flow| {
        flow.source(&many)?.sink(&sink)?;
        flow.source(&one)?.sink(&sink)
    });
    // Room for ten records.
    let running = job.memory(ByteSize(160)).start().unwrap();
    let mut acknowledged = 0;
    eventually("the second source has its turn", || {
        if valve.taken().len() as u64 >= acknowledged + 10 {
            valve.acknowledge(10);
            acknowledged += 10;
        }
        assert!(acknowledged < 500, "no turn within {acknowledged} records");
        valve.taken().contains(&u64::MAX)
    });
    drop(running);
}

/// A note that a reader had found no memory used to outlast the shortage, and the next record was
/// released without a tick.
#[test]
fn a_batch_is_not_released_for_memory_that_is_free_again() {
    let ((numbers, source), valve, clock) = (channel::<u64>(100), Valve::shut(), Clock::simulated());
    let (sink, probe) = (valve.clone(), Probe::default());
    let beside = probe.clone();
    let job = Job::new("stale", move |flow| {
        flow.source(&source)?.sink(&sink)?;
        beside.beside(flow)
    });
    let size = 10 * (128 + 32) * 2;
    let running = job
        .trigger(Trigger::micro_batch(Duration::from_secs(1)))
        .clock(clock.clone())
        .memory(ByteSize(size))
        .start()
        .unwrap();
    (0..20).for_each(|n| drop(numbers.try_send(n).unwrap()));
    // Memory is used up, so the batch does not wait for its tick, and nothing more can be read: it
    // has ten records, or eleven if the last poll found room for one.
    let is_released =
        || running.report().records_in() >= 10 && valve.taken().len() as u64 == running.report().records_in();
    eventually("the batch is released", is_released);
    let released = valve.taken().len();
    assert!(released <= 11, "{released}");
    valve.open();
    eventually("memory is free", || running.report().records_out() == released as u64);
    probe.rounds(20);
    assert_eq!(valve.taken().len(), released, "released without a tick");
    clock.advance(Duration::from_secs(1));
    eventually("the tick releases the others", || valve.taken().len() == 20);
    drop(running);
}

/// The end of a source used to be detected only by another poll, which its limit did not allow.
#[test]
fn a_limit_does_not_hold_back_the_end() {
    // One record in about a quarter of an hour, and one in longer than a `Duration` can hold.
    for rate in [0.001, 1e-30] {
        for trigger in TRIGGERS {
            let job = Job::new("end", move |flow| {
                flow.source(rows([1u64]).partitions(1))?.rate_at_most(rate).sink(discard())?;
                flow.source(&channel_of([1, 2]))?.batch_at_most(2).sink(discard())
            });
            let mut running = job.trigger(trigger).workers(2).start().unwrap();
            let report = running.wait_for(PATIENCE).expect("the job ends").unwrap();
            assert_eq!(report.records_in(), 3, "{rate}, {trigger:?}");
        }
    }
}

/// A channel whose sender is gone.
fn channel_of<const N: usize>(numbers: [u64; N]) -> ChannelSource<u64> {
    let (sender, source) = channel(N.max(1));
    numbers.into_iter().for_each(|n| drop(sender.try_send(n).unwrap()));
    source
}

/// A worker that had just released its batch used to take the next one before the others were
/// awake.
#[test]
fn workers_take_turns_with_the_batches_of_a_source() {
    let (numbers, results, clock) = (rows(0..1_000u64).partitions(4), collect(), Clock::simulated());
    let sink = results.clone();
    let job = Job::new("turns", move |flow| flow.source(&numbers)?.batch_at_most(10).sink(&sink));
    let running =
        job.trigger(Trigger::micro_batch(Duration::from_secs(1))).workers(4).clock(clock.clone()).start().unwrap();
    for batch in 1..=12usize {
        eventually("the batch arrives", || {
            clock.advance(Duration::from_secs(1));
            results.len() >= 10 * batch
        });
    }
    let quarters: std::collections::BTreeSet<u64> = results.values().into_iter().map(|n| n / 250).collect();
    assert_eq!(quarters.len(), 4, "not every worker had a turn: {:?}", results.values());
    drop(running);
}
