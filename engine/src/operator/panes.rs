//! Windows that overlap, of an aggregate whose states can be merged: a record is added to one
//! *pane*, the stretch between two edges of windows, and a window that is final merges its panes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::state::keep::{Held, Keep};
use crate::state::table::{Table, TableKey};
use crate::words::{Admission, Batch, EventTime, Pane, Result, Span, StageMeter, Stamp, WatermarkPolicy};

use super::agenda::Agenda;
use super::aggregate::{Aggregate, InParts, Shell};
use super::keyed::Operate;
use super::late::{LateRecords, LateStream};
use super::layout::Fixed;
use super::stage::Capabilities;
use super::window::cannot_encode;

/// What came in a pane.
#[derive(Debug, Serialize, Deserialize)]
struct Part<S> {
    /// Where the pane begins.
    pane: i64,
    /// The start of the first window that it counts in: records that were late for some of the
    /// windows around them count in the later ones alone.
    first: i64,
    state: S,
}

/// The panes of a key, in order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Parts<S> {
    parts: Vec<Part<S>>,
    /// The start of the window that was emitted last. Of two keys with one hash it tells which is
    /// done; a run that begins has emitted nothing that is still open.
    #[serde(skip)]
    emitted: Option<i64>,
}

impl<S> Parts<S> {
    fn new() -> Parts<S> {
        Parts { parts: Vec::new(), emitted: None }
    }

    /// Whether it has anything for a window.
    fn has(&self, window: Span) -> bool {
        self.parts.iter().any(|part| part.is_in(window))
    }
}

/// How many entries are looked at before they are needed.
const AHEAD: usize = 32;

/// Reads the parts of a key, so that they are in the processor's caches.
fn look<S>(parts: &Parts<S>) -> u32 {
    parts.parts.last().map_or(0, |part| part.pane as u32)
}

impl<S> Part<S> {
    fn is_in(&self, window: Span) -> bool {
        self.first <= window.start.0 && window.contains(EventTime(self.pane))
    }
}

impl<A: Aggregate> InParts<A> for Parts<A::State> {
    fn same(&self) -> Vec<u8> {
        let all = self.parts.iter().flat_map(|part| {
            let own = A::SAME.map_or_else(Vec::new, |same| same(&part.state));
            [part.pane.to_le_bytes().to_vec(), part.first.to_le_bytes().to_vec(), own].concat()
        });
        all.collect()
    }

    const SHELL: Shell = Shell::Panes;

    fn of(parts: Vec<(i64, i64, A::State)>) -> Parts<A::State> {
        let part = |(pane, first, state)| Part { pane, first, state };
        Parts { parts: parts.into_iter().map(part).collect(), emitted: None }
    }
}

/// Counts in all windows around it.
const ALL: i64 = i64::MIN;

/// The state of an aggregate by key and pane.
pub(crate) type PaneTable<K, S> = Table<K, Parts<S>>;

/// Emits the value of each key and window once it is final.
pub(crate) struct Panes<K, A: Aggregate> {
    aggregate: A,
    fixed: Fixed,
    panes: Fixed,
    lateness: Duration,
    table: PaneTable<K, A::State>,
    /// Where each key is that has a pane in a window, by the starts of windows.
    open: Agenda,
    watermark: EventTime,
    late: LateRecords<A::Input>,
}

/// The windows around a pane, and what of them records are late for.
struct Around {
    pane: Span,
    windows: Vec<Span>,
}

impl<K: TableKey, A: Aggregate> Panes<K, A> {
    pub(crate) fn new(
        (aggregate, table): (A, PaneTable<K, A::State>),
        (fixed, lateness): (Fixed, Duration),
        late: Option<Arc<StageMeter>>,
    ) -> Panes<K, A> {
        Panes {
            aggregate,
            fixed,
            panes: fixed.panes(),
            lateness,
            table,
            open: Agenda::default(),
            watermark: EventTime::NONE,
            late: LateRecords::new(late),
        }
    }

    fn over(&self, start: i64) -> EventTime {
        self.fixed.window(start).end.after(self.lateness)
    }
}

