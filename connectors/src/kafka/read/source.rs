//! Reading topics. A process has one consumer per source, served on the control thread. Each worker
//! polls the queues of its own partitions (`reader`), which are split off before anything is
//! assigned. librdkafka's callback wakes the worker. A partition always belongs to the same worker.
//!
//! A job without an end joins its consumer group (`group`), and partitions are assigned and
//! revoked. A job that has an end, keeps state, or names its partitions assigns
//! them to itself once.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millstream::connector::{
    CheckpointId, Claims, Closing, Committed, Offsets, OpenSource, Partition, Resume, Revoked, SharedSource,
    SourceEvent, Wake,
};
use millstream::{Clock, Error, ErrorKind, Lag, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, Statistics, TopicPartitionList};

use super::consumer::{Context, PARTITIONS_EXPECTED, create, listen, session_timeout};
use super::coordinator::{Coordinator, LooksFor};
use super::group::{Rebalance, list_of};
use super::lease::Lease;
use super::orders::{Answer, Order, Orders};
use super::partition::{Assignment, Claim, Positions, Shared, Span, add_to, next, topic_of};
use super::pattern::Pattern;
use super::reader::{Inbox, Read, owner};
use super::start::{Starting, not_a_list};
use crate::kafka::client::Settings;
use crate::kafka::error::error;
use crate::kafka::options::{EndAt, OnDataLoss};
use crate::kafka::topic::Topic;
use crate::lock;

/// The half of a Kafka source that a process has once.
pub struct KafkaShared<R> {
    pub(crate) consumer: Arc<BaseConsumer<Context>>,
    pub(crate) held: Arc<Assignment>,
    pub(crate) read: R,
    /// The way to each worker's reader.
    pub(crate) inboxes: Vec<Inbox>,
    /// Whether all partitions with which this run begins are in the inboxes.
    pub(crate) is_handed_out: AtomicBool,
    /// Whether records are to have their timestamps as event times.
    pub(crate) wants_times: bool,
    pub(crate) clock: Clock,
    /// Partitions whose queues were split off, for the life of the client.
    split: Mutex<BTreeSet<Partition>>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) group: String,
    /// This run commits nothing.
    leaves_no_trace: bool,
    on_data_loss: OnDataLoss,
    pub(crate) mode: Mode,
    pub(crate) orders: Orders,
    /// A reader's offset is outside of the log.
    pub(crate) out_of_range: AtomicBool,
    pub(crate) wake: Wake,
    looked: Mutex<Option<Instant>>,
    // These two are atomics only because `serve` has no `&mut self`: one thread uses them.
    /// The sum of all `polled` offsets when they were last checked.
    polled: AtomicI64,
    /// Whether it has been logged that the group does not assign partitions.
    has_warned: AtomicBool,
    /// Recreated topics that the client is being moved to the beginning of.
    pub(crate) rewinding: Mutex<BTreeSet<String>>,
}

/// How this source gets its partitions.
pub(crate) enum Mode {
    /// It assigns them to itself at the start. If it `follows` its topics, partitions that are
    /// added to them come later.
    Assigned { spans: Vec<Span>, claim: Mutex<Option<Claim>>, follows: bool },
    /// The group assigns partitions of these topics.
    Member { topics: Mutex<Vec<String>>, pattern: Option<String>, claims: Claims },
}

/// Describes what only one source of a job may read: the group would assign a part to each of two.
fn claim(settings: &Settings, group: &str, topic: &str) -> String {
    format!("topic `{topic}` at {} as group `{group}`", settings.brokers)
}

/// How long a group may take to assign partitions before that is logged. Brokers wait 3 s for
/// further members, and a member that disappeared is waited for.
const SHARED_OUT_WITHIN: Duration = Duration::from_secs(5);

/// How long a member that leaves waits until its broker knows.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// How often positions and end offsets are updated for the report.
const POSITIONS_EVERY: Duration = Duration::from_secs(1);

