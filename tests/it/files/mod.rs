//! The files of a directory: each record is read once, whatever is done to the files meanwhile.

mod changes;
mod content;
mod done;
mod follow;
mod formats;
mod mistakes;
mod names;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream::{Clock, Collected, Job, Malformed, Origin, Running, Trigger, collect};
use millstream_connectors::{Files, files};

use crate::support::{PATIENCE, eventually};

/// A temporary directory and its canonical path, as the origins of records have it.
pub struct Directory {
    path: PathBuf,
    _kept: tempfile::TempDir,
}

impl Directory {
    fn new() -> Directory {
        let kept = tempfile::tempdir().unwrap();
        Directory { path: kept.path().canonicalize().unwrap(), _kept: kept }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.at(name), text).unwrap();
    }

    fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        append(&self.at(name), text);
    }

    /// Makes a complete file appear at once.
    fn move_in(&self, name: &str, text: impl AsRef<[u8]>) {
        self.write(".unfinished", text);
        fs::rename(self.at(".unfinished"), self.at(name)).unwrap();
    }

    fn source(&self) -> Files {
        files(&self.path).look_every(Duration::from_millis(5))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }
}

fn append(path: &Path, text: impl AsRef<[u8]>) {
    fs::OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_ref()).unwrap();
}

/// A line as tests compare it: `name@offset line`, or `name@offset! cause`.
fn told(line: Result<(String, Origin), Malformed>) -> String {
    let place = |origin: &Origin| {
        let name = Path::new(origin.partition.name()).file_name().unwrap().to_str().unwrap().to_owned();
        format!("{name}@{}", origin.offset)
    };
    match line {
        Ok((line, origin)) => format!("{} {line}", place(&origin)),
        Err(malformed) => format!("{}! {}", place(malformed.origin.as_ref().unwrap()), malformed.cause),
    }
}

/// A job that collects the lines of a directory as [`told`] formats them, and its results.
fn telling(source: Files) -> (Job, Collected<String>) {
    let results = collect();
    let sink = results.clone();
    let job = Job::new("files", move |flow| flow.source(source.clone().lines().with_origin())?.map(told).sink(&sink));
    (job.checkpoint_every(Duration::from_millis(5)), results)
}

/// The results of a bounded run.
fn told_by(source: Files) -> Vec<String> {
    let (job, results) = telling(source);
    job.trigger(Trigger::AvailableNow).run().unwrap();
    results.values()
}

/// A job on a clock that moves only when a test moves it.
struct Paced {
    results: Collected<String>,
    clock: Clock,
    running: Running,
}

impl Paced {
    fn start(source: Files) -> Paced {
        let (job, results) = telling(source);
        let clock = Clock::simulated();
        let running = job.clock(clock.clone()).start().unwrap();
        Paced { results, clock, running }
    }

    /// Looks at the directory, without letting any file settle, until there are `count` results.
    #[track_caller]
    fn look_until(&self, count: usize) -> Vec<String> {
        eventually(&format!("{count} lines are read, after {:?}", self.results.values()), || {
            self.look();
            self.results.len() >= count
        });
        self.results.values()
    }

    /// Like `look_until`, but without the files that `look_around` made.
    #[track_caller]
    fn look_until_told(&self, count: usize) {
        eventually(&format!("{count} lines are read, after {:?}", self.told()), || {
            self.look();
            self.told().len() >= count
        });
    }

    /// Looks at the directory several times, and waits until everything that was found has been
    /// read.
    #[track_caller]
    fn look_around(&self, directory: &Directory) {
        let name = format!("look-{}", fastrand::u64(..));
        directory.move_in(&name, "\n");
        let comes = |name: &str| self.results.values().iter().any(|told| told.starts_with(name));
        eventually("a new file is read", || {
            self.look();
            comes(&name)
        });
        // Everything that an earlier look found was read before this file.
        let next = format!("{name}-again");
        directory.move_in(&next, "\n");
        eventually("another new file is read", || {
            self.look();
            comes(&next)
        });
    }

    fn look(&self) {
        // So little that nothing settles, however often a test looks.
        self.clock.advance(Duration::from_millis(5));
    }

    /// Lets all files settle that do not change any more.
    fn settle(&self) {
        self.clock.advance(SETTLED_AFTER);
    }

    /// The results, without the files that `look_around` made.
    fn told(&self) -> Vec<String> {
        self.results.values().into_iter().filter(|told| !told.starts_with("look-")).collect()
    }
}

const SETTLED_AFTER: Duration = Duration::from_secs(1_000_000);

/// A job whose files settle only when a test calls `settle`.
fn paced(directory: &Directory) -> Paced {
    Paced::start(directory.source().settled_after(SETTLED_AFTER))
}

#[track_caller]
fn wait_for<T: Clone>(results: &Collected<T>, count: usize) -> Vec<T> {
    results.wait_for(count, PATIENCE).unwrap_or_else(|| panic!("{} of {count} have arrived", results.len()))
}
