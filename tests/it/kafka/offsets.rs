//! Committed offsets are never ahead of acknowledgements, and never stay behind forever.

use std::time::Duration;

use millstream::{Job, Trigger, discard};

use super::kafka;
use super::transactions::transaction;
use crate::support::broker::proxy::OFFSET_FETCH;
use crate::support::broker::{OwnBroker, real, shared};
use crate::support::valve::Valve;
use crate::support::{events, eventually};

#[test]
fn follow_acknowledgements_at_least_every_interval() {
    let broker = shared();
    let start = |valve: &Valve| {
        let topic = broker.topic("follow", 1);
        let (kafka, sink, name) = (kafka(broker), valve.clone(), topic.clone());
        let job = Job::new("follow", move |flow| {
            flow.source(kafka.topic(&name).group(&name).json::<u64>())?.or_stop().sink(&sink)
        });
        (job.checkpoint_every(Duration::from_millis(100)).start().unwrap(), topic)
    };
    let committed = |topic: &str| broker.committed(topic, topic, 1)[0];
    let (valve, other_valve) = (Valve::shut(), Valve::shut());
    other_valve.open();
    let ((running, topic), (other, other_topic)) = (start(&valve), start(&other_valve));
    let numbers: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    broker.write(&topic, numbers.iter().map(|n| (None, "", Some(n.as_str()))));
    eventually("all of it is taken", || valve.taken().len() == 100);
    // A job of the same interval, whose records are acknowledged, shows when a commit is due.
    for n in 1..=3 {
        broker.write(&other_topic, [(None, "", Some("1"))]);
        eventually("the other job commits", || committed(&other_topic) == Some(n));
    }
    assert_eq!(committed(&topic), None, "nothing is acknowledged");
    valve.open();
    eventually("all of it is committed", || committed(&topic) == Some(100));
    drop((running, other));
}

#[test]
fn are_never_ahead_of_a_stalled_producer() {
    if real("the embedded broker has no proxy before it").is_none() {
        return;
    }
    let (own, proxy) = OwnBroker::behind_a_proxy();
    let broker = &own.broker;
    let (input, output) = (broker.topic("stalled-in", 2), broker.topic("stalled-out", 2));
    let (kafka, group) = (kafka(broker), format!("group-{input}"));
    let (from, to, of_job) = (input.clone(), output.clone(), group.clone());
    let job = Job::new("stalled", move |flow| {
        let numbers = flow.source(kafka.topic(&from).group(&of_job).json::<u64>())?.or_stop();
        numbers.sink_by(u64::to_string, kafka.topic(&to).json())
    });
    let running = job.checkpoint_every(Duration::from_millis(50)).start().unwrap();
    let write = |range: std::ops::Range<u64>| {
        let numbers: Vec<String> = range.map(|n| n.to_string()).collect();
        broker.write(&input, numbers.iter().map(|n| (Some((n.len() % 2) as i32), n.as_str(), Some(n.as_str()))));
    };
    let committed = || broker.committed(&group, &input, 2).into_iter().flatten().sum::<i64>() as u64;
    write(0..100);
    eventually("the first hundred are committed", || committed() == 100);
    // From here on what the job sends is held back; what this test writes is not.
    proxy.stall(true);
    write(100..250);
    eventually("the job has read them", || running.report().sinks[0].records == 250);
    // By then a commit has been due many times.
    eventually("the sink waits for the broker", || running.report().sinks[0].waiting.is_some());
    assert_eq!((committed(), running.report().records_out()), (100, 100), "none of them is acknowledged");
    proxy.stall(false);
    eventually("the rest is committed", || committed() == 250);
    assert_eq!(broker.read(&output).iter().flatten().count(), 250);
    running.stop();
    running.wait().unwrap();
}

#[test]
fn of_records_that_no_sink_gets_are_committed_too() {
    let broker = shared();
    let topic = broker.topic("filtered", 2);
    let (kafka, name, group) = (kafka(broker), topic.clone(), format!("group-{topic}"));
    let of_job = group.clone();
    let job = Job::new("filtered", move |flow| {
        let source = kafka.topic(&name).group(&of_job).json::<u64>();
        flow.source(source)?.or_stop().filter(|_| false).sink(discard())
    });
    let running = job.checkpoint_every(Duration::from_millis(50)).workers(2).start().unwrap();
    broker.write(&topic, [(Some(0), "", Some("1")), (Some(1), "", Some("2")), (Some(1), "", Some("3"))]);
    eventually("their offsets are committed", || broker.committed(&group, &topic, 2) == [Some(1), Some(2)]);
    running.stop();
    running.wait().unwrap();
}

