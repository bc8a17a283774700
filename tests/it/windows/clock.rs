//! Windows by processing time and by count, and how a test moves event time.

use std::time::Duration;

use millstream::{Clock, Count, EventTime, Job, Session, TestRun, Trigger, Tumbling, WallTime, channel, collect, rows};

use super::millis;
use crate::support::{PATIENCE, eventually};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn windows_of_processing_time_close_by_the_clock_alone() {
    for (trigger, workers) in [
        (Trigger::Continuous, 1),
        (Trigger::Continuous, 3),
        (Trigger::micro_batch(millis(100)), 1),
        (Trigger::micro_batch(millis(100)), 3),
    ] {
        let ((clicks, source), counts) = (channel(100), collect());
        let sink = counts.clone();
        let job = Job::new("clicks", move |flow| {
            let clicks = flow.source(&source)?.with_processing_time().key_by(|name: &char| *name);
            let counts = clicks.window(Tumbling::new(SECOND * 10)).count().finals();
            counts.map(|pane| (pane.window.start.0, pane.key, pane.value)).sink(&sink)
        });
        let mut test = TestRun::start(job.state_in_memory().trigger(trigger).workers(workers)).unwrap();
        test.feed(&clicks, ['a', 'b', 'a']).unwrap();
        test.advance(SECOND * 9).unwrap();
        test.feed(&clicks, ['a']).unwrap();
        test.advance(millis(999)).unwrap();
        assert!(test.drain(&counts).unwrap().is_empty(), "{trigger}: a millisecond is left");
        test.advance(millis(1)).unwrap();
        // Under micro-batches the last tick before it was at 9.9 s; the next one is a tenth later.
        test.advance(millis(100)).unwrap();
        let mut rows = test.drain(&counts).unwrap();
        rows.sort_unstable();
        assert_eq!(rows, [(0, 'a', 3), (0, 'b', 1)], "{trigger}, {workers} workers");
        test.advance(SECOND * 100).unwrap();
        test.feed(&clicks, ['c']).unwrap();
        // It enters with its micro-batch.
        test.advance(millis(100)).unwrap();
        test.advance(SECOND * 100).unwrap();
        test.advance(millis(100)).unwrap();
        let rows = test.drain(&counts).unwrap();
        assert_eq!(rows.len(), 1, "{trigger}, {workers} workers: {rows:?}");
        let report = test.end().unwrap();
        assert!(report.epochs < 60, "{}: nothing happens between what happens", report.epochs);
    }
}

#[test]
fn sessions_of_processing_time_tell_who_has_fallen_silent() {
    let ((beats, source), silent) = (channel(100), collect());
    let sink = silent.clone();
    let job = Job::new("availability", move |flow| {
        let services = flow.source(&source)?.with_processing_time().key_by(|service: &u8| *service);
        let seen = services.window(Session::with_gap(SECOND * 30)).count().finals();
        seen.map(|session| (session.key, session.window.end.0 - 30_000)).sink(&sink)
    });
    let mut test = TestRun::start(job.state_in_memory().workers(2)).unwrap();
    for second in 0..100 {
        let alive = (0..3).filter(|service| *service != 1 || second < 40);
        test.feed(&beats, alive.collect::<Vec<u8>>()).unwrap();
        test.advance(SECOND).unwrap();
    }
    assert_eq!(test.drain(&silent).unwrap(), [(1, 39_000)]);
    test.end().unwrap();
}

