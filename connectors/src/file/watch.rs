//! What is known of each file, and how a look at the directory changes it: new, grown, settled,
//! gone, replaced.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use millstream::connector::{Moment, Partition};

use super::Files;
use super::content::{self, Kind};
use super::feed::{Feed, HELD_MAX, Task, flawed, open_at_once};
use super::look::{self, Found, Look, Seen, Temporary};
use super::progress::Progress;
use super::reading::{Contents, Ending};

/// Looks take at most one part in this many of the time.
const LOOK_SHARE: u32 = 10;

/// Identifies a file, not its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileId(pub(super) u64);

pub(super) struct Known {
    pub(super) name: String,
    pub(super) path: Partition,
    pub(super) partition: Partition,
    /// The partition that it had before it was ever truncated.
    pub(super) file: String,
    pub(super) worker: usize,
    pub(super) seen: Seen,
    /// Since when `seen` has not changed.
    pub(super) since: Moment,
    /// It had been read and had settled before its last change.
    pub(super) was_done: bool,
    pub(super) looked: u64,
    pub(super) progress: Progress,
    pub(super) held: Option<File>,
    /// The number of its tasks.
    pub(super) tasks: usize,
    /// It could not be read, and this was reported.
    pub(super) is_unreadable: bool,
    /// Its contents cannot be read: not tried again until it changes.
    pub(super) is_refused: bool,
    /// It could not be deleted or moved, and this was logged.
    pub(super) stays: bool,
    /// It is gone, replaced or truncated: forgotten after its last task.
    pub(super) has_left: bool,
}

impl Known {
    pub(super) fn is_read(&self) -> bool {
        self.progress.is_whole(self.seen.len)
    }

    pub(super) fn has_settled(&self, now: Moment, after: Duration) -> bool {
        now - self.since >= after
    }
}

impl Feed {
    pub(super) fn look_again(&mut self) {
        match self.look() {
            Ok(()) if self.is_missing => {
                self.is_missing = false;
                tracing::info!(directory = %self.files.directory.display(), "the directory can be read again");
            }
            Ok(()) => {}
            // The files are no longer visible, which is not the same as gone.
            Err(cause) if !self.is_missing => {
                self.is_missing = true;
                tracing::warn!(directory = %self.files.directory.display(), %cause, "cannot read the directory");
            }
            Err(_) => {}
        }
    }

    pub(super) fn look(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let Files { directory, order, reach, .. } = &self.files;
        let look = Look { directory, matching: &self.matching, order: *order, reach: *reach, except: &self.except };
        let found = look.look();
        if let Ok(found) = found {
            self.looks += 1;
            self.see(found);
            self.look_at = self.clock.now().after(self.files.look_every.max(begun.elapsed() * (LOOK_SHARE - 1)));
            return Ok(());
        }
        self.look_at = self.clock.now().after(self.files.look_every);
        found.map(drop)
    }

    fn see(&mut self, found: Vec<Found>) {
        let mut loads = vec![0; self.desks.len()];
        for known in self.known.values() {
            loads[known.worker] += known.seen.len.saturating_sub(known.progress.file_read());
        }
        for Found { name, seen } in found {
            match (seen, self.by_name.get(&name).copied()) {
                (Ok(seen), Some(file)) if self.is_still(file, &seen) => self.see_again(file, seen),
                (Ok(seen), _) => {
                    // An empty file counts as work too, since there may be many of them.
                    let worker = (0..loads.len()).min_by_key(|worker| loads[*worker]).unwrap_or_default();
                    loads[worker] += seen.len.max(1);
                    self.see_first(name, seen, worker);
                }
                (Err(trouble), file) => self.see_trouble(name, file, &trouble),
            }
        }
        let looks = self.looks;
        self.troubled.retain(|_, looked| *looked == looks);
        let gone = |known: &Known| known.looked != looks && known.tasks == 0 && !known.has_left;
        let gone: Vec<FileId> = self.known.iter().filter(|(_, known)| gone(known)).map(|(file, _)| *file).collect();
        for file in gone {
            let known = &self.known[&file];
            let missing = known.seen.len.saturating_sub(known.progress.file_read());
            let flaw = format!("the file is gone and its last {missing} bytes were not read");
            self.leave(file, (missing > 0 && known.held.is_none()).then_some(flaw));
        }
        let leaving = |known: &Known| known.has_left && known.tasks == 0;
        let leaving: Vec<FileId> =
            self.known.iter().filter(|(_, known)| leaving(known)).map(|(file, _)| *file).collect();
        for file in leaving {
            self.see_leaving(file);
        }
    }

