//! Dead letters: records that nobody could take, with all that is needed to look at them and to send them back. The value,
//! key and headers are the original ones; where, why and when stand in headers of our own beside them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use millstream::{Headers, Malformed, OpenSink, Origin, Result, Sink, Wake, Worker};

use rdkafka::message::{BorrowedMessage, Message as _};

use crate::format::{Cause, Payload};

use super::message::{Message, headers_of};
use super::sink::{KafkaOutlet, KafkaWriter, Outgoing, Write};
use super::topic::Topic;

/// Headers of ours begin with this.
const OURS: &str = "millstream.";
const TOPIC: &str = "millstream.topic";
const PATH: &str = "millstream.path";
const PARTITION: &str = "millstream.partition";
const OFFSET: &str = "millstream.offset";
const REFUSED_BY: &str = "millstream.refused-by";
const CAUSE: &str = "millstream.cause";
const TIME: &str = "millstream.time";
const STRIPPED: &str = "millstream.stripped";

const TOO_LARGE: &str = "key, value and headers are too large for a dead letter";
/// Why there is no value of a record that has none in bytes.
pub(super) const NOT_ENCODED: &str = "the record could not be encoded";

/// A sink of [`Malformed`] records; see [`Kafka::dead_letters`](super::Kafka::dead_letters).
#[derive(Clone, Debug)]
pub struct DeadLetters(pub(super) Topic);

impl Sink<Malformed> for DeadLetters {
    type Shared = KafkaOutlet<Letters>;
    type Writer = KafkaWriter<Letters>;

    fn name(&self) -> String {
        format!("kafka dead letters {}", self.0.names.join(" "))
    }

    fn connect(self, open: OpenSink) -> Result<Self::Shared> {
        KafkaOutlet::connect::<Malformed>(&self.0, Letters, &open)
    }

    fn writer(shared: &Arc<Self::Shared>, _: Worker, wake: Wake) -> Result<Self::Writer> {
        Ok(KafkaWriter::new(shared, &wake))
    }
}

/// Writes malformed records as they were.
#[derive(Clone, Debug)]
pub struct Letters;

impl Write<Malformed> for Letters {
    fn encode(&self, malformed: &Malformed, buffer: &mut Vec<u8>) -> Result<Payload, Cause> {
        let Some(bytes) = &malformed.bytes else { return Ok(Payload::Tombstone) };
        buffer.extend_from_slice(bytes);
        Ok(Payload::Present)
    }

    fn beside<'v>(&self, malformed: &'v Malformed) -> Outgoing<'v> {
        let letter = Letter {
            headers: malformed.headers.clone(),
            origin: malformed.origin.as_ref().and_then(place),
            path: malformed.origin.as_ref().filter(|origin| place(origin).is_none()).map(path),
            cause: malformed.cause.clone(),
            ..Letter::default()
        };
        Outgoing {
            key: malformed.key.as_deref(),
            headers: Some(Cow::Owned(letter.all_headers())),
            ..Outgoing::default()
        }
    }

    fn place(&self, malformed: &Malformed) -> Option<Place> {
        malformed.origin.as_ref().and_then(place)
    }
}

/// Topic, partition and offset.
pub(super) type Place = (String, i32, i64);

fn place(origin: &Origin) -> Option<Place> {
    // Of a file the origin is its path, and no topic has a slash in its name.
    let (topic, partition) = origin.partition.name().rsplit_once('/').filter(|(topic, _)| !topic.contains('/'))?;
    Some((topic.to_owned(), partition.parse().ok()?, i64::try_from(origin.offset.0).ok()?))
}

fn path(origin: &Origin) -> (String, u64) {
    (origin.partition.name().to_owned(), origin.offset.0)
}

/// A record on its way to the dead letters of a sink.
#[derive(Debug, Default)]
pub(super) struct Letter {
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Headers,
    pub(super) origin: Option<Place>,
    /// Where it was read when that was no topic, and its offset there.
    pub(super) path: Option<(String, u64)>,
    /// The topic that it was meant for.
    pub(super) refused_by: Option<String>,
    pub(super) cause: String,
    /// Why it has no value, when it should have one.
    pub(super) stripped: Option<&'static str>,
}

