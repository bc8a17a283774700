//! What a connector implements to be read: a description, the half that a process has once, and a reader per worker.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::words::{
    Batch, Bytes, CheckpointId, Clock, Error, ErrorKind, Offset, Offsets, Partition, Result, Room, Worker, lock,
};

use super::Wake;

/// Describes an input.
///
/// The pipeline function runs once on the control thread first, the *plan*, where [`connect`](Source::connect) is
/// called, and then once per worker, where [`reader`](Source::reader) is called. Therefore `Self` needs neither `Send`
/// nor `'static`, and `&S` is a source when `S` is one that can be cloned.
pub trait Source {
    /// What a record is.
    type Item: 'static;
    /// The half that a process has once.
    type Shared: SharedSource;
    /// The half that each worker has.
    type Reader: Reader<Item = Self::Item> + 'static;

    /// What its operator is called when the pipeline does not name it, such as `kafka orders`.
    fn name(&self) -> String;

    /// Reaches the other side and fixes where reading starts and ends. Called once per run, on the control thread; may
    /// block. What can be known to be wrong is an error here.
    ///
    /// # Errors
    /// A wrong option, or the other side is absent, refuses, or does not have what was asked for.
    fn connect(self, open: OpenSource) -> Result<Self::Shared>;

    /// The reader of one worker; `wake` wakes its operator.
    ///
    /// # Errors
    /// When the reader cannot be made.
    fn reader(shared: &Arc<Self::Shared>, worker: Worker, wake: Wake) -> Result<Self::Reader>;
}

impl<S: Source + Clone> Source for &S {
    type Item = S::Item;
    type Shared = S::Shared;
    type Reader = S::Reader;

    fn name(&self) -> String {
        S::name(self)
    }

    fn connect(self, open: OpenSource) -> Result<S::Shared> {
        self.clone().connect(open)
    }

    fn reader(shared: &Arc<S::Shared>, worker: Worker, wake: Wake) -> Result<S::Reader> {
        S::reader(shared, worker, wake)
    }
}

/// What a source is told when it connects.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenSource {
    /// The job's name; a group id, where one is needed and none was given.
    pub job: String,
    /// How many workers will have a reader.
    pub workers: usize,
    /// Memory for what was fetched and not yet polled.
    pub prefetch: Bytes,
    /// Whether the run ends at what there is now.
    pub bounded: bool,
    /// Whether this is one of several runs over the same records ([`Job::compare`](crate::Job::compare)): it ends early, on
    /// the engine's schedule and not the source's own, and nothing of it is committed. What cannot be read again is an
    /// error.
    pub compared: bool,
    /// What an earlier run of this job in this process committed: reading goes on there.
    pub resume: Option<Offsets>,
    /// The job's clock.
    pub clock: Clock,
    /// Wakes the control thread, which then calls [`SharedSource::serve`].
    pub wake: Wake,
    /// What the sources of this run have claimed.
    pub(crate) claims: Claims,
}

/// What the sources of a run read and no second one of them may read: it would take records away from the first. For a source
/// that finds out later what it reads; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// What is claimed, and by which source.
    claimed: Arc<Mutex<BTreeMap<String, u64>>>,
    /// Which source of the run this is for.
    source: u64,
}

impl Claims {
    /// For the next source of the same run.
    pub(crate) fn of_source(&self, index: usize) -> Claims {
        Claims { claimed: Arc::clone(&self.claimed), source: index as u64 }
    }

    /// Claims all of these, each described as in "two sources of this job read …". A source may claim the same again.
    ///
    /// # Errors
    /// When another source of the run has claimed one of them.
    pub fn claim(&self, wanted: impl IntoIterator<Item = String>) -> Result<()> {
        let mut claimed = lock(&self.claimed);
        for what in wanted {
            let owner = *claimed.entry(what.clone()).or_insert(self.source);
            if owner != self.source {
                let doing = format!(
                    "two sources of this job read {what}: each would get a part of the records. Fork one of them \
                     (`stream.clone()`), or give each a group of its own"
                );
                return Err(Error::new(ErrorKind::Option, doing));
            }
        }
        Ok(())
    }
}

impl OpenSource {
    /// Claims what this source reads, see [`Claims::claim`].
    ///
    /// # Errors
    /// When another source of the run has claimed it.
    pub fn claim(&self, wanted: impl IntoIterator<Item = String>) -> Result<()> {
        self.claims.claim(wanted)
    }

    /// For claims that are made later.
    pub fn claims(&self) -> Claims {
        self.claims.clone()
    }

    /// For a source that cannot be read again, when it connects.
    ///
    /// # Errors
    /// When this is one of several runs over the same records.
    pub fn once(&self, source: &str) -> Result<()> {
        if !self.compared {
            return Ok(());
        }
        let doing = format!("cannot compare runs over `{source}`: it can be read once only");
        Err(Error::new(ErrorKind::Option, doing))
    }
}

