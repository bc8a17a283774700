//! Windows: what is computed by key of the records of a stretch of event time.

use std::cmp::Ordering;
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use crate::operator::aggregate::{Aggregate, WithRecord};
use crate::operator::aggregates::{Count, Fold, Latest, Mean, Number, Reduce, Sum, TopK};
use crate::operator::inlet::Inlet;
use crate::operator::sketches::{CountDistinct, Distribution, Quantiles};
use crate::operator::window::{Fixed, Windows};
use crate::run::graph::{Emits, TimeTrait};
use crate::words::{Late, Pane, StageMeter, stable_hash};

use super::aggregated::{Options, built};
use super::key::{Exchange, Key, State};
use super::keyed::KeyedStream;
use super::operate::Traits;
use super::stream::Stream;

/// Windows of one length that follow each other without a gap and do not overlap. Each begins where
/// the one before ends, and one of them begins with 1970. The start of a window belongs to it, its
/// end does not.
///
/// In Spark's words `window(time, "10 seconds")`, in Flink's `TumblingEventTimeWindows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tumbling {
    length: Duration,
    offset: Duration,
}

impl Tumbling {
    /// Windows of that length, in whole milliseconds. A length of less than one is refused at
    /// start.
    pub fn new(length: Duration) -> Tumbling {
        Tumbling { length, offset: Duration::ZERO }
    }

    /// Moves all windows by this time: hours that begin at a quarter past, say.
    #[must_use]
    pub fn offset(self, offset: Duration) -> Tumbling {
        Tumbling { offset, ..self }
    }

    fn fixed(self) -> Result<Fixed, String> {
        let millis = |time: Duration| i64::try_from(time.as_millis()).ok();
        match (millis(self.length), millis(self.offset)) {
            (Some(length @ 1..), Some(offset)) if self.length.subsec_nanos().is_multiple_of(1_000_000) => {
                Ok(Fixed::new(length, offset))
            }
            _ => Err(format!(
                "a window must last whole milliseconds, at least one, not {:?} with an offset of {:?}",
                self.length, self.offset
            )),
        }
    }
}

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
    pub fn window(self, window: Tumbling) -> Windowed<'a, K, T>
    where
        T: Exchange,
    {
        Windowed { keyed: self, window, late: None }
    }
}

/// A keyed stream in windows; see [`KeyedStream::window`]. Its methods are those of a
/// [`KeyedStream`], computed for each window.
#[must_use = "windows do nothing until they are aggregated and reach a sink"]
pub struct Windowed<'a, K, T: 'static> {
    keyed: KeyedStream<'a, K, T>,
    window: Tumbling,
    late: Option<LateRows<'a, T>>,
}

/// How late records leave.
struct LateRows<'a, T: 'static> {
    meter: Arc<StageMeter>,
    inlet: Inlet<'a, Late<T>>,
}

impl<'a, K: Key, T: Exchange> Windowed<'a, K, T> {
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
    pub fn late(self) -> (Windowed<'a, K, T>, Stream<'a, Late<T>>) {
        let (inlet, stream) = self.keyed.stream.inlet::<Late<T>>("late");
        let late = inlet.map(|(inlet, meter)| LateRows { meter, inlet });
        (Windowed { late, ..self }, stream)
    }

