//! Each mistake is an error at start, in time, of the right kind, that says what is wrong and
//! where.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use millstream::{Error, ErrorKind, Flow, Job, Result, discard, rows};
use millstream_connectors::{Kafka, Sasl, Tls, Token};

use super::cluster::{Cluster, USER, password, secret};
use crate::support::events;

use super::{claims, shared, token};

/// How long a job may try to reach a broker.
const WITHIN: Duration = Duration::from_secs(3);

/// Checks the error of a source and of a sink.
#[track_caller]
fn check(cluster: &Cluster, kafka: Kafka, kind: ErrorKind, says: &[&str]) {
    let kafka = kafka.connect_within(WITHIN);
    let topic = cluster.broker().topic("mistaken", 1);
    let (here, name) = (kafka.clone(), topic.clone());
    fails(kind, says, move |flow| flow.source(here.topic(&name).text())?.or_stop().sink(discard()));
    fails(kind, says, move |flow| flow.source(rows([String::new()]))?.sink(kafka.topic(&topic).text()));
}

#[track_caller]
fn fails(kind: ErrorKind, says: &[&str], pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) {
    let begun = Instant::now();
    let error: Error = Job::new("mistaken", pipeline).start().expect_err("it is a mistake");
    println!("{error:?}, after {:?}", begun.elapsed());
    events::look(&format!("{error:?} {error:#}"));
    assert_eq!(error.kind(), kind, "{error:?}");
    for part in says {
        assert!(format!("{error:#}").contains(part), "`{error:#}` does not say `{part}`");
    }
    // The machine may be busy: what matters is that the job does not hang.
    assert!(begun.elapsed() < 3 * WITHIN, "it took {:?}", begun.elapsed());
}

#[test]
fn a_wrong_password_is_refused() {
    let Some(cluster) = shared() else { return };
    let wrong = || secret("wrong");
    for sasl in [Sasl::plain(USER, wrong()), Sasl::scram_sha_256(USER, wrong()), Sasl::scram_sha_512(USER, wrong())] {
        check(cluster, cluster.with(sasl), ErrorKind::Refused, &[&cluster.sasl(), "uthentication failed"]);
    }
}

#[test]
fn an_unknown_user_is_refused() {
    let Some(cluster) = shared() else { return };
    for sasl in [Sasl::plain("mallory", password()), Sasl::scram_sha_512("mallory", password())] {
        check(cluster, cluster.with(sasl), ErrorKind::Refused, &[&cluster.sasl(), "uthentication failed"]);
    }
}

#[test]
fn a_mechanism_that_the_broker_does_not_have_is_refused_with_those_that_it_has() {
    let Some(cluster) = shared() else { return };
    let kafka = Kafka::new(cluster.open()).sasl(Sasl::scram_sha_256(USER, password()));
    check(cluster, kafka, ErrorKind::Refused, &[&cluster.open(), "SCRAM-SHA-256", "mechanisms: PLAIN"]);
}

#[test]
fn a_broker_of_a_foreign_authority_is_refused() {
    let Some(cluster) = shared() else { return };
    for tls in [Tls::new().ca_file(cluster.file("foreign.pem")), Tls::new()] {
        check(
            cluster,
            Kafka::new(cluster.tls()).tls(tls),
            ErrorKind::Refused,
            &[&cluster.tls(), "certificate", "ca_file"],
        );
    }
}

#[test]
fn a_broker_of_another_host_name_is_refused() {
    let Some(cluster) = shared() else { return };
    let address = cluster.tls().replace("127.0.0.1", "localhost");
    let kafka = Kafka::new(&address).tls(cluster.trust());
    check(cluster, kafka, ErrorKind::Refused, &[&address, "certificate", "host name"]);
}