    /// Reads a file whose name is gone for as long as it changes: its writer may not have noticed
    /// yet, as when logs are rotated.
    fn see_leaving(&mut self, file: FileId) {
        let now = self.clock.now();
        let Some(known) = self.known.get_mut(&file) else { return };
        let len = known.held.as_ref().and_then(|held| held.metadata().ok()).map_or(0, |metadata| metadata.len());
        let has_grown = len > known.seen.len;
        let has_settled = !has_grown && known.has_settled(now, self.files.settled_after);
        if has_grown {
            (known.seen.len, known.since) = (len, now);
        } else if !has_settled {
            return;
        }
        let read = known.progress.file_read();
        if len > read || has_settled && len == read && !known.progress.is_whole(len) {
            let ending = if has_settled { Ending::AsItStands } else { Ending::Open };
            known.tasks += 1;
            self.desks[known.worker].tasks.push_back(Task::Read { file, until: len, ending });
        } else {
            self.held -= usize::from(known.held.take().is_some());
            self.forget_if_left(file);
        }
    }

    /// Takes back a file that was leaving and is back under its name.
    fn see_back(&mut self, name: &str, partition: &Partition) {
        let is_it = |known: &Known| known.has_left && known.tasks == 0 && known.partition == *partition;
        let back = self.known.iter_mut().find(|(_, known)| is_it(known));
        if let Some((file, known)) = back {
            (known.has_left, known.looked, known.since) = (false, self.looks, self.clock.now());
            self.leaving.remove(partition);
            self.by_name.insert(name.to_owned(), *file);
        }
    }

    /// Whether a name still belongs to the same file. If not, the old file leaves.
    fn is_still(&mut self, file: FileId, seen: &Seen) -> bool {
        let known = &self.known[&file];
        let is_shorter = seen.len < known.seen.len;
        if seen.is_same_as(&known.seen) && !is_shorter || known.tasks > 0 {
            return true;
        }
        let is_read = known.is_read() && known.has_settled(self.clock.now(), self.files.settled_after);
        let next = known.progress.next;
        let what = if is_shorter { "truncated or replaced" } else { "replaced" };
        let flaw =
            format!("the file was {what} after {next} bytes of it were read; it is read again from the beginning");
        let is_cut = seen.is_same_as(&known.seen);
        if is_cut && let Some(known) = self.known.get_mut(&file) {
            // The open file is the truncated one: it has nothing else to read.
            self.ahead.cut(&known.file);
            self.held -= usize::from(known.held.take().is_some());
        }
        self.leave(file, (!is_read).then_some(flaw));
        false
    }

    /// Handles a file that is no longer there under its name: if it is held open, it is read to its
    /// end and forgotten once it has settled.
    pub(super) fn leave(&mut self, file: FileId, flaw: Option<String>) {
        let Some(known) = self.known.get_mut(&file) else { return };
        known.has_left = true;
        known.since = self.clock.now();
        self.leaving.insert(known.partition.clone());
        if self.by_name.get(&known.name) == Some(&file) {
            self.by_name.remove(&known.name);
        }
        let tasks = &mut self.desks[known.worker].tasks;
        if let Some(until) = known.held.as_ref().and_then(|held| held.metadata().ok()).map(|metadata| metadata.len())
            && until > known.progress.file_read()
        {
            known.seen.len = until;
            known.tasks += 1;
            tasks.push_back(Task::Read { file, until, ending: Ending::Open });
        }
        // A file that was not begun was not interrupted.
        if let Some(cause) = flaw.filter(|_| known.progress.next > 0) {
            known.tasks += 1;
            tasks.push_back(Task::Say { file: Some(file), block: flawed(&known.path, known.progress.next, cause) });
        }
        self.forget_if_left(file);
    }

    pub(super) fn forget_if_left(&mut self, file: FileId) {
        if self.known.get(&file).is_some_and(|known| known.has_left && known.tasks == 0 && known.held.is_none())
            && let Some(known) = self.known.remove(&file)
        {
            self.leaving.remove(&known.partition);
            self.ahead.depart(&known.partition, known.progress.handed);
        }
    }

