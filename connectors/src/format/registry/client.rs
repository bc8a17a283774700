//! Sends requests to a registry over HTTP. Retries while a failure may be temporary; otherwise
//! returns what the registry answered.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use millstream::{Error, ErrorKind, Result};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::{Agent, RequestBuilder};

#[cfg(not(feature = "tls"))]
use crate::security::NEEDS_TLS;
use crate::security::Tls;

/// The first and the longest pause between two attempts.
const AGAIN_FIRST: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// One attempt may take this fraction of a request's time limit: if one address hangs, another may
/// work.
const ATTEMPTS: u32 = 3;
const JSON: &str = "application/vnd.schemaregistry.v1+json";
/// Error codes with which a registry reports that it has no such schema, subject or version.
const UNKNOWN: RangeInclusive<u32> = 40_401..=40_499;
/// How many bytes of a response are read at most.
const ANSWER_MAX: u64 = 16 << 20;
/// How many characters of a response a message contains at most.
const TOLD_MAX: usize = 300;

/// The addresses of a registry and how to send requests to it.
#[derive(Clone)]
pub(super) struct Client {
    addresses: Vec<String>,
    pub(super) secret: Option<Secret>,
    pub(super) within: Duration,
    tls: Option<Tls>,
    /// Created for the first request, when the files that `tls` names are read.
    agent: Arc<OnceLock<Agent>>,
    /// The address for the next request, modulo the number of addresses. Relaxed, because any
    /// address will do.
    turn: Arc<AtomicUsize>,
}

/// A value of the header `Authorization`. It has no `Debug`, so that it cannot be printed.
#[derive(Clone)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn basic(user: &str, password: &str) -> Secret {
        Secret(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }

    pub(super) fn bearer(token: &str) -> Secret {
        Secret(format!("Bearer {token}"))
    }
}

/// A registry's own answer that it cannot do what was requested.
#[derive(Debug)]
pub(super) struct Complaint {
    status: u16,
    code: u32,
    message: String,
}

impl Complaint {
    /// Whether there is no such schema, subject or version.
    pub(super) fn is_unknown(&self) -> bool {
        self.status == 404
    }

    pub(super) fn is_incompatible(&self) -> bool {
        self.status == 409
    }

    pub(super) fn is_invalid(&self) -> bool {
        self.status == 422
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (error {})", told(&self.message), self.code)
    }
}

impl std::error::Error for Complaint {}

/// Why a request failed.
enum Failure {
    /// Temporary; the request is retried.
    Passing(String),
    Final(ErrorKind, String),
}

impl Client {
    pub(super) fn new(addresses: &str) -> Client {
        let addresses = addresses.split(',').map(|address| address.trim().trim_end_matches('/').to_owned());
        Client {
            addresses: addresses.filter(|address| !address.is_empty()).collect(),
            secret: None,
            within: Duration::from_secs(10),
            tls: None,
            agent: Arc::default(),
            turn: Arc::default(),
        }
    }

    pub(super) fn tls_is(&mut self, tls: Tls) {
        (self.tls, self.agent) = (Some(tls), Arc::default());
    }

    /// Checks the options.
    fn check(&self) -> Result<()> {
        let wrong = |doing: String| Err(Error::new(ErrorKind::Config, doing));
        if self.within.is_zero() {
            return wrong("the schema registry's `within` must be greater than zero".to_owned());
        }
        if self.addresses.is_empty() {
            return wrong("the schema registry needs an address, such as `http://localhost:8081`".to_owned());
        }
        for address in &self.addresses {
            // The address is not printed, because it may contain a secret.
            let Some((scheme, rest)) = address.split_once("://") else {
                return wrong(
                    "an address of the schema registry does not begin with `http://` or `https://`".to_owned(),
                );
            };
            if rest.contains('@') {
                return wrong("an address of the schema registry contains a user: use `basic_auth` instead".to_owned());
            }
            match scheme {
                "http" => {}
                #[cfg(feature = "tls")]
                "https" => {}
                #[cfg(not(feature = "tls"))]
                "https" => return wrong(format!("the schema registry at {address} {NEEDS_TLS}")),
                _ => return wrong(format!("the schema registry at {address} can only be reached by http or https")),
            }
            if ureq::http::Uri::try_from(address).is_err() {
                return wrong(format!("`{address}` is not a valid address of a schema registry"));
            }
        }
        Ok(())
    }

    fn agent(&self) -> Result<&Agent> {
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let config = Agent::config_builder();
        #[cfg(feature = "tls")]
        let config = config.tls_config(super::tls::config(&self.tls.clone().unwrap_or_default())?);
        #[cfg(not(feature = "tls"))]
        if self.tls.is_some() {
            return Err(Error::new(ErrorKind::Config, format!("`Registry::tls` {NEEDS_TLS}")));
        }
        let config = config.http_status_as_error(false).max_redirects(0).max_redirects_will_error(false);
        let config = config.proxy(None).user_agent("millstream").build();
        Ok(self.agent.get_or_init(|| config.into()))
    }

