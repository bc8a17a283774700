//! Reading topics. A process has one consumer, connected, served and destroyed on the control thread; each worker polls
//! the queues of its own partitions (`reader`), which are split off before anything is assigned, and is woken by librdkafka's
//! callback. A partition belongs to the same worker whenever it is ours.
//!
//! A job that runs without an end joins its consumer group (`group`): partitions come and go. One that has an end, or that
//! names its partitions, assigns them to itself, once.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millstream::{
    Change, CheckpointId, Claims, Clock, Error, ErrorKind, Lag, Last, Offsets, OpenSource, Partition, Progress, Result,
    SharedSource, Taken, Wake,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, Statistics, TopicPartitionList};

use super::client::Settings;
use super::consumer::{Context, PARTITIONS_EXPECTED, create, listen, session_timeout};
use super::coordinator::Coordinator;
use super::error::error;
use super::group::{Asked, list_of};
use super::lock;
use super::orders::{Answer, Order, Orders};
use super::partition::{Claim, Held, Positions, Shared, topic_of};
use super::pattern::Pattern;
use super::reader::{Door, Read, owner};
use super::signature::Signature;
use super::start::{DataLoss, End, Span, Starting, next, not_a_list};
use super::topic::Topic;

/// The half of a Kafka source that a process has once.
pub struct KafkaShared<R> {
    pub(super) consumer: Arc<BaseConsumer<Context>>,
    pub(super) held: Arc<Held>,
    pub(super) read: R,
    /// To each worker's reader.
    pub(super) doors: Vec<Door>,
    pub(super) clock: Clock,
    /// Partitions whose queues were split off, for the life of the client.
    split: Mutex<BTreeSet<Partition>>,
    pub(super) settings: Arc<Settings>,
    pub(super) group: String,
    /// Nothing of this run is committed.
    compared: bool,
    on_data_loss: DataLoss,
    pub(super) mode: Mode,
    pub(super) orders: Orders,
    /// A reader stands outside of its log.
    pub(super) out_of_range: AtomicBool,
    pub(super) wake: Wake,
    looked: Mutex<Option<Instant>>,
    /// The sum of what was polled when that was looked at.
    polled: AtomicI64,
    /// That the group does not share its partitions out was told.
    has_told: AtomicBool,
    /// Topics that the client is being set back in.
    pub(super) rewinding: Mutex<BTreeSet<String>>,
}

/// Who says which partitions are ours.
pub(super) enum Mode {
    /// We do, once, at the start.
    Assigned { spans: Vec<Span>, claim: Mutex<Option<Claim>> },
    /// The group does, of these topics.
    Member { topics: Mutex<Vec<String>>, pattern: Option<String>, claims: Claims },
}

/// What no two sources of a job may read: the group would give each of them a part.
fn claim(settings: &Settings, group: &str, topic: &str) -> String {
    format!("topic `{topic}` at {} as group `{group}`", settings.brokers)
}

/// How long a group may take to share partitions out before that is told: brokers wait 3 s for further members, and a member
/// that is gone without a word is waited for.
const SHARED_OUT_WITHIN: Duration = Duration::from_secs(5);

/// How long a member waits until its broker knows that it leaves.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// How often positions are compared with ends for the report.
const POSITIONS_EVERY: Duration = Duration::from_secs(1);

