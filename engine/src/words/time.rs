//! Three kinds of time: [`EventTime`] of the data, [`Moment`] of the machine, and [`WallTime`] of
//! the world. A [`Clock`] tells the last two and can be simulated, so that no test sleeps.

use std::fmt;
use std::ops::Sub;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::sync::lock;

/// A name that no other call returns, in this process or another: of the time, the process, and a
/// count.
pub(crate) fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    // Relaxed: a count that stands alone.
    format!("{nanos:x}{:x}{:x}", std::process::id(), COUNT.fetch_add(1, Relaxed))
}

/// When something happened according to the data: milliseconds since 1970, negative before. The
/// smallest number of all is no time: a record with it counts as one without an event time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct EventTime(pub i64);

impl EventTime {
    /// No time. Nothing happened that long ago, so a record that says it did counts as one without
    /// a time.
    pub(crate) const NONE: EventTime = EventTime(i64::MIN);
    /// The end of time: the mark of a partition that has ended.
    pub(crate) const END: EventTime = EventTime(i64::MAX);
    /// The last time before it.
    pub(crate) const LAST: EventTime = EventTime(i64::MAX - 1);

    /// The time of so many seconds since 1970; out of range it is the first or the last time there
    /// is.
    ///
    /// ```
    /// # use millstream::EventTime;
    /// assert_eq!(EventTime::from_seconds(1_764_000_000), EventTime(1_764_000_000_000));
    /// ```
    pub fn from_seconds(seconds: i64) -> EventTime {
        EventTime(seconds.saturating_mul(1_000).max(i64::MIN + 1))
    }

    /// The millisecond of so many microseconds since 1970.
    ///
    /// ```
    /// # use millstream::EventTime;
    /// assert_eq!(EventTime::from_micros(1_999), EventTime(1));
    /// assert_eq!(EventTime::from_micros(-1), EventTime(-1), "the millisecond before 1970");
    /// ```
    pub fn from_micros(micros: i64) -> EventTime {
        EventTime(micros.div_euclid(1_000))
    }

    /// The millisecond of a time as RFC 3339 writes it, with its offset from UTC. `None` of
    /// anything else.
    ///
    /// ```
    /// # use millstream::EventTime;
    /// assert_eq!(EventTime::from_rfc3339("2025-11-24T17:00:00.1234+01:00"), Some(EventTime(1_764_000_000_123)));
    /// assert_eq!(EventTime::from_rfc3339("1969-12-31T23:59:59Z"), Some(EventTime(-1_000)));
    /// assert_eq!(EventTime::from_rfc3339("2025-11-24 17:00"), None, "it has no offset");
    /// ```
    pub fn from_rfc3339(text: &str) -> Option<EventTime> {
        let nanos = text.parse::<jiff::Timestamp>().ok()?.as_nanosecond();
        i64::try_from(nanos.div_euclid(1_000_000)).ok().map(EventTime)
    }

    /// The time, unless it is none.
    pub(crate) fn known(self) -> Option<EventTime> {
        (self != EventTime::NONE).then_some(self)
    }

    /// This time `earlier`, in whole milliseconds, or the earliest there is. None stays none, and
    /// the end stays the end.
    pub(crate) fn before(self, earlier: Duration) -> EventTime {
        if self == EventTime::NONE || self == EventTime::END {
            return self;
        }
        let earlier = i64::try_from(earlier.as_millis()).unwrap_or(i64::MAX);
        EventTime(self.0.saturating_sub(earlier).max(i64::MIN + 1))
    }

