//! Lines from a TCP connection, as netcat and many loggers send them. What a socket has delivered
//! cannot be read again, so lines that a process had not finished when it died are lost: delivery
//! is at most once, whatever the sink. For development, and for feeds that offer nothing better.
//!
//! ```text
//! feed (a thread): connect ──▶ read ──cutter──▶ ahead ──▶ reader (worker 0) ──▶ records
//!                     ▲          │
//!                     └──────────┘ closed or broken: reconnect; a bounded run ends or fails
//! ```

mod cut;

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind as Io};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use millstream::connector::{
    AtStop, Closing, Moment, Offset, OpenSource, Partition, Polled, RECORD_OVERHEAD, ReadBatch, Reader, Room,
    SharedSource, SourceEvent, Wake, Worker, spawn,
};
use millstream::{ByteSize, Clock, End, Error, ErrorKind, Malformed, Result, Source};
use socket2::{SockRef, TcpKeepalive};

use crate::format::without_mark;
use crate::lock;

use cut::{Cut, Cutter};

/// Reads lines from a TCP address, without their line endings: `Result<String, Malformed>`. A line
/// that is not valid UTF-8, or longer than [`line_max`](Lines::line_max), is malformed.
///
/// When the other side closes the connection, the source reconnects; a bounded run ends instead. A
/// connection breaks when it is reset, when the other side does not answer keep-alive probes for
/// two minutes, or when nothing arrives for [`idle_max`](Lines::idle_max). The line that was
/// interrupted is malformed, with the bytes that arrived. The source then logs an event and
/// reconnects; a bounded run fails with [`ErrorKind::Source`] instead, after all lines that
/// arrived.
///
/// Delivery is at most once: what a socket has delivered cannot be read again, so lines that were
/// not finished when the process died, or when one of its runs failed, are lost. One worker reads
/// all lines.
///
/// ```no_run
/// use millstream::Job;
/// use millstream_connectors::{console, lines};
///
/// Job::new("echo", |flow| flow.source(lines("localhost:9999"))?.or_skip().sink(console())).run()?;
/// # Ok::<(), millstream::Error>(())
/// ```
pub fn lines(address: impl Into<String>) -> Lines {
    Lines {
        address: address.into(),
        line_max: ByteSize(1 << 20),
        connect_within: Duration::from_secs(10),
        idle_max: None,
    }
}

/// Lines from a TCP address, at most once, because what a socket has delivered cannot be read
/// again; see [`lines`].
#[derive(Clone, Debug)]
#[must_use = "a source does nothing until a pipeline reads it"]
pub struct Lines {
    address: String,
    line_max: ByteSize,
    connect_within: Duration,
    idle_max: Option<Duration>,
}

impl Lines {
    /// The longest line that is accepted, 1 MiB by default. The length is that of its bytes without
    /// the line ending (`\n` or `\r\n`), as in [files](crate::file::Files::record_max). The
    /// beginning of a longer line is kept as malformed, and the rest is skipped as it arrives: an
    /// event reports how many bytes.
    pub fn line_max(self, most: ByteSize) -> Lines {
        Lines { line_max: most, ..self }
    }

    /// How long one attempt to connect may take, at start and later; 10 s by default. At start
    /// there is one attempt for each address of the host. If nothing listens there, the job does
    /// not start, so start the other side first.
    pub fn connect_within(self, limit: Duration) -> Lines {
        Lines { connect_within: limit, ..self }
    }

    /// How long the connection may be silent before it counts as broken. There is no limit by
    /// default, because a feed may be silent for long. Keep-alive probes, which are always sent,
    /// detect a machine that is gone; this limit detects a program that hangs.
    pub fn idle_max(self, limit: Duration) -> Lines {
        Lines { idle_max: Some(limit), ..self }
    }

    fn dial(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::new(Io::AddrNotAvailable, "the host name resolves to no address");
        for address in self.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.connect_within) {
                Ok(stream) => {
                    let probes =
                        TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
                    SockRef::from(&stream).set_tcp_keepalive(&probes)?;
                    return Ok(stream);
                }
                Err(cause) => last = cause,
            }
        }
        Err(last)
    }
}

