//! What a client reports: errors, which explain a silence or a refusal, and lines of its log. All
//! of it passes through here before it is logged or reported, and secrets are removed. The client
//! also gets its tokens here.

use std::error::Error as StdError;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millstream::{Error, ErrorKind};
use rdkafka::client::OAuthToken;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::client::Settings;
use super::error::is_refusal;
use super::token::Tokens;
use crate::lock;

/// The complaints of a client that explain why it makes no progress.
#[derive(Debug)]
pub(crate) struct ClientEvents {
    settings: Arc<Settings>,
    /// The consumer group, if there is one: the client does not say which group was refused.
    group: Option<String>,
    complaint: Mutex<Option<Complaint>>,
    troubles: Mutex<Vec<Trouble>>,
}

/// Something that is retried until it succeeds. Most of it is over before it is worth a log line.
#[derive(Debug)]
struct Trouble {
    concern: Concern,
    since: Instant,
    /// `None` for the client: its last complaint is the reason.
    reason: Option<String>,
    is_told: bool,
}

impl Trouble {
    fn lasts(&self) -> bool {
        self.since.elapsed() >= LASTS_AFTER
    }
}

/// What makes no progress. Each kind ends separately: a group may deliver records and accept no
/// commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Concern {
    /// The client, which reaches no broker or gets no answer.
    Client,
    Commits,
    Starts,
    Topics,
    /// Finding out which other runs commit.
    Others,
}

/// Trouble that lasts this long is logged, and appears in the report.
const LASTS_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Complaint {
    weight: Weight,
    reason: String,
}

/// The last of the heaviest complaints is kept; of refusals the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// "All brokers are down" says less than why each of them is.
    AllAreDown,
    Logged,
    Failed,
    Refused,
}

impl ClientEvents {
    pub(crate) fn new(settings: &Arc<Settings>) -> ClientEvents {
        ClientEvents {
            settings: Arc::clone(settings),
            group: None,
            complaint: Mutex::default(),
            troubles: Mutex::default(),
        }
    }

    pub(crate) fn of_group(settings: &Arc<Settings>, group: &str) -> ClientEvents {
        ClientEvents { group: Some(group.to_owned()), ..ClientEvents::new(settings) }
    }

    /// Handles an error that the client reports.
    pub(crate) fn note(&self, error: &KafkaError, reason: &str) {
        let reason = self.settings.hide_in(reason);
        let Some(code) = error.rdkafka_error_code().filter(|code| *code != Code::PartitionEOF) else { return };
        let reason = match &self.group {
            Some(group) if code == Code::GroupAuthorizationFailed => format!("group `{group}`: {reason}"),
            _ => reason,
        };
        let weight = match code {
            Code::AllBrokersDown => Weight::AllAreDown,
            code if is_refusal(code) && !is_transient(&reason) || is_of_certificate(&reason) => Weight::Refused,
            _ => Weight::Failed,
        };
        if weight == Weight::Refused {
            tracing::warn!(%code, reason, "kafka client");
        } else {
            tracing::debug!(%code, reason, "kafka client");
        }
        self.keep(weight, explained(&reason));
        self.trouble(Concern::Client, None);
    }

    /// Called when the client has had work since the last check and has done none of it. It does
    /// not report what it sends again by itself.
    pub(crate) fn stalled(&self) {
        self.trouble(Concern::Client, None);
    }

    /// Returns whether the trouble or its reason is new.
    fn trouble(&self, concern: Concern, reason: Option<&str>) -> bool {
        let mut troubles = lock(&self.troubles);
        let Some(known) = troubles.iter_mut().find(|trouble| trouble.concern == concern) else {
            troubles.push(Trouble {
                concern,
                since: Instant::now(),
                reason: reason.map(str::to_owned),
                is_told: false,
            });
            return true;
        };
        let is_new = known.reason.as_deref() != reason;
        if is_new {
            known.reason = reason.map(str::to_owned);
        }
        is_new
    }

    /// Called when the client has done something that it could not do in trouble.
    pub(crate) fn progressed(&self) {
        if self.passes(Concern::Client) {
            lock(&self.complaint).take_if(|complaint| complaint.weight != Weight::Refused);
        }
    }

    /// Called when something succeeds, perhaps for the first time in a while. Returns whether it
    /// was in trouble before.
    pub(crate) fn passes(&self, concern: Concern) -> bool {
        let mut troubles = lock(&self.troubles);
        let Some(at) = troubles.iter().position(|trouble| trouble.concern == concern) else { return false };
        let ended = troubles.remove(at);
        drop(troubles);
        if ended.is_told {
            tracing::info!(brokers = self.settings.brokers, after = ?ended.since.elapsed(), "kafka client recovered");
        }
        true
    }

    /// The trouble that has lasted longest, if it is worth a report.
    pub(crate) fn waiting(&self) -> Option<String> {
        let troubles = lock(&self.troubles);
        let lasting = troubles.iter().filter(|trouble| trouble.lasts()).min_by_key(|trouble| trouble.since)?;
        Some(self.waits_for(lasting))
    }

    fn waits_for(&self, trouble: &Trouble) -> String {
        let complaint = lock(&self.complaint);
        let heard = complaint.as_ref().map(|complaint| complaint.reason.as_str());
        let reason = trouble.reason.as_deref().or(heard).unwrap_or("no answer");
        format!("Kafka at {}: {reason}", self.settings.brokers)
    }

