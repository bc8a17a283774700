//! The thread that makes the blocking calls to the group's [`coordinator`](super::coordinator), and
//! sleeps between them. No other thread may block on them, and an asynchronous commit is not an
//! alternative: its result never reaches the application through the client's event interface
//! (librdkafka 2.12 posts it only for a callback that rdkafka 0.39 does not set).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use millstream::connector::{CheckpointId, Closing, Offsets, Partition, Wake, spawn_watched};
use millstream::{Error, ErrorKind, Result};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::coordinator::{Coordinator, LooksFor};
use super::lease::{Life, RENEW_EVERY};
use super::partition::{Positions, Span, next, topic_of};
use super::pattern::look_every;
use crate::kafka::client_events::Concern;
use crate::kafka::error::{is_changing, is_lost, is_transient};
use crate::lock;

/// The pause before a failed request is retried. A commit is retried with the newest offsets.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// By this time every broker knows a partition that the group has assigned.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// As [`AGAIN_AFTER`], but during a rebalance: shorter, because members wait for partitions.
const AGAIN_SOON: Duration = Duration::from_millis(20);
/// How long the end of a run waits for a commit in progress.
const CLOSE_WITHIN: Duration = Duration::from_millis(200);
/// How often the thread looks for topics while the pattern matches none.
const LOOK_FOR_FIRST_EVERY: Duration = Duration::from_secs(1);

/// A request to the thread.
#[derive(Debug)]
pub(crate) enum Order {
    Commit(CheckpointId, Offsets),
    /// Find where these partitions begin.
    Start(Vec<(String, i32)>),
    /// Partitions were unassigned. Send a request to the brokers of the others, so that the client
    /// resumes fetching them at once.
    Nudge,
    /// Positions have moved past offsets without records. Commit them, although nothing was read.
    Settle,
    /// The topic was recreated. Read it from its beginning.
    Rewind(String),
    /// The job ends with this run.
    SignOff,
}

/// The answer to an [`Order`].
#[derive(Debug)]
pub(crate) enum Answer {
    /// This commit, and those before it, are done.
    Committed(CheckpointId),
    Started(Vec<Span>),
    /// The topics that match the pattern now.
    Topics(Vec<String>),
    /// Partitions that are new.
    Added(Vec<Span>),
    Rewound(String),
}

type Answers = Arc<Mutex<Vec<Result<Answer>>>>;

/// The handle of the thread: sends it orders and takes its answers.
pub(crate) struct Orders {
    orders: Mutex<Option<Sender<Order>>>,
    answers: Answers,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The run no longer waits for the thread, and another run may have begun.
    is_left: Arc<AtomicBool>,
}

impl Orders {
    /// Starts the thread, which wakes `wake` for each answer.
    pub(crate) fn start(coordinator: Coordinator, wake: Wake) -> Result<Orders> {
        // Unbounded, because the control thread must not wait for a broker. It gives few orders: a
        // commit for each checkpoint, of which only the newest is kept, and one for each rebalance.
        let (orders, receiver) = mpsc::channel();
        let (answers, is_left) = (Answers::default(), Arc::<AtomicBool>::default());
        let work = Work::new(coordinator, (Arc::clone(&answers), wake.clone()), Arc::clone(&is_left));
        let failed = Arc::clone(&answers);
        let thread = spawn_watched(
            "group",
            move || work.run(&receiver),
            move |error| {
                lock(&failed).push(Err(error));
                wake.wake();
            },
        )?;
        Ok(Orders { orders: Mutex::new(Some(orders)), answers, thread: Mutex::new(Some(thread)), is_left })
    }

    /// Sends an order; never blocks.
    pub(crate) fn order(&self, order: Order) {
        if let Some(orders) = &*lock(&self.orders) {
            // When this fails, the thread has already answered with the error that ends the run.
            drop(orders.send(order));
        }
    }

    /// The answers since the last call.
    pub(crate) fn answers(&self) -> Vec<Result<Answer>> {
        std::mem::take(&mut *lock(&self.answers))
    }

