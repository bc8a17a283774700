//! What a connector implements to be read: a description, the half that a process has once, and a reader per worker.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::words::{
    ByteSize, CheckpointId, Clock, Error, ErrorKind, Offset, Offsets, Partition, ReadBatch, Result, Room, Wake, Worker,
    lock,
};

/// Describes an input.
///
/// The pipeline function runs twice on a thread of its own: first to see what it builds, then to connect
/// it, where [`connect`](Source::connect) is called. After that it runs once per worker, where
/// [`reader`](Source::reader) is called. Therefore `Self` needs neither `Send` nor `'static`, and `&S` is
/// a source when `S` is one that can be cloned.
pub trait Source {
    /// What a record is.
    type Item: 'static;
    /// The half that a process has once.
    type Shared: SharedSource;
    /// The half that each worker has.
    type Reader: Reader<Item = Self::Item> + 'static;

    /// The name of its operator when the pipeline does not give one, such as `kafka orders`.
    fn name(&self) -> String;

    /// Whether its records can be read again from an earlier position, in another run. A channel and a
    /// socket cannot.
    fn can_be_read_again(&self) -> bool {
        true
    }

    /// Reaches the other side and fixes where reading starts and ends. Called once per run, on the
    /// thread that plans; it may block. What can be known to be wrong is an error here.
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

    fn can_be_read_again(&self) -> bool {
        S::can_be_read_again(self)
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
    /// The number of workers, each of which gets a reader.
    pub workers: usize,
    /// Memory for what is fetched and not yet polled.
    pub prefetch: ByteSize,
    /// What the run is to read.
    pub extent: Extent,
    /// Where to go on.
    pub resume: Resume,
    /// The job's clock.
    pub clock: Clock,
    /// Wakes the control thread, which then calls [`SharedSource::serve`].
    pub wake: Wake,
    /// What the sources of this run have claimed.
    pub(crate) claims: Claims,
}

/// What a run is to read of its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extent {
    /// All records, also those to come, until the job is stopped.
    Endless,
    /// The records that exist now.
    Available,
    /// Of the records that exist now, as many as the engine takes, when it takes them: a schedule of the
    /// source's own does not apply. A reader is told by [`Reader::unassign`] when the engine has enough of
    /// a partition. Nothing that the source reads may be changed.
    Sample,
}

/// Where a source goes on, and which memory counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resume {
    /// The source's own memory counts, such as the committed offsets of a consumer group, and it is
    /// told what is committed. These are the positions that an earlier run of this job in this process
    /// committed: a partition that its own memory does not know goes on there.
    OwnMemory(Offsets),
    /// Exactly these positions count, whatever the source remembers; a partition that is not among them
    /// begins where it would if it had never been read. The run leaves no trace: nothing is committed.
    Exactly(Offsets),
}

impl Resume {
    /// The position at which a partition goes on, if one is known.
    pub fn position(&self, partition: &Partition) -> Option<Offset> {
        self.offsets().get(partition)
    }

    /// All positions that are known.
    pub fn offsets(&self) -> &Offsets {
        match self {
            Resume::OwnMemory(offsets) | Resume::Exactly(offsets) => offsets,
        }
    }

    /// Whether the source's own memory counts.
    pub fn is_own_memory(&self) -> bool {
        matches!(self, Resume::OwnMemory(_))
    }
}

/// What the sources of a run read. No two of them may read the same: each would get a part of the
/// records. For a source that finds out later what it reads; clones are the same.
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
                return Err(Error::new(ErrorKind::Config, doing));
            }
        }
        Ok(())
    }
}

impl OpenSource {
    /// Whether the run ends by itself.
    pub fn is_bounded(&self) -> bool {
        self.extent != Extent::Endless
    }

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
}

