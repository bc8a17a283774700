//! Aggregates by key, and what they emit: each change at once, or what a checkpoint has changed.

use std::collections::VecDeque;
use std::hash::Hash;

use crate::state::table::{Entry, Found, Table, Touched};
use crate::words::{Batch, Change, EventTime, KEY_GROUPS, Result};

use super::keyed::Operate;

/// How the records of a key become a value.
pub(crate) trait Aggregate: 'static {
    type Input: 'static;
    type State: 'static;
    type Value: 'static;

    /// The state of a key before its first record.
    fn zero(&self) -> Self::State;

    /// Adds a record.
    ///
    /// # Errors
    /// When the result cannot be represented.
    fn add(&self, state: &mut Self::State, input: Self::Input, time: Option<EventTime>) -> Result<()>;

    fn value(&self, state: &Self::State) -> Self::Value;
}

/// A key of the engine's tables.
pub(crate) trait KeyOf: Hash + Eq + Clone + 'static {}

impl<K: Hash + Eq + Clone + 'static> KeyOf for K {}

/// The records of a batch with their times.
fn timed<T>(records: VecDeque<T>, times: VecDeque<EventTime>) -> impl Iterator<Item = (T, Option<EventTime>)> {
    let mut times = times.into_iter();
    // Through `Vec`, whose iterator compiles to a tighter loop.
    Vec::from(records).into_iter().map(move |record| (record, times.next()))
}

/// Emits the new value with each record.
pub(crate) struct Updates<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
}

impl<K: KeyOf, A: Aggregate> Updates<K, A> {
    pub(crate) fn new(aggregate: A) -> Updates<K, A> {
        Updates { aggregate, table: Table::new() }
    }
}

impl<K: KeyOf, A: Aggregate> Operate for Updates<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = (K, A::Value);

    const EMITS_AT_CLOSE: bool = false;

    fn apply(
        &mut self,
        records: VecDeque<(K, A::Input)>,
        times: VecDeque<EventTime>,
        out: &mut Batch<(K, A::Value)>,
    ) -> Result<()> {
        out.reserve(records.len());
        for ((key, input), time) in timed(records, times) {
            let (entry, _) = self.table.touch(key, || self.aggregate.zero());
            self.aggregate.add(&mut entry.state, input, time)?;
            out.append((entry.key.clone(), self.aggregate.value(&entry.state)), time);
        }
        Ok(())
    }

    fn close(&mut self, _: usize, _: &mut Batch<(K, A::Value)>) -> bool {
        drop(self.table.take_touched());
        false
    }
}

/// What was touched in the checkpoint that is being closed, and how far it was emitted.
#[derive(Default)]
struct Closing {
    touched: Option<Vec<Touched>>,
    next: usize,
}

impl Closing {
    /// Passes the next entries to `emit`, at most `rows` of them, with their places. Returns
    /// whether there are more.
    fn emit<K: KeyOf, S>(
        &mut self,
        table: &mut Table<K, S>,
        rows: usize,
        mut emit: impl FnMut(usize, &Entry<K, S>),
    ) -> bool {
        let touched = self.touched.get_or_insert_with(|| table.take_touched());
        let end = touched.len().min(self.next + rows);
        for place in self.next..end {
            if let Some(entry) = table.find(touched, place) {
                emit(place, entry);
            }
        }
        self.next = end;
        if end == touched.len() {
            *self = Closing::default();
            return false;
        }
        true
    }
}

/// Emits the last value of each key that a checkpoint has changed.
pub(crate) struct LastUpdates<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
    closing: Closing,
    /// Whether every batch begins with nothing.
    forgets: bool,
}

impl<K: KeyOf, A: Aggregate> LastUpdates<K, A> {
    pub(crate) fn new(aggregate: A, forgets: bool) -> LastUpdates<K, A> {
        LastUpdates { aggregate, table: Table::new(), closing: Closing::default(), forgets }
    }
}

