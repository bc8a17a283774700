//! What becomes of files that are done, and which of them were not read whole.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use millstream::{Error, ErrorKind, Partition, Result};

use crate::lock;

/// What becomes of a file when every output of its records is acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenDone {
    /// It stays. A new process reads it again.
    #[default]
    Keep,
    /// It is deleted.
    Delete,
    /// It is moved to this directory, which is made when it is not there. It must lie on the same file system and cannot be
    /// the one that is read. Beside a file of its name it gets a number behind its own; it never replaces one, also when
    /// several processes move files there.
    MoveTo(PathBuf),
}

impl WhenDone {
    /// What can be known to go wrong is an error at start. Says where files go, when they go anywhere.
    pub(super) fn check(&self, directory: &Path) -> Result<Option<PathBuf>> {
        let WhenDone::MoveTo(target) = self else { return Ok(None) };
        let wrong = |kind, why: &str| {
            Error::new(kind, format!("cannot move files of {} to {}{why}", directory.display(), target.display()))
        };
        let made = fs::create_dir_all(target).and_then(|()| target.canonicalize());
        let made = made.map_err(|cause| wrong(ErrorKind::NotFound, "").caused_by(cause))?;
        if made == directory {
            return Err(wrong(ErrorKind::Option, ", which is the directory that is read"));
        }
        if file_system(directory) != file_system(&made) {
            return Err(wrong(ErrorKind::Option, ", which is on another file system"));
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

/// Moves a file into another directory, with a number behind its name while there is one of that name.
fn archive(file: &Path, target: &Path) -> io::Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut free = target.join(&*name);
    let mut number = 1;
    // To look whether there is one and then to rename would replace what another process has moved there in between.
    while let Err(cause) = move_to_free(file, &free) {
        if cause.kind() != io::ErrorKind::AlreadyExists {
            return Err(cause);
        }
        free = target.join(format!("{name}.{number}"));
        number += 1;
    }
    Ok(())
}

/// Moves a file, unless there is one of that name, which is [`io::ErrorKind::AlreadyExists`].
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn move_to_free(file: &Path, free: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;

    match renameat_with(CWD, file, CWD, free, RenameFlags::NOREPLACE) {
        // Not every file system can do it in one step.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_to_free(file, free),
        moved => Ok(moved?),
    }
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn move_to_free(file: &Path, free: &Path) -> io::Result<()> {
    link_to_free(file, free)
}

/// In two steps: a process that dies between them leaves the file under both names.
fn link_to_free(file: &Path, free: &Path) -> io::Result<()> {
    fs::hard_link(file, free)?;
    fs::remove_file(file)
}

#[cfg(unix)]
fn file_system(directory: &Path) -> Option<u64> {
    fs::metadata(directory).ok().map(|metadata| std::os::unix::fs::MetadataExt::dev(&metadata))
}

/// Elsewhere the first file that cannot be moved tells.
#[cfg(not(unix))]
fn file_system(_: &Path) -> Option<u64> {
    None
}

/// The files of a job in a directory of which a record was cut. A run that follows a failed one goes on behind that record,
/// and has to know.
#[derive(Clone, Debug, Default)]
pub(super) struct CutFiles(Arc<Mutex<HashSet<Partition>>>);

impl CutFiles {
    /// Those of a job, of which this run is not the first, or is.
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

    /// A file is gone.
    pub(super) fn forget(&self, partition: &Partition) {
        lock(&self.0).remove(partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two processes found the same name free, and one of two files was replaced by the other.
    #[test]
    fn what_several_move_to_one_directory_is_all_there() {
        let kept = tempfile::tempdir().expect("a directory");
        let target = kept.path().join("target");
        fs::create_dir(&target).expect("it can be made");
        std::thread::scope(|scope| {
            for mover in 0..4 {
                let (own, target) = (kept.path().join(mover.to_string()), &target);
                fs::create_dir(&own).expect("it can be made");
                scope.spawn(move || {
                    for file in 0..250 {
                        fs::write(own.join("same"), format!("{mover} {file}")).expect("it can be written");
                        archive(&own.join("same"), target).expect("it can be moved");
                    }
                });
            }
        });
        let names = fs::read_dir(&target).expect("it can be read").count();
        assert_eq!(names, 1_000);
    }

    #[test]
    fn no_way_to_move_replaces_a_file() {
        let kept = tempfile::tempdir().expect("a directory");
        let (file, taken) = (kept.path().join("file"), kept.path().join("taken"));
        for moved in [move_to_free, link_to_free] {
            fs::write(&file, "new").expect("it can be written");
            fs::write(&taken, "old").expect("it can be written");
            let refused = moved(&file, &taken).expect_err("the name is taken");
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read_to_string(&taken).expect("it is there"), "old");
            moved(&file, &kept.path().join("free")).expect("the name is free");
            assert!(!file.exists());
            fs::remove_file(kept.path().join("free")).expect("it is there");
        }
    }
}
