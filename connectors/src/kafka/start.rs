//! Where reading begins and ends. Both are fixed before anything is fetched: every partition gets
//! an absolute offset, because a logical one costs half a second and does not allow an exact
//! replay.
//!
//! Precedence: what this process has committed in an earlier run of the job, then the group's
//! committed offsets, then `start_at`. A partition without a committed offset begins at its
//! earliest record if the group has read its topic before: `latest` would lose records that were
//! written while no job ran.

use std::collections::{BTreeMap, HashSet};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millstream::connector::{Offset as Next, Offsets, Partition};
use millstream::{Error, ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::groups::{GroupInfo, GroupMemberInfo};
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use super::client::Settings;
use super::consumer::{Context, listen};
use super::error::{error, is_changing, is_passing, is_refusal};
use super::heard::Heard;
use super::options::{GroupProtocol, SourceOptions};
use super::signature::{Signature, await_death};

/// Where reading begins in a partition without a committed offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartAt {
    /// At the earliest record that still exists.
    #[default]
    Earliest,
    /// After the last record at the moment of start. Records written after
    /// [`Job::start`](millstream::Job::start) has returned are read, however long the group takes
    /// to assign partitions. Partitions and topics that are created later begin at their earliest
    /// record.
    Latest,
    /// A partition without a committed offset is an error.
    Committed,
    /// At these offsets by topic and partition; a partition that is not named begins at its
    /// earliest record.
    Offsets(BTreeMap<(String, i32), i64>),
    /// At the first record with this timestamp or a later one; after the last record if there is
    /// none.
    Timestamp(SystemTime),
}

/// Where reading ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Never.
    #[default]
    Never,
    /// After the last record at the moment of start.
    Latest,
    /// Before these offsets by topic and partition; a partition that is not named ends after its
    /// last record at the moment of start.
    Offsets(BTreeMap<(String, i32), i64>),
}

/// What happens when records are gone before they could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataLoss {
    /// The job ends with an error that names the gap.
    #[default]
    Fail,
    /// Reading continues at the earliest record that exists, and the gap is logged.
    Skip,
}

/// Which records of transactions are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Only committed records, and none after the start of an open transaction.
    #[default]
    ReadCommitted,
    /// All records.
    ReadUncommitted,
}

impl Isolation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Isolation::ReadCommitted => "read_committed",
            Isolation::ReadUncommitted => "read_uncommitted",
        }
    }
}

/// A partition of the run, with the absolute offsets between which it is read.
#[derive(Clone, Debug)]
pub(super) struct Span {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) name: Partition,
    pub(super) start: i64,
    /// The end offset at the moment of start.
    pub(super) high: i64,
    /// Where a bounded run ends.
    pub(super) end: Option<i64>,
    /// The group had not read it before, and its start must be committed: it may change when it is
    /// looked up again.
    pub(super) is_passing: bool,
    /// The group has read its topic before.
    pub(super) is_known: bool,
}

/// A committed offset, with the signature of the run that committed it, if there is one.
type Committed = (i64, Option<Signature>);

/// What is needed to fix the start.
pub(super) struct Starting<'s> {
    pub(super) consumer: &'s BaseConsumer<Context>,
    pub(super) settings: &'s Settings,
    pub(super) heard: &'s Heard,
    /// The topics as the pipeline names them, perhaps by a pattern.
    pub(super) named: &'s [String],
    pub(super) topics: &'s [String],
    pub(super) options: &'s SourceOptions,
    pub(super) group: &'s str,
    pub(super) end: &'s End,
    pub(super) resume: Option<&'s Offsets>,
    /// The group is not asked for anything.
    pub(super) leaves_no_trace: bool,
    /// End offsets at the moment of start, for a start that may change later. Partitions that are
    /// missing were created since.
    pub(super) at_start: Option<&'s BTreeMap<(String, i32), i64>>,
}