#[test]
fn a_client_without_a_trusted_certificate_is_refused() {
    let Some(cluster) = shared() else { return };
    let kafka = Kafka::new(cluster.mutual()).tls(cluster.trust());
    check(cluster, kafka, ErrorKind::Refused, &[&cluster.mutual(), "identity_files"]);
    let foreign = cluster.trust().identity_files(cluster.file("foreign.pem"), cluster.file("foreign.key"));
    check(
        cluster,
        Kafka::new(cluster.mutual()).tls(foreign),
        ErrorKind::Refused,
        &[&cluster.mutual(), "identity_files"],
    );
}

#[test]
fn a_client_without_tls_is_told_that_the_listener_may_require_it() {
    let Some(cluster) = shared() else { return };
    check(cluster, Kafka::new(cluster.tls()), ErrorKind::Unreachable, &[&cluster.tls(), "`Kafka::tls`"]);
}

#[test]
fn a_client_with_tls_is_told_that_the_listener_may_not_use_it() {
    let Some(cluster) = shared() else { return };
    let address = &cluster.broker().address;
    let kafka = Kafka::new(address).tls(cluster.trust());
    check(cluster, kafka, ErrorKind::Unreachable, &[address, "may not use TLS"]);
}

#[test]
fn a_client_without_sasl_is_told_that_the_listener_may_require_it() {
    let Some(cluster) = shared() else { return };
    check(cluster, Kafka::new(cluster.open()), ErrorKind::Unreachable, &[&cluster.open(), "`Kafka::sasl`"]);
    let kafka = Kafka::new(cluster.sasl()).tls(cluster.trust());
    check(cluster, kafka, ErrorKind::Unreachable, &[&cluster.sasl(), "`Kafka::sasl`"]);
}

#[test]
fn a_client_with_sasl_is_told_that_the_listener_does_not_use_it() {
    let Some(cluster) = shared() else { return };
    let address = &cluster.broker().address;
    let kafka = Kafka::new(address).sasl(Sasl::plain(USER, password()));
    check(cluster, kafka, ErrorKind::Unreachable, &[address, "does not use SASL"]);
}

#[test]
fn a_token_that_has_expired_for_the_broker_is_refused() {
    let Some(cluster) = shared() else { return };
    let callback = || {
        // As if our own clock were an hour behind.
        let expired = claims(SystemTime::now() - Duration::from_secs(60), "carol");
        Ok::<_, String>(Token::new(expired, SystemTime::now() + Duration::from_secs(3_600)))
    };
    let kafka = cluster.with(Sasl::oauth_bearer(callback));
    check(cluster, kafka, ErrorKind::Refused, &[&cluster.sasl(), "token", "expired"]);
}

#[test]
fn a_callback_that_returns_an_expired_token_is_named() {
    let Some(cluster) = shared() else { return };
    let callback = || Ok::<_, String>(token(SystemTime::now() - Duration::from_secs(60), "carol"));
    check(
        cluster,
        cluster.with(Sasl::oauth_bearer(callback)),
        ErrorKind::Refused,
        &["oauth_bearer", "expired 60s ago"],
    );
}

#[test]
fn a_callback_that_returns_an_invalid_token_is_named() {
    let Some(cluster) = shared() else { return };
    for value in [String::new(), format!("{}\n\u{1}", secret("token")), format!("{}\0", secret("token"))] {
        let soon = SystemTime::now() + Duration::from_secs(60);
        let callback = move || Ok::<_, String>(Token::new(value.as_str(), soon));
        check(cluster, cluster.with(Sasl::oauth_bearer(callback)), ErrorKind::Refused, &["oauth_bearer", "characters"]);
    }
}

#[test]
fn a_callback_that_fails_is_named_with_its_error() {
    let Some(cluster) = shared() else { return };
    let callback = || Err::<Token, _>(std::io::Error::other("the identity provider is closed on Sundays"));
    check(cluster, cluster.with(Sasl::oauth_bearer(callback)), ErrorKind::Unreachable, &["oauth_bearer", "on Sundays"]);
}

