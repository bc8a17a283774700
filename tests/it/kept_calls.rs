//! Calls that no checkpoint waits for: open ones are in it, and the next run makes them again.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream::{
    ByteSize, Calls, Clock, ErrorKind, EventTime, Flow, Job, Receipt, Result, Stream, TestRun, Trigger, channel,
    collect, discard, rows,
};
use tokio::sync::Semaphore;

use crate::support::eventually;
use crate::support::probe::Probe;
use crate::support::script::{RECORD, Script};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// How answers are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    AsRecords,
    ByKey,
    AsAnswers,
}

const ORDERS: [Order; 3] = [Order::AsRecords, Order::ByKey, Order::AsAnswers];

impl Order {
    fn call<'a, Fut>(self, numbers: Stream<'a, u64>, call: impl Fn(u64) -> Fut + 'static) -> Stream<'a, u64>
    where
        Fut: Future<Output = u64> + Send + 'static,
    {
        match self {
            Order::AsRecords => numbers.map_async(Calls::ordered(8).kept(), call).or_stop(),
            Order::ByKey => numbers.map_async(Calls::by_key(key, 8).kept(), call).or_stop(),
            Order::AsAnswers => numbers.map_async(Calls::unordered(8).kept(), call).or_stop(),
        }
    }

    fn check(self, answers: &[u64]) {
        match self {
            Order::AsRecords => assert!(answers.is_sorted(), "{answers:?}"),
            Order::ByKey => {
                (0..5).for_each(|own| assert!(answers.iter().filter(|n| key(n) == own).is_sorted(), "{answers:?}"));
            }
            Order::AsAnswers => {}
        }
    }
}

fn key(n: &u64) -> u64 {
    n % 5
}

type Answer = Pin<Box<dyn Future<Output = u64> + Send>>;

/// Where calls wait until they are let through.
#[derive(Clone)]
struct Gate(Arc<Semaphore>);

impl Gate {
    fn shut() -> Gate {
        Gate(Arc::new(Semaphore::new(0)))
    }

    fn open(&self) {
        self.0.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// A call that waits when it is one of these numbers.
    fn before(&self, waits: fn(u64) -> bool) -> impl Fn(u64) -> Answer + use<> {
        let gate = self.clone();
        move |n| {
            let gate = gate.clone();
            Box::pin(async move {
                if waits(n) {
                    gate.0.acquire().await.expect("it is not closed").forget();
                }
                n
            })
        }
    }
}

fn job(directory: &Path, pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) -> Job {
    Job::new("kept calls", pipeline).checkpoints(directory).checkpoint_every(2 * MILLI)
}

fn all_ok(receipts: Vec<Receipt>, what: &str) {
    receipts.into_iter().for_each(|receipt| assert_eq!(receipt.wait(), Ok(()), "{what}"));
}

/// Runs a job whose call of number 0 is never answered, and goes on without that.
#[test]
fn no_checkpoint_waits_for_them_and_all_are_answered_after_a_crash() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(2 * MILLI)] {
        for order in ORDERS {
            for workers in [[1, 1], [1, 3], [3, 2]] {
                let what = format!("{order:?}, {workers:?} workers, {trigger}");
                let (directory, counts) = (tempfile::tempdir().unwrap(), collect());
                let count = |gate: &Gate, source: millstream::ChannelSource<u64>| {
                    let (gate, sink) = (gate.clone(), counts.clone());
                    job(directory.path(), move |flow| {
                        let answers = order.call(flow.source(&source)?, gate.before(|n| n == 0));
                        answers.key_by(key).count().updates().sink(&sink)
                    })
                    .trigger(trigger)
                };
                let (numbers, source) = channel::<u64>(10);
                let running = count(&Gate::shut(), source).workers(workers[0]).start().unwrap();
                for n in 0..10 {
                    // The receipt says that a checkpoint has the record.
                    assert_eq!(numbers.try_send(n).unwrap().wait(), Ok(()), "{what}");
                }
                let durable = running.report().checkpoints.expect("it keeps checkpoints").durable;
                assert!(durable >= Some(10), "{what}: {durable:?}");
                let open = if order == Order::AsRecords { 10 } else { 1 };
                if order != Order::ByKey {
                    eventually("the others are answered", || counts.len() == 10 - open);
                }
                running.abort();
                drop(running.wait());
                let (numbers, source) = channel::<u64>(10);
                let receipts: Vec<Receipt> = (10..20).map(|n| numbers.try_send(n).unwrap()).collect();
                drop(numbers);
                let gate = Gate::shut();
                gate.open();
                count(&gate, source).workers(workers[1]).run().unwrap();
                all_ok(receipts, &what);
                let last: BTreeMap<u64, u64> = counts.take().into_iter().collect();
                assert_eq!(last, (0..5).map(|key| (key, 4)).collect(), "{what}");
            }
        }
    }
}