    /// The time `later` after this one, or the last there is.
    pub(crate) fn after(self, later: Duration) -> EventTime {
        EventTime(self.0.saturating_add(i64::try_from(later.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for EventTime {
    /// Its milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            EventTime::NONE => f.write_str("none"),
            EventTime::END => f.write_str("the end of time"),
            EventTime(millis) => write!(f, "{millis} ms"),
        }
    }
}

/// The time of the world: milliseconds since 1970, negative before. It means the same in every
/// process, so it can be stored; but it may jump when the system's clock is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct WallTime(pub i64);

/// A moment of the job's clock: nanoseconds since the process first asked for the time. It never
/// goes back, and means nothing in another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    /// Nanoseconds since the clock's origin.
    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// The moment that is `nanos` nanoseconds after the clock's origin.
    pub fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    /// The moment `earlier` before this one, but not before the clock's origin.
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

    /// The time since `earlier`; zero when `earlier` is later.
    fn sub(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Tells a job the time: the machine's clocks, or a clock that a test moves by hand.
///
/// A simulated clock stands still until [`advance`](Clock::advance). Ticks of a trigger, checkpoint
/// intervals and deadlines all follow it, so a test decides when a micro-batch closes.
///
/// ```
/// use millstream::Clock;
/// use std::time::Duration;
///
/// let clock = Clock::simulated();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(60));
/// assert_eq!(clock.now() - before, Duration::from_secs(60));
/// assert_eq!(clock.wall(), millstream::WallTime(60_000), "it began with 1970");
/// ```
#[derive(Clone, Default)]
pub struct Clock(Option<Arc<Simulated>>);

#[derive(Default)]
struct Simulated {
    nanos: Mutex<u64>,
    /// The wall time at the clock's origin.
    began: WallTime,
    alarms: Mutex<Vec<Alarm>>,
}

/// Called after the clock has moved; returns whether to call it again.
type Alarm = Box<dyn Fn() -> bool + Send>;

/// Where the moments of the system's clocks count from: one for the process, so that they compare.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock {
    /// The machine's clocks; a job uses them by default.
    pub fn system() -> Clock {
        Clock(None)
    }

    /// A clock that starts at the beginning of 1970 and stands still until it is advanced. Clones
    /// are the same clock.
    pub fn simulated() -> Clock {
        Clock::simulated_from(WallTime::default())
    }

    /// As [`simulated`](Clock::simulated), starting at another wall time.
    pub fn simulated_from(began: WallTime) -> Clock {
        Clock(Some(Arc::new(Simulated { began, ..Simulated::default() })))
    }

    /// Whether it advances by itself.
    pub(crate) fn is_system(&self) -> bool {
        self.0.is_none()
    }

    /// The current moment.
    pub fn now(&self) -> Moment {
        match &self.0 {
            None => Moment(ORIGIN.elapsed().as_nanos() as u64),
            Some(simulated) => Moment(*lock(&simulated.nanos)),
        }
    }

    /// The current wall time. Under a simulated clock it advances with [`now`](Clock::now).
    pub fn wall(&self) -> WallTime {
        match &self.0 {
            None => {
                let now = SystemTime::now();
                let since = now.duration_since(UNIX_EPOCH).map(|since| since.as_millis() as i64);
                WallTime(since.unwrap_or_else(|error| -(error.duration().as_millis() as i64)))
            }
            Some(simulated) => WallTime(simulated.began.0 + (*lock(&simulated.nanos) / 1_000_000) as i64),
        }
    }

    /// Moves a simulated clock forward, and wakes what waits for a moment.
    ///
    /// # Panics
    /// When this is the system's clock, which cannot be moved.
    pub fn advance(&self, by: Duration) {
        let simulated = self.0.as_ref().expect("only a simulated clock can be advanced");
        *lock(&simulated.nanos) += by.as_nanos() as u64;
        lock(&simulated.alarms).retain(|alarm| alarm());
    }

    /// Waits on `changed` until it is notified or this clock has reached `until`.
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
            // A simulated clock notifies through its alarms when it is moved.
            _ => changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Calls `alarm` after every move of a simulated clock until it returns `false`. It has no
    /// effect on the system's clock.
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

/// The instant that is `limit` from now; a limit of centuries is cut, because an [`Instant`]
/// overflows.
pub(crate) fn deadline_after(limit: Duration) -> Instant {
    const LIMIT_MAX: Duration = Duration::from_secs(1 << 32);
    Instant::now() + limit.min(LIMIT_MAX)
}
