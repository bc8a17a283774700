//! What is shown of windows, and when: their values once they are final, or each change before.

use crate::state::table::{ByFirst, Found, Table, TableKey, TableState};
use crate::words::{Batch, Change, Pane, Result, Span, Stamp};

use super::aggregate::Aggregate;
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

/// How far what a cut has put aside was emitted.
#[derive(Default)]
pub(crate) struct LastValues {
    next: usize,
}

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
        emit_cut(&mut self.next, table, rows, |_, (key, start), state| {
            out.append(pane(aggregate, (key.clone(), layout.window(*start)), state), None);
        })
    }
}

/// Passes the next entries that a cut has put aside to `emit`, at most `rows` of them, with their
/// places. Returns whether there are more.
fn emit_cut<K: TableKey, S: TableState>(
    next: &mut usize,
    table: &WindowTable<K, S>,
    rows: usize,
    mut emit: impl FnMut(usize, &InWindow<K>, &S),
) -> bool {
    let end = table.cut_len().min(*next + rows);
    for place in *next..end {
        if let Some(entry) = table.cut_entry(place) {
            emit(place, &entry.key, &entry.state);
        }
    }
    *next = if end == table.cut_len() { 0 } else { end };
    *next > 0
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
    next: usize,
}

impl<V> Default for LastChanges<V> {
    fn default() -> LastChanges<V> {
        LastChanges { before: Vec::new(), next: 0 }
    }
}

impl<V> LastChanges<V> {
    fn before(&mut self, place: usize) -> Option<V> {
        self.before.get_mut(place).and_then(Option::take)
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
        if let Some(value) = self.before(place) {
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
        let mut next = self.next;
        let has_more = emit_cut(&mut next, table, rows, |place, (key, start), state| {
            let window = layout.window(*start);
            if let Some(value) = self.before(place) {
                out.append(Change::Delete(Pane { key: key.clone(), window, value }), None);
            }
            out.append(Change::Insert(pane(aggregate, (key.clone(), window), state)), None);
        });
        self.next = next;
        if !has_more {
            self.before.clear();
        }
        has_more
    }
}
