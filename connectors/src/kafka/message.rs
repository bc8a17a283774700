//! A value with its Kafka metadata.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::dead::Place;
use millstream::Headers;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use serde::{Deserialize, Serialize};

/// The headers of a client's message, and how many others cannot be read.
pub(super) fn headers_of(message: &BorrowedMessage<'_>) -> (Headers, usize) {
    let (mut headers, mut unreadable) = (Headers::new(), 0);
    let Some(borrowed) = message.headers() else { return (headers, 0) };
    for index in 0..borrowed.count() {
        // rdkafka 0.39 panics on a name that is not valid UTF-8, and has no other way to read a
        // header.
        match catch_unwind(AssertUnwindSafe(|| borrowed.get(index))) {
            Ok(header) => headers.push(header.key, header.value.map(<[u8]>::to_vec)),
            Err(_) => unreadable += 1,
        }
    }
    (headers, unreadable)
}

/// How many bytes a key and headers hold.
pub(super) fn held_beside(key: Option<&[u8]>, headers: &Headers) -> u64 {
    // The name and value themselves, without what they point to.
    const HEADER: usize = size_of::<(String, Option<Vec<u8>>)>();
    let headers = headers.iter().map(|(name, value)| HEADER + name.len() + value.map_or(0, <[u8]>::len));
    (key.map_or(0, <[u8]>::len) + headers.sum::<usize>()) as u64
}

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message<T> {
    pub(super) value: T,
    pub(super) key: Option<Vec<u8>>,
    pub(super) headers: Headers,
    pub(super) origin: Option<KafkaOrigin>,
    pub(super) topic: Option<Arc<str>>,
    pub(super) partition: Option<i32>,
    pub(super) timestamp: Option<i64>,
}

/// Where a source has read a message, and when the message was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    pub(super) fn place(&self) -> Place {
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

    /// Where it was read; `None` if it was not read by a source.
    pub fn origin(&self) -> Option<&KafkaOrigin> {
        self.origin.as_ref()
    }

    /// How many bytes key and headers hold.
    pub(super) fn held_beside(&self) -> u64 {
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
