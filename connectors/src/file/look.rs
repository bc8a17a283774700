//! A look at the directory: which files it holds and what they are like.

use std::cmp::Ordering as Order;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use globset::{GlobBuilder, GlobMatcher};
use millstream::{Error, ErrorKind, Result};

use super::Files;

/// Which files come first of those that one look at the directory finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileOrder {
    /// That which was modified longest ago; of those modified at the same moment, by name.
    #[default]
    Modified,
    /// By name, byte by byte: `log-10` before `log-9`.
    Name,
    /// By name, numbers within it by what they count: `log-9` before `log-10`.
    NameAndNumber,
}

/// Which names are read, and which links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) temporary: Temporary,
    pub(super) links: Links,
}

/// What becomes of names that writers give to files that are not whole.
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

/// What uploaders and editors append to the name of a file that is not whole: browsers, FTP clients, `hdfs dfs -put`.
const TEMPORARY: [&str; 6] = [".part", ".filepart", ".tmp", "._copying_", "~", ".crdownload"];

/// Whether a name is hidden, or of a file that is not whole.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(['.', '_']) || final_name(name) != name
}

/// The name that a file gets when it is whole.
pub(super) fn final_name(name: &str) -> &str {
    let mut own = name;
    for ending in TEMPORARY {
        // Endings are ASCII, and so the byte before one is the end of a character.
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

/// The path that a file gets when it is whole.
pub(super) fn final_path(path: &str) -> String {
    let name = path.rfind('/').map_or(0, |at| at + 1);
    format!("{}{}", &path[..name], final_name(&path[name..]))
}

/// The glob that names must match, and whether it is one of paths.
pub(super) struct Matching {
    glob: Option<GlobMatcher>,
    /// Directories are entered, and paths matched.
    is_deep: bool,
}

impl Matching {
    pub(super) fn of(files: &Files) -> Result<Matching> {
        let Some(glob) = &files.matching else { return Ok(Matching { glob: None, is_deep: false }) };
        let is_deep = glob.contains('/') || glob.contains("**");
        let made = GlobBuilder::new(glob).literal_separator(is_deep).build().map_err(|cause| {
            Error::new(ErrorKind::Option, format!("`matching`: `{glob}` is not a valid glob")).caused_by(cause)
        })?;
        Ok(Matching { glob: Some(made.compile_matcher()), is_deep })
    }

    fn takes(&self, path: &Path) -> bool {
        self.glob.as_ref().is_none_or(|glob| glob.is_match(path))
    }
}

/// A look at one directory, and at those within it.
pub(super) struct Look<'a> {
    pub(super) directory: &'a Path,
    pub(super) matching: &'a Matching,
    pub(super) order: FileOrder,
    pub(super) reach: Reach,
    /// Directories to which files are moved.
    pub(super) except: &'a [PathBuf],
}

impl Look<'_> {
    /// The files that are there, in order. Their names are paths from the directory on.
    pub(super) fn look(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        let mut within = Vec::new();
        self.enter(Path::new(""), &mut found, &mut within)?;
        while let Some(directory) = within.pop() {
            match self.enter(&directory, &mut found, &mut within) {
                // It was deleted since its own directory was read.
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
            // Not behind a link, which may lead around in a circle.
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

    /// What an entry is like; nothing when it is not there, or a directory.
    fn see(&self, entry: &DirEntry) -> Option<Result<Seen, String>> {
        let path = entry.path();
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        Some(match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return None,
            Ok(_) if path.to_str().is_none() => Err("the file name is not valid UTF-8".to_owned()),
            // To open a pipe would be to wait for its writer.
            Ok(metadata) if !metadata.is_file() => Err(NOT_REGULAR.to_owned()),
            Ok(_) if is_link && !leads_within(&path, self.directory, self.reach.links) => Err(LEADS_OUT.to_owned()),
            Ok(metadata) => Ok(Seen::of(&metadata)),
            // It was deleted since the directory was read, or it is a link to nothing.
            Err(cause) if cause.kind() == io::ErrorKind::NotFound && !is_link => return None,
            Err(cause) => Err(cause.to_string()),
        })
    }
}

pub(super) const NOT_REGULAR: &str = "not a regular file";
pub(super) const LEADS_OUT: &str = "the link leads out of the directory";

/// Whether a path that may be a link ends in the directory. What cannot be followed is found out when it is opened.
pub(super) fn leads_within(path: &Path, directory: &Path, links: Links) -> bool {
    links == Links::Anywhere || path.canonicalize().map_or(true, |end| end.starts_with(directory))
}

/// Compares texts, and where both have digits, the numbers that these are.
fn by_number(left: &str, right: &str) -> Order {
    let (mut left_rest, mut right_rest) = (left, right);
    loop {
        let ((left_text, left_number), (right_text, right_number)) = (run(&mut left_rest), run(&mut right_rest));
        let is_over = left_number.is_empty() && right_number.is_empty();
        // Without the zeros before them, the longer number is the larger.
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

/// The text before the next number, and that number.
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
