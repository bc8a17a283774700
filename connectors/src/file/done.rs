//! What becomes of files that are done.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use millstream::{Error, ErrorKind, Result};

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
    /// the one that is read. Beside a file of its name it gets a number behind its own.
    MoveTo(PathBuf),
}

impl WhenDone {
    /// What can be known to go wrong is an error at start.
    pub(super) fn check(&self, directory: &Path) -> Result<()> {
        let WhenDone::MoveTo(target) = self else { return Ok(()) };
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
        Ok(())
    }

    pub(super) fn apply(&self, file: &Path) -> io::Result<()> {
        match self {
            WhenDone::Keep => Ok(()),
            WhenDone::Delete => fs::remove_file(file),
            WhenDone::MoveTo(target) => fs::rename(file, free_name(target, file)),
        }
    }
}

/// The file's name within another directory, with a number when there is one of that name.
fn free_name(target: &Path, file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut free = target.join(&*name);
    let mut number = 1;
    // Also a link to nothing is in the way.
    while free.symlink_metadata().is_ok() {
        free = target.join(format!("{name}.{number}"));
        number += 1;
    }
    free
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
