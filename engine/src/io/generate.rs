//! Records generated on a schedule: for trying a pipeline, and for measuring one. The schedule is
//! fixed in advance, so a job that falls behind cannot slow down its input and hide that: a record
//! arrives when it is due.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::words::{
    ByteSize, CheckpointId, Clock, Error, ErrorKind, Moment, Offset, Offsets, Partition, ReadBatch, Result, Room, Wake,
    Worker, lock,
};

use super::memory::PARTITIONS;
use super::schedule::{Schedule, Spacing, Timer, together};
use super::{Closing, Committed, End, Extent, Lag, OpenSource, Polled, Reader, SharedSource, Source};

/// A source that generates its `n`th record, counted from 0, from `n`. Without a
/// [`rate`](Generate::rate) it generates records as fast as the job takes them; without a
/// [`count`](Generate::count) it never ends. Each of its 8 [partitions](Generate::partitions) makes
/// every 8th record; they are the same at any number of workers.
///
/// A restarted run resumes where the one before had committed, on the schedule of the first.
///
/// ```
/// use millstream::{Job, collect, generate};
///
/// let results = collect();
/// let sink = results.clone();
/// Job::new("squares", move |flow| flow.source(generate(|n| n * n).rate(1_000.0).count(4))?.sink(&sink)).run()?;
/// assert_eq!(results.values(), [0, 1, 4, 9]);
/// # Ok::<(), millstream::Error>(())
/// ```
pub fn generate<T: 'static>(make: impl Fn(u64) -> T + Send + Sync + 'static) -> Generate<T> {
    Generate { make: Arc::new(make), rate: None, count: None, partitions: PARTITIONS as u64, began: Arc::default() }
}

/// See [`generate`].
#[must_use = "a source does nothing until a pipeline reads it"]
pub struct Generate<T> {
    make: Arc<dyn Fn(u64) -> T + Send + Sync>,
    rate: Option<f64>,
    count: Option<u64>,
    partitions: u64,
    /// When the first run began.
    began: Arc<Mutex<Option<Moment>>>,
}

impl<T> Generate<T> {
    /// Makes this many records each second, evenly: the `n`th is due, and arrives, `n / rate`
    /// seconds after the start, whatever happened to those before it. Records that are due within
    /// 0.1 ms, or within an eighth of the time by which the job is behind, are read together and
    /// arrive when the first of them is due.
    pub fn rate(self, records_per_second: f64) -> Generate<T> {
        Generate { rate: Some(records_per_second), ..self }
    }

    /// Ends after this many records.
    pub fn count(self, records: u64) -> Generate<T> {
        Generate { count: Some(records), ..self }
    }

    /// Makes the records in `partitions` partitions: the `p`th makes the records `p`, `p +
    /// partitions` and so on. With a single partition, one worker makes all records, in their
    /// order. The number is part of the partitions' names: a job that resumes with another number
    /// starts from the beginning.
    ///
    /// # Panics
    /// When `partitions` is 0.
    pub fn partitions(self, partitions: usize) -> Generate<T> {
        assert!(partitions > 0, "a source needs at least one partition");
        Generate { partitions: partitions as u64, ..self }
    }

    fn records(&self) -> u64 {
        self.count.unwrap_or(u64::MAX)
    }

    fn schedule(&self) -> Option<Schedule> {
        self.rate.map(|rate| Schedule { rate, records: self.records(), spacing: Spacing::Even })
    }

    /// The number of records that are due at `now`.
    fn due(&self, now: Moment) -> u64 {
        let Some(schedule) = self.schedule() else { return self.records() };
        lock(&self.began).map_or(0, |began| schedule.count(now - began))
    }

    fn partition(&self, index: u64) -> Partition {
        Partition::new(format!("generate/{index} of {}", self.partitions))
    }
}

impl<T> Clone for Generate<T> {
    fn clone(&self) -> Self {
        Generate { make: Arc::clone(&self.make), began: Arc::clone(&self.began), ..*self }
    }
}

impl<T> fmt::Debug for Generate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generate({:?} at {:?} a second)", self.count, self.rate)
    }
}

impl<T: 'static> Source for Generate<T> {
    type Item = T;
    type Shared = GenerateShared<T>;
    type Reader = GenerateReader<T>;

    fn name(&self) -> String {
        "generate".to_owned()
    }

    fn connect(self, open: OpenSource) -> Result<GenerateShared<T>> {
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return Err(Error::new(ErrorKind::Config, "`rate` must be a finite number greater than zero"));
        }
        if open.extent == Extent::Available && self.count.is_none() {
            return Err(Error::new(ErrorKind::Config, "a run with an end needs a `count` of what is generated"));
        }
        let rate = self.rate.filter(|_| open.extent != Extent::Sample);
        Ok(GenerateShared {
            source: Generate { rate, ..self },
            resume: open.resume.offsets().clone(),
            clock: open.clock,
            timer: Arc::default(),
            committed: Mutex::default(),
        })
    }

    fn reader(shared: &Arc<GenerateShared<T>>, worker: Worker, wake: Wake) -> Result<GenerateReader<T>> {
        shared.timer.add(wake);
        let own = (worker.index as u64..shared.source.partitions).step_by(worker.peers);
        let strides = own.map(|index| shared.stride(index));
        let (source, clock, strides) = (shared.source.clone(), shared.clock.clone(), strides.collect());
        Ok(GenerateReader { source, clock, strides, is_assigned: false })
    }
}

