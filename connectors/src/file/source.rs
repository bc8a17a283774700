//! The source as the engine sees it: checks at start, begins and ends the thread, hears what is committed.

use std::fmt;
use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use millstream::{
    Bytes, Change, CheckpointId, Error, ErrorKind, Lag, Last, Malformed, Offsets, OpenSource, Progress, Result,
    SharedSource, Source, Taken, Wake, Worker, spawn,
};

use crate::format::{Decode, Framing, Measured};
use crate::lock;

use super::ahead::Ahead;
use super::done::CutFiles;
use super::feed::Feed;
use super::look::Matching;
use super::reader::{FileReader, Shape, Values, WithOrigin};
use super::reading::Manner;
use super::{Files, WhenDone};

/// The records of the files of a directory; see [`files`](crate::files).
#[derive(Clone, Debug)]
pub struct FileRecords<S> {
    files: Files,
    shape: S,
}

impl<S> FileRecords<S> {
    pub(super) fn new(files: Files, shape: S) -> FileRecords<S> {
        FileRecords { files, shape }
    }
}

impl<F> FileRecords<Values<F>> {
    /// Each value with where it was read: `Result<(T, Origin), Malformed>`, whose partition is the path of the file and
    /// whose offset is where in it the record begins.
    ///
    /// ```
    /// use millstream::{Job, Trigger, collect};
    /// use millstream_connectors::files;
    ///
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let (directory, results) = (directory.path().to_owned(), collect());
    /// # let sink = results.clone();
    /// std::fs::write(directory.join("names.txt"), "ada\nbob\n").unwrap();
    /// let job = Job::new("names", move |flow| {
    ///     flow.source(files(&directory).lines().with_origin())?
    ///         .or_stop()
    ///         .map(|(name, origin)| (name, origin.offset.0))
    ///         .sink(&sink)
    /// });
    /// job.trigger(Trigger::AvailableNow).run()?;
    /// assert_eq!(results.values(), [("ada".to_owned(), 0), ("bob".to_owned(), 4)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn with_origin(self) -> FileRecords<WithOrigin<F>> {
        FileRecords { files: self.files, shape: WithOrigin(self.shape.0) }
    }
}

impl<F: Decode> FileRecords<Values<F>> {
    /// How much memory a value holds beside its own size, where the format's own estimate ([`Decode::held`]) is far off:
    /// [`Job::memory`](millstream::Job::memory) bounds the sum. Called for each record; comes before
    /// [`with_origin`](FileRecords::with_origin).
    pub fn sized(self, held: fn(&F::Value) -> Bytes) -> FileRecords<Values<Measured<F, F::Value>>> {
        FileRecords { files: self.files, shape: Values(Measured::new(self.shape.0, held)) }
    }
}

impl<S: Shape> Source for FileRecords<S> {
    type Item = Result<S::Value, Malformed>;
    type Shared = FilesShared<S>;
    type Reader = FileReader<S>;

    fn name(&self) -> String {
        format!("files {}", self.files.directory.display())
    }

