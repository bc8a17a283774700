//! One worker's half of a Kafka source. It polls the queues of its partitions, and turns messages
//! into items while they are still in the client's buffer. On a record's path the broker comes
//! before it and `ingest` after it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millstream::connector::{Moment, Partition, Polled, RECORD_OVERHEAD, ReadBatch, Reader, Room, Wake, Worker};
use millstream::{ByteSize, Clock, End, Error, ErrorKind, EventTime, Malformed, Origin, Result};
use rdkafka::Timestamp;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};

use super::consumer::Context;
use super::partition::{Positions, Shared, Span, next};
use super::source::KafkaShared;
use crate::kafka::headers::headers_of;
use crate::kafka::message::{KafkaOrigin, Message};
use crate::lock;

/// Turns messages into items, by a format.
pub trait Read: Send + Sync + 'static {
    /// The source's item.
    type Item: 'static;

    /// Called once when the job starts.
    ///
    /// # Errors
    /// When an option is known to be wrong.
    fn open(&mut self) -> Result<()> {
        Ok(())
    }

    /// Turns a message into an item. Also returns the memory that the item holds in addition to its
    /// own size.
    ///
    /// # Errors
    /// When the format has failed, rather than the message. An error ends the run.
    fn read(&self, incoming: &Incoming<'_>) -> Result<(Self::Item, ByteSize)>;
}

/// A message that was just polled, still in the client's buffer.
pub struct Incoming<'m> {
    message: &'m BorrowedMessage<'m>,
    partition: &'m Held,
}

impl Incoming<'_> {
    pub(crate) fn payload(&self) -> Option<&[u8]> {
        self.message.payload()
    }

    pub(crate) fn payload_len(&self) -> usize {
        self.message.payload_len()
    }

    /// The message with its metadata; malformed when the metadata cannot be read.
    pub(crate) fn message<T>(&self, value: T) -> Result<Message<T>, Malformed> {
        let (headers, unreadable) = headers_of(self.message);
        if unreadable > 0 {
            return Err(self.malformed("the name of a header is not valid UTF-8"));
        }
        let mut message = Message::new(value);
        message.key = self.message.key().map(<[u8]>::to_vec);
        message.headers = headers;
        message.origin = Some(KafkaOrigin {
            topic: Arc::clone(&self.partition.topic),
            partition: self.message.partition(),
            offset: self.message.offset(),
            timestamp: match self.message.timestamp() {
                Timestamp::NotAvailable => None,
                Timestamp::CreateTime(time) | Timestamp::LogAppendTime(time) => Some(time),
            },
        });
        Ok(message)
    }

    pub(crate) fn malformed(&self, cause: &(impl fmt::Display + ?Sized)) -> Malformed {
        let offset = next(self.message.offset());
        let (headers, unreadable) = headers_of(self.message);
        let cause = match unreadable {
            0 => cause.to_string(),
            count => format!("{cause} ({count} of its headers are left out: their names are not valid UTF-8)"),
        };
        let mut malformed = Malformed::new(cause);
        malformed.origin = Some(Origin::new(self.partition.shared.span.name.clone(), offset));
        malformed.key = self.message.key().map(<[u8]>::to_vec);
        malformed.bytes = self.message.payload().map(<[u8]>::to_vec);
        malformed.headers = headers;
        malformed
    }
}

impl fmt::Debug for Incoming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.message)
    }
}

/// A partition that a reader holds.
struct Held {
    shared: Arc<Shared>,
    topic: Arc<str>,
    queue: Queue,
    next: i64,
    ended: bool,
    /// The log was recreated or truncated, and is read again from an offset before `next`.
    was_truncated: bool,
    /// The client has reached the end of the log, but not yet the end of the span.
    is_at_end: bool,
    /// The client has reached the end of the log, and has found no record since.
    is_caught_up: bool,
}

/// A partition's queue. It is kept for the life of the client, even while the partition is assigned
/// elsewhere.
struct Queue {
    queue: PartitionQueue<Context>,
    /// Set by the client when the queue is no longer empty.
    filled: Arc<AtomicBool>,
    /// Since when the queue has not been empty, in nanoseconds of the clock; 0 when unknown.
    filled_at: Arc<AtomicU64>,
}

impl Queue {
    fn new(queue: PartitionQueue<Context>, wake: &Wake, clock: &Clock) -> Queue {
        let filled_at = Arc::new(AtomicU64::new(clock.now().as_nanos()));
        let mut queue = Queue { queue, filled: Arc::new(AtomicBool::new(true)), filled_at };
        queue.listen(wake, clock);
        queue
    }