/// A silent peer is probed, and after two minutes without an answer the connection breaks.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// The first and the longest pause between two attempts to connect.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// How often a silent connection checks whether the run is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

type Line = Result<String, Malformed>;

/// Lines that are read ahead, between the feed thread and the reader.
struct Ahead {
    state: Mutex<Waiting>,
    /// Signals that there is room, or that the run is over.
    changed: Condvar,
    most: u64,
    clock: Clock,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Waits>,
    bytes: u64,
    wake: Option<Wake>,
    /// No more lines will arrive.
    has_ended: bool,
    /// Why no more lines will arrive, in a bounded run whose connection broke.
    broken: Option<Error>,
    /// The run is over: the reader takes no more lines.
    is_over: bool,
}

struct Waits {
    line: Line,
    bytes: u64,
    arrived: Moment,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.state)
    }

    /// Waits for room and adds a line. Returns `false` if the run is over.
    fn push(&self, line: Line, bytes: u64) -> bool {
        // Taken before the wait for room.
        let arrived = self.clock.now();
        let mut state = self.lock();
        while state.bytes > 0 && state.bytes + bytes > self.most && !state.is_over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_over {
            return false;
        }
        state.bytes += bytes;
        state.lines.push_back(Waits { line, bytes, arrived });
        if let Some(wake) = &state.wake {
            wake.wake();
        }
        true
    }

    fn end(&self, broken: Option<Error>) {
        let mut state = self.lock();
        (state.has_ended, state.broken) = (true, broken);
        if let Some(wake) = &state.wake {
            wake.wake();
        }
    }

    fn is_over(&self) -> bool {
        self.lock().is_over
    }

    fn be_over(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }
}

/// The feed thread, which reads the connection.
struct Feed {
    lines: Lines,
    ahead: Arc<Ahead>,
    /// A bounded run: it ends with the connection.
    once: bool,
}

/// How a connection ended.
enum Over {
    /// The other side closed it.
    Closed,
    Broken(std::io::Error),
    /// The run is over.
    Unwanted,
}

impl Feed {
    fn run(&self, first: TcpStream) {
        let mut stream = Some(first);
        let mut pause = AGAIN_FIRST;
        while !self.ahead.is_over() {
            let is_first = stream.is_some();
            match stream.take().map_or_else(|| self.lines.dial(), Ok) {
                Ok(stream) => {
                    pause = AGAIN_FIRST;
                    if !is_first {
                        tracing::info!(address = self.lines.address, "reconnected");
                    }
                    let over = self.read(stream);
                    if let Over::Broken(cause) = &over {
                        tracing::warn!(address = self.lines.address, %cause, "the connection broke");
                    }
                    if self.once {
                        return self.ahead.end(self.broken(over));
                    }
                }
                Err(cause) => tracing::warn!(address = self.lines.address, %cause, ?pause, "cannot connect"),
            }
            thread::sleep(pause);
            pause = (pause * 2).min(AGAIN_MAX);
        }
        self.ahead.end(None);
    }

    /// The error of a bounded run whose connection broke.
    fn broken(&self, over: Over) -> Option<Error> {
        match over {
            Over::Broken(cause) => {
                let doing = format!("the connection to {} broke", self.lines.address);
                Some(Error::new(ErrorKind::Source, doing).caused_by(cause))
            }
            Over::Closed | Over::Unwanted => None,
        }
    }

    /// Reads until the connection ends. An unfinished last line is handed on too, unless the run is
    /// over.
    fn read(&self, stream: TcpStream) -> Over {
        let mut cutter = Cutter::new(self.lines.line_max.0 as usize);
        let over = self.read_whole_lines(stream, &mut cutter).unwrap_or_else(Over::Broken);
        if let Some(last) = cutter.last() {
            match (&over, last) {
                (Over::Unwanted, _) => {}
                (Over::Broken(_), Cut::Line(torn)) => _ = self.push(Cut::Torn(torn)),
                (Over::Closed | Over::Broken(_), last) => _ = self.push(last),
            }
        }
        over
    }

