//! Epochs and checkpoints: none without a reason; commits wait for acknowledgements, and never
//! forever.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream::{Clock, Job, TestRun, Trigger, channel, collect, discard};

use crate::support::probe::Probe;
use crate::support::script::Script;
use crate::support::valve::Valve;
use crate::support::{PATIENCE, eventually};

#[test]
fn an_idle_job_opens_none() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::ZERO)] {
        let ((orders, source), probe, clock) = (channel::<u64>(10), Probe::default(), Clock::simulated());
        let beside = probe.clone();
        let job = Job::new("idle", move |flow| {
            flow.source(&source)?.sink(discard())?;
            beside.beside(flow)
        });
        let job = job.checkpoint_every(Duration::from_millis(1)).trigger(trigger).clock(clock.clone());
        let running = job.start().unwrap();
        let send_and_commit = || {
            let committed = running.report().committed;
            orders.try_send(0).unwrap().wait().unwrap();
            eventually("the record is committed", || {
                clock.advance(Duration::from_millis(1));
                running.report().committed > committed
            });
            probe.rounds(20);
            running.report().epochs
        };
        let before = send_and_commit();
        for _ in 0..50 {
            clock.advance(Duration::from_secs(60));
            probe.rounds(1);
        }
        assert_eq!(running.report().epochs, before, "an epoch was opened although nothing happened");
        // The ticker, too, has looked by the time it opens one for a record.
        let after = send_and_commit();
        assert!((1..=2).contains(&(after - before)), "{} epochs for a record", after - before);
        drop(orders);
        running.abort();
        drop(running.wait());
    }
}

/// The control thread looks after everything every 200 ms, so that a lost wake-up costs no more
/// than that. A record does not wait for it.
#[test]
fn an_idle_job_is_woken_by_a_record() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::ZERO)] {
        let ((orders, source), results, probe) = (channel::<u64>(10), collect(), Probe::default());
        let (sink, beside) = (results.clone(), probe.clone());
        let job = Job::new("woken", move |flow| {
            flow.source(&source)?.sink(&sink)?;
            beside.beside(flow)
        });
        let running = job.trigger(trigger).checkpoint_every(Duration::from_millis(1)).start().unwrap();
        let mut sent = 0;
        eventually("a record passes between two looks of the control thread", || {
            let idle = probe.looks() + 3;
            eventually("the job is idle", || probe.looks() >= idle);
            // Not in the middle of a look.
            std::thread::sleep(Duration::from_millis(20));
            let looks = probe.looks();
            drop(orders.try_send(1).unwrap());
            sent += 1;
            results.wait_for(sent, PATIENCE).unwrap();
            probe.looks() == looks
        });
        drop(running);
    }
}

#[test]
fn an_idle_job_wakes_its_workers_at_most_once_for_each_look() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(1))] {
        let probe = Probe::default();
        let beside = probe.clone();
        let job = Job::new("asleep", move |flow| beside.beside(flow));
        let running = job.checkpoint_every(Duration::from_millis(1)).trigger(trigger).workers(2).start().unwrap();
        probe.rounds(2);
        let (polls, looks) = (probe.polls(), probe.looks());
        eventually("the control thread has looked a few times", || probe.looks() >= looks + 5);
        let now = probe.polls();
        let looks = probe.looks() - looks;
        for (now, before) in now.into_iter().zip(polls) {
            assert!(now - before <= looks + 2, "{} polls at {looks} looks", now - before);
        }
        drop(running);
    }
}

#[test]
fn offsets_are_committed_within_an_interval_after_records_stop() {
    let (script, results, clock) = (Script::numbers(100, 1, 2).endless(), collect(), Clock::simulated());
    let (log, sink) = (script.log.clone(), results.clone());
    let job = Job::new("quiet", move |flow| flow.source(&script)?.sink(&sink)).clock(clock.clone());
    let running = job.checkpoint_every(Duration::from_secs(1)).start().unwrap();
    results.wait_for(100, PATIENCE).unwrap();
    clock.advance(Duration::from_millis(1_001));
    eventually("all records are committed", || log.committed() == 100);
    drop(running);
}