    /// Ends the thread. It is left to end by itself if it waits for an absent broker.
    pub(crate) fn close(&self, closing: Closing) {
        self.order(Order::Settle);
        if closing == Closing::Job {
            self.order(Order::SignOff);
        }
        drop(lock(&self.orders).take());
        let Some(thread) = lock(&self.thread).take() else { return };
        let deadline = Instant::now() + CLOSE_WITHIN;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.is_left.store(true, SeqCst);
        if thread.is_finished() {
            drop(thread.join());
        }
    }
}

/// A pending request for the starts of partitions.
struct Rebalance {
    partitions: Vec<(String, i32)>,
    /// When the group assigned them.
    given: Instant,
    /// When the request is sent or retried.
    at: Instant,
}

/// The state of the thread: what it still has to do.
struct Work {
    coordinator: Coordinator,
    answers: Answers,
    wake: Wake,
    /// The next commit, and when it is sent or retried. A newer commit is merged into it.
    commit: Option<(CheckpointId, Offsets, Instant)>,
    start: Option<Rebalance>,
    /// Since when the group has answered that this consumer is not a member.
    refused_since: Option<Instant>,
    /// The offsets that this run has signed, and when the lease is renewed.
    signed: Option<(Offsets, Instant)>,
    signs_off: bool,
    is_left: Arc<AtomicBool>,
    /// The committed offset of each partition.
    done: HashMap<Partition, i64>,
    /// When to look again for topics or partitions.
    look_at: Option<Instant>,
}