    fn read_whole_lines(&self, stream: TcpStream, cutter: &mut Cutter) -> std::io::Result<Over> {
        stream.set_read_timeout(Some(LOOK_EVERY))?;
        let mut reader = BufReader::with_capacity(1 << 16, stream);
        let mut heard = self.ahead.clock.now();
        loop {
            let chunk = match reader.fill_buf() {
                Ok([]) => return Ok(Over::Closed),
                Ok(chunk) => chunk,
                Err(cause) if matches!(cause.kind(), Io::WouldBlock | Io::TimedOut | Io::Interrupted) => {
                    if self.ahead.is_over() {
                        return Ok(Over::Unwanted);
                    }
                    self.lines.look_idle(self.ahead.clock.now() - heard)?;
                    continue;
                }
                Err(cause) => return Err(cause),
            };
            let taken = chunk.len();
            let mut is_read = true;
            cutter.cut(chunk, |line| is_read = is_read && self.push(line));
            if !is_read {
                return Ok(Over::Unwanted);
            }
            reader.consume(taken);
            // Set after the push: time spent waiting for room is not silence of the other side.
            heard = self.ahead.clock.now();
        }
    }

    /// Hands a line on. Returns `false` if the run is over.
    fn push(&self, cut: Cut) -> bool {
        let malformed = |bytes, cause: String| {
            let mut malformed = Malformed::new(cause);
            malformed.bytes = Some(bytes);
            malformed
        };
        let line = match cut {
            Cut::Line(mut line) => {
                line.drain(..line.len() - without_mark(&line).len());
                String::from_utf8(line).map_err(|error| {
                    let cause = format!("the line is not valid UTF-8: {}", error.utf8_error());
                    malformed(error.into_bytes(), cause)
                })
            }
            Cut::TooLong(beginning) => {
                Err(malformed(beginning, format!("the line is longer than {} bytes", self.lines.line_max.0)))
            }
            Cut::Torn(torn) => Err(malformed(torn, "the connection broke in the middle of this line".to_owned())),
            Cut::LeftOut(bytes) => {
                let (address, line_max) = (&self.lines.address, self.lines.line_max.0);
                tracing::warn!(address, bytes, line_max, "skipped the rest of a line that is too long");
                return true;
            }
        };
        let held = line.as_ref().map_or_else(|bad| bad.bytes.as_ref().map_or(0, Vec::len), String::capacity);
        self.ahead.push(line, (held + size_of::<Line>()) as u64 + RECORD_OVERHEAD.0)
    }
}

