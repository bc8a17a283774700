//! A bounded channel that the embedding program feeds. Each record has a receipt that resolves when
//! every sink has acknowledged it. Without that, an HTTP handler that answers is at-most-once.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};

use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::oneshot;

use crate::words::{
    ByteSize, Clock, Error, ErrorKind, Moment, Outcome, RECORD_OVERHEAD, ReadBatch, Result, Room, Wake, Worker, lock,
};

use super::{AtStop, Closing, End, OpenSource, Polled, Reader, SharedSource, Source};

/// A channel into a job, with room for `room` records that have not been read yet.
///
/// A record arrives when it is sent, so the time that it waits for the job counts towards its
/// latency.
///
/// One worker reads all of it; [`rebalance`](crate::Stream::rebalance) spreads the records. The
/// job's input ends when every sender is dropped. Records that were sent before the job stopped are
/// still processed. Records that a failed job had not finished cannot be read again, and their
/// receipts say so. [`Job::memory`](crate::Job::memory) bounds what is in flight; it counts what
/// records point to when [`sized`](ChannelSource::sized) says how much that is.
///
/// # Panics
/// When `room` is 0.
///
/// ```
/// use millstream::{Job, channel, collect};
///
/// let (orders, source) = channel::<u64>(16);
/// let results = collect();
/// let sink = results.clone();
/// let job = Job::new("double", move |flow| flow.source(&source)?.map(|order| order * 2).sink(&sink)).start()?;
/// orders.try_send(21).expect("there is room");
/// drop(orders);
/// job.wait()?;
/// assert_eq!(results.values(), [42]);
/// # Ok::<(), millstream::Error>(())
/// ```
pub fn channel<T: Send + 'static>(room: usize) -> (Sender<T>, ChannelSource<T>) {
    // Relaxed: the numbers only have to differ.
    static CHANNELS: AtomicU64 = AtomicU64::new(1);
    let (sender, receiver) = mpsc::channel(room);
    let bell = Arc::new(Bell::default());
    let queue = Queue { receiver, next: None, reader: 0, is_read: false };
    let source = ChannelSource {
        id: CHANNELS.fetch_add(1, Relaxed),
        queue: Arc::new(Mutex::new(queue)),
        bell: Arc::clone(&bell),
        points_to: |_| ByteSize(0),
    };
    (Sender { sender, bell }, source)
}

/// Wakes the reader, if there is one, and knows the clock of its job.
#[derive(Default)]
struct Bell(Mutex<Option<(Wake, Clock)>>);

impl Bell {
    fn ring(&self) {
        if let Some((wake, _)) = &*lock(&self.0) {
            wake.wake();
        }
    }

    fn now(&self) -> Moment {
        lock(&self.0).as_ref().map_or_else(|| Clock::system().now(), |(_, clock)| clock.now())
    }
}

/// What was sent and not polled. Only sources, and the runs that read them, keep it alive; a reader
/// does so only for the length of a poll. So the channel is closed, and senders learn of it, when
/// the last source is dropped with its job, even if a worker of that job is stuck.
struct Queue<T> {
    receiver: mpsc::Receiver<Sent<T>>,
    /// Received, and must not be in one batch with those before it.
    next: Option<Sent<T>>,
    /// The number of the reader that has it. A reader of an earlier run, whose worker is stuck, has
    /// lost it.
    reader: u64,
    is_read: bool,
}

impl<T> Queue<T> {
    /// The number of records that wait in it.
    fn len(&self) -> usize {
        self.receiver.len() + usize::from(self.next.is_some())
    }
}

struct Sent<T> {
    value: T,
    at: Moment,
    done: oneshot::Sender<Outcome>,
}

/// The program's end of a channel. Clones feed the same job.
pub struct Sender<T> {
    sender: mpsc::Sender<Sent<T>>,
    bell: Arc<Bell>,
}