/// The half of a source that a process has once. All methods but [`lag`](SharedSource::lag),
/// [`waiting`](SharedSource::waiting) and [`unread`](SharedSource::unread) are called on the control thread
/// only, and must not block.
pub trait SharedSource: Send + Sync + 'static {
    /// After all workers have their readers: only now may anything be fetched.
    ///
    /// # Errors
    /// When reading cannot begin.
    fn begin(&self) -> Result<()> {
        Ok(())
    }

    /// Serves the client's events: changes of partitions, answers to commits, errors. Called after a wake
    /// and at least every 200 ms for as long as the source lives.
    ///
    /// # Errors
    /// An error ends the run.
    fn serve(&self) -> Result<Vec<SourceEvent>> {
        Ok(Vec::new())
    }

    /// Publishes how far this source's records are done, in the order of the checkpoints. The answer may
    /// come later, as [`SourceEvent::Committed`]. By default it is done at once, for a source that has
    /// nowhere to publish it.
    ///
    /// # Errors
    /// An error ends the run.
    fn commit(&self, checkpoint: CheckpointId, offsets: &Offsets) -> Result<Committed> {
        let _ = (checkpoint, offsets);
        Ok(Committed::Now)
    }

    /// Where this run began, for a later run of the same job that finds nothing committed: without it, a
    /// start at the latest record would be a later one then.
    fn started_at(&self) -> Offsets {
        Offsets::new()
    }

    /// The partitions of a [`SourceEvent::Revoked`] are drained and committed, or those of a
    /// [`SourceEvent::Lost`] are dropped: they can be unassigned now.
    ///
    /// # Errors
    /// An error ends the run.
    fn unassign(&self, revoked: Revoked) -> Result<()> {
        drop(revoked);
        Ok(())
    }

    /// How far behind its end each partition is, as far as is known without asking the other side. Called
    /// on any thread that asks for a report.
    fn lag(&self) -> Vec<Lag> {
        Vec::new()
    }

    /// What the source waits for and cannot read without, such as "group `orders` to assign partitions":
    /// the report shows it after "waiting for". It stays the same text for as long as the source waits.
    /// That there is nothing to read is no such thing. A job that waits is not ready, and after a while
    /// not alive ([`Health`](crate::Health)). Called on any thread; must not block.
    fn waiting(&self) -> Option<String> {
        None
    }

    /// The number of records that wait for a poll, where the program feeds them;
    /// [`TestRun`](crate::TestRun) waits until they are read.
    fn unread(&self) -> u64 {
        0
    }

    /// Called once, at the end of a run, after all readers are gone: releases what is shared with other
    /// threads.
    fn close(&self, closing: Closing) {
        let _ = closing;
    }
}

/// What ends with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The job as well.
    Job,
    /// The run alone: another one of the same job follows, unless the program stops the job before.
    Run,
}

/// Whether a commit is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// It is done.
    Now,
    /// The answer comes through `serve`.
    Later,
}

/// What [`SharedSource::serve`] may report.
#[derive(Debug)]
#[non_exhaustive]
pub enum SourceEvent {
    /// Partitions are assigned to this process; their readers have them.
    Assigned(Vec<Partition>),
    /// Partitions are revoked: what was released of them is acknowledged and committed first.
    Revoked(Revoked),
    /// Partitions are lost: nothing of them can be committed any more.
    Lost(Revoked),
    /// The commit of this checkpoint, and of those before it, was answered or replaced by a newer one.
    Committed(CheckpointId),
}

/// Partitions that are taken from this process; consumed by [`SharedSource::unassign`], so that happens
/// once.
#[derive(Debug, PartialEq, Eq)]
pub struct Revoked(Vec<Partition>);

impl Revoked {
    /// These partitions are taken.
    pub fn new(partitions: Vec<Partition>) -> Revoked {
        Revoked(partitions)
    }

    /// The partitions.
    pub fn partitions(&self) -> &[Partition] {
        &self.0
    }
}

impl fmt::Display for Revoked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(Partition::name).collect();
        f.write_str(&names.join(", "))
    }
}

/// How far behind the end of its log a partition is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Lag {
    /// The partition's name.
    pub partition: String,
    /// The next offset to read.
    pub next: u64,
    /// The end of the log, as last reported.
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

    /// Adds what is there to the batch: records of one partition, at most `room`, and where the
    /// partition stands after them ([`ReadBatch::read_to`]). When they waited for this poll, as in a queue
    /// that a thread fills, it also sets since when ([`ReadBatch::arrived`]). Must not block. Called again
    /// at once after [`Polled::More`], after a wake, and at least every 200 ms.
    ///
    /// # Errors
    /// An error ends the run.
    fn poll(&mut self, batch: &mut ReadBatch<Self::Item>, room: Room) -> Result<Polled>;

    /// What the next poll would find to have [ended](Polled::Ended), as far as is known without it: so a
    /// job whose source is paused, or held back by a limit, ends with its last record. By default nothing
    /// is known before a poll.
    fn has_ended(&self) -> Option<End> {
        None
    }

    /// These partitions are no longer assigned to this reader: it returns nothing of them until they are
    /// assigned again.
    fn unassign(&mut self, partitions: &[Partition]) {
        let _ = partitions;
    }

    /// The job stops; called once. What was read and not released is dropped when a later run can read it
    /// again. Records that cannot be read again, also those still to be polled, are the last batch.
    fn stop(&mut self) -> AtStop {
        AtStop::ReadAgain
    }
}

/// What becomes of unreleased input when a job stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStop {
    /// A later run reads it again.
    ReadAgain,
    /// It cannot be read again: it is polled until [`Polled::Idle`] or [`Polled::Ended`], and released.
    Drain,
}

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// There is more to read now.
    More,
    /// There is nothing more now; the wake says when.
    Idle,
    /// There is nothing more in this run.
    Ended(End),
}

/// What has ended when a reader has no more records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum End {
    /// Time: no later run will read more of this source either, as with rows, files that are all there,
    /// or a channel without senders. What waits for event time is final.
    OfTime,
    /// Only this run: it was to read what existed at its start, up to an end, or until a stop. A later
    /// run may read more, so nothing becomes final.
    OfRun,
}

/// A source that needs nothing shared.
impl SharedSource for () {}
