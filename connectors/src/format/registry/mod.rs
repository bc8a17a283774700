//! A schema registry like Confluent's. The id before a payload says which schema it was written
//! with. A source looks up each id once; a sink registers its schema when the job starts.
//!
//! ```text
//! payload   0 │ id, 4 bytes big-endian │ Avro
//!           0 │ id, 4 bytes big-endian │ which message of the schema │ Protobuf
//! ```
//!
//! `client` sends requests and retries: a short outage of the registry makes no record malformed.
//! Answers are kept as long as any clone of the [`Registry`] lives. `references` follows the
//! references of a schema, `subject` is the sink's part, and `wire` and `path` are the headers of a
//! payload.

mod client;
#[cfg(feature = "protobuf")]
mod path;
#[cfg(feature = "avro")]
mod references;
mod subject;
#[cfg(feature = "tls")]
mod tls;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use millstream::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde::de::IgnoredAny;

use client::{Client, Secret};
#[cfg(feature = "protobuf")]
pub(super) use path::{Path, path_of, put_path};
pub(super) use subject::Subject;
pub(super) use wire::{put_header, split};

use crate::lock;
use crate::security::Tls;

use super::Cause;

/// A schema registry and how to reach it. Cheap to clone; all clones share the answers of the
/// registry.
///
/// Requests use HTTP, or HTTPS with the feature `tls`. No proxy is used, and no redirect is
/// followed. A failure that may be temporary (no response, 408, 429, 5xx, or a 404 that does not
/// come from a registry) is retried for [`within`](Registry::within). After that, the run ends with
/// [`ErrorKind::Unreachable`], which a restart may fix; no record becomes malformed because of it.
/// 401 and 403 end the run at once, with [`ErrorKind::Refused`].
///
/// ```
/// use millstream_connectors::Registry;
///
/// let registry = Registry::new("http://localhost:8081").basic_auth("reader", "a secret");
/// assert!(!format!("{registry:?}").contains("a secret"));
/// ```
#[derive(Clone)]
#[must_use = "a registry is not asked until a format uses it"]
pub struct Registry {
    client: Client,
    schemas: Arc<Mutex<Schemas>>,
}

/// The id of a schema in its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SchemaId(pub(super) u32);

impl fmt::Display for SchemaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The language a schema is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    #[cfg(feature = "avro")]
    Avro,
    #[cfg(feature = "protobuf")]
    Protobuf,
}

/// The name of Avro; also the language of a schema for which the registry names none.
const AVRO: &str = "AVRO";

impl Language {
    fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "avro")]
            Language::Avro => AVRO,
            #[cfg(feature = "protobuf")]
            Language::Protobuf => "PROTOBUF",
        }
    }
}

/// A schema as the registry returns it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Registered {
    #[serde(rename = "schema")]
    pub(super) text: String,
    #[serde(rename = "schemaType", default = "avro")]
    language: String,
    #[cfg(feature = "avro")]
    #[serde(default)]
    references: Vec<references::Reference>,
}

fn avro() -> String {
    AVRO.to_owned()
}

/// The answers of the registry.
#[derive(Default)]
struct Schemas {
    known: HashMap<SchemaId, Arc<Registered>>,
    /// Ids that the registry did not know, and when it said so.
    unknown: HashMap<SchemaId, Instant>,
    /// When a look-up last waited for an unknown id.
    waited: Option<Instant>,
}

/// How long an unknown id is not looked up again. A topic full of bad records must not flood the
/// registry with requests; but a follower of the registry may lag behind, so the id is not unknown
/// forever.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// How long a look-up waits for an unknown schema, and its first pause.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(1);
const FOLLOWS_FIRST: Duration = Duration::from_millis(100);
/// The maximum number of unknown ids to remember.
const UNKNOWN_MAX: usize = 10_000;

impl Registry {
    /// Creates a registry from its address, such as `http://localhost:8081`, or from several
    /// addresses separated by commas. If one does not answer, the next is tried.
    pub fn new(addresses: impl AsRef<str>) -> Registry {
        Registry { client: Client::new(addresses.as_ref()), schemas: Arc::default() }
    }

    /// Authenticates with a user name and password, which are never printed.
    pub fn basic_auth(self, user: impl AsRef<str>, password: impl AsRef<str>) -> Registry {
        self.with(|client| client.secret = Some(Secret::basic(user.as_ref(), password.as_ref())))
    }

    /// Authenticates with a bearer token, which is never printed.
    pub fn bearer(self, token: impl AsRef<str>) -> Registry {
        self.with(|client| client.secret = Some(Secret::bearer(token.as_ref())))
    }

    /// Which servers to trust over HTTPS, and this client's own certificate. Without it, the
    /// system's certificate authorities are trusted. A key with a password and
    /// [`Tls::any_host_name`] are for brokers only. Files are read when the job starts. Needs the
    /// feature `tls`.
    pub fn tls(self, tls: Tls) -> Registry {
        self.with(|client| client.tls_is(tls))
    }

    /// How long a request is retried before the run ends; 10 s by default. A worker does nothing
    /// else while it waits for the registry, so this must stay below
    /// [`Job::stuck_after`](millstream::Job::stuck_after).
    pub fn within(self, limit: Duration) -> Registry {
        self.with(|client| client.within = limit)
    }

