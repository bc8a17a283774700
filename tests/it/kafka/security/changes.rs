//! Changes while a job runs: tokens, passwords, and a broker that stops and restarts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use millstream::{ErrorKind, Running};
use millstream_connectors::Sasl;

use super::cluster::{Cluster, USER, password, secret};
use super::{copy, shared, token};
use crate::support::PATIENCE;
use crate::support::broker::Broker;
use crate::support::{events, eventually};

/// Waits until a run fails, and checks its error for secrets.
#[track_caller]
fn end(mut running: Running) -> millstream::Error {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(ended) = running.wait_for(Duration::from_millis(20)) {
            let error = ended.expect_err("it cannot go on");
            println!("{error:?}");
            events::look(&format!("{error:?}"));
            return error;
        }
        assert!(Instant::now() < deadline, "the job hangs:\n{}", running.report());
    }
}

/// Checks that one more record is copied.
#[track_caller]
fn moves(broker: &Broker, running: &Running, input: &str) {
    let before = running.report().records_out();
    broker.write(input, [(None, "key", Some("value"))]);
    eventually("it is copied", || running.report().records_out() > before);
}

/// The broker ends a session when its token expires. So records move after the second token only if
/// the clients have sent it.
#[test]
fn a_token_is_replaced_before_it_expires() {
    let Some(cluster) = shared() else { return };
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let callback = move || {
        counted.fetch_add(1, SeqCst);
        Ok::<_, String>(token(SystemTime::now() + Duration::from_secs(8), "carol"))
    };
    let broker = cluster.broker();
    let (input, output) = (broker.topic("tokens-in", 1), broker.topic("tokens-out", 1));
    let kafka = cluster.with(Sasl::oauth_bearer(callback));
    let running = copy(&kafka, &input, &input, &output).start().unwrap();
    let mut written = 0;
    eventually("two tokens have followed the first", || {
        moves(broker, &running, &input);
        written += 1;
        calls.load(SeqCst) >= 4
    });
    moves(broker, &running, &input);
    running.stop();
    running.wait().unwrap();
    assert_eq!(broker.read(&output).concat().len(), written + 1);
}

#[test]
fn a_callback_that_fails_for_a_while_is_called_again_and_says_so() {
    let Some(cluster) = shared() else { return };
    let (fails, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (failing, counted) = (Arc::clone(&fails), Arc::clone(&calls));
    let callback = move || {
        counted.fetch_add(1, SeqCst);
        if failing.load(SeqCst) {
            return Err("the identity provider has a headache");
        }
        Ok(token(SystemTime::now() + Duration::from_secs(24), "carol"))
    };
    let broker = cluster.broker();
    let (input, output) = (broker.topic("headache-in", 1), broker.topic("headache-out", 1));
    let kafka = cluster.with(Sasl::oauth_bearer(callback));
    let mut running = copy(&kafka, &input, &input, &output).start().unwrap();
    moves(broker, &running, &input);
    fails.store(true, SeqCst);
    eventually("the log says why", || events::was_logged(&["WARN", "no new token", "headache"]));
    fails.store(false, SeqCst);
    let before = calls.load(SeqCst);
    eventually("it is asked again", || {
        let ended = running.wait_for(Duration::ZERO);
        assert!(ended.is_none(), "one failed call ended the run: {ended:?}");
        calls.load(SeqCst) > before
    });
    moves(broker, &running, &input);
    running.stop();
    running.wait().unwrap();
}

#[test]
fn a_run_ends_when_its_token_has_expired_and_the_callback_fails() {
    let Some(cluster) = shared() else { return };
    let calls = AtomicUsize::new(0);
    let callback = move || match calls.fetch_add(1, SeqCst) {
        0 => Ok(token(SystemTime::now() + Duration::from_secs(15), "carol")),
        _ => Err("the identity provider has left"),
    };
    let broker = cluster.broker();
    let (input, output) = (broker.topic("left-in", 1), broker.topic("left-out", 1));
    let kafka = cluster.with(Sasl::oauth_bearer(callback));
    let running = copy(&kafka, &input, &input, &output).start().unwrap();
    moves(broker, &running, &input);
    let error = end(running);
    assert_eq!(error.kind(), ErrorKind::Unreachable, "a restart may help: {error:?}");
    for part in ["the token expired", "has left"] {
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
}

#[test]
fn a_run_ends_when_its_password_is_changed() {
    let Some(cluster) = shared() else { return };
    cluster.set_scram_password("bob", &secret("before"));
    let broker = cluster.broker();
    let (input, output) = (broker.topic("password-in", 1), broker.topic("password-out", 1));
    let kafka = cluster.with(Sasl::scram_sha_256("bob", secret("before")));
    let running = copy(&kafka, &input, &input, &output).start().unwrap();
    moves(broker, &running, &input);
    cluster.set_scram_password("bob", &secret("after"));
    let error = end(running);
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    for part in [cluster.sasl().as_str(), "uthentication failed"] {
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
}

/// A connection that breaks while it is set up looks like a failed authentication.
#[test]
fn an_outage_is_not_a_refusal() {
    if shared().is_none() {
        return;
    }
    let cluster = Cluster::start();
    let broker = cluster.broker();
    let (input, output) = (broker.topic("outage-in", 2), broker.topic("outage-out", 2));
    let kafka = cluster.with(Sasl::scram_sha_512(USER, password()));
    let running = copy(&kafka, &input, &input, &output).start().unwrap();
    for _ in 0..3 {
        moves(broker, &running, &input);
        cluster.own.kill();
        cluster.own.restart();
    }
    moves(broker, &running, &input);
    running.stop();
    running.wait().unwrap();
    assert_eq!(broker.read(&output).concat().len(), 4);
    // A problem that is over within seconds is not a warning.
    assert!(events::was_logged(&["DEBUG", "kafka client", &cluster.sasl()]), "the log says what was missing");
}