/// Its input has ended, so no record moves a frontier any more.
#[test]
fn a_run_that_waits_for_its_last_calls_takes_checkpoints_and_the_next_keeps_their_order() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(2 * MILLI)] {
        for order in ORDERS {
            for workers in [[1, 1], [3, 3], [2, 1], [1, 4]] {
                let what = format!("{order:?}, {workers:?} workers, {trigger}");
                let (directory, results) = (tempfile::tempdir().unwrap(), collect());
                let start = |gate: &Gate, numbers: std::ops::Range<u64>, workers: usize| {
                    let ((sender, source), gate, sink) = (channel::<u64>(100), gate.clone(), results.clone());
                    let receipts: Vec<Receipt> = numbers.map(|n| sender.try_send(n).unwrap()).collect();
                    let job = job(directory.path(), move |flow| {
                        order.call(flow.source(&source)?, gate.before(|n| n >= 5)).sink(&sink)
                    });
                    (job.trigger(trigger).workers(workers).start().unwrap(), receipts)
                };
                let (running, receipts) = start(&Gate::shut(), 0..40, workers[0]);
                all_ok(receipts, &what);
                let mut before = results.take();
                running.abort();
                drop(running.wait());
                before.extend(results.take());
                order.check(&before);
                before.sort_unstable();
                assert_eq!(before, (0..5).collect::<Vec<_>>(), "{what}");
                let gate = Gate::shut();
                gate.open();
                let (running, receipts) = start(&gate, 40..60, workers[1]);
                running.wait().unwrap();
                all_ok(receipts, &what);
                let after = results.take();
                let again: Vec<u64> = after.iter().copied().filter(|n| *n < 40).collect();
                order.check(&again);
                if workers[0] == workers[1] {
                    order.check(&after);
                }
                let mut after = after;
                after.retain(|n| *n >= 5);
                after.sort_unstable();
                assert_eq!(after, (5..60).collect::<Vec<_>>(), "{what}");
            }
        }
    }
}

#[test]
fn a_bounded_run_ends_when_all_are_answered() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(2 * MILLI), Trigger::AvailableNow] {
        for order in ORDERS {
            // The end is no later for checkpoints that are an hour apart.
            for (workers, is_durable, every) in [(1, false, MILLI), (3, true, MILLI), (2, true, 3_600 * SECOND)] {
                let (directory, counts) = (tempfile::tempdir().unwrap(), collect());
                let sink = counts.clone();
                let job = Job::new("bounded", move |flow| {
                    let call = |n: u64| async move {
                        if n.is_multiple_of(50) {
                            tokio::time::sleep(5 * MILLI).await;
                        }
                        n
                    };
                    let answers = order.call(flow.source(rows(0..500).partitions(3))?, call);
                    answers.rebalance().key_by(key).count().updates().sink(&sink)
                });
                let job = if is_durable { job.checkpoints(directory.path()) } else { job.state_in_memory() };
                let report = job.trigger(trigger).workers(workers).checkpoint_every(every).run().unwrap();
                let last: BTreeMap<u64, u64> = counts.take().into_iter().collect();
                assert_eq!(last, (0..5).map(|key| (key, 100)).collect(), "{order:?}, {workers} workers, {trigger}");
                assert_eq!(report.stages[0].entries, 0, "nothing is open at the end");
            }
        }
    }
}

/// Time-outs and failures are values, also of calls that are made again.
#[test]
fn that_are_made_again_have_all_of_their_time_and_their_attempts() {
    let (directory, results) = (tempfile::tempdir().unwrap(), collect());
    let start = |hangs: bool, attempts: u32| {
        let ((sender, source), sink) = (channel::<u64>(10), results.clone());
        let receipts: Vec<Receipt> = (0..3).map(|n| sender.try_send(n).unwrap()).collect();
        let made = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let counted = made.clone();
        let job = job(directory.path(), move |flow| {
            let made = made.clone();
            let call = move |n: u64| {
                let made = made[n as usize].fetch_add(1, SeqCst) + 1;
                async move {
                    if hangs || n == 0 {
                        std::future::pending::<()>().await;
                    }
                    if n == 1 && made < 3 { Err(made) } else { Ok((n, made)) }
                }
            };
            let within = if hangs { 3_600 * SECOND } else { 50 * MILLI };
            let calls = Calls::ordered(8).within(within).retry(attempts - 1, MILLI).kept();
            let answers = flow.source(&source)?.map_async(calls, call);
            answers.map(|answer| answer.map_err(|late| late.to_string())).sink(&sink)
        });
        (job.start().unwrap(), receipts, counted)
    };
    let (running, receipts, _) = start(true, 1);
    all_ok(receipts, "the first run");
    running.abort();
    drop(running.wait());
    assert!(results.is_empty());
    let (running, ..) = start(false, 3);
    running.wait().unwrap();
    let late = || Err("a call was not answered within 50ms".to_owned());
    let again = [late(), Ok(Ok((1, 3))), Ok(Ok((2, 1)))];
    let mut all = results.take();
    let own = all.split_off(3);
    assert_eq!(all, again);
    // Those of the second run itself follow; number 1 is beyond its failures.
    assert_eq!((own.len(), own[0].clone()), (3, late()));
}

