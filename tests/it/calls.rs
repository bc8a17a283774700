//! Calls to other services: so many at once, in order or not, late ones as values, and none lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use millstream::{Calls, Error, ErrorKind, Job, Restart, Trigger, collect, discard, rows};

use crate::support::script::Script;
use crate::support::valve::Valve;
use crate::support::{eventually, seed};

const MILLI: Duration = Duration::from_millis(1);

#[test]
fn are_answered_in_order_or_as_they_come_under_any_trigger() {
    let random = fastrand::Rng::with_seed(seed());
    for trigger in [Trigger::Continuous, Trigger::micro_batch(MILLI), Trigger::AvailableNow] {
        for (workers, calls) in [(1, Calls::ordered(7)), (3, Calls::ordered(1)), (2, Calls::unordered(16))] {
            let (script, results) = (Script::numbers(1_000, 4, random.clone().u64(..)), collect());
            let (log, sink) = (script.log.clone(), results.clone());
            let job = Job::new("calls", move |flow| {
                let call = |n: u64| async move {
                    tokio::time::sleep(MILLI * (n % 3) as u32).await;
                    n
                };
                flow.source(&script)?.filter(|n| n % 2 == 0).map_async(calls, call).or_stop().map(|n| n + 1).sink(&sink)
            });
            let report = job.workers(workers).trigger(trigger).checkpoint_every(MILLI).run().unwrap();
            let mut values = results.values();
            if format!("{calls:?}").contains("is_ordered: true") {
                for partition in 0..4 {
                    let own: Vec<u64> = values.iter().copied().filter(|n| (n - 1) % 4 == partition).collect();
                    assert!(own.is_sorted(), "{calls:?}");
                }
            }
            values.sort_unstable();
            assert_eq!(values, (0..1_000).step_by(2).map(|n| n + 1).collect::<Vec<_>>(), "{calls:?} {trigger:?}");
            assert_eq!((log.committed(), report.stages[1].records_out), (1_000, 500));
        }
    }
}

#[test]
fn no_more_than_so_many_run_at_once_and_a_slow_one_holds_up_nobody_when_there_is_no_order() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (results, seen) = (collect(), Arc::clone(&most));
    let sink = results.clone();
    let job = Job::new("at once", move |flow| {
        let (running, most) = (Arc::clone(&running), Arc::clone(&most));
        let call = move |n: u64| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::time::sleep(if n == 0 { 200 * MILLI } else { MILLI }).await;
                running.fetch_sub(1, SeqCst);
                n
            }
        };
        flow.source(rows(0..50).partitions(1))?.map_async(Calls::unordered(5), call).or_stop().sink(&sink)
    });
    job.run().unwrap();
    assert_eq!(seen.load(SeqCst), 5);
    assert_eq!(results.values().last(), Some(&0), "the slow one is the last");
}

#[test]
fn late_ones_are_values() {
    let results = collect();
    let sink = results.clone();
    let job = Job::new("late", move |flow| {
        let call = |n: u64| async move {
            if n == 2 {
                std::future::pending::<()>().await;
            }
            n
        };
        let answers = flow.source(rows(0..5).partitions(1))?.map_async(Calls::ordered(2).within(50 * MILLI), call);
        answers.map(|answer| answer.map_err(|late| late.to_string())).sink(&sink)
    });
    job.run().unwrap();
    let late = Err("a call was not answered within 50ms".to_owned());
    assert_eq!(results.values(), [Ok(0), Ok(1), late, Ok(3), Ok(4)]);
}

#[test]
fn that_panic_end_the_run_with_the_operators_name_and_hang_nobody() {
    let job = Job::new("panics", |flow| {
        let call = |n: u64| async move {
            assert!(n != 777, "no sevens");
            n
        };
        let calls = flow.source(Script::numbers(1_000, 4, 1).endless())?.map_async(Calls::ordered(4), call);
        calls.named("prices").or_stop().sink(discard())
    });
    let begun = Instant::now();
    let error = job.workers(4).run().expect_err("it panics");
    assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
    assert_eq!(error.kind(), ErrorKind::Panic);
    assert!(error.to_string().contains("prices") && error.to_string().contains("no sevens"), "{error}");
}

#[test]
fn under_way_hold_back_offsets_and_a_stop_waits_for_them() {
    let (script, valve) = (Script::numbers(10, 1, 1).endless(), Valve::shut());
    valve.open();
    let (log, sink) = (script.log.clone(), valve.clone());
    let (gate, at_gate) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (open, waiting) = (Arc::clone(&gate), Arc::clone(&at_gate));
    let job = Job::new("gate", move |flow| {
        let (gate, at_gate) = (Arc::clone(&gate), Arc::clone(&at_gate));
        let call = move |n: u64| {
            let (gate, at_gate) = (Arc::clone(&gate), Arc::clone(&at_gate));
            async move {
                at_gate.fetch_add(1, SeqCst);
                gate.acquire().await.map(tokio::sync::SemaphorePermit::forget).map(|()| n)
            }
        };
        let answers = flow.source(&script)?.map_async(Calls::ordered(100), call).or_stop();
        answers.map(|answer| answer.unwrap_or(u64::MAX)).sink(&sink)
    });
    let running = job.checkpoint_every(MILLI).start().unwrap();
    eventually("all calls are made", || waiting.load(SeqCst) == 10);
    open.add_permits(4);
    eventually("four are answered", || valve.taken().len() == 4);
    std::thread::sleep(50 * MILLI);
    assert!(log.committed() <= 4, "{} committed", log.committed());
    running.stop();
    std::thread::sleep(50 * MILLI);
    open.add_permits(6);
    running.wait().unwrap();
    assert_eq!((valve.taken(), log.committed()), ((0..10).collect(), 10));
}

#[test]
fn that_fail_are_made_again_after_a_restart() {
    let (script, results) = (Script::numbers(200, 2, 1), collect());
    let sink = results.clone();
    let tries = Arc::new(AtomicUsize::new(0));
    let job = Job::new("again", move |flow| {
        let tries = Arc::clone(&tries);
        let call = move |n: u64| {
            let is_first = n == 100 && tries.fetch_add(1, SeqCst) == 0;
            async move { if is_first { Err(Error::new(ErrorKind::Unreachable, "the service is away")) } else { Ok(n) } }
        };
        flow.source(&script)?.map_async(Calls::ordered(8), call).or_stop().or_stop().sink(&sink)
    });
    let again = Restart::Backoff { first: MILLI, most: MILLI };
    let report = job.restart(again).checkpoint_every(MILLI).run().unwrap();
    assert_eq!(report.restarts, 1);
    let mut values = results.values();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values, (0..200).collect::<Vec<_>>());
}
