//! Streams by key: what is kept of the records of each key, and what of it is emitted.

use std::cmp::Ordering;
use std::fmt;
use std::hash::Hash;
use std::marker::PhantomData;

use crate::operator::aggregate::{Aggregate, First};
use crate::operator::aggregates::{Count, Fold, Latest, Mean, Number, Reduce, Sum, TopK};
use crate::operator::sketches::{CountDistinct, Distribution, Quantiles};
use crate::run::graph::{Emits, TimeTrait};
use crate::words::stable_hash;

use super::aggregated::Aggregated;
use super::key::{Exchange, Key, State};
use super::operate::Traits;
use super::stream::Stream;

/// A stream whose records have keys; see [`Stream::key_by`].
///
/// All records of a key meet on one worker, in the order of each input partition. What is computed
/// by key keeps state, and an [`Aggregated`] says what of it is emitted.
#[must_use = "a keyed stream does nothing until it is aggregated and reaches a sink"]
pub struct KeyedStream<'a, K, T> {
    pub(super) stream: Stream<'a, T>,
    /// The keys of a batch: a call for each record would cost as much as its lookup.
    keys: Box<Keys<T, K>>,
}

/// The keys of records.
type Keys<T, K> = dyn Fn(&[T]) -> Vec<K>;

impl<'a, T: 'static> Stream<'a, T> {
    /// Gives each record a key, for what is computed by key.
    ///
    /// ```
    /// use millstream::{Job, collect, rows};
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// Job::new("words", move |flow| {
    ///     let words = flow.source(rows(["to", "be", "or", "not", "to", "be"].map(str::to_owned)))?;
    ///     words.key_by(String::clone).count().updates().sink(&sink)
    /// })
    /// .state_in_memory()
    /// .run()?;
    /// let last: std::collections::BTreeMap<String, u64> = counts.values().into_iter().collect();
    /// assert_eq!(last["to"], 2);
    /// assert_eq!(last["not"], 1);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn key_by<K: Key>(self, key: impl Fn(&T) -> K + 'static) -> KeyedStream<'a, K, T> {
        KeyedStream { stream: self, keys: Box::new(move |records| records.iter().map(&key).collect()) }
    }

    /// All records together, as if they had one key: one worker computes what follows.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let sums = collect();
    /// let sink = sums.clone();
    /// let job = Job::new("sums", move |flow| {
    ///     flow.source(rows([3, 4, 5]))?.global().sum(|n| *n).updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(sums.values(), [((), 3), ((), 7), ((), 12)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn global(self) -> KeyedStream<'a, (), T> {
        self.key_by(|_| ())
    }

    /// Each record once, for ever: the state grows with each different record.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let ids = collect();
    /// let sink = ids.clone();
    /// let job = Job::new("ids", move |flow| flow.source(rows([3, 5, 3]))?.distinct().sink(&sink));
    /// job.state_in_memory().run()?;
    /// assert_eq!(ids.values(), [3, 5]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn distinct(self) -> Stream<'a, T>
    where
        T: Key,
    {
        self.key_by(T::clone).first("distinct")
    }

    /// What is computed of the records of one batch together. A batch is the micro-batch; under the
    /// other triggers it is the records between two checkpoints.
    pub fn per_batch(self) -> Batches<'a, T> {
        Batches(self.global())
    }
}

