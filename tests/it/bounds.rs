//! Memory: readers wait while their worker's share is used up, and nothing that a commit needs
//! waits for that commit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use millstream::{ByteSize, Calls, Job, Result, Stream, Trigger, channel, collect, discard, rows};

use crate::support::eventually;
use crate::support::script::{RECORD, Script};
use crate::support::valve::Valve;

/// The memory that holds this many records in flight.
fn memory_for(records: u64) -> ByteSize {
    ByteSize(records * RECORD.0 * 2)
}

#[test]
fn a_stalled_sink_stops_the_reading() {
    let (script, valve) = (Script::numbers(10_000, 2, 1).batches_of(8).endless(), Valve::shut());
    let sink = valve.clone();
    let job = Job::new("stalled", move |flow| flow.source(&script)?.sink(&sink)).memory(memory_for(100));
    let running = job.start().unwrap();
    eventually("the budget is used up", || valve.taken().len() >= 90);
    eventually("the rest follows as room is made", || {
        valve.acknowledge(20);
        valve.taken().len() == 10_000
    });
    let most = valve.inner.most_in_flight.load(SeqCst);
    assert!(most <= 100 + 8, "{most} records were in flight");
    drop(running);
}

/// What a record points to counts when the source says how large it is.
#[test]
fn a_stalled_sink_stops_a_channel_of_large_records() {
    let large: fn(&u64) -> ByteSize = |_| ByteSize::mebibytes(1);
    for (points_to, at_least, at_most) in [(large, 8, 11), (|_| ByteSize(0), 100, 100)] {
        let ((numbers, source), valve) = (channel::<u64>(100), Valve::shut());
        let (source, sink) = (source.sized(points_to), valve.clone());
        (0..100).for_each(|n| drop(numbers.try_send(n).unwrap()));
        let job = Job::new("sized", move |flow| flow.source(&source)?.sink(&sink)).memory(ByteSize::mebibytes(20));
        let running = job.start().unwrap();
        eventually("the budget is used up", || valve.taken().len() >= at_least);
        eventually("the rest follows as room is made", || {
            valve.acknowledge(1);
            valve.taken().len() == 100
        });
        let most = valve.inner.most_in_flight.load(SeqCst);
        assert!(most <= at_most, "{most} records were in flight");
        drop(running);
    }
}

#[test]
fn a_sink_without_room_stops_the_reading_and_goes_on_where_it_was() {
    let (script, valve) = (Script::numbers(5_000, 1, 1).batches_of(8), Valve::shut());
    valve.inner.full.store(true, SeqCst);
    valve.open();
    let sink = valve.clone();
    let running =
        Job::new("full", move |flow| flow.source(&script)?.sink(&sink)).memory(memory_for(50)).start().unwrap();
    eventually("the job reads", || running.report().sources[0].records > 0);
    for _ in 0..20 {
        let refused = valve.inner.refused.load(SeqCst);
        valve.wake();
        eventually("the batch is offered again", || valve.inner.refused.load(SeqCst) > refused);
    }
    // Records that wait for a writer are not in a budget, so nothing is read behind the batch that
    // found no room.
    assert!(running.report().sources[0].records <= 8 && valve.taken().is_empty());
    valve.have_room();
    running.wait().unwrap();
    assert_eq!(valve.taken(), (0..5_000).collect::<Vec<_>>(), "in order, each once");
}

#[test]
fn a_sink_that_acknowledges_at_commits_runs_with_a_budget_of_ten_records() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(5))] {
        for copies in [1, 100] {
            let (script, valve) = (Script::numbers(300, 2, 1).batches_of(4), Valve::at_commit());
            let (log, sink) = (script.log.clone(), valve.clone());
            let job = Job::new("staged", move |flow| {
                flow.source(&script)?.flat_map(move |n| std::iter::repeat_n(n, copies)).sink(&sink)
            });
            // The interval does not elapse during the test, so every boundary here was requested.
            let job = job.checkpoint_every(Duration::from_secs(3_600)).memory(memory_for(10));
            let running = job.trigger(trigger).start().unwrap();
            let mut running = running;
            let report = running.wait_for(crate::support::PATIENCE).expect("the job does not hang").unwrap();
            assert_eq!(valve.taken().len(), 300 * copies);
            assert_eq!((report.records_out(), log.committed()), (300 * copies as u64, 300));
            assert!(valve.inner.commits.load(SeqCst) > 10, "with room for ten records, many commits are needed");
        }
    }
}

