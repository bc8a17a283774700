//! A receipt resolves when the broker has the record, and not before, or when the sink disposes of
//! it. The latency of a record counts from when it could have been read.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use millstream::{ErrorKind, Job, Trigger, Undelivered, channel, discard};
use millstream_connectors::{Message, OnRefused};

use super::kafka;
use crate::support::broker::{OwnBroker, real, shared};
use crate::support::{PATIENCE, eventually};

#[test]
fn wait_for_the_broker_and_not_for_a_commit() {
    if real("the embedded broker has no proxy before it").is_none() {
        return;
    }
    let (own, proxy) = OwnBroker::behind_a_proxy();
    let (here, topic) = (kafka(&own.broker), own.broker.topic("receipts", 1));
    let (orders, source) = channel::<String>(100);
    let name = topic.clone();
    let job = Job::new("receipts", move |flow| flow.source(&source)?.sink(here.topic(&name).text()));
    // A commit is an hour away, and receipts do not depend on it.
    let running = job.checkpoint_every(Duration::from_secs(3_600)).start().unwrap();
    orders.try_send("first".to_owned()).unwrap().wait().unwrap();
    assert_eq!(own.broker.read(&topic).concat().len(), 1);
    proxy.stall(true);
    let mut waiting: Vec<_> = (0..20).map(|n| orders.try_send(format!("{n}")).unwrap()).collect();
    eventually("all of it is sent", || running.report().sinks[0].records == 21);
    eventually("the sink waits for the broker", || running.report().sinks[0].waiting.is_some());
    let mut context = Context::from_waker(Waker::noop());
    let resolved = waiting.iter_mut().filter_map(|receipt| match Pin::new(receipt).poll(&mut context) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    });
    assert_eq!(resolved.collect::<Vec<_>>(), [], "the broker has none of them");
    proxy.stall(false);
    waiting.into_iter().for_each(|receipt| receipt.wait().unwrap());
    assert_eq!(own.broker.read(&topic).concat().len(), 21);
    drop(orders);
    running.wait().unwrap();
}

/// A waker of the user that panics.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("this waker always panics");
    }
}

/// The waker runs on the delivery thread. Its panic used to end that thread silently, and nothing
/// was acknowledged any more.
#[test]
fn a_waker_that_panics_ends_the_run() {
    if real("the embedded broker has no proxy before it").is_none() {
        return;
    }
    let (own, proxy) = OwnBroker::behind_a_proxy();
    let (topic, kafka) = (own.broker.topic("wakers", 1), kafka(&own.broker));
    let (numbers, source) = channel::<u64>(100);
    let job = Job::new("wakers", move |flow| flow.source(&source)?.sink(kafka.topic(&topic).json()));
    let mut running = job.start().unwrap();
    proxy.stall(true);
    let mut receipt = pin!(numbers.try_send(1).unwrap());
    let waker = Waker::from(Arc::new(Panics));
    assert!(receipt.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    // When the sink has the next record, the worker is done with the one before.
    drop(numbers.try_send(2).unwrap());
    eventually("the worker is done with the record", || running.report().sinks[0].records == 2);
    proxy.stall(false);
    let error = running.wait_for(PATIENCE).expect("it ends").expect_err("one of its threads panicked");
    assert_eq!(error.kind(), ErrorKind::Panic, "{error:#}");
    assert!(error.to_string().contains("`millstream-kafka`"), "{error:#}");
}

#[test]
fn of_a_record_that_the_sink_disposes_of_says_so() {
    let broker = shared();
    for policy in [OnRefused::Skip, OnRefused::DeadLetters(broker.topic("unreceived", 1))] {
        let (kafka, topic) = (kafka(broker), broker.topic("receipts", 1));
        let (numbers, source) = channel::<i32>(10);
        let of_job = policy.clone();
        let job = Job::new("receipts", move |flow| {
            let messages = flow.source(&source)?.map(|partition| Message::new(partition).partition(partition));
            messages.sink(kafka.topic(&topic).on_refused(of_job.clone()).json().with_metadata())
        });
        let running = job.start().unwrap();
        // The topic has one partition.
        let outcomes = [0, 99, 0].map(|partition| numbers.try_send(partition).unwrap().wait());
        assert_eq!(outcomes, [Ok(()), Err(Undelivered::Refused), Ok(())], "{policy:?}");
        drop(numbers);
        running.wait().unwrap();
    }
}

/// Time in the client's queue counts. It used to be missing from the latency, so that a job that
/// could not keep up looked fast.
#[test]
fn time_in_the_clients_queue_counts_as_latency() {
    let broker = shared();
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(10))] {
        let topic = broker.topic("waits", 1);
        let (kafka, from) = (kafka(broker), topic.clone());
        let job = Job::new("waits", move |flow| {
            let numbers = flow.source(kafka.topic(&from).partitions([0]).json::<u64>())?.or_stop();
            numbers.inspect(|_| std::thread::sleep(Duration::from_millis(2))).sink(discard())
        });
        let running = job.trigger(trigger).start().unwrap();
        let numbers: Vec<String> = (0..500).map(|n| n.to_string()).collect();
        broker.write(&topic, numbers.iter().map(|n| (Some(0), "", Some(n.as_str()))));
        eventually("all records are done", || running.report().records_out() == 500);
        running.stop();
        let report = running.wait().unwrap();
        // 500 records of 2 ms each, all written within a moment: the median waits half a second.
        assert!(report.sinks[0].latency.p50 > Duration::from_millis(300), "{trigger:?}: {report}");
        // The log is as old as the test, and no record is older than its writing.
        assert!(report.sinks[0].latency.max < PATIENCE, "{trigger:?}: {report}");
    }
}
