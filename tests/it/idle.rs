//! Partitions without records: until when they hold windows open, and what becomes of those that
//! return.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use millstream::{
    Clock, Collected, ErrorKind, EventTime, Job, Late, Pane, PartitionMark, Running, Trigger, Tumbling, Watermark,
    channel, collect,
};

use crate::recovery::Fuse;
use crate::support::topic::Topic;
use crate::support::{PATIENCE, eventually};

const IDLE: Duration = Duration::from_secs(10);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The start of a window, and the number of its records.
type Counts = Collected<(i64, u64)>;

fn windows(topic: &Topic<i64>, counts: &Counts, late: &Collected<i64>) -> Job {
    let (topic, counts, late) = (topic.clone(), counts.clone(), late.clone());
    Job::new("idle", move |flow| {
        let at = flow.source(&topic)?.with_watermark(|at| EventTime(*at), Duration::ZERO);
        let (windows, missed) = at.global().window(Tumbling::new(Duration::from_millis(10))).late();
        missed.map(|late: Late<i64>| late.record).sink(&late)?;
        windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&counts)
    })
}

/// Whether the job has read so many records.
fn has_read(running: &Running, records: u64) -> bool {
    running.report().records_in() == records
}

/// Moves the clock until the condition holds. Returns how far that was.
fn advance_until(clock: &Clock, by: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let before = clock.now();
    eventually(what, || {
        clock.advance(by);
        holds()
    });
    clock.now() - before
}

fn stop(mut running: Running) {
    running.stop();
    running.wait_for(PATIENCE).expect("it stops").unwrap();
}

#[test]
fn an_empty_one_holds_windows_for_ten_seconds_and_no_more() {
    for workers in [1, 2] {
        let (topic, counts, late) = (Topic::new(vec![vec![1, 2, 25], vec![]], 64), collect(), collect());
        let clock = Clock::simulated();
        let job = windows(&topic, &counts, &late).state_in_memory().clock(clock.clone());
        let running = job.checkpoint_every(Duration::from_secs(3_600)).workers(workers).start().unwrap();
        eventually("they are read", || has_read(&running, 3));
        if workers == 1 {
            // The second worker may not know its partition yet.
            clock.advance(IDLE - MILLISECOND);
        }
        assert_eq!(counts.len(), 0, "the other one may have a record of any time");
        let step = if workers == 1 { MILLISECOND } else { MILLISECOND * 100 };
        let took = advance_until(&clock, step, "the window closes", || counts.len() == 1);
        assert!(took < Duration::from_secs(1) || workers == 2 && took > IDLE - MILLISECOND, "{took:?}");
        assert_eq!(counts.take(), [(0, 2)]);
        // The one that was read is left out too; then time is that of the furthest.
        clock.advance(IDLE * 2);
        topic.append(1, [22]);
        eventually("it is read", || has_read(&running, 4));
        topic.append(0, [40]);
        topic.append(1, [40]);
        let _ = advance_until(&clock, MILLISECOND, "the next one closes", || counts.len() == 1);
        assert_eq!((counts.take(), late.len()), (vec![(20, 2)], 0), "what is ahead of the watermark is in time");
        stop(running);
    }
}

#[test]
fn one_with_records_to_read_is_never_left_out() {
    let (topic, counts, late) = (Topic::new(vec![vec![1, 25], vec![]], 64), collect(), collect());
    let clock = Clock::simulated();
    topic.hold(1);
    topic.append(1, [2]);
    let running = windows(&topic, &counts, &late).state_in_memory().clock(clock.clone()).start().unwrap();
    let is_idle = || running.report().sources[0].marks.iter().any(|mark| mark.partition == "topic/0" && mark.idle);
    let _ = advance_until(&clock, IDLE / 20, "the other one is left out, and a checkpoint says so", is_idle);
    for _ in 0..20 {
        clock.advance(IDLE);
    }
    topic.release();
    eventually("it is read", || has_read(&running, 3));
    topic.append(1, [25]);
    let _ = advance_until(&clock, MILLISECOND, "the window closes", || counts.len() == 1);
    assert_eq!((counts.take(), late.len()), (vec![(0, 2)], 0));
    stop(running);
}

/// It was left out, and windows have closed that its records belong to.
#[test]
fn a_record_of_one_that_was_left_out_may_be_late() {
    let (topic, counts, late) = (Topic::new(vec![vec![1, 25], vec![]], 64), collect(), collect());
    let clock = Clock::simulated();
    let job = windows(&topic, &counts, &late).state_in_memory().clock(clock.clone());
    let running = job.checkpoint_every(Duration::from_secs(3_600)).start().unwrap();
    let _ = advance_until(&clock, MILLISECOND * 100, "the window closes", || counts.len() == 1);
    topic.append(1, [2, 23]);
    eventually("they are read", || has_read(&running, 4));
    // It is awake again, and holds time back.
    topic.append(0, [95]);
    eventually("it is read", || has_read(&running, 5));
    clock.advance(IDLE / 2);
    topic.append(1, [31]);
    let _ = advance_until(&clock, MILLISECOND, "the next one closes", || counts.len() == 2);
    assert_eq!((counts.take(), late.take()), (vec![(0, 1), (20, 2)], vec![2]));
    stop(running);
}

