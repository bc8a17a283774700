//! The library's only error type: opaque, with a [kind](Error::kind), what was being done, and its
//! cause.

use std::error::Error as StdError;
use std::fmt;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a job could not start, or why it ended.
///
/// The message says what was being done and to what; the cause is in the chain
/// ([`source`](StdError::source)) and is not repeated in the message. `{:#}` prints the whole chain
/// in one line.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    doing: String,
    /// Whether `doing` names the operator in which it happened.
    names_operator: bool,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The category of an error. It decides whether a restart can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option has an invalid value, or a property was set that the engine sets itself.
    Config,
    /// The pipeline itself is wrong: it is empty, has a branch without a sink, or is not the same
    /// on each worker.
    Pipeline,
    /// The other side could not be reached in time.
    Unreachable,
    /// The operating system refused something that every job needs, such as a thread.
    System,
    /// A topic, partition or file does not exist.
    NotFound,
    /// The other side refused: access is not authorised, the group belongs to another member, a
    /// secret is wrong.
    Refused,
    /// Records were lost before they could be read.
    DataLoss,
    /// A record could not be decoded, encoded or accepted, and the policy was to stop.
    Malformed,
    /// A user's function panicked.
    Panic,
    /// A source failed while running.
    Source,
    /// A sink failed while running.
    Sink,
    /// State does not fit the pipeline, or has outgrown its memory.
    State,
    /// Checkpoints cannot be read or written, or are those of another job.
    Checkpoint,
    /// A worker did not return from a step.
    Stuck,
    /// The job was aborted, or a deadline passed before it was drained.
    Aborted,
}

impl ErrorKind {
    /// Whether the same job may succeed when it runs again.
    pub fn is_transient(self) -> bool {
        match self {
            ErrorKind::Unreachable
            | ErrorKind::System
            | ErrorKind::Panic
            | ErrorKind::Source
            | ErrorKind::Sink
            | ErrorKind::Stuck => true,
            ErrorKind::Config
            | ErrorKind::Pipeline
            | ErrorKind::NotFound
            | ErrorKind::Refused
            | ErrorKind::DataLoss
            | ErrorKind::Malformed
            | ErrorKind::State
            | ErrorKind::Checkpoint
            | ErrorKind::Aborted => false,
        }
    }
}

impl Error {
    /// An error of this kind; `doing` says what was being done and to what, in lower case.
    pub fn new(kind: ErrorKind, doing: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, doing: doing.into(), names_operator: false, source: None }))
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// Adds the name of the operator in which it happened, unless the error already names one.
    pub(crate) fn within(mut self, name: &str) -> Error {
        if !self.0.names_operator {
            self.0.doing = format!("operator `{name}`: {}", self.0.doing);
            self.0.names_operator = true;
        }
        self
    }

    /// The category of this error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.doing)?;
        if f.alternate() {
            let mut cause = self.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}

/// `main() -> Result<()>` prints this, so it is the whole chain.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:#} ({:?})", self.0.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<super::Malformed> for Error {
    /// The error of a run that stops at a malformed record.
    fn from(record: super::Malformed) -> Error {
        Error::new(ErrorKind::Malformed, record.to_string())
    }
}
