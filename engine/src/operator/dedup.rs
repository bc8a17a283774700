//! The first records of keys, for as long as event time has not passed them.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::state::keep::{Held, Keep};
use crate::state::table::{ByFirst, ByKey, Found, Grouping, Table, TableKey, TableState};
use crate::words::{Admission, Batch, EventTime, Result, Span, StageMeter, Stamp, WatermarkPolicy};

use super::agenda::Agenda;
use super::keyed::Operate;
use super::late::{LateRecords, LateStream};
use super::stage::Capabilities;
use super::window::cannot_encode;

/// Which records are duplicates, and until when that is known.
pub(crate) trait Duplicates<K>: 'static {
    type Key: TableKey;
    type State: TableState;
    type Grouping: Grouping<Self::Key>;

    fn key(&self, key: K, time: EventTime) -> Self::Key;

    /// What is kept of the first record.
    fn state(&self, time: EventTime) -> Self::State;

    /// When an entry goes.
    fn expires(key: &Self::Key, state: &Self::State) -> EventTime;
}

/// Those of the same key and event time.
#[derive(Debug)]
pub(crate) struct OfTime;

impl<K: TableKey> Duplicates<K> for OfTime {
    type Key = (K, i64);
    type State = ();
    type Grouping = ByFirst;

    fn key(&self, key: K, time: EventTime) -> (K, i64) {
        (key, time.0)
    }

    fn state(&self, _: EventTime) {}

    fn expires((_, time): &(K, i64), (): &()) -> EventTime {
        EventTime(*time)
    }
}

/// Those of the same key that come in this time of events behind the first.
#[derive(Debug)]
pub(crate) struct Within(pub(crate) Duration);

impl<K: TableKey> Duplicates<K> for Within {
    type Key = K;
    /// The end of that time.
    type State = i64;
    type Grouping = ByKey;

    fn key(&self, key: K, _: EventTime) -> K {
        key
    }

    fn state(&self, time: EventTime) -> i64 {
        time.after(self.0).0
    }

    fn expires(_: &K, end: &i64) -> EventTime {
        EventTime(*end)
    }
}

/// Hands on records that are no duplicates.
pub(crate) struct Dedup<K, T: 'static, D: Duplicates<K>> {
    duplicates: D,
    table: Table<D::Key, D::State, D::Grouping>,
    /// Where entries are, by the time at which they go. One may be there again, later.
    due: Agenda,
    watermark: EventTime,
    late: LateRecords<T>,
    record: PhantomData<fn(K, T)>,
}

impl<K, T, D: Duplicates<K>> Dedup<K, T, D> {
    pub(crate) fn new(duplicates: D, late: Option<Arc<StageMeter>>) -> Dedup<K, T, D> {
        let (table, late) = (Table::new(), LateRecords::new(late));
        Dedup { duplicates, table, due: Agenda::default(), watermark: EventTime::NONE, late, record: PhantomData }
    }
}

impl<K: TableKey, T: 'static, D: Duplicates<K>> Operate for Dedup<K, T, D> {
    type Key = K;
    type Input = T;
    type Output = T;

    const EMITS_AT_CLOSE: bool = false;
    // A record of the time of the watermark is late.
    const IS_STRICT: bool = true;

    fn apply(&mut self, records: Vec<(K, T)>, stamps: VecDeque<Stamp>, out: &mut Batch<T>) -> Result<()> {
        debug_assert_eq!(stamps.len(), records.len(), "a stream with a watermark has a stamp for each record");
        let mut in_time = Vec::with_capacity(records.len());
        let mut at = Vec::with_capacity(records.len());
        for ((key, record), stamp) in records.into_iter().zip(stamps) {
            match stamp.time() {
                Some(time) if time > stamp.mark.max(self.watermark) => {
                    in_time.push((self.duplicates.key(key, time), record));
                    at.push((time, stamp));
                }
                time => {
                    let missed = time.map(|time| Span { start: time, end: EventTime(time.0.saturating_add(1)) });
                    self.late.add(record, stamp, missed.into_iter().collect());
                }
            }
        }
        let (duplicates, watermark, mut opened) = (&self.duplicates, self.watermark, Vec::new());
        let zero = || duplicates.state(EventTime::NONE);
        self.table.update(in_time, zero, |index, key, record, state, found| {
            let (time, stamp) = at[index];
            // Records of the key's own partition have shown that it is over, or all have.
            let is_over = |state| D::expires(&key, state) <= stamp.mark.max(watermark);
            if found == Found::Nothing || is_over(state) {
                *state = duplicates.state(time);
                opened.push((D::expires(&key, state), index));
                out.append(record, Some(stamp));
            }
            Ok(())
        })?;
        for (due, index) in opened {
            self.due.add(due.0, self.table.updated_place(index));
        }
        Ok(())
    }

    fn begin(&mut self, watermark: EventTime, _: WatermarkPolicy) {
        self.watermark = watermark;
        for (entry, place) in self.table.places() {
            self.due.add(D::expires(&entry.key, &entry.state).0, place);
        }
        self.table.held_beside = self.due.bytes();
    }

    fn advance(&mut self, watermark: EventTime) {
        self.watermark = watermark;
    }

    fn fire(&mut self, rows: usize, _: &mut Batch<T>) -> Result<bool> {
        let watermark = self.watermark.0;
        for _ in 0..rows {
            let Some((due, place)) = self.due.next(|due| due <= watermark) else {
                self.table.held_beside = self.due.bytes();
                return Ok(false);
            };
            let is_it = |key: &D::Key, state: &D::State| D::expires(key, state).0 == due;
            self.table.take(place, is_it).map_err(cannot_encode)?;
        }
        Ok(true)
    }

    fn due(&self) -> Option<EventTime> {
        self.due.first().map(EventTime)
    }

    fn open_late<'a>(&mut self, builder: &mut OperatorBuilder<'a, u64>) -> Option<LateStream<'a, T>> {
        self.late.open(builder)
    }

    fn hand_on_late(&mut self, admission: Option<&Admission>, at: &Capabilities) -> Result<u64> {
        self.late.hand_on(admission, at)
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }

    fn held(&mut self) -> Option<&mut dyn Held> {
        self.table.held_beside = self.due.bytes();
        Some(&mut self.table)
    }
}
