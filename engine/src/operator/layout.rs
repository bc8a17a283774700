//! Which windows of event time there are. All times are in milliseconds.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::words::{EventTime, Span};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// Of one length, with a new one at each step, aligned to 1970 and an offset.
    Fixed(Fixed),
    /// Calendar days.
    Days(Days),
    /// One for each event time. It is over when the watermark has come there.
    Instants,
    /// One for all of time.
    Global,
}

/// Windows of one length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fixed {
    length: i64,
    /// At most `length`.
    step: i64,
    /// From 0 to less than `step`.
    offset: i64,
}

impl Fixed {
    /// Both must be positive, and no step longer than the windows.
    pub(crate) fn new(length: i64, step: i64, offset: i64) -> Fixed {
        debug_assert!((1..=length).contains(&step), "it was checked");
        Fixed { length, step, offset: offset.rem_euclid(step) }
    }

    /// How long before that time the last window begins that contains it.
    fn since_start(self, time: i64) -> i64 {
        (time.rem_euclid(self.step) - self.offset).rem_euclid(self.step)
    }

    fn from(self, start: i64) -> Span {
        // The first window of all may have begun before it.
        let length = if start == i64::MIN { self.length - self.since_start(start) } else { self.length };
        Span { start: EventTime(start), end: EventTime(start.saturating_add(length)) }
    }

    /// The last window that contains a time. At the ends of time windows are cut off.
    fn last_of(self, time: EventTime) -> Span {
        self.from(time.0.saturating_sub(self.since_start(time.0)))
    }

    /// The windows that contain a time, the first of them first. Of those that would begin before
    /// the first time there is, only the last one is.
    pub(crate) fn of(self, time: EventTime, windows: &mut Vec<Span>) {
        windows.clear();
        if self.step == self.length {
            windows.push(self.last_of(time));
            return;
        }
        let mut start = self.last_of(time).start.0;
        while self.from(start).contains(time) {
            windows.push(self.from(start));
            match start.checked_sub(self.step) {
                Some(before) => start = before,
                None => break,
            }
        }
        windows.reverse();
    }

    /// The starts of the windows that contain a time and begin after another, the last of them
    /// first.
    pub(crate) fn starts_after(self, after: i64, time: EventTime) -> impl Iterator<Item = i64> {
        let last = self.last_of(time).start.0;
        let starts = std::iter::successors(Some(last), move |start| start.checked_sub(self.step));
        starts.take_while(move |start| *start > after && self.from(*start).contains(time))
    }

    /// The stretches that each window is made of, and none lies in only a part of a window.
    pub(crate) fn panes(self) -> Fixed {
        let (mut length, mut rest) = (self.length, self.step);
        while rest > 0 {
            (length, rest) = (rest, length % rest);
        }
        Fixed::new(length, length, self.offset)
    }

    /// Whether windows overlap.
    pub(crate) fn overlaps(self) -> bool {
        self.step < self.length
    }

    pub(crate) fn window(self, start: i64) -> Span {
        self.from(start)
    }

    /// The start of the window behind one that begins there.
    pub(crate) fn next(self, start: i64) -> i64 {
        match start {
            i64::MIN => start.saturating_add(self.step - self.since_start(start)),
            _ => start.saturating_add(self.step),
        }
    }
}

/// Windows of whole days in a time zone, counted from 1970. A day begins when its date does there:
/// it has 23 or 25 hours when the clocks change.
#[derive(Clone, Debug)]
pub(crate) struct Days {
    days: i32,
    zone: TimeZone,
}

impl Days {
    /// There must be at least one day.
    pub(crate) fn new(days: i32, zone: TimeZone) -> Days {
        Days { days, zone }
    }

