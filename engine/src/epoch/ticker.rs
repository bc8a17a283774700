//! Opens epochs and cuts checkpoints, for all workers of a process together. This is the first step
//! of an epoch; in the next one the sources close it (`operator/ingest`).
//!
//! The next epoch is opened only for a reason, so an idle job opens none. A checkpoint boundary
//! waits only for the commit of the checkpoint before it: at most one checkpoint is between cut and
//! commit, and when the commit takes long the interval stretches.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::operator::pulse::Pulse;
use crate::words::{CheckpointId, Clock, Epoch, Latency, LatencySnapshot, Moment, lock};

/// How epochs close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Records are released at once; epochs close behind them.
    Continuous { checkpoint_every: Duration },
    /// Records are released at ticks; a batch is an epoch and a checkpoint.
    MicroBatch { interval: Duration },
}

/// No operator waits for an epoch to close, so epochs may be long: at 10 ms, epochs alone took a
/// twentieth of the CPU of a job that copies a thousand records a second.
const EPOCH_EVERY: Duration = Duration::from_millis(100);
/// What is due by event time opens the next epoch at once, but not sooner after the last.
const DUE_APART: Duration = Duration::from_millis(1);
/// The next epoch waits while this many are on their way through the operators: where these are
/// slower than epochs open, more of them would only be more progress messages.
const EPOCHS_UNDER_WAY: u64 = 4;

/// Decides when an epoch opens. Its thread looks when a time has come or the bell rings; a worker
/// that has seen a micro-batch through looks itself.
pub(crate) struct Ticker {
    pace: Pace,
    clock: Clock,
    pulse: Arc<Pulse>,
    /// Whether a sink frees memory only at commits, so that running out of memory is a reason to
    /// cut.
    frees_at_commit: bool,
    /// An epoch is due and waits for those under way.
    held_back: AtomicBool,
    /// Everything before this epoch has reached the writers. Workers note it whenever their
    /// frontier moves, so it needs no lock.
    through: AtomicU64,
    epochs: AtomicU64,
    durations: Mutex<Durations>,
    /// Held for a whole look, so that the ticker's thread and a worker do not both open an epoch.
    state: Mutex<State>,
}

/// How long epochs take.
#[derive(Default)]
struct Durations {
    /// From opening one until everything before it was through.
    whole: Latency,
    /// The part of it after the last source had left the one before.
    frontier: Latency,
}

struct State {
    /// Something happened since the last boundary.
    uncut: bool,
    /// When the first event since the last epoch was seen.
    unopened: Option<Moment>,
    /// A boundary is needed now.
    wanted: bool,
    /// The newest epoch and when it was opened, until what was before it is through.
    opened: Option<(Epoch, Moment)>,
    last_epoch: Moment,
    last_cut: Moment,
    next_tick: Moment,
    /// When everything before the open epoch was through.
    through_at: Moment,
    ended: bool,
}

impl Ticker {
    pub(crate) fn new(pace: Pace, clock: Clock, pulse: Arc<Pulse>, frees_at_commit: bool) -> Ticker {
        let now = clock.now();
        let next_tick = match pace {
            Pace::Continuous { .. } => now,
            Pace::MicroBatch { interval } => now.after(interval),
        };
        let state = State {
            uncut: false,
            unopened: None,
            wanted: false,
            opened: None,
            last_epoch: now,
            last_cut: now,
            next_tick,
            through_at: now,
            ended: false,
        };
        Ticker {
            pace,
            clock,
            pulse,
            frees_at_commit,
            held_back: AtomicBool::new(false),
            through: AtomicU64::new(0),
            epochs: AtomicU64::new(0),
            durations: Mutex::default(),
            state: Mutex::new(state),
        }
    }

    /// The body of the ticker's thread; returns after [`end`](Ticker::end).
    pub(crate) fn run(&self) {
        while !lock(&self.state).ended {
            let mut next = self.look();
            let soon = self.clock.now().after(EPOCH_EVERY);
            if next.is_none_or(|next| next > soon) {
                self.pulse.set_asleep(true);
                // Looks again: a reason may have come just before `asleep` was visible.
                next = self.look();
            }
            self.pulse.wait(&self.clock, next);
            self.pulse.set_asleep(false);
        }
    }

    /// Ends the thread.
    pub(crate) fn end(&self) {
        lock(&self.state).ended = true;
        self.pulse.ring();
    }

