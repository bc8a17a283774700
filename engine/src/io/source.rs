//! What a source connector implements: a description, a per-process half, and a reader per worker.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::words::{
    ByteSize, CheckpointId, Clock, Error, ErrorKind, Offset, Offsets, Partition, ReadBatch, Result, Room, Wake, Worker,
    lock,
};

/// Describes an input.
///
/// The pipeline function runs twice on a planning thread: once to see what it builds, and once to
/// connect it, which calls [`connect`](Source::connect). Then it runs once per worker, which calls
/// [`reader`](Source::reader). Therefore `Self` needs neither `Send` nor `'static`, and `&S` is a
/// source when `S` is a source that is `Clone`.
pub trait Source {
    /// The type of a record.
    type Item: 'static;
    /// The per-process half.
    type Shared: SharedSource;
    /// The per-worker half.
    type Reader: Reader<Item = Self::Item> + 'static;

    /// The name of its operator when the pipeline does not set one, such as `kafka orders`.
    fn name(&self) -> String;

    /// Whether another run can read its records again from an earlier position. A channel and a
    /// socket cannot do that.
    fn can_be_read_again(&self) -> bool {
        true
    }

    /// Connects to the other side and fixes where reading starts and ends. Called once per run, on
    /// the planning thread; it may block. Everything that can be known to be wrong is reported as
    /// an error here.
    ///
    /// # Errors
    /// When an option is wrong, or the other side is unreachable, refuses, or does not have what
    /// was asked for.
    fn connect(self, open: OpenSource) -> Result<Self::Shared>;

    /// Makes the reader of one worker; `wake` wakes its operator.
    ///
    /// # Errors
    /// When the reader cannot be created.
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

/// What a source is given when it connects.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OpenSource {
    /// The job's name. It is also the group id where one is needed and none was set.
    pub job: String,
    /// The number of workers, each of which gets a reader.
    pub workers: usize,
    /// Memory for records that are fetched and not yet polled.
    pub prefetch: ByteSize,
    /// What the run reads.
    pub extent: Extent,
    /// Where reading resumes.
    pub resume: Resume,
    /// Whether the job keeps state, or checkpoints. Then this run must read all partitions: what
    /// another run reads would be missing in its state.
    pub keeps_state: bool,
    /// Whether checkpoints are the memory of the job. Then the source is told what is committed for
    /// others to see, at most once a second: see [`Resume::Checkpoint`].
    pub is_checkpointed: bool,
    /// What the runs of a job with a directory of checkpoints have in common, also those of other
    /// processes. A lock lets only one of them run at a time, so a mark that an earlier one has
    /// left is that of a run that is over.
    pub identity: Option<String>,
    /// Whether the stream has a watermark, and readers are asked for
    /// [`assigned`](Reader::assigned) partitions and whether they are
    /// [at their end](Reader::is_at_end).
    pub has_watermark: bool,
    /// Whether the source is asked when its records happened, by its own knowledge: readers then
    /// add records with their times ([`ReadBatch::push_at`]). A record without one has the smallest
    /// [`EventTime`](crate::EventTime) there is.
    pub wants_times: bool,
    /// The job's clock.
    pub clock: Clock,
    /// Wakes the control thread, which then calls [`SharedSource::serve`].
    pub wake: Wake,
    /// What the sources of this run have claimed.
    pub(crate) claims: Claims,
}

/// What a run reads of its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Extent {
    /// All records, including those to come, until the job is stopped.
    Endless,
    /// The records that exist now.
    Available,
    /// As many of the records that exist now as the engine takes, at the times when it takes them:
    /// a schedule of the source's own does not apply. [`Reader::unassign`] tells a reader that the
    /// engine has enough of a partition. The run must not change anything in what the source reads.
    Sample,
}

/// Where a source resumes, and which positions count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resume {
    /// The source's own memory counts, such as the committed offsets of a consumer group, and the
    /// source is told what is committed. These are the positions that an earlier run of this job in
    /// this process committed: a partition that the source's own memory does not know resumes
    /// there.
    OwnMemory(Offsets),
    /// Exactly these positions count, whatever the source remembers. A partition that is not among
    /// them begins where it would if it had never been read. The run leaves no trace: nothing is
    /// committed.
    Exactly(Offsets),
    /// Exactly these positions count, as with [`Exactly`](Resume::Exactly): they are those of a
    /// checkpoint, which the state of the job reflects. The source is told what is committed, for
    /// others to see; nothing depends on it, so what keeps it from publishing that is logged and is
    /// no error.
    Checkpoint(Offsets),
}

