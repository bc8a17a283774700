//! A sink whose messages each name their topic.

use std::time::Duration;

use crate::format::{Bytes, Csv, Json, Text};

use super::options::{Compression, OnRefused, Partitioner, Profile};
use super::records::{Raw, Records, WithMetadata};
use super::topic::Topic;

/// A sink for messages that each name their topic. Choose a format.
#[derive(Clone, Debug)]
#[must_use = "a topic does nothing until it has a format and a pipeline uses it"]
pub struct Messages {
    topic: Topic,
}

impl Messages {
    pub(crate) fn new(topic: Topic) -> Messages {
        Messages { topic: Topic { by_message: true, ..topic } }
    }

    /// As [`Topic::profile`].
    pub fn profile(self, profile: Profile) -> Messages {
        Messages { topic: self.topic.profile(profile) }
    }

    /// As [`Topic::compression`].
    pub fn compression(self, compression: Compression) -> Messages {
        Messages { topic: self.topic.compression(compression) }
    }

    /// As [`Topic::partitioner`].
    pub fn partitioner(self, partitioner: Partitioner) -> Messages {
        Messages { topic: self.topic.partitioner(partitioner) }
    }

    /// As [`Topic::on_refused`].
    pub fn on_refused(self, policy: OnRefused) -> Messages {
        Messages { topic: self.topic.on_refused(policy) }
    }

    /// As [`Topic::deliver_within`].
    pub fn deliver_within(self, limit: Duration) -> Messages {
        Messages { topic: self.topic.deliver_within(limit) }
    }

    /// Values as JSON.
    pub fn json<T>(self) -> Records<WithMetadata<Json<T>>> {
        self.topic.json().with_metadata()
    }

    /// Values as CSV; see [`Topic::csv`].
    pub fn csv<T>(self) -> Records<WithMetadata<Csv<T>>> {
        self.topic.csv().with_metadata()
    }

    /// Values as UTF-8 text.
    pub fn text(self) -> Records<WithMetadata<Text>> {
        self.topic.text().with_metadata()
    }

    /// Values as bytes.
    pub fn bytes(self) -> Records<WithMetadata<Bytes>> {
        self.topic.bytes().with_metadata()
    }

    /// Values in a format of your own.
    pub fn format<F>(self, format: F) -> Records<WithMetadata<F>> {
        self.topic.format(format).with_metadata()
    }

    /// Messages as they are, without a format; see [`Topic::raw`].
    pub fn raw(self) -> Records<Raw> {
        self.topic.raw()
    }
}