#[test]
fn of_a_micro_batchs_queue_are_not_committed() {
    let broker = shared();
    let topic = broker.topic("queue", 1);
    broker.write(&topic, [(None, "", Some("1")), (None, "", Some("2"))]);
    let (kafka, name, group) = (kafka(broker), topic.clone(), format!("group-{topic}"));
    let of_job = group.clone();
    let job = Job::new("queue", move |flow| {
        flow.source(kafka.topic(&name).group(&of_job).json::<u64>())?.or_stop().sink(discard())
    });
    let running = job.trigger(Trigger::micro_batch(Duration::from_secs(3_600))).start().unwrap();
    eventually("it has read", || running.report().sources[0].lag.first().is_some_and(|lag| lag.next == 2));
    running.stop();
    running.wait().unwrap();
    assert_eq!(broker.committed(&group, &topic, 1), [None], "unreleased records are left to the next run");
}

/// Records kept moving and nothing was committed, forever, and only the debug log said so.
#[test]
fn that_cannot_be_committed_are_logged_once_and_reported() {
    if real("the embedded broker has no proxy before it").is_none() {
        return;
    }
    events::begin();
    let (own, proxy) = OwnBroker::behind_a_proxy();
    let (broker, name) = (&own.broker, "uncommitted");
    let topic = broker.topic(name, 1);
    let (kafka, from, group) = (kafka(broker), topic.clone(), format!("group-{topic}"));
    let of_job = group.clone();
    // It assigns its partition to itself, and looks which other runs commit before it commits.
    let job = Job::new(name, move |flow| {
        flow.source(kafka.topic(&from).group(&of_job).partitions([0]).json::<u64>())?.or_stop().sink(discard())
    });
    let running = job.checkpoint_every(Duration::from_millis(50)).start().unwrap();
    let written = std::cell::Cell::new(0i64);
    let write = || {
        broker.write(&topic, [(Some(0), "", Some("1"))]);
        written.set(written.get() + 1);
    };
    let committed = || broker.committed(&group, &topic, 1)[0];
    write();
    eventually("it is committed", || committed() == Some(1));
    proxy.hold(Some(OFFSET_FETCH));
    let reason = format!("cannot check group `{group}` for commits of other runs");
    eventually("the report says so, while records go on", || {
        write();
        std::thread::sleep(Duration::from_millis(50));
        running.report().sources[0].waiting.as_ref().is_some_and(|waiting| waiting.contains(&reason))
    });
    eventually("the log says so", || events::was_logged(&["WARN", &reason]));
    write();
    // Each look may log. The end offset is as new as the last look.
    eventually("the source looks again", || running.report().sources[0].lag[0].end == written.get() as u64);
    eventually("records go on", || running.report().records_out() == written.get() as u64);
    assert!(committed() < Some(written.get()), "and none is committed");
    proxy.hold(None);
    eventually("all are committed", || committed() == Some(written.get()));
    eventually("it waits for nothing", || running.report().sources[0].waiting.is_none());
    running.stop();
    running.wait().unwrap();
    assert_eq!(events::times_logged(&["WARN", &reason]), 1);
}

/// A position that moved without records took the place of a waiting commit, and the engine was not
/// told when that had succeeded. No checkpoint was cut any more, and a stop ran into its deadline.
#[test]
fn that_wait_for_a_commit_are_answered_when_another_position_moves() {
    if real("the embedded broker has no proxy before it").is_none() {
        return;
    }
    let (own, proxy) = OwnBroker::behind_a_proxy();
    let broker = &own.broker;
    let topic = broker.topic("overtaken", 2);
    let (kafka, from, group) = (kafka(broker), topic.clone(), format!("group-{topic}"));
    let of_job = group.clone();
    let job = Job::new("overtaken", move |flow| {
        flow.source(kafka.topic(&from).group(&of_job).partitions([0, 1]).json::<u64>())?.or_stop().sink(discard())
    });
    let running = job.checkpoint_every(Duration::from_millis(50)).start().unwrap();
    let write = |n: u64| broker.write(&topic, [(Some(1), "", Some(n.to_string().as_str()))]);
    let committed = || broker.committed(&group, &topic, 2)[1];
    write(1);
    eventually("it is committed", || committed() == Some(1));
    proxy.hold(Some(OFFSET_FETCH));
    write(2);
    eventually("it is read", || running.report().records_out() == 2);
    eventually("its commit waits", || proxy.held() > 0);
    transaction(broker, &topic, 0..10, false);
    let next = || running.report().sources[0].lag.iter().map(|lag| lag.next).sum::<u64>();
    eventually("the other position moves without a record to read", || next() == 2 + 11);
    let tried = proxy.held();
    eventually("the commit is tried again with it", || proxy.held() >= tried + 2);
    proxy.hold(None);
    eventually("it is committed after all", || committed() == Some(2));
    write(3);
    eventually("and so is the next one", || committed() == Some(3));
    running.stop();
    running.wait().unwrap();
}