    fn connect(self, open: OpenSource) -> Result<FilesShared<S>> {
        let (mut files, mut shape) = (self.files, self.shape);
        if open.compared {
            // Other runs read them again.
            (files.when_done, files.when_cut) = (WhenDone::Keep, WhenDone::Keep);
        }
        let zero = [
            ("record_max", files.record_max.0 == 0),
            ("look_every", files.look_every.is_zero()),
            ("settled_after", files.settled_after.is_zero()),
        ];
        if let Some((option, _)) = zero.iter().find(|(_, is_zero)| *is_zero) {
            return Err(Error::new(ErrorKind::Option, format!("`{option}` must be greater than zero")));
        }
        let matching = Matching::of(&files)?;
        let cannot = |cause: std::io::Error| {
            let kind = match cause.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => ErrorKind::NotFound,
                _ => ErrorKind::Refused,
            };
            Error::new(kind, format!("cannot read the directory {}", files.directory.display())).caused_by(cause)
        };
        // Absolute, so that a position means the same file wherever the process stands.
        let directory = files.directory.canonicalize().map_err(cannot)?;
        drop(fs::read_dir(&directory).map_err(cannot)?);
        files.directory = directory;
        let targets = [files.when_done.check(&files.directory)?, files.when_cut.check(&files.directory)?];
        let except = targets.into_iter().flatten().collect();
        shape.format_mut().open()?;
        let framing = shape.format().framing();
        let is_kept = files.when_done == WhenDone::Keep && files.when_cut == WhenDone::Keep;
        let settles_within = if is_kept { Duration::ZERO } else { files.settled_after };
        let end_within = END_WITHIN.saturating_add(settles_within);
        let record_max = usize::try_from(files.record_max.0).unwrap_or(usize::MAX);
        let ahead = Arc::new(Ahead::new(&open));
        let started_at = open.resume.clone().unwrap_or_default();
        ahead.resume(&started_at);
        let cut = CutFiles::of(&open.job, &files.directory, open.resume.is_some());
        let manner = Manner { framing, record_max, contents: files.contents, cut };
        let feed = Feed::connect((files, matching, except), manner, &open, Arc::clone(&ahead))?;
        let thread = Mutex::new(Thread::Ready(Box::new(feed)));
        let compared = open.compared;
        Ok(FilesShared { ahead, shape, framing, record_max, compared, started_at, end_within, thread })
    }

    fn reader(shared: &Arc<FilesShared<S>>, worker: Worker, wake: Wake) -> Result<FileReader<S>> {
        shared.ahead.woken_by(worker.index, wake);
        Ok(FileReader::new(Arc::clone(shared), worker))
    }
}

/// The half of a source of files that a process has once.
pub struct FilesShared<S> {
    pub(super) ahead: Arc<Ahead>,
    pub(super) shape: S,
    pub(super) framing: Framing,
    pub(super) record_max: usize,
    /// Other runs read the same records.
    pub(super) compared: bool,
    started_at: Offsets,
    /// How long the end of a run waits for the thread while nothing moves.
    end_within: Duration,
    thread: Mutex<Thread>,
}

enum Thread {
    Ready(Box<Feed>),
    /// What hangs up when the thread ends.
    Running(Receiver<()>),
    Ended,
}

/// How long the end of a run waits for a file system in which nothing moves, beside what has to settle.
const END_WITHIN: Duration = Duration::from_secs(5);

impl<S> FilesShared<S> {
    fn thread(&self) -> MutexGuard<'_, Thread> {
        lock(&self.thread)
    }
}

impl<S: Shape> SharedSource for FilesShared<S> {
    fn begin(&self) -> Result<()> {
        let mut thread = self.thread();
        let Thread::Ready(feed) = std::mem::replace(&mut *thread, Thread::Ended) else {
            unreachable!("a run begins once")
        };
        let (lives, ended) = channel();
        spawn("files", move || {
            feed.run();
            drop(lives);
        })?;
        *thread = Thread::Running(ended);
        Ok(())
    }

    fn serve(&self) -> Result<Vec<Change>> {
        if let Thread::Running(ended) = &*self.thread()
            && ended.try_recv() == Err(TryRecvError::Disconnected)
        {
            return Err(Error::new(ErrorKind::Source, "the thread that reads files has panicked"));
        }
        self.ahead.look_when_due();
        let departed = self.ahead.forget_departed();
        Ok(if departed.is_empty() { Vec::new() } else { vec![Change::Taken(Taken::new(departed))] })
    }

    fn give_back(&self, taken: Taken) -> Result<()> {
        self.ahead.given_back(taken.partitions());
        Ok(())
    }

    fn commit(&self, _: CheckpointId, offsets: &Offsets) -> Result<Progress> {
        self.ahead.commit(offsets);
        Ok(Progress::Done)
    }

    fn started_at(&self) -> Offsets {
        self.started_at.clone()
    }

    fn lag(&self) -> Vec<Lag> {
        self.ahead.lag()
    }

    /// Waits for the thread: what is committed by now is deleted or moved, and a run that follows finds it done.
    fn close(&self, _: Last) {
        self.ahead.be_over();
        let Thread::Running(ended) = std::mem::replace(&mut *self.thread(), Thread::Ended) else { return };
        loop {
            let disposed = self.ahead.disposed();
            match ended.recv_timeout(self.end_within) {
                Err(RecvTimeoutError::Timeout) if self.ahead.disposed() > disposed => {}
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("a file system does not answer, and its thread is left behind");
                    return;
                }
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

impl<S> fmt::Debug for FilesShared<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FilesShared")
    }
}
