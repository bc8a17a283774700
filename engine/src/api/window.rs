//! Windows: what is computed by key of the records of a stretch of event time.

use std::cmp::Ordering;
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::time::Duration;

use crate::operator::aggregate::Aggregate;
use crate::operator::aggregates::{Collect, Count, Fold, Latest, Mean, Number, Reduce, Sum, TopK};
use crate::operator::sketches::{CountDistinct, Distribution, Quantiles};
use crate::words::{Late, stable_hash};

use super::aggregated::Options;
use super::key::{Exchange, Key, State};
use super::keyed::KeyedStream;
use super::stream::Stream;
use super::window_rows::{LateAsked, LateRows, Pending};
use super::window_table::WindowTable;
use super::windows::{Asked, ByTime, InTime, Spec, Window};

impl<'a, K: Key, T: 'static> KeyedStream<'a, K, T> {
    /// Computes what follows by key and window. The stream needs a watermark
    /// ([`Stream::with_watermark`]), by which windows close.
    ///
    /// A record is late for a window when the mark of its own partition had passed the window's end
    /// before the record came: the largest event time so far in that partition, less the delay of
    /// the watermark. That depends on nothing but the order of records in their partition. So what
    /// is late, and what comes out, is the same under each trigger, with any number of workers, and
    /// when records are read again after a crash. In Flink and Spark it depends on when watermarks
    /// move.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Tumbling, collect, rows};
    /// use std::time::Duration;
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// Job::new("visits", move |flow| {
    ///     let visits = [("ann", 1_000), ("bob", 2_000), ("ann", 9_999), ("ann", 10_000)];
    ///     flow.source(rows(visits.map(|(name, at)| (name.to_owned(), at))).partitions(1))?
    ///         .with_watermark(|(_, at)| EventTime(*at), Duration::from_secs(5))
    ///         .key_by(|(name, _)| name.clone())
    ///         .window(Tumbling::new(Duration::from_secs(10)))
    ///         .count()
    ///         .finals()
    ///         .map(|pane| (pane.key, pane.window.start.0, pane.value))
    ///         .sink(&sink)
    /// })
    /// .state_in_memory()
    /// .run()?;
    /// let mut counts = counts.values();
    /// counts.sort();
    /// assert_eq!(counts, [("ann".into(), 0, 2), ("ann".into(), 10_000, 1), ("bob".into(), 0, 1)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn window<W: Window<T>>(self, window: W) -> Windowed<'a, K, T, W::Kind>
    where
        T: Exchange + Clone,
    {
        let Spec(asked) = window.spec();
        Windowed { keyed: self, asked, lateness: Duration::ZERO, late: LateAsked::No, kind: PhantomData }
    }
}

/// A keyed stream in windows; see [`KeyedStream::window`]. Its methods are those of a
/// [`KeyedStream`], computed for each window.
#[must_use = "windows do nothing until they are aggregated and reach a sink"]
pub struct Windowed<'a, K, T: 'static, W = ByTime> {
    keyed: KeyedStream<'a, K, T>,
    asked: Asked<T>,
    lateness: Duration,
    late: LateAsked<'a, T>,
    kind: PhantomData<W>,
}

impl<'a, K: Key, T: Exchange + Clone> Windowed<'a, K, T, ByTime> {
    /// Keeps each window open for this time behind its end, in whole milliseconds: what comes
    /// meanwhile is not late, and changes its value. So final values come that much later, and what
    /// [`updates`](WindowTable::updates) show between the two is the value so far.
    ///
    /// Flink emits a window at its end and again with each record that comes in the time that is
    /// allowed. What it emits first depends on timing; here nothing that is called final does.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Tumbling, collect, rows};
    /// use std::time::Duration;
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// let job = Job::new("visits", move |flow| {
    ///     let at = flow.source(rows([1_000, 12_000, 2_000, 16_000, 3_000]).partitions(1))?;
    ///     let at = at.with_watermark(|at| EventTime(*at), Duration::ZERO).global();
    ///     let windows = at.window(Tumbling::new(Duration::from_secs(10)));
    ///     // The record of 2 s comes in time, that of 3 s is late.
    ///     let counts = windows.allowed_lateness(Duration::from_secs(5)).count().finals();
    ///     counts.map(|pane| pane.value).sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(counts.values(), [2, 2]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn allowed_lateness(self, lateness: Duration) -> Windowed<'a, K, T, ByTime> {
        Windowed { lateness, ..self }
    }
}

impl<'a, K: Key, T: Exchange + Clone, W: InTime> Windowed<'a, K, T, W> {
    /// Late records as a stream: each once, with the windows that it missed. They are counted in
    /// any case ([`StageReport::late`](crate::StageReport::late)), and otherwise dropped.
    ///
    /// Records then travel to the worker of their key as a whole, and not only what is computed of
    /// them.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Tumbling, collect, rows};
    /// use std::time::Duration;
    ///
    /// let (counts, late) = (collect(), collect());
    /// let sinks = (counts.clone(), late.clone());
    /// let job = Job::new("visits", move |flow| {
    ///     let at = flow.source(rows([1_000, 10_000, 2_000]).partitions(1))?;
    ///     let at = at.with_watermark(|at| EventTime(*at), Duration::ZERO);
    ///     let (windows, late) = at.global().window(Tumbling::new(Duration::from_secs(10))).late();
    ///     late.map(|late| late.record).sink(&sinks.1)?;
    ///     windows.count().finals().map(|pane| pane.value).sink(&sinks.0)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!((counts.values(), late.values()), (vec![1, 1], vec![2_000]));
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn late(self) -> (Windowed<'a, K, T, W>, Stream<'a, Late<T>>) {
        let (inlet, stream) = self.keyed.stream.inlet::<Late<T>>("late");
        let late = LateAsked::Yes(inlet.map(|(inlet, meter)| Box::new(LateRows { meter, inlet })));
        (Windowed { late, ..self }, stream)
    }
}

