//! Every mistake is an error at start that names it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use millstream::{ByteSize, Calls, Error, ErrorKind, Flow, Job, Restart, Result, channel, discard, rows};

use crate::support::eventually;

#[track_caller]
fn check(job: Job, kind: ErrorKind, names: &str) {
    let error = job.start().expect_err("it is a mistake");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(names), "`{error}` does not name `{names}`");
}

fn job(pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) -> Job {
    Job::new("mistaken", pipeline)
}

fn good(flow: &Flow<'_>) -> Result<()> {
    flow.source(rows(0..3))?.sink(discard())
}

#[test]
fn in_a_pipeline() {
    check(job(|_| Ok(())), ErrorKind::Pipeline, "opens no source");
    check(job(|flow| flow.source(rows(0..3)).map(drop)), ErrorKind::Pipeline, "`rows` does not reach a sink");
    let branch = |flow: &Flow<'_>| {
        let (left, right) = flow.source(rows(0..3))?.map(|n| n).named("left over").branch(|n| *n > 1);
        drop(right);
        left.sink(discard())
    };
    check(job(branch), ErrorKind::Pipeline, "`branch` does not reach a sink");
    let fork = |flow: &Flow<'_>| {
        let stream = flow.source(rows(0..3))?.map(|n| n).named("forked");
        stream.clone().sink(discard())
    };
    check(job(fork), ErrorKind::Pipeline, "`forked` does not reach a sink");
    let twins = |flow: &Flow<'_>| flow.source(rows(0..3))?.map(|n| n).named("x").map(|n| n).named("x").sink(discard());
    check(job(twins), ErrorKind::Pipeline, "two operators are named `x`");
    let calls = |flow: &Flow<'_>| {
        let prices = flow.source(rows(0..3))?.map_async(Calls::ordered(1), |n| async move { n }).named("prices");
        prices.or_stop().rebalance().map(|n| n).key_by(|n| *n).count().updates().named("counts").sink(discard())
    };
    check(job(calls).state_in_memory(), ErrorKind::Pipeline, "`prices` makes calls before `counts`");
    let kept = |flow: &Flow<'_>| {
        flow.source(rows(0..3))?.map_async(Calls::ordered(1).kept(), |n| async move { n }).or_stop().sink(discard())
    };
    check(job(kept), ErrorKind::Config, "`map_async`");
    let own = |_: &Flow<'_>| Err(Error::new(ErrorKind::Config, "my own check"));
    check(job(own), ErrorKind::Config, "my own check");
    check(job(|_| panic!("in the plan")), ErrorKind::Panic, "`mistaken`");
}

#[test]
fn in_a_pipeline_that_is_not_the_same_each_time() {
    let built_as = |changed_call: u64, change: fn(millstream::Stream<'_, i32>) -> Result<()>| {
        let calls = std::sync::atomic::AtomicU64::new(0);
        job(move |flow| {
            let stream = flow.source(rows(0..3))?.map(|n| n);
            match calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == changed_call {
                true => change(stream),
                false => stream.filter(|_| true).sink(discard()),
            }
        })
    };
    // The second call connects, the third builds on a worker.
    for call in [1, 2] {
        let other = built_as(call, |stream| stream.inspect(|_| ()).sink(discard()));
        let message = "stage `inspect` after `map` where the first call built stage `filter` after `map`";
        check(other, ErrorKind::Pipeline, message);
        let more = built_as(call, |stream| {
            let stream = stream.filter(|_| true);
            stream.clone().sink(discard())?;
            stream.sink(discard())
        });
        check(more, ErrorKind::Pipeline, "sink `discard` after `filter`");
        let fewer = built_as(call, |stream| stream.sink(discard()));
        check(fewer, ErrorKind::Pipeline, "sink `discard` after `map` where the first call built stage `filter`");
        let none = built_as(call, |_| Ok(()));
        check(none, ErrorKind::Pipeline, "built nothing where the first call built stage `filter`");
    }
}

#[test]
fn in_the_options_of_a_job() {
    check(job(good).workers(0), ErrorKind::Config, "`workers`");
    check(job(good).memory(ByteSize(0)), ErrorKind::Config, "`memory`");
    check(job(good).checkpoint_every(Duration::ZERO), ErrorKind::Config, "`checkpoint_every`");
    check(job(good).stuck_after(Duration::ZERO), ErrorKind::Config, "`stuck_after`");
    check(Job::new("", good), ErrorKind::Config, "name");
    let backwards = Restart::Backoff { first: Duration::from_secs(2), longest: Duration::from_secs(1) };
    check(job(good).restart(backwards), ErrorKind::Config, "`Restart::Backoff`");
    // Zero doubled is zero: a job whose source fails at once would restart without a pause,
    // forever.
    let busy = Restart::Backoff { first: Duration::ZERO, longest: Duration::from_secs(1) };
    check(job(good).restart(busy), ErrorKind::Config, "greater than zero");
}

#[test]
fn in_a_channel_that_is_read_twice() {
    let (_orders, source) = channel::<u64>(1);
    let other = source.clone();
    let first = Job::new("first", move |flow| flow.source(&source)?.sink(discard())).start().unwrap();
    check(job(move |flow| flow.source(&other)?.sink(discard())), ErrorKind::Config, "channel");
    drop(first);
}

/// Two jobs that began at the same time used to find the channel free and take it from each other,
/// and both ended without an error.
#[test]
fn in_a_channel_that_another_job_is_about_to_read() {
    let (orders, source) = channel::<u64>(1);
    let (other, is_open) = (source.clone(), Arc::new(AtomicBool::new(false)));
    let (planned, open) = (Arc::new(AtomicBool::new(false)), Arc::clone(&is_open));
    let plans = Arc::clone(&planned);
    let first = std::thread::spawn(move || {
        let job = Job::new("first", move |flow| {
            let orders = flow.source(&source)?;
            plans.store(true, SeqCst);
            while !open.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            orders.sink(discard())
        });
        job.start()
    });
    eventually("the first job is being planned", || planned.load(SeqCst));
    let second = Job::new("second", move |flow| flow.source(&other)?.sink(discard())).start();
    is_open.store(true, SeqCst);
    let started = [first.join().unwrap(), second];
    let (running, refused): (Vec<_>, Vec<_>) = started.into_iter().partition(millstream::Result::is_ok);
    assert_eq!((running.len(), refused.len()), (1, 1));
    let error = refused.into_iter().next().unwrap().unwrap_err();
    assert!(error.to_string().contains("channel"), "{error}");
    orders.try_send(7).unwrap().wait().unwrap();
    drop((running, orders));
}
