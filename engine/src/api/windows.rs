//! Which windows there are.

use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::operator::layout::{Days, Fixed, Layout};

/// How a keyed stream is divided into windows; see
/// [`KeyedStream::window`](crate::KeyedStream::window).
///
/// | windows | what they are | Spark | Flink |
/// |---|---|---|---|
/// | [`Tumbling`] | one behind the other | `window(time, length)` | `TumblingEventTimeWindows` |
/// | [`Sliding`] | overlapping | `window(time, length, step)` | `SlidingEventTimeWindows` |
/// | [`CalendarDays`] | days of a time zone | – | `TumblingEventTimeWindows` with an offset, where clocks never change |
/// | [`Session`] | as long as records follow each other | `session_window(time, gap)` | `EventTimeSessionWindows` |
/// | [`Count`] | so many records of a key | – | `countWindow` |
/// | [`Windows::instants`] | one for each event time | `groupBy(time)` | – |
/// | [`Windows::global`] | one for all of time | – | `GlobalWindows` |
pub trait Window<T>: sealed::Sealed {
    /// What can be emitted of its values.
    type Kind: 'static;

    #[doc(hidden)]
    fn spec(self) -> Spec<T>;
}

mod sealed {
    pub trait Sealed {}
}

/// Windows that are known by the time alone.
#[derive(Debug)]
pub enum ByTime {}

/// What windows a user has asked for.
#[doc(hidden)]
pub struct Spec<T>(pub(super) Asked<T>);

impl<T> fmt::Debug for Spec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spec")
    }
}

pub(super) enum Asked<T> {
    /// By the time alone, or why they cannot be.
    Time(Result<Layout, String>),
    /// By sessions with this gap, or why they cannot be.
    Session(Result<Gap<T>, String>),
    /// Of so many records, one at each so many of them.
    Count(u64, u64),
}

/// What ends a session.
pub(super) enum Gap<T> {
    Millis(i64),
    ByRecord(Box<dyn Fn(&T) -> Duration>),
}

/// A gap in milliseconds, by the record.
pub(super) type GapOf<T> = Box<dyn Fn(&T) -> i64>;