impl<T: Send + 'static> Sender<T> {
    /// Waits for room, sends, and returns the receipt. Cancel safe: if it is cancelled, nothing was
    /// sent.
    ///
    /// # Errors
    /// Returns the value when no job reads this channel any more.
    pub async fn send(&self, value: T) -> Result<Receipt, SendError<T>> {
        match self.sender.reserve().await {
            Ok(permit) => {
                let (sent, receipt) = self.sent(value);
                permit.send(sent);
                self.bell.ring();
                Ok(receipt)
            }
            Err(_) => Err(SendError::Ended(value)),
        }
    }

    /// Sends when there is room now.
    ///
    /// # Errors
    /// Returns the value when there is no room, or no job reads this channel any more.
    pub fn try_send(&self, value: T) -> Result<Receipt, SendError<T>> {
        let (sent, receipt) = self.sent(value);
        match self.sender.try_send(sent) {
            Ok(()) => {
                self.bell.ring();
                Ok(receipt)
            }
            Err(mpsc::error::TrySendError::Full(sent)) => Err(SendError::Full(sent.value)),
            Err(mpsc::error::TrySendError::Closed(sent)) => Err(SendError::Ended(sent.value)),
        }
    }

    /// Waits for room on a thread that is not part of an async runtime.
    ///
    /// # Errors
    /// Returns the value when no job reads this channel any more.
    ///
    /// # Panics
    /// When called within an async runtime.
    pub fn blocking_send(&self, value: T) -> Result<Receipt, SendError<T>> {
        let (sent, receipt) = self.sent(value);
        match self.sender.blocking_send(sent) {
            Ok(()) => {
                self.bell.ring();
                Ok(receipt)
            }
            Err(mpsc::error::SendError(sent)) => Err(SendError::Ended(sent.value)),
        }
    }

    fn sent(&self, value: T) -> (Sent<T>, Receipt) {
        let (done, outcome) = oneshot::channel();
        (Sent { value, at: self.bell.now(), done }, Receipt(outcome))
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Sender { sender: self.sender.clone(), bell: Arc::clone(&self.bell) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The drop of the last sender is the end of the input, and the reader must be woken to see
        // it.
        let (closed, _) = mpsc::channel(1);
        drop(std::mem::replace(&mut self.sender, closed));
        self.bell.ring();
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender")
    }
}

/// A record that could not be sent.
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SendError<T> {
    /// The channel has no room at the moment.
    Full(T),
    /// No job reads this channel any more.
    Ended(T),
}

impl<T> SendError<T> {
    /// The record.
    pub fn into_inner(self) -> T {
        match self {
            SendError::Full(value) | SendError::Ended(value) => value,
        }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "Full(..)",
            SendError::Ended(_) => "Ended(..)",
        })
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "the channel into the job is full",
            SendError::Ended(_) => "the job that reads this channel has ended",
        })
    }
}

impl<T> std::error::Error for SendError<T> {}

/// Resolves when every output that the record caused was acknowledged.
#[must_use = "a receipt says nothing until it is awaited"]
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Outcome>);

impl Future for Receipt {
    type Output = Result<(), Undelivered>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|outcome| match outcome {
            Ok(Outcome::Delivered) => Ok(()),
            Ok(Outcome::Refused) => Err(Undelivered::Refused),
            Ok(Outcome::Unknown) | Err(_) => Err(Undelivered::Ended),
        })
    }
}

impl Receipt {
    /// Waits on a thread that is not part of an async runtime.
    ///
    /// # Errors
    /// As awaiting it.
    ///
    /// # Panics
    /// When called within an async runtime.
    pub fn wait(self) -> Result<(), Undelivered> {
        match self.0.blocking_recv() {
            Ok(Outcome::Delivered) => Ok(()),
            Ok(Outcome::Refused) => Err(Undelivered::Refused),
            Ok(Outcome::Unknown) | Err(_) => Err(Undelivered::Ended),
        }
    }
}

