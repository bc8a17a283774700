//! Members of a consumer group: when partitions move, no record is lost, and only records in flight
//! are duplicated.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use millstream::{Collected, Error, ErrorKind, Job, Running, Trigger, collect, discard};
use millstream_connectors::{GroupProtocol, Kafka, Message, StartAt};
use millstream_tests::{Findings, compare};
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::kafka;
use crate::support::broker::{Broker, OwnBroker, real, shared};
use crate::support::{PATIENCE, events};

const PARTITIONS: i32 = 6;

#[derive(Clone)]
struct Copy {
    kafka: Kafka,
    input: String,
    output: String,
    protocol: GroupProtocol,
}

impl Copy {
    fn new(broker: &Broker, protocol: GroupProtocol) -> Copy {
        let (input, output) = (broker.topic("group-in", PARTITIONS), broker.topic("group-out", PARTITIONS));
        Copy { kafka: kafka(broker), input, output, protocol }
    }

    /// A member with this name.
    fn start(&self, name: &str, trigger: Trigger) -> Running {
        let copy = self.clone();
        // What the client does in its group is shown when it does not settle.
        let kafka = self.kafka.clone().set("client.id", name).set("debug", "cgrp");
        let job = Job::new(format!("{name}-{}", self.input), move |flow| {
            let topic = kafka.topic(&copy.input).group(&copy.input).group_protocol(copy.protocol);
            let numbers = flow.source(topic.json::<u64>().with_metadata())?.or_stop();
            numbers
                .map(|message: Message<u64>| message.map(|n| n))
                .sink(kafka.topic(&copy.output).json().with_metadata())
        });
        // A busy machine may need longer than the default.
        let job = job.workers(2).trigger(trigger).drain_within(PATIENCE);
        job.checkpoint_every(Duration::from_millis(100)).start().unwrap()
    }

    fn findings(&self, broker: &Broker) -> Findings {
        compare(&broker.records(&self.input), &broker.records(&self.output))
    }
}

