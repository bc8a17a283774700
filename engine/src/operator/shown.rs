//! What is shown of windows, and when: their values once they are final, or each change before.

use crate::state::table::{ByFirst, Found, Table, TableKey};
use crate::words::{Batch, Change, Pane, Result, Span, Stamp};

use super::aggregate::{Aggregate, Emitted};
use super::layout::Layout;

/// A key and the start of a window.
pub(crate) type InWindow<K> = (K, i64);

/// The state of an aggregate by key and window.
pub(crate) type WindowTable<K, S> = Table<InWindow<K>, S, ByFirst>;

/// A record of a window.
pub(crate) struct Added<K, I> {
    pub(crate) key: K,
    pub(crate) window: Span,
    pub(crate) input: I,
    pub(crate) stamp: Stamp,
    pub(crate) found: Found,
}

/// See the module.
pub(crate) trait Show<K, A: Aggregate>: 'static {
    type Row: 'static;

    /// Whether [`close`](Show::close) emits anything.
    const AT_CLOSE: bool = false;

    /// Adds a record to the state of its key and window.
    ///
    /// # Errors
    /// When the result cannot be represented.
    fn add(
        &mut self,
        aggregate: &A,
        record: Added<K, A::Input>,
        state: &mut A::State,
        out: &mut Batch<Self::Row>,
    ) -> Result<()> {
        let _ = out;
        aggregate.add(state, record.input, record.stamp.time())
    }

    /// A window is over for a key. The place is the entry's among what was touched since the last
    /// cut, if it was.
    fn end(
        &mut self,
        aggregate: &A,
        pane: (K, Span),
        state: &A::State,
        touched: Option<usize>,
        out: &mut Batch<Self::Row>,
    );

    /// As [`Operate::close`](super::keyed::Operate::close).
    fn close(
        &mut self,
        aggregate: &A,
        (layout, table): (&Layout, &WindowTable<K, A::State>),
        rows: usize,
        out: &mut Batch<Self::Row>,
    ) -> bool {
        let _ = (aggregate, layout, table, rows, out);
        false
    }
}

fn pane<K, A: Aggregate>(aggregate: &A, (key, window): (K, Span), state: &A::State) -> Pane<K, A::Value> {
    Pane { key, window, value: aggregate.value(state) }
}

/// The value of each window, once it is final.
pub(crate) struct Finals;

impl<K: TableKey, A: Aggregate> Show<K, A> for Finals {
    type Row = Pane<K, A::Value>;

    fn end(
        &mut self,
        aggregate: &A,
        (key, window): (K, Span),
        state: &A::State,
        _: Option<usize>,
        out: &mut Batch<Self::Row>,
    ) {
        out.append(pane(aggregate, (key, window), state), Some(Stamp::in_time(window.last())));
    }
}

/// The new value with each record.
pub(crate) struct EachValue;

impl<K: TableKey, A: Aggregate> Show<K, A> for EachValue {
    type Row = Pane<K, A::Value>;

    fn add(
        &mut self,
        aggregate: &A,
        record: Added<K, A::Input>,
        state: &mut A::State,
        out: &mut Batch<Self::Row>,
    ) -> Result<()> {
        let Added { key, window, input, stamp, .. } = record;
        aggregate.add(state, input, stamp.time())?;
        out.append(pane(aggregate, (key, window), state), None);
        Ok(())
    }

    fn end(&mut self, _: &A, _: (K, Span), _: &A::State, _: Option<usize>, _: &mut Batch<Self::Row>) {}
}

/// The last value of each key and window that a checkpoint has changed.
#[derive(Default)]
pub(crate) struct LastValues(Emitted);

impl<K: TableKey, A: Aggregate> Show<K, A> for LastValues {
    type Row = Pane<K, A::Value>;

    const AT_CLOSE: bool = true;

    fn end(
        &mut self,
        aggregate: &A,
        at: (K, Span),
        state: &A::State,
        touched: Option<usize>,
        out: &mut Batch<Self::Row>,
    ) {
        if touched.is_some() {
            out.append(pane(aggregate, at, state), None);
        }
    }

    fn close(
        &mut self,
        aggregate: &A,
        (layout, table): (&Layout, &WindowTable<K, A::State>),
        rows: usize,
        out: &mut Batch<Self::Row>,
    ) -> bool {
        self.0.emit(table, rows, |_, entry| {
            let (key, start) = &entry.key;
            out.append(pane(aggregate, (key.clone(), layout.window(*start)), &entry.state), None);
        })
    }
}

/// The change of each record: the value of its key and window before, if there was one, as deleted,
/// and the value now as inserted.
pub(crate) struct EachChange;

impl<K: TableKey, A: Aggregate> Show<K, A> for EachChange {
    type Row = Change<Pane<K, A::Value>>;

    fn add(
        &mut self,
        aggregate: &A,
        record: Added<K, A::Input>,
        state: &mut A::State,
        out: &mut Batch<Self::Row>,
    ) -> Result<()> {
        let Added { key, window, input, stamp, found } = record;
        if found != Found::Nothing {
            out.append(Change::Delete(pane(aggregate, (key.clone(), window), state)), None);
        }
        aggregate.add(state, input, stamp.time())?;
        out.append(Change::Insert(pane(aggregate, (key, window), state)), None);
        Ok(())
    }

    fn end(&mut self, _: &A, _: (K, Span), _: &A::State, _: Option<usize>, _: &mut Batch<Self::Row>) {}
}

/// The change of each key and window over a checkpoint.
pub(crate) struct LastChanges<V> {
    /// For what was touched in this checkpoint: the value before.
    before: Vec<Option<V>>,
    emitted: Emitted,
}

impl<V> Default for LastChanges<V> {
    fn default() -> LastChanges<V> {
        LastChanges { before: Vec::new(), emitted: Emitted::default() }
    }
}

impl<K: TableKey, A: Aggregate> Show<K, A> for LastChanges<A::Value> {
    type Row = Change<Pane<K, A::Value>>;

    const AT_CLOSE: bool = true;

    fn add(
        &mut self,
        aggregate: &A,
        record: Added<K, A::Input>,
        state: &mut A::State,
        _: &mut Batch<Self::Row>,
    ) -> Result<()> {
        match record.found {
            Found::Nothing => self.before.push(None),
            Found::Untouched => self.before.push(Some(aggregate.value(state))),
            Found::Touched => {}
        }
        aggregate.add(state, record.input, record.stamp.time())
    }

    fn end(
        &mut self,
        aggregate: &A,
        (key, window): (K, Span),
        state: &A::State,
        touched: Option<usize>,
        out: &mut Batch<Self::Row>,
    ) {
        let Some(place) = touched else { return };
        if let Some(value) = self.before.get_mut(place).and_then(Option::take) {
            out.append(Change::Delete(Pane { key: key.clone(), window, value }), None);
        }
        out.append(Change::Insert(pane(aggregate, (key, window), state)), None);
    }

    fn close(
        &mut self,
        aggregate: &A,
        (layout, table): (&Layout, &WindowTable<K, A::State>),
        rows: usize,
        out: &mut Batch<Self::Row>,
    ) -> bool {
        let before = &mut self.before;
        let has_more = self.emitted.emit(table, rows, |place, entry| {
            let ((key, start), state) = (&entry.key, &entry.state);
            let window = layout.window(*start);
            if let Some(value) = before.get_mut(place).and_then(Option::take) {
                out.append(Change::Delete(Pane { key: key.clone(), window, value }), None);
            }
            out.append(Change::Insert(pane(aggregate, (key.clone(), window), state)), None);
        });
        if !has_more {
            self.before.clear();
        }
        has_more
    }
}