    /// Logs each trouble that lasts, once.
    pub(crate) fn log_what_lasts(&self) {
        for trouble in lock(&self.troubles).iter_mut().filter(|trouble| !trouble.is_told && trouble.lasts()) {
            trouble.is_told = true;
            tracing::warn!("waiting for {}", self.waits_for(trouble));
        }
    }

    /// Handles a line of the client's log.
    pub(crate) fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let line = self.settings.hide_in(line);
        tracing::debug!(?level, facility, line, "kafka client");
        if facility == "FAIL" {
            // The part before it names a thread of the client.
            let reason = line.split_once("]: ").map_or(line.as_str(), |(_, reason)| reason);
            self.keep(Weight::Logged, reason.to_owned());
        }
    }

    /// Whether the user has turned on the client's debug log.
    pub(crate) fn is_debugged(&self) -> bool {
        self.settings.is_debugged()
    }

    /// Records that something makes no progress, but may recover by itself.
    pub(crate) fn complain(&self, concern: Concern, reason: String) {
        if self.trouble(concern, Some(&reason)) {
            tracing::debug!(reason, "kafka client");
        }
        self.keep(Weight::Failed, reason);
    }

    /// The token that the client asks for.
    pub(crate) fn token(&self) -> Result<OAuthToken, Box<dyn StdError>> {
        let tokens = self.settings.security.tokens();
        tokens.and_then(Tokens::newest).ok_or_else(|| "there is no token".into())
    }

    fn keep(&self, weight: Weight, reason: String) {
        let mut complaint = lock(&self.complaint);
        let before = complaint.as_ref().map(|complaint| complaint.weight);
        if before.is_none_or(|before| weight >= before && before != Weight::Refused) {
            *complaint = Some(Complaint { weight, reason });
        }
    }

    pub(crate) fn take(&self) -> Option<String> {
        lock(&self.complaint).take().map(|complaint| complaint.reason)
    }

    /// Why the broker refused the client, if it did.
    pub(crate) fn refusal(&self) -> Option<String> {
        let complaint = lock(&self.complaint);
        complaint.as_ref().filter(|complaint| complaint.weight == Weight::Refused).map(|told| told.reason.clone())
    }

    /// The error of a refusal, if there was one. If the token has expired, the cause is why there
    /// is no newer one.
    pub(crate) fn refused(&self, doing: &str) -> Option<Error> {
        let reason = self.refusal()?;
        let lapsed = self.settings.security.tokens().and_then(|tokens| tokens.lapsed());
        Some(match lapsed {
            Some(lapsed) => Error::new(lapsed.kind(), doing).caused_by(lapsed),
            None => Error::new(ErrorKind::Refused, doing).caused_by(reason),
        })
    }
}

/// Whether a failure passes by itself, although the client calls it a failed authentication or an
/// error of TLS. Either the connection broke during authentication, as it does when a broker stops.
/// Or the client authenticated twice within a second, as it does when a token is about to expire.
/// Or it got a token only after the lifetime that it was given for that token.
fn is_transient(reason: &str) -> bool {
    [
        "handshake failed: Local:",
        "not valid in current SASL state",
        "unexpected eof",
        "Disconnected",
        "SSL transport error",
        "Must supply an unexpired token",
    ]
    .iter()
    .any(|part| reason.contains(part))
}

/// The broker rejects the client's certificate, or that there is none. With TLS 1.3 it does so when
/// the connection seems established, so the client reports a broken connection.
fn is_of_certificate(reason: &str) -> bool {
    reason.contains(" alert ")
        && ["certificate", "unknown ca", "access denied", "handshake failure"].iter().any(|part| reason.contains(part))
}

/// The client's reason, with an explanation where the reason names only the client's own properties
/// or says very little.
fn explained(reason: &str) -> String {
    let meaning = if reason.contains("certificate verify failed") {
        "the broker's certificate is not signed by a trusted authority (`Tls::ca_file`), is not valid for the host name, or \
         has expired"
    } else if reason.contains("invalid_token") {
        "the broker rejects the token: it has expired, or is meant for another broker"
    } else if reason.contains("not valid in current SASL state") {
        "this listener does not use SASL"
    } else if is_of_certificate(reason) {
        "the broker requires a client certificate (`Tls::identity_files`), or rejects the one that it got"
    } else {
        return reason.to_owned();
    };
    format!("{meaning}: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_no_refusal() {
        for reason in [
            "sasl_ssl://localhost:1/1: SASL PLAIN mechanism handshake failed: Local: Broker transport failure: broker's \
             supported mechanisms: (n/a)",
            "sasl_ssl://localhost:1/1: SASL OAUTHBEARER mechanism handshake failed: Broker: Request not valid in current SASL \
             state: broker's supported mechanisms: ",
            "ssl://localhost:1/1: SSL handshake failed: error:0A000126:SSL routines::unexpected eof while reading",
            "Failed to acquire SASL OAUTHBEARER token: Must supply an unexpired token: now=1767225602000ms, exp=1767225601000ms",
        ] {
            assert!(is_transient(reason), "{reason}");
        }
        for reason in [
            "SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported mechanisms: X",
            "SASL authentication error: Authentication failed: Invalid username or password",
            "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed",
        ] {
            assert!(!is_transient(reason), "{reason}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_taken_is_a_refusal() {
        assert!(is_of_certificate("Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate"));
        assert!(!is_of_certificate("Receive failed: error:0A000438:SSL routines::tlsv1 alert internal error"));
    }
}
