//! What operators see of the epochs: which one is open, what is committed, and what the ticker asks
//! of them. There is one per run, shared by all of its workers, so that they cut together. It is
//! the notice board between three parties:
//!
//! ```text
//! ticker          writes  open, until           and wakes the sources, at a boundary the egresses
//! operators       note    records, starvation   reasons for the next epoch, which wake the ticker
//!                 read    open, until, committed
//! control thread  writes  committed, stopping
//! ```
//!
//! Every write comes before the wake or the ring that it causes, and every sleeper looks after it
//! has listened. So it either sees the write or is woken again ([`Wake`], [`Bell`]). These are
//! stores followed by loads of other fields, hence SeqCst throughout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard};

use crate::words::{Bell, CheckpointId, Clock, Epoch, EventTime, Moment, Wake, lock};

use super::fault::Node;

/// The shared state of a run's epochs.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// The first checkpoint of this run.
    first: CheckpointId,
    /// The open epoch: sources close everything before it.
    open: AtomicU64,
    /// For micro-batches: what arrived until this moment is released before a source moves to
    /// `open`.
    until: AtomicU64,
    /// The latest moment at which a source left an epoch; only measured.
    moved: AtomicU64,
    /// Everything up to this checkpoint is committed.
    committed: AtomicU64,
    /// The number of commits that sources have answered; only reported.
    commits: AtomicU64,
    /// Wakes the ticker. Its reason: something was admitted or queued since the ticker last looked.
    bell: Bell,
    /// When the first of several reasons was noted.
    noted: AtomicU64,
    clock: Clock,
    /// A source has used up its memory: a boundary, or a batch, would help now.
    hurry: AtomicBool,
    stopping: AtomicBool,
    /// The number of sources that have not ended.
    sources: AtomicUsize,
    /// The number of open calls for which no checkpoint waits.
    calls: AtomicUsize,
    ingests: Mutex<Vec<Wake>>,
    /// Stages that wait while a writer has no room.
    for_room: Mutex<Vec<Wake>>,
    /// Egresses, and what else is woken by a boundary.
    egresses: Mutex<Vec<Wake>>,
    /// What sources and operators say of event time.
    times: Mutex<Times>,
    /// Event time has come to where an operator waits for it: the next epoch is to open at once.
    due: AtomicBool,
    /// A source whose event time is that of the clock is to hear where operators wait for it.
    follows_clock: AtomicBool,
    /// Operators that wait for a time to come.
    alarms: Mutex<BTreeMap<Moment, Vec<Wake>>>,
}

/// How far event time has come, and where it is waited for, by node and worker.
#[derive(Debug, Default)]
struct Times {
    /// The least mark of each source.
    marks: BTreeMap<(Node, usize), EventTime>,
    /// When the first thing is due that an operator waits with.
    dues: BTreeMap<(Node, usize), EventTime>,
    /// Where operators hold event time back for records that they have.
    holds: BTreeMap<(Node, usize), EventTime>,
    /// The sources whose event time is that of the clock.
    clocks: BTreeSet<(Node, usize)>,
}

impl Times {
    fn is_due(&self) -> bool {
        // While an operator holds event time back, an epoch more moves nothing behind it. What is
        // due elsewhere waits for the next ordinary epoch.
        let least = self.marks.values().chain(self.holds.values()).min();
        self.dues.values().min().is_some_and(|due| least.is_some_and(|least| least >= due))
    }

    /// Whether something is due that a source has not seen yet, at this time of the clock.
    fn is_due_at(&self, now: EventTime) -> bool {
        let marks = self.marks.iter().map(|(own, mark)| if self.clocks.contains(own) { now.max(*mark) } else { *mark });
        let due = self.dues.values().min().filter(|_| !self.clocks.is_empty());
        due.is_some_and(|due| marks.min().is_some_and(|least| least >= *due))
    }
}

impl Pulse {
    /// The pulse of a run that begins with this checkpoint, whose first epoch is open.
    pub(crate) fn new(first: CheckpointId, clock: &Clock) -> Pulse {
        Pulse {
            first,
            open: AtomicU64::new(first.opening_epoch().as_raw()),
            until: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            committed: AtomicU64::new(first.previous().number()),
            commits: AtomicU64::new(0),
            bell: Bell::default(),
            noted: AtomicU64::new(0),
            clock: clock.clone(),
            hurry: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            sources: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            ingests: Mutex::default(),
            for_room: Mutex::default(),
            egresses: Mutex::default(),
            times: Mutex::default(),
            due: AtomicBool::new(false),
            follows_clock: AtomicBool::new(false),
            alarms: Mutex::default(),
        }
    }

    /// The first checkpoint of this run.
    pub(crate) fn first(&self) -> CheckpointId {
        self.first
    }

