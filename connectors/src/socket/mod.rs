//! Lines from a TCP connection, as netcat and many loggers send them. What a socket has delivered cannot be read again, so
//! what a process had not finished when it died is lost: at most once, whatever the sink. For development, and for feeds
//! that have nothing better.
//!
//! ```text
//! feed (a thread): connect ──▶ read ──cutter──▶ ahead ──▶ reader (worker 0) ──▶ records
//!                     ▲          │
//!                     └──────────┘ closed, or broken: connect again; a run with an end has ended, or failed
//! ```

mod cut;

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind as Io};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use millstream::{
    AtStop, Batch, Bytes, Change, Clock, Error, ErrorKind, Headers, Last, Malformed, Moment, Offset, OpenSource,
    Partition, Polled, RECORD_OVERHEAD, Reader, Result, Room, SharedSource, Source, Wake, Worker, spawn,
};
use socket2::{SockRef, TcpKeepalive};

use crate::format::without_mark;
use crate::lock;

use cut::{Cut, Cutter};

/// A source of the lines that come from a TCP address, without their ends: `Result<String, Malformed>`. A line that is not
/// valid UTF-8, or longer than [`line_max`](Lines::line_max), is malformed.
///
/// When the other side closes the connection, it is made again; a run with an end ends there. A connection that breaks has not
/// ended: it was reset, the other side does not answer keep-alive probes for two minutes, or nothing came for
/// [`idle_max`](Lines::idle_max). The line in which it broke is malformed, with the bytes that came of it. It is made again
/// too, and an event says so; a run with an end fails with [`ErrorKind::Source`] then, behind all lines that came.
///
/// It is at most once: what a socket has delivered cannot be read again, so what was not finished when the process died, or
/// when a run of it failed, is lost. All of it is read by one worker.
///
/// ```no_run
/// use millstream::Job;
/// use millstream_connectors::{console, lines};
///
/// Job::new("echo", |flow| flow.source(lines("localhost:9999"))?.or_skip().sink(console())).run()?;
/// # Ok::<(), millstream::Error>(())
/// ```
pub fn lines(address: impl Into<String>) -> Lines {
    Lines { address: address.into(), line_max: Bytes(1 << 20), connect_within: Duration::from_secs(10), idle_max: None }
}

/// See [`lines`]; at most once, because what a socket has delivered cannot be read again.
#[derive(Clone, Debug)]
pub struct Lines {
    address: String,
    line_max: Bytes,
    connect_within: Duration,
    idle_max: Option<Duration>,
}

impl Lines {
    /// The longest line that is taken, 1 MiB by default. What counts is its bytes without its end (`\n` or `\r\n`), as in
    /// [files](crate::file::Files::record_max). Of a longer one the beginning is kept as malformed and the rest is left out as
    /// it comes: an event says how much that is.
    #[must_use]
    pub fn line_max(self, most: Bytes) -> Lines {
        Lines { line_max: most, ..self }
    }

    /// How long one attempt to connect may take, at start and later; 10 s by default. At start there is one attempt for each
    /// address of the host: where nobody listens the job does not start, so start the other side first.
    #[must_use]
    pub fn connect_within(self, limit: Duration) -> Lines {
        Lines { connect_within: limit, ..self }
    }

    /// How long nothing may come before the connection counts as broken; without a limit by default, because a feed may be
    /// silent for long. Keep-alive probes, which are always sent, tell a machine that is gone; this tells a program that hangs.
    #[must_use]
    pub fn idle_max(self, limit: Duration) -> Lines {
        Lines { idle_max: Some(limit), ..self }
    }

    fn dial(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::new(Io::AddrNotAvailable, "the address has no host");
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

/// A silent peer is asked whether it is still there, and after two minutes without an answer it is gone.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 6;

/// Pauses between two calls.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(5);
/// How often a connection on which nothing comes looks whether the run is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

type Line = Result<String, Malformed>;

/// Lines that are read ahead, between the connection's thread and the reader.
struct Ahead {
    state: Mutex<Waiting>,
    /// There is room, or the run is over.
    changed: Condvar,
    most: u64,
    clock: Clock,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Waits>,
    bytes: u64,
    wake: Option<Wake>,
    /// Nothing more will come.
    has_ended: bool,
    /// Why nothing more will come, of a run with an end whose connection broke.
    broken: Option<Error>,
    /// Nobody reads any more.
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

    /// Adds a line when there is room; says whether anybody still reads.
    fn push(&self, line: Line, bytes: u64) -> bool {
        // Before it waits for room.
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

/// The thread of a connection.
struct Feed {
    lines: Lines,
    ahead: Arc<Ahead>,
    /// A run with an end ends with the connection.
    once: bool,
}

/// How a connection is over.
enum Over {
    /// The other side has closed it.
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
                        tracing::info!(address = self.lines.address, "connected again");
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
            pause = (pause * 2).min(AGAIN_MOST);
        }
        self.ahead.end(None);
    }

    /// The error of a run with an end.
    fn broken(&self, over: Over) -> Option<Error> {
        match over {
            Over::Broken(cause) => {
                let doing = format!("the connection to {} broke", self.lines.address);
                Some(Error::new(ErrorKind::Source, doing).caused_by(cause))
            }
            Over::Closed | Over::Unwanted => None,
        }
    }

    /// Reads until the connection is over. Of a line that has no end by then nothing is lost.
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
            // The time that lines waited for room is not the other side's.
            heard = self.ahead.clock.now();
        }
    }

