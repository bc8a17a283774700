//! Committing offsets to the consumer group. The answer of an asynchronous commit never reaches the application through
//! the client's event interface (librdkafka 2.12 posts it only for a callback that rdkafka 0.39 does not set), so a
//! thread of its own commits synchronously and reports. It sleeps in between.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use millstream::{CheckpointId, Error, ErrorKind, Offsets, Result, Wake};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::error::{error, is_passing};
use super::lock;
use super::source::{Positions, Shared};
use super::start::not_a_list;

/// A commit that did not pass is sent again after this, with the newest offsets.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// How long the end of a run waits for a commit under way.
const CLOSE_WITHIN: Duration = Duration::from_millis(200);

/// The way to the thread that commits.
pub(super) struct Commits {
    orders: Mutex<Option<Sender<(CheckpointId, Offsets)>>>,
    answers: Arc<Mutex<Vec<Result<CheckpointId>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Commits {
    pub(super) fn start<C: ConsumerContext + 'static>(
        consumer: Arc<BaseConsumer<C>>,
        partitions: Vec<Arc<Shared>>,
        group: String,
        wake: Wake,
    ) -> Result<Commits> {
        let (orders, receiver) = mpsc::channel();
        let answers = Arc::new(Mutex::default());
        let committer = Committer { consumer, partitions, group, wake, answers: Arc::clone(&answers) };
        let thread = thread::Builder::new()
            .name("millstream-commit".to_owned())
            .spawn(move || committer.run(&receiver))
            .map_err(|cause| Error::new(ErrorKind::Source, "cannot start the thread for commits").caused_by(cause))?;
        Ok(Commits { orders: Mutex::new(Some(orders)), answers, thread: Mutex::new(Some(thread)) })
    }

    /// Orders a commit; never waits.
    pub(super) fn order(&self, checkpoint: CheckpointId, offsets: &Offsets) {
        if let Some(orders) = &*lock(&self.orders) {
            // The thread ends only with the sender.
            drop(orders.send((checkpoint, offsets.clone())));
        }
    }

    /// What became of the commits since the last look.
    pub(super) fn answers(&self) -> Vec<Result<CheckpointId>> {
        std::mem::take(&mut *lock(&self.answers))
    }

    /// Ends the thread; one that waits for an absent broker is left to itself.
    pub(super) fn close(&self) {
        drop(lock(&self.orders).take());
        let Some(thread) = lock(&self.thread).take() else { return };
        let deadline = Instant::now() + CLOSE_WITHIN;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            drop(thread.join());
        }
    }
}

struct Committer<C: ConsumerContext> {
    consumer: Arc<BaseConsumer<C>>,
    partitions: Vec<Arc<Shared>>,
    group: String,
    wake: Wake,
    answers: Arc<Mutex<Vec<Result<CheckpointId>>>>,
}

impl<C: ConsumerContext> Committer<C> {
    /// The body of the thread.
    fn run(&self, orders: &Receiver<(CheckpointId, Offsets)>) {
        while let Ok((mut checkpoint, mut offsets)) = orders.recv() {
            let answer = loop {
                // One that is waiting is replaced by the newer one.
                while let Ok((newer, more)) = orders.try_recv() {
                    checkpoint = newer;
                    offsets.merge(&more);
                }
                match self.commit(&offsets) {
                    Err(KafkaError::ConsumerCommit(code)) if is_passing(code) => {
                        tracing::warn!(group = self.group, %code, "commit did not pass, sending it again");
                        match orders.recv_timeout(AGAIN_AFTER) {
                            Ok((newer, more)) => {
                                checkpoint = newer;
                                offsets.merge(&more);
                            }
                            Err(RecvTimeoutError::Timeout) => {}
                            Err(RecvTimeoutError::Disconnected) => return,
                        }
                    }
                    Ok(()) | Err(KafkaError::ConsumerCommit(Code::NoOffset)) => break Ok(checkpoint),
                    Err(cause) => break Err(self.refused(cause)),
                }
            };
            lock(&self.answers).push(answer);
            self.wake.wake();
        }
    }

    fn commit(&self, offsets: &Offsets) -> Result<(), KafkaError> {
        let positions = Positions::of(&self.consumer);
        let mut list = TopicPartitionList::new();
        for partition in &self.partitions {
            if let Some(done) = offsets.get(&partition.span.name) {
                let done = i64::try_from(done.0).unwrap_or(i64::MAX);
                let next = Offset::Offset(partition.beyond_control_records(done, &positions));
                list.add_partition_offset(&partition.span.topic, partition.span.partition, next)?;
            }
        }
        self.consumer.commit(&list, CommitMode::Sync)
    }

    fn refused(&self, cause: KafkaError) -> Error {
        let mut doing = format!("cannot commit offsets of group `{}`", self.group);
        if cause.rdkafka_error_code() == Some(Code::UnknownMemberId) {
            doing += ": the group has members, and this job is none of them";
        }
        match cause {
            KafkaError::SetPartitionOffset(_) => not_a_list(&self.group, cause),
            cause => error(ErrorKind::Source, doing, cause),
        }
    }
}
