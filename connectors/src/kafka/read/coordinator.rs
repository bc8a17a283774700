//! Requests to the group's coordinator, on a thread that may wait for the answers (`orders`):
//! commits, which other runs commit, and where newly assigned partitions begin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use millstream::connector::{Offsets, Partition};
use millstream::{Error, ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataPartition;
use rdkafka::{Offset, TopicPartitionList};

use super::consumer::Context;
use super::lease::{Lease, Life};
use super::partition::{Assignment, Positions, Span, add_to};
use super::pattern::Pattern;
use super::start::{Starting, not_a_list};
use crate::kafka::client::Settings;
use crate::kafka::client_events::Concern;
use crate::kafka::error::{error, is_lost};
use crate::kafka::options::{EndAt, SourceOptions};

/// How long the client may take to seek to the beginning of a topic.
const REWIND_WITHIN: Duration = Duration::from_secs(5);
const REWIND_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long a request for the leases of the last commits may take.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// A group, and what is needed to ask its coordinator.
pub(crate) struct Coordinator {
    pub(crate) consumer: Arc<BaseConsumer<Context>>,
    pub(crate) held: Arc<Assignment>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) options: SourceOptions,
    pub(crate) group: String,
    /// The end offsets when the run started, for a start that depends on when it is looked up.
    pub(crate) at_start: BTreeMap<(String, i32), i64>,
    /// What is looked for while the run goes on.
    pub(crate) looks_for: LooksFor,
    /// How long a member may be unable to commit; `None` for a run that is not a member.
    pub(crate) patience: Option<Duration>,
    /// Signs the commits of a run that the group does not know, because it is not a member.
    pub(crate) lease: Option<Lease>,
    /// Whether the job remembers its positions by what the group has committed. Otherwise commits
    /// are for others to see, and one that fails is no fault.
    pub(crate) is_memory: bool,
}

/// What a run looks for while it goes on, because it is not told.
pub(crate) enum LooksFor {
    Nothing,
    /// Topics that match the pattern. The group assigns their partitions.
    Topics(Pattern),
    /// Partitions of these topics, or of those that match the pattern: the run assigns them to
    /// itself.
    Partitions {
        topics: Vec<String>,
        pattern: Option<Pattern>,
        /// Those that it has found.
        known: BTreeSet<(String, i32)>,
    },
}

impl Coordinator {
    /// Where partitions begin. A start that depends on when it is looked up is fixed for the whole
    /// topic by the first member that looks it up: if only some partitions had offsets, another
    /// member would take the topic for one that was read before.
    pub(crate) fn starts(&self, partitions: &[(String, i32)]) -> Result<Vec<Span>> {
        let topics: BTreeSet<String> = partitions.iter().map(|(topic, _)| topic.clone()).collect();
        let topics: Vec<String> = topics.into_iter().collect();
        let at_start = self.options.start_is_time_dependent().then_some(&self.at_start);
        let starting = Starting {
            consumer: &self.consumer,
            settings: &self.settings,
            events: &self.consumer.context().events,
            named: &topics,
            topics: &topics,
            options: &self.options,
            group: &self.group,
            end: &EndAt::Never,
            resume: None,
            is_checkpoint: false,
            leaves_no_trace: false,
            at_start,
        };
        // The client sends no request for partitions that it does not know, and a broker may not
        // know the newest ones yet.
        let mut all = starting.existing_yet()?;
        if !self.options.start_is_time_dependent() {
            return starting.spans_of(partitions, None);
        }
        all.extend(partitions.iter().filter(|asked| !all.contains(asked)).cloned().collect::<Vec<_>>());
        let mut spans = starting.spans_of(&all, None)?;
        starting.remember(&spans)?;
        spans.retain(|span| partitions.iter().any(|(topic, number)| *topic == span.topic && *number == span.partition));
        Ok(spans)
    }

    /// Partitions that are new since the last look. They begin at their earliest record, wherever
    /// the run began: what was written before it looked must not be lost.
    pub(crate) fn added(&mut self) -> Result<Vec<Span>> {
        let LooksFor::Partitions { topics, pattern, known } = &mut self.looks_for else { return Ok(Vec::new()) };
        if let Some(pattern) = pattern {
            *topics = pattern
                .topics(&self.consumer)
                .map_err(|cause| error(ErrorKind::Unreachable, "cannot list the topics", cause))?;
        }
        let options = SourceOptions { start_at: None, ..self.options.clone() };
        let starting = Starting {
            consumer: &self.consumer,
            settings: &self.settings,
            events: &self.consumer.context().events,
            named: topics,
            topics,
            options: &options,
            group: &self.group,
            end: &EndAt::Never,
            resume: None,
            is_checkpoint: true,
            leaves_no_trace: true,
            at_start: None,
        };
        let mut added = starting.existing_yet()?;
        added.retain(|partition| !known.contains(partition));
        if added.is_empty() {
            return Ok(Vec::new());
        }
        let spans = starting.spans_of(&added, None)?;
        known.extend(added);
        Ok(spans)
    }