impl<R: Read> KafkaShared<R> {
    pub(crate) fn connect(topic: &Topic, mut read: R, open: OpenSource) -> Result<KafkaShared<R>> {
        let mut group = topic.source.group.clone().unwrap_or_else(|| open.job.clone());
        if group.is_empty() {
            return Err(Error::new(ErrorKind::Config, "the consumer group must have a name"));
        }
        let leaves_no_trace = open.resume.leaves_no_trace();
        if leaves_no_trace {
            // What the job's group has committed does not count, nor whether the job is running.
            group.push_str(".sample");
        }
        read.open()?;
        let end = match (&topic.source.end_at, open.is_bounded()) {
            (Some(end), _) if *end != EndAt::Never || !open.is_bounded() => end.clone(),
            (_, true) => EndAt::Latest,
            (_, false) => EndAt::Never,
        };
        let joins = topic.source.partitions.is_none() && end == EndAt::Never && !open.keeps_state;
        let mut pattern = Pattern::of(topic)?;
        let mut consumer = create(topic, &group, &end, joins, &open, PARTITIONS_EXPECTED)?;
        let topics = match &mut pattern {
            Some(pattern) => pattern.at_start(&topic.settings, &consumer)?,
            None => topic.names.clone(),
        };
        // For named partitions, `Claim` is more precise.
        if topic.source.partitions.is_none() {
            open.claim(topics.iter().map(|name| claim(&topic.settings, &group, name)))?;
        }
        let starting = Starting {
            consumer: &consumer,
            settings: &topic.settings,
            events: &consumer.context().events,
            named: &topic.names,
            topics: &topics,
            options: &topic.source,
            group: &group,
            end: &end,
            // Not for a member: other members may have read on since.
            resume: (!joins).then(|| open.resume.offsets()),
            is_checkpoint: matches!(open.resume, Resume::Checkpoint(_)),
            leaves_no_trace,
            at_start: None,
        };
        let mut lease = (!joins && !leaves_no_trace).then(|| Lease::new(open.identity.clone()));
        // A member learns later which partitions are its own. That they exist, and that the group
        // answers, is checked now.
        let spans = match joins {
            // Topics of a pattern may be created later.
            true if topics.is_empty() => Vec::new(),
            true => {
                let spans = starting.spans_of(&starting.partitions()?, None)?;
                starting.check_assignor()?;
                // A group without members takes this commit from any client. A process that dies
                // before it is a member finds the start again.
                starting.remember(&spans)?;
                spans
            }
            false => starting.spans(lease.as_mut())?,
        };
        if spans.len() > PARTITIONS_EXPECTED {
            // Each split queue has its own bound, and the bounds of an existing client cannot be
            // changed.
            consumer = create(topic, &group, &end, joins, &open, spans.len())?;
            for name in &topics {
                let (events, ask) =
                    (&consumer.context().events, |wait: Duration| consumer.fetch_metadata(Some(name), wait));
                topic.settings.ask("reach Kafka", events, || listen(&consumer), ask)?;
            }
        }
        let follows = !joins && end == EndAt::Never && topic.source.partitions.is_none();
        let partitions = |spans: &[Span]| spans.iter().map(|span| (span.topic.clone(), span.partition)).collect();
        let looks_for = match (joins, pattern) {
            (true, Some(pattern)) => LooksFor::Topics(pattern),
            (false, pattern) if follows => {
                LooksFor::Partitions { topics: topics.clone(), pattern, known: partitions(&spans) }
            }
            _ => LooksFor::Nothing,
        };
        let at_start = spans.iter().map(|span| ((span.topic.clone(), span.partition), span.high)).collect();
        let mode = if joins {
            let described = topic.is_pattern.then(|| topic.names[0].clone());
            Mode::Member { topics: Mutex::new(topics), pattern: described, claims: open.claims() }
        } else {
            Mode::Assigned { spans, claim: Mutex::default(), follows }
        };
        let (consumer, held) = (Arc::new(consumer), Arc::<Assignment>::default());
        let coordinator = Coordinator {
            consumer: Arc::clone(&consumer),
            held: Arc::clone(&held),
            settings: Arc::clone(&topic.settings),
            options: topic.source.clone(),
            group: group.clone(),
            at_start,
            looks_for,
            patience: joins.then(|| 2 * session_timeout(&topic.settings)),
            lease,
            is_memory: !open.is_checkpointed,
        };
        let orders = Orders::start(coordinator, open.wake.clone())?;
        Ok(KafkaShared {
            consumer,
            held,
            read,
            is_handed_out: AtomicBool::new(false),
            wants_times: open.wants_times,
            inboxes: (0..open.workers).map(|_| Inbox::new(&open.clock)).collect(),
            clock: open.clock.clone(),
            split: Mutex::default(),
            settings: Arc::clone(&topic.settings),
            group,
            leaves_no_trace,
            on_data_loss: topic.source.on_data_loss.unwrap_or_default(),
            mode,
            orders,
            out_of_range: AtomicBool::new(false),
            wake: open.wake,
            looked: Mutex::default(),
            polled: AtomicI64::new(0),
            has_warned: AtomicBool::new(false),
            rewinding: Mutex::default(),
        })
    }

