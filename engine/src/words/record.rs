//! What belongs to a value: where it was read, its key and its headers; and the record that could
//! not be processed.

use std::error::Error as StdError;
use std::fmt;
use std::iter::Map;
use std::time::Duration;
use std::{slice, vec};

use serde::{Deserialize, Serialize};

use super::{Error, ErrorKind, Offset, Partition};

/// A change of a table: a row that is not true any more, or one that is true now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Change<T> {
    /// The row was true until now.
    Delete(T),
    /// The row is true now.
    Insert(T),
}

/// Where a record was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Origin {
    /// The partition, with its topic or path.
    pub partition: Partition,
    /// The record's own offset in that partition.
    pub offset: Offset,
}

impl Origin {
    /// The origin of the record at this offset of a partition.
    pub fn new(partition: Partition, offset: Offset) -> Origin {
        Origin { partition, offset }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.partition, self.offset)
    }
}

/// A header as it is kept, and as it is read.
type Header = (String, Option<Vec<u8>>);
type HeaderRef<'h> = (&'h str, Option<&'h [u8]>);

/// The headers of a record, in order. Names may repeat, and a value may be absent, as in Kafka.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Headers(Vec<Header>);

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
        self.into_iter()
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

impl Extend<Header> for Headers {
    fn extend<I: IntoIterator<Item = Header>>(&mut self, headers: I) {
        self.0.extend(headers);
    }
}

impl FromIterator<Header> for Headers {
    fn from_iter<I: IntoIterator<Item = Header>>(headers: I) -> Headers {
        Headers(headers.into_iter().collect())
    }
}

impl IntoIterator for Headers {
    type Item = Header;
    type IntoIter = vec::IntoIter<Header>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'h> IntoIterator for &'h Headers {
    type Item = HeaderRef<'h>;
    type IntoIter = Map<slice::Iter<'h, Header>, fn(&'h Header) -> HeaderRef<'h>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(name, value)| (name, value.as_deref()))
    }
}

/// A value with its key; what [`Stream::sink_by`](crate::Stream::sink_by) hands to a sink.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
///
/// ```
/// let mut record = millstream::Malformed::new("the temperature is missing");
/// record.key = Some(b"sensor-7".to_vec());
/// assert_eq!(record.to_string(), "malformed record: the temperature is missing");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
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

impl Malformed {
    /// A record that could not be processed for this reason. Nothing else is known of it; set the
    /// fields that are.
    pub fn new(cause: impl Into<String>) -> Malformed {
        Malformed { origin: None, key: None, bytes: None, headers: Headers::new(), cause: cause.into() }
    }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