    /// Sends a GET request. Returns the answer, or the registry's own complaint.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str, doing: &str) -> Result<Result<T, Complaint>> {
        self.ask(path, None, doing)
    }

    /// As `get`, but sends a POST request with a body.
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
        doing: &str,
    ) -> Result<Result<T, Complaint>> {
        self.ask(path, Some(&body.to_string()), doing)
    }

    /// Sends the next request to another address, if there is one.
    pub(super) fn turn(&self) {
        self.turn.fetch_add(1, Relaxed);
    }

    fn ask<T: DeserializeOwned>(&self, path: &str, body: Option<&str>, doing: &str) -> Result<Result<T, Complaint>> {
        self.check()?;
        let agent = self.agent()?;
        let (asked, mut pause) = (Instant::now(), AGAIN_FIRST);
        loop {
            let left = self.within.saturating_sub(asked.elapsed());
            let turn = self.turn.load(Relaxed) % self.addresses.len();
            let cannot = |kind, why: String| {
                let limit =
                    if kind == ErrorKind::Unreachable { format!(" within {:?}", self.within) } else { String::new() };
                Err(Error::new(kind, format!("cannot {doing} at the schema registry {self}{limit}")).caused_by(why))
            };
            let why = match self.attempt(agent, &self.addresses[turn], path, body, left.min(self.within / ATTEMPTS)) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(kind, why)) => return cannot(kind, why),
                Err(Failure::Passing(why)) => why,
            };
            self.turn.store(turn + 1, Relaxed);
            let left = self.within.saturating_sub(asked.elapsed());
            if left <= pause {
                return cannot(ErrorKind::Unreachable, why);
            }
            tracing::warn!(registry = %self, %why, ?pause, "cannot {doing}, retrying");
            thread::sleep(pause);
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    fn attempt<T: DeserializeOwned>(
        &self,
        agent: &Agent,
        address: &str,
        path: &str,
        body: Option<&str>,
        limit: Duration,
    ) -> Result<Result<T, Complaint>, Failure> {
        let url = format!("{address}{path}");
        let failure = |cause| match cause {
            // The cause is left out, because it may contain the secret.
            ureq::Error::Http(_) | ureq::Error::BadUri(_) => {
                Failure::Final(ErrorKind::Config, "the address or secret cannot be used in a request".to_owned())
            }
            // One side does not trust the other's certificate; a retry would not change that.
            cause if cause.to_string().to_lowercase().contains("certificate") => {
                Failure::Final(ErrorKind::Refused, format!("{address}: {cause}"))
            }
            cause => Failure::Passing(format!("{address}: {cause}")),
        };
        let answer = match body {
            None => self.dressed(agent.get(url), limit).call(),
            Some(body) => self.dressed(agent.post(url), limit).content_type(JSON).send(body),
        };
        let mut answer = answer.map_err(failure)?;
        let status = answer.status().as_u16();
        let text =
            answer.body_mut().with_config().limit(ANSWER_MAX).lossy_utf8(true).read_to_string().map_err(failure)?;
        understand(status, &text).map_err(|failure| failure.at(address))
    }

    /// Adds what every request has.
    fn dressed<B>(&self, request: RequestBuilder<B>, limit: Duration) -> RequestBuilder<B> {
        let request = request.config().timeout_global(Some(limit)).build().header("Accept", JSON);
        match &self.secret {
            Some(Secret(secret)) => request.header("Authorization", secret),
            None => request,
        }
    }
}

/// Interprets a response.
fn understand<T: DeserializeOwned>(status: u16, text: &str) -> Result<Result<T, Complaint>, Failure> {
    #[derive(Deserialize)]
    struct Said {
        error_code: u32,
        #[serde(default)]
        message: String,
    }
    let said = serde_json::from_str::<Said>(text);
    let why = || format!("it answered {status}: {}", told(said.as_ref().map_or(text, |said| said.message.as_str())));
    match (status, &said) {
        (200..=299, _) => match serde_json::from_str(text) {
            Ok(answer) => Ok(Ok(answer)),
            // A proxy in front of the registry may report success when the registry did not.
            Err(_) => Err(Failure::Passing(format!("unexpected response, not a schema registry's: {}", told(text)))),
        },
        (401 | 403, _) => Err(Failure::Final(ErrorKind::Refused, why())),
        (408 | 429 | 500..=599, _) => Err(Failure::Passing(why())),
        // A 404 without a registry's own error code comes from a proxy or a wrong path, and says
        // nothing about which schemas exist.
        (404, Err(_)) => Err(Failure::Passing(why())),
        (404, Ok(said)) if !UNKNOWN.contains(&said.error_code) => Err(Failure::Passing(why())),
        (_, Ok(said)) => Ok(Err(Complaint { status, code: said.error_code, message: said.message.clone() })),
        (_, Err(_)) => Err(Failure::Final(ErrorKind::Refused, why())),
    }
}

impl Failure {
    fn at(self, address: &str) -> Failure {
        match self {
            Failure::Passing(why) => Failure::Passing(format!("{address}: {why}")),
            Failure::Final(kind, why) => Failure::Final(kind, format!("{address}: {why}")),
        }
    }
}

/// The beginning of a message.
fn told(text: &str) -> String {
    let text = text.trim();
    text.char_indices().nth(TOLD_MAX).map_or_else(|| text.to_owned(), |(end, _)| format!("{}...", &text[..end]))
}

/// Escapes a name for use in a path.
pub(super) fn escaped(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // An address with a user may contain a password, so it is not shown.
        let shown = self.addresses.iter().map(|address| if address.contains('@') { "[not shown]" } else { address });
        f.write_str(&shown.collect::<Vec<_>>().join(", "))
    }
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use super::*;

    #[test]
    fn https_wants_a_feature() {
        let error = Client::new("https://localhost").check().expect_err("the feature is off");
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains("feature `tls`"), "{error}");
    }
}