    /// Hands partitions to their readers, which have the queues before a message can arrive in
    /// them.
    fn hand_out(&self, spans: Vec<Span>) -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(spans.len());
        for span in spans {
            add_to(&mut list, (&span.topic, span.partition), Offset::Offset(span.start))
                .map_err(|cause| not_a_list(&span.topic, cause))?;
            let is_new = lock(&self.split).insert(span.name.clone());
            let queue = is_new.then(|| {
                let queue = self.consumer.split_partition_queue(&span.topic, span.partition);
                queue.ok_or_else(|| {
                    Error::new(ErrorKind::Source, format!("cannot split the queue of {} from its consumer", span.name))
                })
            });
            let shared = Shared::new(span);
            self.held.add(&shared);
            self.inboxes[owner(&shared.span, self.inboxes.len())].hand_in(shared, queue.transpose()?);
        }
        Ok(list)
    }

    /// Handles the requests of the group, as far as possible now.
    fn answer_group(&self, changes: &mut Vec<SourceEvent>) {
        let membership = &self.consumer.context().membership;
        // A commit would fail until the client has an answer.
        if let Some(partitions) = membership.lost(&self.consumer) {
            changes.push(SourceEvent::Lost(self.recall(&partitions)));
        }
        while let Some(asked) = membership.next() {
            match &asked {
                Rebalance::Assigned(partitions) if partitions.is_empty() => {
                    membership.assign(&self.consumer, &TopicPartitionList::new());
                    continue;
                }
                Rebalance::Revoked { partitions, .. } if partitions.is_empty() => {
                    membership.unassign(&self.consumer, &TopicPartitionList::new());
                    continue;
                }
                Rebalance::Assigned(partitions) => self.orders.order(Order::Start(partitions.clone())),
                Rebalance::Revoked { partitions, lost } => {
                    let taken = self.recall(partitions);
                    changes.push(if *lost { SourceEvent::Lost(taken) } else { SourceEvent::Revoked(taken) });
                }
            }
            membership.open(asked);
        }
    }

    /// Marks partitions as revoked.
    fn recall(&self, partitions: &[(String, i32)]) -> Revoked {
        let is_asked = |shared: &Shared| partitions.iter().any(|(topic, number)| shared.is(topic, *number));
        let recalled = self.held.all().into_iter().filter(|shared| is_asked(shared));
        let names = recalled.map(|shared| {
            // Before the readers are told: one that has not taken it in never will.
            shared.is_revoked.store(true, SeqCst);
            shared.span.name.clone()
        });
        Revoked::new(names.collect())
    }

    /// Takes over assigned partitions: where they begin is known now.
    fn take_over(&self, spans: Vec<Span>) -> Result<Vec<Partition>> {
        let membership = &self.consumer.context().membership;
        if !membership.taken() {
            return Ok(Vec::new());
        }
        let names = spans.iter().map(|span| span.name.clone()).collect();
        membership.assign(&self.consumer, &self.hand_out(spans)?);
        // The next request may wait for this answer.
        self.wake.wake();
        Ok(names)
    }

    /// Takes in partitions that were added to the topics of a run that assigns them to itself.
    fn take_in(&self, spans: Vec<Span>) -> Result<Vec<Partition>> {
        if let Mode::Assigned { claim, .. } = &self.mode
            && let Some(claim) = &mut *lock(claim)
        {
            claim.extend(&self.settings.brokers, &self.group, &spans)?;
        }
        let names = spans.iter().map(|span| span.name.clone()).collect();
        self.consumer.incremental_assign(&self.hand_out(spans)?).map_err(|cause| self.cannot_read(cause))?;
        Ok(names)
    }

    /// Leaves the group before the client is dropped. A worker that is stuck in user code keeps the
    /// client alive, and a member that is not served keeps its partitions until
    /// `max.poll.interval.ms` has passed.
    fn leave(&self) {
        if self.consumer.close_queue().is_err() {
            return;
        }
        let deadline = Instant::now() + LEAVE_WITHIN;
        while !self.consumer.closed() && Instant::now() < deadline {
            // Requests of the group that arrive meanwhile are granted in the callback.
            drop(self.consumer.poll(Duration::from_millis(5)));
        }
    }

    /// Whether lost records are skipped instead of ending the run.
    pub(crate) fn skips_losses(&self) -> bool {
        self.on_data_loss == OnDataLoss::Skip
    }

    /// Subscribes to these topics instead of the previous ones.
    fn subscribe(&self, topics: &[String]) -> Result<()> {
        if topics.is_empty() {
            // The client rejects a list without topics.
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

    /// Switches to the topics that match the pattern now.
    fn follow(&self, now: &[String]) -> Result<()> {
        let Mode::Member { topics, claims, .. } = &self.mode else { return Ok(()) };
        tracing::info!(group = self.group, topics = ?now, "the topics that match the pattern have changed");
        claims.claim(now.iter().map(|name| claim(&self.settings, &self.group, name)))?;
        self.subscribe(now)?;
        let before = std::mem::replace(&mut *lock(topics), now.to_vec());
        if before.is_empty() {
            // Only the first subscription is certain to be answered.
            self.consumer.context().membership.waits();
        }
        // The client has new queues for a deleted topic that is created again.
        lock(&self.split).retain(|partition| now.iter().any(|topic| topic_of(partition) == topic));
        Ok(())
    }

    /// Updates positions and end offsets from what the client and its statistics report.
    fn look_at_ends(&self) {
        let positions = Positions::of(&self.consumer);
        let statistics = self.consumer.context().statistics();
        let (held, membership) = (self.held.all(), &self.consumer.context().membership);
        let polled: i64 = held.iter().map(|shared| shared.polled.load(SeqCst)).sum();
        let has_read = self.polled.swap(polled, SeqCst) != polled;
        let is_up = |statistics: &Statistics| statistics.brokers.values().any(|broker| broker.state == "UP");
        if has_read || statistics.as_ref().is_some_and(is_up) && membership.waiting().is_none() {
            self.consumer.context().events.progressed();
        }
        let mut has_passed = false;
        for shared in held {
            let span = &shared.span;
            let told = statistics
                .as_ref()
                .and_then(|statistics| statistics.topics.get(&span.topic)?.partitions.get(&span.partition));
            // The last stable offset is the end for a consumer that reads only committed records.
            let end = told.map(|told| if told.ls_offset >= 0 { told.ls_offset } else { told.hi_offset });
            shared.hear(positions.get(span), end);
            has_passed |= positions.get(span).is_some_and(|position| position > shared.polled.load(SeqCst));
            if let Some(told) = told {
                shared.hear_end(told.eof_offset);
                let is_behind = (0..told.hi_offset).contains(&told.ls_offset);
                shared.has_uncommitted.store(is_behind, SeqCst);
            }
        }
        if has_passed && !self.leaves_no_trace {
            self.orders.order(Order::Settle);
        }
        self.consumer.context().events.log_what_lasts();
        match membership.waiting() {
            None => self.has_warned.store(false, SeqCst),
            Some(waited) if waited >= SHARED_OUT_WITHIN && !self.has_warned.swap(true, SeqCst) => {
                tracing::warn!("waiting for group `{}` to assign partitions", self.group);
            }
            Some(_) => {}
        }
    }

    /// What a member without partitions waits for.
    fn lacks_partitions(&self) -> Option<String> {
        let Mode::Member { topics, pattern, .. } = &self.mode else { return None };
        if let Some(pattern) = pattern.as_ref().filter(|_| lock(topics).is_empty()) {
            return Some(format!("a topic that matches `{pattern}` at {}", self.settings.brokers));
        }
        self.consumer.context().membership.waiting()?;
        Some(format!("group `{}` to assign partitions", self.group))
    }
}

impl<R: Read> SharedSource for KafkaShared<R> {
    fn begin(&self) -> Result<()> {
        match &self.mode {
            Mode::Assigned { spans, claim, follows } => {
                *lock(claim) = Some(Claim::new(&self.settings.brokers, &self.group, spans)?);
                // A process that dies before its first commit must find the same start again, so a
                // start that may change is committed now. Offsets that other runs have committed
                // are committed again with the lease of this run, so that the other runs see
                // it.
                let told = spans.iter().filter(|span| span.must_commit_start || span.is_known);
                let starts: Offsets = told.map(|span| (span.name.clone(), next(span.start))).collect();
                let list = self.hand_out(spans.clone())?;
                // Before the first record can be read of any of them.
                self.is_handed_out.store(true, SeqCst);
                if !follows {
                    self.inboxes.iter().for_each(Inbox::close);
                }
                if !starts.is_empty() && !self.leaves_no_trace {
                    self.orders.order(Order::Commit(CheckpointId::default(), starts));
                }
                self.consumer.assign(&list).map_err(|cause| self.cannot_read(cause))
            }
            Mode::Member { topics, .. } => {
                let topics = lock(topics);
                // While nothing matches the pattern, there is nothing to subscribe to.
                if topics.is_empty() {
                    return Ok(());
                }
                self.consumer.context().membership.waits();
                self.subscribe(&topics)
            }
        }
    }

    fn serve(&self) -> Result<Vec<SourceEvent>> {
        self.events()?;
        if self.out_of_range.load(SeqCst) {
            return Err(self.data_loss());
        }
        self.look_at_recreated()?;
        let mut looked = lock(&self.looked);
        if looked.is_none_or(|looked| looked.elapsed() >= POSITIONS_EVERY) {
            *looked = Some(Instant::now());
            self.look_at_ends();
        }
        let mut changes = Vec::new();
        for answer in self.orders.answers() {
            match answer? {
                Answer::Committed(checkpoint) => changes.push(SourceEvent::Committed(checkpoint)),
                Answer::Started(spans) => changes.push(SourceEvent::Assigned(self.take_over(spans)?)),
                Answer::Topics(topics) => self.follow(&topics)?,
                Answer::Added(spans) => changes.push(SourceEvent::Assigned(self.take_in(spans)?)),
                Answer::Rewound(topic) => {
                    lock(&self.rewinding).remove(&topic);
                    self.consumer.context().rewound(&topic);
                }
            }
        }
        self.answer_group(&mut changes);
        Ok(changes)
    }

    fn commit(&self, checkpoint: CheckpointId, offsets: &Offsets) -> Result<Committed> {
        self.orders.order(Order::Commit(checkpoint, offsets.clone()));
        Ok(Committed::Later)
    }

    fn unassign(&self, taken: Revoked) -> Result<()> {
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
            // Partitions that the group assigns in a later run may have been read by others in
            // between.
            Mode::Member { .. } => Offsets::new(),
        }
    }

    fn lag(&self) -> Vec<Lag> {
        self.held.all().iter().map(|shared| shared.lag()).collect()
    }

    fn waiting(&self) -> Option<String> {
        self.consumer.context().events.waiting().or_else(|| self.lacks_partitions())
    }

    fn close(&self, closing: Closing) {
        if let Mode::Assigned { claim, .. } = &self.mode {
            // Released here, because a stuck worker may never let go of this source.
            drop(lock(claim).take());
        }
        self.orders.close(closing);
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
