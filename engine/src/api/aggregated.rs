//! What is kept by key, before it is built: how it begins, and what of it is emitted.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use crate::operator::aggregate::{Aggregate, Changes, Complete, InParts, LastChanges, LastUpdates, Updates};
use crate::operator::sorted::Sorted;
use crate::run::graph::{Emits, TimeTrait};
use crate::state::delta::NotEntries;
use crate::state::origin::{Origin, Same};
use crate::state::table::{Grouping, Table, TableState};
use crate::words::Change;

use super::conversion::{Conversion, Convert};
use super::key::{Exchange, Key, State};
use super::operate::Traits;
use super::stream::Stream;

/// A value for each key, which changes with each record of it. Its methods say what is emitted.
///
/// | method | `Continuous`, `AvailableNow` | `MicroBatch` | Spark |
/// |---|---|---|---|
/// | [`updates`](Aggregated::updates) | the new value with each record | the last value of each key that the batch changed | output mode *update* |
/// | [`complete`](Aggregated::complete) | all keys at each checkpoint with records | all keys after each batch with records | output mode *complete* |
/// | [`changes`](Aggregated::changes) | the change of each record | the change of each key over the batch | – |
///
/// Spark's *append* of an aggregate needs windows that end. Which sinks take what, beside what
/// Spark's sink of that kind takes:
///
/// | sink | `updates` | `complete` | `changes` | Spark |
/// |---|---|---|---|---|
/// | Kafka | yes; with the key of the row ([`sink_by`](Stream::sink_by)) a compacted topic ends up as the table | yes: all rows, batch by batch | yes; as JSON `{"Delete": row}` and `{"Insert": row}` | append, update, complete |
/// | console, as a table or by batch | yes | yes | yes | append, update, complete |
/// | console, by line | rows must be `Display`: map them to text first | likewise | likewise | – |
/// | memory ([`collect`](crate::collect)) | yes | yes | yes | append, complete |
/// | a file | there is no file sink | | | append |
#[must_use = "a value does nothing until something of it is emitted"]
pub struct Aggregated<'a, K, V> {
    emit: Box<dyn Emit<'a, K, V> + 'a>,
    options: Options<K, V>,
}

/// What is said of an aggregate before it is built.
pub(super) struct Options<K, V> {
    name: Option<String>,
    version: u32,
    older: Vec<Box<dyn Convert<V>>>,
    rows: Option<Box<dyn Iterator<Item = (K, V)>>>,
    pub(super) every: Option<Duration>,
}