impl<'a, K: Key, T: 'static> KeyedStream<'a, K, T> {
    /// Counts the records of each key.
    pub fn count(self) -> Aggregated<'a, K, u64> {
        self.with("count", Count, |_| ())
    }

    /// Sums up `number` of each record by key. A sum that is out of the range of its type ends the
    /// run. A sum of floating-point numbers depends on their order.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let sums = collect();
    /// let sink = sums.clone();
    /// let job = Job::new("sums", move |flow| {
    ///     flow.source(rows([3_u64, 4, 5]))?.key_by(|n| n % 2).sum(|n| *n).updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(sums.values(), [(1, 3), (0, 4), (1, 8)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn sum<N: Number + Exchange>(self, number: impl Fn(&T) -> N + 'static) -> Aggregated<'a, K, N> {
        self.with("sum", Sum(PhantomData), move |record| number(&record))
    }

    /// The smallest `value` of each key.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let lows = collect();
    /// let sink = lows.clone();
    /// let job = Job::new("lows", move |flow| {
    ///     flow.source(rows([7_u64, 4, 3]))?.key_by(|n| n % 2).min(|n| *n).updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(lows.values(), [(1, 7), (0, 4), (1, 3)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn min<V: Exchange + Ord + Clone>(self, value: impl Fn(&T) -> V + 'static) -> Aggregated<'a, K, V> {
        self.with("min", Reduce(|a: V, b: V| if b < a { b } else { a }, PhantomData), move |record| value(&record))
    }

    /// The largest `value` of each key.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let highs = collect();
    /// let sink = highs.clone();
    /// let job = Job::new("highs", move |flow| {
    ///     flow.source(rows([7_u64, 4, 9]))?.key_by(|n| n % 2).max(|n| *n).updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(highs.values(), [(1, 7), (0, 4), (1, 9)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn max<V: Exchange + Ord + Clone>(self, value: impl Fn(&T) -> V + 'static) -> Aggregated<'a, K, V> {
        self.with("max", Reduce(|a: V, b: V| if b > a { b } else { a }, PhantomData), move |record| value(&record))
    }

    /// The mean of `number` of each key. It depends on the order of the records, as each sum of
    /// floating-point numbers does.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let means = collect();
    /// let sink = means.clone();
    /// let job = Job::new("means", move |flow| {
    ///     flow.source(rows([1.0, 2.0]))?.global().mean(|n| *n).updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(means.values(), [((), 1.0), ((), 1.5)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn mean(self, number: impl Fn(&T) -> f64 + 'static) -> Aggregated<'a, K, f64> {
        self.with("mean", Mean, move |record| number(&record))
    }

    /// Combines the records of each key, two at a time, in the order in which they come. The result
    /// is the same under each trigger and with any number of workers when `f` does not depend on
    /// the order, or when each key lives in one partition.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let products = collect();
    /// let sink = products.clone();
    /// let job = Job::new("products", move |flow| {
    ///     flow.source(rows(1..=4))?.global().reduce(|a, b| a * b).updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(products.values(), [((), 1), ((), 2), ((), 6), ((), 24)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn reduce(self, f: impl Fn(T, T) -> T + 'static) -> Aggregated<'a, K, T>
    where
        T: Exchange + Clone,
    {
        self.with("reduce", Reduce(f, PhantomData), |record| record)
    }

    /// Adds the records of each key to a value of your own, which begins as `zero`. As with
    /// [`reduce`](KeyedStream::reduce), the order should not matter.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let squares = collect();
    /// let sink = squares.clone();
    /// let job = Job::new("squares", move |flow| {
    ///     let numbers = flow.source(rows([1, 2, 3]))?.global();
    ///     numbers.aggregate(|| 0, |sum, n| *sum += n * n).updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(squares.values(), [((), 1), ((), 5), ((), 14)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn aggregate<A: State + Clone>(
        self,
        zero: impl Fn() -> A + 'static,
        add: impl Fn(&mut A, T) + 'static,
    ) -> Aggregated<'a, K, A>
    where
        T: Exchange,
    {
        self.with("aggregate", Fold::new(zero, add), |record| record)
    }

    /// The record with the largest event time of each key. Of records with the same time, or
    /// without one, it is the one that came last: which one that is among records of several
    /// partitions depends on timing.
    ///
    /// ```
    /// # use millstream::{EventTime, Job, collect, rows};
    /// let prices = collect();
    /// let sink = prices.clone();
    /// let job = Job::new("prices", move |flow| {
    ///     let prices = rows([(10, 1), (12, 3), (11, 2)]).timed(|(_, time)| EventTime(*time));
    ///     flow.source(prices)?.global().latest().updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(prices.values().pop(), Some(((), (12, 3))));
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn latest(self) -> Aggregated<'a, K, T>
    where
        T: Exchange + Clone,
    {
        self.with("latest", Latest(PhantomData), |record| record)
    }

    /// The `k` records of each key that are largest in the order of `compare`, largest first. Of
    /// equal records those that came first: which ones these are among records of several
    /// partitions depends on timing, so let `compare` tell records apart that are not the same.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let best = collect();
    /// let sink = best.clone();
    /// let job = Job::new("best", move |flow| {
    ///     flow.source(rows([5, 9, 7]))?.global().top_k(2, |a, b| a.cmp(b)).updates().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(best.values().pop(), Some(((), vec![9, 7])));
    /// # Ok::<(), millstream::Error>(())
    /// ```
    ///
    /// # Panics
    /// When `k` is 0.
    pub fn top_k(self, k: usize, compare: impl Fn(&T, &T) -> Ordering + 'static) -> Aggregated<'a, K, Vec<T>>
    where
        T: Exchange + Clone,
    {
        assert!(k > 0, "`top_k` needs at least one record");
        self.with("top_k", TopK { k, compare, record: PhantomData }, |record| record)
    }

    /// Estimates how many different values each key has, as Spark's `approx_count_distinct` does.
    ///
    /// The standard error is 1.63 %: two estimates in three are closer to the truth, and 99.7 % are
    /// within 4.9 %. Counts up to a hundred are nearly always exact. The state of a key is a
    /// HyperLogLog sketch, which takes at most 4 KB however many values there are; for an exact
    /// count, see [`distinct`](Stream::distinct). Values that are equal must feed the same to a
    /// hasher in each version of the program. The estimate does not depend on the order of the
    /// records.
    ///
    /// ```
    /// use millstream::{Job, collect, rows};
    ///
    /// let visitors = collect();
    /// let sink = visitors.clone();
    /// Job::new("visitors", move |flow| {
    ///     let visits = flow.source(rows((0..3_000_u64).map(|visit| ("/home".to_owned(), visit % 1_000))))?;
    ///     visits
    ///         .key_by(|(page, _)| page.clone())
    ///         .approx_count_distinct(|(_, visitor)| *visitor)
    ///         .updates()
    ///         .sink(&sink)
    /// })
    /// .state_in_memory()
    /// .run()?;
    /// let (page, count) = visitors.values().pop().expect("there are visits");
    /// assert!(page == "/home" && (950..=1_050).contains(&count), "{count} visitors of {page}");
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn approx_count_distinct<V: Hash>(self, value: impl Fn(&T) -> V + 'static) -> Aggregated<'a, K, u64> {
        self.with("approx_count_distinct", CountDistinct, move |record| stable_hash(&value(&record)))
    }

    /// The quantiles of `number` of each key, such as the median and the 99th percentile: within
    /// 1 % of the exact ones. NaN and the infinities are left out.
    ///
    /// What is emitted is a [`Quantiles`], which is asked for any of them later. It does not depend
    /// on the order of the records. Spark's `approx_percentile` has another error: not of the
    /// number, but of its rank, which says little about the number where few numbers are.
    ///
    /// Each value that is emitted is a copy of the key's sketch, of 1 KB or more: with many records
    /// per key, emit them by batch.
    ///
    /// ```
    /// use millstream::{Job, collect, rows};
    ///
    /// let latencies = collect();
    /// let sink = latencies.clone();
    /// Job::new("latencies", move |flow| {
    ///     let millis = flow.source(rows((1..=1_000).map(f64::from)))?;
    ///     millis.global().approx_quantiles(|millis| *millis).updates().sink(&sink)
    /// })
    /// .state_in_memory()
    /// .run()?;
    /// let ((), last) = latencies.values().pop().expect("there are latencies");
    /// let p99 = last.at(0.99).expect("there are numbers");
    /// assert!((980.0..=1_000.0).contains(&p99), "the 99th percentile is {p99} ms");
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn approx_quantiles(self, number: impl Fn(&T) -> f64 + 'static) -> Aggregated<'a, K, Quantiles> {
        self.with("approx_quantiles", Distribution, move |record| number(&record))
    }

    /// The first record of each key, for ever: the state grows with each key. Which record of a key
    /// is the first among those of several partitions depends on timing.
    ///
    /// ```
    /// # use millstream::{Job, collect, rows};
    /// let first = collect();
    /// let sink = first.clone();
    /// let job = Job::new("first", move |flow| {
    ///     flow.source(rows([(1, 'a'), (1, 'b')]))?.key_by(|(id, _)| *id).dedup().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(first.values(), [(1, 'a')]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn dedup(self) -> Stream<'a, T>
    where
        T: Exchange,
    {
        self.first("dedup")
    }

    /// What is computed by key of the records of one batch; see [`Stream::per_batch`].
    ///
    /// ```
    /// # use millstream::{Job, Trigger, collect, rows};
    /// let counts = collect();
    /// let sink = counts.clone();
    /// let job = Job::new("counts", move |flow| {
    ///     let pages = flow.source(rows(['a', 'a', 'b', 'a']).partitions(1))?.batch_at_most(2);
    ///     pages.key_by(|page| *page).per_batch().count().sink(&sink)
    /// });
    /// job.trigger(Trigger::micro_batch(std::time::Duration::ZERO)).run()?;
    /// assert_eq!(counts.values(), [('a', 2), ('b', 1), ('a', 1)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn per_batch(self) -> KeyedBatches<'a, K, T> {
        KeyedBatches(self)
    }

    fn first(self, what: &'static str) -> Stream<'a, T>
    where
        T: Exchange,
    {
        self.keyed(|record| record).operate(
            what,
            Traits { keeps_state: true, emits: Emits::ByRecords, every: None, time: TimeTrait::HandsOn },
            |_| false,
            |_| First::new(),
        )
    }

    /// The stream of keys with what an operator needs of each record.
    pub(super) fn keyed<I: Exchange>(self, input: impl Fn(T) -> I + 'static) -> Stream<'a, (K, I)> {
        let KeyedStream { stream, keys } = self;
        stream.stage("key_by", move |batch| Ok(batch.keyed(&keys, &input)))
    }

    fn with<A>(
        self,
        what: &'static str,
        aggregate: A,
        input: impl Fn(T) -> A::Input + 'static,
    ) -> Aggregated<'a, K, A::Value>
    where
        A: Aggregate<Input: Exchange>,
    {
        Aggregated::new(self.keyed(input), what, aggregate)
    }
}

/// A stream in batches; see [`Stream::per_batch`].
///
/// ```
/// # use millstream::{Job, collect, rows};
/// let results = (collect(), collect(), collect(), collect());
/// let sinks = results.clone();
/// let job = Job::new("one batch", move |flow| {
///     let numbers = flow.source(rows([3, 5, 3]).partitions(1))?;
///     numbers.clone().per_batch().count().sink(&sinks.0)?;
///     numbers.clone().per_batch().reduce(|a, b| a + b).sink(&sinks.1)?;
///     numbers.clone().per_batch().count_by_value().sink(&sinks.2)?;
///     numbers.per_batch().transform(|batch| batch.into_iter().skip(1)).sink(&sinks.3)
/// });
/// job.run()?;
/// assert_eq!((results.0.values(), results.1.values()), (vec![3], vec![11]));
/// assert_eq!((results.2.values(), results.3.values()), (vec![(3, 2), (5, 1)], vec![5, 3]));
/// # Ok::<(), millstream::Error>(())
/// ```
#[must_use = "batches do nothing until they reach a sink"]
pub struct Batches<'a, T>(KeyedStream<'a, (), T>);

impl<'a, T: 'static> Batches<'a, T> {
    /// The number of records of each batch that has any.
    pub fn count(self) -> Stream<'a, u64> {
        self.0.per_batch().count().map(|((), count)| count)
    }

    /// Combines the records of each batch, two at a time.
    pub fn reduce(self, f: impl Fn(T, T) -> T + 'static) -> Stream<'a, T>
    where
        T: Exchange + Clone,
    {
        self.0.per_batch().reduce(f).map(|((), value)| value)
    }

    /// How often each value is in a batch.
    pub fn count_by_value(self) -> Stream<'a, (T, u64)>
    where
        T: Key,
    {
        self.0.stream.key_by(T::clone).per_batch().count()
    }

    /// Passes all records of a batch to `f`, on one worker.
    pub fn transform<I: IntoIterator>(self, f: impl Fn(Vec<T>) -> I + 'static) -> Stream<'a, I::Item>
    where
        T: Exchange + Clone,
        I::Item: 'static,
    {
        self.0.per_batch().group().flat_map(move |((), records)| f(records))
    }
}

/// A keyed stream in batches; see [`KeyedStream::per_batch`].
///
/// In Spark's words, `reduce` is `reduceByKey` of a DStream and `group` is `groupByKey`. Its
/// `countByValue` and `transform` are [`Batches::count_by_value`] and [`Batches::transform`].
///
/// ```
/// # use millstream::{Job, collect, rows};
/// let results = (collect(), collect(), collect());
/// let sinks = results.clone();
/// let job = Job::new("one batch", move |flow| {
///     let numbers = flow.source(rows(1..=3_u64).partitions(1))?;
///     numbers.clone().key_by(|n| n % 2).per_batch().count().sink(&sinks.0)?;
///     numbers.clone().key_by(|n| n % 2).per_batch().reduce(|a, b| a + b).sink(&sinks.1)?;
///     numbers.key_by(|n| n % 2).per_batch().group().sink(&sinks.2)
/// });
/// job.run()?;
/// let (counts, sums) = (vec![(1, 2), (0, 1)], vec![(1, 4), (0, 2)]);
/// assert_eq!((results.0.values(), results.1.values()), (counts, sums));
/// assert_eq!(results.2.values(), [(1, vec![1, 3]), (0, vec![2])]);
/// # Ok::<(), millstream::Error>(())
/// ```
#[must_use = "batches do nothing until they reach a sink"]
pub struct KeyedBatches<'a, K, T>(KeyedStream<'a, K, T>);

impl<'a, K: Key, T: 'static> KeyedBatches<'a, K, T> {
    /// The number of records of each key in each batch.
    pub fn count(self) -> Stream<'a, (K, u64)> {
        self.0.count().of_batches()
    }

    /// Combines the records of each key in a batch, two at a time.
    pub fn reduce(self, f: impl Fn(T, T) -> T + 'static) -> Stream<'a, (K, T)>
    where
        T: Exchange + Clone,
    {
        self.0.reduce(f).of_batches()
    }

    /// The records of each key in a batch.
    pub fn group(self) -> Stream<'a, (K, Vec<T>)>
    where
        T: Exchange + Clone,
    {
        let group = Fold::new(Vec::new, |records: &mut Vec<T>, record| records.push(record));
        self.0.with("group", group, |record| record).of_batches()
    }
}

impl<T, K> fmt::Debug for KeyedStream<'_, K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, by key", self.stream)
    }
}

impl<T> fmt::Debug for Batches<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in batches", self.0)
    }
}

impl<K, T> fmt::Debug for KeyedBatches<'_, K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in batches", self.0)
    }
}
