//! Windows of fixed length over event time: one state for each key and window, which is emitted
//! once the watermark has passed the window's end, and then gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::state::keep::{Held, Keep};
use crate::state::table::{ByFirst, Found, Place, Table, TableKey};
use crate::words::{Admission, Batch, Error, ErrorKind, EventTime, Pane, Result, Span, StageMeter, Stamp};

use super::aggregate::Aggregate;
use super::keyed::Operate;
use super::late::{LateRecords, LateStream};
use super::stage::Capabilities;

/// Windows that follow each other without a gap, aligned to 1970 and an offset. All in
/// milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fixed {
    length: i64,
    /// From 0 to less than `length`.
    offset: i64,
}

impl Fixed {
    /// Windows of that length, which must be positive.
    pub(crate) fn new(length: i64, offset: i64) -> Fixed {
        Fixed { length, offset: offset.rem_euclid(length) }
    }

    /// The window of a time. At the ends of time windows are cut off.
    fn of(self, time: EventTime) -> Span {
        self.from(time.0.saturating_sub(self.since_start(time.0)))
    }

    /// How long before that time its window begins.
    fn since_start(self, time: i64) -> i64 {
        (time.rem_euclid(self.length) - self.offset).rem_euclid(self.length)
    }

    /// The window that begins there.
    fn from(self, start: i64) -> Span {
        // The first window of all may have begun before it.
        let length = if start == i64::MIN { self.length - self.since_start(start) } else { self.length };
        Span { start: EventTime(start), end: EventTime(start.saturating_add(length)) }
    }
}

/// A key and the start of a window.
type InWindow<K> = (K, i64);

/// The state of an aggregate by key and window.
pub(crate) type WindowTable<K, S> = Table<InWindow<K>, S, ByFirst>;

/// Emits the value of each key and window once, when it is final.
pub(crate) struct Windows<K, A: Aggregate> {
    aggregate: A,
    fixed: Fixed,
    table: WindowTable<K, A::State>,
    /// By the starts of windows: where the state of each key is, in the order of their first
    /// records.
    open: BTreeMap<i64, Vec<Place>>,
    watermark: EventTime,
    /// The window that is emitted now.
    closing: Option<(i64, std::vec::IntoIter<Place>)>,
    late: LateRecords<A::Input>,
}

impl<K: TableKey, A: Aggregate> Windows<K, A> {
    pub(crate) fn new(
        (aggregate, table): (A, WindowTable<K, A::State>),
        fixed: Fixed,
        late: Option<Arc<StageMeter>>,
    ) -> Windows<K, A> {
        let (open, watermark, late) = (BTreeMap::new(), EventTime::NONE, LateRecords::new(late));
        Windows { aggregate, fixed, table, open, watermark, closing: None, late }
    }

    /// The memory of the places of open windows: each entry has one, and half of a list may be
    /// empty.
    fn count_places(&mut self) {
        self.table.held_beside = 2 * self.table.len() as usize * size_of::<Place>();
    }
}