    /// Does what is due now; returns when it must look next.
    fn look(&self) -> Option<Moment> {
        let state = &mut *lock(&self.state);
        let now = self.clock.now();
        let alarm = self.pulse.wake_due(now);
        let next = match self.pace {
            Pace::Continuous { checkpoint_every } => self.look_continuous(state, now, checkpoint_every),
            Pace::MicroBatch { interval } => self.look_micro_batch(state, now, interval),
        };
        next.into_iter().chain(alarm).min()
    }

    fn look_continuous(&self, state: &mut State, now: Moment, checkpoint_every: Duration) -> Option<Moment> {
        if self.pulse.take_reason() {
            state.uncut = true;
            state.unopened.get_or_insert(now);
        }
        let due_at = self.pulse.is_due().then(|| state.last_epoch.after(DUE_APART));
        let lull = Some(state.last_epoch.after(EPOCH_EVERY)).filter(|lull| now < *lull);
        if !state.uncut && !state.wanted && due_at.is_none() {
            return lull;
        }
        let open = self.pulse.epoch();
        let cut_at = state.last_cut.after(checkpoint_every);
        let hurried = state.wanted || (self.frees_at_commit && self.pulse.is_hurried());
        let may_cut = self.committed() >= open.checkpoint().previous();
        if may_cut && (now >= cut_at || hurried || open.next().is_none()) {
            self.pulse.take_hurry();
            self.pulse.take_due();
            (state.uncut, state.unopened, state.wanted) = (false, None, false);
            (state.last_cut, state.last_epoch) = (now, now);
            self.open(state, open.checkpoint().next().first_epoch(), now);
            return Some(now.after(EPOCH_EVERY));
        }
        let epoch_at = state.unopened.map(|since| since.after(EPOCH_EVERY)).into_iter().chain(due_at).min();
        let has_room = open.as_raw().saturating_sub(self.through.load(SeqCst)) < EPOCHS_UNDER_WAY
            || open.sequence() < EPOCHS_UNDER_WAY;
        let is_due = epoch_at.is_some_and(|at| now >= at);
        // With `see_through`: an epoch that gets through between the load of `through` and this
        // store rings no bell. The second look of `run` sees it, or the next timed one.
        self.held_back.store(is_due && !has_room, SeqCst);
        if let Some(next) = open.next()
            && is_due
            && has_room
        {
            (state.unopened, state.last_epoch) = (None, now);
            self.pulse.take_due();
            self.open(state, next, now);
            return Some(now.after(EPOCH_EVERY));
        }
        let cut = may_cut.then_some(cut_at);
        // An epoch that is due and has no room waits until an earlier one is through.
        cut.into_iter().chain(epoch_at.filter(|at| now < *at)).chain(lull).min()
    }

    fn look_micro_batch(&self, state: &mut State, now: Moment, interval: Duration) -> Option<Moment> {
        let open = self.pulse.epoch();
        if !self.pulse.has_reason() || Epoch::from_raw(self.through.load(SeqCst)) < open {
            return None;
        }
        let hurried = state.wanted || self.pulse.is_hurried();
        let next_tick = self.next_tick(state, interval);
        if now < next_tick && !hurried {
            return Some(next_tick);
        }
        self.pulse.take_reason();
        self.pulse.take_hurry();
        state.wanted = false;
        if now >= state.next_tick {
            state.next_tick = following_tick(state.next_tick, now, interval);
        }
        self.open(state, open.checkpoint().next().first_epoch(), now);
        None
    }

    /// The tick that the reason for the next batch waits for. A tick at which there was no reason
    /// is past, as it is in Spark; one that a batch has missed because the one before took long is
    /// not.
    fn next_tick(&self, state: &mut State, interval: Duration) -> Moment {
        let noted = self.pulse.noted();
        if noted >= state.next_tick.max(state.through_at) {
            state.next_tick = following_tick(state.next_tick, noted, interval);
        }
        state.next_tick
    }

    fn open(&self, state: &mut State, epoch: Epoch, now: Moment) {
        self.epochs.fetch_add(1, SeqCst);
        state.opened = Some((epoch, now));
        self.pulse.open(epoch, now);
    }

