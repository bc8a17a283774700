//! What a receipt says about its record: a record that a stage drops on purpose counts as done,
//! whichever stage it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use millstream::{
    Calls, Error, ErrorKind, Flow, Job, Restart, Result, Stream, Trigger, Undelivered, channel, collect, discard,
};

use crate::support::eventually;

fn results<'a>(numbers: Stream<'a, u64>) -> Stream<'a, Result<u64, &'static str>> {
    numbers.map(|n| if n == 3 { Err("no threes") } else { Ok(n) })
}

type Pipeline = for<'a> fn(Stream<'a, u64>) -> Result<()>;

/// Each pipeline disposes of 3 on purpose.
const PIPELINES: &[(&str, Pipeline)] = &[
    ("filter", |numbers| numbers.filter(|n| *n != 3).sink(discard())),
    ("or_skip", |numbers| results(numbers).or_skip().sink(discard())),
    ("flat_map", |numbers| numbers.flat_map(|n| (n != 3).then_some(n)).sink(discard())),
    ("partition_results", |numbers| {
        let (yes, no) = results(numbers).partition_results();
        yes.sink(discard())?;
        no.sink(discard())
    }),
    ("branch", |numbers| {
        let (yes, no) = numbers.branch(|n| *n != 3);
        yes.sink(discard())?;
        no.filter(|_| false).sink(discard())
    }),
    ("a fork", |numbers| {
        let copy = numbers.clone();
        results(copy).or_skip().sink(discard())?;
        numbers.sink(discard())
    }),
    ("a clone of a batch", |numbers| {
        let whole = numbers.map_batches(|batch| {
            drop(batch.clone());
            batch
        });
        whole.sink(discard())
    }),
    ("a part of a batch", |numbers| {
        numbers.map_batches(|mut batch| batch.next().filter(|n| *n != 3).into_iter()).sink(discard())
    }),
    ("an exchange", |numbers| results(numbers.rebalance()).or_skip().sink(discard())),
];

/// After `or_skip` a receipt used to say that the run had ended: a service that answers HTTP
/// requests by receipts told its client to retry, forever.
#[test]
fn records_that_a_stage_drops_are_done() {
    for (name, pipeline) in PIPELINES {
        for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(1))] {
            let (numbers, source) = channel::<u64>(10);
            let job = Job::new(*name, move |flow: &Flow<'_>| pipeline(flow.source(&source)?));
            let running = job.trigger(trigger).workers(2).start().unwrap();
            for n in [2, 3, 4] {
                assert_eq!(numbers.try_send(n).unwrap().wait(), Ok(()), "{name}, {trigger:?}: {n}");
            }
            // Also when several are in flight.
            let receipts: Vec<_> = (0..8).map(|n| numbers.try_send(n).unwrap()).collect();
            receipts.into_iter().for_each(|receipt| assert_eq!(receipt.wait(), Ok(()), "{name}, {trigger:?}"));
            drop(running);
        }
    }
}

fn fails_at_three<'a>(numbers: Stream<'a, u64>) -> Result<()> {
    let three = |n| if n == 3 { Err(Error::new(ErrorKind::Malformed, "three")) } else { Ok(n) };
    numbers.map(three).or_stop().sink(discard())
}

fn panics_at_three<'a>(numbers: Stream<'a, u64>) -> Result<()> {
    numbers.inspect(|n| assert_ne!(*n, 3)).sink(discard())
}

