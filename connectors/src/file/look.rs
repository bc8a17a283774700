//! A look at the directory: which files it contains, and their metadata.

use std::cmp::Ordering as Order;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use globset::{GlobBuilder, GlobMatcher};
use millstream::{Error, ErrorKind, Result};

use super::Files;

/// The order in which the files found by one look at the directory are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileOrder {
    /// By modification time, oldest first; files with the same time by name.
    #[default]
    Modified,
    /// By name, byte by byte: `log-10` before `log-9`.
    Name,
    /// By name, with the numbers in it compared as numbers: `log-9` before `log-10`.
    NameAndNumber,
}

/// Which names are read, and which links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) temporary: Temporary,
    pub(super) links: Links,
}

/// Whether temporary names are read: those that writers give to unfinished files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Temporary {
    LeftOut,
    Read,
}

/// Where links may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    Within,
    Anywhere,
}

/// What uploaders and editors append to the name of an unfinished file: browsers, FTP clients,
/// `hdfs dfs -put`.
const TEMPORARY: [&str; 6] = [".part", ".filepart", ".tmp", "._copying_", "~", ".crdownload"];

/// Whether a name is hidden or belongs to an unfinished file.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(['.', '_']) || final_name(name) != name
}

/// The name that a file gets when it is finished.
pub(super) fn final_name(name: &str) -> &str {
    let mut own = name;
    for ending in TEMPORARY {
        // The endings are ASCII, so the byte before one ends a character.
        if own.len() > ending.len()
            && own.as_bytes()[own.len() - ending.len()..].eq_ignore_ascii_case(ending.as_bytes())
        {
            own = &own[..own.len() - ending.len()];
        }
    }
    match own.trim_start_matches(['.', '_']) {
        "" => name,
        visible => visible,
    }
}

/// A file that was found, or why it cannot be read.
pub(super) struct Found {
    pub(super) name: String,
    pub(super) seen: Result<Seen, String>,
}

/// The metadata of a file when it was looked at.
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

    /// Whether it is the file that was seen before, changed or not.
    ///
    /// On a file system with neither stable inodes nor birth times, a file of the same length and
    /// modification time is the same one. Otherwise each look would find only new files.
    pub(super) fn is_same_as(&self, before: &Seen) -> bool {
        let is_same_inode = (self.inode, self.born) == (before.inode, before.born);
        let tells_births = self.born.is_some() || before.born.is_some();
        is_same_inode || !tells_births && (self.len, self.modified) == (before.len, before.modified)
    }

    /// Distinguishes the file from all others that ever have its name. Inodes are reused, so the
    /// birth time is part of it.
    ///
    /// Without birth times a file gets another identity each time: a restart reads it again instead
    /// of beginning in the middle of another file.
    pub(super) fn identity(&self) -> String {
        // Relaxed: the numbers only have to differ.
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

/// The path that a file gets when it is finished.
pub(super) fn final_path(path: &str) -> String {
    let name = path.rfind('/').map_or(0, |at| at + 1);
    format!("{}{}", &path[..name], final_name(&path[name..]))
}

/// The glob that names must match, and whether it applies to paths.
pub(super) struct Matching {
    glob: Option<GlobMatcher>,
    /// Directories are entered, and the glob matches paths.
    is_deep: bool,
}

impl Matching {
    pub(super) fn of(files: &Files) -> Result<Matching> {
        let Some(glob) = &files.matching else { return Ok(Matching { glob: None, is_deep: false }) };
        let is_deep = glob.contains('/') || glob.contains("**");
        let made = GlobBuilder::new(glob).literal_separator(is_deep).build().map_err(|cause| {
            Error::new(ErrorKind::Config, format!("`matching`: `{glob}` is not a valid glob")).caused_by(cause)
        })?;
        Ok(Matching { glob: Some(made.compile_matcher()), is_deep })
    }

    fn takes(&self, path: &Path) -> bool {
        self.glob.as_ref().is_none_or(|glob| glob.is_match(path))
    }
}

/// A look at a directory and its subdirectories.
pub(super) struct Look<'a> {
    pub(super) directory: &'a Path,
    pub(super) matching: &'a Matching,
    pub(super) order: FileOrder,
    pub(super) reach: Reach,
    /// Directories that files are moved to, and that are not entered.
    pub(super) except: &'a [PathBuf],
}