#[test]
fn a_callback_that_panics_is_named() {
    let Some(cluster) = shared() else { return };
    let callback = || -> Result<Token, String> { panic!("the callback of a test") };
    check(cluster, cluster.with(Sasl::oauth_bearer(callback)), ErrorKind::Panic, &["oauth_bearer", "panicked"]);
}

#[test]
fn a_callback_that_does_not_return_is_named() {
    let Some(cluster) = shared() else { return };
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    let callback = || -> Result<Token, String> {
        CALLS.fetch_add(1, SeqCst);
        std::thread::park();
        Err("it is over".to_owned())
    };
    check(cluster, cluster.with(Sasl::oauth_bearer(callback)), ErrorKind::Unreachable, &["oauth_bearer", "within 3s"]);
    assert_eq!(CALLS.load(SeqCst), 1, "one call at a time");
}

#[test]
fn a_file_that_is_absent_or_is_not_what_it_should_be_is_named() {
    let Some(cluster) = shared() else { return };
    let (absent, client, key) = (cluster.file("absent.pem"), cluster.file("client.pem"), cluster.file("client.key"));
    let with = |tls: Tls| Kafka::new(cluster.mutual()).tls(tls);
    for tls in [
        Tls::new().ca_file(&absent),
        cluster.trust().identity_files(&absent, &key),
        cluster.trust().identity_files(&client, &absent),
    ] {
        check(cluster, with(tls), ErrorKind::NotFound, &["absent.pem"]);
    }
    let (encrypted, foreign) = (cluster.file("client.encrypted"), cluster.file("foreign.key"));
    for (tls, name) in [
        (Tls::new().ca_file(&key), "client.key"),
        (Tls::new().ca_file(cluster.file("")), "millstream-security"),
        (Tls::new().ca_pem(secret("no pem")), "a PEM text of the program"),
        (cluster.trust().identity_files(&key, &key), "certificate in `"),
        (cluster.trust().identity_files(&client, &client), "client.pem"),
        (cluster.trust().identity_files(&client, &foreign), "foreign.key"),
        (cluster.trust().identity_files(&client, &encrypted), "client.encrypted"),
        (cluster.trust().identity_files(&client, &encrypted).key_password(secret("wrong")), "`key_password`"),
        (cluster.trust().key_password(secret("key")), "no key"),
    ] {
        check(cluster, with(tls), ErrorKind::Config, &[name]);
    }
}

#[test]
fn a_setting_that_is_made_twice_is_named() {
    let Some(cluster) = shared() else { return };
    let both = || cluster.with(Sasl::plain(USER, password()));
    for property in [
        "security.protocol",
        "ssl.ca.location",
        "ssl.ca.pem",
        "ssl.endpoint.identification.algorithm",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
    ] {
        let kafka = both().set(property, secret("value"));
        check(cluster, kafka, ErrorKind::Config, &[&format!("`{property}`"), "`Kafka::sasl`"]);
    }
}

#[test]
fn a_callback_is_the_only_way_to_tokens() {
    let Some(cluster) = shared() else { return };
    let kafka = Kafka::new(cluster.sasl()).set("security.protocol", "sasl_ssl").set("sasl.mechanisms", "OAUTHBEARER");
    check(cluster, kafka, ErrorKind::Config, &["`sasl.mechanisms`", "`Sasl::oauth_bearer`"]);
}

#[test]
fn a_password_without_encryption_is_warned_about() {
    events::begin();
    let kafka = Kafka::new("kafka.invalid:9092").connect_within(Duration::from_millis(200));
    let kafka = kafka.sasl(Sasl::plain(USER, password()));
    fails(ErrorKind::Unreachable, &["kafka.invalid"], move |flow| {
        flow.source(kafka.topic("orders").text())?.or_stop().sink(discard())
    });
    assert!(events::was_logged(&["WARN", "kafka.invalid", "can read the password"]));
}
