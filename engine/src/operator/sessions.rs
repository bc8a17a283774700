//! Sessions: the records of a key that follow each other within a gap. A record may join two
//! sessions, so the states of the aggregate are merged.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::state::keep::{Held, Keep};
use crate::state::table::{Found, Table, TableKey};
use crate::words::{Admission, Batch, EventTime, Pane, Result, Span, StageMeter, Stamp, WatermarkPolicy};

use super::agenda::Agenda;
use super::aggregate::{Aggregate, InParts, Shell};
use super::keyed::Operate;
use super::late::{LateRecords, LateStream};
use super::shown_sessions::ShowSessions;
use super::stage::Capabilities;
use super::window::cannot_encode;

/// A session of a key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Session<S> {
    start: i64,
    end: i64,
    pub(super) state: S,
    /// The batch that has changed it last.
    #[serde(skip)]
    pub(super) changed_in: u64,
}

impl<S> Session<S> {
    pub(super) fn span(&self) -> Span {
        Span { start: EventTime(self.start), end: EventTime(self.end) }
    }
}

/// The sessions of a key, in order. No two of them touch.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Sessions<S> {
    pub(super) all: Vec<Session<S>>,
    /// When the operator looks at the key next: not behind the end of the first session.
    #[serde(skip)]
    due: Option<i64>,
}

impl<S> Sessions<S> {
    fn new() -> Sessions<S> {
        Sessions { all: Vec::new(), due: None }
    }

    /// Those that a session from `start` to `end` touches.
    fn touching(&self, start: i64, end: i64) -> Range<usize> {
        let first = self.all.partition_point(|session| session.end < start);
        let count = self.all[first..].partition_point(|session| session.start <= end);
        first..first + count
    }

    /// Adds a record to the sessions that it touches, or a new one. Returns which it is in.
    fn add<A: Aggregate<State = S>>(
        &mut self,
        aggregate: &A,
        input: A::Input,
        own: Span,
        touched: Range<usize>,
    ) -> Result<usize> {
        let at = touched.start;
        if touched.is_empty() {
            let (start, end) = (own.start.0, own.end.0);
            self.all.insert(at, Session { start, end, state: aggregate.zero(), changed_in: 0 });
        } else {
            let (before, others) = self.all.split_at_mut(at + 1);
            let first = &mut before[at];
            for other in &others[..touched.len() - 1] {
                aggregate.merge(&mut first.state, &other.state)?;
                first.end = other.end;
            }
            (first.start, first.end) = (first.start.min(own.start.0), first.end.max(own.end.0));
            self.all.drain(at + 1..touched.end);
        }
        aggregate.add(&mut self.all[at].state, input, Some(own.start))?;
        Ok(at)
    }
}

impl<A: Aggregate> InParts<A> for Sessions<A::State> {
    fn same(&self) -> Vec<u8> {
        let all = self.all.iter().flat_map(|session| {
            let own = A::SAME.map_or_else(Vec::new, |same| same(&session.state));
            [session.start.to_le_bytes().to_vec(), session.end.to_le_bytes().to_vec(), own].concat()
        });
        all.collect()
    }

    const SHELL: Shell = Shell::Sessions;

    fn of(parts: Vec<(i64, i64, A::State)>) -> Sessions<A::State> {
        let session = |(start, end, state)| Session { start, end, state, changed_in: 0 };
        Sessions { all: parts.into_iter().map(session).collect(), due: None }
    }
}

/// The state of an aggregate by key and session.
pub(crate) type SessionTable<K, S> = Table<K, Sessions<S>>;

/// The session of a record alone: it lasts for the gap, or for a millisecond if that is none.
fn alone(time: EventTime, gap: i64) -> Span {
    Span { start: time, end: EventTime(time.0.saturating_add(gap.max(1))) }
}

/// Emits what there is to show of sessions, which are gone once the watermark has passed their end.
pub(crate) struct BySession<K, A: Aggregate, G, S> {
    aggregate: A,
    gap: G,
    table: SessionTable<K, A::State>,
    show: S,
    /// Where each key is, by the time at which it is looked at. It may be there again, earlier.
    due: Agenda,
    watermark: EventTime,
    policy: WatermarkPolicy,
    late: LateRecords<A::Input>,
}

