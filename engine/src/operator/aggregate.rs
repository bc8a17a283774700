//! Aggregates by key, and what they emit: each change at once, or what a checkpoint has changed.

use std::collections::VecDeque;
use std::marker::PhantomData;

use crate::state::keep::{Held, Keep};
use crate::state::origin::Same;
use crate::state::table::{Entry, Found, Grouping, Table, TableKey, TableState};
use crate::words::{Batch, Change, EventTime, Result, Stamp};

use super::keyed::Operate;

/// How values of the user's are merged.
pub(crate) type Merge<V> = Box<dyn Fn(&mut V, &V)>;

/// How the records of a key become a value.
pub(crate) trait Aggregate: 'static {
    type Input: 'static;
    type State: TableState;
    type Value: 'static;

    /// The state of a key before its first record.
    fn zero(&self) -> Self::State;

    /// Adds a record.
    ///
    /// # Errors
    /// When the result cannot be represented.
    fn add(&self, state: &mut Self::State, input: Self::Input, time: Option<EventTime>) -> Result<()>;

    fn value(&self, state: &Self::State) -> Self::Value;

    /// Whether states can be [merged](Aggregate::merge).
    fn merges(&self) -> bool {
        false
    }

    /// Adds to a state what another one was made of.
    ///
    /// # Errors
    /// When the result cannot be represented.
    fn merge(&self, state: &mut Self::State, other: &Self::State) -> Result<()> {
        let _ = (state, other);
        unreachable!("this aggregate does not merge")
    }

    /// Says how values of the user's are merged. Returns `false` where there are none.
    fn merge_by(&mut self, merge: Merge<Self::Value>) -> bool {
        let _ = merge;
        false
    }

    /// What of a state does not depend on the order of the records, where its encoding does.
    const SAME: Option<Same<Self::State>> = None;

    /// How the state holds the value; `None` when it is something else.
    const FORM: Option<Form> = None;

    /// The state of a key with that value, when the state has a form.
    fn state_of(value: Self::Value, time: Option<EventTime>) -> Option<Self::State> {
        let _ = (value, time);
        None
    }
}

/// Several states of an aggregate.
pub(crate) trait InParts<A: Aggregate>: TableState {
    /// What of them does not depend on the order of the records, where that of a state
    /// [is known](Aggregate::SAME).
    fn same(&self) -> Vec<u8>;

    const SHELL: Shell;

    /// These states, each with the two times of its part.
    fn of(parts: Vec<(i64, i64, A::State)>) -> Self;
}

/// What states are in that are several for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shell {
    Panes,
    Sessions,
}

/// How a state holds its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// It is the value.
    Value,
    /// The value, or nothing before the first record.
    Option,
    /// The value with its time, or nothing before the first record.
    Timed,
}

/// An aggregate that is handed whole records, and makes its inputs of them itself.
pub(crate) struct WithRecord<A, F, T> {
    pub(crate) aggregate: A,
    pub(crate) input: F,
    pub(crate) record: PhantomData<fn(T)>,
}

impl<A: Aggregate, T: 'static, F: Fn(T) -> A::Input + 'static> Aggregate for WithRecord<A, F, T> {
    type Input = T;
    type State = A::State;
    type Value = A::Value;

    fn zero(&self) -> A::State {
        self.aggregate.zero()
    }

    fn add(&self, state: &mut A::State, record: T, time: Option<EventTime>) -> Result<()> {
        self.aggregate.add(state, (self.input)(record), time)
    }

    fn value(&self, state: &A::State) -> A::Value {
        self.aggregate.value(state)
    }

    fn merges(&self) -> bool {
        self.aggregate.merges()
    }

    fn merge(&self, state: &mut A::State, other: &A::State) -> Result<()> {
        self.aggregate.merge(state, other)
    }

    fn merge_by(&mut self, merge: Merge<A::Value>) -> bool {
        self.aggregate.merge_by(merge)
    }

    const SAME: Option<Same<A::State>> = A::SAME;
    const FORM: Option<Form> = A::FORM;

    fn state_of(value: A::Value, time: Option<EventTime>) -> Option<A::State> {
        A::state_of(value, time)
    }
}

/// The time of a record, when the records of its batch have times.
#[inline]
pub(super) fn time_of(stamps: &VecDeque<Stamp>, index: usize) -> Option<EventTime> {
    stamps.get(index).and_then(|stamp| stamp.time())
}

/// Emits the new value with each record.
pub(crate) struct Updates<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
}

impl<K: TableKey, A: Aggregate> Updates<K, A> {
    pub(crate) fn new((aggregate, table): (A, Table<K, A::State>)) -> Updates<K, A> {
        Updates { aggregate, table }
    }
}

