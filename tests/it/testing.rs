//! What users test their pipelines with: a run that is advanced step by step, and records on a
//! schedule.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use millstream::{
    Clock, ErrorKind, Job, Keyed, Restart, TestRun, Trigger, channel, collect, discard, generate, jobs, rows,
};

use crate::support::eventually;
use crate::support::probe::Probe;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_step_has_happened_when_it_returns() {
    for workers in [1, 3] {
        for _ in 0..20 {
            let ((numbers, source), results) = (channel::<u64>(1_000), collect());
            let sink = results.clone();
            let job = Job::new("steps", move |flow| flow.source(&source)?.map(|n| n * 2).rebalance().sink(&sink));
            let mut test = TestRun::start(job.workers(workers)).unwrap();
            for step in 0..5 {
                test.feed(&numbers, step * 100..step * 100 + 100).unwrap();
                assert_eq!(test.report().records_out(), (step + 1) * 100);
                let mut values = test.drain(&results).unwrap();
                values.sort_unstable();
                assert_eq!(values, (step * 100..step * 100 + 100).map(|n| n * 2).collect::<Vec<_>>());
            }
            test.advance(3_600 * SECOND).unwrap();
            assert!(test.drain(&results).unwrap().is_empty());
            assert_eq!(test.end().unwrap().records_in(), 500);
        }
    }
}

#[test]
fn micro_batches_wait_for_their_tick_and_for_nothing_else() {
    for workers in [1, 3] {
        for _ in 0..20 {
            let ((numbers, source), results) = (channel::<u64>(1_000), collect());
            let sink = results.clone();
            let job = Job::new("ticks", move |flow| flow.source(&source)?.sink(&sink)).workers(workers);
            let mut test = TestRun::start(job.trigger(Trigger::micro_batch(SECOND))).unwrap();
            for step in 0..5_u64 {
                test.feed(&numbers, [step, step]).unwrap();
                test.advance(SECOND / 2).unwrap();
                assert!(test.drain(&results).unwrap().is_empty(), "released before the tick");
                test.advance(SECOND / 2).unwrap();
                assert_eq!(test.drain(&results).unwrap(), [step, step]);
            }
            test.feed(&numbers, [7]).unwrap();
            assert_eq!(test.end().unwrap().records_out(), 11, "records that wait for a tick are released at the end");
        }
    }
}

#[test]
fn a_fault_is_the_error_of_the_step_that_met_it() {
    let (numbers, source) = channel::<u64>(10);
    let job =
        Job::new("falls", move |flow| flow.source(&source)?.inspect(|n| assert!(*n != 3, "no threes")).sink(discard()));
    let mut test = TestRun::start(job).unwrap();
    test.feed(&numbers, [1, 2]).unwrap();
    let error = test.feed(&numbers, [3]).expect_err("it panics");
    assert_eq!(error.kind(), ErrorKind::Panic);
}

#[test]
fn generated_records_come_on_their_schedule_and_on_no_other() {
    for workers in [1, 2, 3] {
        let (results, clock, probe) = (collect(), Clock::simulated(), Probe::default());
        let (sink, beside) = (results.clone(), probe.clone());
        let job = Job::new("schedule", move |flow| {
            flow.source(generate(|n| n).rate(10.0).count(25))?.sink(&sink)?;
            beside.beside(flow)
        });
        let running = job.workers(workers).clock(clock.clone()).start().unwrap();
        eventually("the first record arrives, which is due at once", || results.len() == 1);
        clock.advance(SECOND);
        eventually("the eleven records arrive that are due within a second", || results.len() == 11);
        probe.rounds(20);
        assert_eq!(results.len(), 11);
        eventually("all records arrive", || {
            clock.advance(SECOND);
            results.len() == 25
        });
        running.stop();
        let report = running.wait().unwrap();
        let mut values = results.values();
        values.sort_unstable();
        assert_eq!((values, report.records_in()), ((0..25).collect::<Vec<_>>(), 25));
    }
}

#[test]
fn generated_without_an_end_they_need_a_count_where_a_run_ends() {
    let job = Job::new("endless", |flow| flow.source(generate(|n| n))?.sink(discard()));
    let error = job.trigger(Trigger::AvailableNow).start().expect_err("the job would never end");
    assert!(error.to_string().contains("`count`"), "{error}");
    let job = Job::new("never", |flow| flow.source(generate(|n| n).rate(0.0))?.sink(discard()));
    assert!(job.start().expect_err("no record would ever be due").to_string().contains("`rate`"));
}