/// Nothing else happens that would be a reason to take one.
#[test]
fn an_answer_is_a_reason_for_a_checkpoint() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(2 * MILLI)] {
        for order in ORDERS {
            let (directory, counts) = (tempfile::tempdir().unwrap(), collect());
            let ((numbers, source), gate) = (channel::<u64>(10), Gate::shut());
            let (sink, shut) = (counts.clone(), gate.clone());
            let count = move |flow: &Flow<'_>| {
                order.call(flow.source(&source)?, shut.before(|_| true)).key_by(key).count().updates().sink(&sink)
            };
            let running = job(directory.path(), count).trigger(trigger).start().unwrap();
            assert_eq!(numbers.try_send(0).unwrap().wait(), Ok(()));
            let durable = || running.report().checkpoints.expect("it keeps checkpoints").durable;
            let before = durable();
            gate.open();
            eventually("it is answered", || counts.len() == 1);
            eventually("a checkpoint has the answer", || durable() > before);
            running.abort();
            drop(running.wait());
            let (again, sink) = (collect(), counts.clone());
            let rest = again.clone();
            let count = move |flow: &Flow<'_>| {
                let (numbers, source) = channel::<u64>(1);
                drop(numbers);
                let call = |n| async move { n };
                let answers = order.call(flow.source(&source)?, call);
                answers.inspect(|n| panic!("number {n} is called again")).key_by(key).count().updates().sink(&rest)
            };
            job(directory.path(), count).run().unwrap();
            assert_eq!((sink.values(), again.len()), (vec![(0, 1)], 0), "{order:?}, {trigger}");
        }
    }
}

#[test]
fn event_times_are_kept_with_their_records() {
    let (directory, latest) = (tempfile::tempdir().unwrap(), collect());
    let clock = Clock::simulated();
    let run = |gate: &Gate| {
        let (gate, sink) = (gate.clone(), latest.clone());
        let job = Job::new("times", move |flow| {
            let numbers = flow.source(rows(0..10_u64).partitions(1).timed(|n| EventTime(-(*n as i64))))?;
            Order::AsRecords.call(numbers, gate.before(|_| true)).global().latest().updates().sink(&sink)
        });
        job.checkpoints(directory.path()).checkpoint_every(SECOND)
    };
    let running = run(&Gate::shut()).clock(clock.clone()).start().unwrap();
    eventually("all are read", || running.report().records_in() == 10);
    clock.advance(SECOND);
    eventually("they are kept", || running.report().checkpoints.is_some_and(|kept| kept.durable.is_some()));
    running.abort();
    drop(running.wait());
    let gate = Gate::shut();
    gate.open();
    assert_eq!(run(&gate).run().unwrap().records_in(), 0);
    assert_eq!(latest.values().last(), Some(&((), 0)), "the first record is the latest");
}

#[test]
fn a_step_of_a_test_waits_for_them() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(SECOND)] {
        for workers in [1, 3] {
            let ((numbers, source), results) = (channel::<u64>(1_000), collect());
            let sink = results.clone();
            let job = Job::new("steps", move |flow| {
                let call = |n: u64| async move {
                    tokio::time::sleep(MILLI * (n % 3) as u32).await;
                    n
                };
                Order::AsAnswers.call(flow.source(&source)?, call).sink(&sink)
            });
            let mut test = TestRun::start(job.state_in_memory().trigger(trigger).workers(workers)).unwrap();
            for step in 0..10 {
                test.feed(&numbers, step * 10..step * 10 + 10).unwrap();
                test.advance(SECOND).unwrap();
                let mut values = test.drain(&results).unwrap();
                values.sort_unstable();
                assert_eq!(values, (step * 10..step * 10 + 10).collect::<Vec<_>>(), "{trigger}, {workers} workers");
            }
            assert_eq!(test.end().unwrap().records_in(), 100);
        }
    }
}