impl Letter {
    /// Of a message that was refused; when that was a letter already, what it said is said again.
    pub(super) fn of(message: &BorrowedMessage<'_>) -> Letter {
        // A sink writes names that are text.
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

    /// Whether there is nothing left that could be too large.
    pub(super) fn is_stripped(&self) -> bool {
        self.stripped == Some(TOO_LARGE)
    }

    /// Without what may be too large; where it was read and why it was refused stay.
    pub(super) fn strip(&mut self) {
        (self.key, self.value, self.headers, self.stripped) = (None, None, Headers::new(), Some(TOO_LARGE));
    }

    /// The original headers, and ours behind them.
    pub(super) fn all_headers(&self) -> Headers {
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

/// What the headers of a dead letter say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Topic, partition and offset where it was read, when it was read from a topic.
    pub origin: Option<(String, i32, i64)>,
    /// Path and offset where it was read, when it was read from a file.
    pub path: Option<(String, u64)>,
    /// The topic that it was meant for, when a sink refused it.
    pub refused_by: Option<String>,
    /// Why nobody could take it.
    pub cause: String,
    /// When, in milliseconds since 1970.
    pub time: i64,
    /// Whether the value is missing: it could not be encoded, or was too large for a dead letter too, as key and headers
    /// were then.
    pub is_stripped: bool,
}

impl DeadLetter {
    fn read(headers: &Headers) -> Option<DeadLetter> {
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

impl<T> Message<T> {
    /// What a dead letter's headers say; `None` for a message that is none.
    pub fn dead_letter(&self) -> Option<DeadLetter> {
        DeadLetter::read(&self.headers)
    }

    /// The message that became this dead letter, on its way back: to the topic that it was meant for when a sink refused it,
    /// else to the one where it was read, with its own headers only. `None` when it is no dead letter, or when its value is
    /// missing.
    #[must_use]
    pub fn revived(mut self) -> Option<Message<T>> {
        let letter = self.dead_letter().filter(|letter| !letter.is_stripped)?;
        let topic = letter.refused_by.or(letter.origin.map(|(topic, ..)| topic))?;
        let mut headers = Headers::new();
        for (name, value) in self.headers.iter().filter(|(name, _)| !name.starts_with(OURS)) {
            headers.push(name, value.map(<[u8]>::to_vec));
        }
        self.headers = headers;
        Some(self.topic(topic))
    }
}

#[cfg(test)]
mod tests {
    use millstream::{Offset, Partition};

    use super::*;

    #[test]
    fn a_letter_from_a_file_says_where() {
        let origin = Origin { partition: Partition::new("/in/orders.csv"), offset: Offset(42) };
        let malformed = Malformed {
            origin: Some(origin),
            key: None,
            bytes: None,
            headers: Headers::new(),
            cause: "bad".to_owned(),
        };
        let headers = Letters.beside(&malformed).headers.expect("they say why").into_owned();
        let told = Message { headers, ..Message::new(()) }.dead_letter().expect("it is one");
        assert_eq!((told.path, told.origin), (Some(("/in/orders.csv".to_owned(), 42)), None));
    }

    #[test]
    fn a_letter_comes_back_as_it_went() {
        let mut headers = Headers::new();
        headers.push("unit", Some(b"apples".to_vec()));
        headers.push("unit", None);
        let origin = Some(("orders".to_owned(), 3, 7));
        let letter = Letter { headers: headers.clone(), origin, cause: "bad".to_owned(), ..Letter::default() };
        let message = Message { headers: letter.all_headers(), ..Message::new(1).key("k") };
        let told = message.dead_letter().expect("it is one");
        assert_eq!((told.origin, told.cause.as_str()), (Some(("orders".to_owned(), 3, 7)), "bad"));
        let back = message.revived().expect("all of it is there");
        assert_eq!(
            (back.headers(), back.topic.as_deref(), back.key_bytes()),
            (&headers, Some("orders"), Some(&b"k"[..]))
        );
        assert_eq!(back.dead_letter(), None);
    }
}
