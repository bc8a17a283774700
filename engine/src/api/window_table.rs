//! What is emitted of the values of windows.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use crate::words::{Change, Pane};

use super::aggregated::Options;
use super::key::{Key, State};
use super::stream::Stream;
use super::window_rows::Emit;
use super::windows::{ByCount, ByTime, InTime};

/// A value for each key and window. Its methods say what of it is emitted.
///
/// | method | when | Spark | Flink |
/// |---|---|---|---|
/// | [`finals`](WindowTable::finals) | once, when the window is over | output mode *append* | the default trigger |
/// | [`updates`](WindowTable::updates) | the value so far, with each change or [less often](WindowTable::early) | output mode *update* | a trigger that fires early |
/// | [`changes`](WindowTable::changes) | each change, as what it deletes and inserts | – | a changelog |
/// | [`complete`](WindowTable::complete) | all windows there ever were, batch by batch | output mode *complete* | – |
#[must_use = "a value does nothing until something of it is emitted"]
pub struct WindowTable<'a, K, V, W = ByTime> {
    pub(super) emit: Box<dyn Emit<'a, K, V> + 'a>,
    pub(super) options: Options<(K, i64), V>,
    pub(super) kind: PhantomData<W>,
}

impl<'a, K: Key, V: 'static, W> WindowTable<'a, K, V, W> {
    /// As [`Aggregated::named`](crate::Aggregated::named).
    pub fn named(mut self, name: &str) -> WindowTable<'a, K, V, W> {
        self.options.name(name);
        self
    }

    /// As [`Aggregated::state_version`](crate::Aggregated::state_version). Raise it too when the
    /// windows change their length, step, offset or time zone: a checkpoint knows them by where
    /// they begin.
    pub fn state_version(mut self, version: u32) -> WindowTable<'a, K, V, W> {
        self.options.version(version);
        self
    }

    /// As [`Aggregated::migrate_from`](crate::Aggregated::migrate_from). It is refused for windows
    /// of so many records ([`Count`](crate::Count)).
    pub fn migrate_from<Old: State>(
        mut self,
        version: u32,
        f: impl Fn(Old) -> V + 'static,
    ) -> WindowTable<'a, K, V, W> {
        self.options.convert::<K, Old>(version, f);
        self
    }

    /// Says how two values of an [`aggregate`](crate::Windowed::aggregate) become one: the second
    /// is added to the first. It must lead to what the records of both would have led to. It is
    /// refused for other aggregates, which know it.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Sliding, collect, rows};
    /// use std::time::Duration;
    ///
    /// let products = collect();
    /// let sink = products.clone();
    /// let job = Job::new("products", move |flow| {
    ///     let at = flow.source(rows([2, 3, 5]).partitions(1))?;
    ///     let at = at.with_watermark(|at| EventTime(*at), Duration::ZERO).global();
    ///     let windows = at.window(Sliding::new(Duration::from_millis(4), Duration::from_millis(2)));
    ///     let products = windows.aggregate(|| 1, |product, n| *product *= n).merge(|a, b| *a *= b);
    ///     products.finals().map(|pane| pane.value).sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(products.values(), [6, 30, 5]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn merge(mut self, f: impl Fn(&mut V, &V) + 'static) -> WindowTable<'a, K, V, W> {
        self.emit.merge(Box::new(f));
        self
    }
}

impl<'a, K: Key, V: 'static> WindowTable<'a, K, V, ByCount> {
    /// The value of each window, when it is full; see [`Count`](crate::Count).
    pub fn full(self) -> Stream<'a, (K, V)> {
        self.emit.full(self.options)
    }
}

impl<'a, K: Key, V: 'static, W: InTime> WindowTable<'a, K, V, W> {
    /// The value of each key and window, once: when the watermark has passed the window's end. In
    /// Spark's words, output mode *append*.
    ///
    /// It is final, and the same under each trigger, with any number of workers and over crashes,
    /// unless the aggregate depends on the order of records of several partitions. The event time
    /// of a row is the last millisecond of its window, so windows may follow windows.
    pub fn finals(self) -> Stream<'a, Pane<K, V>> {
        self.emit.finals(self.options)
    }

    /// What changes: the value of a key and window before as deleted, the one now as inserted. When
    /// a window is over nothing more is emitted: its last value stays.
    pub fn changes(self) -> Stream<'a, Change<Pane<K, V>>> {
        self.emit.changes(self.options)
    }

    /// All windows, whenever a batch has changed one. In Spark's words, output mode *complete*.
    ///
    /// As in Spark, windows are then kept for ever, and nothing is late but a record without an
    /// event time: the state grows with each window. (Sessions by Spark's own
    /// [`MaxSeen`](crate::WatermarkPolicy::MaxSeen) leave late records out even here, as Spark does.)
    ///
    /// ```
    /// use millstream::{EventTime, Job, Trigger, Tumbling, collect, rows};
    /// use std::time::Duration;
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// let job = Job::new("visits", move |flow| {
    ///     let at = flow.source(rows([30_000, 1_000]).partitions(1))?.batch_at_most(1);
    ///     let at = at.with_watermark(|at| EventTime(*at), Duration::ZERO).global();
    ///     let counts = at.window(Tumbling::new(Duration::from_secs(10))).count().complete();
    ///     counts.map(|pane| (pane.window.start.0, pane.value)).sink(&sink)
    /// });
    /// job.state_in_memory().trigger(Trigger::micro_batch(Duration::ZERO)).run()?;
    /// let mut counts = counts.values();
    /// counts.sort();
    /// assert_eq!(counts, [(0, 1), (30_000, 1), (30_000, 1)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn complete(self) -> Stream<'a, Pane<K, V>> {
        self.emit.complete(self.options)
    }
}

impl<'a, K: Key, V: 'static> WindowTable<'a, K, V, ByTime> {
    /// Emits [`updates`](WindowTable::updates) and [`changes`](WindowTable::changes) less often:
    /// what has changed leaves within this time, once for each key and window. As
    /// [`Aggregated::every`](crate::Aggregated::every), with its limits.
    pub fn early(mut self, every: Duration) -> WindowTable<'a, K, V, ByTime> {
        self.options.every = Some(every);
        self
    }

    /// The value so far of each key and window: with each record under `Continuous` and
    /// `AvailableNow`, and once per key, window and batch under `MicroBatch`. The last one is the
    /// same under each trigger, and is what [`finals`](WindowTable::finals) would emit. In Spark's
    /// words, output mode *update*.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Tumbling, collect, rows};
    /// use std::time::Duration;
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// let job = Job::new("visits", move |flow| {
    ///     let at = flow.source(rows([1_000, 2_000, 10_000]).partitions(1))?;
    ///     let at = at.with_watermark(|at| EventTime(*at), Duration::ZERO).global();
    ///     let counts = at.window(Tumbling::new(Duration::from_secs(10))).count().updates();
    ///     counts.map(|pane| (pane.window.start.0, pane.value)).sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(counts.values(), [(0, 1), (0, 2), (10_000, 1)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn updates(self) -> Stream<'a, Pane<K, V>> {
        self.emit.updates(self.options)
    }
}

impl<K, V, W> fmt::Debug for WindowTable<'_, K, V, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WindowTable")
    }
}
