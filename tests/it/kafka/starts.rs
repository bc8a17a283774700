//! How a job begins to read, alone and in a group: where it starts, what it waits for, and what it
//! refuses to read, with the reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use millstream::{ErrorKind, Job, Restart, Result, Running, Trigger, collect, discard};
use millstream_connectors::{GroupProtocol, Kafka, OnDataLoss, StartAt};
use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::BaseRecord;

use super::kafka;
use crate::support::broker::proxy::{LIST_OFFSETS, OFFSET_FETCH};
use crate::support::broker::{Broker, OwnBroker, flush, real, send, shared};
use crate::support::{PATIENCE, events, eventually, wire};

/// Writes numbers into partition 0.
fn write(broker: &Broker, topic: &str, numbers: std::ops::Range<u64>) {
    let numbers: Vec<String> = numbers.map(|n| n.to_string()).collect();
    broker.write(topic, numbers.iter().map(|n| (Some(0), n.as_str(), Some(n.as_str()))));
}

/// A hand-written consumer, which reads on its own thread until it is dropped.
struct ByHand {
    done: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Vec<u64>>>,
}

impl ByHand {
    fn start(broker: &Broker, group: &str, topic: &str, assignor: &str) -> ByHand {
        let consumer: BaseConsumer = broker
            .client()
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("auto.commit.interval.ms", "100")
            // Otherwise the messages that rdkafka polls while it closes a consumer would be
            // committed unread.
            .set("enable.auto.offset.store", "false")
            .set("session.timeout.ms", "6000")
            .set("partition.assignment.strategy", assignor)
            .create()
            .unwrap();
        consumer.subscribe(&[topic]).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let has_joined = Arc::new(AtomicBool::new(false));
        let joined = Arc::clone(&has_joined);
        let thread = std::thread::spawn(move || {
            let mut read = Vec::new();
            while !is_done.load(SeqCst) {
                if let Some(Ok(message)) = consumer.poll(Duration::from_millis(20)) {
                    let value = rdkafka::Message::payload(&message).map(String::from_utf8_lossy);
                    read.push(value.expect("a value").parse().expect("a number"));
                    // The partition may just have been revoked.
                    let _ = consumer.store_offset_from_message(&message);
                }
                joined.fetch_or(consumer.assignment().is_ok_and(|list| list.count() > 0), SeqCst);
            }
            read
        });
        eventually("the consumer is a member", || has_joined.load(SeqCst));
        ByHand { done, thread: Some(thread) }
    }

    /// Stops the consumer, and returns what it has read.
    fn stop(mut self) -> Vec<u64> {
        self.done.store(true, SeqCst);
        self.thread.take().expect("it is stopped once").join().unwrap()
    }
}

impl Drop for ByHand {
    fn drop(&mut self) {
        self.done.store(true, SeqCst);
    }
}

fn start(
    kafka: &Kafka,
    topic: &str,
    group: &str,
    protocol: GroupProtocol,
) -> (Result<Running>, millstream::Collected<u64>) {
    let (results, kafka, topic, group) = (collect(), kafka.clone(), topic.to_owned(), group.to_owned());
    let sink = results.clone();
    let job = Job::new("starts", move |flow| {
        let source = kafka.topic(&topic).group(&group).group_protocol(protocol).json::<u64>();
        flow.source(source)?.or_stop().sink(&sink)
    });
    (job.checkpoint_every(Duration::from_millis(100)).start(), results)
}

/// A broker waits for further members before it assigns partitions, three seconds by default.
/// Records written meanwhile used to be skipped, because the end offset was read only then.
#[test]
fn latest_is_the_moment_of_start() {
    let broker = shared();
    let topic = broker.topic("latest", 1);
    let producer = broker.producer();
    // Connects the producer before the job.
    send(&producer, BaseRecord::to(&topic).key("").payload("0"));
    flush(&producer);
    let (kafka, name) = (kafka(broker), topic.clone());
    let job = Job::new("latest", move |flow| {
        let source = kafka.topic(&name).group(&name).start_at(StartAt::Latest).json::<u64>();
        flow.source(source)?.or_stop().sink(discard())
    });
    let running = job.start().unwrap();
    for n in 1..=100u64 {
        send(&producer, BaseRecord::to(&topic).key("").payload(n.to_string().as_str()));
    }
    flush(&producer);
    eventually("all that came after the start is read", || running.report().records_out() == 100);
    drop(running);
}

