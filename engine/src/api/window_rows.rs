//! How windows are built, by what is emitted of them.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::operator::aggregate::{Aggregate, Complete, Merge, WithRecord};
use crate::operator::by_trigger::ByTrigger;
use crate::operator::count_windows::{CountSliding, CountTumbling};
use crate::operator::inlet::Inlet;
use crate::operator::layout::Layout;
use crate::operator::panes::Panes;
use crate::operator::sessions::{AllSessions, BySession};
use crate::operator::shown::{EachChange, EachValue, Finals, LastChanges, LastValues, Show};
use crate::operator::shown_sessions::LastSessions;
use crate::operator::window::{Rules, Windows};
use crate::run::graph::{Emits, NodeTraits, TimeTrait};
use crate::words::{Batch, Change, Late, Pane, StageMeter};

use super::aggregated::{Options, built, built_of_parts, built_with};
use super::key::{Exchange, Key};
use super::keyed::KeyedStream;
use super::operate::Traits;
use super::stream::Stream;
use super::windows::{Asked, Gap, GapOf};

/// An aggregate over windows that does not know yet what is emitted of it.
pub(super) trait Emit<'a, K, V> {
    fn merge(&mut self, merge: Merge<V>);
    fn finals(self: Box<Self>, options: Options<(K, i64), V>) -> Stream<'a, Pane<K, V>>;
    fn updates(self: Box<Self>, options: Options<(K, i64), V>) -> Stream<'a, Pane<K, V>>;
    fn changes(self: Box<Self>, options: Options<(K, i64), V>) -> Stream<'a, Change<Pane<K, V>>>;
    fn complete(self: Box<Self>, options: Options<(K, i64), V>) -> Stream<'a, Pane<K, V>>;
    fn full(self: Box<Self>, options: Options<(K, i64), V>) -> Stream<'a, (K, V)>;
}

/// How late records leave.
pub(super) struct LateRows<'a, T: 'static> {
    pub(super) meter: Arc<StageMeter>,
    pub(super) inlet: Inlet<'a, Late<T>>,
}

pub(super) struct Pending<'a, K, T: 'static, A, F> {
    pub(super) keyed: KeyedStream<'a, K, T>,
    pub(super) what: &'static str,
    pub(super) aggregate: A,
    pub(super) input: F,
    pub(super) asked: Asked<T>,
    pub(super) lateness: Duration,
    pub(super) late: LateAsked<'a, T>,
    /// Whether it was asked how to merge values that it has none of.
    pub(super) is_merge_wrong: bool,
}

/// Whether late records are to leave, and how; not before the pipeline is built.
pub(super) enum LateAsked<'a, T: 'static> {
    No,
    Yes(Option<Box<LateRows<'a, T>>>),
}

/// An aggregate over windows by time, with its stream.
struct Ready<'a, K, A: Aggregate> {
    keyed: Stream<'a, (K, A::Input)>,
    what: &'static str,
    aggregate: A,
    late: Option<Box<LateRows<'a, A::Input>>>,
    rules: Rules,
}

/// What is emitted of windows by time, and how that is built.
trait Rows {
    type Row<K: 'static, V: 'static>: 'static;

    fn build<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: Ready<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Self::Row<K, A::Value>>;

    fn build_sessions<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: ReadySessions<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Self::Row<K, A::Value>>;
}

/// An aggregate over sessions, with its stream.
struct ReadySessions<'a, K, A: Aggregate> {
    keyed: Stream<'a, (K, A::Input)>,
    what: &'static str,
    aggregate: A,
    late: Option<Box<LateRows<'a, A::Input>>>,
    gap: GapOf<A::Input>,
}

const KNOWS_MERGE: &str = "it knows how to merge its values: `merge` is for `aggregate`";

/// What the graph is told.
fn traits(emits: Emits, time: TimeTrait, every: Option<Duration>) -> Traits {
    Traits { keeps_state: true, emits, every, time }
}

struct FinalRows;

impl Rows for FinalRows {
    type Row<K: 'static, V: 'static> = Pane<K, V>;