impl Resume {
    /// The position at which a partition resumes, if one is known.
    pub fn position(&self, partition: &Partition) -> Option<Offset> {
        self.offsets().get(partition)
    }

    /// All positions that are known.
    pub fn offsets(&self) -> &Offsets {
        match self {
            Resume::OwnMemory(offsets) | Resume::Exactly(offsets) | Resume::Checkpoint(offsets) => offsets,
        }
    }

    /// Whether the source's own memory counts.
    pub fn is_own_memory(&self) -> bool {
        matches!(self, Resume::OwnMemory(_))
    }

    /// Whether the run must leave no trace in what the source reads.
    pub fn leaves_no_trace(&self) -> bool {
        matches!(self, Resume::Exactly(_))
    }
}

/// What the sources of a run read. No two of them may read the same, because each would get a part
/// of the records. A source that learns later what it reads keeps this; clones share the claims.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// What is claimed, and the index of the source that claimed it.
    claimed: Arc<Mutex<BTreeMap<String, u64>>>,
    /// The index of the source in its run.
    source: u64,
}

impl Claims {
    /// The claims of another source of the same run.
    pub(crate) fn of_source(&self, index: usize) -> Claims {
        Claims { claimed: Arc::clone(&self.claimed), source: index as u64 }
    }

    /// Claims all of these. Each is described as it appears in the message "two sources of this job
    /// read …". A source may claim the same again.
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

    /// Returns a handle for claims that are made later.
    pub fn claims(&self) -> Claims {
        self.claims.clone()
    }
}

/// The per-process half of a source. All methods but [`lag`](SharedSource::lag),
/// [`waiting`](SharedSource::waiting) and [`unread`](SharedSource::unread) are called on the
/// control thread only, and must not block.
pub trait SharedSource: Send + Sync + 'static {
    /// Called once all workers have their readers. Nothing may be fetched before this.
    ///
    /// # Errors
    /// When reading cannot begin.
    fn begin(&self) -> Result<()> {
        Ok(())
    }

    /// Serves the client's events: assigned and revoked partitions, answers to commits, errors.
    /// Called after a wake and at least every 200 ms for as long as the source lives.
    ///
    /// # Errors
    /// An error ends the run.
    fn serve(&self) -> Result<Vec<SourceEvent>> {
        Ok(Vec::new())
    }

    /// Publishes how far this source's records are done, in the order of the checkpoints. The
    /// answer may come later, as [`SourceEvent::Committed`]. By default the commit is done at once,
    /// for a source that has nowhere to publish it.
    ///
    /// # Errors
    /// An error ends the run.
    fn commit(&self, checkpoint: CheckpointId, offsets: &Offsets) -> Result<Committed> {
        let _ = (checkpoint, offsets);
        Ok(Committed::Now)
    }

    /// Where this run began, for a later run of the same job that finds nothing committed. Without
    /// it, a start at the latest record would mean a later record in that run.
    fn started_at(&self) -> Offsets {
        Offsets::new()
    }

    /// Unassigns partitions: those of a [`SourceEvent::Revoked`] are drained and committed by now,
    /// those of a [`SourceEvent::Lost`] are dropped.
    ///
    /// # Errors
    /// An error ends the run.
    fn unassign(&self, revoked: Revoked) -> Result<()> {
        drop(revoked);
        Ok(())
    }

    /// How far each partition is behind its end, as far as is known without asking the other side.
    /// Called on any thread that asks for a report.
    fn lag(&self) -> Vec<Lag> {
        Vec::new()
    }

    /// What the source waits for and cannot read without, such as "group `orders` to assign
    /// partitions": the report shows it after "waiting for". The text stays the same for as long as
    /// the source waits. Having nothing to read does not count as waiting. A job that waits is not
    /// ready, and after a while not alive ([`Health`](crate::Health)). Called on any thread; must
    /// not block.
    fn waiting(&self) -> Option<String> {
        None
    }

    /// The number of records that wait for a poll, for a source that the program feeds;
    /// [`TestRun`](crate::TestRun) waits until they are read.
    fn unread(&self) -> u64 {
        0
    }

    /// Called once, at the end of a run, after all readers are dropped: releases what is shared
    /// with other threads.
    fn close(&self, closing: Closing) {
        let _ = closing;
    }
}

/// What ends with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Closing {
    /// The job too.
    Job,
    /// Only the run: another run of the same job follows, unless the program stops the job first.
    Run,
}