/// The client used to retry joining forever: the log named neither group nor remedy, and the job
/// never ended.
#[test]
fn a_group_with_another_assignor_is_named_at_start_with_the_remedy() {
    let Some(broker) = real("the embedded broker does not assign partitions") else { return };
    let topic = broker.topic("assignor", 2);
    let by_hand = ByHand::start(broker, &topic, &topic, "range");
    let (started, _) = start(&kafka(broker), &topic, &topic, GroupProtocol::Classic);
    let error = started.expect_err("they have no assignor in common");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    for part in [topic.as_str(), "`range`", "GroupProtocol::Eager"] {
        assert!(error.to_string().contains(part), "`{error}` does not name `{part}`");
    }
    by_hand.stop();
}

#[test]
fn a_session_timeout_that_the_broker_refuses_ends_the_run_with_the_reason() {
    let Some(broker) = real("the embedded broker takes any session") else { return };
    let topic = broker.topic("session", 1);
    let (started, _) = start(&kafka(broker).set("session.timeout.ms", "2000"), &topic, &topic, GroupProtocol::Classic);
    let error = started.unwrap().wait_for(PATIENCE).expect("it ends").expect_err("the default minimum is 6 s");
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
    for part in [topic.as_str(), "`session.timeout.ms`", "2000", "group.min.session.timeout.ms"] {
        assert!(error.to_string().contains(part), "`{error}` does not name `{part}`");
    }
}

/// A rolling deployment: first the existing consumer, then both, then this library alone.
#[test]
fn a_group_moves_over_from_consumers_written_by_hand() {
    let Some(broker) = real("the embedded broker does not assign partitions") else { return };
    for assignor in ["range", "roundrobin"] {
        let topic = broker.topic("moves", 4);
        let by_hand = ByHand::start(broker, &topic, &topic, assignor);
        let write = |numbers: std::ops::Range<u64>| {
            let numbers: Vec<String> = numbers.map(|n| n.to_string()).collect();
            broker.write(&topic, numbers.iter().map(|n| (None, n.as_str(), Some(n.as_str()))));
        };
        write(0..200);
        let (started, results) = start(&kafka(broker), &topic, &topic, GroupProtocol::Eager);
        let running = started.unwrap();
        eventually("both have partitions", || running.report().sources[0].lag.len() == 2);
        write(200..400);
        eventually("the job reads its part", || results.values().iter().any(|n| *n >= 200));
        let read = by_hand.stop();
        eventually("the job has all partitions", || running.report().sources[0].lag.len() == 4);
        write(400..600);
        let all = || {
            let mut all = results.values();
            all.extend(&read);
            all.sort_unstable();
            all.dedup();
            all
        };
        let deadline = Instant::now() + PATIENCE;
        while all().len() < 600 {
            let lost = || (0..600).filter(|n| !all().contains(n)).collect::<Vec<_>>();
            assert!(Instant::now() < deadline, "{assignor}: {:?} are lost\n{}", lost(), running.report());
            std::thread::sleep(Duration::from_millis(20));
        }
        running.stop();
        running.wait().unwrap();
    }
}

#[test]
fn eager_members_share_partitions() {
    let Some(broker) = real("the embedded broker does not assign partitions") else { return };
    let topic = broker.topic("eager", 4);
    let (first, results) = start(&kafka(broker), &topic, &topic, GroupProtocol::Eager);
    let first = first.unwrap();
    eventually("the first has all", || first.report().sources[0].lag.len() == 4);
    write(broker, &topic, 0..100);
    eventually("it reads", || results.len() == 100);
    let (second, others) = start(&kafka(broker), &topic, &topic, GroupProtocol::Eager);
    let second = second.unwrap();
    let shares = || [&first, &second].map(|running| running.report().sources[0].lag.len());
    eventually("each has half", || shares() == [2, 2]);
    write(broker, &topic, 100..200);
    eventually("all is read", || results.len() + others.len() == 200);
    first.stop();
    first.wait().unwrap();
    eventually("the second has all", || second.report().sources[0].lag.len() == 4);
    write(broker, &topic, 200..300);
    eventually("all is read, and once", || results.len() + others.len() == 300);
    drop(second);
}

