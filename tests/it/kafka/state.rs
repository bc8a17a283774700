//! Checkpoints are the memory of a job, and its consumer group shows others how far it is.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::{Job, Report, Running, Trigger, collect, discard};
use millstream_connectors::{StartAt, Topic};

use super::kafka;
use crate::support::broker::shared;
use crate::support::eventually;

/// Counts the numbers of a topic by their last digit, goes on from where its checkpoint is, and
/// returns the last count of each.
fn count(topic: &str, directory: &std::path::Path) -> (BTreeMap<u64, u64>, Report) {
    let (counts, kafka, name) = (collect(), kafka(shared()), topic.to_owned());
    let sink = counts.clone();
    let job = Job::new(format!("count-{topic}"), move |flow| {
        let numbers = flow.source(kafka.topic(&name).json::<u64>())?.or_stop();
        numbers.key_by(|n| n % 10).count().updates().sink(&sink)
    });
    let report = job.checkpoints(directory).trigger(Trigger::AvailableNow).workers(2).run().unwrap();
    (counts.take().into_iter().collect(), report)
}

#[test]
fn goes_on_at_the_checkpoint_wherever_the_group_stands() {
    let broker = shared();
    let (topic, directory) = (broker.topic("moved", 2), tempfile::tempdir().unwrap());
    let group = format!("count-{topic}");
    let write = |from: u64| {
        let numbers: Vec<String> = (from..from + 100).map(|n| n.to_string()).collect();
        broker.write(
            &topic,
            numbers.iter().enumerate().map(|(at, n)| (Some(at as i32 % 2), n.as_str(), Some(n.as_str()))),
        );
    };
    let exactly = |each: u64| (0..10).map(|key| (key, each)).collect::<BTreeMap<_, _>>();
    write(0);
    let (counts, report) = count(&topic, directory.path());
    assert_eq!((counts, report.records_in()), (exactly(10), 100));
    assert_eq!(broker.committed(&group, &topic, 2), [Some(50), Some(50)], "the group is told");
    // Behind: what is in state already must not be counted again. Ahead: nothing may be left out.
    for (round, moved) in [[0, 0], [10, 50], [200, 150]].into_iter().enumerate() {
        let round = round as u64 + 1;
        write(round * 100);
        broker.commit(&group, &topic, &moved);
        let (counts, report) = count(&topic, directory.path());
        assert_eq!((counts, report.records_in()), (exactly((round + 1) * 10), 100), "the group is at {moved:?}");
        let end = (round as i64 + 1) * 50;
        assert_eq!(broker.committed(&group, &topic, 2), [Some(end), Some(end)]);
    }
}

/// Writes ten numbers to a partition.
fn write_ten(topic: &str, partition: i32, from: u64) {
    let numbers: Vec<String> = (from..from + 10).map(|n| n.to_string()).collect();
    shared().write(topic, numbers.iter().map(|n| (Some(partition), n.as_str(), Some(n.as_str()))));
}

#[test]
fn reads_a_partition_that_is_new_since_the_checkpoint_from_its_beginning() {
    let broker = shared();
    let (topic, directory) = (broker.topic("grown-state", 1), tempfile::tempdir().unwrap());
    let write = |partition, from| write_ten(&topic, partition, from);
    write(0, 0);
    assert_eq!(count(&topic, directory.path()).1.records_in(), 10);
    broker.add_partitions(&topic, 2);
    write(1, 10);
    // Of another run, which this one does not go on from.
    broker.commit(&format!("count-{topic}"), &topic, &[10, 7]);
    let (counts, report) = count(&topic, directory.path());
    assert_eq!((counts.values().sum::<u64>(), report.records_in()), (20, 10));
}

/// Counts the numbers of what is read, without an end.
fn counting(name: &str, topic: Topic, directory: &std::path::Path) -> Running {
    let job = Job::new(format!("count-{name}"), move |flow| {
        let numbers = flow.source(topic.clone().json::<u64>())?.or_stop();
        numbers.key_by(|n| n % 10).count().updates().sink(discard())
    });
    job.checkpoints(directory).checkpoint_every(Duration::from_millis(50)).workers(2).start().unwrap()
}

#[test]
fn reads_partitions_that_are_added_while_it_runs_from_their_beginning() {
    let broker = shared();
    let (topic, directory) = (broker.topic("grows-state", 1), tempfile::tempdir().unwrap());
    let write = |partition, from| write_ten(&topic, partition, from);
    // What this run finds later it reads from its beginning all the same.
    let kafka = kafka(broker).set("topic.metadata.refresh.interval.ms", "1000");
    write(0, 0);
    let running = counting(&topic, kafka.topic(&topic).start_at(StartAt::Latest), directory.path());
    eventually("it reads", || running.report().sources[0].lag.len() == 1);
    write(0, 10);
    broker.add_partitions(&topic, 4);
    (1..4).for_each(|partition| write(partition, 10 + 10 * partition as u64));
    eventually("it has read them all", || running.report().records_out() == 40);
    assert_eq!(running.report().sources[0].lag.len(), 4);
    running.stop();
    running.wait().unwrap();
    write(3, 50);
    let (counts, report) = count(&topic, directory.path());
    let exactly: BTreeMap<u64, u64> = (0..10).map(|key| (key, 5)).collect();
    assert_eq!((counts, report.records_in()), (exactly, 10), "it goes on behind them");
}

#[test]
fn reads_topics_of_its_pattern_that_are_created_while_it_runs() {
    let broker = shared();
    let (family, directory) = (broker.topic("family-state", 1), tempfile::tempdir().unwrap());
    let kafka = kafka(broker).set("topic.metadata.refresh.interval.ms", "1000");
    let running = counting(&family, kafka.topics_matching(format!("{family}.*")), directory.path());
    broker.write(&family, [(None, "", Some("1"))]);
    eventually("it has read the first", || running.report().records_out() == 1);
    let later = broker.topic(&format!("{family}-later"), 1);
    broker.write(&later, [(None, "", Some("2")), (None, "", Some("3"))]);
    eventually("it has read the other", || running.report().records_out() == 3);
    running.stop();
    running.wait().unwrap();
}