#[test]
fn offsets_wait_for_acknowledgements_and_memory_does_not_wait_for_offsets() {
    let (script, valve, clock) = (Script::numbers(1_000, 2, 4).endless(), Valve::shut(), Clock::simulated());
    let (log, sink, probe) = (script.log.clone(), valve.clone(), Probe::default());
    let beside = probe.clone();
    let job = Job::new("behind", move |flow| {
        flow.source(&script)?.sink(&sink)?;
        beside.beside(flow)
    });
    let running = job.clock(clock.clone()).checkpoint_every(Duration::from_millis(10)).start().unwrap();
    eventually("all records are taken", || valve.taken().len() == 1_000);
    let pass_some_intervals = || {
        for _ in 0..20 {
            clock.advance(Duration::from_millis(10));
            probe.rounds(1);
        }
    };
    pass_some_intervals();
    assert_eq!(log.committed(), 0, "nothing is acknowledged");
    valve.acknowledge(999);
    eventually("latency is recorded at the acknowledgement", || running.report().sinks[0].latency.count == 999);
    pass_some_intervals();
    assert!(log.committed() < 1_000, "the last record is in flight");
    valve.open();
    eventually("all records are committed", || {
        clock.advance(Duration::from_millis(10));
        log.committed() == 1_000
    });
    drop(running);
}

#[test]
fn at_most_one_checkpoint_is_between_cut_and_commit() {
    let (orders, source) = channel::<u64>(10);
    let (script, clock, results) =
        (Script::numbers(10_000, 1, 4).batches_of(5).endless(), Clock::simulated(), collect());
    let (log, sink) = (script.log.clone(), results.clone());
    log.hold_commits.store(true, SeqCst);
    let probe = Probe::default();
    let beside = probe.clone();
    let job = Job::new("slow commit", move |flow| {
        flow.source(&source)?.sink(discard())?;
        flow.source(&script)?.sink(&sink)?;
        beside.beside(flow)
    });
    let running = job.checkpoint_every(Duration::from_millis(1)).clock(clock.clone()).start().unwrap();
    results.wait_for(10_000, PATIENCE).unwrap();
    eventually("the source is asked to commit", || {
        clock.advance(Duration::from_millis(1));
        !log.commits.lock().unwrap().is_empty()
    });
    for n in 0..50 {
        clock.advance(Duration::from_millis(5));
        orders.try_send(n).unwrap().wait().unwrap();
    }
    assert_eq!(running.report().committed, 0);
    log.hold_commits.store(false, SeqCst);
    // The clock stands still: the next one was due, and only waited.
    eventually("the next one is cut and committed at once", || running.report().committed >= 2);
    probe.rounds(20);
    assert_eq!(running.report().committed, 2, "more were cut before the first one was answered");
    eventually("the rest follows", || {
        clock.advance(Duration::from_millis(5));
        log.committed() == 10_000
    });
    drop((running, orders));
}

#[test]
fn a_micro_batch_is_one_checkpoint_of_what_was_there_at_its_tick() {
    let ((orders, source), results) = (channel::<u64>(100), collect());
    let sink = results.clone();
    let job = Job::new("ticks", move |flow| flow.source(&source)?.sink(&sink));
    let mut test = TestRun::start(job.trigger(Trigger::micro_batch(Duration::from_secs(1)))).unwrap();
    for batch in 1..=5 {
        test.feed(&orders, 0..10).unwrap();
        assert!(test.drain(&results).unwrap().is_empty(), "records are released between ticks");
        test.advance(Duration::from_secs(1)).unwrap();
        assert_eq!(test.drain(&results).unwrap(), (0..10).collect::<Vec<_>>(), "the tick releases the records");
        assert_eq!(test.report().committed, batch);
    }
    assert_eq!(test.report().epochs, 5, "one epoch for each batch");
    let queue = test.report().sinks[0].queue.p50.as_secs_f64();
    assert!((queue - 1.0).abs() < 0.001, "the records waited for their tick, to three digits: {queue} s");
    test.end().unwrap();
}

#[test]
fn an_idle_job_commits_again_each_hour() {
    let (script, results, clock) = (Script::numbers(100, 1, 2).endless(), collect(), Clock::simulated());
    let (log, sink, probe) = (script.log.clone(), results.clone(), Probe::default());
    let beside = probe.clone();
    let job = Job::new("refresh", move |flow| {
        flow.source(&script)?.sink(&sink)?;
        beside.beside(flow)
    });
    let running = job.clock(clock.clone()).checkpoint_every(Duration::from_secs(1)).start().unwrap();
    results.wait_for(100, PATIENCE).unwrap();
    eventually("all records are committed", || {
        clock.advance(Duration::from_millis(500));
        log.committed() == 100
    });
    let commits = || log.commits.lock().unwrap().len();
    let before = commits();
    clock.advance(Duration::from_secs(1_800));
    probe.rounds(20);
    assert_eq!(commits(), before, "no commit before the hour is over");
    clock.advance(Duration::from_secs(1_801));
    eventually("the job commits the same offsets again", || commits() == before + 1);
    assert_eq!(log.commits.lock().unwrap().last().unwrap()[..], [("p0".to_owned(), 100)]);
    drop(running);
}