impl Look<'_> {
    /// The files that exist, in order. Their names are paths relative to the directory.
    pub(super) fn look(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let mut within = Vec::new();
        self.enter(Path::new(""), &mut found, &mut within)?;
        while let Some(directory) = within.pop() {
            match self.enter(&directory, &mut found, &mut within) {
                // It was deleted after its parent directory was read.
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => found.push(Found {
                    name: directory.to_string_lossy().into_owned(),
                    seen: Err(format!("cannot read the directory: {cause}")),
                }),
                Ok(()) => {}
            }
        }
        found.sort_by(|left, right| {
            let modified = |found: &Found| found.seen.as_ref().ok().and_then(|seen| seen.modified);
            match self.order {
                FileOrder::Modified => modified(left).cmp(&modified(right)).then_with(|| left.name.cmp(&right.name)),
                FileOrder::Name => left.name.cmp(&right.name),
                FileOrder::NameAndNumber => by_number(&left.name, &right.name),
            }
        });
        Ok(found)
    }

    fn enter(&self, directory: &Path, found: &mut Vec<Found>, within: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in fs::read_dir(self.directory.join(directory))? {
            let entry = entry?;
            let file_name = entry.file_name();
            let name = file_name.to_string_lossy();
            if self.reach.temporary == Temporary::LeftOut && is_temporary(&name) {
                continue;
            }
            let path = directory.join(&file_name);
            // Links to directories are not followed, because they may form a cycle.
            if self.matching.is_deep && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if !self.except.contains(&entry.path()) {
                    within.push(path);
                }
                continue;
            }
            if self.matching.takes(&path)
                && let Some(seen) = self.see(&entry)
            {
                found.push(Found { name: path.to_string_lossy().into_owned(), seen });
            }
        }
        Ok(())
    }

    /// The metadata of an entry; `None` if it no longer exists or is a directory.
    fn see(&self, entry: &DirEntry) -> Option<Result<Seen, String>> {
        let path = entry.path();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        Some(match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return None,
            Ok(_) if path.to_str().is_none() => Err("the file name is not valid UTF-8".to_owned()),
            // Opening a pipe would wait for its writer.
            Ok(metadata) if !metadata.is_file() => Err(NOT_REGULAR.to_owned()),
            Ok(_) if is_link && !leads_within(&path, self.directory, self.reach.links) => Err(LEADS_OUT.to_owned()),
            Ok(metadata) => Ok(Seen::of(&metadata)),
            // It was deleted after the directory was read. A dangling link is an error instead.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && !is_link => return None,
            Err(cause) => Err(cause.to_string()),
        })
    }
}

pub(super) const NOT_REGULAR: &str = "not a regular file";
pub(super) const LEADS_OUT: &str = "the link points outside the directory";

/// Whether a path that may be a link leads into the directory. A link that cannot be followed
/// passes, and opening it fails later.
pub(super) fn leads_within(path: &Path, directory: &Path, links: Links) -> bool {
    links == Links::Anywhere || path.canonicalize().map_or(true, |end| end.starts_with(directory))
}

/// Compares texts; digits at the same place in both are compared as numbers.
fn by_number(left: &str, right: &str) -> Order {
    let (mut left_rest, mut right_rest) = (left, right);
    loop {
        let ((left_text, left_number), (right_text, right_number)) = (run(&mut left_rest), run(&mut right_rest));
        let is_over = left_number.is_empty() && right_number.is_empty();
        // Without leading zeros, the longer number is the larger.
        let (a, b) = (left_number.trim_start_matches('0'), right_number.trim_start_matches('0'));
        let has_number = |number: &str| !number.is_empty();
        let order = match left_text == right_text {
            true if has_number(left_number) && has_number(right_number) => a.len().cmp(&b.len()).then_with(|| a.cmp(b)),
            true => has_number(left_number).cmp(&has_number(right_number)),
            false => left_text.cmp(right_text),
        };
        if order != Order::Equal {
            return order;
        }
        if is_over {
            return left.cmp(right);
        }
    }
}

/// Splits off the text before the next number, and that number.
fn run<'a>(rest: &mut &'a str) -> (&'a str, &'a str) {
    let digits = rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len());
    let (text, behind) = rest.split_at(digits);
    let (number, next) = behind.split_at(behind.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(behind.len()));
    *rest = next;
    (text, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let names = ["", "a", "a0", "a00", "a1", "a1b", "a1b2", "a1b10", "a02", "a10", "a-1", "b", "1", "10"];
        let mut sorted = names.to_vec();
        sorted.sort_by(|left, right| by_number(left, right));
        assert_eq!(sorted, ["", "1", "10", "a", "a0", "a00", "a1", "a1b", "a1b2", "a1b10", "a02", "a10", "a-1", "b"]);
        for left in names {
            for right in names {
                assert_eq!(by_number(left, right), by_number(right, left).reverse(), "{left} {right}");
            }
        }
    }

    #[test]
    fn the_final_name_is_what_is_left() {
        for name in [".a", "_a", "a.part", "a.TMP", "a~", "a._COPYING_", "a.crdownload", ".a.filepart"] {
            assert_eq!(final_name(name), "a", "{name}");
            assert!(is_temporary(name), "{name}");
        }
        for name in ["a", "a.parts", "part", "tmp", "a_", "a.", "ä"] {
            assert_eq!(final_name(name), name);
            assert!(!is_temporary(name), "{name}");
        }
        // Nothing would be left of them.
        for name in [".", "_", "__"] {
            assert_eq!(final_name(name), name);
            assert!(is_temporary(name), "{name}");
        }
    }
}
