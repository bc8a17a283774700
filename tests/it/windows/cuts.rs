//! Windows and cuts: what a window emits, and that it is gone, are on one side of each.

use std::collections::BTreeSet;
use std::time::Duration;

use millstream::{Clock, EventTime, Job, TestRun, Tumbling, channel, collect, generate};

use super::millis;
use crate::support::valve::Valve;
use crate::support::{eventually, seed};

/// A window fires in nearly each checkpoint, and runs are aborted at any moment.
#[test]
fn what_a_durable_checkpoint_has_emitted_does_not_come_again() {
    let (directory, valve) = (tempfile::tempdir().unwrap(), Valve::shut());
    valve.open();
    let mut random = fastrand::Rng::with_seed(seed());
    let mut settled = BTreeSet::new();
    for run in 0..25 {
        let sink = valve.clone();
        let job = Job::new("cuts", move |flow| {
            let numbers = flow.source(generate(|n| n).rate(30_000.0).partitions(1))?;
            let timed = numbers.with_watermark(|n| EventTime(*n as i64), Duration::ZERO);
            let windows = timed.key_by(|n| n % 3).window(Tumbling::new(millis(30)));
            windows.count().finals().map(|pane| pane.window.start.0 as u64 + pane.key).sink(&sink)
        });
        let job = job.checkpoints(directory.path()).checkpoint_every(millis(1)).workers(1 + run % 3);
        let before = valve.taken().len();
        let running = job.start().unwrap();
        let until = before + random.usize(20..400);
        let durable = || running.report().checkpoints.and_then(|checkpoints| checkpoints.durable);
        eventually("rows come, and checkpoints are durable", || valve.taken().len() > until && durable().is_some());
        let durable = durable().unwrap();
        running.abort();
        drop(running.wait());
        let (rows, checkpoints) = (valve.taken(), valve.inner.taken_in.lock().unwrap().clone());
        let again: Vec<u64> = rows[before..].iter().filter(|row| settled.contains(*row)).copied().collect();
        assert!(again.is_empty(), "run {run}: {again:?} came again");
        let of_run = rows[before..].iter().zip(&checkpoints[before..]);
        settled.extend(of_run.filter(|(_, checkpoint)| **checkpoint <= durable).map(|(row, _)| *row));
    }
    assert!(settled.len() > 500, "{} rows", settled.len());
}

/// What a window emits, and that it is gone, are on one side of a cut: once all is quiet, a run
/// that goes on emits nothing again.
#[test]
fn a_window_that_has_fired_is_not_in_the_checkpoint_behind_it() {
    for workers in [1, 2] {
        let directory = tempfile::tempdir().unwrap();
        for (times, expected) in [(vec![1, 2, 10], vec![2_u64]), (vec![], vec![]), (vec![20], vec![1])] {
            let ((sender, numbers), counts) = (channel(100), collect());
            let job = || {
                let (numbers, sink) = (numbers.clone(), counts.clone());
                let job = Job::new("gone", move |flow| {
                    let timed = flow.source(&numbers)?.with_watermark(|n| EventTime(*n), Duration::ZERO);
                    let windows = timed.global().window(Tumbling::new(millis(10)));
                    windows.count().finals().map(|pane| pane.value).sink(&sink)
                });
                job.checkpoints(directory.path()).workers(workers).clock(Clock::simulated())
            };
            let mut test = None;
            eventually("the run before has let go of the directory", || {
                test = TestRun::start(job()).ok();
                test.is_some()
            });
            let mut test = test.unwrap();
            test.feed(&sender, times).unwrap();
            test.advance(Duration::from_secs(1)).unwrap();
            assert_eq!(test.drain(&counts).unwrap(), expected, "{workers} workers");
        }
    }
}
