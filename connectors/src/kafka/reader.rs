//! One worker's half of reading topics: polls the queues of the partitions that it holds, and makes items of messages
//! while they are still in the client's buffer. Before it on a record's path is the broker, behind it `ingest`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use millstream::{
    Batch, Bytes, Error, ErrorKind, Headers, Malformed, Origin, Polled, Reader, Result, Room, Wake, Worker,
};
use rdkafka::Timestamp;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

use super::message::{KafkaOrigin, Message};
use super::source::{Context, KafkaShared, Positions, Shared};
use super::start::{Span, next};

/// What a format makes of a message.
pub trait Read: Send + Sync + 'static {
    /// The source's item.
    type Item: 'static;

    /// Makes an item of a message.
    fn read(&self, incoming: &Incoming<'_>) -> Self::Item;
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

    fn headers(&self) -> Headers {
        let mut headers = Headers::new();
        if let Some(borrowed) = self.message.headers() {
            borrowed.iter().for_each(|header| headers.push(header.key, header.value.map(<[u8]>::to_vec)));
        }
        headers
    }

    pub(super) fn message<T>(&self, value: T) -> Message<T> {
        let mut message = Message::new(value);
        message.key = self.message.key().map(<[u8]>::to_vec);
        message.headers = self.headers();
        message.origin = Some(KafkaOrigin {
            topic: Arc::clone(&self.partition.topic),
            partition: self.message.partition(),
            offset: self.message.offset(),
            timestamp: match self.message.timestamp() {
                Timestamp::NotAvailable => None,
                Timestamp::CreateTime(time) | Timestamp::LogAppendTime(time) => Some(time),
            },
        });
        message
    }

    pub(super) fn malformed(&self, cause: &dyn std::error::Error) -> Malformed {
        let offset = next(self.message.offset());
        Malformed {
            origin: Some(Origin { partition: self.partition.shared.span.name.clone(), offset }),
            key: self.message.key().map(<[u8]>::to_vec),
            bytes: self.message.payload().map(<[u8]>::to_vec),
            headers: self.headers(),
            cause: cause.to_string(),
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
    queue: PartitionQueue<Context>,
    /// Set by the client when its queue is no longer empty.
    filled: Arc<AtomicBool>,
    next: i64,
    ended: bool,
}

/// Polls the queues of one worker's partitions.
pub struct KafkaReader<R> {
    shared: Arc<KafkaShared<R>>,
    held: Vec<Held>,
    turn: usize,
    looked_at_all: Instant,
}

/// A wake that the client has lost costs no more than this.
const LOOK_AT_ALL_EVERY: Duration = Duration::from_millis(100);
/// What a message takes of the engine's memory beside key and value: the item, its batch, its delivery.
const MESSAGE_OVERHEAD: u64 = 128;

impl<R: Read> KafkaReader<R> {
    pub(super) fn new(shared: &Arc<KafkaShared<R>>, worker: Worker, wake: &Wake) -> Result<KafkaReader<R>> {
        let own = shared.partitions.iter().filter(|partition| owner(&partition.span, worker.peers) == worker.index);
        let held = own.map(|partition| {
            let span = &partition.span;
            let queue = shared.consumer.split_partition_queue(&span.topic, span.partition);
            let mut queue = queue.ok_or_else(|| {
                Error::new(ErrorKind::Source, format!("cannot split the queue of {} off its consumer", span.name))
            })?;
            let filled = Arc::new(AtomicBool::new(true));
            let (flag, wake) = (Arc::clone(&filled), wake.clone());
            // Called with the queue's lock held: nothing but a flag and a wake.
            queue.set_nonempty_callback(move || {
                flag.store(true, SeqCst);
                wake.wake();
            });
            Ok(Held {
                topic: span.topic.as_str().into(),
                next: span.start,
                ended: span.end.is_some_and(|end| span.start >= end),
                shared: Arc::clone(partition),
                queue,
                filled,
            })
        });
        Ok(KafkaReader {
            held: held.collect::<Result<_>>()?,
            shared: Arc::clone(shared),
            turn: 0,
            looked_at_all: Instant::now(),
        })
    }

    /// The next partition with something in its queue, in turn.
    fn next_filled(&mut self) -> Option<usize> {
        let count = self.held.len();
        let found = (1..=count).map(|step| (self.turn + step) % count.max(1)).find(|index| {
            let held = &self.held[*index];
            !held.ended && held.filled.load(SeqCst)
        });
        if let Some(index) = found {
            self.turn = index;
        }
        found
    }

    fn look_at_all(&mut self) {
        if self.looked_at_all.elapsed() >= LOOK_AT_ALL_EVERY {
            self.looked_at_all = Instant::now();
            self.held.iter().for_each(|held| held.filled.store(true, SeqCst));
        }
    }
}

/// The worker that reads a partition: the same for a whole run, and even within a topic.
fn owner(span: &Span, workers: usize) -> usize {
    let topic = span
        .topic
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (topic.wrapping_add(span.partition as u64) % workers as u64) as usize
}

impl<R: Read> Reader for KafkaReader<R> {
    type Item = R::Item;

    fn poll(&mut self, batch: &mut Batch<R::Item>, room: Room) -> Result<Polled> {
        let Some(index) = self.next_filled() else {
            self.look_at_all();
            let ended = self.held.iter().all(|held| held.ended);
            return Ok(if ended { Polled::Ended } else { Polled::Idle });
        };
        self.held[index].drain(&self.shared, batch, room)?;
        let more = self.held.iter().any(|held| !held.ended && held.filled.load(SeqCst));
        let ended = self.held.iter().all(|held| held.ended);
        Ok(match (ended, more) {
            (true, _) => Polled::Ended,
            (false, true) => Polled::More,
            (false, false) => Polled::Idle,
        })
    }
}

impl Held {
    /// Takes messages from the queue until it is empty, the room is used up, or the end is reached.
    fn drain<R: Read>(&mut self, shared: &KafkaShared<R>, batch: &mut Batch<R::Item>, room: Room) -> Result<()> {
        let before = self.next;
        let mut overshot = false;
        self.shared.draining.store(true, SeqCst);
        // Before the look, so that what comes during it is seen.
        self.filled.store(false, SeqCst);
        loop {
            if batch.len() >= room.records || batch.bytes() >= room.bytes {
                self.filled.store(true, SeqCst);
                break;
            }
            if self.has_reached_its_end() {
                break;
            }
            match self.queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => {
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
                    }
                    self.next = offset + 1;
                    let held = message.payload_len() + message.key().map_or(0, <[u8]>::len);
                    let item = shared.read.read(&Incoming { message: &message, partition: self });
                    batch.push(item, Bytes(held as u64 + MESSAGE_OVERHEAD));
                }
                Some(Err(KafkaError::PartitionEOF(_))) => self.reach_end_of_log(shared),
                Some(Err(cause)) => shared.consider(cause)?,
            }
        }
        self.ended |= self.has_reached_its_end();
        if self.next > before {
            self.shared.polled.store(self.next, SeqCst);
            batch.read_to(self.shared.span.name.clone(), next(self.next));
        }
        self.shared.draining.store(overshot, SeqCst);
        Ok(())
    }

    fn has_reached_its_end(&self) -> bool {
        self.shared.span.end.is_some_and(|end| self.next >= end)
    }

    /// The log has no record more now: a bounded run has its end, whatever the last offsets hold. Control records at
    /// the end are passed, not read.
    fn reach_end_of_log<R: Read>(&mut self, shared: &KafkaShared<R>) {
        let Some(end) = self.shared.span.end else { return };
        let was_there = end <= self.shared.span.high;
        if was_there || Positions::of(&shared.consumer).get(&self.shared.span).is_some_and(|position| position >= end) {
            self.ended = true;
            self.next = self.next.max(end);
        }
    }
}

impl<R> fmt::Debug for KafkaReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaReader of {} partitions", self.held.len())
    }
}