impl<'a, K: Key, V: 'static> Aggregated<'a, K, V> {
    pub(super) fn new<A>(keyed: Stream<'a, (K, A::Input)>, what: &'static str, aggregate: A) -> Aggregated<'a, K, V>
    where
        A: Aggregate<Input: Exchange, Value = V>,
    {
        Aggregated { emit: Box::new(Pending { keyed, what, aggregate }), options: Options::new() }
    }

    /// Names the operator: in reports and errors, and for its state, which a checkpoint finds by
    /// its name. Two of a kind must have names.
    ///
    /// ```
    /// use millstream::{Job, discard, rows};
    ///
    /// let job = Job::new("views", |flow| {
    ///     let views = flow.source(rows(['a', 'b', 'a']))?;
    ///     views.clone().key_by(|page| *page).count().named("by page").updates().sink(discard())?;
    ///     views.global().count().named("in all").updates().sink(discard())
    /// });
    /// let plan = job.state_in_memory().explain()?.to_string();
    /// assert!(plan.contains("by page") && plan.contains("in all"), "{plan}");
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn named(mut self, name: &str) -> Aggregated<'a, K, V> {
        self.options.name(name);
        self
    }

    /// Begins with these values, as if records had led to them: the values that the keys had before
    /// the job, say. Nothing is emitted of them until a record comes for their key, or for any key
    /// with [`complete`](Aggregated::complete). Of several rows with one key the first counts.
    ///
    /// The rows are used once in the life of a job: where a checkpoint has state of this operator,
    /// they are not even asked for. Each worker goes through all of them, and takes those whose
    /// keys it owns.
    ///
    /// A [`mean`](crate::KeyedStream::mean) and the approximate aggregates know more than their
    /// value, and cannot begin with one: the job is refused at start. The rows of a
    /// [`top_k`](crate::KeyedStream::top_k) must be in its order. A value that
    /// [`latest`](crate::KeyedStream::latest) begins with is older than each record.
    ///
    /// ```
    /// use millstream::{Job, collect, rows};
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// Job::new("views", move |flow| {
    ///     let views = flow.source(rows(["home", "shop"].map(str::to_owned)))?;
    ///     let before = [("home".to_owned(), 1_000)];
    ///     views.key_by(String::clone).count().initial(before).updates().sink(&sink)
    /// })
    /// .state_in_memory()
    /// .run()?;
    /// let mut counts = counts.values();
    /// counts.sort();
    /// assert_eq!(counts, [("home".to_owned(), 1_001), ("shop".to_owned(), 1)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn initial<R>(mut self, rows: R) -> Aggregated<'a, K, V>
    where
        R: IntoIterator<Item = (K, V)>,
        R::IntoIter: 'static,
    {
        self.options.rows = Some(Box::new(rows.into_iter()));
        self
    }

    /// The version of what the state means, 0 by default. A checkpoint with another version is
    /// refused, as one with another type is, unless [`migrate_from`](Aggregated::migrate_from)
    /// converts it. So raise it when the same type means something else than before, such as
    /// cents where there were euros.
    ///
    /// ```
    /// use millstream::{ErrorKind, Job, discard, rows};
    ///
    /// # let temporary = tempfile::tempdir().unwrap();
    /// # let directory = temporary.path();
    /// let sales = |version| {
    ///     let job = Job::new("sales", move |flow| {
    ///         let sums = flow.source(rows([2, 3]).partitions(1))?.global().sum(|price| *price);
    ///         sums.state_version(version).updates().sink(discard())
    ///     });
    ///     job.checkpoints(directory)
    /// };
    /// sales(0).run()?;
    /// let error = sales(1).run().expect_err("the checkpoint has version 0");
    /// assert_eq!(error.kind(), ErrorKind::State);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn state_version(mut self, version: u32) -> Aggregated<'a, K, V> {
        self.options.version(version);
        self
    }

    /// Converts the values that a checkpoint has of an earlier version of the program. `Old` is the
    /// type that the value had in that [version](Aggregated::state_version): the error that names
    /// both types shows it. There may be a conversion for each older version; each leads to the
    /// value of now.
    ///
    /// The state is converted while it is loaded, and the first checkpoint of the run has all of
    /// it. The key keeps its type. A [`mean`](crate::KeyedStream::mean) and the approximate
    /// aggregates know more than their value, and cannot be converted: the job is refused at start.
    ///
    /// ```
    /// use millstream::{Job, Result, collect, rows};
    ///
    /// # let directory = std::env::temp_dir().join(format!("millstream-doc-migrate-{}", std::process::id()));
    /// # let first = directory.clone();
    /// // The first version kept euros.
    /// Job::new("sales", move |flow| {
    ///     let sales = flow.source(rows([("ann".to_owned(), 2_u32), ("bob".to_owned(), 3)]).partitions(1))?;
    ///     let by_customer = sales.key_by(|(customer, _)| customer.clone());
    ///     by_customer.sum(|(_, euros)| *euros).updates().sink(collect())
    /// })
    /// .checkpoints(&directory)
    /// .run()?;
    ///
    /// // This one keeps cents.
    /// let sums = collect();
    /// let sink = sums.clone();
    /// Job::new("sales", move |flow| {
    ///     let sales = [("ann".to_owned(), 200_u64), ("bob".to_owned(), 300), ("ann".to_owned(), 50)];
    ///     let by_customer = flow.source(rows(sales).partitions(1))?.key_by(|(customer, _)| customer.clone());
    ///     let sums = by_customer.sum(|(_, cents)| *cents);
    ///     sums.state_version(1).migrate_from(0, |euros: u32| u64::from(euros) * 100).updates().sink(&sink)
    /// })
    /// .checkpoints(&directory)
    /// .run()?;
    /// // The source of the second run goes on behind the two sales of the first.
    /// assert_eq!(sums.values(), [("ann".to_owned(), 250)]);
    /// # std::fs::remove_dir_all(first).unwrap();
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn migrate_from<Old: State>(mut self, version: u32, f: impl Fn(Old) -> V + 'static) -> Aggregated<'a, K, V> {
        self.options.convert::<K, Old>(version, f);
        self
    }

    /// Emits [`updates`](Aggregated::updates) and [`changes`](Aggregated::changes) less often: what
    /// has changed leaves within this time, once for each key, with its last value.
    ///
    /// A checkpoint also emits all that has changed, so that nothing is forgotten in a crash. So
    /// the time may not be longer than [`Job::checkpoint_every`](crate::Job::checkpoint_every), a
    /// second by default; longer ones are refused at start. Under `MicroBatch` values leave with
    /// each batch, whatever is said here. [`complete`](Aggregated::complete) refuses it: its table
    /// leaves with each checkpoint.
    ///
    /// ```
    /// use millstream::{Job, collect, generate};
    /// use std::time::Duration;
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// Job::new("views", move |flow| {
    ///     let views = flow.source(generate(|n| n).count(10_000))?;
    ///     views.key_by(|n| n % 10).count().every(Duration::from_millis(100)).updates().sink(&sink)
    /// })
    /// .state_in_memory()
    /// .run()?;
    /// let counts = counts.values();
    /// assert!(counts.len() < 10_000 && counts.contains(&(7, 1_000)), "{}", counts.len());
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn every(mut self, time: Duration) -> Aggregated<'a, K, V> {
        self.options.every = Some(time);
        self
    }

    /// The new values: of each key with each record under `Continuous` and `AvailableNow`, and once
    /// per key and batch under `MicroBatch`. The last one of a key is the same under each trigger.
    pub fn updates(self) -> Stream<'a, (K, V)> {
        self.emit.updates(self.options)
    }

    /// The whole table, whenever a batch has changed it.
    ///
    /// ```
    /// use millstream::{Job, Trigger, collect, rows};
    /// use std::time::Duration;
    ///
    /// let tables = collect();
    /// let sink = tables.clone();
    /// let job = Job::new("views", move |flow| {
    ///     let views = flow.source(rows(['a', 'b', 'a']).partitions(1))?.batch_at_most(2);
    ///     views.key_by(|page| *page).count().complete().rows().sink(&sink)
    /// });
    /// job.state_in_memory().trigger(Trigger::micro_batch(Duration::ZERO)).run()?;
    /// let mut rows = tables.values();
    /// rows.sort();
    /// // The second batch has changed `a` only, but `b` is in both tables.
    /// assert_eq!(rows, [('a', 1), ('a', 2), ('b', 1), ('b', 1)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn complete(self) -> CompleteTable<'a, K, V> {
        CompleteTable { rows: self.emit.complete(self.options), order: None, limit: usize::MAX }
    }

    /// What changes: the value of a key before as deleted, the one now as inserted.
    ///
    /// ```
    /// use millstream::Change::{Delete, Insert};
    /// use millstream::{Job, collect, rows};
    ///
    /// let changes = collect();
    /// let sink = changes.clone();
    /// let job = Job::new("views", move |flow| {
    ///     flow.source(rows(['a', 'a']))?.key_by(|page| *page).count().changes().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(changes.values(), [Insert(('a', 1)), Delete(('a', 1)), Insert(('a', 2))]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn changes(self) -> Stream<'a, Change<(K, V)>> {
        self.emit.changes(self.options)
    }

    /// The values that the records of a batch alone lead to.
    pub(super) fn of_batches(self) -> Stream<'a, (K, V)> {
        self.emit.of_batches()
    }
}