impl Starting<'_> {
    /// The partitions that a job assigns to itself, once no other run reads them. A run without a
    /// signature commits nothing, so it does not look for other runs.
    pub(super) fn spans(&self, own: Option<&mut Signature>) -> Result<Vec<Span>> {
        let partitions = self.partitions()?;
        let Some(own) = own else { return self.spans_of(&partitions, None) };
        self.check_group()?;
        if self.options.takes_over {
            own.begin_after(&self.signatures(&partitions)?);
        } else {
            await_death(own, self.group, || self.signatures(&partitions))?;
        }
        // Read after the wait: the other run may have continued until then.
        self.spans_of(&partitions, Some(own))
    }

    /// Where these partitions begin and end.
    pub(super) fn spans_of(&self, partitions: &[(String, i32)], own: Option<&Signature>) -> Result<Vec<Span>> {
        let low = self.ends(partitions, Offset::Beginning)?;
        let high = self.ends(partitions, Offset::End)?;
        let committed = if self.leaves_no_trace { BTreeMap::new() } else { self.committed(partitions)? };
        let known: HashSet<&str> = committed.keys().map(|(topic, _)| topic.as_str()).collect();
        let at_time = self.at_time(partitions, &high)?;
        let mut spans = Vec::with_capacity(partitions.len());
        for key in partitions {
            let (topic, partition) = key;
            let (low, high) = (low[key], high[key]);
            let name = Partition::new(format!("{topic}/{partition}"));
            let resumed = self.resume.and_then(|offsets| offsets.get(&name)).map(|next| next.0 as i64);
            let before = match committed.get(key) {
                // Another run has continued between two of ours.
                Some((next, Some(by))) if own.is_some_and(|own| own.is_other(by)) => Some(*next),
                found => resumed.or_else(|| found.map(|(next, _)| *next)),
            };
            let is_new = before.is_none() && !known.contains(topic.as_str());
            let wanted = match before {
                Some(next) => next,
                None if is_new => self.first_start(key, low, high, at_time.as_ref())?,
                None => low,
            };
            let start = self.check(&name, wanted, low, high)?;
            let end = match self.end {
                End::Never => None,
                End::Latest => Some(high),
                End::Offsets(ends) => Some(ends.get(key).copied().unwrap_or(high)),
            };
            tracing::info!(partition = %name, start, end, high, "reading");
            let is_passing = is_new && self.options.start_is_passing();
            let (topic, partition) = key.clone();
            spans.push(Span { topic, partition, name, start, high, end, is_passing, is_known: !is_new });
        }
        Ok(spans)
    }

    /// Commits starts that are not committed yet.
    pub(super) fn remember(&self, spans: &[Span]) -> Result<()> {
        let passing = || spans.iter().filter(|span| span.is_passing);
        let keys: Vec<_> = passing().map(|span| (span.topic.clone(), span.partition)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        // Checked again: another member that starts now may have been first.
        let committed = self.committed(&keys)?;
        let mut list = TopicPartitionList::new();
        for span in passing().filter(|span| !committed.contains_key(&(span.topic.clone(), span.partition))) {
            list.add_partition_offset(&span.topic, span.partition, Offset::Offset(span.start))
                .map_err(|cause| not_a_list(&span.topic, cause))?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        match self.consumer.commit(&list, CommitMode::Sync) {
            Ok(()) => Ok(()),
            Err(KafkaError::ConsumerCommit(code)) if is_passing(code) && !is_changing(code) => {
                let doing = format!("cannot commit the start offsets of group `{}`", self.group);
                Err(Error::new(ErrorKind::Unreachable, doing).caused_by(code))
            }
            // A group refuses a commit from a client that is not yet a member, and every commit
            // while it waits for the answer of a member. In both cases its members commit the
            // starts.
            Err(cause) => {
                tracing::debug!(group = self.group, %cause, "cannot commit the start offsets");
                Ok(())
            }
        }
    }

    /// Where a partition begins that the group has not read before.
    fn first_start(
        &self,
        key: &(String, i32),
        low: i64,
        high: i64,
        at_time: Option<&BTreeMap<(String, i32), i64>>,
    ) -> Result<i64> {
        let start_at = self.options.start_at.as_ref().unwrap_or(&StartAt::Earliest);
        if let (StartAt::Latest, Some(ends)) = (start_at, self.at_start) {
            return Ok(ends.get(key).map_or(low, |end| (*end).min(high).max(low)));
        }
        match start_at {
            StartAt::Earliest => Ok(low),
            // As if the partition had never been read.
            StartAt::Committed if self.leaves_no_trace => Ok(low),
            StartAt::Latest => Ok(high),
            StartAt::Offsets(starts) => Ok(starts.get(key).copied().unwrap_or(low)),
            StartAt::Timestamp(_) => Ok(at_time.and_then(|offsets| offsets.get(key).copied()).unwrap_or(high)),
            StartAt::Committed => {
                let doing = format!(
                    "group `{}` has no committed offset for partition {} of topic `{}`",
                    self.group, key.1, key.0
                );
                Err(Error::new(ErrorKind::NotFound, doing))
            }
        }
    }

    /// A start outside of the log means that records are gone.
    fn check(&self, name: &Partition, wanted: i64, low: i64, high: i64) -> Result<i64> {
        if (low..=high).contains(&wanted) {
            return Ok(wanted);
        }
        match self.options.on_data_loss.unwrap_or_default() {
            DataLoss::Fail => {
                let doing = format!(
                    "records of {name} are gone: offset {wanted} was to be read next, the log has {low} to {high} \
                     (`on_data_loss(DataLoss::Skip)` continues at {low})"
                );
                Err(Error::new(ErrorKind::DataLoss, doing))
            }
            DataLoss::Skip => {
                tracing::warn!(partition = %name, wanted, low, high, "records are gone, continuing at the earliest");
                Ok(low)
            }
        }
    }

    /// The partitions to read. Checks that the options name no others.
    pub(super) fn partitions(&self) -> Result<Vec<(String, i32)>> {
        let partitions = self.existing()?;
        let starts = match &self.options.start_at {
            Some(StartAt::Offsets(starts)) => starts.keys().collect(),
            _ => Vec::new(),
        };
        let ends = match self.end {
            End::Offsets(ends) => ends.keys().collect(),
            End::Never | End::Latest => Vec::new(),
        };
        for (option, named) in [("start_at", starts), ("end_at", ends)] {
            if let Some((topic, partition)) = named.into_iter().find(|key| !partitions.contains(key)) {
                let doing = format!("`{option}` names partition {partition} of topic `{topic}`, which is not read");
                return Err(Error::new(ErrorKind::Config, doing));
            }
        }
        if self.topics.is_empty() {
            let doing = format!("no topic matches `{}` at {}", self.named.join(", "), self.settings.brokers);
            return Err(Error::new(ErrorKind::NotFound, doing));
        }
        if partitions.is_empty() {
            return Err(Error::new(ErrorKind::Config, "`partitions` names no partition to read"));
        }
        Ok(partitions)
    }

    /// All partitions that may be read, from the brokers' metadata.
    pub(super) fn existing(&self) -> Result<Vec<(String, i32)>> {
        let mut partitions = Vec::new();
        for topic in self.topics {
            let metadata = self.ask("reach Kafka", |wait| self.consumer.fetch_metadata(Some(topic), wait))?;
            let existing = partitions_of(&metadata, topic, &self.settings.brokers)?;
            match &self.options.partitions {
                None => partitions.extend(existing.into_iter().map(|partition| (topic.clone(), partition))),
                Some(chosen) => {
                    if let Some(missing) = chosen.iter().find(|partition| !existing.contains(partition)) {
                        let doing = format!("topic `{topic}` has no partition {missing} (it has {})", existing.len());
                        return Err(Error::new(ErrorKind::NotFound, doing));
                    }
                    partitions.extend(chosen.iter().map(|partition| (topic.clone(), *partition)));
                }
            }
        }
        partitions.sort_unstable();
        partitions.dedup();
        Ok(partitions)
    }

    /// The log start offset or the end offset of each partition.
    fn ends(&self, partitions: &[(String, i32)], which: Offset) -> Result<BTreeMap<(String, i32), i64>> {
        // A request for offsets by time accepts both as times, so it takes one request per broker
        // instead of one per partition.
        self.offsets(partitions, which)?
            .into_iter()
            .map(|(key, offset)| match offset {
                Offset::Offset(offset) => Ok((key, offset)),
                other => {
                    let doing = format!("cannot find offsets of partition {} of topic `{}`: {other:?}", key.1, key.0);
                    Err(Error::new(ErrorKind::Unreachable, doing))
                }
            })
            .collect()
    }

    /// The offsets of a start by timestamp.
    fn at_time(
        &self,
        partitions: &[(String, i32)],
        high: &BTreeMap<(String, i32), i64>,
    ) -> Result<Option<BTreeMap<(String, i32), i64>>> {
        let Some(StartAt::Timestamp(time)) = self.options.start_at else { return Ok(None) };
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let milliseconds = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let found = self.offsets(partitions, Offset::Offset(milliseconds))?.into_iter();
        let absolute = found.map(|(key, offset)| match offset {
            Offset::Offset(offset) => (key, offset),
            _ => {
                let last = high[&key];
                (key, last)
            }
        });
        Ok(Some(absolute.collect()))
    }

    fn offsets(&self, partitions: &[(String, i32)], time: Offset) -> Result<Vec<((String, i32), Offset)>> {
        let list = self.list(partitions, time)?;
        let found = self.ask("find offsets", |wait| self.consumer.offsets_for_times(list.clone(), wait))?;
        found
            .elements()
            .iter()
            .map(|element| {
                element.error().map_err(|cause| {
                    let doing = format!(
                        "cannot find offsets of partition {} of topic `{}`",
                        element.partition(),
                        element.topic()
                    );
                    error(ErrorKind::Unreachable, doing, cause)
                })?;
                Ok(((element.topic().to_owned(), element.partition()), element.offset()))
            })
            .collect()
    }

    /// Checks that the members of the group have an assignor in common with this one. Otherwise the
    /// group never accepts it, and only the client is told so, again and again.
    ///
    /// # Errors
    /// When the members have no assignor in common with this one.
    pub(super) fn check_assignor(&self) -> Result<()> {
        let ours: &[&str] = match self.options.protocol.unwrap_or_default() {
            GroupProtocol::Classic => &["cooperative-sticky"],
            GroupProtocol::Eager => &["range", "roundrobin"],
            // The broker lets members of both protocols into one group.
            GroupProtocol::Consumer => return Ok(()),
        };
        // Not every broker can answer this; then joining fails.
        let Ok(list) = self.consumer.fetch_group_list(Some(self.group), self.settings.connect_within) else {
            return Ok(());
        };
        let groups =
            list.groups().iter().filter(|group| group.protocol_type() == "consumer" && !group.members().is_empty());
        match groups.map(GroupInfo::protocol).find(|protocol| !protocol.is_empty() && !ours.contains(protocol)) {
            None => Ok(()),
            Some(theirs) => Err(other_assignor(self.group, self.settings, Some(theirs))),
        }
    }

    /// A group with members refuses commits from a client that is not one of them.
    fn check_group(&self) -> Result<()> {
        let cause = match self.consumer.fetch_group_list(Some(self.group), self.settings.connect_within) {
            Ok(list) => match list.groups().iter().find(|group| !group.members().is_empty()) {
                Some(group) => {
                    let names: Vec<&str> = group.members().iter().map(GroupMemberInfo::client_id).collect();
                    format!(
                        "it has active members ({}); a job that assigns its own partitions cannot commit to it",
                        names.join(", ")
                    )
                }
                None => return Ok(()),
            },
            Err(cause) if cause.rdkafka_error_code().is_some_and(is_refusal) => cause.to_string(),
            // Not every broker can answer this; then the first commit fails.
            Err(cause) => {
                tracing::debug!(group = self.group, %cause, "cannot list the members of the group");
                return Ok(());
            }
        };
        let doing = format!("cannot use group `{}` at {}", self.group, self.settings.brokers);
        Err(Error::new(ErrorKind::Refused, doing).caused_by(cause))
    }

    /// The committed offsets of the group, each with the signature of the run that committed it.
    pub(super) fn committed(&self, partitions: &[(String, i32)]) -> Result<BTreeMap<(String, i32), Committed>> {
        let committed = self.commits(partitions)?;
        let offset = |element: &TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => {
                let key = (element.topic().to_owned(), element.partition());
                Some((key, (offset, Signature::read(element.metadata()))))
            }
            _ => None,
        };
        Ok(committed.elements().iter().filter_map(offset).collect())
    }

    fn signatures(&self, partitions: &[(String, i32)]) -> Result<Vec<Signature>> {
        Ok(self.committed(partitions)?.into_values().filter_map(|(_, by)| by).collect())
    }

    fn commits(&self, partitions: &[(String, i32)]) -> Result<TopicPartitionList> {
        let list = self.list(partitions, Offset::Invalid)?;
        let doing = format!("read the committed offsets of group `{}`", self.group);
        let deadline = Instant::now() + self.settings.connect_within;
        // The waits grow longer, and events are served in between: a client that may not read the
        // group gets no answer, but an event with the refusal.
        let mut wait = Duration::from_millis(500);
        let committed = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.consumer.committed_offsets(list.clone(), wait.min(left)) {
                Ok(committed) => break committed,
                Err(cause) if matches!(cause.rdkafka_error_code(), Some(Code::OperationTimedOut) | None) => {
                    while let Some(event) = self.consumer.poll(Duration::ZERO) {
                        if let Err(told) = event
                            && told.rdkafka_error_code().is_some_and(is_refusal)
                        {
                            return Err(error(ErrorKind::Refused, format!("cannot {doing}"), told));
                        }
                    }
                    if wait >= left {
                        return Err(self.settings.unreachable(&doing, cause, self.heard));
                    }
                    wait *= 2;
                }
                // A coordinator that has just started, or is moving.
                Err(cause) if cause.rdkafka_error_code().is_some_and(is_passing) && !left.is_zero() => {
                    thread::sleep(Duration::from_millis(100).min(left));
                }
                Err(cause) => return Err(error(ErrorKind::Refused, format!("cannot {doing}"), cause)),
            }
        };
        for element in committed.elements() {
            element.error().map_err(|cause| error(ErrorKind::Refused, format!("cannot {doing}"), cause))?;
        }
        Ok(committed)
    }

    fn ask<T>(&self, doing: &str, ask: impl FnMut(Duration) -> Result<T, KafkaError>) -> Result<T> {
        self.settings.ask(doing, self.heard, || listen(self.consumer), ask)
    }

    fn list(&self, partitions: &[(String, i32)], offset: Offset) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            list.add_partition_offset(topic, *partition, offset).map_err(|cause| not_a_list(topic, cause))?;
        }
        Ok(list)
    }
}