const PROTOCOLS: [Option<GroupProtocol>; 3] = [None, Some(GroupProtocol::Classic), Some(GroupProtocol::Consumer)];

/// Reads topics by a pattern: as a member with a protocol, under available-now without one.
fn by_pattern(
    broker: &Broker,
    pattern: &str,
    protocol: Option<GroupProtocol>,
) -> (Running, millstream::Collected<u64>) {
    let (results, kafka, pattern) = (collect(), kafka(broker), pattern.to_owned());
    let (sink, group) = (results.clone(), format!("pattern-{}", fastrand::u64(..)));
    let job = Job::new("pattern", move |flow| {
        let topics = kafka.topics_matching(&pattern).group(&group).start_at(StartAt::Latest);
        let topics = match protocol {
            Some(protocol) => topics.group_protocol(protocol),
            None => topics.start_at(StartAt::Earliest),
        };
        flow.source(topics.json::<u64>())?.or_stop().sink(&sink)
    });
    let job = if protocol.is_none() { job.trigger(Trigger::AvailableNow) } else { job };
    (job.start().unwrap(), results)
}

/// The client used to read the pattern as a POSIX expression, and the run ended because no topic of
/// that name exists.
#[test]
fn a_pattern_is_the_same_in_each_trigger_and_protocol() {
    let Some(broker) = real("the embedded broker does not assign partitions") else { return };
    let prefix = format!("dialect{}", fastrand::u32(..));
    // `Broker::topic` ends names with digits.
    let (one, other) = (broker.topic(&prefix, 1), broker.topic(&format!("{prefix}-x"), 1));
    for protocol in PROTOCOLS {
        if protocol.is_none() {
            write(broker, &one, 0..10);
            write(broker, &other, 10..20);
        }
        let (running, results) = by_pattern(broker, &format!(r"{prefix}-\d+"), protocol);
        if protocol.is_some() {
            write(broker, &one, 0..10);
            write(broker, &other, 10..20);
        }
        eventually("what matches is read", || results.len() == 10);
        assert!(results.values().iter().all(|n| *n < 10), "{protocol:?}");
        drop(running);
    }
}

/// The run used to end a moment after its start, although topics that are created later are to be
/// read.
#[test]
fn a_pattern_that_matches_nothing_yet_waits_and_says_so() {
    let Some(broker) = real("the embedded broker does not assign partitions") else { return };
    for protocol in [GroupProtocol::Classic, GroupProtocol::Consumer] {
        let prefix = format!("later{}", fastrand::u32(..));
        let (running, results) = by_pattern(broker, &format!(r"{prefix}-\d+"), Some(protocol));
        let waits =
            |part: &str| running.report().sources[0].waiting.as_ref().is_some_and(|waiting| waiting.contains(part));
        eventually("the report says what it waits for", || waits(&prefix));
        assert!(running.report().to_string().contains("waiting for a topic that matches"), "{}", running.report());
        let topic = broker.topic(&prefix, 2);
        write(broker, &topic, 0..10);
        eventually("it is read from its beginning", || results.len() == 10);
        eventually("it waits for nothing", || running.report().sources[0].waiting.is_none());
        drop(running);
    }
}

#[test]
fn an_invalid_pattern_is_named_with_its_dialect() {
    // The second one is valid within a group, and means something else there.
    for pattern in ["orders-(", "orders)|(?:x"] {
        let kafka = kafka(shared());
        let job = Job::new("pattern", move |flow| {
            flow.source(kafka.topics_matching(pattern).json::<u64>())?.or_stop().sink(discard())
        });
        let error = job.start().expect_err("a parenthesis is missing");
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(&format!("`{pattern}`")) && error.to_string().contains("regex"), "{error}");
    }
}