impl<K: Key, V: 'static> Options<K, V> {
    pub(super) fn new() -> Options<K, V> {
        Options { name: None, version: 0, older: Vec::new(), rows: None, every: None }
    }

    pub(super) fn name(&mut self, name: &str) {
        self.name = Some(name.to_owned());
    }

    pub(super) fn version(&mut self, version: u32) {
        self.version = version;
    }

    /// `Own` is the type of the keys under which values are kept in parts, if they are.
    pub(super) fn convert<Own: Key, Old: State>(&mut self, version: u32, f: impl Fn(Old) -> V + 'static) {
        self.older.push(Box::new(Conversion::<K, Own, Old, _>::new(version, f)));
    }

    /// How the table of an aggregate begins.
    fn origin<A: Aggregate<Value = V>>(self) -> Origin<K, A::State> {
        let Options { version, older, rows, .. } = self;
        let Some(form) = A::FORM else { return Origin::new(version, Vec::new(), None) };
        let converted = |conversion: Box<dyn Convert<V>>| {
            let look = conversion.look(form);
            let read = move |state: &[u8]| {
                let (value, time) = conversion.read(form, state)?;
                A::state_of(value, time).ok_or(NotEntries)
            };
            (look, Box::new(read) as _)
        };
        let older = older.into_iter().map(converted).collect();
        let rows =
            rows.map(|rows| Box::new(rows.filter_map(|(key, value)| Some((key, A::state_of(value, None)?)))) as _);
        Origin::new(version, older, rows)
    }

    /// How the table of an aggregate begins whose states are kept in parts of another one's.
    fn origin_of_parts<Own, A: Aggregate<Value = V>, P: InParts<A>>(self) -> Origin<Own, P> {
        let Options { version, older, .. } = self;
        let same: Option<Same<P>> = A::SAME.map(|_| P::same as Same<P>);
        let Some(form) = A::FORM else { return Origin::new(version, Vec::new(), None).compared_by(same) };
        let converted = |conversion: Box<dyn Convert<V>>| {
            let look = conversion.look_in(P::SHELL, form);
            let read = move |state: &[u8]| {
                let parts = conversion.read_in(form, state)?.into_iter();
                let parts = parts.map(|(from, other, (value, time))| Some((from, other, A::state_of(value, time)?)));
                parts.collect::<Option<Vec<_>>>().map(P::of).ok_or(NotEntries)
            };
            (look, Box::new(read) as _)
        };
        let older = older.into_iter().map(converted).collect();
        Origin::new(version, older, None).compared_by(same)
    }

    /// What the aggregate cannot do of what is said of it.
    fn refused<A: Aggregate>(&self) -> Option<&'static str> {
        if A::FORM.is_some() {
            return None;
        }
        let both = [("initial", self.rows.is_some()), ("migrate_from", !self.older.is_empty())];
        both.into_iter().find(|(_, is_asked)| *is_asked).map(|(option, _)| option)
    }
}

