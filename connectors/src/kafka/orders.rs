//! The thread that waits for the group's [`coordinator`](super::coordinator), which sleeps in between, because nobody else may
//! wait; and because the answer of an asynchronous commit never reaches the application through the client's event interface (librdkafka 2.12
//! posts it only for a callback that rdkafka 0.39 does not set).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use millstream::{CheckpointId, Error, ErrorKind, Last, Offsets, Partition, Result, Wake, spawn_watched};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::coordinator::Coordinator;
use super::error::{is_changing, is_lost, is_passing};
use super::heard::With;
use super::lock;
use super::partition::{Positions, topic_of};
use super::signature::{Life, RENEW_EVERY};
use super::start::{Span, next};

/// What did not pass is tried again after this, with the newest offsets.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Within this every broker has heard of a partition that a group has given.
const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// The same while the group changes: partitions are waited for.
const AGAIN_SOON: Duration = Duration::from_millis(20);
/// How long the end of a run waits for a commit under way.
const CLOSE_WITHIN: Duration = Duration::from_millis(200);
/// How often topics are looked for while there is none to read.
const LOOK_FOR_FIRST_EVERY: Duration = Duration::from_secs(1);

/// What the thread is asked for.
#[derive(Debug)]
pub(super) enum Order {
    Commit(CheckpointId, Offsets),
    /// Where these partitions begin.
    Start(Vec<(String, i32)>),
    /// Partitions were given back: the others are fetched again at once when their brokers are asked for something.
    Nudge,
    /// Positions have passed what is no record: they are committed although nothing was read.
    Settle,
    /// The topic was made anew: it is read from its beginning.
    Rewind(String),
    /// The job ends with this run.
    SignOff,
}

/// What became of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// This commit, and those before it.
    Committed(CheckpointId),
    Started(Vec<Span>),
    /// The topics that match the pattern now.
    Topics(Vec<String>),
    Rewound(String),
}

type Answers = Arc<Mutex<Vec<Result<Answer>>>>;

/// The way to the thread.
pub(super) struct Orders {
    orders: Mutex<Option<Sender<Order>>>,
    answers: Answers,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Nobody waits for the thread any more, and another run may have begun.
    is_left: Arc<AtomicBool>,
}