/// Why a record was not delivered, or not known to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Undelivered {
    /// The run ended before every output was acknowledged; some may have been.
    Ended,
    /// A sink's policy disposed of an output.
    Refused,
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Undelivered::Ended => "the run ended before every output of the record was acknowledged",
            Undelivered::Refused => "a sink disposed of an output of the record",
        })
    }
}

impl std::error::Error for Undelivered {}

/// The job's end of a channel. One job reads it at a time; a restarted run of that job continues to
/// read it.
#[must_use = "a source does nothing until a pipeline reads it"]
pub struct ChannelSource<T> {
    id: u64,
    queue: Arc<Mutex<Queue<T>>>,
    bell: Arc<Bell>,
    points_to: fn(&T) -> ByteSize,
}

impl<T> ChannelSource<T> {
    /// Sets how much memory a record points to, such as the length of its strings, so that
    /// [`Job::memory`](crate::Job::memory) bounds that too; nothing by default. It matters where
    /// outputs may stop while the program does not wait for receipts.
    pub fn sized(self, points_to: fn(&T) -> ByteSize) -> ChannelSource<T> {
        ChannelSource { points_to, ..self }
    }
}

impl<T> Clone for ChannelSource<T> {
    fn clone(&self) -> Self {
        let (queue, bell) = (Arc::clone(&self.queue), Arc::clone(&self.bell));
        ChannelSource { id: self.id, queue, bell, points_to: self.points_to }
    }
}

impl<T> fmt::Debug for ChannelSource<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelSource")
    }
}

impl<T: Send + 'static> Source for ChannelSource<T> {
    type Item = T;
    type Shared = ChannelShared<T>;
    type Reader = ChannelReader<T>;

    fn name(&self) -> String {
        "channel".to_owned()
    }

    fn can_be_read_again(&self) -> bool {
        false
    }

    fn connect(self, open: OpenSource) -> Result<ChannelShared<T>> {
        open.claim([format!("channel {}", self.id)])?;
        let mut queue = lock(&self.queue);
        if queue.is_read {
            let doing = "cannot read a channel twice: another job already reads it";
            return Err(Error::new(ErrorKind::Config, doing));
        }
        queue.is_read = true;
        queue.reader += 1;
        let reader = queue.reader;
        drop(queue);
        Ok(ChannelShared { source: Mutex::new(Some(self)), reader, bounded: open.is_bounded(), clock: open.clock })
    }

    fn reader(shared: &Arc<ChannelShared<T>>, worker: Worker, wake: Wake) -> Result<ChannelReader<T>> {
        let none = ChannelReader {
            queue: Weak::new(),
            reader: 0,
            left: 0,
            clock: Clock::system(),
            points_to: |_| ByteSize(0),
        };
        let source = lock(&shared.source);
        let Some(source) = source.as_ref().filter(|_| worker.index == 0) else { return Ok(none) };
        *lock(&source.bell.0) = Some((wake, shared.clock.clone()));
        let queue = lock(&source.queue);
        let left = if shared.bounded { queue.len() } else { usize::MAX };
        Ok(ChannelReader {
            queue: Arc::downgrade(&source.queue),
            reader: shared.reader,
            left,
            clock: shared.clock.clone(),
            points_to: source.points_to,
        })
    }
}

/// The per-process half of a channel source. Its locks are taken in the order `source`, queue,
/// bell.
#[derive(Debug)]
pub struct ChannelShared<T> {
    /// `None` after the run has ended. A stuck worker keeps everything else here alive.
    source: Mutex<Option<ChannelSource<T>>>,
    /// The number of its reader among all readers of the channel.
    reader: u64,
    bounded: bool,
    clock: Clock,
}

impl<T> ChannelShared<T> {
    /// Releases the channel, so that another run may read it, unless another run has it already.
    fn let_go(&self) {
        let Some(source) = lock(&self.source).take() else { return };
        let mut queue = lock(&source.queue);
        if queue.reader == self.reader {
            queue.is_read = false;
            *lock(&source.bell.0) = None;
            queue.reader += 1;
        }
    }
}