    /// The window of a time. There is one before the calendar of the time zone begins, and one
    /// behind its end.
    fn of(&self, time: EventTime) -> Span {
        let first = || self.starts(Date::MIN);
        let last = || self.starts(Date::MAX);
        let date = match Timestamp::from_millisecond(time.0) {
            Ok(at) => self.zone.to_datetime(at).date(),
            Err(_) if time.0 < 0 => Date::MIN,
            Err(_) => Date::MAX,
        };
        let since = (date - EPOCH).get_days();
        let begins = EPOCH.checked_add((since - since.rem_euclid(self.days)).days()).ok();
        let ends = begins.and_then(|begins| begins.checked_add(self.days.days()).ok());
        let start = begins.and_then(|begins| self.starts(begins)).filter(|start| *start <= time.0);
        let end = ends.and_then(|ends| self.starts(ends)).filter(|end| time.0 < *end);
        let end = match (start, end) {
            // Before the calendar.
            (None, None) if time.0 < 0 => first().and_then(|first| (time.0 < first).then_some(first)),
            (_, end) => end,
        };
        let start = start.or_else(|| last().filter(|last| *last <= time.0));
        let edge = |edge: Option<i64>, none: i64| EventTime(edge.unwrap_or(none));
        Span { start: edge(start, i64::MIN), end: edge(end, i64::MAX) }
    }

    /// When a date begins. Where clocks are set forward at midnight, that is later.
    fn starts(&self, date: Date) -> Option<i64> {
        let midnight = self.zone.to_ambiguous_zoned(date.at(0, 0, 0, 0)).compatible().ok()?;
        Some(midnight.timestamp().as_millisecond())
    }
}

/// The date from which days are counted.
const EPOCH: Date = jiff::civil::date(1970, 1, 1);

impl Layout {
    /// Windows that follow each other.
    #[cfg(test)]
    pub(crate) fn tumbling(length: i64, offset: i64) -> Layout {
        Layout::Fixed(Fixed::new(length, length, offset))
    }

    /// The windows that contain a time, the first of them first.
    pub(crate) fn of(&self, time: EventTime, windows: &mut Vec<Span>) {
        match self {
            Layout::Fixed(fixed) => fixed.of(time, windows),
            Layout::Days(days) => {
                windows.clear();
                windows.push(days.of(time));
            }
            Layout::Instants => {
                windows.clear();
                windows.push(Span { start: time, end: time });
            }
            Layout::Global => {
                windows.clear();
                windows.push(ALL);
            }
        }
    }

    /// The window that begins there.
    pub(crate) fn window(&self, start: i64) -> Span {
        match self {
            Layout::Fixed(fixed) => fixed.from(start),
            Layout::Days(days) => Span { start: EventTime(start), ..days.of(EventTime(start)) },
            Layout::Instants => Span { start: EventTime(start), end: EventTime(start) },
            Layout::Global => ALL,
        }
    }

    /// Whether no two windows contain the same time.
    pub(super) fn is_disjoint(&self) -> bool {
        !matches!(self, Layout::Fixed(fixed) if fixed.overlaps())
    }
}

