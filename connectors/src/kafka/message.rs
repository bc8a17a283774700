//! A value with its Kafka metadata.

use std::borrow::Cow;
use std::sync::Arc;

use millstream::Headers;
use serde::{Deserialize, Serialize};

use super::headers::held_beside;
use super::letter::{DeadLetter, OURS, Place};

/// A value with its key and headers, and where it was read. Where it was read never decides where
/// it is written: topic, partition and timestamp of an output are unset until you set them.
///
/// ```
/// use millstream_connectors::Message;
///
/// let message = Message::new(3).key("three").header("unit", "apples");
/// let doubled = message.map(|n| n * 2);
/// assert_eq!((*doubled.value(), doubled.key_bytes()), (6, Some(&b"three"[..])));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message<T> {
    pub(crate) value: T,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) headers: Headers,
    pub(crate) origin: Option<KafkaOrigin>,
    pub(crate) topic: Option<Arc<str>>,
    pub(crate) partition: Option<i32>,
    pub(crate) timestamp: Option<i64>,
}

/// Where a source has read a message, and when the message was written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KafkaOrigin {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: i32,
    /// The record's offset.
    pub offset: i64,
    /// Milliseconds since 1970, as set by the producer or the broker; `None` if the record has no
    /// timestamp.
    pub timestamp: Option<i64>,
}

impl KafkaOrigin {
    pub(crate) fn place(&self) -> Place {
        (self.topic.to_string(), self.partition, self.offset)
    }
}

impl<T> Message<T> {
    /// A message without key and headers.
    pub fn new(value: T) -> Message<T> {
        Message {
            value,
            key: None,
            headers: Headers::new(),
            origin: None,
            topic: None,
            partition: None,
            timestamp: None,
        }
    }

    /// Sets the key, which decides the partition unless [`partition`](Message::partition) is set.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Message<T> {
        self.key = Some(key.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Message<T> {
        self.headers.push(name, Some(value.into()));
        self
    }

    /// Sets the topic it is written to. Required if the sink has no topic of its own.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<Arc<str>>) -> Message<T> {
        self.topic = Some(topic.into());
        self
    }

    /// Sets the partition it is written to.
    #[must_use]
    pub fn partition(mut self, partition: i32) -> Message<T> {
        self.partition = Some(partition);
        self
    }

    /// Sets the timestamp it is written with, in milliseconds since 1970. The default is the time
    /// of writing. The sink refuses a record with a timestamp of 0 or less: the Kafka client would
    /// replace 0 with the time of writing.
    #[must_use]
    pub fn timestamp(mut self, milliseconds: i64) -> Message<T> {
        self.timestamp = Some(milliseconds);
        self
    }

    /// Sets where it was read, for tests of pipelines that look at [`origin`](Message::origin).
    ///
    /// ```
    /// use millstream_connectors::Message;
    ///
    /// let message = Message::new("an order").read_at("orders", 3, 7, None);
    /// assert_eq!(message.origin().map(|origin| origin.offset), Some(7));
    /// ```
    #[must_use]
    pub fn read_at(
        mut self,
        topic: impl Into<Arc<str>>,
        partition: i32,
        offset: i64,
        timestamp: Option<i64>,
    ) -> Message<T> {
        self.origin = Some(KafkaOrigin { topic: topic.into(), partition, offset, timestamp });
        self
    }

    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value, without the rest.
    pub fn into_value(self) -> T {
        self.value
    }

    /// The key.
    pub fn key_bytes(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    /// The headers.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// The topic it is written to, if it names one.
    pub fn topic_name(&self) -> Option<&str> {
        self.topic.as_deref()
    }

    /// The partition it is written to, if it names one.
    pub fn partition_number(&self) -> Option<i32> {
        self.partition
    }

    /// The timestamp it is written with, in milliseconds since 1970, if it names one.
    pub fn timestamp_millis(&self) -> Option<i64> {
        self.timestamp
    }

    /// Where it was read; `None` if it was not read by a source.
    pub fn origin(&self) -> Option<&KafkaOrigin> {
        self.origin.as_ref()
    }

    /// How many bytes key and headers hold.
    pub(crate) fn held_beside(&self) -> u64 {
        held_beside(self.key.as_deref(), &self.headers)
    }

    /// Replaces the value, and keeps key, headers and the rest.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Message<U> {
        Message {
            value: f(self.value),
            key: self.key,
            headers: self.headers,
            origin: self.origin,
            topic: self.topic,
            partition: self.partition,
            timestamp: self.timestamp,
        }
    }
}

impl<T> Message<T> {
    /// What the headers of a dead letter say; `None` for a message that is not a dead letter.
    pub fn dead_letter(&self) -> Option<DeadLetter> {
        DeadLetter::read(&self.headers)
    }

    /// The original message of this dead letter, with its own headers only. It goes to the topic it
    /// was meant for if a sink refused it, else to the topic where it was read. `None` if this is
    /// not a dead letter, if the value is missing, or if neither topic is known, as for a malformed
    /// record from a file.
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

/// What is sent beside a payload.
#[derive(Debug, Default)]
pub struct Outgoing<'v> {
    pub(crate) key: Option<&'v [u8]>,
    pub(crate) headers: Option<Cow<'v, Headers>>,
    pub(crate) topic: Option<&'v str>,
    pub(crate) partition: Option<i32>,
    pub(crate) timestamp: Option<i64>,
}

impl<'v> Outgoing<'v> {
    pub(crate) fn of<T>(message: &'v Message<T>) -> Outgoing<'v> {
        Outgoing {
            key: message.key.as_deref(),
            headers: Some(&message.headers).filter(|headers| !headers.is_empty()).map(Cow::Borrowed),
            topic: message.topic.as_deref(),
            partition: message.partition,
            timestamp: message.timestamp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::letter::Letter;
    use super::*;

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