impl<T: 'static> Gap<T> {
    pub(super) fn of_records(self) -> GapOf<T> {
        match self {
            Gap::Millis(gap) => Box::new(move |_| gap),
            Gap::ByRecord(gap) => Box::new(move |record| i64::try_from(gap(record).as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

/// Windows of one length that follow each other without a gap and do not overlap. Each begins where
/// the one before ends, and one of them begins with 1970. The start of a window belongs to it, its
/// end does not.
///
/// In Spark's words `window(time, "10 seconds")`, in Flink's `TumblingEventTimeWindows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tumbling {
    length: Duration,
    offset: Duration,
}

impl Tumbling {
    /// Windows of that length, in whole milliseconds. A length of less than one is refused at
    /// start.
    pub fn new(length: Duration) -> Tumbling {
        Tumbling { length, offset: Duration::ZERO }
    }

    /// Moves all windows by this time: hours that begin at a quarter past, say.
    #[must_use]
    pub fn offset(self, offset: Duration) -> Tumbling {
        Tumbling { offset, ..self }
    }
}

/// Windows of one length, a new one at each step. They overlap: a record is in each window around
/// its time, so in `length / step` of them. One of them begins with 1970. The start of a window
/// belongs to it, its end does not.
///
/// In Spark's words `window(time, "10 seconds", "1 second")`, in Flink's `SlidingEventTimeWindows`.
///
/// Where only final values are asked for, and values can be merged, a record is added to one *pane*
/// alone, the stretch between two edges of windows: so small steps cost little. That is so for all
/// aggregates but `reduce` and an `aggregate` that has no [`merge`](crate::WindowTable::merge).
///
/// ```
/// use millstream::{EventTime, Job, Sliding, collect, rows};
/// use std::time::Duration;
///
/// let counts = collect();
/// let sink = counts.clone();
/// let job = Job::new("visits", move |flow| {
///     let at = flow.source(rows([1_000, 6_000, 12_000]).partitions(1))?;
///     let at = at.with_watermark(|at| EventTime(*at), Duration::ZERO).global();
///     let windows = at.window(Sliding::new(Duration::from_secs(10), Duration::from_secs(5)));
///     windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sink)
/// });
/// job.state_in_memory().run()?;
/// assert_eq!(counts.values(), [(-5_000, 1), (0, 2), (5_000, 2), (10_000, 1)]);
/// # Ok::<(), millstream::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sliding {
    length: Duration,
    step: Duration,
    offset: Duration,
}

impl Sliding {
    /// Windows of that length, one at each step, both in whole milliseconds. A step of less than
    /// one, or one that is longer than the windows, is refused at start, as in Spark.
    pub fn new(length: Duration, step: Duration) -> Sliding {
        Sliding { length, step, offset: Duration::ZERO }
    }

    /// Moves all windows by this time.
    #[must_use]
    pub fn offset(self, offset: Duration) -> Sliding {
        Sliding { offset, ..self }
    }
}

/// Windows of whole calendar days in a time zone. A day begins when its date does there, so it has
/// 23 or 25 hours when the clocks change. The names are those of the IANA time zone database, which
/// is compiled in.
///
/// ```
/// use millstream::{CalendarDays, EventTime, Job, collect, rows};
/// use std::time::Duration;
///
/// let hours = collect();
/// let sink = hours.clone();
/// let job = Job::new("days", move |flow| {
///     let noon = EventTime::from_rfc3339("2025-03-30T12:00:00+02:00").expect("it is a time");
///     let at = flow.source(rows([noon]))?.with_watermark(|at| *at, Duration::ZERO);
///     let counts = at.global().window(CalendarDays::new(1).in_zone("Europe/Berlin")).count().finals();
///     counts.map(|pane| (pane.window.end.0 - pane.window.start.0) / 3_600_000).sink(&sink)
/// });
/// job.state_in_memory().run()?;
/// assert_eq!(hours.values(), [23]);
/// # Ok::<(), millstream::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CalendarDays {
    days: u32,
    zone: String,
}

impl CalendarDays {
    /// Windows of so many days, in UTC, counted from 1970. No day at all is refused at start.
    pub fn new(days: u32) -> CalendarDays {
        CalendarDays { days, zone: "UTC".to_owned() }
    }

    /// The days of a time zone, such as `Europe/Berlin`. An unknown one is refused at start.
    #[must_use]
    pub fn in_zone(self, name: &str) -> CalendarDays {
        CalendarDays { zone: name.to_owned(), ..self }
    }
}

/// Sessions: the records of a key that follow each other within a gap. A session begins with its
/// first record and ends the gap behind its last one. Sessions that touch are one.
///
/// A record is late when its time is not behind the mark of its partition, whatever the gap is:
/// then which session it belongs to never depends on timing. (In Spark it is late when its own
/// session would have ended.) What is behind the mark by less than the delay of the watermark is in
/// time, as always.
///
/// As in Spark there are no [`updates`](crate::WindowTable::updates) of sessions: two of them may
/// become one. [`changes`](crate::WindowTable::changes) say so.
///
/// ```
/// use millstream::{EventTime, Job, Session, collect, rows};
/// use std::time::Duration;
///
/// let visits = collect();
/// let sink = visits.clone();
/// let job = Job::new("visits", move |flow| {
///     let at = flow.source(rows([1_000, 3_000, 9_000]).partitions(1))?;
///     let at = at.with_watermark(|at| EventTime(*at), Duration::from_secs(1)).global();
///     let visits = at.window(Session::with_gap(Duration::from_secs(5))).count().finals();
///     visits.map(|visit| (visit.window.start.0, visit.window.end.0, visit.value)).sink(&sink)
/// });
/// job.state_in_memory().run()?;
/// assert_eq!(visits.values(), [(1_000, 8_000, 2), (9_000, 14_000, 1)]);
/// # Ok::<(), millstream::Error>(())
/// ```
pub struct Session<G>(G);

impl Session<Duration> {
    /// Sessions with one gap, in whole milliseconds. A gap of less than one is refused at start.
    pub fn with_gap(gap: Duration) -> Session<Duration> {
        Session(gap)
    }
}

impl<G> Session<G> {
    /// Sessions whose records say themselves how long nothing may follow them: a session ends
    /// behind the last of these gaps. A gap of less than a millisecond is a millisecond.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Session, collect, rows};
    /// use std::time::Duration;
    ///
    /// let visits = collect();
    /// let sink = visits.clone();
    /// let job = Job::new("visits", move |flow| {
    ///     let clicks = flow.source(rows([(0, 10), (5, 1), (8, 2)]).partitions(1))?;
    ///     let clicks = clicks.with_watermark(|(at, _)| EventTime(*at), Duration::from_secs(1)).global();
    ///     let visits = clicks.window(Session::by_record(|(_, gap)| Duration::from_millis(*gap)));
    ///     visits.count().finals().map(|visit| (visit.window.end.0, visit.value)).sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(visits.values(), [(10, 3)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn by_record<T>(gap: G) -> Session<G>
    where
        G: Fn(&T) -> Duration + 'static,
    {
        Session(gap)
    }
}

impl<G> fmt::Debug for Session<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

/// Sessions, whose edges depend on the records in them.
#[derive(Debug)]
pub enum BySession {}

/// Windows of so many records of a key, in the order in which they come. They need no event time,
/// and none of their records is late. Which records of several partitions are in a window together
/// depends on timing.
///
/// In Flink's words `countWindow`. A window that is not full when the data ends is not emitted.
///
/// ```
/// use millstream::{Count, Job, collect, rows};
///
/// let sums = collect();
/// let sink = sums.clone();
/// let job = Job::new("sums", move |flow| {
///     let numbers = flow.source(rows([1, 2, 3, 4, 5]).partitions(1))?.global();
///     numbers.window(Count::sliding(3, 2)).sum(|n| *n).full().map(|((), sum)| sum).sink(&sink)
/// });
/// job.state_in_memory().run()?;
/// assert_eq!(sums.values(), [1 + 2, 2 + 3 + 4]);
/// # Ok::<(), millstream::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Count {
    length: u64,
    every: u64,
}