const ALL: Span = Span { start: EventTime::NONE, end: EventTime::END };

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: [i64; 12] = [i64::MIN + 1, -1_000_000_000_000, -11, -10, -1, 0, 1, 9, 10, 13, i64::MAX - 1, i64::MAX];

    fn all_of(layout: &Layout, time: i64) -> Vec<Span> {
        let mut windows = Vec::new();
        layout.of(EventTime(time), &mut windows);
        windows
    }

    #[test]
    fn a_time_lies_in_one_window_wherever_it_is() {
        for (length, offset) in [(10, 0), (10, 3), (7, 700_001), (1, 0), (i64::MAX, 5)] {
            let layout = Layout::tumbling(length, offset);
            for time in TIMES {
                let window = all_of(&layout, time)[0];
                assert!(window.contains(EventTime(time)), "{time} in {window:?} of {length}");
                let is_cut = window.start.0 == i64::MIN || window.end == EventTime::END;
                let (start, end) = (i128::from(window.start.0), i128::from(window.end.0));
                assert!(is_cut || end - start == i128::from(length), "{window:?}");
                assert!(is_cut || (start - i128::from(offset)).rem_euclid(i128::from(length)) == 0, "{window:?}");
                // The next one begins where it ends.
                assert!(is_cut || all_of(&layout, window.end.0)[0].start == window.end, "{window:?}");
                // The last millisecond that there is may be a window of its own, without an end.
                let last = all_of(&layout, window.last().0)[0];
                assert!(window.end == EventTime::END || last == window, "{window:?}");
                assert_eq!(layout.window(window.start.0), window);
            }
        }
    }

    #[test]
    fn a_time_lies_in_each_window_that_begins_at_a_step() {
        for (length, step, offset) in [(10, 1, 0), (10, 4, 3), (7, 5, 700_001), (3, 2, 1)] {
            let fixed = Fixed::new(length, step, offset);
            let layout = Layout::Fixed(fixed);
            for time in TIMES {
                let windows = all_of(&layout, time);
                assert!(windows.is_sorted_by(|a, b| a.start < b.start && a.end <= b.end), "{windows:?}");
                assert!(windows.iter().all(|window| window.contains(EventTime(time))), "{time}: {windows:?}");
                assert!(windows.iter().all(|window| layout.window(window.start.0) == *window));
                let starts =
                    |start: i64| (start - offset).rem_euclid(step) == 0 && start <= time && time < start + length;
                if time.checked_sub(length).is_some() && time.checked_add(length + 1).is_some() {
                    let expected: Vec<i64> = (time - length..=time).filter(|start| starts(*start)).collect();
                    assert_eq!(windows.iter().map(|window| window.start.0).collect::<Vec<_>>(), expected);
                    let pane = all_of(&Layout::Fixed(fixed.panes()), time)[0];
                    assert!(windows.iter().all(|window| window.start <= pane.start && pane.end <= window.end));
                    for after in [time - length, time - step, time - 1, time] {
                        let mut later: Vec<i64> = fixed.starts_after(after, EventTime(time)).collect();
                        later.reverse();
                        let expected: Vec<i64> = expected.iter().copied().filter(|start| *start > after).collect();
                        assert_eq!(later, expected);
                    }
                    let next: Vec<i64> = windows.iter().map(|window| fixed.next(window.start.0)).collect();
                    assert_eq!(next[..next.len() - 1], expected[1..]);
                }
                assert!(!windows.is_empty(), "{time}");
            }
        }
    }

    #[test]
    fn a_day_is_as_long_as_it_is_where_it_is() {
        let days = |days, zone| Layout::Days(Days::new(days, TimeZone::get(zone).unwrap()));
        let at = |text| EventTime::from_rfc3339(text).unwrap().0;
        let hours = |window: Span| (window.end.0 - window.start.0) / 3_600_000;
        let berlin = days(1, "Europe/Berlin");
        for (time, start, length) in [
            ("2025-03-30T12:00:00+02:00", "2025-03-30T00:00:00+01:00", 23),
            ("2025-10-26T02:30:00+01:00", "2025-10-26T00:00:00+02:00", 25),
            ("2025-11-24T00:00:00+01:00", "2025-11-24T00:00:00+01:00", 24),
            ("1969-12-31T23:30:00Z", "1970-01-01T00:00:00+01:00", 24),
        ] {
            let window = all_of(&berlin, at(time))[0];
            assert_eq!((window.start.0, hours(window)), (at(start), length), "{time}");
            assert_eq!(berlin.window(window.start.0), window);
            assert_eq!(all_of(&berlin, window.end.0)[0].start, window.end);
            assert_eq!(all_of(&berlin, window.last().0)[0], window);
        }
        // Midnight did not exist there on that day.
        let window = all_of(&days(1, "America/Sao_Paulo"), at("2018-11-04T12:00:00-02:00"))[0];
        assert_eq!((window.start.0, hours(window)), (at("2018-11-04T01:00:00-02:00"), 23));
        let weeks = all_of(&days(7, "UTC"), at("2025-11-24T12:00:00Z"))[0];
        assert_eq!(hours(weeks), 7 * 24);
        for time in TIMES {
            for layout in [&berlin, &days(7, "America/New_York")] {
                let window = all_of(layout, time)[0];
                assert!(window.contains(EventTime(time)), "{time} in {window:?}");
                assert_eq!(layout.window(window.start.0), window, "{time}");
            }
        }
    }
}
