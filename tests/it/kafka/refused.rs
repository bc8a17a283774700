//! A record that the sink cannot write: the error names it, the run stops or skips and counts it,
//! and there is never a crash loop.

use std::time::Duration;

use millstream::{Error, ErrorKind, Job, Report, Restart, Result, rows};
use millstream_connectors::format::{Cause, Payload};
use millstream_connectors::{Encode, Message, OnRefused};
use serde::{Serialize, Serializer};

use super::kafka;
use crate::support::broker::shared;

/// Cannot be encoded when it is 7.
#[derive(Clone)]
struct Fussy(u64);

impl Serialize for Fussy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == 7 {
            Err(serde::ser::Error::custom("seven cannot be written"))
        } else {
            serializer.serialize_u64(self.0)
        }
    }
}

const AGAIN: Restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };

/// Writes ten records, one of which `spoil` changes to one that cannot be written.
fn run(topic: &str, policy: OnRefused, spoil: fn(Message<Fussy>) -> Message<Fussy>) -> Result<Report> {
    let (kafka, topic) = (kafka(shared()), topic.to_owned());
    Job::new("refused", move |flow| {
        let messages = flow.source(rows(10..20u64))?.map(move |n| {
            let message = Message::new(Fussy(n)).key(n.to_string());
            if n == 13 { spoil(message) } else { message }
        });
        messages.sink(kafka.topic(&topic).on_refused(policy.clone()).json().with_metadata())
    })
    .restart(AGAIN)
    .run()
}

#[track_caller]
fn check(names: &str, spoil: fn(Message<Fussy>) -> Message<Fussy>) {
    let topic = shared().topic("refused", 2);
    let error = run(&topic, OnRefused::Stop, spoil).expect_err("one of them cannot be written");
    assert_eq!(error.kind(), ErrorKind::Malformed, "{error:?}");
    assert!(format!("{error:#}").contains(names), "`{error:#}` does not name `{names}`");
    let topic = shared().topic("skipped", 2);
    let report = run(&topic, OnRefused::Skip, spoil).unwrap();
    assert_eq!((report.sinks[0].acknowledged, report.sinks[0].skipped), (9, 1));
    assert_eq!(shared().read(&topic).iter().flatten().count(), 9);
    let (topic, dead) = (shared().topic("mourned", 2), shared().topic("dead", 1));
    let report = run(&topic, OnRefused::DeadLetters(dead.clone()), spoil).unwrap();
    assert_eq!((report.sinks[0].acknowledged, report.sinks[0].skipped), (9, 1));
    assert_eq!(shared().read(&topic).iter().flatten().count(), 9);
    let letters = shared().read(&dead).concat();
    let header = |name: &str| {
        letters[0].headers.iter().find(|(own, _)| own == name).and_then(|(_, value)| value.clone()).unwrap_or_default()
    };
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert!(header("millstream.cause").contains(names), "{letters:?}");
    assert_eq!(header("millstream.refused-by"), topic);
    if header("millstream.stripped").is_empty() {
        assert_eq!(letters[0].key.as_deref(), Some("13"));
    }
}

#[test]
fn because_it_cannot_be_encoded() {
    check("seven", |message| message.map(|_| Fussy(7)));
}

#[test]
fn because_it_is_too_large() {
    check("too large", |message| message.header("bulk", vec![b'x'; 2_000_000]));
}

#[test]
fn because_its_partition_does_not_exist() {
    check("partition", |message| message.partition(99));
}

#[test]
fn because_it_is_larger_than_the_memory_of_the_sink() {
    let (kafka, topic) = (kafka(shared()), shared().topic("memory", 1));
    let job = Job::new("memory", move |flow| {
        let text = flow.source(rows(0..3u64))?.map(|n| "x".repeat(if n == 1 { 200_000 } else { 10 }));
        text.sink(kafka.topic(&topic).on_refused(OnRefused::Skip).text())
    });
    let report =
        job.memory(millstream::ByteSize(400_000)).start().unwrap().wait_for(crate::PATIENCE).expect("no hang").unwrap();
    assert_eq!((report.sinks[0].acknowledged, report.sinks[0].skipped), (2, 1));
}

#[test]
fn and_a_dead_letter_topic_that_does_not_exist_is_named_at_start() {
    let topic = shared().topic("refused", 2);
    let error =
        run(&topic, OnRefused::DeadLetters("no-such-topic".to_owned()), |message| message).expect_err("no topic");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:#}");
    assert!(error.to_string().contains("no-such-topic"), "{error:#}");
}

/// A format that cannot reach a service that it needs.
#[derive(Clone)]
struct Lonely;

impl Encode<u64> for Lonely {
    fn encode(&self, _: &u64, _: &mut Vec<u8>) -> Result<Payload, Cause> {
        Err(Error::new(ErrorKind::Unreachable, "cannot reach the service").into())
    }
}

#[test]
fn but_never_because_its_format_has_failed() {
    let (kafka, topic) = (kafka(shared()), shared().topic("lonely", 1));
    let job = Job::new("lonely", move |flow| {
        flow.source(rows(0..3u64))?.sink(kafka.topic(&topic).on_refused(OnRefused::Skip).format(Lonely))
    });
    let error = job.run().expect_err("a failed format skips nothing");
    assert_eq!((error.kind(), error.to_string().contains("cannot reach the service")), (ErrorKind::Unreachable, true));
}
