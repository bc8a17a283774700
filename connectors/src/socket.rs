//! Lines from a TCP connection, as netcat and many loggers send them. What a socket has delivered cannot be read again, so
//! what a process had not finished when it died is lost: at most once, whatever the sink. For development, and for feeds
//! that have nothing better.

use std::collections::VecDeque;
use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind as Io};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use millstream::{
    AtStop, Batch, Bytes, Error, ErrorKind, Headers, Last, Malformed, Offset, OpenSource, Partition, Polled, Reader,
    Result, Room, SharedSource, Source, Wake, Worker, spawn,
};

use crate::lock;

/// A source of the lines that come from a TCP address, without their ends: `Result<String, Malformed>`. A line that is no
/// UTF-8, or longer than [`line_max`](Lines::line_max), is malformed. When the other side closes, it is called again; a run
/// with an end ends there.
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
    Lines { address: address.into(), line_max: Bytes(1 << 20), connect_within: Duration::from_secs(10) }
}

/// See [`lines`]; at most once, because what a socket has delivered cannot be read again.
#[derive(Clone, Debug)]
pub struct Lines {
    address: String,
    line_max: Bytes,
    connect_within: Duration,
}

impl Lines {
    /// The longest line that is taken, 1 MiB by default. Of a longer one the beginning is kept as malformed and the rest is
    /// dropped as it comes.
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

    fn dial(&self) -> std::io::Result<TcpStream> {
        let mut last = std::io::Error::new(Io::AddrNotAvailable, "the address has no host");
        for address in self.address.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, self.connect_within) {
                Ok(stream) => return Ok(stream),
                Err(cause) => last = cause,
            }
        }
        Err(last)
    }
}

/// Pauses between two calls.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(5);
/// How often a connection on which nothing comes looks whether the run is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What a line takes of the engine's memory beside its bytes.
const LINE_OVERHEAD: u64 = 128;

type Line = Result<String, Malformed>;

/// Lines that are read ahead, between the connection's thread and the reader.
struct Ahead {
    state: Mutex<Waiting>,
    /// There is room, or the run is over.
    changed: Condvar,
    most: u64,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<(Line, u64)>,
    bytes: u64,
    wake: Option<Wake>,
    /// Nothing more will come.
    has_ended: bool,
    /// Nobody reads any more.
    is_over: bool,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.state)
    }

    /// Adds a line when there is room; says whether anybody still reads.
    fn push(&self, line: Line, bytes: u64) -> bool {
        let mut state = self.lock();
        while state.bytes > 0 && state.bytes + bytes > self.most && !state.is_over {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_over {
            return false;
        }
        state.bytes += bytes;
        state.lines.push_back((line, bytes));
        if let Some(wake) = &state.wake {
            wake.wake();
        }
        true
    }

    fn end(&self) {
        let mut state = self.lock();
        state.has_ended = true;
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

impl Feed {
    fn run(&self, first: TcpStream) {
        let mut stream = Some(first);
        let mut pause = AGAIN_FIRST;
        while !self.ahead.is_over() {
            match stream.take().map_or_else(|| self.lines.dial(), Ok) {
                Ok(stream) => {
                    pause = AGAIN_FIRST;
                    if let Err(cause) = self.read(stream) {
                        tracing::warn!(address = self.lines.address, %cause, "the connection broke");
                    }
                    if self.once {
                        break;
                    }
                }
                Err(cause) => tracing::warn!(address = self.lines.address, %cause, ?pause, "cannot connect"),
            }
            thread::sleep(pause);
            pause = (pause * 2).min(AGAIN_MOST);
        }
        self.ahead.end();
    }

    /// Reads until the other side closes.
    fn read(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(LOOK_EVERY))?;
        let mut reader = BufReader::with_capacity(1 << 16, stream);
        let mut cutter = Cutter { line: Vec::new(), most: self.lines.line_max.0 as usize, is_skipping: false };
        loop {
            let chunk = match reader.fill_buf() {
                Ok([]) => break,
                Ok(chunk) => chunk,
                Err(cause) if matches!(cause.kind(), Io::WouldBlock | Io::TimedOut | Io::Interrupted) => {
                    if self.ahead.is_over() {
                        return Ok(());
                    }
                    continue;
                }
                Err(cause) => return Err(cause),
            };
            let taken = chunk.len();
            let mut is_read = true;
            cutter.cut(chunk, |line| is_read = is_read && self.push(line));
            if !is_read {
                return Ok(());
            }
            reader.consume(taken);
        }
        if let Some(last) = cutter.last() {
            self.push(last);
        }
        Ok(())
    }

    fn push(&self, line: Result<Vec<u8>, Vec<u8>>) -> bool {
        let bytes = LINE_OVERHEAD + line.as_ref().unwrap_or_else(|long| long).len() as u64;
        let malformed =
            |bytes, cause| Malformed { origin: None, key: None, bytes: Some(bytes), headers: Headers::new(), cause };
        let line = match line {
            Ok(line) => String::from_utf8(line).map_err(|error| {
                let cause = format!("the line is no UTF-8: {}", error.utf8_error());
                malformed(error.into_bytes(), cause)
            }),
            Err(long) => Err(malformed(long, format!("the line is longer than {} bytes", self.lines.line_max.0))),
        };
        self.ahead.push(line, bytes)
    }
}

/// Cuts chunks into lines.
struct Cutter {
    line: Vec<u8>,
    most: usize,
    /// The rest of a line that is too long.
    is_skipping: bool,
}

impl Cutter {
    /// Hands on each line that is whole, and the beginning of one that is too long.
    fn cut(&mut self, chunk: &[u8], mut line: impl FnMut(Result<Vec<u8>, Vec<u8>>)) {
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (part, is_whole) = part.strip_suffix(b"\n").map_or((part, false), |part| (part, true));
            if !self.is_skipping {
                let room = self.most - self.line.len();
                self.line.extend_from_slice(&part[..part.len().min(room)]);
                if part.len() > room {
                    self.is_skipping = true;
                    line(Err(std::mem::take(&mut self.line)));
                }
            }
            if is_whole {
                if !self.is_skipping {
                    if self.line.last() == Some(&b'\r') {
                        self.line.pop();
                    }
                    line(Ok(std::mem::take(&mut self.line)));
                }
                self.is_skipping = false;
            }
        }
    }

    /// What came without an end before the other side closed.
    fn last(self) -> Option<Result<Vec<u8>, Vec<u8>>> {
        (!self.line.is_empty() && !self.is_skipping).then_some(Ok(self.line))
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
            return Err(Error::new(ErrorKind::Option, "`line_max` must be more than nothing"));
        }
        let first = self.dial().map_err(|cause| {
            Error::new(ErrorKind::Unreachable, format!("cannot connect to {}", self.address)).caused_by(cause)
        })?;
        let ahead = Ahead { state: Mutex::default(), changed: Condvar::new(), most: open.prefetch.0 };
        let feed = Feed { lines: self, ahead: Arc::new(ahead), once: open.bounded };
        Ok(SocketShared { ahead: Arc::clone(&feed.ahead), start: Mutex::new(Some((feed, first))) })
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
    start: Mutex<Option<(Feed, TcpStream)>>,
}

