//! Tokens for OAUTHBEARER. All clients of a cluster share one token, which a callback of the user
//! returns. The callback may call a remote service, so it runs on its own thread, and a job waits
//! for it only at start. While a job runs, the clients ask for a new token when two thirds of the
//! current one's lifetime have passed. They keep the current one until there is a new one, even if
//! the callback fails: open connections need none. The run ends when the broker refuses an expired
//! token.

use std::error::Error as StdError;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millstream::connector::spawn;
use millstream::{Error, ErrorKind, Result};
use rdkafka::client::OAuthToken;

use crate::lock;
use crate::security::Secret;

/// A token that a callback of [`Sasl::oauth_bearer`](super::Sasl::oauth_bearer) returns.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use millstream_connectors::kafka::Token;
///
/// let token = Token::new("eyJhbGciOiJub25lIn0.e30.", SystemTime::now() + Duration::from_secs(300));
/// assert!(!format!("{token:?}").contains("eyJ"));
/// ```
#[derive(Clone, Debug)]
#[must_use = "a token has no effect until the callback returns it"]
pub struct Token {
    value: Secret,
    expires_at: SystemTime,
    principal: String,
}

impl Token {
    /// A token as it is sent to the broker, and when it expires.
    pub fn new(value: impl Into<Secret>, expires_at: SystemTime) -> Token {
        Token { value: value.into(), expires_at, principal: String::new() }
    }

    /// The principal that the token names. It appears only in what the client reports about a
    /// refusal.
    pub fn principal(mut self, name: impl Into<String>) -> Token {
        self.principal = name.into();
        self
    }

    /// Checks whether the client would accept the token, because the client's own complaint would
    /// repeat it.
    fn check(&self, now: SystemTime) -> Result<(), Failure> {
        let is_sendable = |byte: u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n');
        if !self.value.expose().bytes().all(is_sendable) || self.value.expose().is_empty() {
            return Err(Failure::refused(
                "the callback returned a token that is empty or has characters that are not visible",
            ));
        }
        if self.principal.contains('\0') {
            return Err(Failure::refused("the callback returned a principal with a zero byte"));
        }
        match now.duration_since(self.expires_at) {
            Ok(since) => Err(Failure::refused(format!("the callback returned a token that expired {since:.0?} ago"))),
            Err(_) => Ok(()),
        }
    }

    fn for_client(&self, told_until: SystemTime) -> OAuthToken {
        let lifetime = told_until.duration_since(UNIX_EPOCH).unwrap_or_default();
        OAuthToken {
            token: self.value.expose().to_owned(),
            principal_name: self.principal.clone(),
            lifetime_ms: i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX / 1000),
        }
    }
}

/// Why there is no new token.
#[derive(Clone, Debug)]
struct Failure {
    kind: ErrorKind,
    reason: String,
}

impl Failure {
    fn refused(reason: impl Into<String>) -> Failure {
        Failure { kind: ErrorKind::Refused, reason: reason.into() }
    }

    fn error(self) -> Error {
        Error::new(self.kind, "cannot get a token from the callback of `Sasl::oauth_bearer`").caused_by(self.reason)
    }
}

type Callback = dyn Fn() -> Result<Token, Box<dyn StdError + Send + Sync>> + Send + Sync;

/// The current token of all clients of a cluster, and the callback that returns new ones.
pub(crate) struct Tokens {
    callback: Box<Callback>,
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Default)]
struct State {
    newest: Option<Given>,
    /// Why the last call returned no token, if it did not.
    failure: Option<Failure>,
    is_asking: bool,
    asked: Option<Instant>,
}

/// A token and when it was received.
#[derive(Clone)]
struct Given {
    token: Token,
    at: SystemTime,
}

impl Given {
    /// When a new one is requested.
    fn stale_at(&self) -> SystemTime {
        let life = self.token.expires_at.duration_since(self.at).unwrap_or_default();
        self.at + life * 2 / 3
    }

    fn is_expired(&self, now: SystemTime) -> bool {
        self.token.expires_at <= now
    }
}

/// The shortest time between two calls of the callback.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest time until a callback that returned no new token is called again, however long the
/// current token is still valid.
const AGAIN_AT_LAST: Duration = Duration::from_secs(10);
/// How long a client waits for a new token before it continues with the current one.
const WAIT_RUNNING: Duration = Duration::from_millis(50);
/// The client asks for a new token after this fraction of the lifetime that it was told.
const CLIENT_ASKS_AT: f64 = 0.8;

impl Tokens {
    pub(crate) fn new<E>(callback: impl Fn() -> Result<Token, E> + Send + Sync + 'static) -> Arc<Tokens>
    where
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        let callback = Box::new(move || callback().map_err(Into::into));
        Arc::new(Tokens { callback, state: Mutex::default(), answered: Condvar::new() })
    }

