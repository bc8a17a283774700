//! The feed thread of a file source: looks at the directory when a look is due, and reads for every
//! worker that has room.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use millstream::connector::{Moment, OpenSource, Partition};
use millstream::{Clock, Error, ErrorKind, Result};

use super::ahead::Ahead;
use super::block::{Block, Flaw};
use super::look::{self, Links, Matching, Seen};
use super::progress::Progress;
use super::reading::{Ending, Failure, Manner, Opened, Reading};
use super::watch::{FileId, Known};
use super::{Files, WhenDone};

/// The most files that are held open, so that a deleted or replaced file can still be read to its
/// end. At most half of them may be settled files. When a file beyond these is gone, a malformed
/// record reports what was not read of it.
pub(super) const HELD_MAX: usize = 128;

pub(super) struct Feed {
    pub(super) files: Files,
    pub(super) matching: Matching,
    /// Directories that files are moved to, and that are not read.
    pub(super) except: Vec<PathBuf>,
    pub(super) manner: Manner,
    pub(super) clock: Clock,
    pub(super) ahead: Arc<Ahead>,
    /// The run ends with what existed when it began.
    pub(super) is_bounded: bool,
    pub(super) look_at: Moment,
    pub(super) is_missing: bool,
    pub(super) looks: u64,
    pub(super) known: HashMap<FileId, Known>,
    pub(super) by_name: HashMap<String, FileId>,
    pub(super) next_id: u64,
    /// Files whose metadata cannot be read, and the last look that found them so.
    pub(super) troubled: HashMap<String, u64>,
    /// Files that are no longer there under their names, but are still read.
    pub(super) leaving: HashSet<Partition>,
    /// When the first look began.
    began: Instant,
    pub(super) desks: Vec<Desk>,
    pub(super) held: usize,
}

/// The tasks of one worker's files, and the file being read.
#[derive(Default)]
pub(super) struct Desk {
    pub(super) tasks: VecDeque<Task>,
    pub(super) reading: Option<(FileId, Reading)>,
}

pub(super) enum Task {
    Read { file: FileId, until: u64, ending: Ending },
    Say { file: Option<FileId>, block: Block },
}

impl Feed {
    /// Creates the feed and looks at the directory for the first time.
    pub(super) fn connect(
        (files, matching, except): (Files, Matching, Vec<PathBuf>),
        manner: Manner,
        open: &OpenSource,
        ahead: Arc<Ahead>,
    ) -> Result<Feed> {
        let mut feed = Feed {
            files,
            matching,
            except,
            manner,
            clock: open.clock.clone(),
            ahead,
            is_bounded: open.is_bounded(),
            look_at: Moment::default(),
            is_missing: false,
            looks: 0,
            known: HashMap::new(),
            by_name: HashMap::new(),
            next_id: 0,
            troubled: HashMap::new(),
            leaving: HashSet::new(),
            began: Instant::now(),
            desks: (0..open.workers).map(|_| Desk::default()).collect(),
            held: 0,
        };
        feed.look().map_err(|cause| {
            let doing = format!("cannot read the directory {}", feed.files.directory.display());
            Error::new(ErrorKind::Refused, doing).caused_by(cause)
        })?;
        Ok(feed)
    }

    /// The body of the thread.
    pub(super) fn run(mut self) {
        while !self.ahead.is_over() {
            if self.is_bounded {
                self.dispose();
            } else if self.clock.now() >= self.look_at {
                self.look_again();
                self.dispose();
            }
            // One step for each worker in turn, so that none waits for another's files.
            let has_moved = (0..self.desks.len()).fold(false, |moved, worker| self.advance(worker) | moved);
            if has_moved {
                continue;
            }
            if self.is_bounded && self.desks.iter().all(|desk| desk.tasks.is_empty() && desk.reading.is_none()) {
                self.ahead.end();
            }
            self.ahead.rest((!self.is_bounded).then_some(self.look_at));
        }
        // A file that changed a moment ago may still be written. A run that was cut short does not
        // wait for that.
        while self.dispose() == Left::Unsettled && self.is_bounded && self.is_all_done() {
            thread::sleep(SETTLES_IN);
        }
    }

    fn is_all_done(&self) -> bool {
        let is_done = |known: &Known| self.ahead.committed(&known.partition) >= known.progress.handed;
        self.ahead.has_ended() && self.known.values().all(is_done)
    }

