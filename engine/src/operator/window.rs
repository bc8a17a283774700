//! Windows over event time: one state for each key and window, which is gone once the watermark has
//! passed the window's end.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::state::keep::{Held, Keep};
use crate::state::table::{Found, Place, TableKey, Taken};
use crate::words::{Admission, Batch, Error, ErrorKind, EventTime, Result, Span, StageMeter, Stamp, WatermarkPolicy};

use super::aggregate::Aggregate;
use super::keyed::Operate;
use super::late::{LateRecords, LateStream};
use super::layout::Layout;
use super::shown::{Added, Show, WindowTable};
use super::stage::Capabilities;

/// See the module. A record is added to each window that it belongs to.
pub(crate) struct Windows<K, A: Aggregate, S> {
    aggregate: A,
    layout: Layout,
    /// How long a window stays open behind its end.
    lateness: Duration,
    table: WindowTable<K, A::State>,
    show: S,
    /// By the starts of windows: where the state of each key is, in the order of their first
    /// records.
    open: BTreeMap<i64, Vec<Place>>,
    watermark: EventTime,
    /// The window that is emitted now.
    closing: Option<(i64, std::vec::IntoIter<Place>)>,
    late: LateRecords<A::Input>,
}

/// What windows are over event time.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) layout: Layout,
    /// How long a window stays open behind its end.
    pub(crate) lateness: Duration,
}

impl<K: TableKey, A: Aggregate, S: Show<K, A>> Windows<K, A, S> {
    pub(crate) fn new(
        (aggregate, table): (A, WindowTable<K, A::State>),
        Rules { layout, lateness }: Rules,
        show: S,
        late: Option<Arc<StageMeter>>,
    ) -> Windows<K, A, S> {
        let (open, watermark, late) = (BTreeMap::new(), EventTime::NONE, LateRecords::new(late));
        Windows { aggregate, layout, lateness, table, show, open, watermark, closing: None, late }
    }

    /// The event time at which the window is over that begins there.
    fn over(&self, start: i64) -> EventTime {
        self.layout.window(start).end.after(self.lateness)
    }

    /// The memory of the places of open windows: each entry has one, and half of a list may be
    /// empty.
    fn count_places(&mut self) {
        self.table.held_beside = 2 * self.table.len() as usize * size_of::<Place>();
    }
}

impl<K: TableKey, A: Aggregate<Input: Clone>, S: Show<K, A>> Operate for Windows<K, A, S> {
    type Key = K;
    type Input = A::Input;
    type Output = S::Row;

    const EMITS_AT_CLOSE: bool = S::AT_CLOSE;

    fn apply(&mut self, records: Vec<(K, A::Input)>, stamps: VecDeque<Stamp>, out: &mut Batch<S::Row>) -> Result<()> {
        debug_assert_eq!(stamps.len(), records.len(), "a stream with a watermark has a stamp for each record");
        let mut in_time = Vec::with_capacity(records.len());
        let mut added = Vec::with_capacity(records.len());
        let (mut windows, is_disjoint) = (Vec::new(), self.layout.is_disjoint());
        for ((key, input), stamp) in records.into_iter().zip(stamps) {
            let Some(time) = stamp.time() else {
                self.late.add(input, stamp, Vec::new());
                continue;
            };
            // Most records are in the window of the one before.
            if !is_disjoint || windows.first().is_none_or(|window: &Span| !window.contains(time)) {
                self.layout.of(time, &mut windows);
            }
            let mark = stamp.mark.max(self.watermark);
            let late = windows.iter().take_while(|window| window.end.after(self.lateness) <= mark).count();
            let Some((last, others)) = windows[late..].split_last() else {
                self.late.add(input, stamp, windows.clone());
                continue;
            };
            for window in others {
                in_time.push(((key.clone(), window.start.0), input.clone()));
                added.push((*window, stamp));
            }
            if late > 0 {
                self.late.add(input.clone(), stamp, windows[..late].to_vec());
            }
            in_time.push(((key, last.start.0), input));
            added.push((*last, stamp));
        }
        let (aggregate, show, mut opened) = (&self.aggregate, &mut self.show, Vec::new());
        self.table.update(
            in_time,
            || aggregate.zero(),
            |index, (key, start), input, state, found| {
                if found == Found::Nothing {
                    opened.push((start, index));
                }
                let (window, stamp) = added[index];
                show.add(aggregate, Added { key, window, input, stamp, found }, state, out)
            },
        )?;
        let mut opened = opened.into_iter().peekable();
        while let Some((start, index)) = opened.next() {
            let places = self.open.entry(start).or_default();
            places.push(self.table.updated_place(index));
            while let Some((_, index)) = opened.next_if(|(next, _)| *next == start) {
                places.push(self.table.updated_place(index));
            }
        }
        Ok(())
    }

    fn begin(&mut self, watermark: EventTime, _: WatermarkPolicy) {
        self.watermark = watermark;
        for (entry, place) in self.table.places() {
            self.open.entry(entry.key.1).or_default().push(place);
        }
        self.count_places();
    }

    fn advance(&mut self, watermark: EventTime) {
        self.watermark = watermark;
    }

    fn close(&mut self, rows: usize, out: &mut Batch<S::Row>) -> bool {
        self.show.close(&self.aggregate, (&self.layout, &self.table), rows, out)
    }

    fn fire(&mut self, rows: usize, out: &mut Batch<S::Row>) -> Result<bool> {
        let mut left = rows;
        loop {
            let (start, places) = match &mut self.closing {
                Some((start, places)) => (*start, places),
                None => {
                    let first = self.open.first_key_value().map(|(start, _)| *start);
                    let Some(start) = first.filter(|start| self.over(*start) <= self.watermark) else {
                        self.count_places();
                        return Ok(false);
                    };
                    let places = self.open.remove(&start).unwrap_or_default();
                    let (_, places) = self.closing.insert((start, places.into_iter()));
                    (start, places)
                }
            };
            let window = self.layout.window(start);
            for place in places.by_ref().take(left) {
                left -= 1;
                let taken = self.table.take(place, |(_, own), _| *own == start).map_err(cannot_encode)?;
                if let Some(Taken { key: (key, _), state, touched }) = taken {
                    self.show.end(&self.aggregate, (key, window), &state, touched, out);
                }
            }
            if places.len() > 0 {
                return Ok(true);
            }
            self.closing = None;
        }
    }

    fn due(&self) -> Option<EventTime> {
        self.open.first_key_value().map(|(start, _)| self.over(*start))
    }

    fn open_late<'a>(&mut self, builder: &mut OperatorBuilder<'a, u64>) -> Option<LateStream<'a, A::Input>> {
        self.late.open(builder)
    }

    fn hand_on_late(&mut self, admission: Option<&Admission>, at: &Capabilities) -> Result<u64> {
        self.late.hand_on(admission, at)?;
        Ok(self.late.take_count())
    }

    fn rows(&self) -> Option<usize> {
        S::AT_CLOSE.then(|| self.table.touched_len())
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }

    fn held(&mut self) -> Option<&mut dyn Held> {
        self.count_places();
        Some(&mut self.table)
    }
}

pub(super) fn cannot_encode(cause: postcard::Error) -> Error {
    Error::new(ErrorKind::State, "cannot encode the key of a window").caused_by(cause)
}