    // For operators.

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch::from_raw(self.open.load(SeqCst))
    }

    pub(crate) fn until(&self) -> Moment {
        Moment::from_nanos(self.until.load(SeqCst))
    }

    pub(crate) fn note_moved(&self, now: Moment) {
        self.moved.fetch_max(now.as_nanos(), SeqCst);
    }

    /// When a source last left an epoch.
    pub(crate) fn moved(&self) -> Moment {
        Moment::from_nanos(self.moved.load(SeqCst))
    }

    /// Whether a source may close the checkpoint: the one before it must be committed. Under
    /// `Pace::Continuous` the ticker has checked that before it opened the next one. A micro-batch
    /// is cut while the one before it is still being committed, and its sources wait.
    pub(crate) fn may_close(&self, checkpoint: CheckpointId) -> bool {
        checkpoint <= self.committed().next()
    }

    /// Whether every source has left the checkpoint or ended, so that it waits only for its records
    /// in flight.
    pub(crate) fn is_cut(&self, checkpoint: CheckpointId) -> bool {
        self.epoch().checkpoint() > checkpoint || self.sources.load(SeqCst) == 0
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Notes a reason for the next epoch: something was admitted, or waits for a tick.
    pub(crate) fn note_records(&self) {
        if !self.bell.has_reason() {
            // Before the reason: the ticker, which sees that, sees this.
            self.noted.store(self.clock.now().as_nanos(), SeqCst);
        }
        self.bell.note();
    }

    /// When the reason for the next epoch was noted.
    pub(crate) fn noted(&self) -> Moment {
        Moment::from_nanos(self.noted.load(SeqCst))
    }

    /// Notes that memory is used up: a boundary would free some, or would release what waits.
    pub(crate) fn note_starved(&self) {
        if !self.hurry.swap(true, SeqCst) {
            self.bell.ring();
        }
    }

    pub(crate) fn source_opened(&self, wake: Wake) {
        self.sources.fetch_add(1, SeqCst);
        lock(&self.ingests).push(wake);
    }

    /// Adds a stage to wake when a writer has room again.
    pub(crate) fn wakes_for_room(&self, wake: Wake) {
        lock(&self.for_room).push(wake);
    }

    /// A writer has room again: sources and stages that waited for it go on.
    pub(crate) fn have_room(&self) {
        self.wake_ingests();
        lock(&self.for_room).iter().for_each(Wake::wake);
    }

    /// Wakes an operator when the clock has reached that moment.
    pub(crate) fn wake_at(&self, moment: Moment, wake: Wake) {
        let mut alarms = lock(&self.alarms);
        let is_first = alarms.first_key_value().is_none_or(|(first, _)| moment < *first);
        alarms.entry(moment).or_default().push(wake);
        drop(alarms);
        if is_first {
            // The ticker sleeps for longer.
            self.bell.ring();
        }
    }

    /// The least mark of a source on a worker is this now.
    pub(crate) fn note_mark(&self, own: (Node, usize), least: EventTime) {
        let mut times = lock(&self.times);
        times.marks.insert(own, least);
        self.ring_if_due(times);
    }

    /// An operator on a worker waits for this time, or for none.
    pub(crate) fn note_due(&self, own: (Node, usize), due: Option<EventTime>) {
        let mut times = lock(&self.times);
        let before = times.dues.values().min().copied();
        match due {
            Some(due) => drop(times.dues.insert(own, due)),
            None => drop(times.dues.remove(&own)),
        }
        let has_moved = times.dues.values().min().copied() != before;
        self.ring_if_due(times);
        if has_moved && self.follows_clock.load(SeqCst) {
            self.wake_ingests();
        }
    }

    /// The event time of a source is that of the clock.
    pub(crate) fn follows_clock(&self, own: (Node, usize)) {
        lock(&self.times).clocks.insert(own);
        self.follows_clock.store(true, SeqCst);
    }

    /// Whether the event time of a source is that of the clock.
    pub(crate) fn has_clocks(&self) -> bool {
        self.follows_clock.load(SeqCst)
    }

    /// Whether something is due now that sources may not have seen yet: only where event time is
    /// that of the clock.
    pub(crate) fn is_due_by_clock(&self) -> bool {
        self.follows_clock.load(SeqCst) && lock(&self.times).is_due_at(EventTime(self.clock.wall().0))
    }

    /// When the first thing is due that an operator waits with.
    pub(crate) fn least_due(&self) -> Option<EventTime> {
        if !self.follows_clock.load(SeqCst) {
            return None;
        }
        lock(&self.times).dues.values().min().copied()
    }

    /// Whether event time has come to where an operator waits for it.
    pub(crate) fn has_come(&self) -> bool {
        lock(&self.times).is_due()
    }

    /// An operator on a worker holds event time back there, or no more.
    pub(crate) fn note_held(&self, own: (Node, usize), at: Option<EventTime>) {
        let mut times = lock(&self.times);
        match at {
            Some(at) => drop(times.holds.insert(own, at)),
            None => drop(times.holds.remove(&own)),
        }
        self.ring_if_due(times);
    }

    fn ring_if_due(&self, times: MutexGuard<'_, Times>) {
        let is_due = times.is_due();
        drop(times);
        if is_due && !self.due.swap(true, SeqCst) {
            self.bell.ring();
        }
    }

    pub(crate) fn source_ended(&self) {
        if self.sources.fetch_sub(1, SeqCst) == 1 {
            // After the count: an egress that is woken sees that all sources have ended, and one
            // whose last record lands later sees it by itself (`Flight::land`).
            self.wake_egresses();
            self.bell.ring();
        }
    }

    pub(crate) fn egress_opened(&self, wake: Wake) {
        lock(&self.egresses).push(wake);
    }

    /// Adds a stage to wake at a boundary, and when the last source has ended.
    pub(crate) fn wakes_at_cuts(&self, wake: Wake) {
        lock(&self.egresses).push(wake);
    }

    /// Counts calls for which no checkpoint waits.
    pub(crate) fn calls_begin(&self, calls: usize) {
        self.calls.fetch_add(calls, SeqCst);
    }

    /// The answers of such calls were handed on.
    pub(crate) fn calls_end(&self, calls: usize) {
        self.calls.fetch_sub(calls, SeqCst);
    }

    // For the ticker and the control thread.

    /// Moves the sources to `epoch`, once what arrived until `until` is released.
    pub(crate) fn open(&self, epoch: Epoch, until: Moment) {
        let boundary = epoch.checkpoint() > self.epoch().checkpoint();
        // In this order: a source that sees the epoch sees its moment.
        self.until.store(until.as_nanos(), SeqCst);
        self.open.store(epoch.as_raw(), SeqCst);
        self.wake_ingests();
        if boundary {
            // After the epoch: see `Flight::land`.
            self.wake_egresses();
        }
    }

    /// Everything up to the checkpoint is committed, with this many commits in total. Returns
    /// whether that is new.
    pub(crate) fn commit(&self, checkpoint: CheckpointId, commits: u64) -> bool {
        self.commits.store(commits, SeqCst);
        let is_news = self.committed.fetch_max(checkpoint.number(), SeqCst) < checkpoint.number();
        if is_news {
            self.wake_ingests();
        }
        is_news
    }

    /// Everything up to this checkpoint is committed.
    pub(crate) fn committed(&self) -> CheckpointId {
        CheckpointId::new(self.committed.load(SeqCst))
    }

    /// The number of commits that sources have answered.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.load(SeqCst)
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake_ingests();
    }

    /// Takes the reason for the next epoch, if there is one.
    pub(crate) fn take_reason(&self) -> bool {
        self.bell.take()
    }

    pub(crate) fn has_reason(&self) -> bool {
        self.bell.has_reason()
    }

    pub(crate) fn take_hurry(&self) -> bool {
        self.hurry.swap(false, SeqCst)
    }

    /// Whether event time has come to where an operator waits for it.
    pub(crate) fn is_due(&self) -> bool {
        self.due.load(SeqCst)
    }

    /// An epoch opens, and what is due is seen to with it.
    pub(crate) fn take_due(&self) {
        self.due.store(false, SeqCst);
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.hurry.load(SeqCst)
    }

    /// Wakes the operators whose moment has come. Returns when the next one comes.
    pub(crate) fn wake_due(&self, now: Moment) -> Option<Moment> {
        let mut alarms = lock(&self.alarms);
        while let Some(due) = alarms.first_entry().filter(|first| *first.key() <= now) {
            due.remove().iter().for_each(Wake::wake);
        }
        alarms.first_key_value().map(|(next, _)| *next)
    }

    /// The number of open calls for which no checkpoint waits.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// Makes the ticker look.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }

    /// Sets whether the next reason wakes the ticker. The ticker sets it *before* it looks for the
    /// last time.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.bell.set_asleep(asleep);
    }

    /// Waits until the bell rings or the clock reaches `until`.
    pub(crate) fn wait(&self, clock: &Clock, until: Option<Moment>) {
        self.bell.wait(|rung, changed| clock.wait(rung, changed, until));
    }

    pub(crate) fn wake_ingests(&self) {
        lock(&self.ingests).iter().for_each(Wake::wake);
    }

    fn wake_egresses(&self) {
        lock(&self.egresses).iter().for_each(Wake::wake);
    }
}