    fn listen(&mut self, wake: &Wake, clock: &Clock) {
        let (flag, at) = (Arc::clone(&self.filled), Arc::clone(&self.filled_at));
        let (wake, clock) = (wake.clone(), clock.clone());
        // Called with the queue's lock held, so it only sets a timestamp and a flag, and wakes. The
        // timestamp first: a reader that sees the flag has it.
        self.queue.set_nonempty_callback(move || {
            at.store(clock.now().as_nanos(), SeqCst);
            flag.store(true, SeqCst);
            wake.wake();
        });
    }

    /// The arrival time of a record that is taken from the queue now and was written at `written`,
    /// in milliseconds since 1970. It is the time of writing, but not before the queue was filled,
    /// and not in the future. So the time in the client's queue counts, and neither an old record
    /// nor a wrong clock can add to it.
    fn arrival(since: u64, written: Option<i64>, clock: &Clock) -> Moment {
        let now = clock.now().as_nanos();
        let since = if since == 0 { now } else { since.min(now) };
        let Some(written) = written else { return Moment::from_nanos(since) };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let age = wall.saturating_sub(u128::try_from(written).unwrap_or(0) * 1_000_000);
        let at = now.saturating_sub(u64::try_from(age).unwrap_or(u64::MAX));
        Moment::from_nanos(at.clamp(since, now))
    }
}

/// Where the control thread hands partitions to one worker's reader.
#[derive(Default)]
pub(crate) struct Inbox {
    /// Partitions to take in, each with its queue when that is new.
    waiting: Mutex<Vec<(Arc<Shared>, Option<Queue>)>>,
    /// Whether `waiting` has partitions, so that the reader takes no lock for each poll. It is set
    /// after one is added, and cleared before they are taken.
    is_waited: AtomicBool,
    /// No more partitions will be handed in.
    is_closed: AtomicBool,
    wake: OnceLock<Wake>,
    clock: Clock,
}

impl Inbox {
    pub(crate) fn new(clock: &Clock) -> Inbox {
        Inbox { clock: clock.clone(), ..Inbox::default() }
    }

    pub(crate) fn hand_in(&self, shared: Arc<Shared>, queue: Option<PartitionQueue<Context>>) {
        let wake = self.wake.get().expect("readers are created before partitions are handed in");
        let queue = queue.map(|queue| Queue::new(queue, wake, &self.clock));
        lock(&self.waiting).push((shared, queue));
        self.is_waited.store(true, SeqCst);
        wake.wake();
    }

    pub(crate) fn close(&self) {
        self.is_closed.store(true, SeqCst);
        if let Some(wake) = self.wake.get() {
            wake.wake();
        }
    }
}

/// Polls the queues of one worker's partitions.
pub struct KafkaReader<R> {
    shared: Arc<KafkaShared<R>>,
    worker: usize,
    held: Vec<Held>,
    /// Queues of partitions that are assigned elsewhere now.
    away: Vec<(Partition, Queue)>,
    /// The partitions that the engine was told of.
    told: Option<Vec<Partition>>,
    turn: usize,
    looked_at_all: Instant,
}

/// How often all queues are polled without a wake, so that a lost wake delays records by no more
/// than this.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_millis(100);

impl<R: Read> KafkaReader<R> {
    pub(crate) fn new(shared: &Arc<KafkaShared<R>>, worker: Worker, wake: &Wake) -> KafkaReader<R> {
        // The wake is not set yet: a reader is created once.
        drop(shared.inboxes[worker.index].wake.set(wake.clone()));
        KafkaReader {
            shared: Arc::clone(shared),
            worker: worker.index,
            held: Vec::new(),
            away: Vec::new(),
            told: None,
            turn: 0,
            looked_at_all: Instant::now(),
        }
    }

    /// Takes the partitions that the control thread has handed to this reader.
    fn look_at_inbox(&mut self) {
        let shared = Arc::clone(&self.shared);
        let inbox = &shared.inboxes[self.worker];
        if !inbox.is_waited.load(SeqCst) || !inbox.is_waited.swap(false, SeqCst) {
            return;
        }
        let arrived = std::mem::take(&mut *lock(&inbox.waiting));
        for (shared, queue) in arrived {
            if shared.is_revoked.load(SeqCst) {
                // The partition was revoked before it was taken in, and the revocation is already
                // answered: only the queue is kept.
                self.away.extend(queue.map(|queue| (shared.span.name.clone(), queue)));
                continue;
            }
            let name = &shared.span.name;
            // The partition may be assigned again before `forget` is called for it.
            self.put_away(|held| held.span.name == *name);
            let kept = self.away.iter().position(|(away, _)| away == name).map(|at| self.away.swap_remove(at).1);
            let queue = match (queue, kept) {
                (Some(mut queue), Some(kept)) => {
                    // To the client both may be the same queue, with one callback. Dropping one
                    // removes the callback, so it is set again.
                    drop(kept);
                    queue.listen(inbox.wake.get().expect("`hand_in` has used it"), &inbox.clock);
                    queue
                }
                (queue, kept) => {
                    queue.or(kept).expect("a queue comes with its partition the first time, and is kept after that")
                }
            };
            queue.filled.store(true, SeqCst);
            self.held.push(Held {
                topic: shared.span.topic.as_str().into(),
                next: shared.span.start,
                ended: shared.span.end.is_some_and(|end| shared.span.start >= end),
                was_truncated: false,
                is_at_end: false,
                is_caught_up: false,
                shared,
                queue,
            });
        }
    }

