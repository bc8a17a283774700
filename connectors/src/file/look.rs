//! A look at the directory: which files it holds and what they are like.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use globset::{Glob, GlobMatcher};
use millstream::{Error, ErrorKind, Result};

use super::Files;

/// Which files come first of those that one look at the directory finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileOrder {
    /// That which was modified longest ago; of those modified at the same moment, by name.
    #[default]
    Modified,
    /// By name, byte by byte.
    Name,
}

/// A file that was found, or why it is none that can be read.
pub(super) struct Found {
    pub(super) name: String,
    pub(super) seen: Result<Seen, String>,
}

/// What a file was like when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) len: u64,
    pub(super) modified: Option<SystemTime>,
    inode: u64,
    born: Option<SystemTime>,
}

impl Seen {
    pub(super) fn of(metadata: &Metadata) -> Seen {
        Seen {
            len: metadata.len(),
            modified: metadata.modified().ok(),
            inode: inode(metadata),
            born: metadata.created().ok(),
        }
    }

    /// Whether it is the file that was seen before, as it was or changed.
    ///
    /// A file system whose inodes are not stable, nor has it births, must not make a new file of each at each look, so one
    /// that looks the same there is the same.
    pub(super) fn is_same_as(&self, before: &Seen) -> bool {
        let is_same_inode = (self.inode, self.born) == (before.inode, before.born);
        let tells_births = self.born.is_some() || before.born.is_some();
        is_same_inode || !tells_births && (self.len, self.modified) == (before.len, before.modified)
    }

    /// Tells the file from others that had or will have its name. Inodes are used again, so the birth is part of it.
    ///
    /// Where a file system does not tell that, each life of a file is another one: a restart reads it again rather than
    /// begin in the middle of a stranger.
    pub(super) fn identity(&self) -> String {
        static LIVES: AtomicU64 = AtomicU64::new(0);
        match self.born.and_then(|born| born.duration_since(UNIX_EPOCH).ok()) {
            Some(born) => format!("{:x}.{:x}", self.inode, born.as_nanos()),
            None => format!("{:x}.life{}", self.inode, LIVES.fetch_add(1, Relaxed)),
        }
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &Metadata) -> u64 {
    0
}

/// The glob that names must match.
pub(super) fn matcher(files: &Files) -> Result<Option<GlobMatcher>> {
    let Some(glob) = &files.matching else { return Ok(None) };
    let glob = Glob::new(glob).map_err(|cause| {
        Error::new(ErrorKind::Option, format!("`matching` has no glob but `{glob}`")).caused_by(cause)
    })?;
    Ok(Some(glob.compile_matcher()))
}

/// The files of a directory, in order.
pub(super) fn look(directory: &Path, glob: Option<&GlobMatcher>, order: FileOrder) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let name = file_name.to_string_lossy();
        if name.starts_with(['.', '_']) || glob.is_some_and(|glob| !glob.is_match(&file_name)) {
            continue;
        }
        let is_text = file_name.to_str().is_some();
        let seen = match fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_dir() => continue,
            Ok(_) if !is_text => Err("its name is no UTF-8".to_owned()),
            // To open a pipe would be to wait for its writer.
            Ok(metadata) if !metadata.is_file() => Err("it is no regular file".to_owned()),
            Ok(metadata) => Ok(Seen::of(&metadata)),
            // It was deleted since the directory was read, or it is a link to nothing.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && !entry.path().is_symlink() => continue,
            Err(cause) => Err(cause.to_string()),
        };
        found.push(Found { name: name.into_owned(), seen });
    }
    found.sort_by(|left, right| {
        let modified = |found: &Found| found.seen.as_ref().ok().and_then(|seen| seen.modified);
        match order {
            FileOrder::Modified => modified(left).cmp(&modified(right)).then_with(|| left.name.cmp(&right.name)),
            FileOrder::Name => left.name.cmp(&right.name),
        }
    });
    Ok(found)
}
