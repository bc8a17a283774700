//! Windows of fixed length over event time: one state for each key and window, which is emitted
//! once the watermark has passed the window's end, and then gone.

use std::collections::{BTreeMap, VecDeque};

use crate::state::keep::{Held, Keep};
use crate::state::table::{ByFirst, Found, Place, Table, TableKey};
use crate::words::{Batch, Error, ErrorKind, EventTime, Pane, Result, Span, Stamp};

use super::aggregate::Aggregate;
use super::keyed::Operate;

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
        let since = (time.0.rem_euclid(self.length) - self.offset).rem_euclid(self.length);
        self.from(time.0.saturating_sub(since))
    }

    fn from(self, start: i64) -> Span {
        Span { start: EventTime(start), end: EventTime(start.saturating_add(self.length)) }
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
    late: u64,
}

impl<K: TableKey, A: Aggregate> Windows<K, A> {
    pub(crate) fn new((aggregate, table): (A, WindowTable<K, A::State>), fixed: Fixed) -> Windows<K, A> {
        let (open, watermark) = (BTreeMap::new(), EventTime::NONE);
        Windows { aggregate, fixed, table, open, watermark, closing: None, late: 0 }
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
        let mut in_time = Vec::with_capacity(records.len());
        let mut times = Vec::with_capacity(records.len());
        let mut window = self.fixed.of(EventTime(0));
        for ((key, input), stamp) in records.into_iter().zip(stamps) {
            let Some(time) = stamp.time() else {
                self.late += 1;
                continue;
            };
            if !window.contains(time) {
                window = self.fixed.of(time);
            }
            if window.end <= stamp.mark.max(self.watermark) {
                self.late += 1;
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

    fn take_late(&mut self) -> u64 {
        std::mem::take(&mut self.late)
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
