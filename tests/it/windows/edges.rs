//! To the millisecond: what is late, and when windows close.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream::{
    Clock, EventTime, Job, Late, Lateness, Session, Sliding, Trigger, Tumbling, Watermark, WatermarkPolicy, channel,
    collect, rows,
};

use super::millis;
use crate::support::valve::Valve;
use crate::support::{PATIENCE, eventually};

/// Epochs are 100 ms long, and a window does not wait for the end of one.
#[test]
fn a_window_closes_with_the_record_that_lets_it() {
    let (clock, finals) = (Clock::simulated(), collect());
    let (sender, numbers) = channel(100);
    let sink = finals.clone();
    let job = Job::new("prompt", move |flow| {
        let numbers = flow.source(&numbers)?.with_watermark(|n| EventTime(*n), millis(1));
        let by_number = numbers.key_by(|n| n % 2);
        let counts = by_number.window(Tumbling::new(millis(10))).count().finals();
        counts.map(|pane| (pane.key, pane.window.end.0, pane.value)).sink(&sink)
    });
    let job = job.state_in_memory().checkpoint_every(Duration::from_secs(3_600)).clock(clock.clone());
    let running = job.workers(2).start().unwrap();
    [1, 2, 10].into_iter().for_each(|n| drop(sender.try_send(n).unwrap()));
    eventually("the records are there", || {
        running.report().stages.iter().find(|stage| stage.name == "count").is_some_and(|stage| stage.records_in == 3)
    });
    // The delay is a millisecond: this lets the first window close, and opens the second epoch.
    drop(sender.try_send(11).unwrap());
    let mut advanced = 0;
    eventually("the window is closed", || {
        clock.advance(millis(1));
        advanced += 1;
        finals.len() == 2
    });
    let mut finals = finals.take();
    finals.sort_unstable();
    assert_eq!(finals, [(0, 10, 1), (1, 10, 1)]);
    drop((sender, running.report()));
    running.handle().stop();
    let report = running.wait().unwrap();
    assert!(report.epochs < 20, "{advanced} ms, {} epochs", report.epochs);
}

type LateTimes = Vec<Late<Option<i64>>>;

/// What comes out of windows of 10 ms with a delay of 5 ms, and the late records.
fn outcome(times: &[Option<i64>]) -> (Vec<(i64, u64)>, LateTimes) {
    let (counts, late, times) = (collect(), collect(), times.to_vec());
    let sinks = (counts.clone(), late.clone());
    let job = Job::new("edges", move |flow| {
        let times = flow.source(rows(times.clone()).partitions(1))?;
        let timed = times.with_watermark(|at| at.map(EventTime), millis(5));
        let (windows, late) = timed.global().window(Tumbling::new(millis(10))).late();
        late.sink(&sinks.1)?;
        windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sinks.0)
    });
    job.state_in_memory().start().unwrap().wait_for(PATIENCE).expect("it ends").unwrap();
    (counts.values(), late.values())
}

#[test]
fn a_record_is_late_by_its_mark_to_the_millisecond() {
    for began in [-1_764_000_000_000, -10, 0, 1_764_000_000_000] {
        // The mark is a millisecond before the end of the first window, and then at it.
        let (counts, late) = outcome(&[Some(began + 14), Some(began + 9)]);
        assert_eq!((counts, late.len()), (vec![(began, 1), (began + 10, 1)], 0));
        let (counts, late) = outcome(&[Some(began + 15), Some(began + 9), Some(began + 10)]);
        assert_eq!(counts, [(began + 10, 2)]);
        assert_eq!(late.len(), 1);
        assert_eq!((late[0].record, late[0].why), (Some(began + 9), Lateness::Closed));
        assert_eq!((late[0].windows[0].start.0, late[0].windows[0].end.0), (began, began + 10));
        // It is judged by the mark before it.
        let (counts, late) = outcome(&[Some(began), Some(began + 1_000), Some(began + 1_001)]);
        assert_eq!((counts, late.len()), (vec![(began, 1), (began + 1_000, 2)], 0));
    }
}

#[test]
fn a_record_without_a_time_moves_nothing_and_is_late() {
    let (counts, late) = outcome(&[Some(3), None, Some(i64::MIN), Some(4)]);
    assert_eq!(counts, [(0, 2)]);
    let late: Vec<_> = late.into_iter().map(|late| (late.record, late.time, late.windows.len(), late.why)).collect();
    assert_eq!(late, [(None, None, 0, Lateness::NoTime), (Some(i64::MIN), None, 0, Lateness::NoTime)]);
}

#[test]
fn a_time_that_is_too_far_ahead_moves_nothing_and_is_late() {
    let (counts, late) = (collect(), collect());
    let sinks = (counts.clone(), late.clone());
    let job = Job::new("ahead", move |flow| {
        let times = flow.source(rows([3, 101, 100, i64::MAX, 4]).partitions(1))?;
        let watermark = Watermark::delay(millis(200)).ahead_at_most(millis(100));
        let timed = times.with_watermark(|at| EventTime(*at), watermark);
        let (windows, late) = timed.global().window(Tumbling::new(millis(10))).late();
        late.map(|late| (late.record, late.windows.len(), late.why)).sink(&sinks.1)?;
        windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sinks.0)
    });
    // Its clock stands at 1970.
    let mut running = job.state_in_memory().clock(Clock::simulated()).start().unwrap();
    running.wait_for(PATIENCE).expect("it ends").unwrap();
    assert_eq!(counts.values(), [(0, 2), (100, 1)]);
    assert_eq!(late.values(), [(101, 1, Lateness::Ahead), (i64::MAX, 1, Lateness::Ahead)]);
}