impl Work {
    fn new(coordinator: Coordinator, (answers, wake): (Answers, Wake), is_left: Arc<AtomicBool>) -> Work {
        Work {
            look_at: match &coordinator.looks_for {
                LooksFor::Nothing => None,
                LooksFor::Topics(_) => Some(Instant::now()),
                LooksFor::Partitions { .. } => Some(Instant::now() + look_every(&coordinator.settings)),
            },
            coordinator,
            answers,
            wake,
            commit: None,
            start: None,
            refused_since: None,
            signed: None,
            signs_off: false,
            is_left,
            done: HashMap::new(),
        }
    }

    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let again =
                self.commit.as_ref().map(|(_, _, at)| *at).into_iter().chain(self.start.as_ref().map(|asked| asked.at));
            let again = again.chain(self.signed.as_ref().map(|(_, renewed)| *renewed)).chain(self.look_at);
            let order = match again.min() {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match order {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.sign_off(),
            }
            orders.try_iter().for_each(|order| self.take(order));
            self.find_starts();
            self.look();
            match self.look_for_others() {
                Look::Alone => {}
                Look::Unknown => {
                    self.put_off();
                    continue;
                }
                // From here on this run commits nothing.
                Look::Other(error) => return self.answer(Err(error)),
            }
            self.commit();
            self.renew();
        }
    }

    fn take(&mut self, order: Order) {
        let now = Instant::now();
        match order {
            Order::Commit(checkpoint, offsets) => {
                let (before, mut all, _) = self.commit.take().unwrap_or((checkpoint, Offsets::new(), now));
                all.merge(&offsets);
                // A commit for `Order::Settle` has no checkpoint of its own. A commit that waits
                // keeps its checkpoint, which must be answered.
                self.commit = Some((checkpoint.max(before), all, now));
            }
            Order::Start(partitions) => {
                // The group has accepted this consumer as a member again.
                self.refused_since = None;
                self.start = Some(Rebalance { partitions, given: now, at: now });
            }
            Order::Nudge => self.coordinator.nudge(),
            Order::Settle => self.settle(),
            Order::Rewind(topic) => {
                let rewound = self.coordinator.rewind(&topic);
                self.done.retain(|partition, _| topic_of(partition) != topic);
                self.answer(rewound.map(|()| Answer::Rewound(topic)));
            }
            Order::SignOff => self.signs_off = true,
        }
    }

    fn answer(&self, answer: Result<Answer>) {
        lock(&self.answers).push(answer);
        self.wake.wake();
    }

    fn find_starts(&mut self) {
        let Some(asked) = self.start.take_if(|asked| asked.at <= Instant::now()) else { return };
        match self.coordinator.starts(&asked.partitions) {
            // An assigned partition exists, even if the broker that answers does not know it yet.
            Err(error)
                if error.kind() == ErrorKind::Unreachable
                    || error.kind() == ErrorKind::NotFound && asked.given.elapsed() < HEARD_WITHIN =>
            {
                self.coordinator.complain(Concern::Starts, format!("cannot find the start offsets: {error:#}"));
                self.start = Some(Rebalance { at: Instant::now() + AGAIN_AFTER, ..asked });
            }
            answer => {
                self.coordinator.passes(Concern::Starts);
                self.answer(answer.map(Answer::Started));
            }
        }
    }

    /// Looks for topics or partitions, when that is due.
    fn look(&mut self) {
        if self.look_at.take_if(|at| *at <= Instant::now()).is_none() {
            return;
        }
        let found = match &mut self.coordinator.looks_for {
            LooksFor::Nothing => return,
            LooksFor::Topics(pattern) => match pattern.topics(&self.coordinator.consumer) {
                Ok(topics) => Ok((!topics.is_empty(), pattern.note(&topics).then_some(Answer::Topics(topics)))),
                Err(cause) => Err(format!("cannot list the topics: {cause}")),
            },
            LooksFor::Partitions { .. } => match self.coordinator.added() {
                Ok(added) => Ok((true, (!added.is_empty()).then_some(Answer::Added(added)))),
                Err(cause) => Err(format!("cannot look for new partitions: {cause:#}")),
            },
        };
        let mut pause = look_every(&self.coordinator.settings);
        match found {
            Ok((has_topics, answer)) => {
                self.coordinator.passes(Concern::Topics);
                if !has_topics {
                    pause = pause.min(LOOK_FOR_FIRST_EVERY);
                }
                if let Some(answer) = answer {
                    self.answer(Ok(answer));
                }
            }
            Err(reason) => {
                pause = pause.min(LOOK_FOR_FIRST_EVERY);
                self.coordinator.complain(Concern::Topics, reason);
            }
        }
        self.look_at = Some(Instant::now() + pause);
    }

    /// Commits positions that have moved past the committed offset without records.
    fn settle(&mut self) {
        let positions = Positions::of(&self.coordinator.consumer);
        let mut moved = Offsets::new();
        for partition in self.coordinator.held.all() {
            let done = self.done.get(&partition.span.name).copied().unwrap_or(partition.span.start);
            if partition.beyond_control_records(done, &positions) > done {
                moved.set(partition.span.name.clone(), next(done));
            }
        }
        if !moved.is_empty() {
            self.take(Order::Commit(CheckpointId::default(), moved));
        }
    }

    /// Checks whether another run has committed. Called before each commit, because a commit
    /// overwrites the lease of the last run.
    fn look_for_others(&self) -> Look {
        let now = Instant::now();
        let is_due = self.commit.as_ref().is_some_and(|(_, _, at)| *at <= now)
            || self.signed.as_ref().is_some_and(|(_, renewed)| *renewed <= now);
        let Some(own) = self.coordinator.lease.as_ref().filter(|_| is_due) else { return Look::Alone };
        match self.coordinator.leases() {
            Ok(others) => {
                self.coordinator.passes(Concern::Others);
                match others.iter().find(|other| own.gives_way_to(other)) {
                    Some(other) => Look::Other(other.refusal(&self.coordinator.group)),
                    None => Look::Alone,
                }
            }
            Err(cause) => {
                let group = &self.coordinator.group;
                let reason = format!("cannot check group `{group}` for commits of other runs, commits wait: {cause}");
                self.coordinator.complain(Concern::Others, reason);
                Look::Unknown
            }
        }
    }

    fn put_off(&mut self) {
        let later = Instant::now() + AGAIN_AFTER;
        self.commit.iter_mut().for_each(|(_, _, at)| *at = later);
        self.signed.iter_mut().for_each(|(_, renewed)| *renewed = later);
    }

    /// Renews the lease, to show that this run is alive.
    fn renew(&mut self) {
        let Some((offsets, _)) = self.signed.take_if(|(_, renewed)| *renewed <= Instant::now()) else { return };
        match self.coordinator.commit(&offsets, Life::GoesOn) {
            Ok(_) => self.coordinator.passes(Concern::Commits),
            Err(cause) => {
                let group = &self.coordinator.group;
                let reason = format!("cannot renew the lease of this run in group `{group}`: {cause}");
                self.coordinator.complain(Concern::Commits, reason);
            }
        }
        self.signed = Some((offsets, Instant::now() + RENEW_EVERY));
    }

    /// Marks the lease as ended, so that the next run need not wait to find out whether this
    /// one is dead.
    fn sign_off(mut self) {
        let Some((mut offsets, _)) = self.signed.take_if(|_| self.signs_off) else { return };
        if let Some((_, newest, _)) = &self.commit {
            offsets.merge(newest);
        }
        self.commit = Some((CheckpointId::default(), offsets.clone(), Instant::now()));
        if !matches!(self.look_for_others(), Look::Alone) || self.is_left.load(SeqCst) {
            return;
        }
        if let Err(cause) = self.coordinator.commit(&offsets, Life::HasEnded) {
            tracing::debug!(group = self.coordinator.group, %cause, "cannot mark this run as ended");
        }
    }

    fn commit(&mut self) {
        let Some((checkpoint, offsets, _)) = self.commit.take_if(|(_, _, at)| *at <= Instant::now()) else { return };
        let group = self.coordinator.group.clone();
        let committed = self.coordinator.commit(&offsets, Life::GoesOn);
        if committed.is_ok() && self.coordinator.lease.is_some() {
            let (mut signed, _) = self.signed.take().unwrap_or_else(|| (Offsets::new(), Instant::now()));
            signed.merge(&offsets);
            self.signed = Some((signed, Instant::now() + RENEW_EVERY));
        }
        let answer = match committed {
            Ok(committed) => {
                self.done.extend(committed);
                self.refused_since = None;
                Ok(Answer::Committed(checkpoint))
            }
            Err(KafkaError::ConsumerCommit(Code::NoOffset)) => Ok(Answer::Committed(checkpoint)),
            Err(KafkaError::ConsumerCommit(code)) if is_transient(code) || self.coordinator.has_lost_topic(code) => {
                // This happens in every rebalance, so it is reported only if it lasts.
                let reason = format!("cannot commit offsets of group `{group}`, retrying: {code}");
                self.coordinator.complain(Concern::Commits, reason);
                let pause = if is_changing(code) { AGAIN_SOON } else { AGAIN_AFTER };
                self.commit = Some((checkpoint, offsets, Instant::now() + pause));
                return;
            }
            Err(KafkaError::ConsumerCommit(code)) if self.may_be_lost(code) => {
                tracing::warn!(group, %code, "commit refused, the partitions have been assigned to other members");
                Ok(Answer::Committed(checkpoint))
            }
            Err(cause) if !self.coordinator.is_memory => {
                let reason = format!("cannot commit offsets of group `{group}`, which others may read: {cause}");
                self.coordinator.complain(Concern::Commits, reason);
                self.answer(Ok(Answer::Committed(checkpoint)));
                return;
            }
            Err(cause) => Err(self.coordinator.refused(cause)),
        };
        self.coordinator.passes(Concern::Commits);
        self.answer(answer);
    }

    /// Whether the group has removed this member. False if that has lasted for `patience`: then
    /// something is wrong.
    fn may_be_lost(&mut self, code: Code) -> bool {
        let Some(patience) = self.coordinator.patience.filter(|_| is_lost(code)) else { return false };
        self.refused_since.get_or_insert_with(Instant::now).elapsed() < patience
    }
}

/// Whether another run has committed in the meantime.
enum Look {
    Alone,
    /// The coordinator has not answered.
    Unknown,
    Other(Error),
}