    fn put_away(&mut self, is_gone: impl Fn(&Shared) -> bool) {
        let gone = self.held.extract_if(.., |held| is_gone(&held.shared));
        self.away.extend(gone.map(|held| (held.shared.span.name.clone(), held.queue)));
    }

    /// Whether all partitions have ended, and no more will be handed in.
    fn is_through(&self) -> bool {
        let inbox = &self.shared.inboxes[self.worker];
        // The order matters: a partition that was handed in before the inbox was closed is seen.
        inbox.is_closed.load(SeqCst) && !inbox.is_waited.load(SeqCst) && self.held.iter().all(|held| held.ended)
    }

    /// The next partition whose queue may have messages, round-robin.
    fn next_filled(&mut self) -> Option<usize> {
        let count = self.held.len();
        let found = (1..=count).map(|step| (self.turn + step) % count.max(1)).find(|index| {
            let held = &self.held[*index];
            !held.ended && held.queue.filled.load(SeqCst)
        });
        if let Some(index) = found {
            self.turn = index;
        }
        found
    }

    fn look_at_all(&mut self) {
        if self.looked_at_all.elapsed() >= LOOK_AT_ALL_EVERY {
            self.looked_at_all = Instant::now();
            self.held.iter().for_each(|held| held.queue.filled.store(true, SeqCst));
        }
    }
}

/// The worker that reads a partition. It is the same for a whole run, and the partitions of a topic
/// are spread evenly.
pub(crate) fn owner(span: &Span, workers: usize) -> usize {
    let topic = span
        .topic
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (topic.wrapping_add(span.partition as u64) % workers as u64) as usize
}

impl<R: Read> Reader for KafkaReader<R> {
    type Item = R::Item;

    fn poll(&mut self, batch: &mut ReadBatch<R::Item>, room: Room) -> Result<Polled> {
        self.look_at_inbox();
        let Some(index) = self.next_filled() else {
            self.look_at_all();
            return Ok(if self.is_through() { Polled::Ended(End::OfRun) } else { Polled::Idle });
        };
        self.held[index].drain(&self.shared, batch, room)?;
        let more = self.held.iter().any(|held| !held.ended && held.queue.filled.load(SeqCst));
        Ok(match (self.is_through(), more) {
            (true, _) => Polled::Ended(End::OfRun),
            (false, true) => Polled::More,
            (false, false) => Polled::Idle,
        })
    }

    /// A member of a group does not say: its partitions come and go.
    fn assigned(&mut self) -> Option<Vec<Partition>> {
        if !self.shared.is_handed_out.load(SeqCst) {
            return None;
        }
        self.look_at_inbox();
        let own: Vec<Partition> = self.held.iter().map(|held| held.shared.span.name.clone()).collect();
        (self.told.as_ref() != Some(&own)).then(|| self.told.insert(own).clone())
    }

    fn has_ended(&self) -> Option<End> {
        self.is_through().then_some(End::OfRun)
    }

    /// The client says when it reaches the end of a log. For a reader of committed records that is
    /// where the first open transaction begins, and what this one has written is still to come.
    fn is_at_end(&self, partition: &Partition) -> Option<bool> {
        let held = self.held.iter().find(|held| held.shared.span.name == *partition)?;
        let is_empty = held.is_caught_up && !held.queue.filled.load(SeqCst);
        Some(held.ended || is_empty && !held.shared.has_uncommitted.load(SeqCst))
    }

    /// Does not forget a partition that has been assigned again: only its revoked predecessor.
    fn unassign(&mut self, partitions: &[Partition]) {
        self.put_away(|held| held.is_revoked.load(SeqCst) && partitions.contains(&held.span.name));
    }
}