impl<K: TableKey, A: Aggregate, G, S> BySession<K, A, G, S> {
    pub(crate) fn new(
        (aggregate, table): (A, SessionTable<K, A::State>),
        gap: G,
        show: S,
        late: Option<Arc<StageMeter>>,
    ) -> BySession<K, A, G, S> {
        BySession {
            aggregate,
            gap,
            table,
            show,
            due: Agenda::default(),
            watermark: EventTime::NONE,
            policy: WatermarkPolicy::default(),
            late: LateRecords::new(late),
        }
    }
}

impl<K: TableKey, A: Aggregate, G: Fn(&A::Input) -> i64 + 'static, S: ShowSessions<K, A>> Operate
    for BySession<K, A, G, S>
{
    type Key = K;
    type Input = A::Input;
    type Output = S::Row;

    const EMITS_AT_CLOSE: bool = S::AT_CLOSE;
    // A session that ends at the watermark is closed, and one that begins there would touch it.
    const IS_STRICT: bool = true;

    fn apply(&mut self, records: Vec<(K, A::Input)>, stamps: VecDeque<Stamp>, out: &mut Batch<S::Row>) -> Result<()> {
        debug_assert_eq!(stamps.len(), records.len(), "a stream with a watermark has a stamp for each record");
        let mut in_time = Vec::with_capacity(records.len());
        let mut spans = Vec::with_capacity(records.len());
        for ((key, input), stamp) in records.into_iter().zip(stamps) {
            let Some(time) = stamp.time() else {
                self.late.add(input, stamp, Vec::new());
                continue;
            };
            let own = alone(time, (self.gap)(&input));
            // Not by its end, as a window is: then it would be a race which session it joins. Spark
            // does that.
            let edge = if self.policy.is_max_seen() { own.end } else { time };
            if edge <= stamp.mark.max(self.watermark) {
                self.late.add(input, stamp, vec![own]);
                continue;
            }
            in_time.push((key, input));
            spans.push(own);
        }
        let (aggregate, show, mut opened) = (&self.aggregate, &mut self.show, Vec::new());
        self.table.update(in_time, Sessions::new, |index, key, input, sessions, found| {
            let own = spans[index];
            let touched = sessions.touching(own.start.0, own.end.0);
            show.before(aggregate, &key, sessions, (touched.clone(), found), out);
            let at = sessions.add(aggregate, input, own, touched)?;
            show.after(aggregate, &key, &mut sessions.all[at], out);
            let end = sessions.all[at].end;
            if sessions.due.is_none_or(|due| end < due) {
                sessions.due = Some(end);
                opened.push((end, index));
            }
            Ok(())
        })?;
        for (due, index) in opened {
            self.due.add(due, self.table.updated_place(index));
        }
        Ok(())
    }

    fn close(&mut self, rows: usize, out: &mut Batch<S::Row>) -> bool {
        self.show.close(&self.aggregate, &self.table, rows, out)
    }

    fn begin(&mut self, watermark: EventTime, policy: WatermarkPolicy) {
        (self.watermark, self.policy) = (watermark, policy);
        let due = &mut self.due;
        self.table.look_through(|sessions, place| {
            sessions.due = sessions.all.first().map(|first| first.end);
            if let Some(first) = sessions.due {
                due.add(first, place);
            }
        });
        self.table.held_beside = self.due.bytes();
    }

    fn advance(&mut self, watermark: EventTime) {
        self.watermark = watermark;
    }

    fn fire(&mut self, rows: usize, out: &mut Batch<S::Row>) -> Result<bool> {
        let (aggregate, show, watermark) = (&self.aggregate, &mut self.show, self.watermark.0);
        for _ in 0..rows {
            let Some((due, place)) = self.due.next(|due| due <= watermark) else {
                self.table.held_beside = self.due.bytes();
                return Ok(false);
            };
            // Of two keys with one hash it is either, and then the other; and none when it was
            // looked at earlier.
            let is_it = |sessions: &Sessions<A::State>| sessions.due == Some(due);
            let looked = self.table.alter(place, is_it, |key, sessions, touched| {
                let closed = sessions.all.partition_point(|session| session.end <= watermark);
                show.end(aggregate, key, (&mut sessions.all, closed), touched, out);
                sessions.all.drain(..closed);
                sessions.due = sessions.all.first().map(|first| first.end);
                sessions.due
            });
            match looked {
                None => {}
                Some(None) => {
                    self.table.take(place, |_, sessions| sessions.all.is_empty()).map_err(cannot_encode)?;
                }
                Some(Some(next)) => self.due.add(next, place),
            }
        }
        Ok(true)
    }

    fn due(&self) -> Option<EventTime> {
        self.due.first().map(EventTime)
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
        self.table.held_beside = self.due.bytes();
        Some(&mut self.table)
    }
}