impl<K: TableKey, A: Aggregate> Operate for Updates<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = (K, A::Value);

    const EMITS_AT_CLOSE: bool = false;

    fn apply(
        &mut self,
        records: Vec<(K, A::Input)>,
        stamps: VecDeque<Stamp>,
        out: &mut Batch<(K, A::Value)>,
    ) -> Result<()> {
        let aggregate = &self.aggregate;
        let mut values = Vec::with_capacity(records.len());
        self.table.update(
            records,
            || aggregate.zero(),
            |index, key, input, state, _| {
                aggregate.add(state, input, time_of(&stamps, index))?;
                values.push((key, aggregate.value(state)));
                Ok(())
            },
        )?;
        out.fill(values, stamps);
        Ok(())
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }
}

/// How far what a cut has put aside was emitted.
#[derive(Default)]
pub(super) struct Emitted {
    next: usize,
}

impl Emitted {
    /// Passes the next entries to `emit`, at most `rows` of them, with their places. Returns
    /// whether there are more.
    pub(super) fn emit<K: TableKey, S: TableState, G: Grouping<K>>(
        &mut self,
        table: &Table<K, S, G>,
        rows: usize,
        mut emit: impl FnMut(usize, &Entry<K, S>),
    ) -> bool {
        let end = table.cut_len().min(self.next + rows);
        for place in self.next..end {
            if let Some(entry) = table.cut_entry(place) {
                emit(place, entry);
            }
        }
        self.next = if end == table.cut_len() { 0 } else { end };
        self.next > 0
    }
}

/// Emits the last value of each key that a checkpoint has changed.
pub(crate) struct LastUpdates<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
    emitted: Emitted,
    /// Whether every batch begins with nothing.
    forgets: bool,
}

impl<K: TableKey, A: Aggregate> LastUpdates<K, A> {
    pub(crate) fn new((aggregate, table): (A, Table<K, A::State>), forgets: bool) -> LastUpdates<K, A> {
        LastUpdates { aggregate, table, emitted: Emitted::default(), forgets }
    }
}

impl<K: TableKey, A: Aggregate> Operate for LastUpdates<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = (K, A::Value);

    const EMITS_AT_CLOSE: bool = true;

    fn apply(
        &mut self,
        records: Vec<(K, A::Input)>,
        stamps: VecDeque<Stamp>,
        _: &mut Batch<(K, A::Value)>,
    ) -> Result<()> {
        let aggregate = &self.aggregate;
        self.table.update(
            records,
            || aggregate.zero(),
            |index, _, input, state, _| aggregate.add(state, input, time_of(&stamps, index)),
        )
    }

    fn close(&mut self, rows: usize, out: &mut Batch<(K, A::Value)>) -> bool {
        if self.forgets && self.emitted.next == 0 {
            self.table.cut();
        }
        let aggregate = &self.aggregate;
        let has_more = self.emitted.emit(&self.table, rows, |_, entry| {
            out.append((entry.key.clone(), aggregate.value(&entry.state)), None);
        });
        if !has_more && self.forgets {
            self.table = Table::new();
        }
        has_more
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table).filter(|_| !self.forgets).map(|table| table as &mut dyn Keep)
    }

    fn held(&mut self) -> Option<&mut dyn Held> {
        Some(&mut self.table)
    }

    fn rows(&self) -> Option<usize> {
        Some(self.table.touched_len())
    }
}

/// Emits the whole table after each checkpoint in which a record came to any worker: an input of
/// `None` is the notice of a batch that has none for this worker.
pub(crate) struct Complete<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
    /// Whether a batch has come in this checkpoint.
    has_changed: bool,
    /// The part of the table to emit next, and the row of it, while a checkpoint is being closed:
    /// nothing changes the table meanwhile.
    next: (usize, usize),
}

impl<K: TableKey, A: Aggregate> Complete<K, A> {
    pub(crate) fn new((aggregate, table): (A, Table<K, A::State>)) -> Complete<K, A> {
        Complete { aggregate, table, has_changed: false, next: (0, 0) }
    }
}

impl<K: TableKey, A: Aggregate> Operate for Complete<K, A> {
    type Key = K;
    type Input = Option<A::Input>;
    type Output = (K, A::Value);

    const EMITS_AT_CLOSE: bool = true;

    fn apply(
        &mut self,
        records: Vec<(K, Option<A::Input>)>,
        stamps: VecDeque<Stamp>,
        _: &mut Batch<(K, A::Value)>,
    ) -> Result<()> {
        self.has_changed = true;
        let inputs = records.into_iter().filter_map(|(key, input)| Some((key, input?))).collect();
        let aggregate = &self.aggregate;
        // Notices come behind the records.
        self.table.update(
            inputs,
            || aggregate.zero(),
            |index, _, input, state, _| aggregate.add(state, input, time_of(&stamps, index)),
        )
    }