fn calls(numbers: Stream<'_, u64>, how: Calls) -> Stream<'_, u64> {
    numbers.map_async(how, |n| async move { n }).map(|answer| answer.expect("it answers at once"))
}

/// In each pipeline something fails at 3.
const FAILING: &[(&str, Pipeline)] = &[
    ("a stage that fails", fails_at_three),
    ("a stage that panics", panics_at_three),
    ("a stage behind others", |numbers| panics_at_three(numbers.map(|n| n).filter(|_| true).flat_map(Some))),
    ("behind an exchange", |numbers| panics_at_three(numbers.rebalance())),
    ("in one branch of a fork", |numbers| {
        panics_at_three(numbers.clone())?;
        numbers.filter(|_| false).sink(discard())
    }),
    ("in one way of a branch", |numbers| {
        let (yes, no) = numbers.branch(|n| *n != 3);
        fails_at_three(no)?;
        yes.sink(discard())
    }),
    ("behind a call", |numbers| panics_at_three(calls(numbers, Calls::ordered(2)))),
    ("with an error behind a call", |numbers| fails_at_three(calls(numbers, Calls::ordered(2)))),
    ("behind a call without an order", |numbers| panics_at_three(calls(numbers, Calls::unordered(2)))),
    ("behind two calls", |numbers| fails_at_three(calls(calls(numbers, Calls::unordered(2)), Calls::ordered(2)))),
    ("in a call", |numbers| {
        let call = |n| async move {
            assert_ne!(n, 3);
            n
        };
        numbers.map_async(Calls::ordered(2), call).filter(|_| false).sink(discard())
    }),
];

#[test]
fn records_that_a_fault_leaves_unfinished_are_not_done() {
    for (name, pipeline) in FAILING {
        for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(1))] {
            let (numbers, source) = channel::<u64>(10);
            let job = Job::new(*name, move |flow: &Flow<'_>| pipeline(flow.source(&source)?));
            let running = job.trigger(trigger).workers(2).start().unwrap();
            assert_eq!(numbers.try_send(2).unwrap().wait(), Ok(()), "{name}, {trigger:?}");
            assert_eq!(numbers.try_send(3).unwrap().wait(), Err(Undelivered::Ended), "{name}, {trigger:?}");
            running.wait().expect_err("it fails");
        }
    }
}

const AGAIN: Restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };

/// The next run used to be denied the channel, and the job ended with an error about a second
/// reader that did not exist.
#[test]
fn a_run_after_a_stuck_one_reads_its_channel() {
    let ((numbers, source), results) = (channel::<u64>(10), collect());
    let sink = results.clone();
    let job = Job::new("stuck channel", move |flow| {
        let hangs = |n: &u64| {
            if *n == 1 {
                loop {
                    std::thread::park();
                }
            }
        };
        flow.source(&source)?.inspect(hangs).sink(&sink)
    });
    let running = job.stuck_after(Duration::from_millis(100)).restart(AGAIN).start().unwrap();
    drop(numbers.try_send(1).unwrap());
    eventually("the job restarts", || running.report().restarts >= 1);
    assert_eq!(numbers.try_send(2).unwrap().wait(), Ok(()));
    assert_eq!(results.values(), [2]);
    drop(running);
}

#[test]
fn a_job_whose_every_run_gets_stuck_says_so_and_lets_its_senders_go() {
    let ((numbers, source), hangs) = (channel::<u64>(1), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&hangs);
    let job = Job::new("stuck channel", move |flow| {
        let hangs = Arc::clone(&counted);
        let hang = move |_: &u64| {
            hangs.fetch_add(1, SeqCst);
            loop {
                std::thread::park()
            }
        };
        flow.source(&source)?.inspect(hang).sink(discard())
    });
    let running = job.stuck_after(Duration::from_millis(100)).restart(AGAIN).start().unwrap();
    // Each run hangs at its first record. Until the last run has ended, there is always another
    // record.
    while numbers.blocking_send(0).is_ok() {}
    assert_eq!(running.wait().unwrap_err().kind(), ErrorKind::Stuck);
    assert_eq!(hangs.load(SeqCst), 3, "three runs that get stuck end the job");
}

#[test]
fn a_channel_that_a_job_reads_twice_is_refused() {
    let (_numbers, source) = channel::<u64>(1);
    let job = Job::new("twice", move |flow| {
        flow.source(&source)?.sink(discard())?;
        flow.source(&source)?.sink(discard())
    });
    let error = job.start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("channel"), "{error}");
}

/// The time of sending used to be dropped: under one of the triggers, the latency did not include
/// the time in the queue before the job.
#[test]
fn latency_includes_the_time_before_a_record_is_read() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::ZERO)] {
        let (numbers, source) = channel::<u64>(1_000);
        (0..500).for_each(|n| drop(numbers.try_send(n).unwrap()));
        let job = Job::new("behind", move |flow| {
            flow.source(&source)?.inspect(|_| std::thread::sleep(Duration::from_millis(2))).sink(discard())
        });
        let running = job.trigger(trigger).start().unwrap();
        drop(numbers);
        let report = running.wait().unwrap();
        // 500 records of 2 ms each, all sent before the start: the median record waits half a
        // second.
        assert!(report.sinks[0].latency.p50 > Duration::from_millis(300), "{trigger:?}: {report}");
    }
}