#[test]
fn a_job_that_is_idle_closes_no_epochs() {
    let (topic, counts, late) = (Topic::new(vec![vec![1, 25], vec![]], 64), collect(), collect());
    let clock = Clock::simulated();
    let running = windows(&topic, &counts, &late).state_in_memory().clock(clock.clone()).start().unwrap();
    let _ = advance_until(&clock, MILLISECOND * 100, "the window closes", || counts.len() == 1);
    let mut epochs = 0;
    eventually("it has come to rest", || {
        clock.advance(IDLE);
        std::mem::replace(&mut epochs, running.report().epochs) == running.report().epochs
    });
    for _ in 0..1_000 {
        clock.advance(IDLE);
    }
    assert_eq!(running.report().epochs, epochs);
    stop(running);
}

/// Why a window does not close is the question that is asked most.
#[test]
fn the_report_says_who_holds_event_time() {
    let (topic, counts, late) = (Topic::new(vec![vec![1, 1_000], vec![]], 64), collect(), collect());
    let job = windows(&topic, &counts, &late).state_in_memory().checkpoint_every(MILLISECOND * 10).workers(2);
    let running = job.start().unwrap();
    let says = |what: &str| running.report().to_string().contains(what);
    eventually("it names the one without a record", || says("event time is held by topic/1, which has had no record"));
    topic.append(1, [5]);
    eventually("it names the slowest", || {
        says("event time is held at 5 ms, ") && says("s behind the clock, by topic/1")
    });
    let marks = running.report().sources[0].marks.clone();
    assert!(marks.iter().all(|mark| mark.behind_clock_millis > Some(1_764_000_000_000)), "{marks:?}");
    stop(running);
}

/// A source that names no partitions.
#[test]
fn a_channel_without_records_holds_nothing_for_ever() {
    let (clock, counts) = (Clock::simulated(), collect());
    let ((first, one), (second, two)) = (channel::<i64>(10), channel::<i64>(10));
    let sink = counts.clone();
    let job = Job::new("channels", move |flow| {
        let one = flow.source(&one)?.named("one").with_watermark(|at| EventTime(*at), Duration::ZERO);
        let two = flow.source(&two)?.named("two").with_watermark(|at| EventTime(*at), Duration::ZERO);
        let windows = one.union(two).global().window(Tumbling::new(Duration::from_millis(10)));
        windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sink)
    });
    let running = job.state_in_memory().clock(clock.clone()).workers(2).start().unwrap();
    [1, 2, 25].into_iter().for_each(|at| drop(first.try_send(at).unwrap()));
    eventually("they are read", || has_read(&running, 3));
    let took = advance_until(&clock, MILLISECOND * 100, "the window closes", || counts.len() == 1);
    assert!(took > IDLE - Duration::from_secs(1), "{took:?}");
    assert_eq!(counts.take(), [(0, 2)]);
    drop((first, second));
    stop(running);
}

/// Runs the job on a directory until what it counts is as expected, and stops it. What is held of
/// the topic is read once the first partition is in a checkpoint up to that mark.
fn run_until(
    directory: &Path,
    topic: &Topic<i64>,
    (idle_after, mark): (Duration, i64),
    expected: &[(i64, u64)],
) -> Vec<i64> {
    let (counts, late, own) = (collect::<(i64, u64)>(), collect::<i64>(), topic.clone());
    let sinks = (counts.clone(), late.clone());
    let job = Job::new("idle", move |flow| {
        let watermark = Watermark::delay(Duration::ZERO).idle_after(idle_after);
        let at = flow.source(&own)?.with_watermark(|at| EventTime(*at), watermark);
        let (windows, missed) = at.global().window(Tumbling::new(Duration::from_millis(10))).late();
        missed.map(|late: Late<i64>| late.record).sink(&sinks.1)?;
        windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sinks.0)
    });
    let running = job.checkpoints(directory).checkpoint_every(MILLISECOND * 20).start().unwrap();
    let is_shown = |shown: &PartitionMark| shown.partition == "topic/0" && shown.mark == Some(EventTime(mark));
    eventually("the first partition is read", || running.report().sources[0].marks.iter().any(is_shown));
    topic.release();
    eventually("the windows are closed", || counts.len() >= expected.len());
    stop(running);
    assert_eq!(counts.take(), expected);
    late.take()
}

#[test]
fn one_that_was_idle_and_has_got_records_meanwhile_is_awake_from_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let topic = Topic::new(vec![vec![1, 105], vec![2]], 1);
    assert!(run_until(directory.path(), &topic, (MILLISECOND * 50, 105), &[(0, 2)]).is_empty());
    // While the job is down. The reader finds the records of the first partition first.
    topic.append(0, [300]);
    topic.append(1, [102, 400]);
    topic.hold(1);
    assert!(run_until(directory.path(), &topic, (Duration::MAX, 300), &[(100, 2)]).is_empty());
}

