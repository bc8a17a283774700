//! How a job ends: bounded sources, `AvailableNow`, stop, stop with a deadline, abort, and a handle
//! that is dropped.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use millstream::{
    Clock, End, ErrorKind, Job, SendError, Source, Trigger, Undelivered, channel, collect, discard, generate, rows,
};

use crate::support::probe::Probe;
use crate::support::script::Script;
use crate::support::valve::Valve;
use crate::support::{PATIENCE, eventually, run_to_end};

fn endless() -> Script {
    Script::numbers(500, 4, 7).endless()
}

#[test]
fn stop_drains_and_commits() {
    let (script, results) = (endless(), collect());
    let (log, sink) = (script.log.clone(), results.clone());
    let running = Job::new("stop", move |flow| flow.source(&script)?.sink(&sink)).workers(2).start().unwrap();
    results.wait_for(500, PATIENCE).expect("all records come out");
    running.stop();
    running.wait().unwrap();
    assert_eq!(log.committed(), 500);
}

#[test]
fn stop_waits_for_acknowledgements_until_its_deadline() {
    let (script, valve) = (endless(), Valve::shut());
    let (log, sink) = (script.log.clone(), valve.clone());
    let mut running = Job::new("deadline", move |flow| flow.source(&script)?.sink(&sink)).start().unwrap();
    eventually("all records are taken", || valve.taken().len() == 500);
    let asked = Instant::now();
    running.stop_within(Duration::from_millis(300));
    let error = running.wait_for(PATIENCE).expect("the job ends").expect_err("nothing is acknowledged");
    assert_eq!(error.kind(), ErrorKind::Aborted);
    assert!(asked.elapsed() >= Duration::from_millis(300), "it did not wait for its deadline");
    assert_eq!(log.committed(), 0, "nothing was acknowledged, so nothing is committed");
}

#[test]
fn stop_under_micro_batch_releases_nothing_more() {
    let (script, results, clock) = (endless(), collect(), Clock::simulated());
    let (log, sink) = (script.log.clone(), results.clone());
    let job = Job::new("queued", move |flow| flow.source(&script)?.sink(&sink));
    let running = job.trigger(Trigger::micro_batch(Duration::from_secs(1))).clock(clock).start().unwrap();
    eventually("all records are read", || log.read.load(SeqCst) == 500);
    running.stop();
    running.wait().unwrap();
    assert_eq!((results.len(), log.committed()), (0, 0), "there was no tick: the next run reads the records again");
}

#[test]
fn stop_releases_records_that_cannot_be_read_again() {
    let (orders, source) = channel::<u64>(100);
    let (results, clock) = (collect(), Clock::simulated());
    let sink = results.clone();
    let job = Job::new("channel", move |flow| flow.source(&source)?.sink(&sink));
    let running = job.trigger(Trigger::micro_batch(Duration::from_secs(1))).clock(clock).start().unwrap();
    let receipts: Vec<_> = (0..50).map(|n| orders.try_send(n).unwrap()).collect();
    running.stop();
    running.wait().unwrap();
    assert_eq!(results.len(), 50, "the records are the last batch");
    receipts.into_iter().for_each(|receipt| receipt.wait().unwrap());
    assert!(matches!(orders.try_send(1), Err(SendError::Ended(1))), "a send after the end of the job fails");
}

#[test]
fn a_bounded_source_ends_the_job_under_each_trigger() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(10)), Trigger::AvailableNow] {
        let (script, results, clock) = (Script::numbers(1_000, 3, 1), collect(), Clock::simulated());
        let (log, sink) = (script.log.clone(), results.clone());
        let job = Job::new("bounded", move |flow| flow.source(&script)?.sink(&sink));
        let running = job.trigger(trigger).workers(2).clock(clock.clone()).start().unwrap();
        run_to_end(running, &clock, Duration::from_millis(1)).unwrap();
        assert_eq!((results.len(), log.committed()), (1_000, 1_000), "{trigger:?}");
    }
}

#[test]
fn available_now_ends_at_what_there_was() {
    let (orders, source) = channel::<u64>(100);
    (0..30).for_each(|n| drop(orders.try_send(n).unwrap()));
    let results = collect();
    let sink = results.clone();
    let job = Job::new("now", move |flow| flow.source(&source)?.sink(&sink)).trigger(Trigger::AvailableNow);
    job.run().unwrap();
    assert_eq!(results.len(), 30, "the job ends although the sender still exists");
    drop(orders);
}

#[test]
fn dropping_the_handle_does_not_block_and_ends_the_job() {
    let (script, valve) = (endless(), Valve::shut());
    let (log, sink) = (script.log.clone(), valve.clone());
    let (orders, source) = channel::<u64>(1);
    let probe = Probe::default();
    let beside = probe.clone();
    let running = Job::new("dropped", move |flow| {
        flow.source(&source)?.sink(&sink)?;
        flow.source(&script)?.sink(&sink)?;
        beside.beside(flow)
    })
    .start()
    .unwrap();
    eventually("the job runs", || !valve.taken().is_empty());
    probe.hold();
    let dropping = std::thread::spawn(move || drop(running));
    eventually("the handle is dropped while the job cannot end", || dropping.is_finished());
    probe.let_go();
    eventually("the job releases its channel", || matches!(orders.try_send(1), Err(SendError::Ended(_))));
    assert_eq!(log.committed(), 0);
}