    /// As [`KeyedStream::count`].
    pub fn count(self) -> WindowTable<'a, K, u64> {
        self.with("count", Count, |_| ())
    }

    /// As [`KeyedStream::sum`].
    pub fn sum<N: Number + Exchange>(self, number: impl Fn(&T) -> N + 'static) -> WindowTable<'a, K, N> {
        self.with("sum", Sum(PhantomData), move |record| number(&record))
    }

    /// As [`KeyedStream::min`].
    pub fn min<V: Exchange + Ord + Clone>(self, value: impl Fn(&T) -> V + 'static) -> WindowTable<'a, K, V> {
        self.with("min", Reduce(|a: V, b: V| if b < a { b } else { a }, PhantomData), move |record| value(&record))
    }

    /// As [`KeyedStream::max`].
    pub fn max<V: Exchange + Ord + Clone>(self, value: impl Fn(&T) -> V + 'static) -> WindowTable<'a, K, V> {
        self.with("max", Reduce(|a: V, b: V| if b > a { b } else { a }, PhantomData), move |record| value(&record))
    }

    /// As [`KeyedStream::mean`].
    pub fn mean(self, number: impl Fn(&T) -> f64 + 'static) -> WindowTable<'a, K, f64> {
        self.with("mean", Mean, move |record| number(&record))
    }

    /// As [`KeyedStream::reduce`].
    pub fn reduce(self, f: impl Fn(T, T) -> T + 'static) -> WindowTable<'a, K, T>
    where
        T: Clone,
    {
        self.with("reduce", Reduce(f, PhantomData), |record| record)
    }

    /// As [`KeyedStream::aggregate`].
    pub fn aggregate<A: State + Clone>(
        self,
        zero: impl Fn() -> A + 'static,
        add: impl Fn(&mut A, T) + 'static,
    ) -> WindowTable<'a, K, A> {
        self.with("aggregate", Fold(zero, add, PhantomData), |record| record)
    }

    /// As [`KeyedStream::latest`].
    pub fn latest(self) -> WindowTable<'a, K, T>
    where
        T: Clone,
    {
        self.with("latest", Latest(PhantomData), |record| record)
    }

    /// As [`KeyedStream::top_k`].
    ///
    /// # Panics
    /// When `k` is 0.
    pub fn top_k(self, k: usize, compare: impl Fn(&T, &T) -> Ordering + 'static) -> WindowTable<'a, K, Vec<T>>
    where
        T: Clone,
    {
        assert!(k > 0, "`top_k` needs at least one record");
        self.with("top_k", TopK { k, compare, record: PhantomData }, |record| record)
    }

    /// As [`KeyedStream::approx_count_distinct`].
    pub fn approx_count_distinct<V: Hash>(self, value: impl Fn(&T) -> V + 'static) -> WindowTable<'a, K, u64> {
        self.with("approx_count_distinct", CountDistinct, move |record| stable_hash(&value(&record)))
    }

    /// As [`KeyedStream::approx_quantiles`].
    pub fn approx_quantiles(self, number: impl Fn(&T) -> f64 + 'static) -> WindowTable<'a, K, Quantiles> {
        self.with("approx_quantiles", Distribution, move |record| number(&record))
    }

    fn with<A: Aggregate<Input: Exchange>>(
        self,
        what: &'static str,
        aggregate: A,
        input: impl Fn(T) -> A::Input + 'static,
    ) -> WindowTable<'a, K, A::Value> {
        let Windowed { keyed, window, late } = self;
        let emit = Box::new(Pending { keyed, what, aggregate, input, late });
        WindowTable { emit, options: Options::new(), window }
    }
}

/// An aggregate over windows that does not know yet what is emitted of it.
trait Emit<'a, K, V> {
    fn finals(self: Box<Self>, options: Options<(K, i64), V>, windows: Fixed) -> Stream<'a, Pane<K, V>>;
}

struct Pending<'a, K, T: 'static, A, F> {
    keyed: KeyedStream<'a, K, T>,
    what: &'static str,
    aggregate: A,
    input: F,
    late: Option<LateRows<'a, T>>,
}

const TRAITS: Traits = Traits { keeps_state: true, emits: Emits::ByRecords, every: None, time: TimeTrait::WaitsFor };

impl<'a, K: Key, T: Exchange, A: Aggregate<Input: Exchange>, F: Fn(T) -> A::Input + 'static> Emit<'a, K, A::Value>
    for Pending<'a, K, T, A, F>
{
    fn finals(self: Box<Self>, options: Options<(K, i64), A::Value>, windows: Fixed) -> Stream<'a, Pane<K, A::Value>> {
        let Pending { keyed, what, aggregate, input, late } = *self;
        match late {
            None => built(aggregate, options, |with_table| {
                keyed.keyed(input).operate(what, TRAITS, |_| false, move |_| Windows::new(with_table, windows, None))
            }),
            Some(LateRows { meter, inlet }) => {
                let aggregate = WithRecord { aggregate, input, record: PhantomData };
                built(aggregate, options, |with_table| {
                    let operate = move |_| Windows::new(with_table, windows, Some(meter));
                    keyed.keyed(|record| record).operate_with_late(what, TRAITS, |_| false, Some(inlet), operate)
                })
            }
        }
    }
}

/// A value for each key and window. Its methods say what of it is emitted.
#[must_use = "a value does nothing until something of it is emitted"]
pub struct WindowTable<'a, K, V> {
    emit: Box<dyn Emit<'a, K, V> + 'a>,
    options: Options<(K, i64), V>,
    window: Tumbling,
}

impl<'a, K: Key, V: 'static> WindowTable<'a, K, V> {
    /// As [`Aggregated::named`](crate::Aggregated::named).
    pub fn named(mut self, name: &str) -> WindowTable<'a, K, V> {
        self.options.name(name);
        self
    }

    /// As [`Aggregated::state_version`](crate::Aggregated::state_version).
    pub fn state_version(mut self, version: u32) -> WindowTable<'a, K, V> {
        self.options.version(version);
        self
    }

    /// As [`Aggregated::migrate_from`](crate::Aggregated::migrate_from).
    pub fn migrate_from<Old: State>(mut self, version: u32, f: impl Fn(Old) -> V + 'static) -> WindowTable<'a, K, V> {
        self.options.convert(version, f);
        self
    }

    /// The value of each key and window, once: when the watermark has passed the window's end. In
    /// Spark's words, output mode *append*.
    ///
    /// It is final, and the same under each trigger, with any number of workers and over crashes,
    /// unless the aggregate depends on the order of records of several partitions. The event time
    /// of a row is the last millisecond of its window, so windows may follow windows.
    pub fn finals(self) -> Stream<'a, Pane<K, V>> {
        let WindowTable { emit, options, window } = self;
        match window.fixed() {
            Ok(fixed) => emit.finals(options, fixed),
            Err(why) => {
                // Nothing is built of it: the error is that of the start.
                let stream = emit.finals(options, Fixed::new(1, 0));
                stream.refuse(why);
                stream
            }
        }
    }
}

impl<K, T: 'static> fmt::Debug for Windowed<'_, K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {:?}", self.keyed, self.window)
    }
}

impl<K, V> fmt::Debug for WindowTable<'_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WindowTable({:?})", self.window)
    }
}
