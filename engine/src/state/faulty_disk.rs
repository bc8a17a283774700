//! A disk for tests that shows what a real one would hold after a crash: what was not synced may be
//! there, in part, or not at all.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::words::lock;

use super::disk::{Disk, Input, Output};

/// What happens to the operation at which the disk fails. All later ones fail too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fails {
    Before,
    /// Half of a write is done.
    InTheMiddle,
    After,
}

/// What a crash leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaves {
    Nothing,
    /// Half of the bytes of each file, and half of the changes of names.
    Half,
    /// The bytes, and no change of a name.
    Bytes,
    /// The names, and no bytes.
    Names,
    Everything,
}

/// What is wrong with a disk for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing more can be written.
    Full,
    ReadOnly,
    /// No file can be opened to read it, as in a process that has too many open.
    Unreadable,
    /// Steps of this kind do not return, such as `sync log`.
    Hangs(&'static str),
    /// The next step of this kind does not return, and all others do.
    HangsOnce(&'static str),
}

#[derive(Clone, Debug, Default)]
struct Bytes {
    written: Vec<u8>,
    synced: usize,
}

type Names = BTreeMap<String, usize>;

#[derive(Debug, Default)]
struct State {
    files: Vec<Bytes>,
    names: Names,
    /// The names after each change since they were synced last, beginning with that.
    history: Vec<Names>,
    /// What was done, such as `sync log`.
    steps: Vec<String>,
    fails: Option<(usize, Fails)>,
    trouble: Option<Trouble>,
    /// The number of steps that hang.
    hanging: usize,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultyDisk(Arc<Mutex<State>>, Arc<Condvar>);

static MOUNTED: Mutex<BTreeMap<PathBuf, FaultyDisk>> = Mutex::new(BTreeMap::new());

/// The disk that a job finds in place of that directory.
pub(super) fn mounted(path: &Path) -> Option<FaultyDisk> {
    lock(&MOUNTED).get(path).cloned()
}

impl FaultyDisk {
    /// Puts the disk in place of a directory.
    pub(crate) fn mount(&self, path: &Path) {
        lock(&MOUNTED).insert(path.to_owned(), self.clone());
    }

    /// Something is wrong from now on, until it is over.
    pub(crate) fn trouble(&self, trouble: Option<Trouble>) {
        lock(&self.0).trouble = trouble;
        self.1.notify_all();
    }

    /// The number of steps that hang now.
    pub(crate) fn hanging(&self) -> usize {
        lock(&self.0).hanging
    }

    /// Does a step, when the disk answers.
    fn step<T>(&self, what: &str, name: &str, change: impl FnOnce(&mut State, bool) -> io::Result<T>) -> io::Result<T> {
        let step = format!("{what} {}", kind_of(name));
        let mut state = lock(&self.0);
        match state.trouble {
            Some(Trouble::Full) if what == "write" || what == "create" => return Err(io::ErrorKind::StorageFull.into()),
            Some(Trouble::ReadOnly) => return Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Some(trouble @ (Trouble::Hangs(kind) | Trouble::HangsOnce(kind))) if kind == step => {
                // Over with the trouble; another one may have come by then.
                if let Trouble::HangsOnce(_) = trouble {
                    state.trouble = Some(Trouble::Hangs("no other step"));
                }
                state.hanging += 1;
                while state.trouble.is_some() {
                    state = self.1.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.hanging -= 1;
            }
            Some(_) | None => {}
        }
        state.step(step, change)
    }

    /// A disk that fails at the step of that number, counted from 0.
    pub(super) fn failing(self, step: usize, fails: Fails) -> FaultyDisk {
        lock(&self.0).fails = Some((step, fails));
        self
    }

    /// What was done so far.
    pub(super) fn steps(&self) -> Vec<String> {
        lock(&self.0).steps.clone()
    }

    pub(super) fn has_failed(&self) -> bool {
        let state = lock(&self.0);
        state.fails.is_some_and(|(step, _)| state.steps.len() > step)
    }

    /// The disk after a crash. It counts its steps from 0 and does not fail.
    pub(crate) fn after_crash(&self, leaves: Leaves) -> FaultyDisk {
        let state = lock(&self.0);
        let half = state.history.get(state.history.len() / 2).unwrap_or(&state.names);
        let names = match leaves {
            Leaves::Nothing | Leaves::Bytes => state.history.first().unwrap_or(&state.names),
            Leaves::Half => half,
            Leaves::Names | Leaves::Everything => &state.names,
        };
        let files = state.files.iter().map(|file| {
            let unsynced = file.written.len() - file.synced;
            let left = match leaves {
                Leaves::Nothing | Leaves::Names => 0,
                Leaves::Half => unsynced / 2,
                Leaves::Bytes | Leaves::Everything => unsynced,
            };
            Bytes { written: file.written[..file.synced + left].to_vec(), synced: file.synced + left }
        });
        let state = State { files: files.collect(), names: names.clone(), ..State::default() };
        FaultyDisk(Arc::new(Mutex::new(state)), Arc::default())
    }

    /// Changes the bytes of a file.
    pub(crate) fn damage(&self, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let state = &mut *lock(&self.0);
        damage(&mut state.files[state.names[name]].written);
    }

    pub(super) fn content(&self, name: &str) -> Vec<u8> {
        let state = lock(&self.0);
        state.files[state.names[name]].written.clone()
    }
}

/// What a file is, by its name.
pub(super) fn kind_of(name: &str) -> &str {
    if name.ends_with(".new") { "new manifest" } else { name.split('-').next().unwrap_or(name) }
}

impl State {
    /// Does a step, unless the disk fails at it or has failed. `change` is told whether only half
    /// of it is done.
    fn step<T>(&mut self, step: String, change: impl FnOnce(&mut State, bool) -> io::Result<T>) -> io::Result<T> {
        let number = self.steps.len();
        self.steps.push(step);
        let failed = || Err(io::Error::other("the disk has failed"));
        match self.fails {
            Some((step, _)) if step < number => failed(),
            Some((step, fails)) if step == number => {
                if fails != Fails::Before {
                    drop(change(self, fails == Fails::InTheMiddle));
                }
                failed()
            }
            _ => change(self, false),
        }
    }

    fn change_names(&mut self, change: impl FnOnce(&mut Names)) {
        if self.history.is_empty() {
            self.history.push(self.names.clone());
        }
        change(&mut self.names);
        self.history.push(self.names.clone());
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for FaultyDisk {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.0).names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Output>> {
        let file = self.step("create", name, |state, _| {
            if state.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.files.push(Bytes::default());
            let file = state.files.len() - 1;
            state.change_names(|names| {
                names.insert(name.to_owned(), file);
            });
            Ok(file)
        })?;
        Ok(Box::new(FaultyFile { disk: self.clone(), file, name: name.to_owned() }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Input>> {
        let state = lock(&self.0);
        if state.trouble == Some(Trouble::Unreadable) {
            return Err(io::Error::other("too many open files"));
        }
        Ok(Box::new(io::Cursor::new(state.files[state.find(name)?].written.clone())))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step("rename to", to, |state, _| {
            let file = state.find(from)?;
            state.change_names(|names| {
                names.remove(from);
                names.insert(to.to_owned(), file);
            });
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.step("remove", name, |state, _| {
            state.find(name)?;
            state.change_names(|names| {
                names.remove(name);
            });
            Ok(())
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.step("sync", "names", |state, _| {
            state.history.clear();
            Ok(())
        })
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    file: usize,
    name: String,
}

impl Output for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.disk.step("write", &self.name, |state, is_half| {
            let length = if is_half { bytes.len() / 2 } else { bytes.len() };
            state.files[self.file].written.extend_from_slice(&bytes[..length]);
            Ok(())
        })
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.step("sync", &self.name, |state, _| {
            let file = &mut state.files[self.file];
            file.synced = file.written.len();
            Ok(())
        })
    }
}
