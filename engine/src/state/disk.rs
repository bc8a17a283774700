//! Where the files of checkpoints are kept: a directory, or the memory of the process.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::words::{Error, ErrorKind, Result, lock};

/// Files by their names. What was written is there after a crash once it is synced, and so is a
/// name once the names are.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Creates a file, which must not exist.
    fn create(&self, name: &str) -> io::Result<Box<dyn Output>>;

    /// Opens a file for reading.
    fn open(&self, name: &str) -> io::Result<Box<dyn Input>>;

    /// Renames a file. One that had the new name is gone.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes all changes of names durable.
    fn sync_names(&self) -> io::Result<()>;
}

/// A file that is being written.
pub(crate) trait Output: Send + Sync {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes everything written so far durable. After an error the file must not be used any more:
    /// the system may have dropped what it could not write.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that is being read.
pub(crate) trait Input: Read + Seek + Send {}

impl<R: Read + Seek + Send> Input for R {}

/// A directory of a file system.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
}

/// Keeps other jobs out of a directory for as long as it lives. It goes with the process, however
/// that ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

/// The name of the file that is locked.
const LOCK: &str = "lock";

impl Directory {
    /// Creates the directory if it does not exist, and locks it: two jobs in one directory would
    /// overwrite each other's checkpoints.
    pub(crate) fn locked(path: &Path) -> Result<(Directory, DirectoryLock)> {
        let wrong = |what: &str| Error::new(ErrorKind::Checkpoint, format!("{what} `{}`", path.display()));
        create_durably(path).map_err(|cause| wrong("cannot create the directory of checkpoints").caused_by(cause))?;
        let file = File::options().create(true).truncate(false).write(true).open(path.join(LOCK));
        let file = file.map_err(|cause| wrong("cannot write to the directory of checkpoints").caused_by(cause))?;
        match file.try_lock() {
            Ok(()) => Ok((Directory { path: path.to_owned() }, DirectoryLock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(wrong("another job uses the directory of checkpoints")),
            Err(TryLockError::Error(cause)) => Err(wrong("cannot lock the directory of checkpoints").caused_by(cause)),
        }
    }
}

#[cfg(feature = "inspect")]
impl Directory {
    /// A directory that exists, to read what is in it. Without its lock: a job may write there.
    pub(crate) fn unlocked(path: &Path) -> io::Result<Directory> {
        fs::read_dir(path)?;
        Ok(Directory { path: path.to_owned() })
    }
}

impl Disk for Directory {
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is not one of ours.
            names.extend(entry?.file_name().into_string().ok().filter(|name| name != LOCK));
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Output>> {
        let file = File::options().write(true).create_new(true).open(self.path.join(name))?;
        Ok(Box::new(file))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Input>> {
        Ok(Box::new(File::open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        sync_names(&self.path)
    }
}

fn sync_names(directory: &Path) -> io::Result<()> {
    // Only Unix lets a directory be synced; elsewhere names are durable with their files.
    if cfg!(unix) { File::open(directory)?.sync_all() } else { Ok(()) }
}

/// Creates a directory, and those in which it is, so that they are there after a crash too.
fn create_durably(path: &Path) -> io::Result<()> {
    let path = std::path::absolute(path)?;
    let new: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(&path)?;
    new.into_iter().filter_map(Path::parent).try_for_each(sync_names)
}

impl Output for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The memory of the process: what it keeps goes with the job.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    files: Mutex<BTreeMap<String, Arc<Mutex<Vec<u8>>>>>,
}

impl Memory {
    fn find(&self, name: &str) -> io::Result<Arc<Mutex<Vec<u8>>>> {
        lock(&self.files).get(name).map(Arc::clone).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for Memory {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.files).keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Output>> {
        let file = Arc::<Mutex<Vec<u8>>>::default();
        match lock(&self.files).insert(name.to_owned(), Arc::clone(&file)) {
            None => Ok(Box::new(InMemory(file))),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Input>> {
        Ok(Box::new(InMemoryInput { file: self.find(name)?, at: 0 }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = lock(&self.files);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        lock(&self.files).remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

struct InMemory(Arc<Mutex<Vec<u8>>>);

impl Output for InMemory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a file in memory where it is: it is only appended to.
struct InMemoryInput {
    file: Arc<Mutex<Vec<u8>>>,
    at: u64,
}

impl InMemoryInput {
    fn with<T>(&mut self, act: impl FnOnce(&mut io::Cursor<&[u8]>) -> io::Result<T>) -> io::Result<T> {
        let bytes = lock(&self.file);
        let mut cursor = io::Cursor::new(bytes.as_slice());
        cursor.set_position(self.at);
        let done = act(&mut cursor);
        self.at = cursor.position();
        done
    }
}

impl Read for InMemoryInput {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.with(|cursor| cursor.read(buffer))
    }
}

impl Seek for InMemoryInput {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.with(|cursor| cursor.seek(to))
    }
}