    fn build<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: Ready<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Pane<K, A::Value>> {
        let Ready { keyed, what, aggregate, late, rules } = ready;
        let (meter, inlet) = late.map(|late| (late.meter, late.inlet)).unzip();
        let traits = traits(Emits::ByRecords, TimeTrait::WaitsFor(rules.lateness), None);
        match rules.layout {
            Layout::Fixed(fixed) if fixed.overlaps() && aggregate.merges() => {
                built_of_parts(aggregate, options, |with_table| {
                    let operate = move |_| Panes::new(with_table, (fixed, rules.lateness), meter);
                    keyed.operate_with_late(what, traits, |_| false, inlet, operate)
                })
            }
            _ => built(aggregate, options, |with_table| {
                let operate = move |_| Windows::new(with_table, rules, Finals, meter);
                keyed.operate_with_late(what, traits, |_| false, inlet, operate)
            }),
        }
    }

    fn build_sessions<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: ReadySessions<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Self::Row<K, A::Value>> {
        let ReadySessions { keyed, what, aggregate, late, gap } = ready;
        let (meter, inlet) = late.map(|late| (late.meter, late.inlet)).unzip();
        built_of_parts(aggregate, options, |with_table| {
            let operate = move |_| BySession::new(with_table, gap, Finals, meter);
            let traits = traits(Emits::ByRecords, TimeTrait::WaitsFor(Duration::ZERO), None);
            keyed.operate_with_late(what, traits, |_| false, inlet, operate)
        })
    }
}

/// Shows windows before they are over: each change, or the last one of a batch or a while.
fn shown_early<'a, K: Key, A, E, L>(
    ready: Ready<'a, K, A>,
    options: Options<(K, i64), A::Value>,
    each: E,
    last: L,
) -> Stream<'a, E::Row>
where
    A: Aggregate<Input: Exchange + Clone>,
    E: Show<K, A>,
    L: Show<K, A, Row = E::Row>,
{
    let Ready { keyed, what, aggregate, late, rules } = ready;
    let (meter, inlet) = late.map(|late| (late.meter, late.inlet)).unzip();
    let every = options.every;
    built(aggregate, options, |with_table| {
        let operate = move |is_micro_batch: bool| match is_micro_batch || every.is_some() {
            true => ByTrigger::InBatches(Windows::new(with_table, rules, last, meter)),
            false => ByTrigger::Alone(Windows::new(with_table, rules, each, meter)),
        };
        keyed.operate_with_late(what, traits(Emits::LastValues, TimeTrait::Uses, every), |_| false, inlet, operate)
    })
}

struct UpdateRows;

impl Rows for UpdateRows {
    type Row<K: 'static, V: 'static> = Pane<K, V>;

    fn build<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: Ready<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Pane<K, A::Value>> {
        shown_early(ready, options, EachValue, LastValues::default())
    }

    fn build_sessions<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        _: ReadySessions<'a, K, A>,
        _: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Self::Row<K, A::Value>> {
        unreachable!("sessions have no method for it")
    }
}

struct ChangeRows;

impl Rows for ChangeRows {
    type Row<K: 'static, V: 'static> = Change<Pane<K, V>>;

    fn build<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: Ready<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Change<Pane<K, A::Value>>> {
        shown_early(ready, options, EachChange, LastChanges::default())
    }

    fn build_sessions<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: ReadySessions<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Self::Row<K, A::Value>> {
        let ReadySessions { keyed, what, aggregate, late, gap } = ready;
        let (meter, inlet) = late.map(|late| (late.meter, late.inlet)).unzip();
        built_of_parts(aggregate, options, |with_table| {
            let operate = move |is_micro_batch: bool| match is_micro_batch {
                true => ByTrigger::InBatches(BySession::new(with_table, gap, LastSessions::default(), meter)),
                false => ByTrigger::Alone(BySession::new(with_table, gap, EachChange, meter)),
            };
            let traits = traits(Emits::LastValues, TimeTrait::Uses, None);
            keyed.operate_with_late(what, traits, |_| false, inlet, operate)
        })
    }
}

struct CompleteRows;

impl Rows for CompleteRows {
    type Row<K: 'static, V: 'static> = Pane<K, V>;

