//! Topics by a pattern. This library matches the names itself, with one syntax for every trigger
//! and group protocol. librdkafka reads POSIX expressions and a broker RE2, and each rejects or
//! misreads expressions that the others accept.

use std::time::Duration;

use millstream::{Error, ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use regex::Regex;

use super::consumer::{Context, listen};
use crate::kafka::client::Settings;
use crate::kafka::topic::Topic;

/// How long to wait for the list of topics.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How often the list is fetched, unless `topic.metadata.refresh.interval.ms` is set.
const REFRESH: Duration = Duration::from_secs(30);

/// How often to look for topics and partitions that are new.
pub(crate) fn look_every(settings: &Settings) -> Duration {
    let set = settings.number("topic.metadata.refresh.interval.ms");
    set.filter(|pause| *pause > 0).map_or(REFRESH, Duration::from_millis)
}

/// A pattern and the topics that last matched it.
#[derive(Debug)]
pub(crate) struct Pattern {
    whole: Regex,
    known: Vec<String>,
}

impl Pattern {
    /// The pattern of a source that has one.
    ///
    /// # Errors
    /// When the pattern is not valid.
    pub(crate) fn of(topic: &Topic) -> Result<Option<Pattern>> {
        if !topic.is_pattern {
            return Ok(None);
        }
        // The name is also compiled by itself: `a)|(?:b` is valid only inside the group below, and
        // means something else there.
        let name = &topic.names[0];
        let whole = Regex::new(name).and_then(|_| Regex::new(&format!("^(?:{name})$"))).map_err(|cause| {
            let doing = format!("`{name}` is not a valid topic pattern (the syntax is that of the regex crate)");
            Error::new(ErrorKind::Config, doing).caused_by(cause)
        })?;
        Ok(Some(Pattern { whole, known: Vec::new() }))
    }

    /// The topics that match now, at the start of a job.
    ///
    /// # Errors
    /// When no broker answers.
    pub(crate) fn at_start(&mut self, settings: &Settings, consumer: &BaseConsumer<Context>) -> Result<Vec<String>> {
        let (events, ask) = (&consumer.context().events, |wait: Duration| consumer.fetch_metadata(None, wait));
        let topics = self.matching(&settings.ask("reach Kafka", events, || listen(consumer), ask)?);
        self.note(&topics);
        Ok(topics)
    }

    /// The topics that match now.
    pub(crate) fn topics(&self, consumer: &BaseConsumer<Context>) -> Result<Vec<String>, KafkaError> {
        consumer.fetch_metadata(None, ASK_WITHIN).map(|metadata| self.matching(&metadata))
    }

    /// Remembers these topics, and returns whether they differ from the previous ones.
    pub(crate) fn note(&mut self, topics: &[String]) -> bool {
        let is_new = self.known != topics;
        if is_new {
            self.known = topics.to_vec();
        }
        is_new
    }

    fn matching(&self, metadata: &Metadata) -> Vec<String> {
        let names = metadata.topics().iter().map(|known| known.name().to_owned());
        let mut topics: Vec<String> =
            names.filter(|name| !name.starts_with("__") && self.whole.is_match(name)).collect();
        topics.sort_unstable();
        topics
    }
}
