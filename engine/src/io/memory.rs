//! Sources and sinks in memory: rows that exist before the job, results to look at afterwards, and
//! a sink that only counts.

use std::collections::VecDeque;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::words::{
    Batch, ByteSize, CheckpointId, EventTime, Fingerprint, Keyed, Offset, Offsets, Partition, ReadBatch, Result, Room,
    Wake, Worker, lock,
};

use super::{
    Accepted, Committed, Delivery, End, KeyedSink, Lag, OpenSink, OpenSource, Polled, Reader, SharedSink, SharedSource,
    Sink, Source, Writer,
};

/// The number of partitions of [`rows`] and [`generate`](super::generate()), unless the program
/// sets one. It is a constant, so positions mean the same at any number of workers.
pub(super) const PARTITIONS: usize = 8;

/// A bounded source of rows in memory, in 8 contiguous partitions unless
/// [`partitions`](Rows::partitions) sets another number. The partitions are the same at any number
/// of workers. Each is read by one worker, and a single worker reads all rows in their order.
/// Committed positions are kept over restarts of the same job.
///
/// ```
/// use millstream::{Job, collect, rows};
///
/// let results = collect();
/// let sink = results.clone();
/// Job::new("squares", move |flow| flow.source(rows(1..=3))?.map(|n| n * n).sink(&sink)).run()?;
/// assert_eq!(results.values(), [1, 4, 9]);
/// # Ok::<(), millstream::Error>(())
/// ```
pub fn rows<T: Clone + Send + Sync + 'static>(rows: impl IntoIterator<Item = T>) -> Rows<T> {
    Rows { rows: Arc::new(rows.into_iter().collect()), times: None, partitions: PARTITIONS }
}

/// See [`rows`].
#[must_use = "a source does nothing until a pipeline reads it"]
pub struct Rows<T> {
    rows: Arc<Vec<T>>,
    times: Option<Arc<Vec<EventTime>>>,
    partitions: usize,
}

impl<T> Rows<T> {
    /// Gives each row an event time.
    pub fn timed(self, time: impl Fn(&T) -> EventTime) -> Rows<T> {
        let times = Some(Arc::new(self.rows.iter().map(time).collect()));
        Rows { times, ..self }
    }

    /// Splits the rows into this many contiguous partitions. The number is part of their names: a
    /// job that resumes with another number starts from the beginning.
    ///
    /// # Panics
    /// When `partitions` is 0.
    pub fn partitions(self, partitions: usize) -> Rows<T> {
        assert!(partitions > 0, "rows need at least one partition");
        Rows { partitions, ..self }
    }
}

impl<T> Clone for Rows<T> {
    fn clone(&self) -> Self {
        Rows { rows: Arc::clone(&self.rows), times: self.times.clone(), partitions: self.partitions }
    }
}

impl<T> fmt::Debug for Rows<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows", self.rows.len())
    }
}

impl<T: Clone + Send + Sync + 'static> Source for Rows<T> {
    type Item = T;
    type Shared = SharedRows<T>;
    type Reader = RowsReader<T>;

    fn name(&self) -> String {
        "rows".to_owned()
    }

    fn connect(self, open: OpenSource) -> Result<SharedRows<T>> {
        let count = self.partitions;
        let len = self.rows.len();
        let share = |index: usize| len * index / count;
        let slices = (0..count).map(|index| {
            let partition = Partition::new(format!("rows/{index} of {count}"));
            let (start, end) = (share(index), share(index + 1));
            let next = open.resume.position(&partition);
            Slice { next: next.map_or(start, |next| next.0 as usize), partition, start, end }
        });
        Ok(SharedRows { slices: slices.collect(), source: self, committed: Mutex::default() })
    }

    fn reader(shared: &Arc<SharedRows<T>>, worker: Worker, _: Wake) -> Result<RowsReader<T>> {
        let own = shared.slices.iter().enumerate().filter(|(index, _)| index % worker.peers == worker.index);
        let slices = own.map(|(_, slice)| slice.clone()).collect();
        Ok(RowsReader { source: shared.source.clone(), slices, is_assigned: false })
    }
}

#[derive(Clone, Debug)]
struct Slice {
    partition: Partition,
    start: usize,
    next: usize,
    end: usize,
}

