//! What operators see of the epochs: which one is open, and what the ticker wants of them. One per run, shared by all
//! of its workers, so that they cut together. The ticker (`epoch/ticker`) writes it; operators read it at each step
//! and leave a note when there is a reason to go on.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};

use crate::io::Wake;
use crate::words::{CheckpointId, Clock, Epoch, Moment, lock};

/// The shared state of a run's epochs.
#[derive(Debug)]
pub(crate) struct Pulse {
    /// Sources belong at this epoch: whatever they hold below it, they close.
    open: AtomicU64,
    /// What arrived until this moment is released before the source moves to `open`; matters to micro-batches.
    until: AtomicU64,
    /// When a source last left an epoch behind.
    moved: AtomicU64,
    /// A source closes no checkpoint above this one.
    closable: AtomicU64,
    /// Something was admitted or queued since the ticker looked.
    dirty: AtomicBool,
    /// A source has used up its memory and would like a boundary, or a batch, now.
    hurry: AtomicBool,
    stopping: AtomicBool,
    sources: AtomicUsize,
    /// The ticker waits for a reason, so whoever has one rings.
    asleep: AtomicBool,
    bell: Mutex<bool>,
    rung: Condvar,
    ingests: Mutex<Vec<Wake>>,
    /// Of what waits while a writer has no room, beside the sources.
    for_room: Mutex<Vec<Wake>>,
    egresses: Mutex<Vec<Wake>>,
}

impl Pulse {
    /// The first epoch is open.
    pub(crate) fn new() -> Pulse {
        Pulse {
            open: AtomicU64::new(Epoch::FIRST.as_raw()),
            until: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            closable: AtomicU64::new(Epoch::FIRST.checkpoint().number()),
            dirty: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            sources: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            bell: Mutex::new(false),
            rung: Condvar::new(),
            ingests: Mutex::default(),
            for_room: Mutex::default(),
            egresses: Mutex::default(),
        }
    }

    // What operators ask and say.

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch::from_raw(self.open.load(SeqCst))
    }

    pub(crate) fn until(&self) -> Moment {
        Moment::from_nanos(self.until.load(SeqCst))
    }

    pub(crate) fn note_moved(&self, now: Moment) {
        self.moved.fetch_max(now.as_nanos(), SeqCst);
    }

    /// When a source last left an epoch behind.
    pub(crate) fn moved(&self) -> Moment {
        Moment::from_nanos(self.moved.load(SeqCst))
    }

    pub(crate) fn may_close(&self, checkpoint: CheckpointId) -> bool {
        checkpoint.number() <= self.closable.load(SeqCst)
    }

    /// Whether every source has left the checkpoint behind, or ended: then a record in flight is all it waits for.
    pub(crate) fn is_cut(&self, checkpoint: CheckpointId) -> bool {
        self.epoch().checkpoint() > checkpoint || self.sources.load(SeqCst) == 0
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// There is a reason for a next epoch: something was admitted, or waits for a tick.
    pub(crate) fn note_records(&self) {
        if !self.dirty.load(SeqCst) && !self.dirty.swap(true, SeqCst) && self.asleep.load(SeqCst) {
            self.ring();
        }
    }

    /// Memory is used up; a boundary would free some, or release what waits.
    pub(crate) fn note_starved(&self) {
        if !self.hurry.swap(true, SeqCst) {
            self.ring();
        }
    }

    pub(crate) fn source_opened(&self, wake: Wake) {
        self.sources.fetch_add(1, SeqCst);
        lock(&self.ingests).push(wake);
    }

    /// Wakes this when a writer has room again.
    pub(crate) fn wakes_for_room(&self, wake: Wake) {
        lock(&self.for_room).push(wake);
    }

    /// A writer has room again: sources and all else that waited for it go on.
    pub(crate) fn have_room(&self) {
        self.wake_ingests();
        lock(&self.for_room).iter().for_each(Wake::wake);
    }

    pub(crate) fn source_ended(&self) {
        if self.sources.fetch_sub(1, SeqCst) == 1 {
            self.wake_egresses();
            self.ring();
        }
    }

    pub(crate) fn egress_opened(&self, wake: Wake) {
        lock(&self.egresses).push(wake);
    }

    // What the ticker and the control thread do.

    /// Moves the sources to `epoch`, once what arrived until `until` is released.
    pub(crate) fn open(&self, epoch: Epoch, until: Moment) {
        let boundary = epoch.checkpoint() > self.epoch().checkpoint();
        // In this order: whoever sees the epoch sees its moment.
        self.until.store(until.as_nanos(), SeqCst);
        self.open.store(epoch.as_raw(), SeqCst);
        self.wake_ingests();
        if boundary {
            self.wake_egresses();
        }
    }

    pub(crate) fn allow_close(&self, checkpoint: CheckpointId) {
        if self.closable.fetch_max(checkpoint.number(), SeqCst) < checkpoint.number() {
            self.wake_ingests();
        }
    }

    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake_ingests();
    }

    pub(crate) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, SeqCst)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(SeqCst)
    }

    pub(crate) fn take_hurry(&self) -> bool {
        self.hurry.swap(false, SeqCst)
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.hurry.load(SeqCst)
    }

    /// Makes the ticker look.
    pub(crate) fn ring(&self) {
        *lock(&self.bell) = true;
        self.rung.notify_all();
    }

    /// Says, *before* the ticker looks for the last time, whether it wants to hear of the next reason at once.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, SeqCst);
    }

    /// Waits until somebody rings or the clock reaches `until`.
    pub(crate) fn wait(&self, clock: &Clock, until: Option<Moment>) {
        let mut bell = lock(&self.bell);
        if !*bell {
            bell = clock.wait(bell, &self.rung, until);
        }
        *bell = false;
    }

    pub(crate) fn wake_ingests(&self) {
        lock(&self.ingests).iter().for_each(Wake::wake);
    }

    fn wake_egresses(&self) {
        lock(&self.egresses).iter().for_each(Wake::wake);
    }
}
