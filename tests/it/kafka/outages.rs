//! A broker that goes and comes back, while a job runs.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use millstream::{ErrorKind, Job};
use millstream_connectors::Message;
use millstream_tests::{Findings, compare};

use super::kafka;
use crate::support::PATIENCE;
use crate::support::broker::{Broker, OwnBroker};

const PARTITIONS: i32 = 8;

/// As a member of its group, or with all partitions assigned by itself.
fn copy(broker: &Broker, input: &str, output: &str, joins: bool) -> Job {
    let (kafka, input, output) = (kafka(broker), input.to_owned(), output.to_owned());
    Job::new("copy", move |flow| {
        let topic = kafka.topic(&input);
        let topic = if joins { topic } else { topic.partitions(0..PARTITIONS) };
        let numbers = flow.source(topic.json::<u64>().with_metadata())?.or_stop();
        numbers.map(|message: Message<u64>| message.map(|n| n)).sink(kafka.topic(&output).json().with_metadata())
    })
    .workers(2)
    .checkpoint_every(Duration::from_millis(200))
}

#[test]
fn of_a_broker_under_load_lose_nothing_and_keep_the_order_of_partition_and_key() {
    let findings = outages(false);
    assert!(findings.doubled.is_empty(), "an idempotent producer's retries double nothing: {findings}");
}

/// A group may put out a member that it could not hear of for longer than a session: then what was in flight comes again.
#[test]
fn under_load_lose_nothing_of_a_member_of_a_group() {
    outages(true);
}

fn outages(joins: bool) -> Findings {
    let own = OwnBroker::start();
    let broker = &own.broker;
    let (input, output) = (broker.topic("outage-in", PARTITIONS), broker.topic("outage-out", PARTITIONS));
    let running = copy(broker, &input, &output, joins).start().unwrap();
    let during = |_: &AtomicU64| {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(700));
            own.kill();
            std::thread::sleep(Duration::from_millis(300));
            own.restart();
        }
        std::thread::sleep(Duration::from_millis(700));
    };
    broker.under_load(&input, |n| n.to_string(), during);
    let expected = broker.records(&input);
    let count = expected.iter().flatten().count() as u64;
    // Not until as many outputs are there: some may have come twice, and a job that is stopped leaves the rest to the next.
    let committed = || broker.committed("copy", &input, PARTITIONS).into_iter().flatten().sum::<i64>() as u64;
    let deadline = Instant::now() + PATIENCE;
    while committed() < count && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    running.stop();
    running.wait().unwrap();
    let findings = compare(&expected, &broker.records(&output));
    assert!(count > 2_000, "only {count} records went through");
    assert!(findings.at_least_once(), "{findings}");
    findings
}

#[test]
fn that_do_not_end_let_stop_keep_its_deadline() {
    let own = OwnBroker::start();
    let broker = &own.broker;
    let (input, output) = (broker.topic("dead-in", PARTITIONS), broker.topic("dead-out", PARTITIONS));
    let running = copy(broker, &input, &output, true).start().unwrap();
    broker.write(&input, [(None, "1", Some("1"))]);
    while running.report().records_out() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    own.kill();
    let asked = Instant::now();
    running.stop_within(Duration::from_millis(500));
    let ended = running.wait();
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
    // What was acknowledged may have been committed just before; if it was not, the end says so.
    assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == ErrorKind::Aborted));
}