/// The group used to assign a part to each of the two, while under another trigger the same was an
/// error.
#[test]
fn two_sources_of_a_topic_are_refused_under_each_trigger() {
    let broker = shared();
    let topic = broker.topic("twice", 2);
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(10)), Trigger::AvailableNow] {
        let (kafka, name) = (kafka(broker), topic.clone());
        let job = Job::new("twice", move |flow| {
            flow.source(kafka.topic(&name).json::<u64>())?.or_stop().sink(discard())?;
            flow.source(kafka.topics_matching(&name).json::<u64>())?.or_stop().sink(discard())
        });
        let error = job.trigger(trigger).start().expect_err("each would get a part");
        assert_eq!(error.kind(), ErrorKind::Config, "{trigger:?}: {error:?}");
        assert!(error.to_string().contains(&topic) && error.to_string().contains("two sources"), "{error}");
    }
}

/// A member that was left behind used to keep its partitions until `max.poll.interval.ms` had
/// passed, five minutes.
#[test]
fn a_run_after_a_stuck_one_has_its_partitions() {
    let Some(broker) = real("the embedded broker does not assign partitions") else { return };
    let topic = broker.topic("stuck", 1);
    write(broker, &topic, 0..20);
    let (kafka, name, results, hung) = (kafka(broker), topic.clone(), collect(), Arc::new(AtomicBool::new(false)));
    let sink = results.clone();
    let job = Job::new(format!("stuck-{topic}"), move |flow| {
        let hung = Arc::clone(&hung);
        let hangs_once = move |n: &u64| {
            if *n == 5 && !hung.swap(true, SeqCst) {
                loop {
                    std::thread::park();
                }
            }
        };
        flow.source(kafka.topic(&name).json::<u64>())?.or_stop().inspect(hangs_once).sink(&sink)
    });
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let running = job.stuck_after(Duration::from_secs(1)).restart(restart).start().unwrap();
    eventually("the second run reads on", || results.values().contains(&19));
    drop(running);
}

#[test]
fn an_aborted_job_leaves_its_group_at_once() {
    let Some(broker) = real("the embedded broker does not assign partitions") else { return };
    let topic = broker.topic("aborted", 1);
    write(broker, &topic, 0..20);
    let (kafka, name, reached) = (kafka(broker), topic.clone(), Arc::new(AtomicBool::new(false)));
    let is_reached = Arc::clone(&reached);
    let job = Job::new(format!("aborted-{topic}"), move |flow| {
        let reached = Arc::clone(&reached);
        let hangs = move |_: &u64| {
            reached.store(true, SeqCst);
            loop {
                std::thread::park();
            }
        };
        flow.source(kafka.topic(&name).json::<u64>())?.or_stop().inspect(hangs).sink(discard())
    });
    let running = job.start().unwrap();
    eventually("the worker is in user code", || is_reached.load(SeqCst));
    running.abort();
    drop(running.wait());
    let (next, results) = start(&super::kafka(broker), &topic, &format!("aborted-{topic}"), GroupProtocol::Classic);
    let next = next.unwrap();
    eventually("the next job reads", || results.len() == 20);
    drop(next);
}

#[test]
fn waiting_for_a_broker_without_a_limit_does_not_panic() {
    events::begin();
    // Nothing listens there.
    let kafka = Kafka::new("127.0.0.1:9").connect_within(Duration::MAX);
    let job =
        Job::new("without a limit", move |flow| flow.source(kafka.topic("a").json::<u64>())?.or_stop().sink(discard()));
    let starting = std::thread::spawn(move || job.start());
    // The start hears of it between its first request and the next.
    eventually("it has tried to connect, or has ended", || {
        events::was_logged(&["without a limit", "kafka client", "AllBrokersDown"]) || starting.is_finished()
    });
    assert!(!starting.is_finished(), "it waits: {:?}", starting.join().map(|started| started.map(drop)));
}

/// A host name with two addresses, only one of which is the broker's: the client first complains
/// that all brokers are down.
#[test]
fn trouble_that_is_over_at_once_is_not_a_warning() {
    events::begin();
    let broker = shared();
    let (_, port) = broker.address.rsplit_once(':').unwrap();
    let topic = broker.topic("localhost", 1);
    write(broker, &topic, 0..10);
    let (kafka, name) = (Kafka::new(format!("localhost:{port}")), topic.clone());
    let job =
        Job::new(topic.clone(), move |flow| flow.source(kafka.topic(&name).json::<u64>())?.or_stop().sink(discard()));
    job.trigger(Trigger::AvailableNow).run().unwrap();
    let warned = |part: &str| events::was_logged(&[&format!("name={topic:?}"), "WARN", part]);
    assert!(!warned("down") && !warned("refused"), "the problem was over at once");
}