impl<K: KeyOf, A: Aggregate> Operate for LastUpdates<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = (K, A::Value);

    const EMITS_AT_CLOSE: bool = true;

    fn apply(
        &mut self,
        records: VecDeque<(K, A::Input)>,
        times: VecDeque<EventTime>,
        _: &mut Batch<(K, A::Value)>,
    ) -> Result<()> {
        add_all(&self.aggregate, &mut self.table, records, times)
    }

    fn close(&mut self, rows: usize, out: &mut Batch<(K, A::Value)>) -> bool {
        let aggregate = &self.aggregate;
        let has_more = self.closing.emit(&mut self.table, rows, |_, entry| {
            out.append((entry.key.clone(), aggregate.value(&entry.state)), None);
        });
        if !has_more && self.forgets {
            self.table = Table::new();
        }
        has_more
    }
}

fn add_all<K: KeyOf, A: Aggregate>(
    aggregate: &A,
    table: &mut Table<K, A::State>,
    records: VecDeque<(K, A::Input)>,
    times: VecDeque<EventTime>,
) -> Result<()> {
    for ((key, input), time) in timed(records, times) {
        let (entry, _) = table.touch(key, || aggregate.zero());
        aggregate.add(&mut entry.state, input, time)?;
    }
    Ok(())
}

/// Emits the whole table after each checkpoint in which a record came to any worker: an input of
/// `None` is the notice of a batch that has none for this worker.
pub(crate) struct Complete<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
    /// Whether a batch has come in this checkpoint.
    has_changed: bool,
    /// The key group to emit next, while a checkpoint is being closed.
    next_group: Option<usize>,
}

impl<K: KeyOf, A: Aggregate> Complete<K, A> {
    pub(crate) fn new(aggregate: A) -> Complete<K, A> {
        Complete { aggregate, table: Table::new(), has_changed: false, next_group: None }
    }
}

impl<K: KeyOf, A: Aggregate> Operate for Complete<K, A> {
    type Key = K;
    type Input = Option<A::Input>;
    type Output = (K, A::Value);

    const EMITS_AT_CLOSE: bool = true;

    fn apply(
        &mut self,
        records: VecDeque<(K, Option<A::Input>)>,
        times: VecDeque<EventTime>,
        _: &mut Batch<(K, A::Value)>,
    ) -> Result<()> {
        self.has_changed = true;
        for ((key, input), time) in timed(records, times) {
            let Some(input) = input else { continue };
            let (entry, _) = self.table.touch(key, || self.aggregate.zero());
            self.aggregate.add(&mut entry.state, input, time)?;
        }
        Ok(())
    }

    fn close(&mut self, rows: usize, out: &mut Batch<(K, A::Value)>) -> bool {
        if !self.has_changed {
            return false;
        }
        for group in self.next_group.take().unwrap_or(0)..KEY_GROUPS {
            if out.len() >= rows {
                self.next_group = Some(group);
                return true;
            }
            for entry in self.table.group(group) {
                out.append((entry.key.clone(), self.aggregate.value(&entry.state)), None);
            }
        }
        drop(self.table.take_touched());
        self.has_changed = false;
        false
    }
}

/// Emits the change of each record: the value of its key before, if there was one, as deleted, and
/// the value now as inserted.
pub(crate) struct Changes<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
}

impl<K: KeyOf, A: Aggregate> Changes<K, A> {
    pub(crate) fn new(aggregate: A) -> Changes<K, A> {
        Changes { aggregate, table: Table::new() }
    }
}

impl<K: KeyOf, A: Aggregate> Operate for Changes<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = Change<(K, A::Value)>;

    const EMITS_AT_CLOSE: bool = false;

    fn apply(
        &mut self,
        records: VecDeque<(K, A::Input)>,
        times: VecDeque<EventTime>,
        out: &mut Batch<Change<(K, A::Value)>>,
    ) -> Result<()> {
        for ((key, input), time) in timed(records, times) {
            let (entry, found) = self.table.touch(key, || self.aggregate.zero());
            if found != Found::Nothing {
                out.append(Change::Delete((entry.key.clone(), self.aggregate.value(&entry.state))), time);
            }
            self.aggregate.add(&mut entry.state, input, time)?;
            out.append(Change::Insert((entry.key.clone(), self.aggregate.value(&entry.state))), time);
        }
        Ok(())
    }

    fn close(&mut self, _: usize, _: &mut Batch<Change<(K, A::Value)>>) -> bool {
        drop(self.table.take_touched());
        false
    }
}

/// Emits the change of each key over a checkpoint.
pub(crate) struct LastChanges<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
    /// For what was touched in this checkpoint: the value before.
    before: Vec<Option<A::Value>>,
    closing: Closing,
}