#[test]
fn several_sources_share_what_one_has_alone() {
    let prefetch = |sources: usize| {
        let scripts: Vec<Script> = (0..sources).map(|_| Script::numbers(10, 1, 1)).collect();
        let log = scripts[0].log.clone();
        let job = Job::new("shared memory", move |flow| {
            scripts.iter().try_for_each(|script| flow.source(script)?.sink(discard()))
        });
        job.memory(ByteSize(1_200)).run().unwrap();
        log.prefetch.load(SeqCst)
    };
    assert_eq!((prefetch(1), prefetch(3)), (300, 100), "all sources together have a quarter of the job's memory");
}

/// Records that wait before a slow stage, behind a port or with calls, used to take up to all of
/// the memory.
#[test]
fn records_that_wait_before_a_slow_stage_are_bounded_too() {
    type Pipeline = fn(Stream<'_, u64>) -> Result<()>;
    let pipelines: [(&str, Pipeline); 3] = [
        ("a fork", |numbers| {
            numbers.clone().sink(discard())?;
            numbers.inspect(|_| std::thread::sleep(Duration::from_millis(1))).sink(discard())
        }),
        ("an exchange", |numbers| {
            numbers.rebalance().inspect(|_| std::thread::sleep(Duration::from_millis(1))).sink(discard())
        }),
        ("calls", |numbers| {
            let call = |n| async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                n
            };
            numbers.map_async(Calls::unordered(4), call).or_stop().sink(discard())
        }),
    ];
    for (name, pipeline) in pipelines {
        for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(10))] {
            let job = Job::new(name, move |flow| pipeline(flow.source(rows(0..1_000_000u64))?));
            let running = job.trigger(trigger).workers(2).start().unwrap();
            eventually("some records have reached every sink", || {
                running.report().sinks.iter().all(|sink| sink.records > 50)
            });
            let report = running.report();
            let slowest = report.sinks.iter().map(|sink| sink.records).min().unwrap();
            // What workers poll at once, and what may be in transit between them.
            let waits = report.sources[0].records - slowest;
            assert!(waits <= 40_000, "{name}, {trigger:?}: {waits} records wait");
            running.abort();
            running.wait().unwrap_err();
        }
    }
}

/// Ordered answers used to be kept without a bound behind a call that did not answer.
#[test]
fn calls_do_not_run_far_ahead_of_one_that_does_not_answer() {
    const AT_ONCE: u64 = 32;
    let (made, ahead) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (most, results) = (Arc::clone(&ahead), collect());
    let sink = results.clone();
    let job = Job::new("ahead", move |flow| {
        let (made, ahead, answered) = (Arc::clone(&made), Arc::clone(&ahead), Arc::new(AtomicU64::new(0)));
        let delivered = Arc::clone(&answered);
        let call = move |n: u64| {
            let so_far = made.fetch_add(1, SeqCst) + 1;
            ahead.fetch_max(so_far - answered.load(SeqCst), SeqCst);
            let made = Arc::clone(&made);
            async move {
                // Other calls are made while this one hangs, and could be for a while longer.
                if n.is_multiple_of(1_000) {
                    while made.load(SeqCst) < n + 3 * AT_ONCE {
                        tokio::task::yield_now().await;
                    }
                    for _ in 0..1_000 {
                        tokio::task::yield_now().await;
                    }
                }
                n
            }
        };
        let calls = Calls::ordered(AT_ONCE as usize);
        let answers = flow.source(rows(0..10_000u64).partitions(1))?.map_async(calls, call).or_stop();
        answers.inspect(move |_| _ = delivered.fetch_add(1, SeqCst)).sink(&sink)
    });
    job.run().unwrap();
    assert_eq!(results.values(), (0..10_000).collect::<Vec<_>>());
    let most = most.load(SeqCst);
    assert!((3 * AT_ONCE..=5 * AT_ONCE).contains(&most), "{most} calls");
}
