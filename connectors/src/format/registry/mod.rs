//! A schema registry as Confluent's: which schema a payload was written with, by the id that stands before it. A source
//! asks for each id once; a sink registers its schema when the job starts.
//!
//! ```text
//! payload   0 │ id, 4 bytes big-endian │ Avro
//!           0 │ id, 4 bytes big-endian │ which message of the schema │ Protobuf
//! ```
//!
//! `client` asks, patiently: a registry that is away for a moment makes nothing malformed. What it has answered is kept for
//! as long as any clone of the [`Registry`] lives. `references` follows a schema to those that it is built on, `subject` is a
//! sink's half, `wire` and `path` are what stands before a payload.

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

use crate::kafka::Tls;
use crate::lock;

use super::Cause;

/// A schema registry and how to reach it. Cheap to clone; all clones share what it has answered.
///
/// It is asked over HTTP, and over HTTPS with the feature `tls`. No proxy is used, and no
/// redirect followed. An answer that may pass (none, 408, 429, 5xx, or a 404 that is none of a registry's) is asked for
/// again, for [`within`](Registry::within); then the run ends with
/// [`ErrorKind::Unreachable`], which a restart may heal, and no record is called malformed for it. 401 and 403 end it at
/// once, with [`ErrorKind::Refused`].
///
/// ```
/// use millstream_connectors::Registry;
///
/// let registry = Registry::new("http://localhost:8081").basic_auth("reader", "a secret");
/// assert!(!format!("{registry:?}").contains("a secret"));
/// ```
#[derive(Clone)]
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

/// What language a schema is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Language {
    #[cfg(feature = "avro")]
    Avro,
    #[cfg(feature = "protobuf")]
    Protobuf,
}

/// The language of a schema for which the registry names none.
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

/// A schema as the registry tells it.
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

/// What the registry has answered.
#[derive(Default)]
struct Schemas {
    known: HashMap<SchemaId, Arc<Registered>>,
    /// Ids that it did not know, and since when.
    unknown: HashMap<SchemaId, Instant>,
    /// When an unknown one was last waited for.
    waited: Option<Instant>,
}

/// How long an id that the registry does not know is not asked for again: a poisoned topic must not become a flood of
/// questions, and a follower of the registry may lag behind.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// How long a schema that is unknown is waited for, and the first pause.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(1);
const FOLLOWS_FIRST: Duration = Duration::from_millis(100);
/// Unknown ids that are remembered at most.
const UNKNOWN_MOST: usize = 10_000;

impl Registry {
    /// A registry by its address, such as `http://localhost:8081`, or by several with commas between them, of which the
    /// next is asked when one does not answer.
    pub fn new(addresses: impl AsRef<str>) -> Registry {
        Registry { client: Client::new(addresses.as_ref()), schemas: Arc::default() }
    }

    /// Says who we are by name and password; never printed.
    #[must_use]
    pub fn basic_auth(self, user: impl AsRef<str>, password: impl AsRef<str>) -> Registry {
        self.with(|client| client.secret = Some(Secret::basic(user.as_ref(), password.as_ref())))
    }

    /// Says who we are by a token; never printed.
    #[must_use]
    pub fn bearer(self, token: impl AsRef<str>) -> Registry {
        self.with(|client| client.secret = Some(Secret::bearer(token.as_ref())))
    }

    /// Whom to trust over https, and who we are; without it, whom the system trusts. A key with a password and
    /// [`Tls::any_host_name`] are for brokers only. Files are read when the job starts. Needs the feature `tls`.
    #[must_use]
    pub fn tls(self, tls: Tls) -> Registry {
        self.with(|client| client.tls_is(tls))
    }

    /// How long one question is asked before the run ends; 10 s by default. A worker that asks does nothing else
    /// meanwhile, so this must stay below [`Job::stuck_after`](millstream::Job::stuck_after).
    #[must_use]
    pub fn within(self, limit: Duration) -> Registry {
        self.with(|client| client.within = limit)
    }

    /// Another way to ask: others than ours may get other answers.
    fn with(mut self, change: impl FnOnce(&mut Client)) -> Registry {
        change(&mut self.client);
        Registry { client: self.client, schemas: Arc::default() }
    }

    /// Whether it can be asked and lets us in; at start.
    pub(super) fn open(&self) -> Result<()> {
        // What will be asked of it later. That it does not know this schema is all that it can say.
        self.client.get::<IgnoredAny>("/schemas/ids/0", "look up schemas").map(drop)
    }

    /// The schema of an id. That the registry does not know it, or that it is in another language, is the record's fault.
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
        // Asked without the lock: others read what is known meanwhile.
        let doing = format!("look up schema {id}");
        let answer = self.wait_for(&format!("/schemas/ids/{id}"), &doing)?;
        let mut schemas = lock(&self.schemas);
        match answer {
            Ok(registered) => {
                schemas.unknown.remove(&id);
                Ok(Arc::clone(schemas.known.entry(id).or_insert_with(|| Arc::new(registered))))
            }
            Err(complaint) if complaint.is_unknown() => {
                if schemas.unknown.len() >= UNKNOWN_MOST {
                    schemas.unknown.clear();
                }
                schemas.unknown.insert(id, Instant::now());
                Err(unknown().into())
            }
            Err(complaint) => Err(self.complained(&doing, complaint).into()),
        }
    }

    /// A schema, waited for when it is not there yet: a follower of the registry learns of one a moment after its writer. But
    /// once in a while only, for a poisoned topic names many that never come.
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

    /// The error of an answer that asking again does not change.
    fn complained(&self, doing: &str, complaint: client::Complaint) -> Error {
        Error::new(ErrorKind::Refused, format!("cannot {doing} at {}", self.client)).caused_by(complaint)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.client)
    }
}

/// What a format has made of the schema of each id, good or not; shared by its clones.
pub(super) struct Known<S>(Arc<RwLock<HashMap<SchemaId, Verdict<S>>>>);

type Verdict<S> = Result<Arc<S>, Arc<str>>;

impl<S> Known<S> {
    /// What was made of the schema of an id, made now when it is new. That it could not be looked up is not kept: it may be
    /// another time. What was made of it is.
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