/// The per-process half of a [`Rows`] source.
#[derive(Debug)]
pub struct SharedRows<T> {
    source: Rows<T>,
    slices: Vec<Slice>,
    committed: Mutex<Offsets>,
}

impl<T: Clone + Send + Sync + 'static> SharedSource for SharedRows<T> {
    fn commit(&self, _: CheckpointId, offsets: &Offsets) -> Result<Committed> {
        lock(&self.committed).merge(offsets);
        Ok(Committed::Now)
    }

    fn lag(&self) -> Vec<Lag> {
        let committed = lock(&self.committed);
        let of = |slice: &Slice| {
            let next = committed.get(&slice.partition).unwrap_or(Offset(slice.next as u64));
            Lag::new(&slice.partition, Offset(slice.start as u64), next, Offset(slice.end as u64))
        };
        self.slices.iter().map(of).collect()
    }
}

/// Reads a worker's partitions of a [`Rows`] source, one after the other.
#[derive(Debug)]
pub struct RowsReader<T> {
    source: Rows<T>,
    slices: VecDeque<Slice>,
    is_assigned: bool,
}

impl<T: Clone + Send + Sync + 'static> Reader for RowsReader<T> {
    type Item = T;

    fn poll(&mut self, batch: &mut ReadBatch<T>, room: Room) -> Result<Polled> {
        while self.slices.pop_front_if(|slice| slice.next >= slice.end).is_some() {}
        let Some(slice) = self.slices.front_mut() else { return Ok(Polled::Ended(End::OfTime)) };
        let size = ByteSize(size_of::<T>().max(1) as u64);
        let count = room.records.min((room.bytes.0 / size.0) as usize).max(1);
        let until = slice.end.min(slice.next + count);
        let values = &self.source.rows[slice.next..until];
        match &self.source.times {
            None => batch.extend(values.iter().cloned(), size),
            Some(times) => {
                let timed = values.iter().zip(&times[slice.next..until]);
                timed.for_each(|(value, time)| batch.push_at(value.clone(), *time, size));
            }
        }
        slice.next = until;
        batch.read_to(slice.partition.clone(), Offset(until as u64));
        if until == slice.end {
            batch.end_partition();
        }
        Ok(Polled::More)
    }

    fn assigned(&mut self) -> Option<Vec<Partition>> {
        let slices = (!std::mem::replace(&mut self.is_assigned, true)).then_some(&self.slices)?;
        let left = slices.iter().filter(|slice| slice.next < slice.end);
        Some(left.map(|slice| slice.partition.clone()).collect())
    }

    fn has_ended(&self) -> Option<End> {
        self.slices.iter().all(|slice| slice.next >= slice.end).then_some(End::OfTime)
    }

    fn unassign(&mut self, partitions: &[Partition]) {
        self.slices.retain(|slice| !partitions.contains(&slice.partition));
    }
}

/// A sink that keeps what reaches it, in the order of arrival, for the program to look at. Clones
/// share the results.
pub fn collect<T: Send + 'static>() -> Collected<T> {
    Collected { inner: Arc::default(), hash: None }
}

/// See [`collect`].
#[must_use = "a sink collects nothing until a pipeline ends in it"]
pub struct Collected<T> {
    inner: Arc<(Mutex<Vec<T>>, Condvar)>,
    /// Adds a value to a fingerprint.
    hash: Option<fn(&Fingerprint, &T)>,
}

impl<T: Hash> Collected<T> {
    /// Lets [`Job::compare`](crate::Job::compare) compare what its runs collect. Otherwise it
    /// compares only the numbers of records: when they are equal, the outcome is
    /// [`Results::EqualCounts`](crate::Results::EqualCounts) with the name of this sink.
    pub fn by_hash(self) -> Collected<T> {
        Collected { hash: Some(Fingerprint::add), ..self }
    }
}

impl<T> Collected<Keyed<T>> {
    /// Returns this as a sink of values with keys, for [`Stream::sink_by`](crate::Stream::sink_by).
    ///
    /// ```
    /// use millstream::{Job, Keyed, collect, rows};
    ///
    /// let results = collect();
    /// let sink = results.with_keys();
    /// let job = Job::new("keys", move |flow| flow.source(rows([7]))?.sink_by(|n: &i32| n.to_string(), sink.clone()));
    /// job.run()?;
    /// assert_eq!(results.values(), [Keyed { key: b"7".to_vec(), value: 7 }]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn with_keys(&self) -> CollectedWithKeys<T> {
        CollectedWithKeys(self.clone())
    }
}