    pub(crate) fn complain(&self, concern: Concern, reason: String) {
        self.consumer.context().events.complain(concern, reason);
    }

    pub(crate) fn passes(&self, concern: Concern) {
        self.consumer.context().events.passes(concern);
    }

    /// Whether a commit failed because a topic that matched the pattern may be deleted. Such
    /// commits fail until the group learns of it.
    pub(crate) fn has_lost_topic(&self, code: Code) -> bool {
        matches!(self.looks_for, LooksFor::Topics(_)) && code == Code::UnknownTopicOrPartition
    }

    /// Moves the client to the beginning of the topic's partitions.
    pub(crate) fn rewind(&self, topic: &str) -> Result<()> {
        let cannot = |cause| {
            let doing = format!("cannot read topic `{topic}`, which was recreated, from its beginning");
            error(ErrorKind::Source, doing, cause)
        };
        let deadline = Instant::now() + REWIND_WITHIN;
        loop {
            let mut held = self.held.all();
            held.retain(|shared| shared.span.topic == topic);
            let mut list = TopicPartitionList::new();
            for shared in &held {
                add_to(&mut list, (topic, shared.span.partition), Offset::Beginning)
                    .map_err(|cause| not_a_list(topic, cause))?;
            }
            if held.is_empty() {
                // All of its partitions were revoked meanwhile.
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let sought = self.consumer.seek_partitions(list, left).map_err(cannot)?;
            // The client cannot seek in a partition that it does not fetch yet.
            match sought.elements().iter().find_map(|element| element.error().err()) {
                None => {
                    held.iter().for_each(|shared| shared.was_truncated.store(true, SeqCst));
                    return Ok(());
                }
                Some(cause) if left.is_zero() => return Err(cannot(cause)),
                Some(_) => thread::sleep(REWIND_AGAIN_AFTER),
            }
        }
    }

    /// Commits the partitions that are assigned at this moment. Returns how far they are committed
    /// now.
    pub(crate) fn commit(&self, offsets: &Offsets, life: Life) -> Result<Vec<(Partition, i64)>, KafkaError> {
        let positions = Positions::of(&self.consumer);
        let mut list = TopicPartitionList::new();
        let mut committed = Vec::new();
        for partition in self.held.all() {
            if let Some(done) = offsets.get(&partition.span.name) {
                let done = i64::try_from(done.0).unwrap_or(i64::MAX);
                // From an earlier assignment of the partition; another member has read on since.
                if done < partition.span.start && !partition.was_truncated.load(SeqCst) {
                    continue;
                }
                let next = partition.beyond_control_records(done, &positions);
                committed.push((partition.span.name.clone(), next));
                let mut element = list.add_partition(&partition.span.topic, partition.span.partition);
                element.set_offset(Offset::Offset(next))?;
                if let Some(lease) = &self.lease {
                    element.set_metadata(lease.metadata(life));
                }
            }
        }
        if list.count() > 0 {
            self.consumer.commit(&list, CommitMode::Sync)?;
        }
        Ok(committed)
    }

    /// The leases of the runs that committed last.
    pub(crate) fn leases(&self) -> Result<Vec<Lease>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in self.held.all() {
            list.add_partition(&partition.span.topic, partition.span.partition);
        }
        let list = self.consumer.committed_offsets(list, LOOK_WITHIN)?;
        Ok(list.elements().iter().filter_map(|element| Lease::read(element.metadata())).collect())
    }

    pub(crate) fn refused(&self, cause: KafkaError) -> Error {
        let doing = format!("cannot commit offsets of group `{}`", self.group);
        match cause {
            KafkaError::ConsumerCommit(code) if is_lost(code) => {
                let doing = format!("{doing}: the group has members, and this job is not one of them");
                Error::new(ErrorKind::Refused, doing).caused_by(cause)
            }
            cause => error(ErrorKind::Source, doing, cause),
        }
    }

    /// After partitions are revoked, the client resumes fetching those that it keeps only when its
    /// connections have something to do, up to a second later. So this asks each broker for
    /// something (measured: 931 ms without it, 51 ms with it).
    pub(crate) fn nudge(&self) {
        let Ok(metadata) = self.consumer.fetch_metadata(None, Duration::from_secs(1)) else { return };
        let leader = |topic: &str, partition: i32| {
            let topic = metadata.topics().iter().find(|known| known.name() == topic)?;
            topic.partitions().iter().find(|known| known.id() == partition).map(MetadataPartition::leader)
        };
        let mut asked = BTreeSet::new();
        for partition in self.held.all() {
            let span = &partition.span;
            if leader(&span.topic, span.partition).is_some_and(|leader| asked.insert(leader)) {
                // The answer does not matter.
                drop(self.consumer.fetch_watermarks(&span.topic, span.partition, Duration::from_secs(1)));
            }
        }
    }
}
