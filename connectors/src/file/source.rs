//! The source as the engine sees it: checks options at start, starts and ends the feed thread,
//! receives commits.

use std::fmt;
use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use millstream::connector::{
    CheckpointId, Closing, Committed, Extent, Offsets, OpenSource, Revoked, SharedSource, SourceEvent, Wake, Worker,
    spawn,
};
use millstream::{ByteSize, Error, ErrorKind, Lag, Malformed, Result, Source};

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
#[must_use = "a source does nothing until a pipeline reads it"]
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
    /// Adds its origin to each value: `Result<(T, Origin), Malformed>`. The partition of the origin
    /// is the path of the file, and its offset is where the record begins.
    ///
    /// ```
    /// use millstream::{collect, Job, Trigger};
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
    /// How much memory a value holds in addition to its own size, for when the format's estimate
    /// ([`Decode::held`]) is far off: [`Job::memory`](millstream::Job::memory) bounds the sum.
    /// Called for each record. Use it before [`with_origin`](FileRecords::with_origin).
    pub fn sized(self, held: fn(&F::Value) -> ByteSize) -> FileRecords<Values<Measured<F, F::Value>>> {
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
        let is_sample = open.extent == Extent::Sample;
        if is_sample {
            // Files stay where they are.
            (files.when_done, files.when_cut) = (WhenDone::Keep, WhenDone::Keep);
        }
        let zero = [
            ("record_max", files.record_max.0 == 0),
            ("look_every", files.look_every.is_zero()),
            ("settled_after", files.settled_after.is_zero()),
        ];
        if let Some((option, _)) = zero.iter().find(|(_, is_zero)| *is_zero) {
            return Err(Error::new(ErrorKind::Config, format!("`{option}` must be greater than zero")));
        }
        let matching = Matching::of(&files)?;
        let cannot = |cause: std::io::Error| {
            let kind = match cause.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => ErrorKind::NotFound,
                _ => ErrorKind::Refused,
            };
            Error::new(kind, format!("cannot read the directory {}", files.directory.display())).caused_by(cause)
        };
        // Absolute, so that an offset belongs to the same file whatever the working directory is.
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
        let started_at = open.resume.offsets().clone();
        ahead.resume(&started_at);
        let cut = CutFiles::of(&open.job, &files.directory, !open.resume.offsets().is_empty());
        let manner = Manner { framing, record_max, contents: files.contents, cut };
        let feed = Feed::connect((files, matching, except), manner, &open, Arc::clone(&ahead))?;
        let thread = Mutex::new(Thread::Ready(Box::new(feed)));
        let wants_times = open.wants_times;
        Ok(FilesShared { ahead, shape, framing, record_max, is_sample, wants_times, started_at, end_within, thread })
    }

    fn reader(shared: &Arc<FilesShared<S>>, worker: Worker, wake: Wake) -> Result<FileReader<S>> {
        shared.ahead.woken_by(worker.index, wake);
        Ok(FileReader::new(Arc::clone(shared), worker))
    }
}

/// The part of a file source that exists once per process.
pub struct FilesShared<S> {
    pub(super) ahead: Arc<Ahead>,
    pub(super) shape: S,
    pub(super) framing: Framing,
    pub(super) record_max: usize,
    /// Other runs read the same records.
    pub(super) is_sample: bool,
    /// Whether records are to have the times of their files.
    pub(super) wants_times: bool,
    started_at: Offsets,
    /// How long the end of a run waits for the feed thread while it makes no progress.
    end_within: Duration,
    thread: Mutex<Thread>,
}

enum Thread {
    Ready(Box<Feed>),
    /// Disconnects when the thread ends.
    Running(Receiver<()>),
    Ended,
}

/// How long the end of a run waits for a file system that makes no progress, in addition to the
/// time for files to settle.
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
        // Carries nothing: it is disconnected when the thread ends.
        let (lives, ended) = channel();
        spawn("files", move || {
            feed.run();
            drop(lives);
        })?;
        *thread = Thread::Running(ended);
        Ok(())
    }

    fn serve(&self) -> Result<Vec<SourceEvent>> {
        if let Thread::Running(ended) = &*self.thread()
            && ended.try_recv() == Err(TryRecvError::Disconnected)
        {
            return Err(Error::new(ErrorKind::Source, "the thread that reads files has panicked"));
        }
        self.ahead.look_when_due();
        let departed = self.ahead.forget_departed();
        Ok(if departed.is_empty() { Vec::new() } else { vec![SourceEvent::Revoked(Revoked::new(departed))] })
    }

    fn unassign(&self, taken: Revoked) -> Result<()> {
        self.ahead.given_back(taken.partitions());
        Ok(())
    }

    fn commit(&self, _: CheckpointId, offsets: &Offsets) -> Result<Committed> {
        self.ahead.commit(offsets);
        Ok(Committed::Now)
    }

    fn started_at(&self) -> Offsets {
        self.started_at.clone()
    }

    fn lag(&self) -> Vec<Lag> {
        self.ahead.lag()
    }

    /// Waits for the feed thread, which deletes or moves the files that are committed by now, so
    /// that the next run does not find them.
    fn close(&self, _: Closing) {
        self.ahead.be_over();
        let Thread::Running(ended) = std::mem::replace(&mut *self.thread(), Thread::Ended) else { return };
        loop {
            let disposed = self.ahead.disposed();
            match ended.recv_timeout(self.end_within) {
                Err(RecvTimeoutError::Timeout) if self.ahead.disposed() > disposed => {}
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("the file system does not respond; the thread that reads files is abandoned");
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