    /// Hands a line on; says whether anybody still reads.
    fn push(&self, cut: Cut) -> bool {
        let malformed =
            |bytes, cause| Malformed { origin: None, key: None, bytes: Some(bytes), headers: Headers::new(), cause };
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
            Cut::Torn(torn) => Err(malformed(torn, "the connection broke within this line".to_owned())),
            Cut::LeftOut(bytes) => {
                let (address, line_max) = (&self.lines.address, self.lines.line_max.0);
                tracing::warn!(address, bytes, line_max, "left out the rest of a line that is too long");
                return true;
            }
        };
        let held = line.as_ref().map_or_else(|bad| bad.bytes.as_ref().map_or(0, Vec::len), String::capacity);
        self.ahead.push(line, (held + size_of::<Line>()) as u64 + RECORD_OVERHEAD.0)
    }
}

impl Lines {
    /// Nothing has come for so long.
    fn look_idle(&self, silent: Duration) -> std::io::Result<()> {
        match self.idle_max {
            Some(limit) if silent >= limit => {
                Err(std::io::Error::new(Io::TimedOut, format!("nothing came for {limit:?}")))
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

    fn connect(self, open: OpenSource) -> Result<SocketShared> {
        open.once(&self.name())?;
        if self.line_max.0 == 0 {
            return Err(Error::new(ErrorKind::Option, "`line_max` must be greater than zero"));
        }
        if self.idle_max.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::new(ErrorKind::Option, "`idle_max` must be greater than zero"));
        }
        let first = self.dial().map_err(|cause| {
            Error::new(ErrorKind::Unreachable, format!("cannot connect to {}", self.address)).caused_by(cause)
        })?;
        let (state, changed) = (Mutex::default(), Condvar::new());
        let ahead = Ahead { state, changed, most: open.prefetch.0, clock: open.clock.clone() };
        let ahead = Arc::new(ahead);
        let feed = Feed { lines: self, ahead: Arc::clone(&ahead), once: open.bounded };
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

/// The half of a socket source that a process has once.
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

    fn serve(&self) -> Result<Vec<Change>> {
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

    fn close(&self, _: Last) {
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

    fn poll(&mut self, batch: &mut Batch<Line>, room: Room) -> Result<Polled> {
        let Some(ahead) = &self.ahead else { return Ok(Polled::Ended) };
        let mut state = ahead.lock();
        while batch.len() < room.records && batch.bytes() < room.bytes {
            let Some(Waits { line, bytes, arrived }) = state.lines.pop_front() else { break };
            state.bytes -= bytes;
            batch.arrived(arrived);
            batch.push(line, Bytes(bytes));
        }
        ahead.changed.notify_all();
        // Behind the last line that came, so that each of them is handed on before the run fails.
        if Batch::is_empty(batch)
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
            (true, true) => Polled::Ended,
            (true, false) => Polled::Idle,
        })
    }

    fn has_ended(&self) -> bool {
        self.ahead.as_ref().is_none_or(|ahead| {
            let state = ahead.lock();
            state.has_ended && state.lines.is_empty() && state.broken.is_none()
        })
    }

    /// Nobody can read it again: what is here already goes out.
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

    /// A run whose thread had panicked waited for its lines for ever.
    #[test]
    fn a_thread_that_panics_ends_the_run() {
        let ahead = Ahead { state: Mutex::default(), changed: Condvar::new(), most: 0, clock: Clock::system() };
        let thread = spawn("lines", || panic!("it falls")).expect("there is a thread");
        while !thread.is_finished() {
            thread::yield_now();
        }
        let shared = SocketShared { ahead: Arc::new(ahead), thread: Mutex::new(Thread::Running(thread)) };
        let error = shared.serve().expect_err("it has panicked");
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(error.to_string().contains("has panicked"), "{error}");
        assert!(shared.serve().is_ok(), "it is said once");
    }
}