impl<K: KeyOf, A: Aggregate> LastChanges<K, A> {
    pub(crate) fn new(aggregate: A) -> LastChanges<K, A> {
        LastChanges { aggregate, table: Table::new(), before: Vec::new(), closing: Closing::default() }
    }
}

impl<K: KeyOf, A: Aggregate> Operate for LastChanges<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = Change<(K, A::Value)>;

    const EMITS_AT_CLOSE: bool = true;

    fn apply(
        &mut self,
        records: VecDeque<(K, A::Input)>,
        times: VecDeque<EventTime>,
        _: &mut Batch<Change<(K, A::Value)>>,
    ) -> Result<()> {
        for ((key, input), time) in timed(records, times) {
            let (entry, found) = self.table.touch(key, || self.aggregate.zero());
            match found {
                Found::Nothing => self.before.push(None),
                Found::Untouched => self.before.push(Some(self.aggregate.value(&entry.state))),
                Found::Touched => {}
            }
            self.aggregate.add(&mut entry.state, input, time)?;
        }
        Ok(())
    }

    fn close(&mut self, rows: usize, out: &mut Batch<Change<(K, A::Value)>>) -> bool {
        let (aggregate, before) = (&self.aggregate, &mut self.before);
        let has_more = self.closing.emit(&mut self.table, rows, |place, entry| {
            if let Some(before) = before.get_mut(place).and_then(Option::take) {
                out.append(Change::Delete((entry.key.clone(), before)), None);
            }
            out.append(Change::Insert((entry.key.clone(), aggregate.value(&entry.state))), None);
        });
        if !has_more {
            before.clear();
        }
        has_more
    }
}

/// Hands on the first record of each key.
pub(crate) struct First<K, T> {
    table: Table<K, ()>,
    record: std::marker::PhantomData<fn(T)>,
}

impl<K: KeyOf, T> First<K, T> {
    pub(crate) fn new() -> First<K, T> {
        First { table: Table::new(), record: std::marker::PhantomData }
    }
}

impl<K: KeyOf, T: 'static> Operate for First<K, T> {
    type Key = K;
    type Input = T;
    type Output = T;

    const EMITS_AT_CLOSE: bool = false;

    fn apply(&mut self, records: VecDeque<(K, T)>, times: VecDeque<EventTime>, out: &mut Batch<T>) -> Result<()> {
        for ((key, record), time) in timed(records, times) {
            if self.table.touch(key, || ()).1 == Found::Nothing {
                out.append(record, time);
            }
        }
        Ok(())
    }

    fn close(&mut self, _: usize, _: &mut Batch<T>) -> bool {
        drop(self.table.take_touched());
        false
    }
}

/// Collects the rows of a checkpoint, and hands them on in order.
pub(crate) struct Sorted<T, F> {
    compare: F,
    limit: usize,
    rows: Vec<T>,
    sorted: Option<std::vec::IntoIter<T>>,
}

impl<T, F: Fn(&T, &T) -> std::cmp::Ordering> Sorted<T, F> {
    pub(crate) fn new(compare: F, limit: usize) -> Sorted<T, F> {
        Sorted { compare, limit, rows: Vec::new(), sorted: None }
    }
}

impl<T: 'static, F: Fn(&T, &T) -> std::cmp::Ordering + 'static> Operate for Sorted<T, F> {
    type Key = ();
    type Input = T;
    type Output = T;

    const EMITS_AT_CLOSE: bool = true;

    fn apply(&mut self, records: VecDeque<((), T)>, _: VecDeque<EventTime>, _: &mut Batch<T>) -> Result<()> {
        self.rows.extend(records.into_iter().map(|(_, row)| row));
        Ok(())
    }

    fn close(&mut self, rows: usize, out: &mut Batch<T>) -> bool {
        let sorted = self.sorted.get_or_insert_with(|| {
            let mut rows = std::mem::take(&mut self.rows);
            rows.sort_by(&self.compare);
            rows.truncate(self.limit);
            rows.into_iter()
        });
        sorted.by_ref().take(rows).for_each(|row| out.append(row, None));
        let has_more = sorted.len() > 0;
        if !has_more {
            self.sorted = None;
        }
        has_more
    }
}