/// An aggregate that does not know yet what is emitted of it.
trait Emit<'a, K, V> {
    fn updates(self: Box<Self>, options: Options<K, V>) -> Stream<'a, (K, V)>;
    fn complete(self: Box<Self>, options: Options<K, V>) -> Stream<'a, (K, V)>;
    fn changes(self: Box<Self>, options: Options<K, V>) -> Stream<'a, Change<(K, V)>>;
    fn of_batches(self: Box<Self>) -> Stream<'a, (K, V)>;
}

struct Pending<'a, K, A: Aggregate> {
    keyed: Stream<'a, (K, A::Input)>,
    what: &'static str,
    aggregate: A,
}

/// An aggregate, and its table.
pub(super) type WithTable<K, A, G> = (A, Table<K, <A as Aggregate>::State, G>);

/// Builds the operator, and applies what is said of it.
pub(super) fn built<'a, K: Key, A: Aggregate, T: 'static, G: Grouping<K>>(
    aggregate: A,
    options: Options<K, A::Value>,
    build: impl FnOnce(WithTable<K, A, G>) -> Stream<'a, T>,
) -> Stream<'a, T> {
    let refused = options.refused::<A>();
    finished(options, refused, |options| build((aggregate, Table::with(options.origin::<A>().compared_by(A::SAME)))))
}

/// As [`built`], of an aggregate whose states are kept in parts of another table.
pub(super) fn built_of_parts<'a, K: Key, W: Key, A: Aggregate, P: InParts<A>, T: 'static>(
    aggregate: A,
    options: Options<(K, W), A::Value>,
    build: impl FnOnce((A, Table<K, P>)) -> Stream<'a, T>,
) -> Stream<'a, T> {
    let refused = options.refused::<A>();
    finished(options, refused, |options| build((aggregate, Table::with(options.origin_of_parts::<K, A, P>()))))
}

/// As [`built`], of a table of its own.
pub(super) fn built_with<'a, K: Key, W: Key, V: 'static, S: TableState, T: 'static>(
    options: Options<(K, W), V>,
    build: impl FnOnce(Table<K, S>) -> Stream<'a, T>,
) -> Stream<'a, T> {
    let refused = (!options.older.is_empty()).then_some("migrate_from");
    finished(options, refused, |options| build(Table::with(Origin::new(options.version, Vec::new(), None))))
}

/// Builds the operator, names it, and refuses what it cannot do.
fn finished<'a, K: Key, V: 'static, T: 'static>(
    mut options: Options<K, V>,
    refused: Option<&'static str>,
    build: impl FnOnce(Options<K, V>) -> Stream<'a, T>,
) -> Stream<'a, T> {
    let name = options.name.take();
    let stream = build(options);
    if let Some(option) = refused {
        let why = format!("it keeps more than its value, so `{option}` cannot make its state of values");
        stream.refuse(why);
    }
    match name {
        Some(name) => stream.named(&name),
        None => stream,
    }
}

