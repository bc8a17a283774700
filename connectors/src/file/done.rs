//! What happens to files that are done, and which files had a record cut.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use millstream::connector::Partition;
use millstream::{Error, ErrorKind, Result};

use crate::lock;

/// What happens to a file when every output of its records is acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhenDone {
    /// The file stays. A new process reads it again.
    #[default]
    Keep,
    /// The file is deleted.
    Delete,
    /// The file is moved to this directory, which is created if it does not exist. The directory
    /// must be on the same file system and must not be the one that is read. A file never replaces
    /// another, even when several processes move files there: when the name exists, a number is
    /// appended to it.
    MoveTo(PathBuf),
}

impl WhenDone {
    /// Checks at start what can be checked then. Returns the directory that files are moved to, if
    /// any.
    pub(super) fn check(&self, directory: &Path) -> Result<Option<PathBuf>> {
        let WhenDone::MoveTo(target) = self else { return Ok(None) };
        let wrong = |kind, why: &str| {
            Error::new(kind, format!("cannot move files from {} to {}{why}", directory.display(), target.display()))
        };
        let made = fs::create_dir_all(target).and_then(|()| target.canonicalize());
        let made = made.map_err(|cause| wrong(ErrorKind::NotFound, "").caused_by(cause))?;
        if made == directory {
            return Err(wrong(ErrorKind::Config, ", which is the directory being read"));
        }
        if file_system(directory) != file_system(&made) {
            return Err(wrong(ErrorKind::Config, ", which is on another file system"));
        }
        Ok(Some(made))
    }

    pub(super) fn apply(&self, file: &Path) -> io::Result<()> {
        match self {
            WhenDone::Keep => Ok(()),
            WhenDone::Delete => fs::remove_file(file),
            WhenDone::MoveTo(target) => archive(file, target),
        }
    }
}

/// Moves a file into another directory, with a number appended to its name when the name exists.
fn archive(file: &Path, target: &Path) -> io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut free = target.join(&*name);
    let mut number = 1;
    // Checking for the name first could replace a file that another process moves there before the
    // rename.
    while let Err(cause) = move_to_free(file, &free) {
        if cause.kind() != io::ErrorKind::AlreadyExists {
            return Err(cause);
        }
        free = target.join(format!("{name}.{number}"));
        number += 1;
    }
    Ok(())
}

/// Moves a file, or fails with [`io::ErrorKind::AlreadyExists`] when the name exists.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn move_to_free(file: &Path, free: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;

    match renameat_with(CWD, file, CWD, free, RenameFlags::NOREPLACE) {
        // Not every file system can do this in one step.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_to_free(file, free),
        moved => Ok(moved?),
    }
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn move_to_free(file: &Path, free: &Path) -> io::Result<()> {
    link_to_free(file, free)
}

/// Moves a file in two steps: a process that dies between them leaves it under both names.
fn link_to_free(file: &Path, free: &Path) -> io::Result<()> {
    fs::hard_link(file, free)?;
    fs::remove_file(file)
}

#[cfg(unix)]
fn file_system(directory: &Path) -> Option<u64> {
    fs::metadata(directory).ok().map(|metadata| std::os::unix::fs::MetadataExt::dev(&metadata))
}

/// Unknown on this platform: the first move fails instead.
#[cfg(not(unix))]
fn file_system(_: &Path) -> Option<u64> {
    None
}

/// The files in a job's directory that had a record cut. A run that follows a failed one resumes
/// behind that record, and has to know.
#[derive(Clone, Debug, Default)]
pub(super) struct CutFiles(Arc<Mutex<HashSet<Partition>>>);

impl CutFiles {
    /// The cut files of a job: those known from earlier runs when this run resumes one, otherwise
    /// none.
    pub(super) fn of(job: &str, directory: &Path, resumes: bool) -> CutFiles {
        static ALL: Mutex<BTreeMap<(String, PathBuf), CutFiles>> = Mutex::new(BTreeMap::new());
        let files = lock(&ALL).entry((job.to_owned(), directory.to_owned())).or_default().clone();
        if !resumes {
            lock(&files.0).clear();
        }
        files
    }

    pub(super) fn note(&self, partition: &Partition) {
        lock(&self.0).insert(partition.clone());
    }

    pub(super) fn contains(&self, partition: &Partition) -> bool {
        lock(&self.0).contains(partition)
    }

    /// Forgets a file that was deleted or moved.
    pub(super) fn forget(&self, partition: &Partition) {
        lock(&self.0).remove(partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two processes found the same name free, and one of their files replaced the other.
    #[test]
    fn what_several_move_to_one_directory_is_all_there() {
        let kept = tempfile::tempdir().expect("a temporary directory can be created");
        let target = kept.path().join("target");
        fs::create_dir(&target).expect("the directory can be created");
        std::thread::scope(|scope| {
            for mover in 0..4 {
                let (own, target) = (kept.path().join(mover.to_string()), &target);
                fs::create_dir(&own).expect("the directory can be created");
                scope.spawn(move || {
                    for file in 0..250 {
                        fs::write(own.join("same"), format!("{mover} {file}")).expect("the file can be written");
                        archive(&own.join("same"), target).expect("the file can be moved");
                    }
                });
            }
        });
        let names = fs::read_dir(&target).expect("the directory can be read").count();
        assert_eq!(names, 1_000);
    }

    #[test]
    fn no_way_to_move_replaces_a_file() {
        let kept = tempfile::tempdir().expect("a temporary directory can be created");
        let (file, taken) = (kept.path().join("file"), kept.path().join("taken"));
        for moved in [move_to_free, link_to_free] {
            fs::write(&file, "new").expect("the file can be written");
            fs::write(&taken, "old").expect("the file can be written");
            let refused = moved(&file, &taken).expect_err("the name is taken");
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(&taken).expect("the file exists"), "old");
            moved(&file, &kept.path().join("free")).expect("the name is free");
            assert!(!file.exists());
            fs::remove_file(kept.path().join("free")).expect("the file exists");
        }
    }
}