impl SharedSource for SocketShared {
    fn begin(&self) -> Result<()> {
        let start = lock(&self.start).take();
        let (feed, first) = start.expect("a run begins once");
        spawn("lines", move || feed.run(first)).map(drop)
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
            let Some((line, bytes)) = state.lines.pop_front() else { break };
            state.bytes -= bytes;
            batch.push(line, Bytes(bytes));
        }
        ahead.changed.notify_all();
        let taken = batch.len() as u64;
        if taken > 0 {
            self.read += taken;
            batch.read_to(Partition::new("lines"), Offset(self.read));
        }
        Ok(match (state.lines.is_empty(), state.has_ended) {
            (false, _) => Polled::More,
            (true, true) => Polled::Ended,
            (true, false) => Polled::Idle,
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

    fn cut(chunks: &[&[u8]], most: usize) -> Vec<Result<Vec<u8>, Vec<u8>>> {
        let mut cutter = Cutter { line: Vec::new(), most, is_skipping: false };
        let mut lines = Vec::new();
        chunks.iter().for_each(|chunk| cutter.cut(chunk, |line| lines.push(line)));
        lines.extend(cutter.last());
        lines
    }

    #[test]
    fn lines_are_cut_wherever_chunks_end() {
        let whole: &[u8] = b"one\n\ntwo\r\nthree";
        let expected: Vec<_> = ["one", "", "two", "three"].map(|line| Ok(line.as_bytes().to_vec())).into();
        for at in 0..whole.len() {
            let (left, right) = whole.split_at(at);
            assert_eq!(cut(&[left, right], 10), expected, "cut at {at}");
        }
    }

    #[test]
    fn of_a_line_that_is_too_long_the_beginning_is_kept_once() {
        let expected = vec![Ok(b"a".to_vec()), Err(b"xxxx".to_vec()), Ok(b"b".to_vec())];
        assert_eq!(cut(&[b"a\nxxx", b"xxxxxx", b"xx\nb\n"], 4), expected);
        assert_eq!(cut(&[b"xxxxx"], 4), [Err(b"xxxx".to_vec())], "and when it never ends");
    }
}