/// Waits until something holds, for as long as a broker may take to move partitions. It polls only
/// now and then, because other tests run at the same time.
#[track_caller]
fn settled(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + 3 * PATIENCE;
    while !holds() {
        if Instant::now() > deadline {
            let mut logged = events::lines_with(&["revoked", "assigned", "commit", "group", "lost", "stopping"]);
            logged.retain(|line| !line.contains("METADATA"));
            panic!("timed out waiting until {what}; it was logged: {logged:#?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many partitions a member has.
fn share(running: &Running) -> usize {
    running.report().sources[0].lag.len()
}

fn come_and_go(protocol: GroupProtocol, trigger: Trigger) {
    let Some(broker) = real("the embedded broker does not share partitions out") else { return };
    events::begin();
    let copy = Copy::new(broker, protocol);
    let first = copy.start("first", trigger);
    let (count, rest) = broker.under_load(
        &copy.input,
        |n| ((n % 100).to_string(), n.to_string()),
        |_| {
            settled("the first has all", || share(&first) == PARTITIONS as usize);
            let second = copy.start("second", trigger);
            settled("each has half", || share(&first) == 3 && share(&second) == 3);
            let third = copy.start("third", trigger);
            settled("each has a third", || [&first, &second, &third].map(share) == [2, 2, 2]);
            let before = third.report().records_out();
            settled("the third has written", || third.report().records_out() > before);
            second.stop();
            second.wait().unwrap();
            settled("two have half", || share(&first) == 3 && share(&third) == 3);
            first.stop();
            first.wait().unwrap();
            settled("the last has all", || share(&third) == PARTITIONS as usize);
            third
        },
    );
    settled("all of it is written", || copy.findings(broker).lost.is_empty());
    rest.stop();
    rest.wait().unwrap();
    let findings = copy.findings(broker);
    println!("{protocol:?}, {trigger:?}: {findings}");
    assert!(count > 1_000 && findings.at_least_once(), "{findings}");
    // A broker that is busy for longer than a session takes partitions from a member without
    // asking.
    let revoked = |lost: &str| events::times_logged(&[&copy.input, "partitions revoked", lost]);
    assert!(revoked("lost=false") > 0, "each revocation is logged");
    let lost = revoked("lost=true");
    assert!(findings.doubled.is_empty() || lost > 0, "a partition is committed before it moves: {findings}");
}

#[test]
fn share_partitions_and_lose_nothing() {
    come_and_go(GroupProtocol::Classic, Trigger::Continuous);
}

#[test]
fn share_partitions_between_ticks() {
    come_and_go(GroupProtocol::Classic, Trigger::micro_batch(Duration::from_millis(50)));
}

#[test]
fn share_partitions_as_the_broker_assigns_them() {
    come_and_go(GroupProtocol::Consumer, Trigger::Continuous);
}

#[test]
fn read_partitions_that_are_added() {
    let broker = shared();
    let topic = broker.topic("grows", 1);
    let kafka = kafka(broker).set("topic.metadata.refresh.interval.ms", "200");
    let (name, group) = (topic.clone(), format!("group-{topic}"));
    let job = Job::new("grows", move |flow| {
        // A new partition of a topic that was read before begins at its first record.
        let topic = kafka.topic(&name).group(&group).start_at(StartAt::Latest);
        flow.source(topic.json::<u64>())?.or_stop().sink(discard())
    });
    let running = job.start().unwrap();
    settled("it has the only partition", || share(&running) == 1);
    broker.add_partitions(&topic, 3);
    broker.write(&topic, [(Some(1), "", Some("1")), (Some(2), "", Some("2"))]);
    settled("it has read the others from their beginning", || running.report().records_out() == 2);
    running.stop();
    running.wait().unwrap();
}

#[test]
fn keep_the_partitions_of_a_static_member_over_its_restart() {
    let Some(broker) = real("the embedded broker does not know static members") else { return };
    events::begin();
    let topic = broker.topic("static", 2);
    let start = |instance: &'static str| {
        let (kafka, topic) = (kafka(broker), topic.clone());
        let job = Job::new(format!("{instance}-{topic}"), move |flow| {
            let source = kafka.topic(&topic).group(&topic).group_instance(instance).bytes();
            flow.source(source)?.or_stop().sink(discard())
        });
        job.start().unwrap()
    };
    let held = |running: &Running| -> Vec<String> {
        running.report().sources[0].lag.iter().map(|lag| lag.partition.clone()).collect()
    };
    let (one, two) = (start("one"), start("two"));
    settled("each has one", || share(&one) == 1 && share(&two) == 1);
    let (of_one, of_two) = (held(&one), held(&two));
    let changes = || {
        ["assigned", "revoked"]
            .map(|change| events::times_logged(&[&format!("\"two-{topic}\""), &format!("partitions {change}")]))
    };
    let before = changes();
    one.stop();
    one.wait().unwrap();
    let asks: BaseConsumer = broker.client().create().unwrap();
    let members = || asks.fetch_group_list(Some(&topic), PATIENCE).unwrap().groups()[0].members().len();
    assert_eq!(members(), 2, "a static member that has stopped stays in its group");
    let one = start("one");
    settled("it has its own again", || held(&one) == of_one);
    broker.write(&topic, [(Some(0), "", Some("1")), (Some(1), "", Some("1"))]);
    settled("both read on", || [&one, &two].iter().all(|member| member.report().records_out() == 1));
    assert_eq!((held(&one), held(&two)), (of_one, of_two));
    assert!(before[0] > 0, "the first assignment was logged");
    assert_eq!(changes(), before, "the partition of the other member has not gone and come back");
    drop((one, two));
}

#[test]
fn fence_a_static_member_when_another_one_joins_with_its_name() {
    let Some(broker) = real("the embedded broker does not know static members") else { return };
    let topic = broker.topic("fenced", 1);
    let start = || -> millstream::Result<Running, Error> {
        let (kafka, topic) = (kafka(broker), topic.clone());
        let job = Job::new("fenced", move |flow| {
            flow.source(kafka.topic(&topic).group(&topic).group_instance("same").bytes())?.or_stop().sink(discard())
        });
        job.start()
    };
    let mut first = start().unwrap();
    settled("the first has the partition", || share(&first) == 1);
    let second = start().unwrap();
    let error = first.wait_for(PATIENCE).expect("it ends").expect_err("it was fenced");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:#}");
    settled("the second has the partition", || share(&second) == 1);
    drop(second);
}

#[test]
fn read_topics_of_a_pattern_that_are_created_later() {
    let broker = shared();
    let family = format!("family{}", fastrand::u32(..));
    let (here, of_job) = (kafka(broker).set("topic.metadata.refresh.interval.ms", "200"), family.clone());
    let first = broker.topic(&format!("{family}-a"), 1);
    let stranger = broker.topic(&format!("not-{family}-a"), 1);
    broker.write(&first, [(None, "", Some("1"))]);
    broker.write(&stranger, [(None, "", Some("1"))]);
    let job = Job::new("pattern", move |flow| {
        let topics = here.topics_matching(format!("{of_job}-[ab]-[0-9]+")).group(&of_job);
        flow.source(topics.json::<u64>())?.or_stop().sink(discard())
    });
    let running = job.start().unwrap();
    settled("it has read the first topic", || running.report().records_out() == 1);
    let second = broker.topic(&format!("{family}-b"), 2);
    broker.write(&second, [(Some(0), "", Some("1")), (Some(1), "", Some("2"))]);
    settled("it has read the second topic", || running.report().records_out() == 3);
    let read: Vec<String> = running.report().sources[0].lag.iter().map(|lag| lag.partition.clone()).collect();
    assert_eq!(read.iter().filter(|name| name.starts_with(&second)).count(), 2, "{read:?}");
    running.stop();
    running.wait().unwrap();
    let here = kafka(broker);
    let job = Job::new("pattern", move |flow| {
        let topics = here.topics_matching(format!("{family}-.*")).group("bounded");
        flow.source(topics.json::<u64>())?.or_stop().sink(discard())
    });
    let report = job.trigger(Trigger::AvailableNow).run().unwrap();
    assert_eq!(report.records_out(), 3, "a bounded job reads them too");
}

/// The topics of a pattern change for two members, and one of them gets nothing new. It waited for
/// an answer that never came.
#[test]
fn do_not_wait_for_partitions_of_a_new_topic_that_others_are_assigned() {
    let Some(broker) = real("the embedded broker does not share partitions out") else { return };
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let family = format!("few{}", fastrand::u32(..));
        let first = broker.topic(&format!("{family}-a"), 2);
        let start = || {
            let (here, family) = (kafka(broker).set("topic.metadata.refresh.interval.ms", "200"), family.clone());
            let job = Job::new("few", move |flow| {
                let topics = here.topics_matching(format!("{family}-.*")).group(&family).group_protocol(protocol);
                flow.source(topics.json::<u64>())?.or_stop().sink(discard())
            });
            job.start().unwrap()
        };
        let members = [start(), start()];
        settled("each has one", || members.iter().all(|member| share(member) == 1));
        let second = broker.topic(&format!("{family}-b"), 1);
        broker.write(&second, [(Some(0), "", Some("1"))]);
        broker.write(&first, [(Some(0), "", Some("1")), (Some(1), "", Some("1"))]);
        let read = || members.iter().map(|member| member.report().records_out()).sum::<u64>();
        settled("all is read", || read() >= 3);
        settled("no member waits", || members.iter().all(|member| member.report().sources[0].waiting.is_none()));
        for member in members {
            member.stop();
            member.wait().unwrap();
        }
    }
}

/// A topic of a pattern may be deleted, even while some of its records are not committed.
#[test]
fn keep_running_when_a_topic_of_their_pattern_is_deleted() {
    let Some(broker) = real("the embedded broker forgets no topics") else { return };
    let family = format!("goes{}", fastrand::u32(..));
    let [goes, stays] = ["a", "b"].map(|name| broker.topic(&format!("{family}-{name}"), 1));
    let (here, of_job) = (kafka(broker).set("topic.metadata.refresh.interval.ms", "200"), family.clone());
    let job = Job::new("goes", move |flow| {
        let topics = here.topics_matching(format!("{of_job}-.*")).group(&of_job);
        flow.source(topics.json::<u64>())?.or_stop().sink(discard())
    });
    let mut running = job.checkpoint_every(Duration::from_secs(2)).start().unwrap();
    settled("it has both", || share(&running) == 2);
    for round in 1..=3 {
        let goes = if round == 1 { goes.clone() } else { broker.topic(&format!("{family}-c"), 1) };
        settled("it has both topics again", || share(&running) == 2);
        broker.write(&goes, [(Some(0), "", Some("1"))]);
        broker.write(&stays, [(Some(0), "", Some("1"))]);
        settled("they are read", || running.report().records_out() == 2 * round);
        broker.delete_topic(&goes);
        settled("the other topic is committed", || broker.committed(&family, &stays, 1) == [Some(round as i64)]);
        settled("the deleted topic is gone", || share(&running) == 1);
        assert!(running.wait_for(Duration::ZERO).is_none(), "the job keeps running");
    }
    running.stop();
    running.wait().unwrap();
}

/// At rest the report shows the same lag as Kafka's own tool, and the committed offset is where the
/// job stopped.
#[test]
fn have_the_lag_that_the_brokers_own_tool_shows() {
    if real("the embedded broker answers no tools").is_none() {
        return;
    }
    let own = OwnBroker::start();
    let topic = own.broker.topic("lag", 3);
    let write = |count: i32| own.broker.write(&topic, (0..count).map(|n| (Some(n % 3), "key", Some("1"))));
    write(30);
    let (here, name) = (kafka(&own.broker), topic.clone());
    let job = Job::new("lag", move |flow| flow.source(here.topic(&name).json::<u64>())?.or_stop().sink(discard()));
    let running = job.checkpoint_every(Duration::from_millis(50)).start().unwrap();
    let tool = || -> Vec<(String, u64)> {
        let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
        let told = own.tool(class, &["--describe", "--group", "lag"]);
        // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG ...
        let rows = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let rows = rows.filter(|row| row.len() > 5 && row[0] == "lag");
        let mut lag: Vec<_> =
            rows.filter_map(|row| Some((format!("{}/{}", row[1], row[2]), row[5].parse().ok()?))).collect();
        lag.sort();
        lag
    };
    let all =
        |lag: u64| -> Vec<(String, u64)> { (0..3).map(|partition| (format!("{topic}/{partition}"), lag)).collect() };
    settled("all is read", || running.report().records_out() == 30);
    settled("the tool shows no lag", || tool() == all(0));
    let mut told: Vec<_> =
        running.report().sources[0].lag.iter().map(|lag| (lag.partition.clone(), lag.records())).collect();
    told.sort();
    assert_eq!(told, all(0), "and so does the report");
    running.stop();
    running.wait().unwrap();
    write(12);
    assert_eq!(tool(), all(4), "the records written since the job stopped");
}

/// A member that collects what it reads, and whose stage waits while `is_shut`.
fn member(kafka: &Kafka, topic: &str, is_shut: &Arc<AtomicBool>) -> (Running, Collected<(i32, u64)>) {
    let (kafka, topic, is_shut, read) = (kafka.clone(), topic.to_owned(), Arc::clone(is_shut), collect());
    let sink = read.clone();
    let job = Job::new("member", move |flow| {
        let is_shut = Arc::clone(&is_shut);
        let numbers = flow.source(kafka.topic(&topic).group(&topic).json::<u64>().with_metadata())?.or_stop();
        let waits = move |_: &Message<u64>| {
            while is_shut.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let place = |message: Message<u64>| (message.origin().expect("it was read").partition, message.into_value());
        numbers.inspect(waits).map(place).sink(&sink)
    });
    (job.checkpoint_every(Duration::from_millis(100)).start().unwrap(), read)
}

/// A worker that is busy in a stage is assigned partitions, and they are revoked before it has
/// looked. Records that the client has fetched from them by then belong to the next owner.
#[test]
fn do_not_read_partitions_that_were_revoked_before_a_worker_saw_them() {
    let Some(broker) = real("the embedded broker does not share partitions out") else { return };
    let (kafka, topic) = (kafka(broker), broker.topic("unseen", PARTITIONS));
    let (shut, open) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let write = |round: u64| {
        let values: Vec<_> = (0..PARTITIONS).map(|partition| (partition, (round * 100).to_string())).collect();
        broker.write(&topic, values.iter().map(|(partition, value)| (Some(*partition), "", Some(value.as_str()))));
    };
    // Its client's debug log shows what has been fetched.
    events::begin();
    let (busy, read_by_busy) = member(&kafka.clone().set("debug", "msg"), &topic, &shut);
    let (second, _) = member(&kafka, &topic, &open);
    settled("each has half", || share(&busy) == 3 && share(&second) == 3);
    let seen: Vec<String> = busy.report().sources[0].lag.iter().map(|lag| lag.partition.to_string()).collect();
    write(1);
    settled("the worker is busy", || busy.report().sources[0].records > 0);
    second.stop();
    second.wait().unwrap();
    settled("it has all, and has not seen half of them", || share(&busy) == PARTITIONS as usize);
    write(2);
    let unseen = || (0..PARTITIONS).filter(|partition| !seen.contains(&format!("{topic}/{partition}")));
    let fetched =
        |partition| events::was_logged(&["Enqueue 1 message", &format!("on {topic} [{partition}] fetch queue")]);
    settled("the busy member's client has fetched them", || unseen().all(fetched));
    let (third, read_by_third) = member(&kafka, &topic, &open);
    settled("they are shared", || share(&busy) == 3 && share(&third) == 3);
    let moved: Vec<i32> = unseen()
        .filter(|partition| {
            third.report().sources[0].lag.iter().any(|lag| lag.partition == format!("{topic}/{partition}"))
        })
        .collect();
    assert!(!moved.is_empty(), "only partitions that the busy one had seen have moved");
    settled("the third has read what moved", || {
        moved.iter().all(|partition| read_by_third.values().contains(&(*partition, 200)))
    });
    shut.store(false, SeqCst);
    write(3);
    settled("both have read what was written last", || {
        let (read, others) = (read_by_busy.values(), read_by_third.values());
        (0..PARTITIONS).all(|partition| read.contains(&(partition, 300)) || others.contains(&(partition, 300)))
    });
    let doubled: Vec<_> =
        read_by_busy.values().into_iter().filter(|(partition, _)| moved.contains(partition)).collect();
    assert!(doubled.is_empty(), "the busy member read {doubled:?} of {moved:?}, which the third owns");
    for running in [busy, third] {
        running.stop();
        running.wait().unwrap();
    }
}