#[test]
fn the_ends_of_time_are_in_windows() {
    let (counts, late) = outcome(&[Some(i64::MIN + 1), Some(i64::MAX - 1), Some(i64::MAX)]);
    assert_eq!((counts.iter().map(|(_, count)| *count).collect::<Vec<_>>(), late.len()), (vec![1, 2], 0));
}

/// The second partition holds the window open, and the first one's mark has passed it.
#[test]
fn a_record_counts_while_its_window_is_open_if_that_is_asked_for() {
    let outcome = |policy| {
        let (counts, late) = (collect(), collect());
        let sinks = (counts.clone(), late.clone());
        let job = Job::new("policies", move |flow| {
            // Dealt to the partitions in halves.
            let times = flow.source(rows([1, 25, 2, 0, 0, 0]).partitions(2))?;
            let timed = times.with_watermark(|at| EventTime(*at), Watermark::delay(Duration::ZERO).policy(policy));
            let (windows, late) = timed.global().window(Tumbling::new(millis(10))).late();
            late.map(|late| late.record).sink(&sinks.1)?;
            windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sinks.0)
        });
        let job = job.state_in_memory().trigger(Trigger::micro_batch(Duration::ZERO));
        job.start().unwrap().wait_for(PATIENCE).expect("it ends").unwrap();
        (counts.values(), late.values())
    };
    assert_eq!(outcome(WatermarkPolicy::ByPartition), (vec![(0, 4), (20, 1)], vec![2]));
    assert_eq!(outcome(WatermarkPolicy::WhileOpen), (vec![(0, 5), (20, 1)], vec![]));
    assert_eq!(outcome(WatermarkPolicy::MaxSeen), (vec![(0, 5), (20, 1)], vec![]));
}

/// More than are emitted at once, and more than one slice of them.
#[test]
fn each_of_many_keys_comes_out_when_all_end_together() {
    const KEYS: i64 = 20_000;
    for workers in [1, 2] {
        let counts = [(); 3].map(|()| collect::<i64>());
        let sinks = counts.clone();
        let job = Job::new("many", move |flow| {
            let keys = flow.source(rows(0..KEYS).partitions(1))?.with_watermark(|_| EventTime(0), millis(1));
            let tumbling = keys.clone().key_by(|key| *key).window(Tumbling::new(millis(10))).count();
            tumbling.named("tumbling").finals().map(|pane| pane.key).sink(&sinks[0])?;
            let sliding = keys.clone().key_by(|key| *key).window(Sliding::new(millis(10), millis(9))).count();
            sliding.named("sliding").finals().map(|pane| pane.key).sink(&sinks[1])?;
            let sessions = keys.key_by(|key| *key).window(Session::with_gap(millis(10))).count();
            sessions.named("sessions").finals().map(|pane| pane.key).sink(&sinks[2])
        });
        job.state_in_memory().workers(workers).start().unwrap().wait_for(PATIENCE).expect("it ends").unwrap();
        for (counts, what) in counts.into_iter().zip(["tumbling", "sliding", "sessions"]) {
            let mut keys = counts.take();
            keys.sort_unstable();
            keys.dedup();
            assert!(keys.into_iter().eq(0..KEYS), "{what}, {workers} workers");
        }
    }
}

/// What fires is in no budget of records: it waits in its state until there is room.
#[test]
fn a_firing_waits_while_a_writer_has_no_room() {
    const KEYS: u64 = 50_000;
    let valve = Valve::shut();
    valve.inner.full.store(true, SeqCst);
    valve.open();
    let sink = valve.clone();
    let job = Job::new("full", move |flow| {
        let keys = flow.source(rows(0..=KEYS).partitions(1))?;
        // The last one closes the window of the others.
        let timed = keys.with_watermark(|n| EventTime(if *n == KEYS { 10 } else { 0 }), Duration::ZERO);
        timed.key_by(|n| *n).window(Tumbling::new(millis(10))).count().finals().map(|pane| pane.key).sink(&sink)
    });
    let running = job.state_in_memory().start().unwrap();
    for _ in 0..20 {
        let refused = valve.inner.refused.load(SeqCst);
        valve.wake();
        eventually("rows are offered again", || valve.inner.refused.load(SeqCst) > refused);
    }
    let entries = || running.report().stages.iter().map(|stage| stage.entries).max().unwrap();
    assert!(entries() > KEYS * 3 / 4 && valve.taken().is_empty(), "{} of {KEYS} wait in their state", entries());
    valve.have_room();
    running.wait().unwrap();
    let mut keys = valve.taken();
    keys.sort_unstable();
    assert_eq!(keys, (0..=KEYS).collect::<Vec<_>>());
}