#[test]
fn abort_ends_at_once_and_receipts_say_so() {
    let (orders, source) = channel::<u64>(10);
    let valve = Valve::shut();
    let sink = valve.clone();
    let running = Job::new("abort", move |flow| flow.source(&source)?.sink(&sink)).start().unwrap();
    let receipt = orders.try_send(1).unwrap();
    eventually("the record is taken", || valve.taken().len() == 1);
    running.abort();
    assert_eq!(running.wait().expect_err("the job was aborted").kind(), ErrorKind::Aborted);
    drop(valve);
    assert_eq!(receipt.wait(), Err(Undelivered::Ended));
}

#[test]
fn a_running_job_is_a_future() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let results = collect();
    let sink = results.clone();
    let running = Job::new("future", move |flow| flow.source(rows(0..10))?.sink(&sink)).start().unwrap();
    let report = runtime.block_on(running).unwrap();
    assert_eq!((report.records_in(), results.len()), (10, 10));
}

#[test]
fn a_channel_wakes_the_tasks_that_await_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let (orders, source) = channel::<u64>(2);
    let running = Job::new("await", move |flow| flow.source(&source)?.sink(millstream::discard())).start().unwrap();
    runtime.block_on(async {
        for n in 0..200 {
            orders.send(n).await.unwrap().await.unwrap();
        }
    });
    drop(orders);
    assert_eq!(running.wait().unwrap().records_in(), 200);
}

#[test]
fn stop_drains_a_channel_that_is_fuller_than_memory() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_secs(3_600))] {
        let (orders, source) = channel::<u64>(1_000);
        let results = collect();
        let sink = results.clone();
        let job = Job::new("full channel", move |flow| flow.source(&source)?.sink(&sink));
        let running = job.trigger(trigger).memory(millstream::ByteSize(400)).start().unwrap();
        let receipts: Vec<_> = (0..1_000).map(|n| orders.try_send(n).unwrap()).collect();
        running.stop();
        running.wait().unwrap();
        assert_eq!(results.values(), (0..1_000).collect::<Vec<_>>(), "{trigger:?}");
        receipts.into_iter().for_each(|receipt| receipt.wait().unwrap());
    }
}

#[test]
fn stop_drains_a_channel_into_a_sink_that_frees_memory_at_commits_only() {
    let (orders, source) = channel::<u64>(1_000);
    let valve = Valve::at_commit();
    let sink = valve.clone();
    let job = Job::new("staged channel", move |flow| flow.source(&source)?.sink(&sink));
    let mut running = job.memory(millstream::ByteSize(400)).start().unwrap();
    (0..500).for_each(|n| drop(orders.try_send(n).unwrap()));
    running.stop_within(PATIENCE);
    running.wait_for(PATIENCE).expect("the job does not hang").unwrap();
    assert_eq!(valve.taken(), (0..500).collect::<Vec<_>>());
}

/// Two records are sent before the job reads, and each has its own receipt.
#[test]
fn a_receipt_does_not_wait_for_its_neighbours() {
    let ((orders, source), valve) = (channel::<u64>(10), Valve::shut());
    let sink = valve.clone();
    let (first, second) = (orders.try_send(1).unwrap(), orders.try_send(2).unwrap());
    let running = Job::new("own", move |flow| flow.source(&source)?.sink(&sink)).start().unwrap();
    eventually("both are taken", || valve.taken().len() == 2);
    valve.acknowledge(1);
    first.wait().unwrap();
    let mut second = std::pin::pin!(second);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(second.as_mut().poll(&mut context).is_pending(), "the second record is not acknowledged");
    valve.open();
    eventually("the second record is acknowledged", || {
        second.as_mut().poll(&mut context) == std::task::Poll::Ready(Ok(()))
    });
    running.stop();
    running.wait().unwrap();
}

/// Whether time or only this run has ended decides what becomes final.
#[test]
fn a_report_says_whether_time_or_the_run_has_ended() {
    #[track_caller]
    fn check(trigger: Trigger, source: impl Source<Item = u64> + Clone + Send + Sync + 'static, expected: End) {
        let job = Job::new("ended", move |flow| flow.source(&source)?.sink(discard()));
        let report = job.trigger(trigger).workers(2).run().unwrap();
        assert_eq!(report.sources[0].ended, Some(expected));
    }
    for trigger in [Trigger::Continuous, Trigger::AvailableNow] {
        check(trigger, rows(0..10), End::OfTime);
        check(trigger, rows([]), End::OfTime);
        check(trigger, generate(|n| n).count(100), End::OfTime);
        check(trigger, generate(|n| n).rate(1e6).count(100), End::OfTime);
    }
    let closed = || {
        let (sender, source) = channel::<u64>(10);
        drop(sender.try_send(1).unwrap());
        (sender, source)
    };
    let (sender, source) = closed();
    drop(sender);
    check(Trigger::Continuous, source, End::OfTime);
    let (open, source) = closed();
    check(Trigger::AvailableNow, source, End::OfRun);
    drop(open);
}

#[test]
fn a_stop_ends_the_run_and_not_time() {
    let (sender, source) = channel::<u64>(10);
    let job = Job::new("stopped", move |flow| {
        flow.source(&source)?.sink(discard())?;
        flow.source(generate(|n| n).rate(10.0))?.sink(discard())
    });
    let running = job.start().unwrap();
    assert_eq!(running.report().sources[0].ended, None);
    running.stop();
    let report = running.wait().unwrap();
    let ended: Vec<_> = report.sources.iter().map(|source| source.ended).collect();
    assert_eq!(ended, [Some(End::OfRun), Some(End::OfRun)]);
    drop(sender);
}
