//! One worker's half of reading topics: polls the queues of the partitions that it holds, and makes items of messages
//! while they are still in the client's buffer. Before it on a record's path is the broker, behind it `ingest`.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millstream::{
    Batch, Bytes, Clock, Error, ErrorKind, Malformed, Moment, Origin, Partition, Polled, RECORD_OVERHEAD, Reader,
    Result, Room, Wake, Worker,
};
use rdkafka::Timestamp;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message as _};

use super::consumer::Context;
use super::lock;
use super::message::{KafkaOrigin, Message, headers_of};
use super::partition::{Positions, Shared};
use super::source::KafkaShared;
use super::start::{Span, next};

/// What a format makes of a message.
pub trait Read: Send + Sync + 'static {
    /// The source's item.
    type Item: 'static;

    /// Called once when the job starts.
    ///
    /// # Errors
    /// What is known to be wrong already.
    fn open(&mut self) -> Result<()> {
        Ok(())
    }

    /// Makes an item of a message, and says what it holds beside its own size.
    ///
    /// # Errors
    /// The format has failed, not the message; an error ends the run.
    fn read(&self, incoming: &Incoming<'_>) -> Result<(Self::Item, Bytes)>;
}

/// A message that was just polled, still in the client's buffer.
pub struct Incoming<'m> {
    message: &'m BorrowedMessage<'m>,
    partition: &'m Held,
}

