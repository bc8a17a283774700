//! The limits of a topic. A broker refuses whole batches: whatever is wrong with a record, and
//! wherever it is in its batch, the policy applies to that record only, and the others are written.

use std::time::{SystemTime, UNIX_EPOCH};

use millstream::{ByteSize, ErrorKind, Job, Report, Result, Trigger, rows};
use millstream_connectors::{Compression, Message, OnRefused, Profile};

use super::kafka;
use crate::support::broker::{Broker, Read, real};

const RECORDS: u64 = 100;
/// Part of the broker's own error.
const ONLY_THE_BROKER_KNOWS: &str = "InvalidTimestamp";

/// How records find their topic.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// The sink has the topic, and knows its limits before it sends.
    Sink,
    /// Each record names its topic: only the broker knows the limits.
    Message,
}

/// Writes records to a topic with one partition, which refuses the one that `spoil` changes.
fn run(
    broker: &Broker,
    by: By,
    topic: &str,
    policy: OnRefused,
    bad: u64,
    spoil: fn(Message<String>) -> Message<String>,
) -> Result<Report> {
    let (kafka, topic) = (kafka(broker), topic.to_owned());
    let job = Job::new("limits", move |flow| {
        let name = topic.clone();
        let messages = flow.source(rows(0..RECORDS).partitions(1))?.map(move |n| {
            let message = Message::new(n.to_string()).key("k").topic(name.clone());
            if n == bad { spoil(message) } else { message }
        });
        match by {
            By::Sink => messages.sink(kafka.topic(&topic).on_refused(policy.clone()).text().with_metadata()),
            By::Message => messages.sink(kafka.messages().on_refused(policy.clone()).text()),
        }
    });
    job.run()
}

fn values(records: &[Read]) -> Vec<u64> {
    records.iter().map(|read| read.value.as_ref().expect("text").parse().expect("a number")).collect()
}

/// A topic with these settings refuses one record of a hundred; the error and the dead letter
/// contain `names`.
#[track_caller]
fn check(settings: &[(&str, &str)], names: [&str; 2], spoil: fn(Message<String>) -> Message<String>) {
    let Some(broker) = real("the embedded broker takes everything") else { return };
    for (by, names) in [(By::Sink, names[0]), (By::Message, names[1])] {
        for bad in [0, RECORDS / 2, RECORDS - 1] {
            let case = format!("{by:?}, record {bad}");
            let topic = |name| broker.topic_with(name, 1, settings);
            let expected: Vec<u64> = (0..RECORDS).filter(|n| *n != bad).collect();

            let skipped = topic("limits-skip");
            let report = run(broker, by, &skipped, OnRefused::Skip, bad, spoil).unwrap();
            assert_eq!((report.sinks[0].acknowledged, report.sinks[0].skipped), (RECORDS - 1, 1), "{case}");
            let mut written = values(&broker.read(&skipped).concat());
            if by == By::Message || names == ONLY_THE_BROKER_KNOWS {
                // Records of a refused batch are written after those that were in flight then.
                written.sort_unstable();
            }
            assert_eq!(written, expected, "{case}");

            let stopped = topic("limits-stop");
            let error = run(broker, by, &stopped, OnRefused::Stop, bad, spoil).expect_err("one record is refused");
            assert_eq!(error.kind(), ErrorKind::Malformed, "{case}: {error:?}");
            assert!(format!("{error:#}").contains(names), "{case}: `{error:#}` does not name `{names}`");

            let (mourned, dead) = (topic("limits-mourned"), broker.topic("limits-dead", 1));
            let report = run(broker, by, &mourned, OnRefused::DeadLetters(dead.clone()), bad, spoil).unwrap();
            assert_eq!((report.sinks[0].acknowledged, report.sinks[0].skipped), (RECORDS - 1, 1), "{case}");
            assert_eq!(broker.read(&mourned).concat().len() as u64, RECORDS - 1, "{case}");
            let letters = broker.read(&dead).concat();
            assert_eq!(letters.len(), 1, "{case}: {letters:?}");
            let cause = letters[0].headers.iter().find(|(name, _)| name == "millstream.cause");
            let cause = cause.and_then(|(_, cause)| cause.clone()).unwrap_or_default();
            assert!(cause.contains(names), "{case}: `{cause}` does not name `{names}`");
        }
    }
}