    fn see_first(&mut self, name: String, seen: Seen, worker: usize) {
        // By its final name, so that a file read under a temporary name is read on under its final
        // one.
        let of_file = format!("{}#{}", self.path_of(&look::final_path(&name)), seen.identity());
        let mut partition = self.ahead.contents(&of_file);
        if self.files.reach.temporary == Temporary::Read
            && let Some(file) = self.known_as(&partition)
        {
            self.see_renamed(file, name, seen);
            return;
        }
        // It was away and is back. While the open file is still being read, only a later look takes
        // it back.
        if self.leaving.contains(&partition) {
            self.see_back(&name, &partition);
            return;
        }
        let path = Partition::new(self.path_of(&name));
        let Some((begin, worker)) = self.ahead.arrive(&partition, &path, seen.len, worker) else { return };
        let mut progress = Progress::from(begin);
        let file = FileId(self.next_id);
        self.next_id += 1;
        let ending = if self.is_bounded { Ending::AsItStands } else { Ending::Open };
        let is_shorter = progress.next > seen.len && !self.is_packed(&name);
        let tasks = &mut self.desks[worker].tasks;
        let mut count = 0;
        if is_shorter {
            // It was truncated between two runs, or while it was away.
            let flaw =
                format!("the file was truncated after {} bytes of it were read; it is read again", progress.next);
            tasks.push_back(Task::Say { file: Some(file), block: flawed(&path, progress.next, flaw) });
            self.ahead.depart(&partition, begin);
            self.ahead.cut(&of_file);
            partition = self.ahead.contents(&of_file);
            let Some((begin, _)) = self.ahead.arrive(&partition, &path, seen.len, worker) else {
                unreachable!("this partition was not seen before")
            };
            progress = Progress::from(begin);
            count += 1;
        }
        // A file that was read before may be compressed, which shows only when it is opened.
        if seen.len > progress.next || progress.next > 0 {
            tasks.push_back(Task::Read { file, until: seen.len, ending });
            count += 1;
        }
        self.by_name.insert(name.clone(), file);
        let known = Known {
            name,
            path,
            partition,
            file: of_file,
            worker,
            seen,
            since: self.clock.now(),
            was_done: false,
            looked: self.looks,
            progress,
            held: None,
            tasks: count,
            is_unreadable: false,
            is_refused: false,
            stays: false,
            has_left: false,
        };
        self.known.insert(file, known);
    }

    /// The file of that partition, if it is there under another name.
    fn known_as(&self, partition: &Partition) -> Option<FileId> {
        let is_it = |known: &Known| !known.has_left && known.partition == *partition;
        self.known.iter().find(|(_, known)| is_it(known)).map(|(file, _)| *file)
    }

    /// Continues a file that was read under a temporary name and now has its final one.
    fn see_renamed(&mut self, file: FileId, name: String, seen: Seen) {
        let path = Partition::new(self.path_of(&name));
        let Some(known) = self.known.get_mut(&file) else { return };
        let before = std::mem::replace(&mut known.name, name.clone());
        known.path = path;
        known.looked = self.looks;
        if self.by_name.get(&before) == Some(&file) {
            self.by_name.remove(&before);
        }
        self.by_name.insert(name, file);
        if self.is_still(file, &seen) {
            self.see_again(file, seen);
        }
    }

    /// Whether a file is compressed, and so may be shorter than what was read of it.
    fn is_packed(&self, name: &str) -> bool {
        let head = open_at_once(&self.files.directory.join(name)).and_then(|mut file| content::head(&mut file));
        self.files.contents == Contents::Text && head.is_ok_and(|head| matches!(Kind::of(&head, true), Kind::Packed(_)))
    }

    fn see_again(&mut self, file: FileId, seen: Seen) {
        let now = self.clock.now();
        let Some(known) = self.known.get_mut(&file) else { return };
        known.looked = self.looks;
        // A file that has tasks gets no other.
        if known.tasks > 0 {
            return;
        }
        let has_changed = seen != known.seen;
        if has_changed {
            known.was_done = known.is_read() && known.has_settled(now, self.files.settled_after);
            self.ahead.stretch(&known.partition, known.progress.end(seen.len));
            known.seen = seen;
            known.since = now;
            known.is_refused = false;
        }
        let has_settled = known.has_settled(now, self.files.settled_after);
        // A changed file of the same length may have been overwritten.
        if known.is_read() && !has_changed {
            if has_settled && self.held >= HELD_MAX / 2 {
                self.held -= usize::from(known.held.take().is_some());
            }
        } else if known.is_refused || known.progress.is_packed() && !has_settled {
            // A refused file has not changed. A compressed file that is still being written would
            // be decompressed from its beginning each time.
        } else if has_changed || known.is_unreadable || has_settled {
            let ending = if has_settled { Ending::AsItStands } else { Ending::Open };
            known.tasks += 1;
            self.desks[known.worker].tasks.push_back(Task::Read { file, until: known.seen.len, ending });
        }
    }

    fn see_trouble(&mut self, name: String, file: Option<FileId>, trouble: &str) {
        if let Some(known) = file.and_then(|file| self.known.get_mut(&file)) {
            known.looked = self.looks;
        }
        let path = Partition::new(self.path_of(&name));
        if self.troubled.insert(name, self.looks).is_none() {
            let block = flawed(&path, 0, format!("cannot read the file: {trouble}"));
            let least = (0..self.desks.len()).min_by_key(|worker| self.desks[*worker].tasks.len());
            self.desks[least.unwrap_or_default()].tasks.push_back(Task::Say { file: None, block });
        }
    }

    fn path_of(&self, name: &str) -> String {
        self.files.directory.join(name).to_string_lossy().into_owned()
    }
}
