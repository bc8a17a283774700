//! Where reading begins and ends, and what happens when records are gone.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millstream::{ErrorKind, Job, Report, Restart, Result, Trigger, collect};
use millstream_connectors::{EndAt, OnDataLoss, StartAt, Topic};
use rdkafka::producer::BaseRecord;

use super::kafka;
use crate::support::PATIENCE;
use crate::support::broker::{Broker, flush, real, send, shared};

/// Writes numbers from `from` to `to` into one partition.
fn write(broker: &Broker, topic: &str, partition: i32, from: u64, to: u64) {
    let numbers: Vec<String> = (from..to).map(|n| n.to_string()).collect();
    broker.write(topic, numbers.iter().map(|n| (Some(partition), n.as_str(), Some(n.as_str()))));
}

/// Reads all records, and returns them sorted.
fn read(topic: &str, options: impl Fn(Topic) -> Topic + Send + Sync + 'static) -> Result<(Vec<u64>, Report)> {
    let (results, kafka, name) = (collect(), kafka(shared()), topic.to_owned());
    let sink = results.clone();
    let job = Job::new(format!("read-{topic}"), move |flow| {
        flow.source(options(kafka.topic(&name)).json::<u64>())?.or_stop().sink(&sink)
    });
    let report = job.trigger(Trigger::AvailableNow).run()?;
    let mut values = results.values();
    values.sort_unstable();
    Ok((values, report))
}

#[test]
fn committed_offsets_win_and_earliest_is_the_default() {
    let broker = shared();
    let topic = broker.topic("start", 2);
    write(broker, &topic, 0, 0, 10);
    write(broker, &topic, 1, 10, 20);
    assert_eq!(read(&topic, |topic| topic).unwrap().0, (0..20).collect::<Vec<_>>());
    assert_eq!(broker.committed(&format!("read-{topic}"), &topic, 2), [Some(10), Some(10)]);
    write(broker, &topic, 0, 20, 25);
    let latest = |topic: Topic| topic.start_at(StartAt::Latest);
    assert_eq!(read(&topic, latest).unwrap().0, (20..25).collect::<Vec<_>>(), "committed offsets win over `latest`");
    let other = |topic: Topic| topic.group("another group").start_at(StartAt::Latest);
    assert!(read(&topic, other).unwrap().0.is_empty(), "this group has no offsets");
}

#[test]
fn a_partition_that_is_new_to_a_known_topic_begins_at_its_earliest() {
    let broker = shared();
    let topic = broker.topic("grown", 1);
    write(broker, &topic, 0, 0, 5);
    read(&topic, |topic| topic.start_at(StartAt::Latest)).unwrap();
    broker.commit(&format!("read-{topic}"), &topic, &[5]);
    broker.add_partitions(&topic, 2);
    write(broker, &topic, 1, 5, 9);
    let latest = |topic: Topic| topic.start_at(StartAt::Latest);
    assert_eq!(read(&topic, latest).unwrap().0, (5..9).collect::<Vec<_>>(), "`latest` would lose them");
}

#[test]
fn offsets_partitions_and_ends_can_be_named() {
    let broker = shared();
    let topic = broker.topic("named", 3);
    (0..3).for_each(|partition| write(broker, &topic, partition, partition as u64 * 10, partition as u64 * 10 + 10));
    let name = topic.clone();
    let options = move |topic: Topic| {
        let starts = BTreeMap::from([((name.clone(), 0), 8), ((name.clone(), 1), 5)]);
        let ends = BTreeMap::from([((name.clone(), 1), 7)]);
        topic.partitions([0, 1]).start_at(StartAt::Offsets(starts)).end_at(EndAt::Offsets(ends))
    };
    assert_eq!(read(&topic, options).unwrap().0, [8, 9, 15, 16]);
    // The record at the end offset was polled, but belongs to the next run.
    assert_eq!(broker.committed(&format!("read-{topic}"), &topic, 3), [Some(10), Some(7), None]);
}

#[test]
fn a_timestamp_begins_at_the_first_record_of_that_time_or_later() {
    let broker = shared();
    let topic = broker.topic("timed", 2);
    let producer = broker.producer();
    for n in 0..20 {
        let value = n.to_string();
        send(
            &producer,
            BaseRecord::to(&topic).partition(0).key("").payload(value.as_str()).timestamp(1_700_000_000_000 + n),
        );
    }
    flush(&producer);
    let at = |n: u64| UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + n);
    let since = move |topic: Topic| topic.start_at(StartAt::Timestamp(at(15)));
    assert_eq!(read(&topic, since).unwrap().0, [15, 16, 17, 18, 19]);
    let later = |topic: Topic| topic.group("later").start_at(StartAt::Timestamp(SystemTime::now()));
    assert!(read(&topic, later).unwrap().0.is_empty(), "no record is that new, so it begins after the last one");
}