    /// Changes the client. The known answers are not kept, because the registry may answer another
    /// client differently.
    fn with(mut self, change: impl FnOnce(&mut Client)) -> Registry {
        change(&mut self.client);
        Registry { client: self.client, schemas: Arc::default() }
    }

    /// Checks when the job starts that the registry can be reached and accepts the credentials.
    pub(super) fn open(&self) -> Result<()> {
        // The same kind of request as later. A registry can at most complain that it does not know
        // this schema, which is ignored.
        self.client.get::<IgnoredAny>("/schemas/ids/0", "look up schemas").map(drop)
    }

    /// Returns the schema of an id. If the registry does not know it, or it is in another language,
    /// the record is malformed.
    pub(super) fn schema(&self, id: SchemaId, language: Language) -> Result<Arc<Registered>, Cause> {
        let registered = self.registered(id)?;
        if registered.language != language.name() {
            return Err(format!("schema {id} is {}, not {}", registered.language, language.name()).into());
        }
        Ok(registered)
    }

    fn registered(&self, id: SchemaId) -> Result<Arc<Registered>, Cause> {
        let unknown = || format!("the schema registry at {} does not know schema {id}", self.client);
        {
            let schemas = lock(&self.schemas);
            if let Some(registered) = schemas.known.get(&id) {
                return Ok(Arc::clone(registered));
            }
            if schemas.unknown.get(&id).is_some_and(|since| since.elapsed() < UNKNOWN_FOR) {
                return Err(unknown().into());
            }
        }
        // The lock is not held during the request, so that other workers can read known schemas.
        let doing = format!("look up schema {id}");
        let answer = self.wait_for(&format!("/schemas/ids/{id}"), &doing)?;
        let mut schemas = lock(&self.schemas);
        match answer {
            Ok(registered) => {
                schemas.unknown.remove(&id);
                Ok(Arc::clone(schemas.known.entry(id).or_insert_with(|| Arc::new(registered))))
            }
            Err(complaint) if complaint.is_unknown() => {
                if schemas.unknown.len() >= UNKNOWN_MAX {
                    schemas.unknown.clear();
                }
                schemas.unknown.insert(id, Instant::now());
                Err(unknown().into())
            }
            Err(complaint) => Err(self.complained(&doing, complaint).into()),
        }
    }

    /// Looks up a schema, and waits for it if it is unknown: a follower of the registry learns of a
    /// schema a moment after the client that registered it. It waits only once in a while, because
    /// a topic full of bad records may name many ids that never exist.
    fn wait_for(&self, path: &str, doing: &str) -> Result<Result<Registered, client::Complaint>> {
        let begun = Instant::now();
        let mut pause = FOLLOWS_FIRST;
        loop {
            let answer = self.client.get::<Registered>(path, doing)?;
            let may_come = matches!(&answer, Err(complaint) if complaint.is_unknown());
            let mut schemas = lock(&self.schemas);
            let is_waited_for = schemas.waited.is_none_or(|waited| waited >= begun || waited.elapsed() >= UNKNOWN_FOR);
            if !may_come || !is_waited_for || begun.elapsed() + pause > FOLLOWS_WITHIN {
                return Ok(answer);
            }
            schemas.waited = Some(Instant::now());
            drop(schemas);
            self.client.turn();
            thread::sleep(pause);
            pause *= 2;
        }
    }

    /// The error for an answer that a retry would not change.
    fn complained(&self, doing: &str, complaint: client::Complaint) -> Error {
        Error::new(ErrorKind::Refused, format!("cannot {doing} at {}", self.client)).caused_by(complaint)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.client)
    }
}

/// What a format has made of the schema of each id, or why it could not; shared by its clones.
pub(super) struct Known<S>(Arc<RwLock<HashMap<SchemaId, Verdict<S>>>>);

type Verdict<S> = Result<Arc<S>, Arc<str>>;

impl<S> Known<S> {
    /// Returns what was made of the schema of an id; makes it now if the id is new. A failed
    /// look-up is not kept, because a later one may succeed. The result of `make` is kept, even if
    /// it is an error.
    pub(super) fn of<L>(
        &self,
        id: SchemaId,
        look_up: impl FnOnce() -> Result<L, Cause>,
        make: impl FnOnce(L) -> Result<S, Cause>,
    ) -> Result<Arc<S>, Cause> {
        let told = |verdict: &Verdict<S>| match verdict {
            Ok(made) => Ok(Arc::clone(made)),
            Err(cause) => Err(cause.to_string().into()),
        };
        if let Some(verdict) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return told(verdict);
        }
        let verdict = make(look_up()?).map(Arc::new).map_err(|cause| format!("schema {id}: {cause}").into());
        let told = told(&verdict);
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, verdict);
        told
    }
}

impl<S> Default for Known<S> {
    fn default() -> Known<S> {
        Known(Arc::default())
    }
}

impl<S> Clone for Known<S> {
    fn clone(&self) -> Known<S> {
        Known(Arc::clone(&self.0))
    }
}