impl<R: Read> KafkaShared<R> {
    pub(super) fn connect(topic: &Topic, mut read: R, open: OpenSource) -> Result<KafkaShared<R>> {
        let mut group = topic.source.group.clone().unwrap_or_else(|| open.job.clone());
        if group.is_empty() {
            return Err(Error::new(ErrorKind::Option, "the consumer group must have a name"));
        }
        if open.compared {
            // What its job has committed, and whether that runs, is nothing to a comparison.
            group.push_str(".compare");
        }
        read.open()?;
        let end = match (&topic.source.end_at, open.bounded) {
            (Some(end), _) if *end != End::Never || !open.bounded => end.clone(),
            (_, true) => End::Latest,
            (_, false) => End::Never,
        };
        let joins = topic.source.partitions.is_none() && end == End::Never;
        let mut pattern = Pattern::of(topic)?;
        let mut consumer = create(topic, &group, &end, joins, &open, PARTITIONS_EXPECTED)?;
        let topics = match &mut pattern {
            Some(pattern) => pattern.at_start(&topic.settings, &consumer)?,
            None => topic.names.clone(),
        };
        // Of partitions that are named the `Claim` knows more.
        if topic.source.partitions.is_none() {
            open.claim(topics.iter().map(|name| claim(&topic.settings, &group, name)))?;
        }
        let starting = Starting {
            consumer: &consumer,
            settings: &topic.settings,
            heard: &consumer.context().heard,
            named: &topic.names,
            topics: &topics,
            options: &topic.source,
            group: &group,
            end: &end,
            // For a member others may have read on.
            resume: open.resume.as_ref().filter(|_| !joins),
            compared: open.compared,
            at_start: None,
        };
        let mut signature = (!joins && !open.compared).then(Signature::new);
        // A member is told later which of them are its own; that they exist, and that the group can be asked, is known now.
        let spans = match joins {
            // Topics of a pattern may be made later.
            true if topics.is_empty() => Vec::new(),
            true => {
                let spans = starting.spans_of(&starting.partitions()?, None)?;
                starting.check_assignor()?;
                // A group without members takes it from anybody, and a process that dies before it is one finds it again.
                starting.remember(&spans)?;
                spans
            }
            false => starting.spans(signature.as_mut())?,
        };
        if spans.len() > PARTITIONS_EXPECTED {
            // Split queues are bounded one by one, and a client's bounds cannot be changed.
            consumer = create(topic, &group, &end, joins, &open, spans.len())?;
            for name in &topics {
                let (heard, ask) =
                    (&consumer.context().heard, |wait: Duration| consumer.fetch_metadata(Some(name), wait));
                topic.settings.ask("reach Kafka", heard, || listen(&consumer), ask)?;
            }
        }
        let at_start = spans.iter().map(|span| ((span.topic.clone(), span.partition), span.high)).collect();
        let mode = if joins {
            let described = pattern.as_ref().map(|_| topic.names[0].clone());
            Mode::Member { topics: Mutex::new(topics), pattern: described, claims: open.claims() }
        } else {
            Mode::Assigned { spans, claim: Mutex::default() }
        };
        let (consumer, held) = (Arc::new(consumer), Arc::<Held>::default());
        let coordinator = Coordinator {
            consumer: Arc::clone(&consumer),
            held: Arc::clone(&held),
            settings: Arc::clone(&topic.settings),
            options: topic.source.clone(),
            group: group.clone(),
            at_start,
            pattern: pattern.filter(|_| joins),
            patience: joins.then(|| 2 * session_timeout(&topic.settings)),
            signature,
        };
        let orders = Orders::start(coordinator, open.wake.clone())?;
        Ok(KafkaShared {
            consumer,
            held,
            read,
            doors: (0..open.workers).map(|_| Door::new(&open.clock)).collect(),
            clock: open.clock.clone(),
            split: Mutex::default(),
            settings: Arc::clone(&topic.settings),
            group,
            compared: open.compared,
            on_data_loss: topic.source.on_data_loss.unwrap_or_default(),
            mode,
            orders,
            out_of_range: AtomicBool::new(false),
            wake: open.wake,
            looked: Mutex::default(),
            polled: AtomicI64::new(0),
            has_told: AtomicBool::new(false),
            rewinding: Mutex::default(),
        })
    }

