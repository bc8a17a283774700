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
use std::time::{Duration, Instant, UNIX_EPOCH};

use millstream::connector::{Offsets, Partition};
use millstream::{Error, ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::groups::{GroupInfo, GroupMemberInfo};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};

use super::consumer::{Context, listen};
use super::lease::{Lease, await_expiry};
use super::partition::{Span, add_to};
use crate::kafka::client::{Settings, partitions_of};
use crate::kafka::client_events::ClientEvents;
use crate::kafka::error::{error, is_changing, is_refusal, is_transient, is_unheard_of};
use crate::kafka::options::{EndAt, GroupProtocol, OnDataLoss, SourceOptions, StartAt};

/// A committed offset, with the lease of the run that committed it, if there is one.
type Committed = (i64, Option<Lease>);

/// Committed offsets by partition.
type Commits = BTreeMap<(String, i32), Committed>;

/// The log start or end offsets by partition.
type Ends = BTreeMap<(String, i32), i64>;

/// What is needed to fix the start.
pub(crate) struct Starting<'s> {
    pub(crate) consumer: &'s BaseConsumer<Context>,
    pub(crate) settings: &'s Settings,
    pub(crate) events: &'s ClientEvents,
    /// The topics as the pipeline names them, perhaps by a pattern.
    pub(crate) named: &'s [String],
    pub(crate) topics: &'s [String],
    pub(crate) options: &'s SourceOptions,
    pub(crate) group: &'s str,
    pub(crate) end: &'s EndAt,
    pub(crate) resume: Option<&'s Offsets>,
    /// Whether `resume` is that of a checkpoint: it counts whatever the group has committed.
    pub(crate) is_checkpoint: bool,
    /// The group is not asked for anything.
    pub(crate) leaves_no_trace: bool,
    /// End offsets at the moment of start, for a start that may change later. Partitions that are
    /// missing were created since.
    pub(crate) at_start: Option<&'s Ends>,
}