/// Emits all sessions there ever were after each checkpoint in which a record came to any worker:
/// an input of `None` is the notice of a batch that has none for this worker.
pub(crate) struct AllSessions<K, A: Aggregate, G> {
    aggregate: A,
    gap: G,
    table: SessionTable<K, A::State>,
    has_changed: bool,
    /// The part of the table to emit next, and the key of it.
    next: (usize, usize),
    late: u64,
    /// The watermark, where Spark's rule holds: Spark leaves late records out of sessions even
    /// here.
    watermark: Option<EventTime>,
}

impl<K: TableKey, A: Aggregate, G> AllSessions<K, A, G> {
    pub(crate) fn new((aggregate, table): (A, SessionTable<K, A::State>), gap: G) -> AllSessions<K, A, G> {
        AllSessions { aggregate, gap, table, has_changed: false, next: (0, 0), late: 0, watermark: None }
    }
}

impl<K: TableKey, A: Aggregate, G: Fn(&A::Input) -> i64 + 'static> Operate for AllSessions<K, A, G> {
    type Key = K;
    type Input = Option<A::Input>;
    type Output = Pane<K, A::Value>;

    const EMITS_AT_CLOSE: bool = true;

    fn apply(
        &mut self,
        records: Vec<(K, Option<A::Input>)>,
        stamps: VecDeque<Stamp>,
        _: &mut Batch<Pane<K, A::Value>>,
    ) -> Result<()> {
        self.has_changed = true;
        let (mut inputs, mut spans) = (Vec::new(), Vec::new());
        for ((key, input), stamp) in records.into_iter().zip(stamps) {
            let Some(input) = input else { continue };
            let own = stamp.time().filter(|_| !stamp.is_refused()).map(|time| alone(time, (self.gap)(&input)));
            match own.filter(|own| self.watermark.is_none_or(|watermark| own.end > watermark)) {
                Some(own) => {
                    spans.push(own);
                    inputs.push((key, input));
                }
                None => self.late += 1,
            }
        }
        let aggregate = &self.aggregate;
        self.table.update(inputs, Sessions::new, |index, _, input, sessions, _: Found| {
            let own = spans[index];
            let touched = sessions.touching(own.start.0, own.end.0);
            sessions.add(aggregate, input, own, touched).map(drop)
        })
    }

    fn close(&mut self, rows: usize, out: &mut Batch<Pane<K, A::Value>>) -> bool {
        if !self.has_changed {
            return false;
        }
        let (first, mut key) = self.next;
        for part in first..self.table.parts() {
            for entry in self.table.entries_of(part).skip(key) {
                if out.len() >= rows {
                    self.next = (part, key);
                    return true;
                }
                for session in &entry.state.all {
                    let value = self.aggregate.value(&session.state);
                    out.append(Pane { key: entry.key.clone(), window: session.span(), value }, None);
                }
                key += 1;
            }
            key = 0;
        }
        (self.has_changed, self.next) = (false, (0, 0));
        false
    }

    fn begin(&mut self, watermark: EventTime, policy: WatermarkPolicy) {
        self.watermark = policy.is_max_seen().then_some(watermark);
    }

    fn advance(&mut self, watermark: EventTime) {
        self.watermark = self.watermark.map(|_| watermark);
    }

    fn hand_on_late(&mut self, _: Option<&Admission>, _: &Capabilities) -> Result<u64> {
        Ok(std::mem::take(&mut self.late))
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }
}
