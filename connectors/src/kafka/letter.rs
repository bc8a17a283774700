//! Dead letters: records that could not be processed or written, with all that is needed to inspect
//! them and send them back. Value, key and headers are the original ones; further headers say where
//! the record was read, why it failed and when.

use std::time::{SystemTime, UNIX_EPOCH};

use millstream::{Headers, Malformed, Origin};
use rdkafka::message::{BorrowedMessage, Message as _};

use super::headers::headers_of;

/// The headers that a dead letter adds begin with this.
pub(crate) const OURS: &str = "millstream.";
const TOPIC: &str = "millstream.topic";
const PATH: &str = "millstream.path";
const PARTITION: &str = "millstream.partition";
const OFFSET: &str = "millstream.offset";
const REFUSED_BY: &str = "millstream.refused-by";
const CAUSE: &str = "millstream.cause";
const TIME: &str = "millstream.time";
const STRIPPED: &str = "millstream.stripped";

const TOO_LARGE: &str = "key, value and headers are too large for a dead letter";
/// Why there is no value, for a record that was never encoded.
pub(crate) const NOT_ENCODED: &str = "the record could not be encoded";

/// Topic, partition and offset.
pub(crate) type Place = (String, i32, i64);

pub(crate) fn place(origin: &Origin) -> Option<Place> {
    // The origin of a record from a file is the path, and a topic name has no slash.
    let (topic, partition) = origin.partition.name().rsplit_once('/').filter(|(topic, _)| !topic.contains('/'))?;
    Some((topic.to_owned(), partition.parse().ok()?, i64::try_from(origin.offset.0).ok()?))
}

fn path(origin: &Origin) -> (String, u64) {
    (origin.partition.name().to_owned(), origin.offset.0)
}

/// A record on its way to the dead letters of a sink.
#[derive(Debug, Default)]
pub(crate) struct Letter {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Headers,
    pub(crate) origin: Option<Place>,
    /// The file where it was read, if it was not read from a topic, and its offset there.
    pub(crate) path: Option<(String, u64)>,
    /// The topic it was meant for.
    pub(crate) refused_by: Option<String>,
    pub(crate) cause: String,
    /// Why the value is missing, if it is.
    pub(crate) stripped: Option<&'static str>,
}

impl Letter {
    /// The letter for a record that a source could not read.
    pub(crate) fn of_malformed(malformed: &Malformed) -> Letter {
        Letter {
            headers: malformed.headers.clone(),
            origin: malformed.origin.as_ref().and_then(place),
            path: malformed.origin.as_ref().filter(|origin| place(origin).is_none()).map(path),
            cause: malformed.cause.clone(),
            ..Letter::default()
        }
    }

    /// The letter for a refused message. If that was a letter already, its origin and cause are
    /// kept.
    pub(crate) fn of(message: &BorrowedMessage<'_>) -> Letter {
        // All names are readable: a sink writes only valid UTF-8.
        let (headers, _) = headers_of(message);
        let told = DeadLetter::read(&headers);
        Letter {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            origin: told.as_ref().and_then(|told| told.origin.clone()),
            path: told.as_ref().and_then(|told| told.path.clone()),
            refused_by: told.as_ref().and_then(|told| told.refused_by.clone()),
            cause: told.map_or_else(String::new, |told| told.cause),
            stripped: headers
                .last(STRIPPED)
                .map(|why| if why == Some(TOO_LARGE.as_bytes()) { TOO_LARGE } else { NOT_ENCODED }),
            headers,
        }
    }

    /// Whether all that could be too large is removed already.
    pub(crate) fn is_stripped(&self) -> bool {
        self.stripped == Some(TOO_LARGE)
    }

    /// Removes all that may be too large; where it was read and why it was refused stay.
    pub(crate) fn strip(&mut self) {
        (self.key, self.value, self.headers, self.stripped) = (None, None, Headers::new(), Some(TOO_LARGE));
    }

    /// The original headers, followed by those that a dead letter adds.
    pub(crate) fn all_headers(&self) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in self.headers.iter().filter(|(name, _)| !name.starts_with(OURS)) {
            headers.push(name, value.map(<[u8]>::to_vec));
        }
        let mut add = |name: &str, value: String| headers.push(name, Some(value.into_bytes()));
        if let Some((topic, partition, offset)) = &self.origin {
            add(TOPIC, topic.clone());
            add(PARTITION, partition.to_string());
            add(OFFSET, offset.to_string());
        }
        if let Some((path, offset)) = &self.path {
            add(PATH, path.clone());
            add(OFFSET, offset.to_string());
        }
        if let Some(topic) = &self.refused_by {
            add(REFUSED_BY, topic.clone());
        }
        add(CAUSE, self.cause.clone());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        add(TIME, now.as_millis().to_string());
        if let Some(why) = self.stripped {
            add(STRIPPED, why.to_owned());
        }
        headers
    }
}

/// What the headers of a dead letter say; see
/// [`Message::dead_letter`](super::Message::dead_letter).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Topic, partition and offset where it was read, if it was read from a topic.
    pub origin: Option<(String, i32, i64)>,
    /// Path and offset where it was read, if it was read from a file.
    pub path: Option<(String, u64)>,
    /// The topic it was meant for, if a sink refused it.
    pub refused_by: Option<String>,
    /// Why it could not be processed or written.
    pub cause: String,
    /// When the letter was made, in milliseconds since 1970.
    pub time: i64,
    /// Whether the value is missing: it could not be encoded, or it was too large for a dead letter
    /// too. In the second case key and headers are missing as well.
    pub is_stripped: bool,
}

impl DeadLetter {
    pub(crate) fn read(headers: &Headers) -> Option<DeadLetter> {
        let text = |name| Some(String::from_utf8_lossy(headers.last(name)??).into_owned());
        let origin = || Some((text(TOPIC)?, text(PARTITION)?.parse().ok()?, text(OFFSET)?.parse().ok()?));
        let path = || Some((text(PATH)?, text(OFFSET)?.parse().ok()?));
        Some(DeadLetter {
            origin: origin(),
            path: path(),
            refused_by: text(REFUSED_BY),
            cause: text(CAUSE)?,
            time: text(TIME)?.parse().ok()?,
            is_stripped: text(STRIPPED).is_some(),
        })
    }
}
