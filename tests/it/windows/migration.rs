//! Windows whose values are kept in parts, with which another version of the program goes on.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use millstream::{Collected, EventTime, Flow, Job, Result, Running, Session, Sliding, collect};

use super::millis;
use crate::support::eventually;
use crate::support::topic::Topic;

/// Key, start, end and value.
type Row = (u8, i64, i64, i64);

/// What is kept of the numbers in a window.
#[derive(Clone, Copy, Debug)]
enum Kept {
    Sum,
    Largest,
    Newest,
    /// By a function of the user's.
    Product,
}

/// Programs: the first keeps `u64`, the others `i64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    First,
    Converts,
    ConvertsNot,
}

#[derive(Clone, Copy, Debug)]
struct Program {
    kept: Kept,
    is_session: bool,
    version: Version,
}

macro_rules! table {
    ($windows:expr, $kept:expr, $one:expr) => {
        match $kept {
            Kept::Sum => $windows.sum(|n| *n),
            Kept::Largest => $windows.max(|n| *n),
            Kept::Newest => $windows.latest(),
            Kept::Product => $windows.aggregate(|| $one, |product, n| *product *= n).merge(|a, b| *a *= b),
        }
        .named("kept")
    };
}

impl Program {
    fn build(self, flow: &Flow<'_>, topic: &Topic<u64>, sink: &Collected<Row>) -> Result<()> {
        let Program { kept, is_session, version } = self;
        let (sliding, session) = (Sliding::new(millis(10), millis(4)), Session::with_gap(millis(3)));
        let numbers = flow.source(topic.clone())?;
        let finals = if version == Version::First {
            let timed = numbers.with_watermark(|n| EventTime(*n as i64), Duration::ZERO);
            let by_key = timed.key_by(|n| (*n % 2) as u8);
            match is_session {
                true => table!(by_key.window(session), kept, 1_u64).finals(),
                false => table!(by_key.window(sliding), kept, 1_u64).finals(),
            }
            .map(|pane| (pane.key, pane.window, pane.value as i64))
        } else {
            let timed = numbers.map(|n| n as i64).with_watermark(|n| EventTime(*n), Duration::ZERO);
            let by_key = timed.key_by(|n| (*n % 2) as u8);
            let old = |old: u64| old as i64;
            match (is_session, version == Version::Converts) {
                (true, true) => table!(by_key.window(session), kept, 1_i64).migrate_from(0, old).finals(),
                (true, false) => table!(by_key.window(session), kept, 1_i64).finals(),
                (false, true) => table!(by_key.window(sliding), kept, 1_i64).migrate_from(0, old).finals(),
                (false, false) => table!(by_key.window(sliding), kept, 1_i64).finals(),
            }
            .map(|pane| (pane.key, pane.window, pane.value))
        };
        finals.map(|(key, window, value)| (key, window.start.0, window.end.0, value)).sink(sink)
    }

    fn job(self, directory: &Path, topic: &Topic<u64>, sink: &Collected<Row>) -> Job {
        let (topic, sink) = (topic.clone(), sink.clone());
        let job = Job::new("migration", move |flow| self.build(flow, &topic, &sink));
        job.checkpoints(directory).checkpoint_every(millis(1))
    }
}

/// Waits until a checkpoint has all numbers, and then fails the run.
fn fail_when_kept(running: Running, topic: &Topic<u64>, last: u64) {
    let read = || running.report().sources[0].records;
    let before = read();
    topic.append(0, [last]);
    eventually("it is read", || read() > before);
    let durable = || running.report().checkpoints.and_then(|checkpoints| checkpoints.durable);
    let now = durable();
    topic.append(0, [last]);
    eventually("a checkpoint has it", || durable() > now);
    running.abort();
    drop(running.wait());
}

#[test]
fn parts_of_an_earlier_version_are_converted_once() {
    for kept in [Kept::Sum, Kept::Largest, Kept::Newest, Kept::Product] {
        for is_session in [false, true] {
            let what = format!("{kept:?}, sessions: {is_session}");
            let program = |version| Program { kept, is_session, version };
            let start = |directory: &Path, version, topic: &Topic<u64>, rows: &Collected<Row>, workers| {
                program(version).job(directory, topic, rows).workers(workers).start()
            };
            let (directory, rows) = (tempfile::tempdir().unwrap(), collect());
            let topic = Topic::new(vec![vec![1, 2, 3, 4, 5]], 2);
            let first = start(directory.path(), Version::First, &topic, &rows, 1).unwrap();
            fail_when_kept(first, &topic, 6);
            let error = start(directory.path(), Version::ConvertsNot, &topic, &rows, 2).and_then(Running::wait);
            let error = error.expect_err("the types differ").to_string();
            assert!(error.contains("`kept`") && error.contains("migrate_from"), "{what}: {error}");
            let second = start(directory.path(), Version::Converts, &topic, &rows, 2).unwrap();
            fail_when_kept(second, &topic, 7);
            let third = start(directory.path(), Version::Converts, &topic, &rows, 3).unwrap();
            topic.append(0, [8, 100]);
            // The same numbers in one go, on one worker, where the last row is the last.
            let (alone, all) = (tempfile::tempdir().unwrap(), collect());
            let whole = start(alone.path(), Version::Converts, &topic, &all, 1).unwrap();
            let last = if is_session { 11 } else { 18 };
            eventually(&format!("{what}: the last window"), || all.values().iter().any(|row: &Row| row.2 == last));
            let expected: BTreeSet<Row> = all.take().into_iter().collect();
            let came = || rows.values().into_iter().collect::<BTreeSet<Row>>();
            eventually(&format!("{what}: as many windows"), || came().len() >= expected.len());
            assert_eq!(came(), expected, "{what}");
            third.abort();
            drop(third.wait());
            whole.abort();
            drop(whole.wait());
        }
    }
}