/// After transactions that were all aborted, the committed offset used to stay after the last
/// record that was read. When the log was truncated there, the next start failed over records that
/// never existed.
#[test]
fn a_position_that_moves_without_records_is_committed() {
    let Some(broker) = real("the embedded broker serves no transactions of librdkafka") else { return };
    for stops in [false, true] {
        let topic = broker.topic("moved", 1);
        write(broker, &topic, 0..6);
        let (started, results) = start(&kafka(broker), &topic, &topic, GroupProtocol::Classic);
        let running = started.unwrap();
        eventually("all records are read", || results.len() == 6);
        eventually("and committed", || broker.committed(&topic, &topic, 1) == [Some(6)]);
        super::transactions::transaction(broker, &topic, 6..11, false);
        if stops {
            eventually("the client has passed it", || running.report().sources[0].lag.iter().all(|lag| lag.next == 12));
            running.stop();
            running.wait().unwrap();
            assert_eq!(broker.committed(&topic, &topic, 1), [Some(12)], "five records and a marker");
        } else {
            eventually("it is committed soon", || broker.committed(&topic, &topic, 1) == [Some(12)]);
            drop(running);
        }
        broker.delete_before(&topic, 0, 12);
        let (started, _) = start(&kafka(broker), &topic, &topic, GroupProtocol::Classic);
        let running = started.expect("no record is gone");
        write(broker, &topic, 20..21);
        eventually("it reads on", || running.report().records_out() == 1);
        drop(running);
    }
}

/// The log's ends were asked for first. What another member committed before the answer about
/// commits was beyond the end, and records seemed to be gone.
#[test]
fn commits_of_other_members_meanwhile_are_no_data_loss() {
    if real("the embedded broker has no proxy before it").is_none() {
        return;
    }
    let (own, proxy) = OwnBroker::behind_a_proxy();
    let broker = &own.broker;
    for held in [OFFSET_FETCH, LIST_OFFSETS] {
        let topic = broker.topic("meanwhile", 1);
        write(broker, &topic, 0..10);
        broker.commit(&topic, &topic, &[5]);
        proxy.hold(Some(held));
        let (kafka, of_job) = (kafka(broker), topic.clone());
        let job = Job::new(topic.clone(), move |flow| {
            flow.source(kafka.topic(&of_job).group(&of_job).json::<u64>())?.or_stop().sink(discard())
        });
        let starting = std::thread::spawn(move || job.start());
        eventually("it asks", || proxy.held() > 0);
        write(broker, &topic, 10..20);
        broker.commit(&topic, &topic, &[15]);
        if held == LIST_OFFSETS {
            broker.delete_before(&topic, 0, 12);
        }
        proxy.hold(None);
        let running = starting.join().unwrap().expect("no record is gone");
        eventually("it reads on", || running.report().records_out() == 5);
        drop(running);
    }
}

/// The client continues at the old offset in the new log.
#[test]
fn a_recreated_topic_is_not_mistaken_for_the_old_one() {
    let Some(broker) = real("the embedded broker has no ids of topics") else { return };
    for policy in [OnDataLoss::Stop, OnDataLoss::Skip] {
        for protocol in [None, Some(GroupProtocol::Classic)] {
            let topic = broker.topic("remade", 1);
            write(broker, &topic, 0..100);
            let (kafka, name, results) = (kafka(broker), topic.clone(), collect());
            let sink = results.clone();
            let job = Job::new(format!("remade-{topic}"), move |flow| {
                let source = kafka.topic(&name).on_data_loss(policy);
                let source = if protocol.is_some() { source } else { source.partitions([0]) };
                flow.source(source.json::<u64>())?.or_stop().sink(&sink)
            });
            let mut running = job.start().unwrap();
            eventually("the old one is read", || results.len() == 100);
            broker.remake(&topic, 1);
            write(broker, &topic, 1_000..1_250);
            if policy == OnDataLoss::Stop {
                let error = running.wait_for(PATIENCE).expect("it ends").expect_err("the old one is gone");
                assert_eq!(error.kind(), ErrorKind::DataLoss, "{error:?}");
                // Before anything was written to the new topic, the old offset was out of range,
                // and that error is as good.
                assert!(error.to_string().contains(&topic), "{error}");
                assert_eq!(results.len(), 100, "no record of the new topic is taken for one of the old");
            } else {
                let new = || results.values().iter().filter(|n| **n >= 1_000).count();
                eventually("all of the new one is read", || new() == 250);
                drop(running);
            }
        }
    }
}

