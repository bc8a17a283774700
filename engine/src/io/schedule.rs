//! Records that are due at times fixed in advance, and the thread that wakes readers for them.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::words::{Clock, Moment, Result, Wake, lock, spawn};

/// `rate` records each second: the `n`th, counted from 0, is due in the `n`th slot of `1 / rate`
/// seconds after the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) rate: f64,
    /// The number of records in total.
    pub(crate) records: u64,
    pub(crate) spacing: Spacing,
}

/// Where in its slot a record is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spacing {
    /// At its beginning.
    Even,
    /// At another place in each slot, always the same for a record, so that no rate keeps in step
    /// with a tick.
    Spread,
}

impl Spacing {
    /// The place as a fraction of the slot. Multiples of the golden ratio are spread evenly over
    /// it.
    fn place(self, record: u64) -> f64 {
        const GOLDEN: f64 = 0.618_033_988_749_895;
        match self {
            Spacing::Even => 0.0,
            Spacing::Spread => ((record % (1 << 40)) as f64 * GOLDEN).fract(),
        }
    }
}

impl Schedule {
    /// How long after the start a record is due.
    pub(crate) fn due(&self, record: u64) -> Duration {
        let seconds = (record as f64 + self.spacing.place(record)) / self.rate;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    /// The number of records that are due `since` after the start; the first is due at once.
    pub(crate) fn count(&self, since: Duration) -> u64 {
        // The slot may be off by one from rounding, so the exact due times of the records around it
        // decide.
        let slot = (since.as_secs_f64() * self.rate) as u64;
        let near = slot.saturating_sub(1)..slot.saturating_add(2).min(self.records);
        let due = near.clone().take_while(|record| self.due(*record) <= since).count() as u64;
        near.start.saturating_add(due).min(self.records)
    }
}

/// Records that are due within this of each other may be read together.
const TOGETHER: Duration = Duration::from_micros(100);

/// How much later than `first` a record may be due to be read together with it; `since` is the time
/// since the start. In a run that is behind, batches grow as they would without a schedule, and
/// what that adds to a latency is small in comparison.
pub(crate) fn together(since: Duration, first: Duration) -> Duration {
    TOGETHER.max(since.saturating_sub(first) / 8)
}

/// The shortest sleep: at higher rates several records are due at once.
const SLEEP_MIN: Duration = Duration::from_micros(200);

/// Wakes readers whenever a record is due, on a thread of its own, until it is ended.
#[derive(Default)]
pub(crate) struct Timer {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    wakes: Vec<Wake>,
    is_over: bool,
}

impl Timer {
    /// Adds a reader to wake.
    pub(crate) fn add(&self, wake: Wake) {
        lock(&self.state).wakes.push(wake);
    }

    pub(crate) fn wake_all(&self) {
        lock(&self.state).wakes.iter().for_each(Wake::wake);
    }

    /// Starts the thread that follows the schedule, which began at `began`.
    pub(crate) fn start(self: &Arc<Self>, schedule: Schedule, clock: &Clock, began: Moment) -> Result<()> {
        let weak = Arc::downgrade(self);
        clock.on_advance(move || weak.upgrade().map(|timer| timer.ring()).is_some());
        let (timer, clock) = (Arc::clone(self), clock.clone());
        spawn("schedule", move || timer.run(schedule, &clock, began)).map(drop)
    }

    fn run(&self, schedule: Schedule, clock: &Clock, began: Moment) {
        let mut state = lock(&self.state);
        while !state.is_over {
            let now = clock.now();
            state.wakes.iter().for_each(Wake::wake);
            let next = began.after(schedule.due(schedule.count(now - began)));
            // After the last record nothing is due: then only `end` wakes this thread.
            let until = (next > now).then(|| next.max(now.after(SLEEP_MIN)));
            state = clock.wait(state, &self.changed, until);
        }
    }

    fn ring(&self) {
        // Under the lock, so that the thread is not between its look at the clock and its wait.
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    pub(crate) fn end(&self) {
        lock(&self.state).is_over = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_due_when_it_is_due() {
        for spacing in [Spacing::Even, Spacing::Spread] {
            for rate in [1e-3, 0.3, 1.0, 7.0, 250.0, 1_000.0, 3_333.3, 1e6] {
                let schedule = Schedule { rate, records: 1_000_000, spacing };
                for record in (0..5_000).chain(900_000..901_000) {
                    let due = schedule.due(record);
                    assert_eq!(schedule.count(due), record + 1, "{record} at {rate}/s, {spacing:?}");
                    let before = due.saturating_sub(Duration::from_nanos(10));
                    assert!(schedule.count(before) <= record.max(1), "{record} at {rate}/s, {spacing:?}");
                }
            }
        }
    }

    #[test]
    fn no_rate_is_too_high_or_too_low() {
        for rate in [f64::MIN_POSITIVE, 1e-30, 1e18, 1e30, f64::MAX] {
            for spacing in [Spacing::Even, Spacing::Spread] {
                let schedule = Schedule { rate, records: u64::MAX, spacing };
                for since in [Duration::ZERO, Duration::from_secs(1), Duration::MAX] {
                    assert!(schedule.count(since) >= 1, "{rate} after {since:?}");
                }
                assert!(schedule.due(u64::MAX) >= schedule.due(1), "{rate}");
            }
        }
    }
}
