//! TLS and SASL against a real broker: each way to connect, each mistake, what happens to a run
//! whose credentials expire, and that no secret is ever printed.

mod canary;
mod changes;
mod cluster;
mod mistakes;
mod ways;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use millstream::Job;
use millstream_connectors::{Kafka, Token};

use cluster::Cluster;

use crate::support::broker::real;
use crate::support::events;

/// The cluster that tests share, if there is a real broker.
fn shared() -> Option<&'static Cluster> {
    events::begin();
    events::watch_for(cluster::CANARY);
    real("the embedded broker does not authenticate clients").map(|_| cluster::shared())
}

/// A job that copies a topic as a member of a group.
fn copy(kafka: &Kafka, group: &str, input: &str, output: &str) -> Job {
    let (kafka, group, input, output) = (kafka.clone(), group.to_owned(), input.to_owned(), output.to_owned());
    Job::new("copy", move |flow| {
        let lines = flow.source(kafka.topic(&input).group(&group).text())?.or_stop();
        lines.sink(kafka.topic(&output).text())
    })
    .checkpoint_every(Duration::from_millis(200))
}

/// A token that the broker's validator for tests accepts.
fn token(expires_at: SystemTime, principal: &str) -> Token {
    Token::new(claims(expires_at, principal), expires_at).principal(principal)
}

/// Unsigned claims, issued at least a minute ago and unique.
fn claims(expires_at: SystemTime, principal: &str) -> String {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let made = seconds(SystemTime::now()).min(seconds(expires_at)) - 60.0;
    let claims = serde_json::json!({
        "sub": principal, "iat": made, "exp": seconds(expires_at), "jti": fastrand::u64(..).to_string(),
    });
    let token = format!(
        "{}.{}.",
        BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        BASE64_URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    events::watch_for(&token);
    token
}
