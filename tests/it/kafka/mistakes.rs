//! Every mistake is an error at start that names it, within a time that can be set, and prints no
//! secret.

use std::time::{Duration, Instant};

use millstream::{ErrorKind, Flow, Job, Result, discard, rows};
use millstream_connectors::{Compression, EndAt, Kafka, Profile, StartAt};
#[cfg(not(feature = "tls"))]
use millstream_connectors::{Sasl, Tls};
use rdkafka::consumer::Consumer;

use super::kafka;
use crate::support::broker::{OwnBroker, real, shared};
use crate::support::eventually;

#[track_caller]
fn check(kind: ErrorKind, names: &[&str], pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) {
    let error = Job::new("mistaken", pipeline).start().expect_err("it is a mistake");
    assert_eq!(error.kind(), kind, "{error:?}");
    for name in names {
        assert!(format!("{error:#}").contains(name), "`{error:#}` does not name `{name}`");
    }
    assert!(!format!("{error:?}").contains("S3CR3T"), "a secret is printed: {error:?}");
}

#[test]
fn an_absent_broker_is_an_error_in_time() {
    let absent = Kafka::new("127.0.0.1:9").connect_within(Duration::from_millis(500)).set("sasl.password", "S3CR3T");
    let begun = Instant::now();
    let source = absent.clone();
    check(ErrorKind::Unreachable, &["127.0.0.1:9", "500ms"], move |flow| {
        flow.source(source.topic("orders").text())?.or_stop().sink(discard())
    });
    check(ErrorKind::Unreachable, &["127.0.0.1:9", "500ms"], move |flow| {
        flow.source(rows([String::new()]))?.sink(absent.topic("orders").text())
    });
    assert!(begun.elapsed() < Duration::from_secs(4), "it took {:?}", begun.elapsed());
}

#[test]
fn a_group_with_other_members_is_named_with_them() {
    let Some(broker) = real("the embedded broker does not list the members of a group") else { return };
    let (topic, group) = (broker.topic("shared-out", 2), format!("group-{}", fastrand::u64(..)));
    let member: rdkafka::consumer::BaseConsumer =
        broker.client().set("group.id", &group).set("client.id", "the-other-one").create().unwrap();
    member.subscribe(&[&topic]).unwrap();
    eventually("the other one is a member", || {
        drop(member.poll(Duration::from_millis(20)));
        member.assignment().unwrap().count() == 2
    });
    let (kafka, name) = (kafka(broker), topic.clone());
    let of_job = group.clone();
    check(ErrorKind::Refused, &[&group, "the-other-one"], move |flow| {
        flow.source(kafka.topic(&name).group(&of_job).partitions([0, 1]).bytes())?.or_stop().sink(discard())
    });
}

#[test]
fn a_group_that_the_broker_refuses_is_named() {
    if real("the embedded broker has no access control").is_none() {
        return;
    }
    let own = OwnBroker::with(
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nallow.everyone.if.no.acl.found=true",
    );
    let (input, kafka) = (own.broker.topic("refused", 1), kafka(&own.broker));
    let deny = |operation| {
        let acl = ["--add", "--deny-principal", "User:ANONYMOUS", "--operation", operation, "--group"];
        own.tool("org.apache.kafka.tools.AclCommand", &[&acl[..], &[operation]].concat());
    };
    let copy = |group: &'static str| {
        let (kafka, name) = (kafka.clone(), input.clone());
        move |flow: &Flow<'_>| flow.source(kafka.topic(&name).group(group).bytes())?.or_stop().sink(discard())
    };
    for operation in ["All", "Read"] {
        deny(operation);
        check(ErrorKind::Refused, &[&format!("`{operation}`"), "authorization"], copy(operation));
    }
}

#[test]
fn an_unknown_topic_or_partition_is_named() {
    let (here, topic) = (kafka(shared()), shared().topic("few", 2));
    let source = here.clone();
    check(ErrorKind::NotFound, &["`no-such-topic`"], move |flow| {
        flow.source(source.topic("no-such-topic").text())?.or_stop().sink(discard())
    });
    let sink = here.clone();
    check(ErrorKind::NotFound, &["`no-such-topic`"], move |flow| {
        flow.source(rows([String::new()]))?.sink(sink.topic("no-such-topic").text())
    });
    let few = topic.clone();
    check(ErrorKind::NotFound, &["partition 7", &topic], move |flow| {
        flow.source(here.topic(&few).partitions([0, 7]).text())?.or_stop().sink(discard())
    });
}

