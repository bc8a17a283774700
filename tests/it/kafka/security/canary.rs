//! The canary: a secret in every place that can hold one, and a check of everything that is
//! printed.

use std::error::Error as _;
use std::time::{Duration, SystemTime};

use millstream::{Error, Flow, Job, Result, discard, rows};
use millstream_connectors::Secret;
use millstream_connectors::report::write_line;
use millstream_connectors::{Kafka, Sasl, Tls, Token};

use super::cluster::{CANARY, Cluster, USER, password, secret};
use super::{copy, shared, token};
use crate::support::{events, eventually};

/// Checks all that an error and its causes say, to a user and to a developer.
fn look_at(error: &Error) {
    events::look(&format!("{error} {error:#} {error:?} {error:#?}"));
    let mut cause = error.source();
    while let Some(error) = cause {
        events::look(&format!("{error} {error:?} {error:#?}"));
        cause = error.source();
    }
}

/// Checks everything that is built from a cluster, and the errors of jobs that cannot start.
fn look_at_failures(kafka: &Kafka) {
    let kafka = kafka.clone().connect_within(Duration::from_millis(800));
    let topic = kafka.topic("absent");
    events::look(&format!("{kafka:?} {kafka:#?} {topic:?} {topic:#?}"));
    events::look(&format!("{:?} {:?} {:?}", topic.clone().text(), topic.clone().raw(), kafka.messages()));
    events::look(&format!("{:?} {:?}", topic.clone().json::<u64>().with_metadata(), kafka.dead_letters("dead")));
    let (source, name) = (kafka.clone(), "absent");
    let reads = move |flow: &Flow<'_>| flow.source(source.topic(name).text())?.or_stop().sink(discard());
    let writes = move |flow: &Flow<'_>| flow.source(rows([String::new()]))?.sink(kafka.topic(name).text());
    look_at(&Job::new("reads", reads).start().expect_err("there is no such topic"));
    look_at(&Job::new("writes", writes).start().expect_err("there is no such topic"));
}

/// Clusters with a secret in a wrong or a right place.
fn clusters(cluster: &Cluster) -> Vec<Kafka> {
    let sasl = || Kafka::new(cluster.sasl()).tls(cluster.trust());
    let pem = format!("-----BEGIN KEY-----\n{}\n-----END KEY-----\n", secret("pem"));
    let far = SystemTime::now() + Duration::from_secs(3_600);
    let mut all = vec![
        sasl().sasl(Sasl::plain(USER, secret("wrong"))),
        sasl().sasl(Sasl::plain(USER, password())),
        sasl().sasl(Sasl::plain(USER, format!("{}\0", secret("zero")))),
        sasl().sasl(Sasl::scram_sha_256(USER, secret("wrong"))),
        sasl().sasl(Sasl::scram_sha_512(USER, Secret::from(password()))),
        sasl().sasl(Sasl::oauth_bearer(move || Ok::<_, String>(Token::new(secret("token"), far)))),
        sasl().sasl(Sasl::oauth_bearer(move || Ok::<_, String>(Token::new(secret("\u{e9}\0"), far)))),
        Kafka::new(cluster.tls()).tls(Tls::new().ca_pem(pem.clone())),
        Kafka::new(cluster.mutual()).tls(cluster.trust().identity_pem(pem.clone(), pem.clone())),
        Kafka::new(cluster.mutual()).tls(
            cluster
                .trust()
                .identity_files(cluster.file("client.pem"), cluster.file("client.encrypted"))
                .key_password(secret("wrong")),
        ),
    ];
    for property in [
        "sasl.password",
        "sasl.jaas.config",
        "sasl.oauthbearer.config",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.method",
        "security.protocol.password",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.certificate.pem",
        "ssl.keystore.password",
        "no.such.token",
    ] {
        let set = |value: String| Kafka::new(cluster.sasl()).set("security.protocol", "sasl_ssl").set(property, value);
        all.extend([set(secret("set")), set(format!("{}\0", secret("set"))), set(pem.clone())]);
    }
    // With the full log of the client as well.
    all.into_iter().flat_map(|kafka| [kafka.clone(), kafka.set("debug", "all")]).collect()
}

#[test]
fn no_secret_is_printed() -> Result<()> {
    let Some(cluster) = shared() else { return Ok(()) };
    for kafka in clusters(cluster) {
        look_at_failures(&kafka);
    }
    let broker = cluster.broker();
    let far = SystemTime::now() + Duration::from_secs(3_600);
    let key = Secret::from(std::fs::read_to_string(cluster.file("client.encrypted")).unwrap());
    let certificate = std::fs::read_to_string(cluster.file("client.pem")).unwrap();
    for kafka in [
        cluster.with(Sasl::plain(USER, password())),
        cluster.with(Sasl::scram_sha_256(USER, password())),
        cluster.with(Sasl::oauth_bearer(move || Ok::<_, String>(token(far, "carol")))),
        Kafka::new(cluster.mutual()).tls(cluster.trust().identity_pem(certificate, key).key_password(secret("key"))),
    ] {
        let (input, output) = (broker.topic("canary-in", 1), broker.topic("canary-out", 1));
        broker.write(&input, [(None, "key", Some("value"))]);
        let running = copy(&kafka.set("debug", "all"), &input, &input, &output).start()?;
        eventually("it is copied", || running.report().records_out() == 1);
        let report = running.report();
        let mut line = Vec::new();
        write_line(&report, &mut line).unwrap();
        events::look(&format!("{report} {report:?} {running:?} {}", String::from_utf8_lossy(&line)));
        running.stop();
        events::look(&format!("{}", running.wait()?));
    }
    // Other tests print secrets of their own meanwhile: their output is checked as well.
    let leaks: Vec<String> = events::found("").into_iter().filter(|line| !line.contains(PLANTED)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    assert!(events::was_logged(&["DEBUG", "SASL", "client"]), "the client's own log is captured");
    Ok(())
}

/// Marks what this module prints itself.
const PLANTED: &str = "planted";

#[test]
fn a_secret_that_is_printed_is_found() {
    events::begin();
    events::watch_for(CANARY);
    let planted = |place: &str| format!("{PLANTED} {place} {CANARY}");
    tracing::trace!("{}", planted("message"));
    tracing::error!(field = planted("field"));
    log::trace!("{}", planted("log"));
    events::look(&planted("text"));
    std::thread::spawn(move || tracing::debug!("{}", planted("thread"))).join().unwrap();
    for place in ["message", "field", "log", "text", "thread"] {
        assert_eq!(events::found(&format!("{PLANTED} {place}")).len(), 1, "{place}");
    }
}
