//! A topic with its options, which a pipeline uses as a source or as a sink once it has a format
//! (`records`). An option that does not fit the use is an error at start.

use std::sync::Arc;
use std::time::Duration;

use millstream::{Error, ErrorKind, Result};

use super::client::Settings;
use super::options::{
    Compression, EndAt, GroupProtocol, Isolation, OnDataLoss, OnRefused, Partitioner, Profile, SinkOptions,
    SourceOptions, StartAt,
};

/// One or several topics, and how to read or write them. Choose a format to make it a source or a
/// sink.
#[derive(Clone, Debug)]
#[must_use = "a topic does nothing until it has a format and a pipeline uses it"]
pub struct Topic {
    pub(crate) settings: Arc<Settings>,
    pub(crate) names: Vec<String>,
    /// The name is a pattern.
    pub(crate) is_pattern: bool,
    /// Each message names its own topic.
    pub(crate) by_message: bool,
    pub(crate) source: SourceOptions,
    pub(crate) sink: SinkOptions,
}

impl Topic {
    pub(crate) fn new(settings: Arc<Settings>, names: Vec<String>) -> Topic {
        Topic {
            settings,
            names,
            is_pattern: false,
            by_message: false,
            source: SourceOptions::default(),
            sink: SinkOptions::default(),
        }
    }

    // As a source.

    /// The consumer group that the job commits its offsets to; the job's name by default.
    pub fn group(mut self, group: impl Into<String>) -> Topic {
        self.source.group = Some(group.into());
        self
    }

    /// How the members of the group agree on the assignment of partitions;
    /// [`GroupProtocol::Classic`] by default. Has no effect in a job that assigns its own
    /// partitions.
    pub fn group_protocol(mut self, protocol: GroupProtocol) -> Topic {
        self.source.protocol = Some(protocol);
        self
    }

    /// Makes this process a static member of its group, by a name that no other process has and
    /// that stays the same after a restart. Its partitions wait for it for the length of a session
    /// instead of moving twice. A second process with the same name fences the first. Has no effect
    /// in a job that assigns its own partitions.
    pub fn group_instance(mut self, name: impl Into<String>) -> Topic {
        self.source.instance = Some(name.into());
        self
    }

    /// Where reading begins when the group has no committed offset; [`StartAt::Earliest`] by
    /// default. Committed offsets take precedence. A partition without one begins at its earliest
    /// record if the group has committed offsets for others of its topic.
    pub fn start_at(mut self, start: StartAt) -> Topic {
        self.source.start_at = Some(start);
        self
    }

    /// Where reading ends; [`EndAt::Never`] by default, and [`EndAt::Latest`] under
    /// [`Trigger::AvailableNow`](millstream::Trigger::AvailableNow).
    pub fn end_at(mut self, end: EndAt) -> Topic {
        self.source.end_at = Some(end);
        self
    }

    /// Reads only these partitions of each topic. The job assigns them to itself instead of joining
    /// the group, as a job that ends always does. Two such runs must not share a group: see
    /// [`fence_other_run`](Topic::fence_other_run).
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = i32>) -> Topic {
        self.source.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Takes the partitions over from another run that assigned them to itself, and fences that
    /// run. Use it when that run is known to be dead. Without it, start waits until a run that did
    /// not shut down cleanly has shown no sign of life for 10 s, and fails if that run is still
    /// alive. A job that joins its group does not need it and ignores it.
    pub fn fence_other_run(mut self) -> Topic {
        self.source.fences = true;
        self
    }

    /// What happens when records are gone before they could be read; [`OnDataLoss::Stop`] by
    /// default.
    pub fn on_data_loss(mut self, policy: OnDataLoss) -> Topic {
        self.source.on_data_loss = Some(policy);
        self
    }

    /// Whether records of open and aborted transactions are read; [`Isolation::ReadCommitted`] by
    /// default.
    pub fn isolation(mut self, isolation: Isolation) -> Topic {
        self.source.isolation = Some(isolation);
        self
    }

    // As a sink.

    /// What the producer is tuned for; [`Profile::Latency`] by default.
    pub fn profile(mut self, profile: Profile) -> Topic {
        self.sink.profile = Some(profile);
        self
    }

    /// How batches are compressed; not at all by default.
    pub fn compression(mut self, compression: Compression) -> Topic {
        self.sink.compression = Some(compression);
        self
    }

    /// Which partition a key belongs to; [`Partitioner::Murmur2`] by default.
    pub fn partitioner(mut self, partitioner: Partitioner) -> Topic {
        self.sink.partitioner = Some(partitioner);
        self
    }

    /// What the sink does with a record that it cannot write; [`OnRefused::Stop`] by default.
    pub fn on_refused(mut self, policy: OnRefused) -> Topic {
        self.sink.on_refused = Some(policy);
        self
    }

    /// How long the delivery of a record may take before the run ends with an error. By default
    /// there is no limit: a job waits for its broker for as long as that is away, and nothing is
    /// lost.
    pub fn deliver_within(mut self, limit: Duration) -> Topic {
        self.sink.deliver_within = Some(limit);
        self
    }

    /// What its sources and sinks are called.
    pub(crate) fn described(&self) -> String {
        if self.names.is_empty() { "kafka messages".to_owned() } else { format!("kafka {}", self.names.join(" ")) }
    }

    /// Rejects options that a source cannot have.
    pub(crate) fn check_source(&self) -> Result<()> {
        let options = &self.sink;
        let set = [
            ("profile", options.profile.is_some()),
            ("compression", options.compression.is_some()),
            ("partitioner", options.partitioner.is_some()),
            ("on_refused", options.on_refused.is_some()),
            ("deliver_within", options.deliver_within.is_some()),
        ];
        self.check(&set, "a source")?;
        if self.names.is_empty() {
            let doing = match self.by_message {
                true => "`kafka.messages()` is a sink: it has no topic to read",
                false => "`kafka.topics` names no topic to read",
            };
            return Err(Error::new(ErrorKind::Config, doing));
        }
        Ok(())
    }

    /// Rejects options that a sink cannot have.
    pub(crate) fn check_sink(&self) -> Result<()> {
        let options = &self.source;
        let set = [
            ("group", options.group.is_some()),
            ("start_at", options.start_at.is_some()),
            ("end_at", options.end_at.is_some()),
            ("partitions", options.partitions.is_some()),
            ("on_data_loss", options.on_data_loss.is_some()),
            ("isolation", options.isolation.is_some()),
            ("group_protocol", options.protocol.is_some()),
            ("group_instance", options.instance.is_some()),
            ("fence_other_run", options.fences),
        ];
        self.check(&set, "a sink")?;
        if self.names.len() != usize::from(!self.by_message) || self.is_pattern {
            let doing =
                format!("{}: a sink has one topic; with `kafka.messages()` each message names it", self.described());
            return Err(Error::new(ErrorKind::Config, doing));
        }
        Ok(())
    }

    fn check(&self, set: &[(&str, bool)], what: &str) -> Result<()> {
        let wrong = set.iter().find(|(_, is_set)| *is_set);
        wrong.map_or(Ok(()), |(option, _)| {
            let doing = format!("{}: `{option}` cannot be set on {what}", self.described());
            Err(Error::new(ErrorKind::Config, doing))
        })
    }
}