impl Held {
    /// Takes messages from the queue until it is empty, the room is used up, or the end is reached.
    fn drain<R: Read>(&mut self, shared: &KafkaShared<R>, batch: &mut ReadBatch<R::Item>, room: Room) -> Result<()> {
        if shared.is_recreated(&self.topic)? {
            // Reading continues once the client is at the beginning of the new log.
            self.queue.filled.store(false, SeqCst);
            return Ok(());
        }
        let before = self.next;
        let mut overshot = false;
        // Read before the queue is polled: everything that the client had found by then is in the
        // queue. Compaction may leave a gap at the end of the log. No message arrives after it, and
        // only this flag tells how far the client has read.
        let has_seen_end = self.shared.span.end.is_some_and(|end| self.shared.has_seen_end(end));
        // Before the client's position moves; see `Shared::beyond_control_records`.
        self.shared.draining.store(true, SeqCst);
        // Cleared before the queue is polled, so that a message that arrives meanwhile sets it
        // again.
        self.queue.filled.store(false, SeqCst);
        let since = self.queue.filled_at.swap(0, SeqCst);
        loop {
            if batch.len() >= room.records || batch.bytes() >= room.bytes {
                self.queue.filled.store(true, SeqCst);
                // The queue was never empty: restore its timestamp, unless the callback has set a
                // new one.
                let _ = self.queue.filled_at.compare_exchange(0, since, SeqCst, SeqCst);
                break;
            }
            if self.has_reached_its_end() {
                break;
            }
            match self.queue.queue.poll(Duration::ZERO) {
                None if self.is_at_end && has_seen_end => {
                    self.end();
                    break;
                }
                None => break,
                Some(Ok(message)) => {
                    (self.is_at_end, self.is_caught_up) = (false, false);
                    let offset = message.offset();
                    if self.shared.span.end.is_some_and(|end| offset >= end) {
                        // There was a gap at the end of the span; this message belongs to the next
                        // run.
                        self.ended = true;
                        overshot = true;
                        break;
                    }
                    if offset < self.next {
                        // In a recreated log, messages before `next` are not those that were
                        // already read.
                        if !shared.skips_losses() {
                            batch.note_repeated();
                            continue;
                        }
                        tracing::warn!(partition = %self.shared.span.name, offset, next = self.next, "the log was truncated");
                        self.was_truncated = true;
                        self.shared.go_back(offset);
                    }
                    self.next = offset + 1;
                    if batch.is_empty() {
                        batch.arrived(Queue::arrival(since, message.timestamp().to_millis(), &shared.clock));
                    }
                    let (item, held) = shared.read.read(&Incoming { message: &message, partition: self })?;
                    let bytes = ByteSize(held.0 + size_of::<R::Item>() as u64 + RECORD_OVERHEAD.0);
                    match shared.wants_times {
                        // A record without a timestamp has no time.
                        true => {
                            batch.push_at(item, EventTime(message.timestamp().to_millis().unwrap_or(i64::MIN)), bytes);
                        }
                        false => batch.push(item, bytes),
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.reach_end_of_log(shared),
                Some(Err(cause)) if is_unreadable(&cause) => {
                    let doing =
                        format!("cannot read the batch at or after offset {} of {}", self.next, self.shared.span.name);
                    return Err(Error::new(ErrorKind::Malformed, doing).caused_by(cause));
                }
                Some(Err(cause)) => shared.consider(cause)?,
            }
        }
        self.ended |= self.has_reached_its_end();
        if self.next != before {
            self.shared.polled.store(self.next, SeqCst);
            batch.read_to(self.shared.span.name.clone(), next(self.next));
        }
        // After `polled`.
        self.shared.draining.store(overshot, SeqCst);
        Ok(())
    }

    fn has_reached_its_end(&self) -> bool {
        self.shared.span.end.is_some_and(|end| self.next >= end)
    }

    /// The client has reached the end of the log. A bounded partition ends here if the client's
    /// position is at the end of the span, or if the log was replaced by another one. Control
    /// records at the end are passed, not read. The replica that answered may not have the whole
    /// log yet; then the client reports the end once more.
    fn reach_end_of_log<R: Read>(&mut self, shared: &KafkaShared<R>) {
        self.is_caught_up = true;
        let Some(end) = self.shared.span.end else { return };
        let position = Positions::of(&shared.consumer).get(&self.shared.span);
        if self.has_gone_back() || position.is_some_and(|position| position >= end) {
            self.end();
        } else {
            self.is_at_end = true;
        }
    }

    /// Whether the log was replaced by another one, even if that is still empty.
    fn has_gone_back(&self) -> bool {
        self.was_truncated || self.shared.was_truncated.load(SeqCst)
    }

    fn end(&mut self) {
        self.ended = true;
        if !self.has_gone_back() {
            self.next = self.next.max(self.shared.span.end.unwrap_or(0));
        }
    }
}

/// Whether a batch cannot be unpacked. The client would fetch it forever, or skip it.
fn is_unreadable(cause: &KafkaError) -> bool {
    matches!(
        cause.rdkafka_error_code(),
        Some(Code::BadMessage | Code::BadCompression | Code::NotImplemented | Code::InvalidMessageSize)
    )
}

impl<R> fmt::Debug for KafkaReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaReader of {} partitions", self.held.len())
    }
}