#[test]
fn a_property_that_the_engine_owns_or_that_does_not_exist_is_named() {
    for (property, names) in [
        ("enable.auto.commit", "`enable.auto.commit`"),
        ("group.id", "`group`"),
        ("transactional.id", "`transactional.id`"),
        ("no.such.property", "`no.such.property`"),
        ("socket.timeout.ms", "`socket.timeout.ms`"),
    ] {
        for is_source in [true, false] {
            let wrong = kafka(shared()).set(property, "S3CR3T");
            let names = names.to_owned();
            check(ErrorKind::Config, &[&names], move |flow| {
                if is_source {
                    flow.source(wrong.topic("orders").text())?.or_stop().sink(discard())
                } else {
                    flow.source(rows([String::new()]))?.sink(wrong.topic("orders").text())
                }
            });
        }
    }
    assert!(!format!("{:?}", kafka(shared()).set("sasl.password", "S3CR3T")).contains("S3CR3T"));
}

#[cfg(not(feature = "tls"))]
#[test]
fn security_that_was_not_built_names_the_feature_that_is_missing() {
    let here = || kafka(shared());
    for wrong in [
        here().tls(Tls::new()),
        here().tls(Tls::new()).sasl(Sasl::plain("alice", "S3CR3T")),
        here().sasl(Sasl::scram_sha_256("alice", "S3CR3T")),
        here().sasl(Sasl::oauth_bearer(|| Err("it is never called"))),
        here().set("security.protocol", "ssl"),
        here().set("ssl.key.password", "S3CR3T"),
        here()
            .set("security.protocol", "sasl_plaintext")
            .set("sasl.mechanism", "SCRAM-SHA-512")
            .set("sasl.username", "a"),
    ] {
        check(ErrorKind::Config, &["feature `tls`"], move |flow| {
            flow.source(wrong.topic("orders").text())?.or_stop().sink(discard())
        });
    }
}

#[test]
fn an_option_on_the_wrong_side_is_named() {
    let (here, topic) = (kafka(shared()), shared().topic("side", 1));
    let (source, name) = (here.clone(), topic.clone());
    check(ErrorKind::Config, &["`profile`", "source"], move |flow| {
        flow.source(source.topic(&name).profile(Profile::Throughput).text())?.or_stop().sink(discard())
    });
    let (source, name) = (here.clone(), topic.clone());
    check(ErrorKind::Config, &["`compression`", "source"], move |flow| {
        flow.source(source.topic(&name).compression(Compression::Lz4).text())?.or_stop().sink(discard())
    });
    for (option, wrong) in [
        ("`group`", here.topic(&topic).group("g")),
        ("`start_at`", here.topic(&topic).start_at(StartAt::Latest)),
        ("`end_at`", here.topic(&topic).end_at(EndAt::Latest)),
        ("`partitions`", here.topic(&topic).partitions([0])),
    ] {
        check(ErrorKind::Config, &[option, "sink"], move |flow| {
            flow.source(rows([String::new()]))?.sink(wrong.clone().text())
        });
    }
    let sink = here.clone();
    check(ErrorKind::Config, &["one topic"], move |flow| {
        flow.source(rows([String::new()]))?.sink(sink.topics(["a", "b"]).text())
    });
    let source = here.clone();
    check(ErrorKind::Config, &["`[`", "pattern"], move |flow| {
        flow.source(source.topics_matching("[").text())?.or_stop().sink(discard())
    });
    let sink = here.clone();
    check(ErrorKind::Config, &["one topic"], move |flow| {
        flow.source(rows([String::new()]))?.sink(sink.topics_matching("a.*").text())
    });
    let sink = here.clone();
    check(ErrorKind::Config, &["one topic"], move |flow| {
        flow.source(rows([String::new()]))?.sink(sink.topics(Vec::<String>::new()).text())
    });
    let source = here.clone();
    check(ErrorKind::Config, &["`kafka.messages()`"], move |flow| {
        flow.source(source.messages().raw())?.sink(discard())
    });
    check(ErrorKind::Config, &["group"], move |flow| {
        flow.source(here.topic(&topic).group("").text())?.or_stop().sink(discard())
    });
    check(ErrorKind::Config, &["bootstrap"], |flow| flow.source(Kafka::new(" ").topic("a").raw())?.sink(discard()));
}

#[test]
fn two_sources_that_would_commit_past_each_other_are_named() {
    let (here, topic) = (kafka(shared()), shared().topic("twice", 1));
    check(ErrorKind::Config, &["`mistaken`", &format!("{topic}/0")], move |flow| {
        flow.source(here.topic(&topic).partitions([0]).text())?.or_skip().sink(discard())?;
        flow.source(here.topic(&topic).partitions([0]).text())?.or_skip().sink(discard())
    });
}

#[test]
fn offsets_of_partitions_that_are_not_read_are_named() {
    let (here, topic) = (kafka(shared()), shared().topic("offsets", 1));
    for name in [topic.clone(), "another".to_owned()] {
        let (here, topic) = (here.clone(), topic.clone());
        let key = (name.clone(), 5);
        check(ErrorKind::Config, &["`start_at`", "partition 5", &name], move |flow| {
            let start = StartAt::Offsets([(key.clone(), 3)].into());
            flow.source(here.topic(&topic).start_at(start).text())?.or_stop().sink(discard())
        });
    }
}