    /// Takes one step for a worker that has something to do and has room. Returns whether it did.
    fn advance(&mut self, worker: usize) -> bool {
        let desk = &mut self.desks[worker];
        if (desk.reading.is_none() && desk.tasks.is_empty()) || !self.ahead.has_room(worker) {
            return false;
        }
        if let Some((file, mut reading)) = desk.reading.take() {
            let stepped = reading.step(self.ahead.chunk(), |block| self.ahead.push(worker, block));
            match stepped {
                Ok(()) if !reading.is_done() => self.desks[worker].reading = Some((file, reading)),
                stepped => self.put_back(file, reading, stepped.err()),
            }
            return true;
        }
        match desk.tasks.pop_front() {
            Some(Task::Read { file, until, ending }) => self.begin(file, until, ending),
            Some(Task::Say { file, block }) => {
                self.ahead.push(worker, block);
                if let Some(file) = file {
                    self.end_task(file);
                }
            }
            None => {}
        }
        true
    }

    fn begin(&mut self, file: FileId, until: u64, ending: Ending) {
        let Some(known) = self.known.get_mut(&file) else { return };
        self.held -= usize::from(known.held.is_some());
        let opened = known.held.take().map_or_else(|| open(&self.files, &known.name, &known.seen), Ok);
        let opened = match opened.and_then(|mut opened| Ok((known.progress.is_of(&mut opened)?, opened))) {
            Ok((false, _)) => return self.written_anew(file),
            opened => opened.map(|(_, opened)| opened),
        };
        // If the file cannot be opened, reading continues at the last offset handed on: a record
        // that was being skipped is found to be too long again.
        let handed = known.progress.handed;
        let progress = std::mem::replace(&mut known.progress, Progress::from(handed));
        let (path, partition) = (known.path.clone(), known.partition.clone());
        let reading = opened.map_err(Failure::System).and_then(|file| {
            Reading::new(Opened { file, path, partition, until, ending }, progress, self.manner.clone())
        });
        match reading {
            Ok(reading) => self.desks[known.worker].reading = Some((file, reading)),
            Err(failure) => {
                self.fail(file, failure);
                self.end_task(file);
            }
        }
    }

    /// The file no longer contains what was read of it: the next look finds another file.
    fn written_anew(&mut self, file: FileId) {
        self.read_anew(file);
        self.end_task(file);
    }

    fn read_anew(&mut self, file: FileId) {
        let Some(known) = self.known.get(&file) else { return };
        if !known.has_left {
            let (next, was_done) = (known.progress.next, known.was_done);
            let flaw = format!(
                "the file was overwritten after {next} bytes of it were read; it is read again from the beginning"
            );
            self.ahead.cut(&known.file);
            self.leave(file, (!was_done).then_some(flaw));
        }
    }

    /// Ends a turn and keeps the file's progress.
    fn put_back(&mut self, file: FileId, reading: Reading, failed: Option<Failure>) {
        let (read_to, until, ending) = (reading.read_to(), reading.until, reading.ending);
        let is_shorter = !reading.is_unpacking() && read_to < until;
        let (held, progress) = reading.into_progress();
        let Some(known) = self.known.get_mut(&file) else { return };
        known.progress = progress;
        match failed {
            None => {
                known.is_unreadable = false;
                self.ahead.stretch(&known.partition, known.progress.end(known.seen.len));
                if self.is_bounded && is_shorter {
                    let cause = format!("the file was truncated: it had {until} bytes and ended at {read_to}");
                    self.ahead.push(known.worker, flawed(&known.path, read_to, cause));
                }
                self.hold(file, held);
            }
            // The rest may still be written.
            Some(Failure::Damaged(_)) if ending == Ending::Open => self.hold(file, held),
            Some(failure) => self.fail(file, failure),
        }
        self.end_task(file);
    }

    fn hold(&mut self, file: FileId, held: File) {
        let Some(known) = self.known.get_mut(&file) else { return };
        if !self.is_bounded && (known.has_left || self.held < HELD_MAX) {
            known.held = Some(held);
            self.held += 1;
        }
    }

    /// Reports once that a file cannot be read. The next look, if there is one, reports what
    /// happened to a file that is gone.
    fn fail(&mut self, file: FileId, failure: Failure) {
        let Some(known) = self.known.get_mut(&file) else { return };
        let at = known.progress.next;
        let flaw = match failure {
            Failure::System(cause) => {
                if cause.kind() == io::ErrorKind::NotFound && (!self.is_bounded || at == 0) {
                    return;
                }
                Flaw { at, bytes: None, cause: format!("cannot read the file: {cause}") }
            }
            Failure::Foreign(what) => {
                known.is_refused = true;
                Flaw { at, bytes: None, cause: format!("the file is not text: it {what}; it is skipped") }
            }
            Failure::Damaged(flaw) => {
                known.is_refused = true;
                flaw
            }
            Failure::Open(held) => return self.hold(file, held),
            Failure::Shorter => return self.read_anew(file),
        };
        if !std::mem::replace(&mut known.is_unreadable, true) {
            self.ahead.push(known.worker, Block::flaw(&known.path, flaw));
        }
    }