impl Count {
    /// Windows of so many records, one behind the other. None at all is refused at start.
    pub fn tumbling(length: u64) -> Count {
        Count { length, every: length }
    }

    /// The last `length` records, with each `every`-th one. The first windows of a key have fewer.
    /// Nothing at all, or more records between windows than in them, is refused at start.
    pub fn sliding(length: u64, every: u64) -> Count {
        Count { length, every }
    }
}

/// Windows of so many records.
#[derive(Debug)]
pub enum ByCount {}

/// Windows that need no length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Windows(Layouts);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Layouts {
    Global,
    Instants,
}

impl Windows {
    /// One window for each event time: records of the same millisecond are together. It is over
    /// when the watermark has come there; its end is its start. In Spark's words, the event time is
    /// one of the columns of `groupBy`.
    pub fn instants() -> Windows {
        Windows(Layouts::Instants)
    }

    /// One window for all of time. It ends with the data, so its final values come out when the
    /// sources of the job have ended for ever; [`updates`](crate::WindowTable::updates) come at
    /// once.
    pub fn global() -> Windows {
        Windows(Layouts::Global)
    }
}

/// Whole milliseconds.
fn millis(time: Duration) -> Option<i64> {
    i64::try_from(time.as_millis()).ok().filter(|_| time.subsec_nanos().is_multiple_of(1_000_000))
}

impl sealed::Sealed for Tumbling {}

impl<T> Window<T> for Tumbling {
    type Kind = ByTime;

    fn spec(self) -> Spec<T> {
        let Tumbling { length, offset } = self;
        Spec(Asked::Time(match (millis(length), i64::try_from(offset.as_millis())) {
            (Some(length @ 1..), Ok(offset)) => Ok(Layout::Fixed(Fixed::new(length, length, offset))),
            _ => Err(format!(
                "a window must last whole milliseconds, at least one, not {length:?} with an offset of {offset:?}"
            )),
        }))
    }
}

impl sealed::Sealed for Sliding {}

impl<T> Window<T> for Sliding {
    type Kind = ByTime;

    fn spec(self) -> Spec<T> {
        let Sliding { length, step, offset } = self;
        Spec(Asked::Time(match (millis(length), millis(step), i64::try_from(offset.as_millis())) {
            (Some(length @ 1..), Some(step @ 1..), Ok(offset)) if step <= length => {
                Ok(Layout::Fixed(Fixed::new(length, step, offset)))
            }
            _ => Err(format!(
                "windows of {length:?} with one each {step:?} do not fit: both must be whole milliseconds, at least one, \
                 and the step not longer than the windows (the offset is {offset:?})"
            )),
        }))
    }
}

impl sealed::Sealed for CalendarDays {}

impl<T> Window<T> for CalendarDays {
    type Kind = ByTime;

    fn spec(self) -> Spec<T> {
        let CalendarDays { days, zone } = self;
        // So many fit into the calendar.
        let days = i32::try_from(days).ok().filter(|days| (1..=1_000_000).contains(days));
        Spec(Asked::Time(match (days, TimeZone::get(&zone)) {
            (Some(days), Ok(zone)) => Ok(Layout::Days(Days::new(days, zone))),
            (None, _) => Err(format!("a window must last at least one day and at most a million, not {}", self.days)),
            (_, Err(cause)) => Err(format!("the time zone `{zone}` is not known: {cause}")),
        }))
    }
}

impl sealed::Sealed for Windows {}

impl<T> Window<T> for Windows {
    type Kind = ByTime;

    fn spec(self) -> Spec<T> {
        Spec(Asked::Time(Ok(match self.0 {
            Layouts::Global => Layout::Global,
            Layouts::Instants => Layout::Instants,
        })))
    }
}

impl sealed::Sealed for Count {}

impl<T> Window<T> for Count {
    type Kind = ByCount;

    fn spec(self) -> Spec<T> {
        Spec(Asked::Count(self.length, self.every))
    }
}

/// Windows with a start and an end in event time.
pub trait InTime: sealed::Sealed + 'static {}

impl sealed::Sealed for ByTime {}
impl InTime for ByTime {}
impl sealed::Sealed for BySession {}
impl InTime for BySession {}

impl<G> sealed::Sealed for Session<G> {}

impl<T> Window<T> for Session<Duration> {
    type Kind = BySession;

    fn spec(self) -> Spec<T> {
        let Session(gap) = self;
        Spec(Asked::Session(match millis(gap) {
            Some(gap @ 1..) => Ok(Gap::Millis(gap)),
            _ => Err(format!("the gap of a session must be whole milliseconds, at least one, not {gap:?}")),
        }))
    }
}

impl<T, G: Fn(&T) -> Duration + 'static> Window<T> for Session<G> {
    type Kind = BySession;

    fn spec(self) -> Spec<T> {
        Spec(Asked::Session(Ok(Gap::ByRecord(Box::new(self.0)))))
    }
}