impl<K: TableKey, A: Aggregate<Input: Clone>> Operate for Panes<K, A> {
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
        let mut added = Vec::with_capacity(records.len());
        let mut around: Option<Around> = None;
        for ((key, input), stamp) in records.into_iter().zip(stamps) {
            let Some(time) = stamp.time() else {
                self.late.add(input, stamp, Vec::new());
                continue;
            };
            let around = match &mut around {
                Some(around) if around.pane.contains(time) => around,
                around => {
                    let mut windows = Vec::new();
                    self.panes.of(time, &mut windows);
                    let pane = windows[0];
                    self.fixed.of(time, &mut windows);
                    around.insert(Around { pane, windows })
                }
            };
            let mark = stamp.mark.max(self.watermark);
            let windows = &around.windows;
            let late = windows.iter().take_while(|window| window.end.after(self.lateness) <= mark).count();
            if late == windows.len() {
                self.late.add(input, stamp, windows.clone());
                continue;
            }
            let first = if late == 0 { ALL } else { windows[late].start.0 };
            if late > 0 {
                self.late.add(input.clone(), stamp, windows[..late].to_vec());
            }
            in_time.push((key, input));
            added.push((around.pane.start.0, first, time));
        }
        let (aggregate, fixed) = (&self.aggregate, self.fixed);
        let (mut opened, mut windows) = (Vec::new(), Vec::new());
        self.table.update_looking(in_time, look, Parts::new, |index, _, input, Parts { parts, .. }, _| {
            let (pane, first, time) = added[index];
            let before = parts.iter().rposition(|part| (part.pane, part.first) <= (pane, first));
            if let Some(part) = before.map(|place| &mut parts[place])
                && (part.pane, part.first) == (pane, first)
            {
                return aggregate.add(&mut part.state, input, Some(time));
            }
            // The windows in which the key has nothing yet.
            let place = before.map_or(0, |place| place + 1);
            let all_below = before.map(|place| &parts[place]).filter(|part| part.first == ALL);
            if let Some(below) = all_below.filter(|_| first == ALL && place == parts.len()) {
                // As nearly always: no window that begins by then is new, and all others are.
                opened.extend(fixed.starts_after(below.pane, time).map(|start| (start, index)));
            } else {
                fixed.of(time, &mut windows);
                let is_new = |window: &&Span| first <= window.start.0 && !parts.iter().any(|part| part.is_in(**window));
                opened.extend(windows.iter().filter(is_new).map(|window| (window.start.0, index)));
            }
            let mut state = aggregate.zero();
            aggregate.add(&mut state, input, Some(time))?;
            parts.insert(place, Part { pane, first, state });
            Ok(())
        })?;
        for (start, index) in opened {
            self.open.add(start, self.table.updated_place(index));
        }
        Ok(())
    }

    fn begin(&mut self, watermark: EventTime, _: WatermarkPolicy) {
        self.watermark = watermark;
        let mut windows = Vec::new();
        for (entry, place) in self.table.places() {
            let parts = &entry.state.parts;
            for (index, part) in parts.iter().enumerate() {
                self.fixed.of(EventTime(part.pane), &mut windows);
                let is_open = |window: &&Span| window.end.after(self.lateness) > watermark;
                let is_new =
                    |window: &&Span| part.is_in(**window) && !parts[..index].iter().any(|part| part.is_in(**window));
                for window in windows.iter().filter(is_open).filter(is_new) {
                    self.open.add(window.start.0, place);
                }
            }
        }
        self.table.held_beside = self.open.bytes();
    }

    fn advance(&mut self, watermark: EventTime) {
        self.watermark = watermark;
    }

    fn fire(&mut self, rows: usize, out: &mut Batch<Pane<K, A::Value>>) -> Result<bool> {
        let (aggregate, fixed, lateness, watermark) = (&self.aggregate, self.fixed, self.lateness, self.watermark);
        let is_over = |start| fixed.window(start).end.after(lateness) <= watermark;
        for row in 0..rows {
            if row % AHEAD == 0 {
                self.table.look_at(self.open.ahead().iter().take(AHEAD), look);
            }
            let Some((start, place)) = self.open.next(is_over) else {
                self.table.held_beside = self.open.bytes();
                return Ok(false);
            };
            // Panes before the next one are in no later window.
            let (window, needed) = (fixed.window(start), fixed.next(start));
            let is_it = |parts: &Parts<A::State>| parts.emitted < Some(start) && parts.has(window);
            let emitted = self.table.alter(place, is_it, |key, parts, _| -> Result<bool> {
                let mut value = aggregate.zero();
                let mut in_window = parts.parts.iter().filter(|part| part.is_in(window));
                in_window.try_for_each(|part| aggregate.merge(&mut value, &part.state))?;
                let row = Pane { key: key.clone(), window, value: aggregate.value(&value) };
                out.append(row, Some(Stamp::in_time(window.last())));
                parts.parts.retain(|part| part.pane >= needed);
                parts.emitted = Some(start);
                Ok(parts.parts.is_empty())
            });
            if emitted.transpose()?.unwrap_or(false) {
                self.table.take(place, |_, parts| parts.parts.is_empty()).map_err(cannot_encode)?;
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

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }

    fn held(&mut self) -> Option<&mut dyn Held> {
        self.table.held_beside = self.open.bytes();
        Some(&mut self.table)
    }
}