/// The half of a source that a process has once. All of it but [`lag`](SharedSource::lag) and
/// [`waiting`](SharedSource::waiting) is called on the control thread only.
pub trait SharedSource: Send + Sync + 'static {
    /// After all workers have their readers: only now may anything be fetched.
    ///
    /// # Errors
    /// When reading cannot begin.
    fn begin(&self) -> Result<()> {
        Ok(())
    }

    /// Serves the client's events: changes of partitions, results of commits, errors. Called after a wake and at least
    /// every 200 ms for as long as the source lives; must not block.
    ///
    /// # Errors
    /// An error ends the run.
    fn serve(&self) -> Result<Vec<Change>> {
        Ok(Vec::new())
    }

    /// Publishes how far this source's records are done, in the order of the checkpoints. The answer may come later, as
    /// [`Change::Committed`]; must not block. By default it is done: a source that nobody can read again has
    /// nowhere to publish it.
    ///
    /// # Errors
    /// An error ends the run.
    fn commit(&self, checkpoint: CheckpointId, offsets: &Offsets) -> Result<Progress> {
        let _ = (checkpoint, offsets);
        Ok(Progress::Done)
    }

    /// Where this run began, for a later run of the same job that finds nothing committed: without it, a start at the
    /// latest record would be another one then.
    fn started_at(&self) -> Offsets {
        Offsets::new()
    }

    /// The partitions of a [`Change::Taken`] are drained and committed, those of a [`Change::Lost`] dropped.
    ///
    /// # Errors
    /// An error ends the run.
    fn give_back(&self, taken: Taken) -> Result<()> {
        drop(taken);
        Ok(())
    }

    /// How far behind its end each partition is, as far as known without asking anybody. Called from whichever thread
    /// asks for a report.
    fn lag(&self) -> Vec<Lag> {
        Vec::new()
    }

    /// What the source waits for and cannot read without, such as "group `orders` to share its partitions out": it stands
    /// behind "waiting for" in the report, and stays the same text for as long as the source waits. Not that there is nothing
    /// to read. A job that waits is not ready, and after a while not alive ([`Health`](crate::Health)). Called from whichever
    /// thread asks; must not block.
    fn waiting(&self) -> Option<String> {
        None
    }

    /// How many records wait for a poll, where they are fed by the program; [`TestRun`](crate::TestRun) waits until they are
    /// read.
    fn unread(&self) -> u64 {
        0
    }

    /// Once, at the end of a run, after all readers are gone: releases what is shared with other threads.
    fn close(&self, last: Last) {
        let _ = last;
    }
}

/// What ends with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// The job as well.
    Job,
    /// The run alone: another of the same job follows, unless somebody stops it before.
    Run,
}

/// Whether something is done or its answer is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is done.
    Done,
    /// The answer comes through `serve`.
    Pending,
}

/// What `serve` may report.
#[derive(Debug)]
#[non_exhaustive]
pub enum Change {
    /// Partitions are ours now; their readers have them.
    Given(Vec<Partition>),
    /// Partitions are wanted back: what was released of them is acknowledged and committed first.
    Taken(Taken),
    /// Partitions are gone: nothing of them can be committed any more.
    Lost(Taken),
    /// The commit of this checkpoint, and of those before it, was answered or replaced by a newer one.
    Committed(CheckpointId),
}

/// Partitions that are taken from us; consumed by [`SharedSource::give_back`], so it happens once.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken(Vec<Partition>);

impl Taken {
    /// These partitions are to be given back.
    pub fn new(partitions: Vec<Partition>) -> Taken {
        Taken(partitions)
    }

    /// The partitions.
    pub fn partitions(&self) -> &[Partition] {
        &self.0
    }
}

/// How far behind the end of its log a partition is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Lag {
    /// The partition's name.
    pub partition: String,
    /// The next offset to read.
    pub next: u64,
    /// The end of the log, as last heard.
    pub end: u64,
    /// Where a bounded run began, so that its progress can be told.
    pub start: u64,
}

impl Lag {
    /// A partition's place between two ends.
    pub fn new(partition: &Partition, start: Offset, next: Offset, end: Offset) -> Lag {
        Lag { partition: partition.name().to_owned(), next: next.0, end: end.0.max(next.0), start: start.0 }
    }

    /// Offsets still to be read.
    pub fn records(&self) -> u64 {
        self.end - self.next
    }
}

/// The half of a source that each worker has; it stays on its worker's thread.
pub trait Reader {
    /// What a record is.
    type Item;

    /// Adds what is there to the batch: records of one partition, at most `room`, and where the partition stands after
    /// them ([`Batch::read_to`]). When they waited for this poll, as in a queue that a thread fills, it also says since when
    /// ([`Batch::arrived`]). Must not block. Called again at once after [`Polled::More`], after a wake, and at
    /// least every 200 ms.
    ///
    /// # Errors
    /// An error ends the run.
    fn poll(&mut self, batch: &mut Batch<Self::Item>, room: Room) -> Result<Polled>;

    /// Whether the next poll would find [`Polled::Ended`], as far as can be known without it: so a job whose source is held back
    /// by a limit, or paused, ends with its last record. By default nothing is known before a poll.
    fn has_ended(&self) -> bool {
        false
    }

    /// These partitions are no longer ours: nothing of them is returned until they are given again.
    fn forget(&mut self, partitions: &[Partition]) {
        let _ = partitions;
    }

    /// The job stops, and says so once. What was read and not released is dropped when a later run reads it again; what
    /// cannot be read again, and what is still there of it, goes out as the last batch.
    fn stop(&mut self) -> AtStop {
        AtStop::ReadAgain
    }
}

/// What becomes of unreleased input when a job stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStop {
    /// A later run reads it again.
    ReadAgain,
    /// Nobody can: it is polled until [`Polled::Idle`] or [`Polled::Ended`], and released.
    Drain,
}

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// There is more to read now.
    More,
    /// Nothing more now; the wake says when.
    Idle,
    /// Nothing more ever.
    Ended,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(Partition::name).collect();
        f.write_str(&names.join(", "))
    }
}

/// A source that needs nothing shared.
impl SharedSource for () {}
