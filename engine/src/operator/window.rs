//! Windows over event time: one state for each key and window, which is gone once the watermark has
//! passed the window's end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::state::keep::{Held, Keep};
use crate::state::table::{Found, TableKey, Taken};
use crate::words::{Admission, Batch, Error, ErrorKind, EventTime, Result, Span, StageMeter, Stamp, WatermarkPolicy};

use super::agenda::Agenda;
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
    /// Where the state of each key is, by the starts of windows, in the order of their first
    /// records.
    open: Agenda,
    watermark: EventTime,
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
        let (open, watermark, late) = (Agenda::default(), EventTime::NONE, LateRecords::new(late));
        Windows { aggregate, layout, lateness, table, show, open, watermark, late }
    }

    /// The event time at which the window is over that begins there.
    fn over(&self, start: i64) -> EventTime {
        self.layout.window(start).end.after(self.lateness)
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
        for (start, index) in opened {
            self.open.add(start, self.table.updated_place(index));
        }
        Ok(())
    }

    fn begin(&mut self, watermark: EventTime, _: WatermarkPolicy) {
        self.watermark = watermark;
        for (entry, place) in self.table.places() {
            self.open.add(entry.key.1, place);
        }
        self.table.held_beside = self.open.bytes();
    }

    fn advance(&mut self, watermark: EventTime) {
        self.watermark = watermark;
    }

    fn close(&mut self, rows: usize, out: &mut Batch<S::Row>) -> bool {
        self.show.close(&self.aggregate, (&self.layout, &self.table), rows, out)
    }

    fn fire(&mut self, rows: usize, out: &mut Batch<S::Row>) -> Result<bool> {
        let (layout, lateness, watermark) = (&self.layout, self.lateness, self.watermark);
        let is_over = |start| layout.window(start).end.after(lateness) <= watermark;
        let mut window: Option<Span> = None;
        for _ in 0..rows {
            let Some((start, place)) = self.open.next(is_over) else {
                self.table.held_beside = self.open.bytes();
                return Ok(false);
            };
            let own = window.filter(|window| window.start.0 == start).unwrap_or_else(|| layout.window(start));
            window = Some(own);
            let taken = self.table.take(place, |(_, own), _| *own == start).map_err(cannot_encode)?;
            if let Some(Taken { key: (key, _), state, touched }) = taken {
                self.show.end(&self.aggregate, (key, own), &state, touched, out);
            }
        }
        Ok(true)
    }

    fn due(&self) -> Option<EventTime> {
        self.open.first().map(|start| self.over(start))
    }

    fn open_late<'a>(&mut self, builder: &mut OperatorBuilder<'a, u64>) -> Option<LateStream<'a, A::Input>> {
        self.late.open(builder)
    }

    fn hand_on_late(&mut self, admission: Option<&Admission>, at: &Capabilities) -> Result<u64> {
        self.late.hand_on(admission, at)
    }

    fn rows(&self) -> Option<usize> {
        S::AT_CLOSE.then(|| self.table.touched_len())
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }

    fn held(&mut self) -> Option<&mut dyn Held> {
        self.table.held_beside = self.open.bytes();
        Some(&mut self.table)
    }
}

pub(super) fn cannot_encode(cause: postcard::Error) -> Error {
    Error::new(ErrorKind::State, "cannot encode the key of a window").caused_by(cause)
}