/// See [`Collected::with_keys`].
#[derive(Debug)]
pub struct CollectedWithKeys<T>(Collected<Keyed<T>>);

impl<T> Clone for CollectedWithKeys<T> {
    fn clone(&self) -> Self {
        CollectedWithKeys(self.0.clone())
    }
}

impl<T: Send + 'static> KeyedSink<T> for CollectedWithKeys<T> {
    fn keyed(self) -> impl Sink<Keyed<T>> {
        self.0
    }
}

impl<T: Clone> Collected<T> {
    /// The values that have arrived so far.
    pub fn values(&self) -> Vec<T> {
        lock(&self.inner.0).clone()
    }

    /// Waits until `count` values have arrived, and returns all that have; `None` when they have
    /// not arrived within `limit`.
    pub fn wait_for(&self, count: usize, limit: Duration) -> Option<Vec<T>> {
        let begun = Instant::now();
        let mut values = lock(&self.inner.0);
        while values.len() < count {
            let left = limit.checked_sub(begun.elapsed())?;
            let waited = self.inner.1.wait_timeout(values, left);
            values = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        Some(values.clone())
    }
}

impl<T> Collected<T> {
    /// Takes out the values that have arrived so far.
    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut *lock(&self.inner.0))
    }

    /// The number of values that have arrived so far.
    pub fn len(&self) -> usize {
        lock(&self.inner.0).len()
    }

    /// Whether nothing has arrived yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Collected<T> {
    fn clone(&self) -> Self {
        Collected { inner: Arc::clone(&self.inner), hash: self.hash }
    }
}

impl<T> fmt::Debug for Collected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} collected", self.len())
    }
}

impl<T: Send + 'static> Sink<T> for Collected<T> {
    type Shared = CollectedShared<T>;
    type Writer = CollectedWriter<T>;

    fn name(&self) -> String {
        "collect".to_owned()
    }

    fn connect(self, open: OpenSink) -> Result<CollectedShared<T>> {
        Ok(CollectedShared(self, open.fingerprint))
    }

    fn writer(shared: &Arc<CollectedShared<T>>, _: Worker, _: Wake) -> Result<CollectedWriter<T>> {
        Ok(CollectedWriter(shared.0.clone(), shared.1.clone()))
    }
}

impl<T: Send + 'static> KeyedSink<T> for Collected<T> {
    /// The keys are dropped; [`Collected::with_keys`] keeps them.
    fn keyed(self) -> impl Sink<Keyed<T>> {
        Unkeyed(self)
    }
}

/// The per-process half of a [`Collected`] sink.
#[derive(Debug)]
pub struct CollectedShared<T>(Collected<T>, Option<Arc<Fingerprint>>);

impl<T: Send + 'static> SharedSink for CollectedShared<T> {}

/// Writes to a [`Collected`] sink.
#[derive(Debug)]
pub struct CollectedWriter<T>(Collected<T>, Option<Arc<Fingerprint>>);

impl<T: Send + 'static> CollectedWriter<T> {
    fn keep(&self, values: impl Iterator<Item = T>, delivery: &Delivery) -> Accepted {
        let mut kept = lock(&self.0.inner.0);
        let before = kept.len();
        kept.extend(values);
        let new = &kept[before..];
        if let (Some(hash), Some(fingerprint)) = (self.0.hash, &self.1) {
            new.iter().for_each(|value| hash(fingerprint, value));
        }
        let records = new.len() as u64;
        drop(kept);
        self.0.inner.1.notify_all();
        delivery.acknowledge(records, ByteSize(records * size_of::<T>() as u64));
        Accepted::All
    }
}

impl<T: Send + 'static> Writer<T> for CollectedWriter<T> {
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted> {
        Ok(self.keep(std::mem::take(batch), delivery))
    }
}

/// A [`Collected`] sink that drops the key.
struct Unkeyed<T>(Collected<T>);

impl<T: Send + 'static> Sink<Keyed<T>> for Unkeyed<T> {
    type Shared = CollectedShared<T>;
    type Writer = UnkeyedWriter<T>;

    fn name(&self) -> String {
        self.0.name()
    }

    fn connect(self, open: OpenSink) -> Result<CollectedShared<T>> {
        self.0.connect(open)
    }

    fn writer(shared: &Arc<CollectedShared<T>>, worker: Worker, wake: Wake) -> Result<UnkeyedWriter<T>> {
        Collected::writer(shared, worker, wake).map(UnkeyedWriter)
    }
}