impl<'a, K: Key, T: Exchange + Clone, W: 'static> Windowed<'a, K, T, W> {
    /// As [`KeyedStream::count`].
    pub fn count(self) -> WindowTable<'a, K, u64, W> {
        self.with("count", Count, |_| ())
    }

    /// As [`KeyedStream::sum`].
    pub fn sum<N: Number + Exchange>(self, number: impl Fn(&T) -> N + 'static) -> WindowTable<'a, K, N, W> {
        self.with("sum", Sum(PhantomData), move |record| number(&record))
    }

    /// As [`KeyedStream::min`].
    pub fn min<V: Exchange + Ord + Clone>(self, value: impl Fn(&T) -> V + 'static) -> WindowTable<'a, K, V, W> {
        self.with("min", Reduce(|a: V, b: V| if b < a { b } else { a }, PhantomData), move |record| value(&record))
    }

    /// As [`KeyedStream::max`].
    pub fn max<V: Exchange + Ord + Clone>(self, value: impl Fn(&T) -> V + 'static) -> WindowTable<'a, K, V, W> {
        self.with("max", Reduce(|a: V, b: V| if b > a { b } else { a }, PhantomData), move |record| value(&record))
    }

    /// As [`KeyedStream::mean`].
    pub fn mean(self, number: impl Fn(&T) -> f64 + 'static) -> WindowTable<'a, K, f64, W> {
        self.with("mean", Mean, move |record| number(&record))
    }

    /// As [`KeyedStream::reduce`].
    pub fn reduce(self, f: impl Fn(T, T) -> T + 'static) -> WindowTable<'a, K, T, W> {
        self.with("reduce", Reduce(f, PhantomData), |record| record)
    }

    /// As [`KeyedStream::aggregate`]. Say how two values become one with
    /// [`merge`](WindowTable::merge) where that can be: [`Sliding`](crate::Sliding) windows then
    /// cost less.
    pub fn aggregate<A: State + Clone>(
        self,
        zero: impl Fn() -> A + 'static,
        add: impl Fn(&mut A, T) + 'static,
    ) -> WindowTable<'a, K, A, W> {
        self.with("aggregate", Fold::new(zero, add), |record| record)
    }

    /// As [`KeyedStream::latest`].
    pub fn latest(self) -> WindowTable<'a, K, T, W> {
        self.with("latest", Latest(PhantomData), |record| record)
    }

    /// As [`KeyedStream::top_k`].
    ///
    /// # Panics
    /// When `k` is 0.
    pub fn top_k(self, k: usize, compare: impl Fn(&T, &T) -> Ordering + 'static) -> WindowTable<'a, K, Vec<T>, W> {
        assert!(k > 0, "`top_k` needs at least one record");
        self.with("top_k", TopK { k, compare, record: PhantomData }, |record| record)
    }

    /// The records of each window in the order of their event times, those of the same time in the
    /// order in which they came. At most so many of them: the earliest.
    ///
    /// # Panics
    /// When `at_most` is 0.
    pub fn collect(self, at_most: usize) -> WindowTable<'a, K, Vec<T>, W> {
        assert!(at_most > 0, "`collect` needs at least one record");
        self.with("collect", Collect { at_most, record: PhantomData }, |record| record)
    }

    /// As [`KeyedStream::approx_count_distinct`].
    pub fn approx_count_distinct<V: Hash>(self, value: impl Fn(&T) -> V + 'static) -> WindowTable<'a, K, u64, W> {
        self.with("approx_count_distinct", CountDistinct, move |record| stable_hash(&value(&record)))
    }

    /// As [`KeyedStream::approx_quantiles`].
    pub fn approx_quantiles(self, number: impl Fn(&T) -> f64 + 'static) -> WindowTable<'a, K, Quantiles, W> {
        self.with("approx_quantiles", Distribution, move |record| number(&record))
    }

    fn with<A: Aggregate<Input: Exchange + Clone>>(
        self,
        what: &'static str,
        aggregate: A,
        input: impl Fn(T) -> A::Input + 'static,
    ) -> WindowTable<'a, K, A::Value, W> {
        let Windowed { keyed, asked, lateness, late, .. } = self;
        let emit = Box::new(Pending { keyed, what, aggregate, input, asked, lateness, late, is_merge_wrong: false });
        WindowTable { emit, options: Options::new(), kind: PhantomData }
    }
}

impl<K, T: 'static, W> fmt::Debug for Windowed<'_, K, T, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in windows", self.keyed)
    }
}