    /// Makes partitions ours: their readers have their queues before anything can come into those.
    fn hand_out(&self, spans: Vec<Span>) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(spans.len());
        for span in spans {
            list.add_partition_offset(&span.topic, span.partition, Offset::Offset(span.start))
                .map_err(|cause| not_a_list(&span.topic, cause))?;
            let is_new = lock(&self.split).insert(span.name.clone());
            let queue = is_new.then(|| {
                let queue = self.consumer.split_partition_queue(&span.topic, span.partition);
                queue.ok_or_else(|| {
                    Error::new(ErrorKind::Source, format!("cannot split the queue of {} off its consumer", span.name))
                })
            });
            let shared = Shared::new(span);
            self.held.add(&shared);
            self.doors[owner(&shared.span, self.doors.len())].hand_in(shared, queue.transpose()?);
        }
        Ok(list)
    }

    /// Does what the group asks for, as far as it can be done now.
    fn answer_group(&self, changes: &mut Vec<Change>) {
        let membership = &self.consumer.context().membership;
        while let Some(asked) = membership.next() {
            match &asked {
                Asked::Take(partitions) if partitions.is_empty() => {
                    membership.assign(&self.consumer, &TopicPartitionList::new());
                    continue;
                }
                Asked::Return { partitions, .. } if partitions.is_empty() => {
                    membership.unassign(&self.consumer, &TopicPartitionList::new());
                    continue;
                }
                Asked::Take(partitions) => self.orders.order(Order::Start(partitions.clone())),
                Asked::Return { partitions, lost } => {
                    let is_asked = |shared: &Shared| partitions.iter().any(|(topic, number)| shared.is(topic, *number));
                    let recalled = self.held.all().into_iter().filter(|shared| is_asked(shared));
                    let names = recalled.map(|shared| {
                        shared.is_recalled.store(true, SeqCst);
                        shared.span.name.clone()
                    });
                    let taken = Taken::new(names.collect());
                    changes.push(if *lost { Change::Lost(taken) } else { Change::Taken(taken) });
                }
            }
            membership.open(asked);
        }
    }

    /// Where given partitions begin is known: now they are ours.
    fn take_over(&self, spans: Vec<Span>) -> Result<Vec<Partition>> {
        let membership = &self.consumer.context().membership;
        if !membership.taken() {
            return Ok(Vec::new());
        }
        let names = spans.iter().map(|span| span.name.clone()).collect();
        membership.assign(&self.consumer, &self.hand_out(spans)?);
        // Another request may wait for this answer.
        self.wake.wake();
        Ok(names)
    }

    /// Leaves the group before the client is dropped: a worker that is stuck in user code keeps that, and a member that nobody
    /// serves holds its partitions until `max.poll.interval.ms` has passed.
    fn leave(&self) {
        if self.consumer.close_queue().is_err() {
            return;
        }
        let deadline = Instant::now() + LEAVE_WITHIN;
        while !self.consumer.closed() && Instant::now() < deadline {
            // What the group asks for meanwhile is granted in the callback.
            drop(self.consumer.poll(Duration::from_millis(5)));
        }
    }

    /// Whether reading goes on where the log is, when it is not where it was.
    pub(super) fn skips_losses(&self) -> bool {
        self.on_data_loss == DataLoss::Skip
    }

    /// Reads other topics from now on.
    fn subscribe(&self, topics: &[String]) -> Result<()> {
        if topics.is_empty() {
            // The client takes no list without a topic.
            self.consumer.unsubscribe();
            return Ok(());
        }
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&names).map_err(|cause| self.cannot_read(cause))
    }

    fn cannot_read(&self, cause: KafkaError) -> Error {
        let doing = format!("cannot read as group `{}` at {}", self.group, self.settings.brokers);
        error(ErrorKind::Source, doing, cause)
    }

    /// Other topics match the pattern now.
    fn follow(&self, now: &[String]) -> Result<()> {
        let Mode::Member { topics, claims, .. } = &self.mode else { return Ok(()) };
        tracing::info!(group = self.group, topics = ?now, "the topics that match the pattern have changed");
        claims.claim(now.iter().map(|name| claim(&self.settings, &self.group, name)))?;
        self.subscribe(now)?;
        let before = std::mem::replace(&mut *lock(topics), now.to_vec());
        if before.is_empty() {
            // Only a first list brings an answer for sure.
            self.consumer.context().membership.waits();
        }
        // When one that is gone is made again, the client has other queues of it.
        lock(&self.split).retain(|partition| now.iter().any(|topic| topic_of(partition) == topic));
        Ok(())
    }

    /// Takes over what the client's statistics and positions say of ends.
    fn look_at_ends(&self) {
        let positions = Positions::of(&self.consumer);
        let statistics = self.consumer.context().statistics();
        let (held, membership) = (self.held.all(), &self.consumer.context().membership);
        let polled: i64 = held.iter().map(|shared| shared.polled.load(SeqCst)).sum();
        let has_read = self.polled.swap(polled, SeqCst) != polled;
        let is_up = |statistics: &Statistics| statistics.brokers.values().any(|broker| broker.state == "UP");
        if has_read || statistics.as_ref().is_some_and(is_up) && membership.waiting().is_none() {
            self.consumer.context().heard.goes_on();
        }
        let mut has_passed = false;
        for shared in held {
            let span = &shared.span;
            let told = statistics
                .as_ref()
                .and_then(|statistics| statistics.topics.get(&span.topic)?.partitions.get(&span.partition));
            // The last stable offset is the end for those who read committed records only.
            let end = told.map(|told| if told.ls_offset >= 0 { told.ls_offset } else { told.hi_offset });
            shared.hear(positions.get(span), end);
            has_passed |= positions.get(span).is_some_and(|position| position > shared.polled.load(SeqCst));
            if let Some(told) = told {
                shared.hear_end(told.eof_offset);
            }
        }
        if has_passed && !self.compared {
            self.orders.order(Order::Settle);
        }
        self.consumer.context().heard.tell_what_lasts();
        match membership.waiting() {
            None => self.has_told.store(false, SeqCst),
            Some(waited) if waited >= SHARED_OUT_WITHIN && !self.has_told.swap(true, SeqCst) => {
                tracing::warn!("waiting for group `{}` to share its partitions out", self.group);
            }
            Some(_) => {}
        }
    }

    /// Why a member has nothing to read.
    fn lacks_partitions(&self) -> Option<String> {
        let Mode::Member { topics, pattern, .. } = &self.mode else { return None };
        if let Some(pattern) = pattern.as_ref().filter(|_| lock(topics).is_empty()) {
            return Some(format!("a topic that matches `{pattern}` at {}", self.settings.brokers));
        }
        self.consumer.context().membership.waiting()?;
        Some(format!("group `{}` to share its partitions out", self.group))
    }
}