/// Whether a commit is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
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
    /// Partitions were assigned to this process; their readers have them.
    Assigned(Vec<Partition>),
    /// Partitions are revoked: the engine first waits until what was released of them is
    /// acknowledged and committed.
    Revoked(Revoked),
    /// Partitions are lost: nothing of them can be committed any more. They may be revoked already
    /// and not be unassigned yet; then they are unassigned once, for both.
    Lost(Revoked),
    /// The commit of this checkpoint, and of those before it, was answered, or replaced by a newer
    /// commit.
    Committed(CheckpointId),
}

/// Partitions that were revoked from this process or lost by it. [`SharedSource::unassign`]
/// consumes this, so they are unassigned once.
#[derive(Debug, PartialEq, Eq)]
pub struct Revoked(Vec<Partition>);

impl Revoked {
    /// These partitions are revoked or lost.
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

/// How far a partition is behind the end of its log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[non_exhaustive]
pub struct Lag {
    /// The partition's name.
    pub partition: String,
    /// The next offset to read.
    pub next: u64,
    /// The end of the log, as last reported.
    pub end: u64,
    /// Where a bounded run began; its progress counts from here.
    pub start: u64,
}

impl Lag {
    /// The lag of a partition at `next`, between `start` and `end`.
    pub fn new(partition: &Partition, start: Offset, next: Offset, end: Offset) -> Lag {
        Lag { partition: partition.name().to_owned(), next: next.0, end: end.0.max(next.0), start: start.0 }
    }

    /// The number of offsets that are still to be read.
    pub fn records(&self) -> u64 {
        self.end - self.next
    }
}

/// The per-worker half of a source; it stays on its worker's thread.
pub trait Reader {
    /// The type of a record.
    type Item;

    /// Adds the available records of one partition to the batch, at most `room`, and sets the
    /// partition's position after them ([`ReadBatch::read_to`]). If the records waited for this
    /// poll, as in a queue that a thread fills, it also sets since when ([`ReadBatch::arrived`]).
    /// Must not block. Called again at once after [`Polled::More`], after a wake, and at least
    /// every 200 ms.
    ///
    /// # Errors
    /// An error ends the run.
    fn poll(&mut self, batch: &mut ReadBatch<Self::Item>, room: Room) -> Result<Polled>;

    /// What the next poll would report as [ended](Polled::Ended), if that is known without polling.
    /// It lets a job whose source is paused, or held back by a limit, end with its last record. By
    /// default nothing is known before a poll.
    fn has_ended(&self) -> Option<End> {
        None
    }

    /// The partitions that this reader reads, or is to read, when they have changed since this was
    /// last called; called where the stream has a watermark. Until the first record of a partition
    /// is there it holds back all windows, for it may have any time. By default the reader does not
    /// say; then a partition counts from its first record on.
    fn assigned(&mut self) -> Option<Vec<Partition>> {
        None
    }

    /// Whether polls have returned all records that the partition has at the moment. A partition
    /// that is silent for a while holds back no window, but only if this is so: it may have records
    /// that were not read yet. `None` if the reader cannot tell for a partition: then it is so when
    /// its last poll was [`Polled::Idle`].
    fn is_at_end(&self, partition: &Partition) -> Option<bool> {
        let _ = partition;
        None
    }

    /// These partitions are no longer assigned to this reader: it returns no records of them until
    /// they are assigned again.
    fn unassign(&mut self, partitions: &[Partition]) {
        let _ = partitions;
    }

    /// Called once, when the job stops. Records that were read and not released are dropped if a
    /// later run can read them again. Records that cannot be read again, including those still to
    /// be polled, are the last batch.
    fn stop(&mut self) -> AtStop {
        AtStop::ReadAgain
    }
}

/// What happens to unreleased input when a job stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AtStop {
    /// A later run reads it again.
    ReadAgain,
    /// It cannot be read again: the reader is polled until [`Polled::Idle`] or [`Polled::Ended`],
    /// and the records are released.
    Drain,
}

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Polled {
    /// There is more to read now.
    More,
    /// There is nothing more now; the reader's wake tells when there is.
    Idle,
    /// There is nothing more in this run.
    Ended(End),
}

/// What has ended when a reader has no more records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum End {
    /// Time itself: no later run will read more of this source either, as with rows, a complete set
    /// of files, or a channel without senders. What waits for event time is final.
    OfTime,
    /// Only this run: it read what existed at its start, up to an end, or until a stop. A later run
    /// may read more, so nothing becomes final.
    OfRun,
}

/// For a source that shares nothing.
impl SharedSource for () {}