impl Lines {
    /// Fails if the connection has been silent for `idle_max`.
    fn look_idle(&self, silent: Duration) -> std::io::Result<()> {
        match self.idle_max {
            Some(limit) if silent >= limit => {
                Err(std::io::Error::new(Io::TimedOut, format!("received nothing for {limit:?}")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Source for Lines {
    type Item = Line;
    type Shared = SocketShared;
    type Reader = SocketReader;

    fn name(&self) -> String {
        format!("lines {}", self.address)
    }

    fn can_be_read_again(&self) -> bool {
        false
    }

    fn connect(self, open: OpenSource) -> Result<SocketShared> {
        if self.line_max.0 == 0 {
            return Err(Error::new(ErrorKind::Config, "`line_max` must be greater than zero"));
        }
        if self.idle_max.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::new(ErrorKind::Config, "`idle_max` must be greater than zero"));
        }
        let first = self.dial().map_err(|cause| {
            Error::new(ErrorKind::Unreachable, format!("cannot connect to {}", self.address)).caused_by(cause)
        })?;
        let (state, changed) = (Mutex::default(), Condvar::new());
        let ahead = Ahead { state, changed, most: open.prefetch.0, clock: open.clock.clone() };
        let ahead = Arc::new(ahead);
        let feed = Feed { lines: self, ahead: Arc::clone(&ahead), once: open.is_bounded() };
        let thread = Mutex::new(Thread::Ready(Box::new((feed, first))));
        Ok(SocketShared { ahead, thread })
    }

    fn reader(shared: &Arc<SocketShared>, worker: Worker, wake: Wake) -> Result<SocketReader> {
        let ahead = (worker.index == 0).then(|| Arc::clone(&shared.ahead));
        if let Some(ahead) = &ahead {
            ahead.lock().wake = Some(wake);
        }
        Ok(SocketReader { ahead, read: 0 })
    }
}

/// The part of a socket source that exists once per process.
pub struct SocketShared {
    ahead: Arc<Ahead>,
    thread: Mutex<Thread>,
}

enum Thread {
    Ready(Box<(Feed, TcpStream)>),
    Running(JoinHandle<()>),
    Ended,
}

impl SharedSource for SocketShared {
    fn begin(&self) -> Result<()> {
        let mut thread = lock(&self.thread);
        let Thread::Ready(ready) = std::mem::replace(&mut *thread, Thread::Ended) else {
            unreachable!("a run begins once")
        };
        let (feed, first) = *ready;
        *thread = Thread::Running(spawn("lines", move || feed.run(first))?);
        Ok(())
    }

    fn serve(&self) -> Result<Vec<SourceEvent>> {
        let mut thread = lock(&self.thread);
        let has_ended = matches!(&*thread, Thread::Running(running) if running.is_finished());
        if has_ended
            && let Thread::Running(running) = std::mem::replace(&mut *thread, Thread::Ended)
            && running.join().is_err()
        {
            return Err(Error::new(ErrorKind::Source, "the thread that reads the socket has panicked"));
        }
        Ok(Vec::new())
    }

    fn close(&self, _: Closing) {
        self.ahead.be_over();
    }
}

impl fmt::Debug for SocketShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SocketShared")
    }
}

/// Reads the lines, on worker 0.
pub struct SocketReader {
    ahead: Option<Arc<Ahead>>,
    read: u64,
}

impl Reader for SocketReader {
    type Item = Line;

    fn poll(&mut self, batch: &mut ReadBatch<Line>, room: Room) -> Result<Polled> {
        let Some(ahead) = &self.ahead else { return Ok(Polled::Ended(End::OfTime)) };
        let mut state = ahead.lock();
        while batch.len() < room.records && batch.bytes() < room.bytes {
            let Some(Waits { line, bytes, arrived }) = state.lines.pop_front() else { break };
            state.bytes -= bytes;
            batch.arrived(arrived);
            batch.push(line, ByteSize(bytes));
        }
        ahead.changed.notify_all();
        // Only after the last line, so that all lines are handed on before the run fails.
        if batch.is_empty()
            && let Some(broken) = state.broken.take()
        {
            return Err(broken);
        }
        let taken = batch.len() as u64;
        if taken > 0 {
            self.read += taken;
            batch.read_to(Partition::new("lines"), Offset(self.read));
        }
        Ok(match (state.lines.is_empty(), state.has_ended) {
            (false, _) => Polled::More,
            (true, true) if state.broken.is_some() => Polled::More,
            (true, true) => Polled::Ended(End::OfTime),
            (true, false) => Polled::Idle,
        })
    }

    fn has_ended(&self) -> Option<End> {
        let has_ended = self.ahead.as_ref().is_none_or(|ahead| {
            let state = ahead.lock();
            state.has_ended && state.lines.is_empty() && state.broken.is_none()
        });
        has_ended.then_some(End::OfTime)
    }

    /// A socket cannot be read again, so the lines that are already here are handed on.
    fn stop(&mut self) -> AtStop {
        if let Some(ahead) = &self.ahead {
            ahead.be_over();
        }
        AtStop::Drain
    }
}

impl fmt::Debug for SocketReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SocketReader after {} lines", self.read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run whose feed thread had panicked waited for its lines for ever.
    #[test]
    fn a_thread_that_panics_ends_the_run() {
        let ahead = Ahead { state: Mutex::default(), changed: Condvar::new(), most: 0, clock: Clock::system() };
        let thread = spawn("lines", || panic!("on purpose")).expect("a thread can be started");
        while !thread.is_finished() {
            thread::yield_now();
        }
        let shared = SocketShared { ahead: Arc::new(ahead), thread: Mutex::new(Thread::Running(thread)) };
        let error = shared.serve().expect_err("it has panicked");
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.to_string().contains("has panicked"), "{error}");
        assert!(shared.serve().is_ok(), "it is reported once");
    }
}