/// Also records that wait for a slow key are bounded by nothing else.
#[test]
fn the_memory_of_their_records_stays_counted() {
    type Call = Box<dyn Fn(Stream<'_, u64>, Gate) -> Stream<'_, u64> + Send + Sync>;
    let kept: Call =
        Box::new(|numbers, gate| numbers.map_async(Calls::unordered(100_000).kept(), gate.before(|_| true)).or_stop());
    let by_key: Call =
        Box::new(|numbers, gate| numbers.map_async(Calls::by_key(|_: &u64| 0, 8), gate.before(|_| true)).or_stop());
    for (name, call) in [("kept", kept), ("by key", by_key)] {
        const RECORDS: u64 = 10_000;
        let (script, gate) = (Script::numbers(20_000, 1, 1), Gate::shut());
        let (log, answered, most) = (script.log.clone(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (opened, ahead) = (gate.clone(), Arc::clone(&most));
        let (own, probe) = (log.clone(), Probe::default());
        let beside = probe.clone();
        let job = Job::new(name, move |flow| {
            beside.beside(flow)?;
            let (log, answered, ahead) = (own.clone(), Arc::clone(&answered), Arc::clone(&ahead));
            let answers = call(flow.source(&script)?, gate.clone()).inspect(move |_| {
                let so_far = answered.fetch_add(1, SeqCst);
                ahead.fetch_max(log.read.load(SeqCst) as u64 - so_far, SeqCst);
            });
            answers.sink(discard())
        });
        // Of the job's memory, records that are not acknowledged have a half. In a job with state,
        // all of it for records is a half.
        let memory = ByteSize(RECORD.0 * RECORDS);
        let running = job.memory(memory).state_in_memory().checkpoint_every(2 * MILLI).start().unwrap();
        let limit = if name == "kept" { RECORDS / 4 } else { RECORDS / 2 };
        let read = || log.read.load(SeqCst) as u64;
        eventually("the memory is used up", || read() + 64 > limit);
        eventually("checkpoints go on", || name != "kept" || running.report().committed > 0);
        let looks = probe.looks();
        eventually("the job has looked for more", || probe.looks() > looks + 5);
        opened.open();
        eventually("all are answered", || {
            running.report().sinks.iter().map(|sink| sink.records).sum::<u64>() == 20_000
        });
        running.stop();
        running.wait().unwrap();
        let most = most.load(SeqCst);
        assert!(most + 64 > limit && most <= limit + 64, "{name}: {most} records for a limit of {limit}");
    }
}

/// Not over checkpoints either: each record here is in one of its own.
#[test]
fn in_order_they_do_not_run_far_ahead_of_one_that_does_not_answer() {
    let (directory, (numbers, source)) = (tempfile::tempdir().unwrap(), channel::<u64>(10));
    let (made, gate, results) = (Arc::new(AtomicU64::new(0)), Gate::shut(), collect());
    let (counted, shut, sink) = (Arc::clone(&made), gate.clone(), results.clone());
    let job = job(directory.path(), move |flow| {
        let (call, made) = (shut.before(|n| n == 0), Arc::clone(&counted));
        let call = move |n| {
            made.fetch_add(1, SeqCst);
            call(n)
        };
        Order::AsRecords.call(flow.source(&source)?, call).sink(&sink)
    });
    let running = job.start().unwrap();
    for n in 0..96 {
        assert_eq!(numbers.try_send(n).unwrap().wait(), Ok(()));
    }
    assert_eq!(made.load(SeqCst), 64, "64 may run ahead, and 32 wait");
    gate.open();
    drop(numbers);
    running.wait().unwrap();
    assert_eq!(results.values(), (0..96).collect::<Vec<_>>());
}

#[test]
fn state_of_another_type_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let calls = || Calls::unordered(8).kept();
    let before = move |flow: &Flow<'_>| {
        flow.source(rows(0..3_u64))?.map_async(calls(), |n| async move { n }).or_stop().sink(discard())
    };
    job(directory.path(), before).run().unwrap();
    let after = move |flow: &Flow<'_>| {
        let texts = flow.source(rows(0..3_u64))?.map(|n| n.to_string());
        texts.map_async(calls(), |text| async move { text }).or_stop().sink(discard())
    };
    let error = job(directory.path(), after).run().expect_err("it is of another type");
    assert_eq!(error.kind(), ErrorKind::State);
    assert!(error.to_string().contains("`map_async` is of another type"), "{error}");
    let two = move |flow: &Flow<'_>| {
        let numbers = flow.source(rows(0..3_u64))?.map_async(calls(), |n| async move { n }).or_stop();
        numbers.map_async(calls(), |n| async move { n }).or_stop().sink(discard())
    };
    let error = job(directory.path(), two).run().expect_err("they have no names");
    assert!(error.to_string().contains("`map_async` and `map_async 2`"), "{error}");
}
