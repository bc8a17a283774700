//! A mistake in a registry or a schema is an error when it is set or when the job starts. The error
//! names the mistake and contains no secrets.

use std::time::Duration;

use millstream::{ErrorKind, Job, Result, Running, rows};
use millstream_connectors::{Avro, Message, Protobuf, Registry};

use super::{ORDER, Order, order, registry};
use crate::kafka::kafka;
use crate::support::broker::shared;
use crate::support::registry::{Fault, TestRegistry};

const SECRET: &str = "S3CR3T";

fn reading(registry: &Registry) -> Result<Running> {
    let (kafka, topic, format) = (kafka(shared()), shared().topic("start", 1), Avro::<Order>::new(registry));
    let job = Job::new("reading", move |flow| {
        flow.source(kafka.topic(&topic).format(format.clone()))?.or_stop().sink(millstream::discard())
    });
    job.start()
}

/// Runs a job with a sink of this format to this topic.
fn writing(topic: &str, format: Avro<Order>) -> Result<()> {
    let (kafka, topic) = (kafka(shared()), topic.to_owned());
    let job = Job::new("writing", move |flow| {
        flow.source(rows([order(7)]))?.sink(kafka.topic(&topic).format(format.clone()))
    });
    job.run().map(drop)
}

#[track_caller]
fn check<T>(result: Result<T>, kind: ErrorKind, names: &[&str]) {
    let error = result.err().expect("it is an error at start");
    let told = format!("{error:?}");
    assert_eq!(error.kind(), kind, "{told}");
    for name in names {
        assert!(told.contains(name), "`{told}` does not say `{name}`");
    }
    assert!(!told.contains(SECRET), "{told}");
}

#[test]
fn a_registry_that_cannot_be_reached_is_an_error() {
    let served = TestRegistry::start();
    let short = |registry: Registry| registry.within(Duration::from_millis(300));
    check(reading(&short(Registry::new("http://127.0.0.1:9"))), ErrorKind::Unreachable, &["127.0.0.1:9"]);
    let elsewhere = format!("{}/elsewhere", served.address);
    check(reading(&short(Registry::new(&elsewhere))), ErrorKind::Unreachable, &[&elsewhere, "404"]);
    served.fault(Fault::Hangs);
    check(reading(&registry(&served)), ErrorKind::Unreachable, &[&served.address]);
    served.fault(None);
    served.wants(&format!("Basic {}", "dXNlcjpTM0NSM1Q="));
    check(reading(&registry(&served)), ErrorKind::Refused, &[&served.address, "who are you?"]);
    let wrong = registry(&served).basic_auth("user", format!("{SECRET}?"));
    check(reading(&wrong), ErrorKind::Refused, &["who are you?"]);
    let topic = shared().topic("start", 1);
    check(writing(&topic, Avro::new(&wrong).schema(ORDER).unwrap()), ErrorKind::Refused, &["who are you?"]);
    reading(&registry(&served).basic_auth("user", SECRET)).expect("the credentials are right").abort();
    served.wants("Bearer S3CR3T");
    reading(&registry(&served).bearer(SECRET)).expect("the credentials are right").abort();
}

#[test]
fn an_invalid_address_is_an_error() {
    for (address, names) in [
        ("", "needs an address"),
        (" , ", "needs an address"),
        ("localhost:8081", "`http://`"),
        ("ftp://localhost", "http or https"),
        ("http://user:S3CR3T@localhost:8081", "`basic_auth`"),
        ("S3CR3T@localhost", "`http://`"),
        ("http://local host", "not a valid address"),
        ("http://", "`http://`"),
    ] {
        let registry = Registry::new(address);
        check(reading(&registry), ErrorKind::Config, &[names]);
    }
    check(reading(&Registry::new("http://localhost").within(Duration::ZERO)), ErrorKind::Config, &["`within`"]);
    check(reading(&Registry::new("http://localhost").bearer("S3CR3T\n")), ErrorKind::Config, &["secret"]);
}