#[test]
fn generated_records_go_on_when_a_run_is_started_again() {
    let (results, clock, has_failed) = (collect(), Clock::simulated(), Arc::new(AtomicBool::new(false)));
    let sink = results.clone();
    // Each run creates its source again.
    let job = Job::new("again", move |flow| {
        let has_failed = Arc::clone(&has_failed);
        let fail = move |n: &u64| assert!(*n != 600 || has_failed.swap(true, SeqCst), "once");
        flow.source(generate(|n| n).rate(10.0))?.inspect(fail).sink(&sink)
    });
    let backoff = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let running = job.checkpoint_every(SECOND / 10).restart(backoff).clock(clock.clone()).start().unwrap();
    for due in 1..=600 {
        eventually("the records that are due arrive", || results.len() >= due);
        clock.advance(SECOND / 10);
    }
    let failed = clock.now();
    eventually("the job restarts and records arrive", || {
        clock.advance(Duration::from_millis(1));
        results.len() >= 610
    });
    // A schedule that started over would have no record due for a minute.
    assert!(clock.now() - failed < 30 * SECOND, "records arrived after {:?}", clock.now() - failed);
    assert_eq!(running.report().restarts, 1);
    running.abort();
    assert!(running.wait().is_err());
}

#[test]
fn a_channel_is_fed_beside_other_sources_and_keys_are_seen() {
    for _ in 0..20 {
        let ((numbers, source), results) = (channel::<u64>(10), collect());
        let sink = results.with_keys();
        let job = Job::new("both", move |flow| {
            let both = flow.source(rows(0..50_u64))?.union(flow.source(&source)?);
            both.sink_by(|n| n.to_string(), sink.clone())
        });
        let mut test = TestRun::start(job).unwrap();
        test.feed(&numbers, 100..130).unwrap();
        let fed: Vec<Keyed<u64>> =
            test.drain(&results).unwrap().into_iter().filter(|keyed| keyed.value >= 100).collect();
        let keyed = |value: u64| Keyed { key: value.to_string().into_bytes(), value };
        assert_eq!(fed, (100..130).map(keyed).collect::<Vec<_>>());
    }
}

/// A restarted run used to count from zero again, and the panic was reported as a hang.
#[test]
fn a_job_that_restarts_in_production_fails_in_a_test() {
    let (numbers, source) = channel::<u64>(10);
    let job = Job::new("falls", move |flow| flow.source(&source)?.inspect(|n| assert!(*n != 3)).sink(discard()));
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let mut test = TestRun::start(job.restart(restart)).unwrap();
    assert_eq!(test.feed(&numbers, [1, 2, 3]).unwrap_err().kind(), ErrorKind::Panic);
}

/// Whether the job had ended by then used to be a race, and when it had, the results were lost.
#[test]
fn the_results_of_a_job_whose_input_has_ended_are_handed_out() {
    let ((numbers, source), results) = (channel::<u64>(10), collect());
    let sink = results.clone();
    let job = Job::new("ends with its input", move |flow| flow.source(&source)?.sink(&sink));
    let mut test = TestRun::start(job).unwrap();
    test.feed(&numbers, [1, 2, 3]).unwrap();
    drop(numbers);
    eventually("the job has ended", || jobs().iter().all(|job| job.name() != "ends with its input"));
    assert_eq!(test.drain(&results).unwrap(), [1, 2, 3]);
    test.advance(Duration::from_secs(1)).unwrap();
    assert_eq!(test.end().unwrap().records_in(), 3);
}

/// A source that had reached its limit used to let a step return before another source was read.
#[test]
fn a_limit_of_one_source_does_not_limit_another() {
    for _ in 0..20 {
        let (((few, limited), (many, free)), results) = ((channel::<u64>(10), channel::<u64>(10)), collect());
        let sink = results.clone();
        let job = Job::new("two", move |flow| {
            flow.source(&limited)?.rate_at_most(10.0).sink(discard())?;
            flow.source(&free)?.sink(&sink)
        });
        let mut test = TestRun::start(job.workers(2)).unwrap();
        test.feed(&few, [1, 2]).unwrap();
        test.feed(&many, [1, 2, 3]).unwrap();
        assert_eq!(test.drain(&results).unwrap(), [1, 2, 3]);
        assert_eq!(test.report().records_in(), 4, "one record waits for the clock");
        test.advance(SECOND).unwrap();
        assert_eq!(test.report().records_in(), 5);
    }
}
