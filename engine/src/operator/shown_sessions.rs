//! What is shown of sessions, and when.

use std::ops::Range;

use crate::state::table::{Found, TableKey};
use crate::words::{Batch, Change, Pane, Span, Stamp};

use super::aggregate::{Aggregate, Emitted};
use super::sessions::{Session, SessionTable, Sessions};
use super::shown::{EachChange, Finals};

/// See the module.
pub(crate) trait ShowSessions<K, A: Aggregate>: 'static {
    type Row: 'static;

    /// Whether [`close`](ShowSessions::close) emits anything.
    const AT_CLOSE: bool = false;

    /// A record is about to join the sessions of the range, or a new one.
    fn before(
        &mut self,
        aggregate: &A,
        key: &K,
        sessions: &Sessions<A::State>,
        touched: (Range<usize>, Found),
        out: &mut Batch<Self::Row>,
    ) {
        let _ = (aggregate, key, sessions, touched, out);
    }

    /// It has joined this one.
    fn after(&mut self, aggregate: &A, key: &K, session: &mut Session<A::State>, out: &mut Batch<Self::Row>) {
        let _ = (aggregate, key, session, out);
    }

    /// So many of the sessions of a key are over. The place is the key's among what was touched
    /// since the last cut, if it was; if it was not, it is from now on.
    fn end(
        &mut self,
        aggregate: &A,
        key: &K,
        sessions: (&mut [Session<A::State>], usize),
        touched: Option<usize>,
        out: &mut Batch<Self::Row>,
    ) {
        let _ = (aggregate, key, sessions, touched, out);
    }

    /// As [`Operate::close`](super::keyed::Operate::close).
    fn close(
        &mut self,
        aggregate: &A,
        table: &SessionTable<K, A::State>,
        rows: usize,
        out: &mut Batch<Self::Row>,
    ) -> bool {
        let _ = (aggregate, table, rows, out);
        false
    }
}

fn pane<K: Clone, A: Aggregate>(aggregate: &A, key: &K, session: &Session<A::State>) -> Pane<K, A::Value> {
    Pane { key: key.clone(), window: session.span(), value: aggregate.value(&session.state) }
}

impl<K: TableKey, A: Aggregate> ShowSessions<K, A> for Finals {
    type Row = Pane<K, A::Value>;

    fn end(
        &mut self,
        aggregate: &A,
        key: &K,
        (sessions, over): (&mut [Session<A::State>], usize),
        _: Option<usize>,
        out: &mut Batch<Self::Row>,
    ) {
        for session in &sessions[..over] {
            out.append(pane(aggregate, key, session), Some(Stamp::in_time(session.span().last())));
        }
    }
}

/// The change of each record: the sessions that it joins as deleted, and the one that it is in as
/// inserted.
impl<K: TableKey, A: Aggregate> ShowSessions<K, A> for EachChange {
    type Row = Change<Pane<K, A::Value>>;

    fn before(
        &mut self,
        aggregate: &A,
        key: &K,
        sessions: &Sessions<A::State>,
        (range, _): (Range<usize>, Found),
        out: &mut Batch<Self::Row>,
    ) {
        for session in &sessions.all[range] {
            out.append(Change::Delete(pane(aggregate, key, session)), None);
        }
    }

    fn after(&mut self, aggregate: &A, key: &K, session: &mut Session<A::State>, out: &mut Batch<Self::Row>) {
        out.append(Change::Insert(pane(aggregate, key, session)), None);
    }
}

/// The change of each key over a checkpoint.
pub(crate) struct LastSessions<V> {
    /// For what was touched in this checkpoint: the sessions before, and their values.
    before: Vec<Vec<(Span, V)>>,
    /// Counts batches, from 1 on.
    batch: u64,
    emitted: Emitted,
}

impl<V> Default for LastSessions<V> {
    fn default() -> LastSessions<V> {
        LastSessions { before: Vec::new(), batch: 1, emitted: Emitted::default() }
    }
}

impl<V: 'static> LastSessions<V> {
    /// Emits how the sessions of a key differ from those before.
    fn emit<K: TableKey, A: Aggregate<Value = V>>(
        &mut self,
        aggregate: &A,
        key: &K,
        sessions: &[Session<A::State>],
        place: usize,
        out: &mut Batch<Change<Pane<K, V>>>,
    ) {
        let is_same = |span: Span| sessions.iter().any(|now| now.changed_in != self.batch && now.span() == span);
        let before = self.before.get_mut(place).map(std::mem::take).unwrap_or_default();
        for (window, value) in before.into_iter().filter(|(span, _)| !is_same(*span)) {
            out.append(Change::Delete(Pane { key: key.clone(), window, value }), None);
        }
        for session in sessions.iter().filter(|session| session.changed_in == self.batch) {
            out.append(Change::Insert(pane(aggregate, key, session)), None);
        }
    }
}

fn values<A: Aggregate>(aggregate: &A, sessions: &[Session<A::State>]) -> Vec<(Span, A::Value)> {
    sessions.iter().map(|session| (session.span(), aggregate.value(&session.state))).collect()
}

impl<K: TableKey, A: Aggregate> ShowSessions<K, A> for LastSessions<A::Value> {
    type Row = Change<Pane<K, A::Value>>;

    const AT_CLOSE: bool = true;

    fn before(
        &mut self,
        aggregate: &A,
        _: &K,
        sessions: &Sessions<A::State>,
        (_, found): (Range<usize>, Found),
        _: &mut Batch<Self::Row>,
    ) {
        if found != Found::Touched {
            self.before.push(values(aggregate, &sessions.all));
        }
    }

    fn after(&mut self, _: &A, _: &K, session: &mut Session<A::State>, _: &mut Batch<Self::Row>) {
        session.changed_in = self.batch;
    }

    fn end(
        &mut self,
        aggregate: &A,
        key: &K,
        (sessions, over): (&mut [Session<A::State>], usize),
        touched: Option<usize>,
        out: &mut Batch<Self::Row>,
    ) {
        let Some(place) = touched else {
            self.before.push(values(aggregate, &sessions[over..]));
            return;
        };
        if over == 0 {
            return;
        }
        self.emit(aggregate, key, sessions, place, out);
        let left = &mut sessions[over..];
        left.iter_mut().for_each(|session| session.changed_in = 0);
        if let Some(before) = self.before.get_mut(place) {
            *before = values(aggregate, left);
        }
    }

    fn close(
        &mut self,
        aggregate: &A,
        table: &SessionTable<K, A::State>,
        rows: usize,
        out: &mut Batch<Self::Row>,
    ) -> bool {
        let mut emitted = std::mem::take(&mut self.emitted);
        let has_more = emitted.emit(table, rows, |place, entry| {
            self.emit(aggregate, &entry.key, &entry.state.all, place, out);
        });
        self.emitted = emitted;
        if !has_more {
            self.before.clear();
            self.batch += 1;
        }
        has_more
    }
}