    fn end_task(&mut self, file: FileId) {
        if let Some(known) = self.known.get_mut(&file) {
            known.tasks -= 1;
        }
        self.forget_if_left(file);
    }

    /// Deletes or moves the files that are done. Returns whether other files only have to settle.
    fn dispose(&mut self) -> Left {
        if self.files.when_done == WhenDone::Keep && self.files.when_cut == WhenDone::Keep {
            return Left::Nothing;
        }
        let now = self.clock.now();
        let mut left = Left::Nothing;
        let mut is_done = |known: &Known| {
            let is_through = *becomes(&self.files, &self.manner, known) != WhenDone::Keep
                && !known.stays
                && known.tasks == 0
                && !known.has_left
                && known.is_read()
                && self.ahead.committed(&known.partition) == known.progress.next;
            let has_settled = match self.is_bounded {
                true => self.has_settled_before(&known.seen),
                false => known.has_settled(now, self.files.settled_after),
            };
            if is_through && !has_settled {
                left = Left::Unsettled;
            }
            is_through && has_settled
        };
        let done: Vec<FileId> = self.known.iter().filter(|(_, known)| is_done(known)).map(|(file, _)| *file).collect();
        for file in done {
            let Some(known) = self.known.get_mut(&file) else { continue };
            let path = self.files.directory.join(&known.name);
            // A file that has changed since the last look is not done.
            if !std::fs::metadata(&path).is_ok_and(|metadata| Seen::of(&metadata) == known.seen) {
                continue;
            }
            match becomes(&self.files, &self.manner, known).apply(&path) {
                Ok(()) => {
                    self.manner.cut.forget(&known.partition);
                    self.held -= usize::from(known.held.take().is_some());
                    self.ahead.dispose();
                    self.leave(file, None);
                }
                Err(cause) => {
                    known.stays = true;
                    tracing::warn!(file = %path.display(), %cause, "cannot delete or move the file; it stays in place");
                }
            }
        }
        left
    }

    /// In a run that looks once: whether a file has not changed for `settled_after`, before the
    /// look or since.
    fn has_settled_before(&self, seen: &Seen) -> bool {
        let age = seen.modified.and_then(|modified| SystemTime::now().duration_since(modified).ok());
        age.is_some_and(|age| age >= self.files.settled_after) || self.began.elapsed() >= self.files.settled_after
    }
}

/// What remains of the files that are read and committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Nothing,
    /// Some files changed a moment ago.
    Unsettled,
}

/// How often the end of a run checks whether a file has settled.
const SETTLES_IN: Duration = Duration::from_millis(50);

/// What happens to a file that is done.
fn becomes<'a>(files: &'a Files, manner: &Manner, known: &Known) -> &'a WhenDone {
    match manner.cut.contains(&known.partition) {
        true => &files.when_cut,
        false => &files.when_done,
    }
}

/// Opens a file that was seen. If another file has taken its name since the look, this fails, and
/// the next look finds that file.
fn open(files: &Files, name: &str, seen: &Seen) -> io::Result<File> {
    let path = files.directory.join(name);
    let file = open_at_once(&path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || !Seen::of(&metadata).is_same_as(seen) {
        return Err(io::ErrorKind::NotFound.into());
    }
    if files.reach.links == Links::Within && !look::leads_within(&path, &files.directory, Links::Within) {
        return Err(io::Error::other(look::LEADS_OUT));
    }
    Ok(file)
}

/// Opens a file without blocking: opening a pipe would wait for a writer.
#[cfg(unix)]
pub(super) fn open_at_once(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;

    let not_blocking = rustix::fs::OFlags::NONBLOCK.bits();
    let flags = i32::try_from(not_blocking).map_err(io::Error::other)?;
    File::options().read(true).custom_flags(flags).open(path)
}

#[cfg(not(unix))]
pub(super) fn open_at_once(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// A malformed record about the file, not one that the file contains.
pub(super) fn flawed(path: &Partition, at: u64, cause: String) -> Block {
    Block::flaw(path, Flaw { at, bytes: None, cause })
}