impl<T> Drop for ChannelShared<T> {
    /// Releases the channel also when the plan fails after this source was connected.
    fn drop(&mut self) {
        self.let_go();
    }
}

impl<T: Send + 'static> SharedSource for ChannelShared<T> {
    /// Releases the channel: a restarted run, or a later job, reads on.
    fn close(&self, _: Closing) {
        self.let_go();
    }

    fn unread(&self) -> u64 {
        lock(&self.source).as_ref().map_or(0, |source| lock(&source.queue).len() as u64)
    }
}

/// Reads a channel, on worker 0.
pub struct ChannelReader<T> {
    queue: Weak<Mutex<Queue<T>>>,
    /// The number of this reader among all readers of the queue.
    reader: u64,
    left: usize,
    clock: Clock,
    points_to: fn(&T) -> ByteSize,
}

impl<T: Send + 'static> Reader for ChannelReader<T> {
    type Item = T;

    fn poll(&mut self, batch: &mut ReadBatch<T>, room: Room) -> Result<Polled> {
        // Other workers read nothing of it. A run that has lost the channel to another leaves it
        // open.
        let Some(queue) = self.queue.upgrade() else { return Ok(Polled::Ended(End::OfTime)) };
        let mut queue = lock(&queue);
        if queue.reader != self.reader {
            return Ok(Polled::Ended(End::OfRun));
        }
        let Queue { receiver, next, .. } = &mut *queue;
        let points_to = self.points_to;
        let size = |value: &T| ByteSize(size_of::<Sent<T>>() as u64 + RECORD_OVERHEAD.0 + points_to(value).0);
        while self.left > 0 {
            if batch.len() >= room.records || batch.bytes() >= room.bytes {
                return Ok(Polled::More);
            }
            let sent = match next.take().map_or_else(|| receiver.try_recv(), Ok) {
                Ok(sent) => sent,
                Err(TryRecvError::Empty) => return Ok(Polled::Idle),
                Err(TryRecvError::Disconnected) => return Ok(Polled::Ended(End::OfTime)),
            };
            // The receipts of a batch resolve together. So a record whose receipt the program holds
            // gets a batch of its own: it does not wait for its neighbours, and is not refused
            // because of one of them.
            let is_awaited = !sent.done.is_closed();
            if is_awaited && !batch.is_empty() {
                *next = Some(sent);
                return Ok(Polled::More);
            }
            self.left -= 1;
            let Sent { value, at, done } = sent;
            if batch.is_empty() {
                // A record that was sent before the job began has its time from another clock.
                batch.arrived(at.min(self.clock.now()));
            }
            let held = size(&value);
            batch.push(value, held);
            // Fails when the program has dropped the receipt, which it may do.
            batch.push_receipt(Box::new(move |outcome| {
                let _ = done.send(outcome);
            }));
            if is_awaited {
                return Ok(Polled::More);
            }
        }
        // A bounded run has read what existed at its start.
        Ok(Polled::Ended(End::OfRun))
    }

    fn has_ended(&self) -> Option<End> {
        let Some(queue) = self.queue.upgrade() else { return Some(End::OfTime) };
        let queue = lock(&queue);
        if queue.reader != self.reader || self.left == 0 {
            return Some(End::OfRun);
        }
        (queue.receiver.is_closed() && queue.len() == 0).then_some(End::OfTime)
    }

    /// Closes the channel: from now on senders get their values back.
    fn stop(&mut self) -> AtStop {
        if let Some(queue) = self.queue.upgrade() {
            let mut queue = lock(&queue);
            if queue.reader == self.reader {
                queue.receiver.close();
            }
        }
        AtStop::Drain
    }
}

impl<T> fmt::Debug for ChannelReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelReader")
    }
}
