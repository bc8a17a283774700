//! A broker that stops and comes back while a job runs.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use millstream::{ByteSize, ErrorKind, Job, channel};
use millstream_connectors::Message;
use millstream_tests::{Findings, compare};

use super::kafka;
use crate::support::broker::{Broker, OwnBroker, real};
use crate::support::{PATIENCE, eventually};

const PARTITIONS: i32 = 8;

/// A job that joins its group, or assigns all partitions to itself.
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
    assert!(findings.doubled.is_empty(), "an idempotent producer's retries duplicate nothing: {findings}");
}

/// A group may remove a member that sends no heartbeat for longer than a session. Then records in
/// flight are read again.
#[test]
fn of_a_broker_under_load_lose_nothing_of_a_group_member() {
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
    broker.under_load(&input, |n| ((n % 100).to_string(), n.to_string()), during);
    let expected = broker.records(&input);
    let count = expected.iter().flatten().count() as u64;
    // Waits for commits, not for as many outputs: some may have been written twice, and a job that
    // is stopped leaves the rest to the next one.
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
fn that_do_not_end_do_not_delay_a_stop_beyond_its_deadline() {
    let own = OwnBroker::start();
    let broker = &own.broker;
    let (input, output) = (broker.topic("dead-in", PARTITIONS), broker.topic("dead-out", PARTITIONS));
    // The first commit is due when the job stops.
    let job = copy(broker, &input, &output, true).checkpoint_every(Duration::from_secs(3_600));
    let running = job.start().unwrap();
    broker.write(&input, [(None, "1", Some("1"))]);
    eventually("the record is written", || running.report().records_out() == 1);
    own.kill();
    let asked = Instant::now();
    running.stop_within(Duration::from_millis(500));
    let ended = running.wait();
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
    let error = ended.expect_err("the acknowledged record cannot be committed");
    assert_eq!(error.kind(), ErrorKind::Aborted, "{error:#}");
    own.restart();
    assert_eq!(broker.committed("copy", &input, PARTITIONS), [None; PARTITIONS as usize]);
}

/// An absent broker does not end a running job, however long it is away. The client gave up records
/// in flight after two minutes, and that ended the run.
#[test]
fn an_outage_of_more_than_two_minutes_loses_nothing() {
    if real("the embedded broker forgets").is_none() {
        return;
    }
    let own = OwnBroker::with("");
    let broker = &own.broker;
    let (input, output) = (broker.topic("long-in", 1), broker.topic("long-out", 1));
    let (kafka, from, to) = (kafka(broker), input.clone(), output.clone());
    let job = Job::new("long", move |flow| {
        // Slows the job down, so that the broker is gone before all records are written.
        let slowly = |_: &String| std::thread::sleep(Duration::from_millis(5));
        let topic = kafka.topic(&from).partitions([0]);
        flow.source(topic.text())?.or_stop().inspect(slowly).sink(kafka.topic(&to).text())
    });
    let mut running = job.memory(ByteSize::mebibytes(16)).start().unwrap();
    let numbers: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    broker.write(&input, numbers.iter().map(|n| (Some(0), n.as_str(), Some(n.as_str()))));
    eventually("it is under way", || running.report().records_out() > 20);
    own.kill();
    let waits = |sink: bool| {
        let report = running.report();
        if sink { report.sinks[0].waiting.is_some() } else { report.sources[0].waiting.is_some() }
    };
    eventually("the report says that the sink waits", || waits(true));
    eventually("and the source", || waits(false));
    // The limit was the client's own, in real time.
    assert!(running.wait_for(Duration::from_secs(125)).is_none(), "it waits for its broker");
    own.restart();
    let deadline = Instant::now() + 2 * PATIENCE;
    while running.report().records_out() < 500 {
        assert!(Instant::now() < deadline, "{}", running.report());
        std::thread::sleep(Duration::from_millis(20));
    }
    let written: Vec<u64> =
        broker.read(&output).concat().iter().map(|read| read.value.as_ref().unwrap().parse().unwrap()).collect();
    assert_eq!(written, (0..500).collect::<Vec<_>>(), "in order, and once");
    running.stop();
    running.wait().unwrap();
}

#[test]
fn a_limit_for_deliveries_is_an_option() {
    if real("the embedded broker forgets").is_none() {
        return;
    }
    let own = OwnBroker::with("");
    let output = own.broker.topic("limited", 1);
    let (numbers, source) = channel::<String>(10);
    let (kafka, to) = (kafka(&own.broker), output.clone());
    let job = Job::new("limited", move |flow| {
        flow.source(&source)?.sink(kafka.topic(&to).deliver_within(Duration::from_secs(2)).text())
    });
    let mut running = job.start().unwrap();
    numbers.try_send("1".to_owned()).unwrap().wait().unwrap();
    own.kill();
    drop(numbers.try_send("2".to_owned()).unwrap());
    let error = running.wait_for(PATIENCE).expect("it ends").expect_err("it was not delivered in time");
    assert!(error.to_string().contains(&output) && error.to_string().contains("deliver_within"), "{error:#}");
}

/// The client says nothing for a while about a broker that answers no record, and neither did the
/// report.
#[test]
fn a_broker_that_acknowledges_no_record_is_reported() {
    if real("the embedded broker has no proxy before it").is_none() {
        return;
    }
    let (own, proxy) = OwnBroker::behind_a_proxy();
    let output = own.broker.topic("put-off", 1);
    let (numbers, source) = channel::<String>(10);
    let (kafka, to) = (kafka(&own.broker), output);
    let job = Job::new("put off", move |flow| flow.source(&source)?.sink(kafka.topic(&to).text()));
    let running = job.start().unwrap();
    proxy.stall(true);
    drop(numbers.try_send("1".to_owned()).unwrap());
    let asked = Instant::now();
    eventually("the report says that the sink waits", || running.report().sinks[0].waiting.is_some());
    // The client's requests time out after ten seconds, and only then does it complain.
    assert!(asked.elapsed() < Duration::from_secs(9), "it took {:?}", asked.elapsed());
    proxy.stall(false);
    eventually("it is written", || running.report().records_out() == 1);
    eventually("it waits for nothing", || running.report().sinks[0].waiting.is_none());
    drop(numbers);
    running.wait().unwrap();
}
