//! Time, of three kinds: [`EventTime`] of the data, [`Moment`] of the machine, and the [`Clock`] that tells the second
//! and can be simulated, so that no test sleeps.

use std::fmt;
use std::ops::Sub;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When something happened in the world, as the data say: milliseconds since 1970, negative before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventTime(pub i64);

/// A moment of the job's clock: nanoseconds since the process asked for the first time. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// Nanoseconds since the clock's origin.
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment so many nanoseconds after the clock's origin.
    pub fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    /// The moment `earlier` before this one, or the clock's origin.
    #[must_use]
    pub(crate) fn before(self, earlier: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(earlier.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// The moment `later` after this one.
    #[must_use]
    pub fn after(self, later: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(later.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// How long after `earlier` this is; zero when it is not.
    fn sub(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What tells a job the time: the machine's monotonic clock, or one that a test moves by hand.
///
/// A simulated clock stands still until [`advance`](Clock::advance). Ticks of a trigger, checkpoint intervals and
/// deadlines all obey it, so a test decides when a micro-batch closes.
///
/// ```
/// use millstream::Clock;
/// use std::time::Duration;
///
/// let clock = Clock::simulated();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now() - before, Duration::from_secs(60));
/// ```
#[derive(Clone, Default)]
pub struct Clock(Option<Arc<Simulated>>);

#[derive(Default)]
struct Simulated {
    nanos: Mutex<u64>,
    alarms: Mutex<Vec<Alarm>>,
}

/// Called after the clock moved; says whether it wants to be called again.
type Alarm = Box<dyn Fn() -> bool + Send>;

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock {
    /// The machine's monotonic clock; what a job uses when nothing else is said.
    pub fn system() -> Clock {
        Clock(None)
    }

    /// A clock that stands still until it is advanced. Clones are the same clock.
    pub fn simulated() -> Clock {
        Clock(Some(Arc::default()))
    }

    /// Whether it moves by itself.
    pub(crate) fn is_system(&self) -> bool {
        self.0.is_none()
    }

    /// The moment it is now.
    pub fn now(&self) -> Moment {
        match &self.0 {
            None => Moment(ORIGIN.elapsed().as_nanos() as u64),
            Some(simulated) => Moment(*lock(&simulated.nanos)),
        }
    }

    /// Moves a simulated clock, and wakes whoever waits for a moment.
    ///
    /// # Panics
    /// When this is the system's clock, which nobody can move.
    pub fn advance(&self, by: Duration) {
        let simulated = self.0.as_ref().expect("only a simulated clock can be advanced");
        *lock(&simulated.nanos) += by.as_nanos() as u64;
        lock(&simulated.alarms).retain(|alarm| alarm());
    }

    /// Waits on `changed` until somebody notifies it or this clock has reached `until`.
    pub(crate) fn wait<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        changed: &Condvar,
        until: Option<Moment>,
    ) -> MutexGuard<'a, T> {
        match (&self.0, until) {
            (None, Some(until)) => {
                changed.wait_timeout(guard, until - self.now()).unwrap_or_else(PoisonError::into_inner).0
            }
            // A simulated clock notifies through its alarm when it is moved.
            _ => changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Has `alarm` called after every move of a simulated clock until it says `false`; no effect on the system's.
    pub(crate) fn on_advance(&self, alarm: impl Fn() -> bool + Send + 'static) {
        if let Some(simulated) = &self.0 {
            lock(&simulated.alarms).push(Box::new(alarm));
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => f.write_str("Clock::system()"),
            Some(_) => write!(f, "Clock::simulated() at {:?}", self.now()),
        }
    }
}

/// So far ahead, or as far as anybody waits.
pub(crate) fn deadline_after(limit: Duration) -> Instant {
    const AGES: Duration = Duration::from_secs(1 << 32);
    Instant::now() + limit.min(AGES)
}

/// Locks, also after somebody panicked under the lock: what it guards here is valid at every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