impl<K: TableKey, A: Aggregate> Operate for Windows<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = Pane<K, A::Value>;

    const EMITS_AT_CLOSE: bool = false;

    fn apply(
        &mut self,
        records: Vec<(K, A::Input)>,
        stamps: VecDeque<Stamp>,
        _: &mut Batch<Pane<K, A::Value>>,
    ) -> Result<()> {
        debug_assert_eq!(stamps.len(), records.len(), "a stream with a watermark has a stamp for each record");
        let mut in_time = Vec::with_capacity(records.len());
        let mut times = Vec::with_capacity(records.len());
        let mut window = self.fixed.of(EventTime(0));
        for ((key, input), stamp) in records.into_iter().zip(stamps) {
            let Some(time) = stamp.time() else {
                self.late.add(input, stamp, Vec::new());
                continue;
            };
            if !window.contains(time) {
                window = self.fixed.of(time);
            }
            if window.end <= stamp.mark.max(self.watermark) {
                self.late.add(input, stamp, vec![window]);
                continue;
            }
            in_time.push(((key, window.start.0), input));
            times.push(time);
        }
        let (aggregate, first) = (&self.aggregate, self.table.touched_len());
        let (mut touched, mut opened) = (first, Vec::new());
        self.table.update(
            in_time,
            || aggregate.zero(),
            |index, (_, start), input, state, found| {
                if found == Found::Nothing {
                    opened.push((start, touched));
                }
                touched += usize::from(found != Found::Touched);
                aggregate.add(state, input, Some(times[index]))
            },
        )?;
        let mut opened = opened.into_iter().peekable();
        while let Some((start, touched)) = opened.next() {
            let places = self.open.entry(start).or_default();
            places.push(self.table.touched_place(touched));
            while let Some((_, touched)) = opened.next_if(|(next, _)| *next == start) {
                places.push(self.table.touched_place(touched));
            }
        }
        Ok(())
    }

    fn begin(&mut self, watermark: EventTime) {
        self.watermark = watermark;
        for ((_, start), place) in self.table.places() {
            self.open.entry(*start).or_default().push(place);
        }
        self.count_places();
    }

    fn advance(&mut self, watermark: EventTime) {
        self.watermark = watermark;
    }

    fn fire(&mut self, rows: usize, out: &mut Batch<Pane<K, A::Value>>) -> Result<bool> {
        let before = out.len();
        loop {
            let (start, places) = match &mut self.closing {
                Some((start, places)) => (*start, places),
                None => {
                    let first = self.open.first_entry();
                    let Some(first) = first.filter(|first| self.fixed.from(*first.key()).end <= self.watermark) else {
                        self.count_places();
                        return Ok(false);
                    };
                    let (start, places) = first.remove_entry();
                    let (_, places) = self.closing.insert((start, places.into_iter()));
                    (start, places)
                }
            };
            let window = self.fixed.from(start);
            let stamp = Stamp::in_time(window.last());
            for place in places.by_ref().take(rows - (out.len() - before)) {
                let taken = self.table.take(place, |(_, own)| *own == start).map_err(cannot_encode)?;
                if let Some(((key, _), state)) = taken {
                    out.append(Pane { key, window, value: self.aggregate.value(&state) }, Some(stamp));
                }
            }
            if places.len() > 0 {
                return Ok(true);
            }
            self.closing = None;
        }
    }

    fn due(&self) -> Option<EventTime> {
        self.open.first_key_value().map(|(start, _)| self.fixed.from(*start).end)
    }

    fn open_late<'a>(&mut self, builder: &mut OperatorBuilder<'a, u64>) -> Option<LateStream<'a, A::Input>> {
        self.late.open(builder)
    }

    fn hand_on_late(&mut self, admission: Option<&Admission>, at: &Capabilities) -> Result<u64> {
        self.late.hand_on(admission, at)?;
        Ok(self.late.take_count())
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }

    fn held(&mut self) -> Option<&mut dyn Held> {
        self.count_places();
        Some(&mut self.table)
    }
}

fn cannot_encode(cause: postcard::Error) -> Error {
    Error::new(ErrorKind::State, "cannot encode the key of a window").caused_by(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_lies_in_one_window_wherever_it_is() {
        for (length, offset) in [(10, 0), (10, 3), (7, 700_001), (1, 0), (i64::MAX, 5)] {
            let fixed = Fixed::new(length, offset);
            for time in [i64::MIN + 1, -1_000_000_000_000, -11, -10, -1, 0, 1, 9, 10, 13, i64::MAX - 1, i64::MAX] {
                let window = fixed.of(EventTime(time));
                assert!(window.contains(EventTime(time)), "{time} in {window:?} of {length}");
                let is_cut = window.start.0 == i64::MIN || window.end == EventTime::END;
                let (start, end) = (i128::from(window.start.0), i128::from(window.end.0));
                assert!(is_cut || end - start == i128::from(length), "{window:?}");
                assert!(is_cut || (start - i128::from(offset)).rem_euclid(i128::from(length)) == 0, "{window:?}");
                // The next one begins where it ends.
                assert!(is_cut || fixed.of(window.end).start == window.end, "{window:?}");
                // The last millisecond that there is may be a window of its own, without an end.
                assert!(window.end == EventTime::END || fixed.of(window.last()) == window, "{window:?}");
            }
        }
    }
}