#[test]
fn secrets_are_never_printed() {
    for registry in [
        Registry::new("http://localhost").basic_auth("user", SECRET),
        Registry::new("http://localhost").bearer(SECRET),
        Registry::new("http://user:S3CR3T@localhost"),
    ] {
        let format = Avro::<Order>::new(&registry);
        let topic = kafka(shared()).topic("any").format(format.clone());
        for printed in [format!("{registry:?}"), format!("{format:?}"), format!("{topic:?}")] {
            assert!(!printed.contains(SECRET) && !printed.contains("dXNlcjpTM0NSM1Q"), "{printed}");
        }
    }
}

#[test]
fn an_invalid_schema_is_an_error() {
    let registry = Registry::new("http://localhost");
    let names = "the schema of an Avro format";
    check(Avro::<Order>::new(&registry).schema("{\"type\": \"rekord\"}"), ErrorKind::Config, &[names, "rekord"]);
    check(Avro::<Order>::bare("long"), ErrorKind::Config, &[names]);
    check(Protobuf::<()>::new(&registry).schema("enum A { }"), ErrorKind::Config, &["no message"]);
}

#[test]
fn a_schema_that_a_sink_cannot_use_is_an_error() {
    let served = TestRegistry::start();
    let (topic, registry) = (shared().topic("refused", 1), registry(&served));
    let subject = format!("{topic}-value");
    check(writing(&topic, Avro::new(&registry)), ErrorKind::Config, &["`schema`"]);
    let with_schema = || Avro::<Order>::new(&registry).schema(ORDER).unwrap();
    check(writing(&topic, with_schema().without_registering()), ErrorKind::NotFound, &[&subject, "Schema not found"]);
    assert!(served.versions(&subject).is_empty(), "nothing is registered");
    writing(&topic, with_schema()).expect("it is registered");
    writing(&topic, with_schema().without_registering()).expect("the schema is in the subject now");
    assert_eq!(served.versions(&subject), [1]);
    writing(&topic, with_schema().subject("a/b c")).expect("any subject name is allowed");
    assert_eq!(served.versions("a/b c"), [1]);
    served.finds_incompatible("READER_FIELD_MISSING_DEFAULT_VALUE");
    let names = [&*subject, "READER_FIELD_MISSING_DEFAULT_VALUE"];
    check(writing(&topic, with_schema()), ErrorKind::Refused, &names);
    let nowhere = "no-such-topic";
    check(writing(nowhere, with_schema()), ErrorKind::NotFound, &[nowhere]);
    assert!(served.versions("no-such-topic-value").is_empty(), "nothing is registered for a topic that does not exist");
}

#[test]
fn a_file_that_a_registry_does_not_accept_is_an_error() {
    let served = TestRegistry::start();
    let (kafka, topic) = (kafka(shared()), shared().topic("refused", 1));
    let run = |format: Protobuf<()>| {
        let (kafka, topic) = (kafka.clone(), topic.clone());
        Job::new("writing", move |flow| flow.source(rows([()]))?.sink(kafka.topic(&topic).format(format.clone()))).run()
    };
    let format = Protobuf::<()>::new(&registry(&served));
    check(run(format.clone()), ErrorKind::Config, &["`schema`"]);
    let imports = format.clone().schema("import \"other.proto\"; message A {}").unwrap();
    check(run(imports), ErrorKind::Config, &[&topic, "other.proto is not there"]);
    let elsewhere = format.schema("message A {}").unwrap().message("B");
    check(run(elsewhere), ErrorKind::Config, &["no message `B`, only `A`"]);
}

#[test]
fn a_sink_of_many_topics_needs_a_subject() {
    let served = TestRegistry::start();
    let (kafka, topic) = (kafka(shared()), shared().topic("many", 1));
    let run = |format: Avro<Order>| {
        let (kafka, topic) = (kafka.clone(), topic.clone());
        let job = Job::new("many", move |flow| {
            let topic = topic.clone();
            let messages = flow.source(rows([order(7)]))?.map(move |order| Message::new(order).topic(topic.as_str()));
            messages.sink(kafka.messages().format(format.clone()))
        });
        job.run()
    };
    let format = Avro::new(&registry(&served)).schema(ORDER).unwrap();
    check(run(format.clone()), ErrorKind::Config, &["`subject`"]);
    run(format.subject("orders")).unwrap();
    assert_eq!((served.versions("orders"), shared().read(&topic)[0].len()), (vec![1], 1));
}