    fn close(&mut self, rows: usize, out: &mut Batch<(K, A::Value)>) -> bool {
        if !self.has_changed {
            return false;
        }
        let (first, mut row) = self.next;
        for part in first..self.table.parts() {
            let before = out.len();
            for entry in self.table.entries_of(part).skip(row).take(rows - before) {
                out.append((entry.key.clone(), self.aggregate.value(&entry.state)), None);
            }
            row += out.len() - before;
            if out.len() >= rows {
                self.next = (part, row);
                return true;
            }
            row = 0;
        }
        (self.has_changed, self.next) = (false, (0, 0));
        false
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }
}

/// Emits the change of each record: the value of its key before, if there was one, as deleted, and
/// the value now as inserted.
pub(crate) struct Changes<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
}

impl<K: TableKey, A: Aggregate> Changes<K, A> {
    pub(crate) fn new((aggregate, table): (A, Table<K, A::State>)) -> Changes<K, A> {
        Changes { aggregate, table }
    }
}

impl<K: TableKey, A: Aggregate> Operate for Changes<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = Change<(K, A::Value)>;

    const EMITS_AT_CLOSE: bool = false;

    fn apply(
        &mut self,
        records: Vec<(K, A::Input)>,
        stamps: VecDeque<Stamp>,
        out: &mut Batch<Change<(K, A::Value)>>,
    ) -> Result<()> {
        let aggregate = &self.aggregate;
        self.table.update(
            records,
            || aggregate.zero(),
            |index, key, input, state, found| {
                let stamp = stamps.get(index).copied();
                if found != Found::Nothing {
                    out.append(Change::Delete((key.clone(), aggregate.value(state))), stamp);
                }
                aggregate.add(state, input, time_of(&stamps, index))?;
                out.append(Change::Insert((key, aggregate.value(state))), stamp);
                Ok(())
            },
        )
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }
}

/// Emits the change of each key over a checkpoint.
pub(crate) struct LastChanges<K, A: Aggregate> {
    aggregate: A,
    table: Table<K, A::State>,
    /// For what was touched in this checkpoint: the value before.
    before: Vec<Option<A::Value>>,
    emitted: Emitted,
}

impl<K: TableKey, A: Aggregate> LastChanges<K, A> {
    pub(crate) fn new((aggregate, table): (A, Table<K, A::State>)) -> LastChanges<K, A> {
        LastChanges { aggregate, table, before: Vec::new(), emitted: Emitted::default() }
    }
}

impl<K: TableKey, A: Aggregate> Operate for LastChanges<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = Change<(K, A::Value)>;

    const EMITS_AT_CLOSE: bool = true;

    fn apply(
        &mut self,
        records: Vec<(K, A::Input)>,
        stamps: VecDeque<Stamp>,
        _: &mut Batch<Change<(K, A::Value)>>,
    ) -> Result<()> {
        let (aggregate, before) = (&self.aggregate, &mut self.before);
        self.table.update(
            records,
            || aggregate.zero(),
            |index, _, input, state, found| {
                match found {
                    Found::Nothing => before.push(None),
                    Found::Untouched => before.push(Some(aggregate.value(state))),
                    Found::Touched => {}
                }
                aggregate.add(state, input, time_of(&stamps, index))
            },
        )
    }

    fn close(&mut self, rows: usize, out: &mut Batch<Change<(K, A::Value)>>) -> bool {
        let (aggregate, before) = (&self.aggregate, &mut self.before);
        let has_more = self.emitted.emit(&self.table, rows, |place, entry| {
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

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }

    fn rows(&self) -> Option<usize> {
        Some(self.table.touched_len())
    }
}

/// Hands on the first record of each key.
pub(crate) struct First<K, T> {
    table: Table<K, ()>,
    record: PhantomData<fn(T)>,
}

impl<K: TableKey, T> First<K, T> {
    pub(crate) fn new() -> First<K, T> {
        First { table: Table::new(), record: PhantomData }
    }
}

impl<K: TableKey, T: 'static> Operate for First<K, T> {
    type Key = K;
    type Input = T;
    type Output = T;

    const EMITS_AT_CLOSE: bool = false;

    fn apply(&mut self, records: Vec<(K, T)>, stamps: VecDeque<Stamp>, out: &mut Batch<T>) -> Result<()> {
        self.table.update(
            records,
            || (),
            |index, _, record, (), found| {
                if found == Found::Nothing {
                    out.append(record, stamps.get(index).copied());
                }
                Ok(())
            },
        )
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }
}