/// What a checkpoint keeps of it is the time of the world.
#[test]
fn a_window_that_was_open_when_the_job_went_down_closes_when_it_is_up() {
    let directory = tempfile::tempdir().unwrap();
    let numbers = |count: i64, wall: i64| {
        let (counts, clock) = (collect(), Clock::simulated_from(WallTime(wall)));
        let sink = counts.clone();
        let job = Job::new("restarted", move |flow| {
            let numbers = flow.source(millstream::generate(|n| n).count(count as u64))?;
            let windows = numbers.with_processing_time().global().window(Tumbling::new(SECOND * 10));
            windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sink)
        });
        let job = job.checkpoints(directory.path()).clock(clock.clone());
        (job.trigger(Trigger::micro_batch(Duration::ZERO)), counts, clock)
    };
    // Endless, so that the end of the data does not close it.
    let (job, counts, clock) = numbers(1 << 40, 5_000);
    let mut running = job.start().unwrap();
    eventually("there are records", || running.report().records_in() > 0);
    running.stop();
    let report = running.wait_for(PATIENCE).expect("it stops").unwrap();
    assert_eq!((counts.len(), clock.wall()), (0, WallTime(5_000)));
    let (job, counts, _) = numbers(1 << 40, 25_000);
    let mut running = job.start().unwrap();
    eventually("it is closed", || counts.len() == 1);
    running.stop();
    running.wait_for(PATIENCE).expect("it stops").unwrap();
    assert_eq!(counts.take(), [(0, report.records_in())]);
}

#[test]
fn a_record_that_is_fed_closes_what_it_closes() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::ZERO)] {
        let ((times, source), counts) = (channel(100), collect());
        let sink = counts.clone();
        let job = Job::new("fed", move |flow| {
            let times = flow.source(&source)?.with_watermark(|at| EventTime(*at), millis(5));
            let counts = times.key_by(|at| at % 2).window(Tumbling::new(millis(10))).count().finals();
            let again = counts.key_by(|pane| pane.key).window(Tumbling::new(millis(20))).sum(|pane| pane.value);
            again.finals().map(|pane| (pane.key, pane.window.start.0, pane.value)).sink(&sink)
        });
        let mut test = TestRun::start(job.state_in_memory().trigger(trigger).workers(2)).unwrap();
        test.feed(&times, [1, 3, 12, 24]).unwrap();
        assert!(counts.take().is_empty(), "{trigger}: the mark is 19");
        test.feed(&times, [25]).unwrap();
        let mut rows = counts.take();
        rows.sort_unstable();
        assert_eq!(rows, [(0, 0, 1), (1, 0, 2)], "{trigger}: before `feed` has returned");
        test.end().unwrap();
    }
}

/// What comes out of windows of so many numbers of each of two keys.
fn sums(count: Count) -> Vec<(i64, i64)> {
    let sums = collect();
    let sink = sums.clone();
    let job = Job::new("counts", move |flow| {
        let by_key = flow.source(rows(0..20_i64).partitions(1))?.key_by(|n| n % 2);
        by_key.window(count).sum(|n| *n).full().sink(&sink)
    });
    job.state_in_memory().run().unwrap();
    sums.values()
}

#[test]
fn windows_of_records_are_emitted_when_they_are_full() {
    for (length, every) in [(1, 1), (3, 3), (4, 1), (4, 3), (10, 10), (11, 11), (7, 2)] {
        let mut expected = Vec::new();
        let mut came: [Vec<i64>; 2] = Default::default();
        for n in 0..20 {
            let own = &mut came[n as usize % 2];
            own.push(n);
            if own.len().is_multiple_of(every) {
                let last = own.len().saturating_sub(length);
                expected.push((n % 2, own[last..].iter().sum()));
            }
        }
        let count = match length == every {
            true => Count::tumbling(length as u64),
            false => Count::sliding(length as u64, every as u64),
        };
        assert_eq!(sums(count), expected, "{length} by {every}");
    }
}

#[test]
fn windows_of_records_go_on_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    for (count, every) in [(3, 3), (3, 2)] {
        let place = directory.path().join(every.to_string());
        let run = |records: u64| {
            let sums = collect();
            let sink = sums.clone();
            let job = Job::new("counts", move |flow| {
                let numbers = flow.source(millstream::generate(|n| n).count(records))?.global();
                numbers.window(Count::sliding(count, every)).sum(|n| *n).full().map(|((), sum)| sum).sink(&sink)
            });
            job.checkpoints(&place).run().unwrap();
            sums.values()
        };
        let (first, second) = (run(4), run(7));
        let whole: Vec<u64> =
            (0..7_u64).filter(|n| (n + 1) % every == 0).map(|n| (0..=n).rev().take(count as usize).sum()).collect();
        assert_eq!([first, second].concat(), whole, "{count} by {every}");
    }
}
