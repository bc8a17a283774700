//! Epochs and checkpoints: none without a reason; commits wait for acknowledgements, and never
//! forever.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use millstream::{Clock, Job, Trigger, channel, collect};

use crate::support::script::Script;
use crate::support::valve::Valve;
use crate::support::{PATIENCE, eventually};

#[test]
fn an_idle_job_opens_none_and_answers_at_once_when_woken() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::ZERO)] {
        let ((orders, source), results) = (channel::<u64>(10), collect());
        let sink = results.clone();
        let job = Job::new("idle", move |flow| flow.source(&source)?.sink(&sink));
        let running = job.checkpoint_every(Duration::from_millis(1)).trigger(trigger).start().unwrap();
        drop(orders.try_send(0).unwrap());
        results.wait_for(1, PATIENCE).unwrap();
        eventually("the record is committed", || running.report().committed >= 1);
        // Waits until everything that the first record caused is done.
        let mut before = running.report().epochs;
        eventually("no more epochs are opened", || {
            std::thread::sleep(Duration::from_millis(50));
            std::mem::replace(&mut before, running.report().epochs) == before
        });
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(running.report().epochs, before, "an epoch was opened although nothing happened");
        // The quickest of a few: the machine may stall once, but a job that waits for the safety
        // check every 200 ms is slow every time.
        let answers = (1..=5).map(|n| {
            std::thread::sleep(Duration::from_millis(150));
            let asked = Instant::now();
            drop(orders.try_send(n).unwrap());
            results.wait_for(1 + n as usize, PATIENCE).unwrap();
            asked.elapsed()
        });
        let quickest = answers.min().unwrap();
        assert!(quickest < Duration::from_millis(20), "woken after {quickest:?}");
        drop(orders);
        running.wait().unwrap();
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
    let (log, sink) = (script.log.clone(), valve.clone());
    let job = Job::new("behind", move |flow| flow.source(&script)?.sink(&sink)).clock(clock.clone());
    let running = job.checkpoint_every(Duration::from_millis(10)).start().unwrap();
    eventually("all records are taken", || valve.taken().len() == 1_000);
    for _ in 0..20 {
        clock.advance(Duration::from_millis(10));
        std::thread::yield_now();
    }
    assert_eq!(log.committed(), 0, "nothing is acknowledged");
    valve.acknowledge(999);
    eventually("latency is recorded at the acknowledgement", || running.report().sinks[0].latency.count == 999);
    clock.advance(Duration::from_millis(10));
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
    let job = Job::new("slow commit", move |flow| {
        flow.source(&source)?.sink(millstream::discard())?;
        flow.source(&script)?.sink(&sink)
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
    // The one that is not answered, and the one that was cut after it.
    assert!(log.commits.lock().unwrap().len() <= 2, "{:?}", log.commits.lock().unwrap());
    log.hold_commits.store(false, SeqCst);
    eventually("the rest follows", || {
        clock.advance(Duration::from_millis(5));
        log.committed() == 10_000
    });
    drop((running, orders));
}

#[test]
fn a_micro_batch_is_one_checkpoint_of_what_was_there_at_its_tick() {
    let ((orders, source), results, clock) = (channel::<u64>(100), collect(), Clock::simulated());
    let sink = results.clone();
    let job = Job::new("ticks", move |flow| flow.source(&source)?.sink(&sink));
    let running = job.trigger(Trigger::micro_batch(Duration::from_secs(1))).clock(clock.clone()).start().unwrap();
    for batch in 1..=5 {
        (0..10).for_each(|n| drop(orders.try_send(n).unwrap()));
        eventually("the records are polled", || running.report().sources[0].records >= 10 * (batch - 1));
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(results.len() as u64, 10 * (batch - 1), "nothing is released between ticks");
        clock.advance(Duration::from_secs(1));
        results.wait_for(10 * batch as usize, PATIENCE).expect("the tick releases the records");
        eventually("the batch is committed", || running.report().committed == batch);
    }
    assert_eq!(running.report().epochs, 5, "one epoch for each batch");
    let queue = running.report().sinks[0].queue.p50.as_secs_f64();
    assert!((queue - 1.0).abs() < 0.001, "the records waited for their tick, to three digits: {queue} s");
    drop(running);
}

#[test]
fn an_idle_job_commits_again_each_hour() {
    let (script, results, clock) = (Script::numbers(100, 1, 2).endless(), collect(), Clock::simulated());
    let (log, sink) = (script.log.clone(), results.clone());
    let job = Job::new("refresh", move |flow| flow.source(&script)?.sink(&sink)).clock(clock.clone());
    let running = job.checkpoint_every(Duration::from_secs(1)).start().unwrap();
    results.wait_for(100, PATIENCE).unwrap();
    eventually("all records are committed", || {
        clock.advance(Duration::from_millis(500));
        log.committed() == 100
    });
    let commits = || log.commits.lock().unwrap().len();
    let before = commits();
    clock.advance(Duration::from_secs(1_800));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(commits(), before, "no commit before the hour is over");
    clock.advance(Duration::from_secs(1_801));
    eventually("the job commits the same offsets again", || commits() == before + 1);
    assert_eq!(log.commits.lock().unwrap().last().unwrap()[..], [("p0".to_owned(), 100)]);
    drop(running);
}