impl Starting<'_> {
    /// The partitions that a job assigns to itself, once no other run reads them. A run without a
    /// lease commits nothing, so it does not look for other runs.
    pub(crate) fn spans(&self, own: Option<&mut Lease>) -> Result<Vec<Span>> {
        let partitions = self.partitions()?;
        let Some(own) = own else { return self.spans_of(&partitions, None) };
        self.check_group()?;
        if self.options.fences {
            own.begin_after(&self.leases(&partitions)?);
        } else {
            await_expiry(own, self.group, || self.leases(&partitions))?;
        }
        // Read after the wait: the other run may have continued until then.
        self.spans_of(&partitions, Some(own))
    }

    /// Where these partitions begin and end.
    pub(crate) fn spans_of(&self, partitions: &[(String, i32)], own: Option<&Lease>) -> Result<Vec<Span>> {
        let (committed, low, high) = self.limits(partitions)?;
        let known: HashSet<&str> = committed.keys().map(|(topic, _)| topic.as_str()).collect();
        let at_time = self.at_time(partitions, &high)?;
        let resumed = self.resume.filter(|_| self.is_checkpoint);
        let was_read = |topic: &str| {
            let names = resumed.into_iter().flatten().map(|(partition, _)| partition.name());
            names.filter_map(|name| name.rsplit_once('/')).any(|(own, _)| own == topic)
        };
        let mut spans = Vec::with_capacity(partitions.len());
        for key in partitions {
            let (topic, partition) = key;
            let (low, high) = (low[key], high[key]);
            let name = Partition::new(format!("{topic}/{partition}"));
            let resumed = self.resume.and_then(|offsets| offsets.get(&name)).map(|next| next.0 as i64);
            if self.is_checkpoint
                && let (Some(resumed), Some((group, _))) = (resumed, committed.get(key))
                && resumed != *group
            {
                tracing::info!(partition = %name, checkpoint = resumed, group, "the checkpoint counts, and not the group");
            }
            let before = match committed.get(key) {
                // What was committed of a partition that is new since then is not in the state.
                _ if self.is_checkpoint => resumed,
                // Another run has continued between two of ours.
                Some((next, Some(by))) if own.is_some_and(|own| own.is_other(by)) => Some(*next),
                found => resumed.or_else(|| found.map(|(next, _)| *next)),
            };
            let is_new = before.is_none() && !known.contains(topic.as_str()) && !was_read(topic);
            let wanted = match before {
                Some(next) => next,
                None if is_new => self.first_start(key, low, high, at_time.as_ref())?,
                None => low,
            };
            let start = self.check(&name, wanted, low, high)?;
            let end = match self.end {
                EndAt::Never => None,
                EndAt::Latest => Some(high),
                EndAt::Offsets(ends) => Some(ends.get(key).copied().unwrap_or(high)),
            };
            tracing::info!(partition = %name, start, end, high, "reading");
            let must_commit_start = is_new && self.options.start_is_time_dependent();
            let (topic, partition) = key.clone();
            spans.push(Span { topic, partition, name, start, high, end, must_commit_start, is_known: !is_new });
        }
        Ok(spans)
    }

    /// The committed offsets, and the log start and end offsets. The other members read, commit and
    /// perhaps delete while this asks. So the ends are asked for last, and what is outside of them
    /// is only believed if nothing was committed meanwhile.
    fn limits(&self, partitions: &[(String, i32)]) -> Result<(Commits, Ends, Ends)> {
        let ask = || if self.leaves_no_trace { Ok(BTreeMap::new()) } else { self.committed(partitions) };
        let mut committed = ask()?;
        loop {
            let low = self.ends(partitions, Offset::Beginning)?;
            let high = self.ends(partitions, Offset::End)?;
            let is_gone = |(key, (next, _)): (&(String, i32), &Committed)| !(low[key]..=high[key]).contains(next);
            if !committed.iter().any(is_gone) {
                return Ok((committed, low, high));
            }
            let before = std::mem::replace(&mut committed, ask()?);
            let has_moved = committed.iter().any(|(key, (next, _))| before.get(key).is_none_or(|(was, _)| was != next));
            if !has_moved {
                return Ok((committed, low, high));
            }
        }
    }

    /// Commits starts that are not committed yet.
    pub(crate) fn remember(&self, spans: &[Span]) -> Result<()> {
        let passing = || spans.iter().filter(|span| span.must_commit_start);
        let keys: Vec<_> = passing().map(|span| (span.topic.clone(), span.partition)).collect();
        if keys.is_empty() {
            return Ok(());
        }
        // Checked again: another member that starts now may have been first.
        let committed = self.committed(&keys)?;
        let mut list = TopicPartitionList::new();
        for span in passing().filter(|span| !committed.contains_key(&(span.topic.clone(), span.partition))) {
            add_to(&mut list, (&span.topic, span.partition), Offset::Offset(span.start))
                .map_err(|cause| not_a_list(&span.topic, cause))?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        match self.consumer.commit(&list, CommitMode::Sync) {
            Ok(()) => Ok(()),
            Err(KafkaError::ConsumerCommit(code)) if is_transient(code) && !is_changing(code) => {
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
    fn first_start(&self, key: &(String, i32), low: i64, high: i64, at_time: Option<&Ends>) -> Result<i64> {
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
            OnDataLoss::Stop => {
                let doing = format!(
                    "records of {name} are gone: offset {wanted} was to be read next, the log has {low} to {high} \
                     (`on_data_loss(OnDataLoss::Skip)` continues at {low})"
                );
                Err(Error::new(ErrorKind::DataLoss, doing))
            }
            OnDataLoss::Skip => {
                tracing::warn!(partition = %name, wanted, low, high, "records are gone, continuing at the earliest");
                Ok(low)
            }
        }
    }

    /// The partitions to read. Checks that the options name no others.
    pub(crate) fn partitions(&self) -> Result<Vec<(String, i32)>> {
        let partitions = self.existing()?;
        let starts = match &self.options.start_at {
            Some(StartAt::Offsets(starts)) => starts.keys().collect(),
            _ => Vec::new(),
        };
        let ends = match self.end {
            EndAt::Offsets(ends) => ends.keys().collect(),
            EndAt::Never | EndAt::Latest => Vec::new(),
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
    pub(crate) fn existing(&self) -> Result<Vec<(String, i32)>> {
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

    /// As [`existing`](Starting::existing), without topics that a broker does not know, yet or any
    /// more.
    pub(crate) fn existing_yet(&self) -> Result<Vec<(String, i32)>> {
        let mut all = Vec::new();
        for topic in self.topics {
            match (Starting { topics: std::slice::from_ref(topic), ..*self }).existing() {
                Ok(partitions) => all.extend(partitions),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// The log start offset or the end offset of each partition.
    fn ends(&self, partitions: &[(String, i32)], which: Offset) -> Result<Ends> {
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
    fn at_time(&self, partitions: &[(String, i32)], high: &Ends) -> Result<Option<Ends>> {
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
        let found = self.ask("find offsets", |wait| {
            let found = self.consumer.offsets_for_times(list.clone(), wait);
            if found.as_ref().is_err_and(is_unheard_of) {
                // It would answer from what it remembers for minutes.
                let topics: HashSet<&String> = partitions.iter().map(|(topic, _)| topic).collect();
                topics.into_iter().for_each(|topic| drop(self.consumer.fetch_metadata(Some(topic), wait)));
            }
            found
        })?;
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
    pub(crate) fn check_assignor(&self) -> Result<()> {
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

    /// The committed offsets of the group, each with the lease of the run that committed it.
    pub(crate) fn committed(&self, partitions: &[(String, i32)]) -> Result<Commits> {
        let committed = self.commits(partitions)?;
        let offset = |element: &TopicPartitionListElem<'_>| match element.offset() {
            Offset::Offset(offset) => {
                let key = (element.topic().to_owned(), element.partition());
                Some((key, (offset, Lease::read(element.metadata()))))
            }
            _ => None,
        };
        Ok(committed.elements().iter().filter_map(offset).collect())
    }

    fn leases(&self, partitions: &[(String, i32)]) -> Result<Vec<Lease>> {
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
                        return Err(self.settings.unreachable(&doing, cause, self.events));
                    }
                    wait *= 2;
                }
                // A coordinator that has just started, or is moving.
                Err(cause) if cause.rdkafka_error_code().is_some_and(is_transient) && !left.is_zero() => {
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
        self.settings.ask(doing, self.events, || listen(self.consumer), ask)
    }

    fn list(&self, partitions: &[(String, i32)], offset: Offset) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            add_to(&mut list, (topic, *partition), offset).map_err(|cause| not_a_list(topic, cause))?;
        }
        Ok(list)
    }
}

/// The error of a group whose members have no assignor in common with this one.
pub(crate) fn other_assignor(group: &str, settings: &Settings, theirs: Option<&str>) -> Error {
    let theirs = theirs.map_or("another assignor".to_owned(), |theirs| format!("the assignor `{theirs}`"));
    let doing = format!(
        "cannot join group `{group}` at {}: its members use {theirs}, which this job does not support \
         (`group_protocol(GroupProtocol::Eager)` has `range` and `roundrobin`, `Classic` has `cooperative-sticky`; \
         otherwise stop the other members first)",
        settings.brokers
    );
    Error::new(ErrorKind::Refused, doing)
}

/// The error of an offset that librdkafka cannot represent.
pub(crate) fn not_a_list(topic: &str, cause: KafkaError) -> Error {
    error(ErrorKind::Config, format!("cannot represent an offset of topic `{topic}`"), cause)
}
