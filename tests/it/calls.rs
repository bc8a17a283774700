//! Calls to other services: a limited number at once, ordered or not, late ones as values, and none
//! lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::time::Duration;

use millstream::{Calls, Clock, Error, ErrorKind, Job, Restart, Trigger, collect, discard, rows};

use crate::support::probe::Probe;
use crate::support::script::Script;
use crate::support::valve::Valve;
use crate::support::{PATIENCE, events, eventually, seed};

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
fn are_limited_in_number_and_a_slow_one_delays_no_other_without_an_order() {
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
    assert_eq!(results.values().last(), Some(&0), "the slow call is the last");
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
fn that_panic_end_the_run_with_the_operators_name() {
    let job = Job::new("panics", |flow| {
        let call = |n: u64| async move {
            assert!(n != 777, "no sevens");
            n
        };
        let calls = flow.source(Script::numbers(1_000, 4, 1).endless())?.map_async(Calls::ordered(4), call);
        calls.named("prices").or_stop().sink(discard())
    });
    let mut running = job.workers(4).start().unwrap();
    let error = running.wait_for(PATIENCE).expect("the job does not hang").expect_err("the call panics");
    assert_eq!(error.kind(), ErrorKind::Panic);
    assert!(error.to_string().contains("prices") && error.to_string().contains("no sevens"), "{error}");
}

#[test]
fn under_way_hold_back_offsets_and_a_stop_waits_for_them() {
    let (script, valve) = (Script::numbers(10, 1, 1).endless(), Valve::shut());
    valve.open();
    let (log, sink, probe, clock) = (script.log.clone(), valve.clone(), Probe::default(), Clock::simulated());
    let beside = probe.clone();
    // One for each call: they come to a common one in any order.
    let gates: Arc<[_]> = (0..10).map(|_| tokio::sync::Semaphore::new(0)).collect();
    let (of_job, at_gate) = (Arc::clone(&gates), Arc::new(AtomicUsize::new(0)));
    let waiting = Arc::clone(&at_gate);
    let job = Job::new("gate", move |flow| {
        let (gates, at_gate) = (Arc::clone(&of_job), Arc::clone(&at_gate));
        let call = move |n: u64| {
            let (gates, at_gate) = (Arc::clone(&gates), Arc::clone(&at_gate));
            async move {
                at_gate.fetch_add(1, SeqCst);
                gates[n as usize].acquire().await.map(tokio::sync::SemaphorePermit::forget).map(|()| n)
            }
        };
        let answers = flow.source(&script)?.map_async(Calls::ordered(100), call).or_stop();
        answers.map(|answer| answer.unwrap_or(u64::MAX)).sink(&sink)?;
        beside.beside(flow)
    });
    let running = job.checkpoint_every(MILLI).clock(clock.clone()).start().unwrap();
    eventually("all calls are made", || waiting.load(SeqCst) == 10);
    gates[..4].iter().for_each(|gate| gate.add_permits(1));
    eventually("four are answered", || valve.taken().len() == 4);
    eventually("a checkpoint is cut", || {
        clock.advance(MILLI);
        running.report().epochs > 0
    });
    probe.rounds(20);
    assert!(log.committed() <= 4, "{} committed", log.committed());
    running.stop();
    eventually("the sources have ended", || running.report().sources.iter().all(|source| source.ended.is_some()));
    gates[4..].iter().for_each(|gate| gate.add_permits(1));
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
    let again = Restart::Backoff { first: MILLI, longest: MILLI };
    let report = job.restart(again).checkpoint_every(MILLI).run().unwrap();
    assert_eq!(report.restarts, 1);
    let mut values = results.values();
    values.sort_unstable();
    values.dedup();
    assert_eq!(values, (0..200).collect::<Vec<_>>());
}

/// Blocks the threads that wait for it until it is opened.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn wait(&self) {
        let (is_open, changed) = &*self.0;
        drop(changed.wait_while(is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// All futures and their time limits used to share one thread, so a future that blocked it held up
/// all others for as long.
#[test]
fn one_that_blocks_its_thread_delays_neither_others_nor_its_own_time_limit() {
    let (gate, results) = (Gate::default(), collect());
    let (blocks, sink) = (gate.clone(), results.clone());
    let job = Job::new("one blocks", move |flow| {
        let blocks = blocks.clone();
        let call = move |n: u64| {
            let blocks = blocks.clone();
            async move {
                if n == 0 {
                    blocks.wait();
                }
                n
            }
        };
        let calls = Calls::unordered(16).within(1_000 * MILLI);
        let answers = flow.source(rows(0..5).partitions(1))?.map_async(calls, call);
        answers.map(|answer| answer.ok()).sink(&sink)
    });
    let running = job.start().unwrap();
    eventually("all records go on while one call blocks", || results.len() == 5);
    let mut values = results.values();
    values.sort_unstable();
    assert_eq!(values, [None, Some(1), Some(2), Some(3), Some(4)]);
    gate.open();
    running.wait().unwrap();
}

/// More calls block than there are threads. Each record goes on when its time is up, and the log
/// names the stage once.
#[test]
fn when_all_block_their_threads_each_is_late_and_the_log_names_the_stage_once() {
    events::begin();
    let (gate, results) = (Gate::default(), collect());
    let (blocks, sink) = (gate.clone(), results.clone());
    let job = Job::new("all block", move |flow| {
        let blocks = blocks.clone();
        let call = move |n: u64| {
            let blocks = blocks.clone();
            async move {
                blocks.wait();
                n
            }
        };
        let answers = flow.source(rows(0..40).partitions(4))?.map_async(Calls::ordered(40).within(300 * MILLI), call);
        answers.named("stage that blocks").map(|answer| answer.is_err()).sink(&sink)
    });
    let running = job.workers(2).start().unwrap();
    eventually("all records go on while all threads are blocked", || results.len() == 40);
    assert_eq!(results.values(), [true; 40]);
    gate.open();
    running.wait().unwrap();
    let warned = events::times_logged(&["WARN", "stage that blocks", "blocks its thread", "all block"]);
    assert_eq!(warned, 1, "the warning is logged once, not once per record");
}

#[test]
fn that_block_on_purpose_have_a_thread_each() {
    let results = collect();
    let sink = results.clone();
    // No call returns before all have begun.
    let meeting = Arc::new(Barrier::new(40));
    let job = Job::new("blocking", move |flow| {
        let meeting = Arc::clone(&meeting);
        let call = Calls::blocking(move |n: u64| {
            meeting.wait();
            n
        });
        flow.source(rows(0..40).partitions(1))?.map_async(Calls::ordered(40), call).or_stop().sink(&sink)
    });
    job.run().unwrap();
    assert_eq!(results.values(), (0..40).collect::<Vec<_>>());
}

#[test]
fn that_block_on_purpose_have_time_limits_and_panics_with_the_operators_name() {
    let (gate, results) = (Gate::default(), collect());
    let (blocks, sink) = (gate.clone(), results.clone());
    let job = Job::new("blocking late", move |flow| {
        let blocks = blocks.clone();
        let call = Calls::blocking(move |n: u64| {
            if n == 1 {
                blocks.wait()
            }
        });
        let answers = flow.source(rows(0..3).partitions(1))?.map_async(Calls::ordered(3).within(1_000 * MILLI), call);
        answers.map(|answer| answer.is_ok()).sink(&sink)
    });
    job.run().unwrap();
    gate.open();
    assert_eq!(results.values(), [true, false, true]);
    let job = Job::new("blocking panics", |flow| {
        let call = Calls::blocking(|n: u64| assert!(n != 3, "no threes"));
        flow.source(rows(0..5))?.map_async(Calls::ordered(2), call).named("prices").or_stop().sink(discard())
    });
    let error = job.run().expect_err("the call panics");
    assert!(error.to_string().contains("prices") && error.to_string().contains("no threes"), "{error}");
}

/// Calls fail or time out at random and are retried. The output is the same as without failures.
#[test]
fn that_fail_for_a_while_are_answered_as_if_they_had_not() {
    let random = fastrand::Rng::with_seed(seed());
    for calls in [Calls::ordered(1), Calls::ordered(9), Calls::unordered(5)] {
        let (script, results) = (Script::numbers(300, 4, random.clone().u64(..)), collect());
        let (log, sink, random) = (script.log.clone(), results.clone(), random.clone());
        let again = calls.within(50 * MILLI).retry(1_000, MILLI);
        let job = Job::new("failing", move |flow| {
            let random = Mutex::new(random.clone());
            let call = move |n: u64| {
                let luck = random.lock().unwrap().u8(..40);
                async move {
                    if luck == 0 {
                        std::future::pending::<()>().await;
                    }
                    if luck < 12 { Err("bad luck") } else { Ok(n) }
                }
            };
            flow.source(&script)?.map_async(again, call).or_stop().or_skip().sink(&sink)
        });
        let report = job.workers(2).checkpoint_every(MILLI).run().unwrap();
        let mut values = results.values();
        if format!("{calls:?}").contains("is_ordered: true") {
            for partition in 0..4 {
                let own: Vec<u64> = values.iter().copied().filter(|n| n % 4 == partition).collect();
                assert!(own.is_sorted(), "{calls:?}");
            }
        }
        values.sort_unstable();
        assert_eq!(values, (0..300).collect::<Vec<_>>(), "{calls:?}");
        let stage = &report.stages[0];
        assert_eq!((log.committed(), stage.records_in, stage.records_out), (300, 300, 300));
        assert!(stage.retried > 0 && report.to_string().contains("calls retried"), "{report}");
    }
}

#[test]
fn that_fail_wait_for_their_next_attempt_while_others_are_made_and_their_order_is_kept() {
    let results = collect();
    let sink = results.clone();
    let made = Arc::new(AtomicUsize::new(0));
    let job = Job::new("meanwhile", move |flow| {
        let made = Arc::clone(&made);
        let call = move |n: u64| {
            let others = if n == 0 { made.load(SeqCst) } else { made.fetch_add(1, SeqCst) };
            // The first call succeeds once all others were made. With one call at a time, they are
            // made while it waits for its next attempt.
            async move { if n == 0 && others < 9 { Err("not yet") } else { Ok(n) } }
        };
        let calls = Calls::ordered(1).retry(u32::MAX, MILLI);
        flow.source(rows(0..10).partitions(1))?.map_async(calls, call).or_stop().or_skip().sink(&sink)
    });
    job.run().unwrap();
    assert_eq!(results.values(), (0..10).collect::<Vec<_>>());
}

#[test]
fn of_attempts_that_all_fail_the_last_goes_on_and_each_has_the_whole_time() {
    let results = collect();
    let sink = results.clone();
    let attempts = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
    let counted = attempts.clone();
    let job = Job::new("used up", move |flow| {
        let attempts = attempts.clone();
        let call = move |n: u64| {
            let attempt = attempts[n as usize].fetch_add(1, SeqCst);
            async move {
                match (n, attempt) {
                    (0, _) => Ok(format!("answered {attempt}")),
                    (1, _) => Err(format!("failure {attempt}")),
                    // Every attempt but the last times out. Together they take longer than one may
                    // take.
                    (_, 0..=2) => std::future::pending().await,
                    _ => Ok(format!("answered {attempt}")),
                }
            }
        };
        let calls = Calls::ordered(4).within(500 * MILLI).retry(3, MILLI);
        let answers = flow.source(rows(0..3).partitions(1))?.map_async(calls, call);
        answers.map(|answer| answer.unwrap_or_else(|late| Err(late.to_string()))).sink(&sink)
    });
    let report = job.run().unwrap();
    let expected = [Ok("answered 0"), Err("failure 3"), Ok("answered 3")];
    let expected = expected.map(|answer| answer.map(str::to_owned).map_err(str::to_owned));
    assert_eq!(results.values(), expected);
    assert_eq!(counted.map(|count| count.load(SeqCst)), [1, 4, 4]);
    assert_eq!(report.stages[0].retried, 6);
}

#[test]
fn that_time_out_in_each_attempt_are_late() {
    let results = collect();
    let sink = results.clone();
    let job = Job::new("always late", move |flow| {
        let call = |_: u64| std::future::pending::<Result<(), ()>>();
        let calls = Calls::unordered(1).within(10 * MILLI).retry(2, MILLI);
        flow.source(rows(0..3))?.map_async(calls, call).map(|answer| answer.unwrap_err().to_string()).sink(&sink)
    });
    let report = job.run().unwrap();
    assert_eq!(results.values(), ["a call was not answered within 10ms"; 3]);
    assert_eq!(report.stages[0].retried, 6);
}

#[test]
fn a_stop_waits_for_further_attempts_and_its_deadline_ends_them() {
    let (script, results, is_away) = (Script::numbers(10, 1, 1).endless(), collect(), Arc::new(AtomicBool::new(true)));
    let (log, sink, attempts) = (script.log.clone(), results.clone(), Arc::new(AtomicUsize::new(0)));
    let service = (Arc::clone(&is_away), Arc::downgrade(&attempts));
    let job = |(is_away, attempts): (Arc<AtomicBool>, std::sync::Weak<AtomicUsize>)| {
        let (script, sink) = (script.clone(), sink.clone());
        Job::new("away", move |flow| {
            let (is_away, attempts) = (Arc::clone(&is_away), attempts.upgrade().unwrap());
            let call = move |n: u64| {
                attempts.fetch_add(1, SeqCst);
                let is_away = is_away.load(SeqCst);
                async move { if is_away { Err("away") } else { Ok(n) } }
            };
            let calls = Calls::ordered(3).retry(u32::MAX, MILLI);
            flow.source(&script)?.map_async(calls, call).or_stop().or_skip().sink(&sink)
        })
        .checkpoint_every(MILLI)
    };
    let running = job(service.clone()).start().unwrap();
    eventually("calls are retried", || attempts.load(SeqCst) > 30);
    running.stop_within(10 * MILLI);
    let error = running.wait().expect_err("the job cannot stop in time");
    assert_eq!((error.kind(), log.committed(), results.len()), (ErrorKind::Aborted, 0, 0));
    eventually("nothing is left that could make another attempt", || Arc::strong_count(&attempts) == 1);
    let before = attempts.load(SeqCst);
    let running = job(service).start().unwrap();
    eventually("calls are retried", || attempts.load(SeqCst) > before + 30);
    running.stop();
    is_away.store(false, SeqCst);
    running.wait().unwrap();
    assert_eq!((results.values(), log.committed()), ((0..10).collect(), 10));
}