    fn build<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: Ready<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Pane<K, A::Value>> {
        let Ready { keyed, what, aggregate, rules: Rules { layout, .. }, .. } = ready;
        let traits = traits(Emits::LastValues, TimeTrait::Loses, None);
        let windows = layout.clone();
        let table = built(aggregate, options, |with_table| {
            let records = keyed.in_each(layout).with_notices();
            records.operate(what, traits, Option::is_none, |_| Complete::new(with_table))
        });
        table.map(move |((key, start), value)| Pane { key, window: windows.window(start), value })
    }

    fn build_sessions<'a, K: Key, A: Aggregate<Input: Exchange + Clone>>(
        ready: ReadySessions<'a, K, A>,
        options: Options<(K, i64), A::Value>,
    ) -> Stream<'a, Self::Row<K, A::Value>> {
        let ReadySessions { keyed, what, aggregate, gap, .. } = ready;
        built_of_parts(aggregate, options, |with_table| {
            let traits = traits(Emits::LastValues, TimeTrait::Hears, None);
            let operate = |_| AllSessions::new(with_table, gap);
            keyed.with_notices().operate(what, traits, Option::is_none, operate)
        })
    }
}

impl<'a, K: Key, I: Exchange + Clone> Stream<'a, (K, I)> {
    /// Each record once for each window that it is in.
    fn in_each(self, layout: Layout) -> Stream<'a, ((K, i64), I)> {
        let flow = self.flow.share();
        let traits = NodeTraits { time: TimeTrait::Reads, ..NodeTraits::default() };
        let node = flow.stage_node::<(K, I), ((K, i64), I)>("window", &[self.input()], traits);
        let meter = flow.place(node).map(|place| place.meter);
        self.through(node, move |mut batch| {
            let (mut out, mut windows) = (Batch::under(batch.admission().cloned()), Vec::new());
            let stamps = batch.take_stamps();
            for ((key, input), stamp) in batch.take_values().into_iter().zip(stamps) {
                match stamp.time() {
                    Some(time) if !stamp.is_refused() => layout.of(time, &mut windows),
                    _ => {
                        windows.clear();
                        meter.iter().for_each(|meter| meter.late.add(1));
                    }
                }
                let mut own = Some((key, input));
                for (index, window) in windows.iter().enumerate() {
                    let is_last = index + 1 == windows.len();
                    let record = if is_last { own.take() } else { own.clone() };
                    if let Some((key, input)) = record {
                        out.append(((key, window.start.0), input), Some(stamp));
                    }
                }
            }
            Ok(out)
        })
    }
}

/// The windows by time that were asked for, or why they cannot be.
fn rules(layout: Result<Layout, String>, lateness: Duration) -> Result<Rules, String> {
    match layout {
        Ok(_) if !lateness.subsec_nanos().is_multiple_of(1_000_000) => {
            Err(format!("the allowed lateness must be whole milliseconds, not {lateness:?}"))
        }
        layout => layout.map(|layout| Rules { layout, lateness }),
    }
}

/// What stands in for windows that cannot be, until the start is refused.
const NONE: Rules = Rules { layout: Layout::Global, lateness: Duration::ZERO };

impl<'a, K, T, A, F> Pending<'a, K, T, A, F>
where
    K: Key,
    T: Exchange + Clone,
    A: Aggregate<Input: Exchange + Clone>,
    F: Fn(T) -> A::Input + 'static,
{
    /// Builds what computes windows of inputs alone, or of records where late ones are to leave.
    fn build<R: Rows>(self, options: Options<(K, i64), A::Value>) -> Stream<'a, R::Row<K, A::Value>> {
        let Pending { keyed, what, aggregate, input, asked, lateness, late, is_merge_wrong } = self;
        let (stream, why) = match asked {
            Asked::Time(layout) => {
                let (rules, why) = rules(layout, lateness).map_or_else(|why| (NONE, Some(why)), |rules| (rules, None));
                let stream = match late {
                    LateAsked::No => {
                        let keyed = keyed.keyed(input);
                        R::build(Ready { keyed, what, aggregate, late: None, rules }, options)
                    }
                    LateAsked::Yes(late) => {
                        let aggregate = WithRecord { aggregate, input, record: PhantomData };
                        let keyed = keyed.keyed(|record| record);
                        R::build(Ready { keyed, what, aggregate, late, rules }, options)
                    }
                };
                (stream, why)
            }
            Asked::Session(gap) => {
                let cannot_merge =
                    || "a record may join two sessions: say how their values become one (`merge`)".to_owned();
                let cannot = if aggregate.merges() { None } else { Some(cannot_merge()) };
                let (gap, why) = gap.map_or_else(|why| (Gap::Millis(1), Some(why)), |gap| (gap, cannot));
                let stream = match (gap, late) {
                    (Gap::Millis(gap), LateAsked::No) => {
                        let (keyed, gap) = (keyed.keyed(input), Box::new(move |_: &_| gap) as _);
                        R::build_sessions(ReadySessions { keyed, what, aggregate, late: None, gap }, options)
                    }
                    (gap, late) => {
                        let aggregate = WithRecord { aggregate, input, record: PhantomData };
                        let (keyed, gap) = (keyed.keyed(|record| record), gap.of_records());
                        let late = if let LateAsked::Yes(late) = late { late } else { None };
                        R::build_sessions(ReadySessions { keyed, what, aggregate, late, gap }, options)
                    }
                };
                (stream, why)
            }
            Asked::Count(..) => unreachable!("windows of records have a method of their own"),
        };
        if is_merge_wrong {
            stream.refuse(KNOWS_MERGE.to_owned());
        }
        why.into_iter().for_each(|why| stream.refuse(why));
        stream
    }
}