#[test]
fn what_was_closed_without_it_stays_closed_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let topic = Topic::new(vec![vec![1, 105], vec![2]], 1);
    assert!(run_until(directory.path(), &topic, (MILLISECOND * 50, 105), &[(0, 2)]).is_empty());
    // By its own mark it would be in time.
    topic.append(1, [3, 400]);
    topic.append(0, [400]);
    assert_eq!(run_until(directory.path(), &topic, (Duration::MAX, 400), &[(100, 1)]), [3]);
}

/// A key, an event time, and the number of the record.
type Row = (u64, i64, u64);

/// A topic whose partitions fall silent at random: one without a record, one that ends early, one
/// that is read slowly. They never return, so what comes out depends on nothing else.
fn survive(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (count, began) = (random.usize(2..6), *random.choice(&[-5_000, 0, 1_764_000_000_000_i64]).unwrap());
    let mut number = 0;
    let partitions: Vec<Vec<Row>> = (0..count)
        .map(|index| {
            let each = if index > 0 && random.u8(0..3) == 0 { 0 } else { random.usize(1..400) };
            let (mut now, pace) = (began, random.i64(1..20));
            let rows = (0..each).map(|_| {
                (now, number) = (now + random.i64(0..pace), number + 1);
                (random.u64(0..5), now - random.i64(0..50), number)
            });
            rows.collect()
        })
        .collect();
    let (delay, length) = (random.i64(0..60), random.i64(1..200));
    // What is not late by the mark of its own partition, in windows that the largest mark has
    // passed.
    let (mut expected, mut largest_mark) = (BTreeMap::new(), i64::MIN);
    for partition in &partitions {
        let mut largest = None;
        for (key, at, _) in partition {
            let start = at - at.rem_euclid(length);
            if largest.is_none_or(|largest: i64| start + length > largest - delay) {
                *expected.entry((*key, start)).or_insert(0_u64) += 1;
            }
            largest = largest.max(Some(*at));
        }
        largest_mark = largest_mark.max(largest.map_or(i64::MIN, |largest| largest - delay));
    }
    expected.retain(|(_, start), _| start + length <= largest_mark);
    let rows = partitions.concat().len() as i64;
    let (topic, counts) = (Topic::new(partitions, random.usize(1..64)), collect::<Pane<u64, u64>>());
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut came = BTreeMap::new();
    for run in 0.. {
        let fails_after = if run == 2 { -1 } else { random.i64(0..rows * 2) };
        let (own, sink, fuse) = (topic.clone(), counts.clone(), Fuse::after(fails_after));
        let job = Job::new("idle", move |flow| {
            let fuse = fuse.clone();
            let watermark = Watermark::delay(MILLISECOND * delay as u32).idle_after(MILLISECOND * 3);
            let rows = flow.source(&own)?.inspect(move |_| fuse.burn());
            let rows = rows.with_watermark(|(_, at, _)| EventTime(*at), watermark);
            let windows = rows.key_by(|(key, ..)| *key).window(Tumbling::new(MILLISECOND * length as u32));
            windows.count().finals().sink(&sink)
        });
        let trigger = match random.bool() {
            true => Trigger::micro_batch(Duration::from_micros(random.u64(0..3_000))),
            false => Trigger::Continuous,
        };
        let workers = random.usize(1..4);
        let job = job.checkpoints(directory.path()).checkpoint_every(MILLISECOND * random.u32(1..5));
        let mut running = job.trigger(trigger).workers(workers).start().unwrap();
        let what = || format!("seed {seed}, run {run} with {workers} workers under {trigger}");
        let mut take = || {
            for pane in counts.take() {
                let before = came.insert((pane.key, pane.window.start.0), pane.value);
                assert!(before.is_none_or(|before| before == pane.value), "{}: another final: {pane:?}", what());
            }
            came.clone()
        };
        let mut has_failed = false;
        eventually(&format!("it is through, or has failed: {}", what()), || {
            has_failed = running.has_ended();
            has_failed || take() == expected
        });
        if has_failed {
            let error = running.wait_for(PATIENCE).expect("it has ended").expect_err("it never ends by itself");
            assert_eq!(error.kind(), ErrorKind::Panic, "{}: {error:#}", what());
            continue;
        }
        running.stop();
        match running.wait_for(PATIENCE).expect("it stops") {
            Err(error) if error.kind() == ErrorKind::Panic => continue,
            stopped => drop(stopped.unwrap()),
        }
        assert_eq!(take(), expected, "{}", what());
        return;
    }
}

#[test]
fn silent_partitions_change_no_final() {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let (first, seeds) = (number("MILLSTREAM_SEED").unwrap_or(1), number("MILLSTREAM_SEEDS").unwrap_or(200));
    (first..first + seeds).for_each(survive);
}