/// The client's wrapper used to panic, again after each restart.
#[test]
fn a_header_whose_name_is_not_text_is_malformed() {
    let Some(broker) = real("the embedded broker serves the client only") else { return };
    let topic = broker.topic("header", 1);
    wire::write_with_header(&broker.address, &topic, "1", b"\xff\xfe");
    wire::write_with_header(&broker.address, &topic, "2", b"name");
    let malformed = |form: u8| -> (usize, usize, String) {
        let (kafka, name) = (kafka(broker), topic.clone());
        let (good, bad) = (collect(), collect());
        let (good_sink, bad_sink) = (good.clone(), bad.clone());
        let job = Job::new(format!("header-{form}-{topic}"), move |flow| {
            let topic = kafka.topic(&name);
            let (yes, no) = match form {
                0 => flow.source(topic.json::<u64>())?.partition_results(),
                1 => {
                    let results = flow.source(topic.json::<u64>().with_metadata())?;
                    results.map(|result| result.map(|message| *message.value())).partition_results()
                }
                2 => flow.source(topic.raw())?.map(|result| result.map(|_| 0)).partition_results(),
                _ => flow.source(topic.bytes().with_metadata())?.map(|result| result.map(|_| 0)).partition_results(),
            };
            yes.sink(&good_sink)?;
            no.sink(&bad_sink)
        });
        job.trigger(Trigger::AvailableNow).run().unwrap();
        let cause = bad.values().first().map(|malformed: &millstream::Malformed| malformed.cause.clone());
        (good.len(), bad.len(), cause.unwrap_or_default())
    };
    assert_eq!(malformed(0), (2, 0, String::new()), "a bare value has no headers");
    for form in 1..4 {
        let (good, bad, cause) = malformed(form);
        assert_eq!((good, bad), (1, 1), "{form}");
        assert!(cause.contains("header") && cause.contains("UTF-8"), "{cause}");
    }
}

impl Broker {
    /// Deletes a topic and recreates it.
    pub fn remake(&self, topic: &str, partitions: i32) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let admin = self.admin();
        let deleted = runtime.block_on(admin.delete_topics(&[topic], &AdminOptions::new())).unwrap();
        deleted.into_iter().for_each(|topic| drop(topic.unwrap()));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
            let made = runtime.block_on(admin.create_topics([&new], &AdminOptions::new())).unwrap();
            if made.iter().all(std::result::Result::is_ok) {
                break;
            }
            assert!(Instant::now() < deadline, "{topic} is not recreated: {made:?}");
        }
        self.await_leaders(topic, partitions);
    }
}

/// The orders of the thread used to be dropped silently after that: nothing was committed, and a
/// stop ran into its deadline.
#[test]
fn a_panic_of_the_group_thread_ends_the_run() {
    events::begin();
    let broker = shared();
    let topic = broker.topic("startled", 1);
    events::panic_at("millstream-group", &format!("partition={topic}/0 start="));
    let (kafka, from) = (kafka(broker), topic.clone());
    let job = Job::new("startled", move |flow| {
        flow.source(kafka.topic(&from).group(&from).json::<u64>())?.or_stop().sink(discard())
    });
    let mut running = job.start().unwrap();
    let error = running.wait_for(PATIENCE).expect("it ends").expect_err("one of its threads panicked");
    assert_eq!(error.kind(), ErrorKind::Panic, "{error:#}");
    assert!(error.to_string().contains("`millstream-group`"), "{error:#}");
}