/// The error of a group whose members have no assignor in common with this one.
pub(super) fn other_assignor(group: &str, settings: &Settings, theirs: Option<&str>) -> Error {
    let theirs = theirs.map_or("another assignor".to_owned(), |theirs| format!("the assignor `{theirs}`"));
    let doing = format!(
        "cannot join group `{group}` at {}: its members use {theirs}, which this job does not support \
         (`group_protocol(GroupProtocol::Eager)` has `range` and `roundrobin`, `Classic` has `cooperative-sticky`; \
         otherwise stop the other members first)",
        settings.brokers
    );
    Error::new(ErrorKind::Refused, doing)
}

/// The partitions of a topic, or an error that says why there are none.
pub(super) fn partitions_of(metadata: &Metadata, topic: &str, brokers: &str) -> Result<Vec<i32>> {
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let cause = found.and_then(rdkafka::metadata::MetadataTopic::error).map(Code::from);
    match (found, cause) {
        (Some(found), None) if !found.partitions().is_empty() => {
            Ok(found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect())
        }
        (_, Some(code)) if code != Code::UnknownTopicOrPartition => {
            let cause = KafkaError::MetadataFetch(code);
            Err(error(ErrorKind::NotFound, format!("cannot use topic `{topic}` at {brokers}"), cause))
        }
        _ => Err(Error::new(ErrorKind::NotFound, format!("topic `{topic}` does not exist at {brokers}"))),
    }
}

/// The error of an offset that librdkafka cannot represent.
pub(super) fn not_a_list(topic: &str, cause: KafkaError) -> Error {
    error(ErrorKind::Config, format!("cannot represent an offset of topic `{topic}`"), cause)
}

/// Converts a Kafka offset to an engine offset.
pub(super) fn next(offset: i64) -> Next {
    Next(u64::try_from(offset).unwrap_or(0))
}