    /// Notes the frontier of the operators, as a worker sees it: everything before it has reached
    /// the writers.
    pub(crate) fn see_through(&self, epoch: Epoch) {
        if self.through.fetch_max(epoch.as_raw(), SeqCst) >= epoch.as_raw() {
            return;
        }
        let now = self.clock.now();
        let mut state = lock(&self.state);
        state.through_at = now;
        let opened = state.opened.take_if(|(opened, _)| *opened <= epoch);
        drop(state);
        if let Some((_, at)) = opened {
            let mut durations = lock(&self.durations);
            durations.whole.record(now - at, 1);
            durations.frontier.record(now - self.pulse.moved(), 1);
        }
        match self.pace {
            // The worker that has seen the batch through opens the next one, without the ticker's
            // thread.
            Pace::MicroBatch { interval } if interval.is_zero() && self.pulse.has_reason() => drop(self.look()),
            Pace::MicroBatch { .. } if self.pulse.has_reason() => self.pulse.ring(),
            Pace::Continuous { .. } if self.held_back.load(SeqCst) => self.pulse.ring(),
            Pace::MicroBatch { .. } | Pace::Continuous { .. } => {}
        }
    }

    /// Notes that everything up to the checkpoint is committed, with this many commits so far: the
    /// next boundary may come.
    pub(crate) fn see_committed(&self, checkpoint: CheckpointId, commits: u64) {
        // A micro-batch waits for its tick and for the batch before it to be through, never for a
        // commit.
        if self.pulse.commit(checkpoint, commits) && matches!(self.pace, Pace::Continuous { .. }) {
            self.pulse.ring();
        }
    }

    pub(crate) fn committed(&self) -> CheckpointId {
        self.pulse.committed()
    }

    /// The time from opening an epoch until everything before it was through.
    pub(crate) fn durations(&self) -> LatencySnapshot {
        lock(&self.durations).whole.snapshot()
    }

    /// The part of it after the last source had left the epoch before.
    pub(crate) fn frontiers(&self) -> LatencySnapshot {
        lock(&self.durations).frontier.snapshot()
    }

    /// The number of epochs that were opened after the first.
    pub(crate) fn epochs(&self) -> u64 {
        self.epochs.load(SeqCst)
    }

    /// Whether everything that is due at this moment is done: for a job whose clock is moved by a
    /// test. It cuts boundaries for the test's sake, because only after a boundary is it known that
    /// everything before it is done. A micro-batch's boundary is its tick.
    pub(crate) fn is_settled(&self) -> bool {
        // No epoch is opened while this is held.
        let state = &mut *lock(&self.state);
        let open = self.pulse.epoch();
        let done = self.committed() >= open.checkpoint().previous();
        // Read after what is done, and before the reason: a record of a checkpoint that is done
        // has its call counted, and an answer is a reason before its call is not.
        let is_answered = self.pulse.calls() == 0;
        if self.pulse.is_due_by_clock() && matches!(self.pace, Pace::Continuous { .. }) {
            state.wanted = true;
            self.pulse.wake_ingests();
            self.pulse.ring();
            return false;
        }
        match self.pace {
            Pace::Continuous { .. } if self.pulse.has_reason() || state.uncut => {
                state.wanted = true;
                self.pulse.ring();
                false
            }
            Pace::Continuous { .. } => done && is_answered,
            Pace::MicroBatch { interval } => {
                // In this order: which tick is next depends on when the batch was through.
                let is_through = Epoch::from_raw(self.through.load(SeqCst)) >= open;
                let mut is_due = || self.pulse.has_reason() && self.next_tick(state, interval) <= self.clock.now();
                if self.pulse.is_due_by_clock() && !self.pulse.has_reason() {
                    // A source is about to see it.
                    self.pulse.wake_ingests();
                    return false;
                }
                done && is_answered && is_through && !is_due()
            }
        }
    }

    /// Cuts a checkpoint as soon as the commit of the one before it allows: for revoked partitions.
    pub(crate) fn cut_now(&self) {
        lock(&self.state).wanted = true;
        self.pulse.note_records();
        self.pulse.ring();
    }
}

/// The first tick after `now` on the grid of `tick`, so that a late batch does not shift those
/// after it.
fn following_tick(tick: Moment, now: Moment, interval: Duration) -> Moment {
    if interval.is_zero() {
        return now;
    }
    let missed = (now - tick).as_nanos() / interval.as_nanos();
    let ahead = interval.as_nanos() * (missed + 1);
    Moment::from_nanos(tick.as_nanos() + ahead as u64)
}