impl<'a, K: Key, A: Aggregate<Input: Exchange>> Emit<'a, K, A::Value> for Pending<'a, K, A> {
    fn updates(self: Box<Self>, options: Options<K, A::Value>) -> Stream<'a, (K, A::Value)> {
        let Pending { keyed, what, aggregate } = *self;
        let every = options.every;
        built(aggregate, options, |with_table| {
            keyed.operate_by_trigger(what, every, with_table, Updates::new, |with_table| {
                LastUpdates::new(with_table, false)
            })
        })
    }

    fn complete(self: Box<Self>, options: Options<K, A::Value>) -> Stream<'a, (K, A::Value)> {
        let Pending { keyed, what, aggregate } = *self;
        let is_timed = options.every.is_some();
        let traits = Traits { keeps_state: true, emits: Emits::LastValues, every: None, time: TimeTrait::Loses };
        let rows = built(aggregate, options, |with_table| {
            keyed.with_notices().operate(what, traits, Option::is_none, |_| Complete::new(with_table))
        });
        if is_timed {
            rows.refuse("the complete table leaves with each checkpoint, and not `every` so often".to_owned());
        }
        rows
    }

    fn changes(self: Box<Self>, options: Options<K, A::Value>) -> Stream<'a, Change<(K, A::Value)>> {
        let Pending { keyed, what, aggregate } = *self;
        let every = options.every;
        built(aggregate, options, |with_table| {
            keyed.operate_by_trigger(what, every, with_table, Changes::new, LastChanges::new)
        })
    }

    fn of_batches(self: Box<Self>) -> Stream<'a, (K, A::Value)> {
        let Pending { keyed, what, aggregate } = *self;
        let traits = Traits { keeps_state: false, emits: Emits::PerBatch, every: None, time: TimeTrait::Loses };
        keyed.operate(what, traits, |_| false, |_| LastUpdates::new((aggregate, Table::new()), true))
    }
}

/// The order of the rows of a table.
type Compare<K, V> = dyn Fn(&(K, V), &(K, V)) -> Ordering;

/// The whole table of an [`Aggregated`], batch by batch: all of its rows, in no order unless one is
/// asked for.
#[must_use = "a table does nothing until it reaches a sink"]
pub struct CompleteTable<'a, K, V> {
    rows: Stream<'a, (K, V)>,
    order: Option<Box<Compare<K, V>>>,
    limit: usize,
}

impl<'a, K: Key, V: Exchange> CompleteTable<'a, K, V> {
    /// Sorts the rows. One worker does it, and holds all of them.
    ///
    /// ```
    /// use millstream::{Job, collect, rows};
    ///
    /// let most = collect();
    /// let sink = most.clone();
    /// let job = Job::new("most viewed", move |flow| {
    ///     let views = flow.source(rows(['a', 'b', 'c', 'b', 'c', 'b']).partitions(1))?;
    ///     let counts = views.key_by(|page| *page).count().complete();
    ///     counts.sorted_by(|a, b| b.1.cmp(&a.1)).limit(2).rows().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(most.values(), [('b', 3), ('c', 2)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn sorted_by(self, compare: impl Fn(&(K, V), &(K, V)) -> Ordering + 'static) -> CompleteTable<'a, K, V> {
        CompleteTable { order: Some(Box::new(compare)), ..self }
    }

    /// Keeps the first rows only, in the order of [`sorted_by`](CompleteTable::sorted_by), or any.
    pub fn limit(self, rows: usize) -> CompleteTable<'a, K, V> {
        CompleteTable { limit: rows, ..self }
    }

    /// The rows, batch by batch.
    pub fn rows(self) -> Stream<'a, (K, V)> {
        let CompleteTable { rows, order, limit } = self;
        if order.is_none() && limit == usize::MAX {
            return rows;
        }
        let compare = order.unwrap_or_else(|| Box::new(|_, _| Ordering::Equal));
        let traits = Traits { keeps_state: false, emits: Emits::LastValues, every: None, time: TimeTrait::Loses };
        rows.global().keyed(|row| row).operate("sort", traits, |_| false, move |_| Sorted::new(compare, limit))
    }
}

impl<K, V> fmt::Debug for Aggregated<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aggregated")
    }
}

impl<K, V> fmt::Debug for CompleteTable<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table of {:?}", self.rows)
    }
}
