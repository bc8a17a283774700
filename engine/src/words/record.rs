//! What belongs to a value: where it was read, its key and its headers; and the record that could
//! not be processed.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, ErrorKind, Offset, Partition};

/// Where a record was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The partition, with its topic or path.
    pub partition: Partition,
    /// The record's own offset in that partition.
    pub offset: Offset,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.partition, self.offset)
    }
}

/// The headers of a record, in order. Names may repeat, and a value may be absent, as in Kafka.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Headers(Vec<(String, Option<Vec<u8>>)>);

impl Headers {
    /// No headers.
    pub fn new() -> Headers {
        Headers::default()
    }

    /// Adds a header after the others.
    pub fn push(&mut self, name: impl Into<String>, value: Option<Vec<u8>>) {
        self.0.push((name.into(), value));
    }

    /// The value of the last header of that name: `None` when there is no such header, `Some(None)`
    /// when it has no value.
    pub fn last(&self, name: &str) -> Option<Option<&[u8]>> {
        self.0.iter().rev().find(|(own, _)| own == name).map(|(_, value)| value.as_deref())
    }

    /// All headers in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&[u8]>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
    }

    /// The number of headers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Extend<(String, Option<Vec<u8>>)> for Headers {
    fn extend<I: IntoIterator<Item = (String, Option<Vec<u8>>)>>(&mut self, headers: I) {
        self.0.extend(headers);
    }
}

impl FromIterator<(String, Option<Vec<u8>>)> for Headers {
    fn from_iter<I: IntoIterator<Item = (String, Option<Vec<u8>>)>>(headers: I) -> Headers {
        Headers(headers.into_iter().collect())
    }
}

impl IntoIterator for Headers {
    type Item = (String, Option<Vec<u8>>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A value with its key; what [`Stream::sink_by`](crate::Stream::sink_by) hands to a sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyed<T> {
    /// The key's bytes.
    pub key: Vec<u8>,
    /// The value.
    pub value: T,
}

/// A record that a source could not decode or a sink could not take, with everything needed to
/// replay it.
///
/// Malformed records are data: a source yields `Result<T, Malformed>` and the pipeline decides what
/// happens to them ([`or_stop`](crate::Stream::or_stop), [`or_skip`](crate::Stream::or_skip),
/// [`partition_results`](crate::Stream::partition_results)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Malformed {
    /// Where it was read; `None` for a record that the pipeline made.
    pub origin: Option<Origin>,
    /// Its key, unchanged.
    pub key: Option<Vec<u8>>,
    /// Its value, unchanged; `None` for a tombstone.
    pub bytes: Option<Vec<u8>>,
    /// Its headers, unchanged.
    pub headers: Headers,
    /// Why it could not be processed.
    pub cause: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "malformed record in {origin}: {}", self.cause),
            None => write!(f, "malformed record: {}", self.cause),
        }
    }
}

impl StdError for Malformed {}

/// A call was not answered in time. [`or_stop`](crate::Stream::or_stop) turns it into a transient
/// error, with which a restart can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TimedOut {
    /// The time limit of the call.
    pub limit: Duration,
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a call was not answered within {:?}", self.limit)
    }
}

impl StdError for TimedOut {}

impl From<TimedOut> for Error {
    fn from(late: TimedOut) -> Error {
        Error::new(ErrorKind::Unreachable, late.to_string())
    }
}