#[test]
fn a_group_without_offsets_can_be_an_error() {
    let broker = shared();
    let topic = broker.topic("uncommitted", 1);
    let error = read(&topic, |topic| topic.start_at(StartAt::Committed)).expect_err("nothing is committed");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains(&format!("read-{topic}")) && error.to_string().contains("partition 0"),
        "{error}"
    );
}

#[test]
fn a_continuous_run_ends_at_the_end_that_is_set() {
    let broker = shared();
    let topic = broker.topic("end", 2);
    write(broker, &topic, 0, 0, 100);
    let (kafka, results) = (kafka(broker), collect());
    let (sink, name) = (results.clone(), topic.clone());
    let job = Job::new("end", move |flow| {
        flow.source(kafka.topic(&name).end_at(EndAt::Latest).json::<u64>())?.or_stop().sink(&sink)
    });
    let report = job.start().unwrap().wait_for(PATIENCE).expect("it ends").unwrap();
    assert_eq!((results.len(), report.fraction()), (100, Some(1.0)));
}

#[test]
fn deleted_records_are_an_error_that_names_the_gap() {
    let Some(broker) = real("the embedded broker cannot delete records") else { return };
    let topic = broker.topic("gone", 1);
    write(broker, &topic, 0, 0, 100);
    broker.commit(&format!("read-{topic}"), &topic, &[10]);
    broker.delete_before(&topic, 0, 60);
    let error = read(&topic, |topic| topic).expect_err("fifty records are gone");
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    for part in [format!("{topic}/0"), "offset 10".to_owned(), "60 to 100".to_owned()] {
        assert!(error.to_string().contains(&part), "`{error}` does not name `{part}`");
    }
    let (values, _) = read(&topic, |topic| topic.on_data_loss(OnDataLoss::Skip)).unwrap();
    assert_eq!(values, (60..100).collect::<Vec<_>>());
}

#[test]
fn records_that_are_deleted_during_a_run_are_an_error_too() {
    let Some(broker) = real("the embedded broker cannot delete records") else { return };
    let topic = broker.topic("going", 1);
    let numbers: Vec<String> = (0..200_000).map(|n| format!("{n:0100}")).collect();
    broker.write(&topic, numbers.iter().map(|n| (Some(0), "", Some(n.as_str()))));
    let (kafka, name) = (kafka(broker), topic.clone());
    let (reached, passed) = std::sync::mpsc::channel();
    let job = Job::new("going", move |flow| {
        let reached = reached.clone();
        let slowly = move |_: &_| {
            let _ = reached.send(());
            std::thread::sleep(Duration::from_micros(200));
        };
        flow.source(kafka.topic(&name).bytes())?.inspect(slowly).or_stop().sink(millstream::discard())
    });
    // Little memory, so that most of the topic is still at the broker when it is deleted there.
    let mut running = job.memory(millstream::ByteSize(1 << 20)).start().unwrap();
    passed.recv_timeout(PATIENCE).unwrap();
    broker.delete_before(&topic, 0, 199_000);
    let error = running.wait_for(2 * PATIENCE).expect("it ends").expect_err("records are gone");
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error:?}");
    assert!(error.to_string().contains("199000"), "{error}");
}

#[test]
fn a_restart_before_the_first_commit_begins_where_the_run_began() {
    let broker = shared();
    let topic = broker.topic("again", 1);
    write(broker, &topic, 0, 0, 10);
    let (kafka, results, name) = (kafka(broker), collect(), topic.clone());
    let (sink, failed) = (results.clone(), std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let job = Job::new(format!("again-{topic}"), move |flow| {
        let failed = std::sync::Arc::clone(&failed);
        let numbers = flow.source(kafka.topic(&name).start_at(StartAt::Latest).json::<u64>())?.or_stop();
        let fails_once = move |n: &u64| assert!(*n != 15 || failed.swap(true, std::sync::atomic::Ordering::SeqCst));
        numbers.inspect(fails_once).sink(&sink)
    });
    let again = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    // Nothing is committed before the failure, and more records exist when the second run begins.
    let running = job.restart(again).checkpoint_every(Duration::from_secs(3_600)).start().unwrap();
    write(broker, &topic, 0, 10, 20);
    crate::support::eventually("all records have arrived", || {
        let mut values = results.values();
        values.sort_unstable();
        values.dedup();
        values == (10..20).collect::<Vec<_>>()
    });
    drop(running);
}