impl fmt::Debug for Ticker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticker({:?} at {})", self.pace, self.pulse.epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn ticker(pace: Pace) -> (Clock, Arc<Pulse>, Ticker) {
        let clock = Clock::simulated();
        let pulse = Arc::new(Pulse::new(CheckpointId::FIRST, &clock));
        (clock.clone(), Arc::clone(&pulse), Ticker::new(pace, clock, pulse, false))
    }

    #[test]
    fn nothing_opens_without_a_reason() {
        let (clock, pulse, ticker) = ticker(Pace::Continuous { checkpoint_every: 100 * MILLI });
        clock.advance(3_600_000 * MILLI);
        assert_eq!((ticker.look(), pulse.epoch()), (None, CheckpointId::FIRST.opening_epoch()));
        ticker.pulse.note_records();
        ticker.look();
        ticker.see_committed(CheckpointId::new(1), 1);
        clock.advance(3_600_000 * MILLI);
        let opened = pulse.epoch();
        assert_eq!((ticker.look(), pulse.epoch()), (None, opened));
    }

    #[test]
    fn a_boundary_waits_for_the_commit_before_it_and_for_nothing_else() {
        let (clock, pulse, ticker) = ticker(Pace::Continuous { checkpoint_every: 100 * MILLI });
        pulse.note_records();
        clock.advance(100 * MILLI);
        ticker.look();
        assert_eq!(pulse.epoch().checkpoint(), CheckpointId::new(2));
        pulse.note_records();
        clock.advance(500 * MILLI);
        ticker.look();
        assert_eq!(pulse.epoch().checkpoint(), CheckpointId::new(2), "checkpoint 1 is not committed");
        ticker.see_committed(CheckpointId::new(1), 1);
        ticker.look();
        assert_eq!(pulse.epoch().checkpoint(), CheckpointId::new(3));
    }

    #[test]
    fn ticks_stay_on_their_grid() {
        let (clock, pulse, ticker) = ticker(Pace::MicroBatch { interval: 10 * MILLI });
        ticker.see_through(CheckpointId::FIRST.opening_epoch());
        pulse.note_records();
        assert_eq!(ticker.look(), Some(Moment::default().after(10 * MILLI)));
        clock.advance(27 * MILLI);
        assert_eq!(ticker.look(), None);
        assert_eq!(pulse.epoch().checkpoint(), CheckpointId::new(2));
        pulse.note_records();
        assert_eq!(ticker.look(), None, "the batch before is not through");
        ticker.see_through(pulse.epoch());
        assert_eq!(ticker.look(), Some(Moment::default().after(30 * MILLI)));
    }

    /// The first record after a while without any was a batch of its own, at once. So micro-batches
    /// looked faster than they are where records are few.
    #[test]
    fn a_tick_without_a_reason_is_past() {
        let (clock, pulse, ticker) = ticker(Pace::MicroBatch { interval: 10 * MILLI });
        ticker.see_through(CheckpointId::FIRST.opening_epoch());
        for (now, tick) in [(25, 30), (40, 50)] {
            clock.advance((Moment::default().after(now * MILLI)) - clock.now());
            pulse.note_records();
            assert_eq!(ticker.look(), Some(Moment::default().after(tick * MILLI)), "noted at {now} ms");
            let before = pulse.epoch();
            clock.advance(Moment::default().after(tick * MILLI) - clock.now());
            assert_eq!((ticker.look(), pulse.epoch() > before), (None, true));
            // The batch takes until 3 ms behind the tick, and nothing comes meanwhile.
            clock.advance(3 * MILLI);
            ticker.see_through(pulse.epoch());
        }
        // A batch that takes longer than the interval: what came meanwhile has missed its tick.
        clock.advance(4 * MILLI);
        pulse.note_records();
        clock.advance(3 * MILLI);
        assert_eq!(ticker.look(), None);
        clock.advance(12 * MILLI);
        pulse.note_records();
        clock.advance(3 * MILLI);
        let before = pulse.epoch();
        ticker.see_through(before);
        assert_eq!((ticker.look(), pulse.epoch() > before), (None, true));
    }

    #[test]
    fn a_used_up_sequence_forces_a_boundary() {
        let (clock, pulse, ticker) = ticker(Pace::Continuous { checkpoint_every: 1_000_000 * MILLI });
        pulse.open(Epoch::from_raw(CheckpointId::new(2).first_epoch().as_raw() - 1), Moment::default());
        pulse.note_records();
        clock.advance(EPOCH_EVERY);
        ticker.look();
        assert_eq!(pulse.epoch(), CheckpointId::new(2).first_epoch());
    }
}