    /// Waits until there is a token that has not expired.
    pub(crate) fn await_first(self: &Arc<Self>, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let is_valid = |state: &State| state.newest.as_ref().is_some_and(|given| !given.is_expired(SystemTime::now()));
        let mut state = lock(&self.state);
        if is_valid(&state) {
            return Ok(());
        }
        if !state.is_asking {
            self.ask(&mut state);
        }
        while state.is_asking {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = format!("the callback did not return within {within:?}");
                return Err(Failure { kind: ErrorKind::Unreachable, reason }.error());
            }
            state = self.answered.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        match state.failure.clone() {
            Some(failure) if !is_valid(&state) => Err(failure.error()),
            _ => Ok(()),
        }
    }

    /// The token for a client that asks for one. Returns soon, because the client waits.
    pub(crate) fn newest(self: &Arc<Self>) -> Option<OAuthToken> {
        let mut state = lock(&self.state);
        let is_stale = |state: &State| state.newest.as_ref().is_none_or(|given| given.stale_at() <= SystemTime::now());
        if is_stale(&state) {
            if !state.is_asking && state.asked.is_none_or(|asked| asked.elapsed() >= AGAIN_AFTER) {
                self.ask(&mut state);
            }
            let waited = self.answered.wait_timeout_while(state, WAIT_RUNNING, |state| state.is_asking);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let given = state.newest.as_ref()?;
        let now = SystemTime::now();
        let told = match given.stale_at().duration_since(now) {
            Ok(left) => left.div_f64(CLIENT_ASKS_AT).max(AGAIN_AFTER),
            // The client checks once a second whether it is time to ask. A longer time is safer
            // where the lifetime allows it: the time must not be over when the client receives it,
            // and this process may have to wait for a CPU until then.
            Err(_) => {
                let left = given.token.expires_at.duration_since(now).unwrap_or_default();
                (left / 2).clamp(AGAIN_AFTER, AGAIN_AT_LAST)
            }
        };
        Some(given.token.for_client(now + told))
    }

    /// The error that explains why the current token has expired, if it has.
    pub(crate) fn lapsed(&self) -> Option<Error> {
        let state = lock(&self.state);
        let since = SystemTime::now().duration_since(state.newest.as_ref()?.token.expires_at).ok()?;
        let doing = format!("the token expired {since:.1?} ago, and there is no new one");
        let (kind, reason) = match state.failure.clone() {
            Some(failure) => (failure.kind, failure.reason),
            None => (ErrorKind::Unreachable, "the callback of `Sasl::oauth_bearer` does not return".to_owned()),
        };
        Some(Error::new(kind, doing).caused_by(reason))
    }

    /// Redacts the token in a text.
    pub(crate) fn hide_in(&self, text: &str) -> String {
        lock(&self.state).newest.as_ref().map_or_else(|| text.to_owned(), |given| given.token.value.hide_in(text))
    }

    fn ask(self: &Arc<Self>, state: &mut State) {
        state.is_asking = true;
        state.asked = Some(Instant::now());
        let tokens = Arc::clone(self);
        if let Err(error) = spawn("token", move || tokens.call()) {
            state.is_asking = false;
            let reason = format!("{error:#}");
            state.failure = Some(Failure { kind: ErrorKind::Unreachable, reason });
        }
    }

    /// The body of the callback's thread.
    fn call(&self) {
        let answer = match catch_unwind(AssertUnwindSafe(|| (self.callback)())) {
            Ok(Ok(token)) => token.check(SystemTime::now()).map(|()| token),
            Ok(Err(cause)) => Err(Failure { kind: ErrorKind::Unreachable, reason: chain(&*cause) }),
            // The panic message may contain anything, so only the panic hook prints it.
            Err(_) => Err(Failure { kind: ErrorKind::Panic, reason: "the callback panicked".to_owned() }),
        };
        let failure = answer.as_ref().err().map(|failure| failure.reason.clone());
        let mut state = lock(&self.state);
        state.is_asking = false;
        match answer {
            Ok(token) => {
                state.newest = Some(Given { token, at: SystemTime::now() });
                state.failure = None;
            }
            Err(failure) => state.failure = Some(failure),
        }
        let expires_at = state.newest.as_ref().map(|given| given.token.expires_at);
        drop(state);
        self.answered.notify_all();
        // Logged without the lock: clients must not wait for a slow log.
        if let Some(reason) = failure {
            let expires_in = expires_at.and_then(|at| at.duration_since(SystemTime::now()).ok());
            tracing::warn!(reason, ?expires_in, "no new token for Kafka, retrying");
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tokens from a callback")
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
