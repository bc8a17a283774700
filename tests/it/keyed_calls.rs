//! Calls in order by key: one at a time for each key, and a slow key holds up no other.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream::{Calls, ErrorKind, Job, Trigger, collect, discard, rows};

use crate::support::script::Script;
use crate::support::seed;

const MILLI: Duration = Duration::from_millis(1);

/// A third of the keys is slow; calls fail now and then.
#[test]
fn are_answered_in_order_of_their_key_under_any_trigger() {
    let random = fastrand::Rng::with_seed(seed());
    for trigger in [Trigger::Continuous, Trigger::micro_batch(MILLI), Trigger::AvailableNow] {
        for (workers, at_once) in [(1, 3), (3, 1), (2, 16)] {
            let (script, results) = (Script::numbers(1_000, 4, random.clone().u64(..)), collect());
            let (log, sink) = (script.log.clone(), results.clone());
            let [under_way, most] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
            let (seen, failures) = (Arc::clone(&most), Arc::new(AtomicUsize::new(0)));
            // Numbers of one key are of one partition.
            let key = |n: &u64| n % 12;
            let open = Arc::new(Mutex::new(BTreeSet::new()));
            let job = Job::new("by key", move |flow| {
                let (under_way, most, open) = (Arc::clone(&under_way), Arc::clone(&most), Arc::clone(&open));
                let failures = Arc::clone(&failures);
                let call = move |n: u64| {
                    assert!(open.lock().unwrap().insert(n % 12), "one call of a key at a time");
                    most.fetch_max(under_way.fetch_add(1, SeqCst) + 1, SeqCst);
                    let (under_way, open, failures) =
                        (Arc::clone(&under_way), Arc::clone(&open), Arc::clone(&failures));
                    async move {
                        tokio::time::sleep(MILLI * if n.is_multiple_of(3) { 2 } else { 0 }).await;
                        under_way.fetch_sub(1, SeqCst);
                        open.lock().unwrap().remove(&(n % 12));
                        if failures.fetch_add(1, SeqCst) % 7 == 0 { Err("not yet") } else { Ok(n) }
                    }
                };
                let calls = Calls::by_key(key, at_once).retry(u32::MAX, Duration::from_micros(100));
                flow.source(&script)?.map_async(calls, call).or_stop().or_skip().sink(&sink)
            });
            let report = job.workers(workers).trigger(trigger).checkpoint_every(MILLI).run().unwrap();
            let what = || format!("{at_once} at once, {workers} workers, {trigger:?}");
            let mut values = results.values();
            for own in 0..12 {
                assert!(values.iter().filter(|n| key(n) == own).is_sorted(), "{}", what());
            }
            values.sort_unstable();
            assert_eq!(values, (0..1_000).collect::<Vec<_>>(), "{}", what());
            assert!(seen.load(SeqCst) <= at_once * workers, "{}", what());
            assert_eq!(log.committed(), 1_000, "{}", what());
            assert!(report.stages[0].retried > 0, "{}", what());
        }
    }
}

/// With one call at a time over all keys, also while the call of a key is tried again.
#[test]
fn a_slow_key_holds_up_no_other() {
    for (name, at_once, fails) in [("slow", 2, false), ("failing", 1, true)] {
        let results = collect();
        let sink = results.clone();
        let job = Job::new(name, move |flow| {
            let answered = sink.clone();
            let call = move |n: u64| {
                let answered = answered.clone();
                async move {
                    // The first record of key 0 is answered when all those of other keys are.
                    while n == 0 && answered.len() < 900 {
                        if fails {
                            return Err("not yet");
                        }
                        tokio::time::sleep(MILLI).await;
                    }
                    Ok(n)
                }
            };
            let calls = Calls::by_key(|n: &u64| n % 10, at_once).retry(u32::MAX, MILLI);
            flow.source(rows(0..1_000).partitions(1))?.map_async(calls, call).or_stop().or_skip().sink(&sink)
        });
        job.checkpoint_every(MILLI).run().unwrap();
        let values = results.values();
        assert!(values[..900].iter().all(|n| n % 10 != 0), "{name}: the slow key is last");
        assert_eq!(values[900..], (0..1_000).step_by(10).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn are_late_as_values_and_the_key_goes_on() {
    let results = collect();
    let sink = results.clone();
    let job = Job::new("late", move |flow| {
        let call = |n: u64| async move {
            if n == 2 {
                std::future::pending::<()>().await;
            }
            n
        };
        let calls = Calls::by_key(|n: &u64| n % 2, 4).within(50 * MILLI);
        let answers = flow.source(rows(0..8).partitions(1))?.map_async(calls, call);
        answers.map(|answer| answer.unwrap_or(99)).sink(&sink)
    });
    job.run().unwrap();
    let (even, odd): (Vec<u64>, Vec<u64>) = results.take().into_iter().partition(|n| [0, 99, 4, 6].contains(n));
    assert_eq!((even, odd), (vec![0, 99, 4, 6], vec![1, 3, 5, 7]));
}

#[test]
fn name_the_stage_when_the_key_panics() {
    let job = Job::new("keys", |flow| {
        let key = |n: &u64| {
            assert!(*n != 777, "no key");
            *n
        };
        let calls = flow.source(rows(0..1_000))?.map_async(Calls::by_key(key, 4), |n| async move { n });
        calls.named("accounts").or_stop().sink(discard())
    });
    let error = job.run().expect_err("a key panics");
    assert_eq!(error.kind(), ErrorKind::Panic);
    assert!(error.to_string().contains("accounts") && error.to_string().contains("no key"), "{error}");
}