impl<'a, K, T, A, F> Emit<'a, K, A::Value> for Pending<'a, K, T, A, F>
where
    K: Key,
    T: Exchange + Clone,
    A: Aggregate<Input: Exchange + Clone>,
    F: Fn(T) -> A::Input + 'static,
{
    fn merge(&mut self, merge: Merge<A::Value>) {
        self.is_merge_wrong |= !self.aggregate.merge_by(merge);
    }

    fn finals(self: Box<Self>, options: Options<(K, i64), A::Value>) -> Stream<'a, Pane<K, A::Value>> {
        let is_early = options.every.is_some();
        let rows = self.build::<FinalRows>(options);
        if is_early {
            rows.refuse("finals come once, when their window is over: `early` is for updates and changes".to_owned());
        }
        rows
    }

    fn updates(self: Box<Self>, options: Options<(K, i64), A::Value>) -> Stream<'a, Pane<K, A::Value>> {
        self.build::<UpdateRows>(options)
    }

    fn changes(self: Box<Self>, options: Options<(K, i64), A::Value>) -> Stream<'a, Change<Pane<K, A::Value>>> {
        self.build::<ChangeRows>(options)
    }

    fn full(self: Box<Self>, options: Options<(K, i64), A::Value>) -> Stream<'a, (K, A::Value)> {
        let Pending { keyed, what, aggregate, input, asked, is_merge_wrong, .. } = *self;
        let Asked::Count(length, every) = asked else { unreachable!("other windows have methods of their own") };
        let traits = traits(Emits::ByRecords, TimeTrait::Loses, None);
        let keyed = keyed.keyed(input);
        let stream = match length == every {
            true => built_with(options, |table| {
                keyed.operate(what, traits, |_| false, move |_| CountTumbling { aggregate, length, table })
            }),
            false => built_with(options, |table| {
                keyed.operate(what, traits, |_| false, move |_| CountSliding { aggregate, length, every, table })
            }),
        };
        if !(1..=length).contains(&every) {
            let why = format!(
                "windows of {length} records with one each {every} do not fit: both must be at least one, and \
                               windows not shorter than what is between them"
            );
            stream.refuse(why);
        }
        if is_merge_wrong {
            stream.refuse(KNOWS_MERGE.to_owned());
        }
        stream
    }

    fn complete(self: Box<Self>, options: Options<(K, i64), A::Value>) -> Stream<'a, Pane<K, A::Value>> {
        let hands_late_on = matches!(self.late, LateAsked::Yes(_));
        let is_timed = options.every.is_some() || !self.lateness.is_zero();
        let rows = Pending { late: LateAsked::No, ..*self }.build::<CompleteRows>(options);
        if hands_late_on {
            rows.refuse("no record is late for a complete table: leave `late` out".to_owned());
        }
        if is_timed {
            let why = "the complete table keeps all windows, and leaves with each checkpoint: leave `early` and \
                       `allowed_lateness` out";
            rows.refuse(why.to_owned());
        }
        rows
    }
}