impl Orders {
    /// Whoever is woken looks at the answers.
    pub(super) fn start(coordinator: Coordinator, wake: Wake) -> Result<Orders> {
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

    /// Never waits.
    pub(super) fn order(&self, order: Order) {
        if let Some(orders) = &*lock(&self.orders) {
            // The thread ends only with the sender.
            drop(orders.send(order));
        }
    }

    /// What became of the orders since the last look.
    pub(super) fn answers(&self) -> Vec<Result<Answer>> {
        std::mem::take(&mut *lock(&self.answers))
    }

    /// Ends the thread; one that waits for an absent broker is left to itself.
    pub(super) fn close(&self, last: Last) {
        self.order(Order::Settle);
        if last == Last::Job {
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

/// A question where partitions begin.
struct Asked {
    partitions: Vec<(String, i32)>,
    /// When the group gave them.
    given: Instant,
    /// When it is asked, for the first time or again.
    at: Instant,
}

/// The thread with what it still has to do.
struct Work {
    coordinator: Coordinator,
    answers: Answers,
    wake: Wake,
    /// A commit that did not pass, and when it is sent again. One that is waiting is replaced by the newer one.
    commit: Option<(CheckpointId, Offsets, Instant)>,
    start: Option<Asked>,
    /// Since when the group says that we are no member.
    refused_since: Option<Instant>,
    /// What stands under our signature, and when it is renewed.
    signed: Option<(Offsets, Instant)>,
    signs_off: bool,
    is_left: Arc<AtomicBool>,
    /// How far partitions are committed.
    done: HashMap<Partition, i64>,
    /// When topics are looked for that match the pattern.
    look_at: Option<Instant>,
}

impl Work {
    fn new(coordinator: Coordinator, (answers, wake): (Answers, Wake), is_left: Arc<AtomicBool>) -> Work {
        Work {
            look_at: coordinator.pattern.is_some().then(Instant::now),
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
            self.look_for_topics();
            match self.look_for_others() {
                Look::Alone => {}
                Look::Unknown => {
                    self.put_off();
                    continue;
                }
                // From here on nothing of this run is committed any more.
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
                // What settles has no checkpoint, and the answer of one that waits must not be lost.
                self.commit = Some((checkpoint.max(before), all, now));
            }
            Order::Start(partitions) => {
                // The group has taken us in again.
                self.refused_since = None;
                self.start = Some(Asked { partitions, given: now, at: now });
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
            // What was given to us exists, also when the broker that answers has not heard of it.
            Err(error)
                if error.kind() == ErrorKind::Unreachable
                    || error.kind() == ErrorKind::NotFound && asked.given.elapsed() < HEARD_WITHIN =>
            {
                self.coordinator.complain(With::Starts, format!("cannot find where to begin: {error:#}"));
                self.start = Some(Asked { at: Instant::now() + AGAIN_AFTER, ..asked });
            }
            answer => {
                self.coordinator.passes(With::Starts);
                self.answer(answer.map(Answer::Started));
            }
        }
    }

    /// A member reads the topics that match its pattern now.
    fn look_for_topics(&mut self) {
        if self.look_at.take_if(|at| *at <= Instant::now()).is_none() {
            return;
        }
        let pattern = self.coordinator.pattern.as_mut().expect("only a pattern is looked for");
        let mut pause = pattern.refresh;
        match pattern.topics(&self.coordinator.consumer) {
            Ok(topics) => {
                self.coordinator.consumer.context().heard.passes(With::Topics);
                if topics.is_empty() {
                    pause = pause.min(LOOK_FOR_FIRST_EVERY);
                }
                if pattern.note(&topics) {
                    self.answer(Ok(Answer::Topics(topics)));
                }
            }
            Err(cause) => {
                pause = pause.min(LOOK_FOR_FIRST_EVERY);
                self.coordinator.complain(With::Topics, format!("cannot look for topics: {cause}"));
            }
        }
        self.look_at = Some(Instant::now() + pause);
    }

    /// Commits positions that have moved without records, behind what is done.
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

    /// Before anything is signed, because that would hide who signed last.
    fn look_for_others(&self) -> Look {
        let now = Instant::now();
        let is_due = self.commit.as_ref().is_some_and(|(_, _, at)| *at <= now)
            || self.signed.as_ref().is_some_and(|(_, renewed)| *renewed <= now);
        let Some(own) = self.coordinator.signature.as_ref().filter(|_| is_due) else { return Look::Alone };
        match self.coordinator.signatures() {
            Ok(others) => {
                self.coordinator.passes(With::Others);
                match others.iter().find(|other| own.gives_way_to(other)) {
                    Some(other) => Look::Other(other.refusal(&self.coordinator.group)),
                    None => Look::Alone,
                }
            }
            Err(cause) => {
                let group = &self.coordinator.group;
                let reason = format!("cannot look who commits to group `{group}`, commits wait: {cause}");
                self.coordinator.complain(With::Others, reason);
                Look::Unknown
            }
        }
    }

    fn put_off(&mut self) {
        let later = Instant::now() + AGAIN_AFTER;
        self.commit.iter_mut().for_each(|(_, _, at)| *at = later);
        self.signed.iter_mut().for_each(|(_, renewed)| *renewed = later);
    }

    /// Shows that this run lives.
    fn renew(&mut self) {
        let Some((offsets, _)) = self.signed.take_if(|(_, renewed)| *renewed <= Instant::now()) else { return };
        match self.coordinator.commit(&offsets, Life::GoesOn) {
            Ok(_) => self.coordinator.passes(With::Commits),
            Err(cause) => {
                let group = &self.coordinator.group;
                let reason = format!("cannot renew the signature of this run in group `{group}`: {cause}");
                self.coordinator.complain(With::Commits, reason);
            }
        }
        self.signed = Some((offsets, Instant::now() + RENEW_EVERY));
    }

    /// The job has ended in good order: nobody need wait to see whether it is dead.
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
            tracing::debug!(group = self.coordinator.group, %cause, "cannot sign off");
        }
    }

    fn commit(&mut self) {
        let Some((checkpoint, offsets, _)) = self.commit.take_if(|(_, _, at)| *at <= Instant::now()) else { return };
        let group = self.coordinator.group.clone();
        let committed = self.coordinator.commit(&offsets, Life::GoesOn);
        if committed.is_ok() && self.coordinator.signature.is_some() {
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
            Err(KafkaError::ConsumerCommit(code)) if is_passing(code) || self.coordinator.has_lost_topic(code) => {
                // While a group changes this is so each time: it is told when it lasts.
                let reason = format!("cannot commit offsets of group `{group}`, retrying: {code}");
                self.coordinator.complain(With::Commits, reason);
                let pause = if is_changing(code) { AGAIN_SOON } else { AGAIN_AFTER };
                self.commit = Some((checkpoint, offsets, Instant::now() + pause));
                return;
            }
            Err(KafkaError::ConsumerCommit(code)) if self.may_be_lost(code) => {
                tracing::warn!(group, %code, "commit refused: the partitions are somebody else's by now");
                Ok(Answer::Committed(checkpoint))
            }
            Err(cause) => Err(self.coordinator.refused(cause)),
        };
        self.coordinator.passes(With::Commits);
        self.answer(answer);
    }

    /// Whether the group has put us out, and not for so long that something must be wrong.
    fn may_be_lost(&mut self, code: Code) -> bool {
        let Some(patience) = self.coordinator.patience.filter(|_| is_lost(code)) else { return false };
        self.refused_since.get_or_insert_with(Instant::now).elapsed() < patience
    }
}

/// Whether another run has committed since.
enum Look {
    Alone,
    /// The group has not answered.
    Unknown,
    Other(Error),
}