struct UnkeyedWriter<T>(CollectedWriter<T>);

impl<T: Send + 'static> Writer<Keyed<T>> for UnkeyedWriter<T> {
    fn write(&mut self, batch: &mut Batch<Keyed<T>>, delivery: &Delivery) -> Result<Accepted> {
        Ok(self.0.keep(std::mem::take(batch).map(|keyed| keyed.value), delivery))
    }
}

/// A sink that drops what reaches it and counts it in the report: for measurements, and for
/// pipelines that have done their work before the sink.
pub fn discard() -> Discard {
    Discard
}

/// See [`discard`].
#[derive(Clone, Copy, Debug)]
pub struct Discard;

impl<T: 'static> Sink<T> for Discard {
    type Shared = ();
    type Writer = Discard;

    fn name(&self) -> String {
        "discard".to_owned()
    }

    fn connect(self, _: OpenSink) -> Result<()> {
        Ok(())
    }

    fn writer(_: &Arc<()>, _: Worker, _: Wake) -> Result<Discard> {
        Ok(Discard)
    }
}

impl<T: 'static> Writer<T> for Discard {
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted> {
        let records = batch.len() as u64;
        std::mem::take(batch).for_each(drop);
        delivery.acknowledge(records, ByteSize(0));
        Ok(Accepted::All)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::io::{Extent, Resume};
    use crate::words::Clock;

    fn connected<S: Source>(source: S, workers: usize, resume: &Offsets) -> Arc<S::Shared> {
        let open = OpenSource {
            job: "test".to_owned(),
            workers,
            prefetch: ByteSize::mebibytes(1),
            extent: Extent::Available,
            resume: Resume::OwnMemory(resume.clone()),
            keeps_state: false,
            is_checkpointed: false,
            identity: None,
            has_watermark: false,
            wants_times: false,
            clock: Clock::simulated(),
            wake: Wake::new(|| ()),
            claims: crate::io::Claims::default(),
        };
        let shared = Arc::new(source.connect(open).expect("it has no options that are wrong"));
        shared.begin().expect("there is nothing to begin");
        shared
    }

    /// Reads up to `records` records with `workers` readers, in turn, and returns the positions.
    fn read<S: Source<Item = u64> + Clone>(
        source: &S,
        workers: usize,
        records: usize,
        resume: &Offsets,
        all: &mut Vec<u64>,
    ) -> Offsets {
        let shared = connected(source.clone(), workers, resume);
        let reader = |index| S::reader(&shared, Worker { index, peers: workers }, Wake::new(|| ()));
        let mut readers: Vec<_> = (0..workers).map(|index| reader(index).expect("it can be read")).collect();
        let (mut positions, before) = (resume.clone(), all.len());
        while !readers.is_empty() && all.len() - before < records {
            readers.retain_mut(|reader| {
                let mut batch = ReadBatch::new();
                let room = Room { records: 7, bytes: ByteSize::mebibytes(1) };
                let polled = reader.poll(&mut batch, room).expect("it cannot fail");
                positions.extend(batch.take_position());
                all.extend(batch);
                !matches!(polled, Polled::Ended(_))
            });
        }
        positions
    }

    /// With one partition per worker, `rows/0` of one worker was a finished part of `rows/0` of
    /// four: some records came twice, and others never.
    #[test]
    fn positions_mean_the_same_at_any_number_of_workers() {
        fn check<S: Source<Item = u64> + Clone>(source: &S) {
            for (before, after) in [(1, 4), (4, 1), (3, 2)] {
                let mut all = Vec::new();
                let positions = read(source, before, 400, &Offsets::new(), &mut all);
                assert!(all.len() < 1_000, "there is something left");
                read(source, after, usize::MAX, &positions, &mut all);
                assert_eq!(all.len(), 1_000, "{before} workers, then {after}");
                assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 1_000, "{before} workers, then {after}");
            }
        }
        check(&rows(0..1_000));
        check(&rows(0..1_000).partitions(3));
        check(&crate::io::generate(|n| n).count(1_000));
        check(&crate::io::generate(|n| n).count(1_000).partitions(5));
    }
}