const SMALL: &[(&str, &str)] = &[("max.message.bytes", "20000")];

#[test]
fn a_record_larger_than_the_topic_accepts_fails_alone() {
    check(SMALL, ["`max.message.bytes` is 20000, set for the topic", "size too large"], |message| {
        message.map(|_| "x".repeat(30_000))
    });
}

#[test]
fn headers_count_as_part_of_a_record() {
    check(SMALL, ["`max.message.bytes` is 20000", "size too large"], |message| {
        message.header("bulk", vec![b'x'; 25_000])
    });
}

/// The broker names no limit for it: its answer is the same as for a batch that is too large.
#[test]
fn a_record_larger_than_a_segment_fails_alone() {
    let settings = &[("max.message.bytes", "4000000"), ("segment.bytes", "1048576")];
    check(settings, ["`segment.bytes` is 1048576", "batch"], |message| message.map(|_| "x".repeat(2_000_000)));
}

#[test]
fn a_record_without_a_key_fails_alone_in_a_compacted_topic() {
    check(&[("cleanup.policy", "compact")], ["no key", "InvalidRecord"], |message| {
        let topic = message.topic_name().expect("it names one").to_owned();
        Message::new(message.into_value()).topic(topic)
    });
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

#[test]
fn a_record_of_the_far_future_fails_alone() {
    // In microseconds instead of milliseconds, a common mistake.
    check(&[], ["`message.timestamp.after.max.ms`", "timestamp"], |message| message.timestamp(now() * 1_000));
}

#[test]
fn a_record_of_the_near_future_is_left_to_the_broker() {
    let settings = &[("message.timestamp.after.max.ms", "1000")];
    check(settings, [ONLY_THE_BROKER_KNOWS; 2], |message| message.timestamp(now() + 200_000));
}

#[test]
fn a_record_of_the_past_fails_alone() {
    let settings = &[("message.timestamp.before.max.ms", "60000")];
    check(settings, ["`message.timestamp.before.max.ms` is 60000", "timestamp"], |message| {
        message.timestamp(1_700_000_000_000)
    });
}

/// The client treats 0 as no timestamp, and wrote the current time instead.
#[test]
fn a_timestamp_that_cannot_be_written_is_refused_and_not_replaced() {
    check(&[], ["timestamp is 0", "timestamp is 0"], |message| message.timestamp(0));
    check(&[], ["before 1970", "before 1970"], |message| message.timestamp(-1));
}

/// Thousands of small records that do not fit into one batch of the topic; all were refused, one
/// batch at a time.
#[test]
fn batches_are_made_to_fit_the_topic() {
    let Some(broker) = real("the embedded broker takes everything") else { return };
    for profile in [Profile::Latency, Profile::Throughput] {
        for compression in [Compression::None, Compression::Zstd] {
            let (topic, kafka) = (broker.topic_with("fit", 1, SMALL), kafka(broker));
            let name = topic.clone();
            let job = Job::new("fit", move |flow| {
                let records = flow.source(rows(0..5_000u64).partitions(1))?.map(|n| format!("{n:0100}"));
                records.sink(kafka.topic(&name).profile(profile).compression(compression).text())
            });
            let report = job.run().unwrap();
            assert_eq!((report.sinks[0].acknowledged, report.sinks[0].skipped), (5_000, 0));
            assert_eq!(values(&broker.read(&topic).concat()), (0..5_000).collect::<Vec<_>>(), "in order");
        }
    }
}

/// Where only the broker knows the limits, every record of a refused batch is sent again, alone.
#[test]
fn a_batch_that_is_too_large_does_not_refuse_its_records() {
    let Some(broker) = real("the embedded broker takes everything") else { return };
    let (topic, kafka) = (broker.topic_with("unfit", 1, SMALL), kafka(broker));
    let name = topic.clone();
    let job = Job::new("unfit", move |flow| {
        let name = name.clone();
        let records = flow.source(rows(0..2_000u64).partitions(1))?;
        records.map(move |n| Message::new(format!("{n:0100}")).topic(name.clone())).sink(kafka.messages().text())
    });
    let report = job.workers(2).run().unwrap();
    assert_eq!((report.sinks[0].acknowledged, report.sinks[0].skipped), (2_000, 0));
    let mut written = values(&broker.read(&topic).concat());
    written.sort_unstable();
    assert_eq!(written, (0..2_000).collect::<Vec<_>>());
}

#[test]
fn a_record_that_shrinks_is_measured_when_it_is_compressed() {
    let Some(broker) = real("the embedded broker takes everything") else { return };
    let (topic, kafka) = (broker.topic_with("shrinks", 1, SMALL), kafka(broker));
    let name = topic.clone();
    let job = Job::new("shrinks", move |flow| {
        let records = flow.source(rows(0..3u64).partitions(1))?.map(|n| "x".repeat(if n == 1 { 200_000 } else { 10 }));
        records.sink(kafka.topic(&name).compression(Compression::Zstd).text())
    });
    job.run().unwrap();
    assert_eq!(broker.read(&topic).concat()[1].value.as_ref().map(String::len), Some(200_000));
}

/// The client's own limit was below that of brokers and of the Java clients.
#[test]
fn the_largest_records_that_a_broker_accepts_by_default_are_copied() {
    let Some(broker) = real("the embedded broker takes everything") else { return };
    let (input, output) = (broker.topic("large-in", 1), broker.topic("large-out", 1));
    // The last one reaches the broker's default of 1 048 588 bytes exactly.
    let messages = [(1_000_001, 0), (900_000, 120_000), (1_048_576 - 100, 0), (1_048_588 - 75, 0)];
    let (kafka, first) = (kafka(broker), input.clone());
    let writer = kafka.clone();
    let job = Job::new("large", move |flow| {
        let records = flow.source(rows(messages))?.map(|(value, header)| {
            let message = Message::new("x".repeat(value));
            if header > 0 { message.header("bulk", vec![b'h'; header]) } else { message }
        });
        records.sink(writer.topic(&first).text().with_metadata())
    });
    job.run().unwrap();
    let (first, second) = (input, output.clone());
    let job = Job::new("copy-large", move |flow| {
        flow.source(kafka.topic(&first).text().with_metadata())?
            .or_stop()
            .sink(kafka.topic(&second).text().with_metadata())
    });
    job.trigger(Trigger::AvailableNow).memory(ByteSize::mebibytes(64)).run().unwrap();
    let sizes = |read: &Read| (read.value.as_ref().map_or(0, String::len), read.headers.len());
    let copied: Vec<_> = broker.read(&output).concat().iter().map(sizes).collect();
    assert_eq!(copied, messages.map(|(value, header)| (value, usize::from(header > 0))));
}

/// A property that the user sets may conflict with another one that the engine has set and the user
/// has not.
#[test]
fn a_property_that_is_set_does_not_conflict_with_defaults() {
    let Some(broker) = real("the embedded broker knows fewer properties") else { return };
    let properties = [
        ("message.max.bytes", "2000000"),
        ("message.max.bytes", "1000"),
        ("fetch.max.bytes", "500000"),
        ("receive.message.max.bytes", "1000000"),
        ("max.poll.interval.ms", "7000"),
        ("session.timeout.ms", "6500"),
        ("reconnect.backoff.ms", "5000"),
        ("reconnect.backoff.max.ms", "10"),
        ("retry.backoff.ms", "2000"),
        ("retry.backoff.max.ms", "10"),
        ("linger.ms", "50"),
        ("batch.size", "1000"),
        ("fetch.wait.max.ms", "500"),
    ];
    for (property, value) in properties {
        let (input, output) = (broker.topic("set-in", 1), broker.topic("set-out", 1));
        broker.write(&input, [(None, "1", Some("one"))]);
        let is_of_members = ["message.max.bytes", "max.poll.interval.ms", "session.timeout.ms"].contains(&property);
        for joins in [false, true].into_iter().filter(|joins| is_of_members || !joins) {
            let (kafka, input, output) = (kafka(broker).set(property, value), input.clone(), output.clone());
            let job = Job::new(format!("set-{input}-{joins}"), move |flow| {
                flow.source(kafka.topic(&input).text())?.or_stop().sink(kafka.topic(&output).text())
            });
            let job = if joins { job } else { job.trigger(Trigger::AvailableNow) };
            let running = job.start().unwrap_or_else(|error| panic!("{property}={value}: {error:#}"));
            crate::support::eventually("the record is copied", || running.report().records_out() == 1);
            running.stop();
            running.wait().unwrap();
        }
    }
}