impl<R: Read> SharedSource for KafkaShared<R> {
    fn begin(&self) -> Result<()> {
        match &self.mode {
            Mode::Assigned { spans, claim } => {
                *lock(claim) = Some(Claim::new(&self.settings.brokers, &self.group, spans)?);
                // A process that dies before its first commit must find a passing start again; and what others have
                // committed is signed, so that they see it.
                let told = spans.iter().filter(|span| span.is_passing || span.is_known);
                let starts: Offsets = told.map(|span| (span.name.clone(), next(span.start))).collect();
                let list = self.hand_out(spans.clone())?;
                self.doors.iter().for_each(Door::close);
                if !starts.is_empty() && !self.compared {
                    self.orders.order(Order::Commit(CheckpointId::default(), starts));
                }
                self.consumer.assign(&list).map_err(|cause| self.cannot_read(cause))
            }
            Mode::Member { topics, .. } => {
                let topics = lock(topics);
                // Of a pattern that nothing matches yet there is nothing to subscribe to.
                if topics.is_empty() {
                    return Ok(());
                }
                self.consumer.context().membership.waits();
                self.subscribe(&topics)
            }
        }
    }

    fn serve(&self) -> Result<Vec<Change>> {
        self.events()?;
        if self.out_of_range.load(SeqCst) {
            return Err(self.data_loss());
        }
        self.look_at_remade()?;
        let mut looked = lock(&self.looked);
        if looked.is_none_or(|looked| looked.elapsed() >= POSITIONS_EVERY) {
            *looked = Some(Instant::now());
            self.look_at_ends();
        }
        let mut changes = Vec::new();
        for answer in self.orders.answers() {
            match answer? {
                Answer::Committed(checkpoint) => changes.push(Change::Committed(checkpoint)),
                Answer::Started(spans) => changes.push(Change::Given(self.take_over(spans)?)),
                Answer::Topics(topics) => self.follow(&topics)?,
                Answer::Rewound(topic) => {
                    lock(&self.rewinding).remove(&topic);
                    self.consumer.context().rewound(&topic);
                }
            }
        }
        self.answer_group(&mut changes);
        Ok(changes)
    }

    fn commit(&self, checkpoint: CheckpointId, offsets: &Offsets) -> Result<Progress> {
        self.orders.order(Order::Commit(checkpoint, offsets.clone()));
        Ok(Progress::Pending)
    }

    fn give_back(&self, taken: Taken) -> Result<()> {
        self.held.remove(taken.partitions());
        let membership = &self.consumer.context().membership;
        if let Some(partitions) = membership.returned() {
            membership.unassign(&self.consumer, &list_of(&partitions));
            self.orders.order(Order::Nudge);
            self.wake.wake();
        }
        Ok(())
    }

    fn started_at(&self) -> Offsets {
        match &self.mode {
            Mode::Assigned { spans, .. } => spans.iter().map(|span| (span.name.clone(), next(span.start))).collect(),
            // What the group gives in a later run may have been read by others in between.
            Mode::Member { .. } => Offsets::new(),
        }
    }

    fn lag(&self) -> Vec<Lag> {
        self.held.all().iter().map(|shared| shared.lag()).collect()
    }

    fn waiting(&self) -> Option<String> {
        self.consumer.context().heard.waiting().or_else(|| self.lacks_partitions())
    }

    fn close(&self, last: Last) {
        if let Mode::Assigned { claim, .. } = &self.mode {
            // Also when a worker that is stuck never lets go of this source.
            drop(lock(claim).take());
        }
        self.orders.close(last);
        self.consumer.context().membership.close(&self.consumer);
        if matches!(&self.mode, Mode::Member { .. }) {
            self.leave();
        }
    }
}

impl<R> fmt::Debug for KafkaShared<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kafka group `{}`, {} partitions", self.group, self.held.all().len())
    }
}