/// The per-process half of a [`Generate`] source.
pub struct GenerateShared<T> {
    source: Generate<T>,
    resume: Offsets,
    clock: Clock,
    timer: Arc<Timer>,
    committed: Mutex<Offsets>,
}

impl<T> GenerateShared<T> {
    /// A partition, at the position at which this run begins.
    fn stride(&self, index: u64) -> Stride {
        let partition = self.source.partition(index);
        let made = self.resume.get(&partition).map_or(0, |next| next.0);
        Stride { partition, made, next: index.saturating_add(made.saturating_mul(self.source.partitions)) }
    }

    /// The first record that is not committed.
    fn first_resumed(&self) -> u64 {
        let next = (0..self.source.partitions).map(|index| self.stride(index).next);
        next.min().filter(|_| !self.resume.is_empty()).unwrap_or(0)
    }
}

impl<T: 'static> SharedSource for GenerateShared<T> {
    fn begin(&self) -> Result<()> {
        let began = {
            let mut began = lock(&self.source.began);
            // A source without committed positions starts its schedule again. A run that resumes
            // with a new source continues where the schedule would be by now.
            let first = began.filter(|_| !self.resume.is_empty()).unwrap_or_else(|| {
                let done = self.source.schedule().map_or(Duration::ZERO, |schedule| schedule.due(self.first_resumed()));
                self.clock.now().before(done)
            });
            *began.insert(first)
        };
        self.timer.wake_all();
        self.source.schedule().map_or(Ok(()), |schedule| self.timer.start(schedule, &self.clock, began))
    }

    fn commit(&self, _: CheckpointId, offsets: &Offsets) -> Result<Committed> {
        lock(&self.committed).merge(offsets);
        Ok(Committed::Now)
    }

    fn lag(&self) -> Vec<Lag> {
        let (committed, due) = (lock(&self.committed), self.source.due(self.clock.now()));
        // Without a rate and a count the source has no end to be behind.
        if due == u64::MAX {
            return Vec::new();
        }
        let partitions = self.source.partitions;
        let of = |index: u64| {
            let partition = self.source.partition(index);
            let next = committed.get(&partition).unwrap_or_default();
            let of_partition = (due + partitions - 1).saturating_sub(index) / partitions;
            Lag::new(&partition, Offset(0), next, Offset(of_partition))
        };
        (0..partitions).map(of).collect()
    }

    fn close(&self, _: Closing) {
        self.timer.end();
    }
}

impl<T> fmt::Debug for GenerateShared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerateShared({:?})", self.source)
    }
}

/// Makes one worker's records of a [`Generate`] source.
pub struct GenerateReader<T> {
    source: Generate<T>,
    clock: Clock,
    /// The partitions of this worker.
    strides: Vec<Stride>,
    is_assigned: bool,
}

/// A partition: one of every `partitions` records.
struct Stride {
    partition: Partition,
    /// The number of its records that have been made.
    made: u64,
    /// Its next record.
    next: u64,
}

impl<T> GenerateReader<T> {
    /// The partition with the earliest next record, if any has one.
    fn first(&mut self) -> Option<&mut Stride> {
        let records = self.source.records();
        self.strides.iter_mut().filter(|stride| stride.next < records).min_by_key(|stride| stride.next)
    }
}

impl<T: 'static> Reader for GenerateReader<T> {
    type Item = T;

    fn poll(&mut self, batch: &mut ReadBatch<T>, room: Room) -> Result<Polled> {
        let now = self.clock.now();
        let all_due = self.source.due(now);
        let (schedule, began) = (self.source.schedule(), *lock(&self.source.began));
        let (make, step) = (Arc::clone(&self.source.make), self.source.partitions);
        let Some(stride) = self.first() else { return Ok(Polled::Ended(End::OfTime)) };
        let mut due = all_due;
        if let (Some(schedule), Some(began)) = (schedule, began) {
            let first = schedule.due(stride.next);
            batch.arrived(began.after(first));
            due = due.min(schedule.count(first.saturating_add(together(now - began, first))));
        }
        let size = ByteSize(size_of::<T>().max(1) as u64);
        let before = stride.made;
        while stride.next < due && batch.len() < room.records && batch.bytes() < room.bytes {
            batch.push(make(stride.next), size);
            stride.made += 1;
            stride.next = stride.next.saturating_add(step);
        }
        if stride.made > before {
            batch.read_to(stride.partition.clone(), Offset(stride.made));
            if stride.next >= self.source.records() {
                batch.end_partition();
            }
        }
        Ok(match self.first() {
            None => Polled::Ended(End::OfTime),
            Some(first) if first.next < all_due => Polled::More,
            Some(_) => Polled::Idle,
        })
    }

    fn assigned(&mut self) -> Option<Vec<Partition>> {
        let records = self.source.records();
        let own = (!std::mem::replace(&mut self.is_assigned, true)).then_some(&self.strides)?;
        Some(own.iter().filter(|stride| stride.next < records).map(|stride| stride.partition.clone()).collect())
    }

    fn has_ended(&self) -> Option<End> {
        let records = self.source.records();
        self.strides.iter().all(|stride| stride.next >= records).then_some(End::OfTime)
    }

    fn unassign(&mut self, partitions: &[Partition]) {
        self.strides.retain(|stride| !partitions.contains(&stride.partition));
    }
}

impl<T> fmt::Debug for GenerateReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerateReader({} made)", self.strides.iter().map(|stride| stride.made).sum::<u64>())
    }
}
