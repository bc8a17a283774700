//! What is asked of the group's coordinator, by whoever may wait for it: commits, who commits beside us, and where partitions
//! begin that the group gives us.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use millstream::{Error, ErrorKind, Offsets, Partition, Result};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataPartition;
use rdkafka::{Offset, TopicPartitionList};

use super::client::Settings;
use super::consumer::Context;
use super::error::{error, is_lost};
use super::heard::With;
use super::options::SourceOptions;
use super::partition::{Held, Positions};
use super::pattern::Pattern;
use super::signature::{Life, Signature};
use super::start::{End, Span, Starting, not_a_list};

/// How long the client may take to stand at the beginning of a topic.
const REWIND_WITHIN: Duration = Duration::from_secs(5);
const REWIND_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How long the group is asked who has committed.
const LOOK_WITHIN: Duration = Duration::from_secs(1);

/// A group, and what has to be known to ask it.
pub(super) struct Coordinator {
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) held: Arc<Held>,
    pub(super) settings: Arc<Settings>,
    pub(super) options: SourceOptions,
    pub(super) group: String,
    /// Ends of the log at the moment of start, for a start that is another one later.
    pub(super) at_start: BTreeMap<(String, i32), i64>,
    /// Which topics a member reads that names them by a pattern.
    pub(super) pattern: Option<Pattern>,
    /// How long a member of the group may be unable to commit; `None` for those that are no member.
    pub(super) patience: Option<Duration>,
    /// Under what, because no group knows of this run, commits are signed.
    pub(super) signature: Option<Signature>,
}

impl Coordinator {
    /// Where partitions begin. A start that is another one later is fixed for the whole topic by whoever meets it first:
    /// another member would take a topic of which some partitions have offsets for one that was read before.
    pub(super) fn starts(&self, partitions: &[(String, i32)]) -> Result<Vec<Span>> {
        let topics: BTreeSet<String> = partitions.iter().map(|(topic, _)| topic.clone()).collect();
        let topics: Vec<String> = topics.into_iter().collect();
        let at_start = self.options.start_is_passing().then_some(&self.at_start);
        let starting = Starting {
            consumer: &self.consumer,
            settings: &self.settings,
            heard: &self.consumer.context().heard,
            named: &topics,
            topics: &topics,
            options: &self.options,
            group: &self.group,
            end: &End::Never,
            resume: None,
            compared: false,
            at_start,
        };
        // The client asks nobody about partitions that it has not heard of, and a broker may not have heard of the newest yet.
        let mut all = Vec::new();
        for topic in &topics {
            match (Starting { topics: std::slice::from_ref(topic), ..starting }).existing() {
                Ok(partitions) => all.extend(partitions),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if !self.options.start_is_passing() {
            return starting.spans_of(partitions, None);
        }
        all.extend(partitions.iter().filter(|asked| !all.contains(asked)).cloned().collect::<Vec<_>>());
        let mut spans = starting.spans_of(&all, None)?;
        starting.remember(&spans)?;
        spans.retain(|span| partitions.iter().any(|(topic, number)| *topic == span.topic && *number == span.partition));
        Ok(spans)
    }

    pub(super) fn complain(&self, with: With, reason: String) {
        self.consumer.context().heard.complain(with, reason);
    }

    pub(super) fn passes(&self, with: With) {
        self.consumer.context().heard.passes(with);
    }

    /// A topic that matched the pattern may be gone: what is committed of it is not taken until the group knows.
    pub(super) fn has_lost_topic(&self, code: Code) -> bool {
        self.pattern.is_some() && code == Code::UnknownTopicOrPartition
    }

    /// Has the client read the partitions of a topic from their beginning.
    pub(super) fn rewind(&self, topic: &str) -> Result<()> {
        let cannot = |cause| {
            let doing = format!("cannot read topic `{topic}`, which was made anew, from its beginning");
            error(ErrorKind::Source, doing, cause)
        };
        let deadline = Instant::now() + REWIND_WITHIN;
        loop {
            let mut held = self.held.all();
            held.retain(|shared| shared.span.topic == topic);
            let mut list = TopicPartitionList::new();
            for shared in &held {
                list.add_partition_offset(topic, shared.span.partition, Offset::Beginning)
                    .map_err(|cause| not_a_list(topic, cause))?;
            }
            if held.is_empty() {
                // All of it was given back meanwhile.
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let sought = self.consumer.seek_partitions(list, left).map_err(cannot)?;
            // A partition that the client does not fetch yet cannot be moved yet.
            match sought.elements().iter().find_map(|element| element.error().err()) {
                None => {
                    held.iter().for_each(|shared| shared.went_back.store(true, SeqCst));
                    return Ok(());
                }
                Some(cause) if left.is_zero() => return Err(cannot(cause)),
                Some(_) => thread::sleep(REWIND_AGAIN_AFTER),
            }
        }
    }

    /// Commits for those partitions that are ours at this moment. Returns how far they are committed now.
    pub(super) fn commit(&self, offsets: &Offsets, life: Life) -> Result<Vec<(Partition, i64)>, KafkaError> {
        let positions = Positions::of(&self.consumer);
        let mut list = TopicPartitionList::new();
        let mut committed = Vec::new();
        for partition in self.held.all() {
            if let Some(done) = offsets.get(&partition.span.name) {
                let done = i64::try_from(done.0).unwrap_or(i64::MAX);
                // Of an earlier time that it was ours; others have read on since.
                if done < partition.span.start && !partition.went_back.load(SeqCst) {
                    continue;
                }
                let next = partition.beyond_control_records(done, &positions);
                committed.push((partition.span.name.clone(), next));
                list.add_partition_offset(&partition.span.topic, partition.span.partition, Offset::Offset(next))?;
                let element = list.find_partition(&partition.span.topic, partition.span.partition);
                if let Some((signature, mut element)) = self.signature.as_ref().zip(element) {
                    element.set_metadata(signature.metadata(life));
                }
            }
        }
        if list.count() > 0 {
            self.consumer.commit(&list, CommitMode::Sync)?;
        }
        Ok(committed)
    }

    /// Who has committed last.
    pub(super) fn signatures(&self) -> Result<Vec<Signature>, KafkaError> {
        let mut list = TopicPartitionList::new();
        for partition in self.held.all() {
            list.add_partition(&partition.span.topic, partition.span.partition);
        }
        let list = self.consumer.committed_offsets(list, LOOK_WITHIN)?;
        Ok(list.elements().iter().filter_map(|element| Signature::read(element.metadata())).collect())
    }

    pub(super) fn refused(&self, cause: KafkaError) -> Error {
        let doing = format!("cannot commit offsets of group `{}`", self.group);
        match cause {
            KafkaError::SetPartitionOffset(_) => not_a_list(&self.group, cause),
            KafkaError::ConsumerCommit(code) if is_lost(code) => {
                let doing = format!("{doing}: the group has members, and this job is none of them");
                Error::new(ErrorKind::Refused, doing).caused_by(cause)
            }
            cause => error(ErrorKind::Source, doing, cause),
        }
    }

    /// After a hand-over the client goes on fetching what it keeps only when its connections have something to do, up to a
    /// second later (measured: 931 ms, and 51 with this).
    pub(super) fn nudge(&self) {
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