impl Incoming<'_> {
    pub(super) fn payload(&self) -> Option<&[u8]> {
        self.message.payload()
    }

    pub(super) fn payload_len(&self) -> usize {
        self.message.payload_len()
    }

    /// The message with its metadata; malformed when they cannot be read.
    pub(super) fn message<T>(&self, value: T) -> Result<Message<T>, Malformed> {
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

    pub(super) fn malformed(&self, cause: &(impl fmt::Display + ?Sized)) -> Malformed {
        let offset = next(self.message.offset());
        let (headers, unreadable) = headers_of(self.message);
        let cause = match unreadable {
            0 => cause.to_string(),
            count => format!("{cause} ({count} of its headers are left out: their names are not valid UTF-8)"),
        };
        Malformed {
            origin: Some(Origin { partition: self.partition.shared.span.name.clone(), offset }),
            key: self.message.key().map(<[u8]>::to_vec),
            bytes: self.message.payload().map(<[u8]>::to_vec),
            headers,
            cause,
        }
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
    /// The log was made anew and has begun before where we stood.
    went_back: bool,
    /// The client has found no record more, before the end.
    is_at_end: bool,
}

/// A partition's queue. It is kept for the life of the client, also while the partition is somebody else's.
struct Queue {
    queue: PartitionQueue<Context>,
    /// Set by the client when the queue is no longer empty.
    filled: Arc<AtomicBool>,
    /// Since when it has not been empty, in nanoseconds of the clock; 0 while nobody knows.
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
        // Called with the queue's lock held: nothing but a stamp, a flag and a wake.
        self.queue.set_nonempty_callback(move || {
            at.store(clock.now().as_nanos(), SeqCst);
            flag.store(true, SeqCst);
            wake.wake();
        });
    }

    /// When a record arrived that is taken from the queue now and was written at `written`, in milliseconds since 1970: when
    /// it was written, but not before the queue was filled, and not in the future. So what waits in the client's queue
    /// counts, and neither an old record nor a clock that is wrong can say more than that.
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
pub(super) struct Door {
    /// With the queue when it is a new one.
    waiting: Mutex<Vec<(Arc<Shared>, Option<Queue>)>>,
    is_waited: AtomicBool,
    /// Nothing more will be handed in.
    is_closed: AtomicBool,
    wake: OnceLock<Wake>,
    clock: Clock,
}

impl Door {
    pub(super) fn new(clock: &Clock) -> Door {
        Door { clock: clock.clone(), ..Door::default() }
    }

    pub(super) fn hand_in(&self, shared: Arc<Shared>, queue: Option<PartitionQueue<Context>>) {
        let wake = self.wake.get().expect("readers are made before anything is handed to them");
        let queue = queue.map(|queue| Queue::new(queue, wake, &self.clock));
        lock(&self.waiting).push((shared, queue));
        self.is_waited.store(true, SeqCst);
        wake.wake();
    }

    pub(super) fn close(&self) {
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
    /// Queues of partitions that are somebody else's now.
    away: Vec<(Partition, Queue)>,
    turn: usize,
    looked_at_all: Instant,
}

/// A wake that the client has lost costs no more than this.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_millis(100);

impl<R: Read> KafkaReader<R> {
    pub(super) fn new(shared: &Arc<KafkaShared<R>>, worker: Worker, wake: &Wake) -> KafkaReader<R> {
        // A reader is made once.
        drop(shared.doors[worker.index].wake.set(wake.clone()));
        KafkaReader {
            shared: Arc::clone(shared),
            worker: worker.index,
            held: Vec::new(),
            away: Vec::new(),
            turn: 0,
            looked_at_all: Instant::now(),
        }
    }

    /// Takes in what the control thread has handed to this reader.
    fn look_at_door(&mut self) {
        let shared = Arc::clone(&self.shared);
        let door = &shared.doors[self.worker];
        if !door.is_waited.load(SeqCst) || !door.is_waited.swap(false, SeqCst) {
            return;
        }
        let arrived = std::mem::take(&mut *lock(&door.waiting));
        for (shared, queue) in arrived {
            if shared.is_recalled.load(SeqCst) {
                // It was wanted back before it came in, and the recall is answered: only the queue is kept.
                self.away.extend(queue.map(|queue| (shared.span.name.clone(), queue)));
                continue;
            }
            let name = &shared.span.name;
            // It may come again before it was forgotten.
            self.put_away(|held| held.span.name == *name);
            let kept = self.away.iter().position(|(away, _)| away == name).map(|at| self.away.swap_remove(at).1);
            let queue = match (queue, kept) {
                (Some(mut queue), Some(kept)) => {
                    // Both may be the same to the client, which listens for one of them: the one that goes stops that.
                    drop(kept);
                    queue.listen(door.wake.get().expect("it was used at the door"), &door.clock);
                    queue
                }
                (queue, kept) => {
                    queue.or(kept).expect("a queue comes with its partition at the first time, and is kept")
                }
            };
            queue.filled.store(true, SeqCst);
            self.held.push(Held {
                topic: shared.span.topic.as_str().into(),
                next: shared.span.start,
                ended: shared.span.end.is_some_and(|end| shared.span.start >= end),
                went_back: false,
                is_at_end: false,
                shared,
                queue,
            });
        }
    }

    fn put_away(&mut self, is_gone: impl Fn(&Shared) -> bool) {
        let gone = self.held.extract_if(.., |held| is_gone(&held.shared));
        self.away.extend(gone.map(|held| (held.shared.span.name.clone(), held.queue)));
    }

    /// Whether no partition has anything more, and none will come.
    fn is_through(&self) -> bool {
        let door = &self.shared.doors[self.worker];
        // In this order: what was handed in before the door was closed is seen.
        door.is_closed.load(SeqCst) && !door.is_waited.load(SeqCst) && self.held.iter().all(|held| held.ended)
    }

    /// The next partition with something in its queue, in turn.
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

/// The worker that reads a partition: the same for a whole run, and even within a topic.
pub(super) fn owner(span: &Span, workers: usize) -> usize {
    let topic = span
        .topic
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (topic.wrapping_add(span.partition as u64) % workers as u64) as usize
}

impl<R: Read> Reader for KafkaReader<R> {
    type Item = R::Item;

    fn poll(&mut self, batch: &mut Batch<R::Item>, room: Room) -> Result<Polled> {
        self.look_at_door();
        let Some(index) = self.next_filled() else {
            self.look_at_all();
            return Ok(if self.is_through() { Polled::Ended } else { Polled::Idle });
        };
        self.held[index].drain(&self.shared, batch, room)?;
        let more = self.held.iter().any(|held| !held.ended && held.queue.filled.load(SeqCst));
        Ok(match (self.is_through(), more) {
            (true, _) => Polled::Ended,
            (false, true) => Polled::More,
            (false, false) => Polled::Idle,
        })
    }

    fn has_ended(&self) -> bool {
        self.is_through()
    }

    /// Of partitions that were given again meanwhile the old ones only.
    fn forget(&mut self, partitions: &[Partition]) {
        self.put_away(|held| held.is_recalled.load(SeqCst) && partitions.contains(&held.span.name));
    }
}

impl Held {
    /// Takes messages from the queue until it is empty, the room is used up, or the end is reached.
    fn drain<R: Read>(&mut self, shared: &KafkaShared<R>, batch: &mut Batch<R::Item>, room: Room) -> Result<()> {
        if shared.is_remade(&self.topic)? {
            // It is read again once the client stands at its beginning.
            self.queue.filled.store(false, SeqCst);
            return Ok(());
        }
        let before = self.next;
        let mut overshot = false;
        // Before the look: what the client had found by then is in the queue. Behind a hole at the end, which compaction leaves,
        // nothing comes any more, and only this tells how far it has looked.
        let has_seen_end = self.shared.span.end.is_some_and(|end| self.shared.has_seen_end(end));
        self.shared.draining.store(true, SeqCst);
        // Before the look, so that what comes during it is seen.
        self.queue.filled.store(false, SeqCst);
        let since = self.queue.filled_at.swap(0, SeqCst);
        loop {
            if batch.len() >= room.records || batch.bytes() >= room.bytes {
                self.queue.filled.store(true, SeqCst);
                // It was filled all the time, unless it was filled anew.
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
                    self.is_at_end = false;
                    let offset = message.offset();
                    if self.shared.span.end.is_some_and(|end| offset >= end) {
                        // There was a hole at the end; this one is the next run's.
                        self.ended = true;
                        overshot = true;
                        break;
                    }
                    if offset < self.next {
                        // A log that was made anew begins before us: then these are not what we have read.
                        if !shared.skips_losses() {
                            batch.note_repeated();
                            continue;
                        }
                        tracing::warn!(partition = %self.shared.span.name, offset, next = self.next, "the log went back");
                        self.went_back = true;
                        self.shared.go_back(offset);
                    }
                    self.next = offset + 1;
                    if Batch::is_empty(batch) {
                        batch.arrived(Queue::arrival(since, message.timestamp().to_millis(), &shared.clock));
                    }
                    let (item, held) = shared.read.read(&Incoming { message: &message, partition: self })?;
                    batch.push(item, Bytes(held.0 + size_of::<R::Item>() as u64 + RECORD_OVERHEAD.0));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.reach_end_of_log(shared),
                Some(Err(cause)) if is_unreadable(&cause) => {
                    let doing =
                        format!("cannot read what stands behind offset {} of {}", self.next, self.shared.span.name);
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
        self.shared.draining.store(overshot, SeqCst);
        Ok(())
    }

    fn has_reached_its_end(&self) -> bool {
        self.shared.span.end.is_some_and(|end| self.next >= end)
    }

    /// The log has no record more now: a bounded run has its end when that is as far as its own, or when the log is another
    /// one by now. Control records at the end are passed, not read. The replica that answered may not have all of it yet: then
    /// the client tells an end once more.
    fn reach_end_of_log<R: Read>(&mut self, shared: &KafkaShared<R>) {
        let Some(end) = self.shared.span.end else { return };
        let position = Positions::of(&shared.consumer).get(&self.shared.span);
        if self.has_gone_back() || position.is_some_and(|position| position >= end) {
            self.end();
        } else {
            self.is_at_end = true;
        }
    }

    /// Whether the log is another one by now, also when nothing stands in that yet.
    fn has_gone_back(&self) -> bool {
        self.went_back || self.shared.went_back.load(SeqCst)
    }

    fn end(&mut self) {
        self.ended = true;
        if !self.has_gone_back() {
            self.next = self.next.max(self.shared.span.end.unwrap_or(0));
        }
    }
}

/// A batch that cannot be unpacked: the client would fetch it for ever, or pass over it.
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
