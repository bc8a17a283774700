//! Records that are made on a schedule: for trying a pipeline, and for measuring one. The schedule is fixed in advance, so a
//! job that falls behind cannot make its input slower and hide it: a record has arrived when it was due.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::words::{
    Batch, Bytes, CheckpointId, Clock, Error, ErrorKind, Moment, Offset, Offsets, Partition, Result, Room, Worker, lock,
};

use super::schedule::{Schedule, Spacing, Timer, together};
use super::{Lag, Last, OpenSource, Polled, Progress, Reader, SharedSource, Source, Wake};

/// A source that makes its `n`th record, counted from 0, of `n`. Without a [`rate`](Generate::rate) it makes records as fast
/// as the job takes them; without a [`count`](Generate::count) it never ends. Workers make every `workers`th record each.
///
/// A restarted run goes on where the one before had committed, on the schedule of the first.
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
    Generate { make: Arc::new(make), rate: None, count: None, began: Arc::default() }
}

/// See [`generate`].
pub struct Generate<T> {
    make: Arc<dyn Fn(u64) -> T + Send + Sync>,
    rate: Option<f64>,
    count: Option<u64>,
    /// When the first run began.
    began: Arc<Mutex<Option<Moment>>>,
}

impl<T> Generate<T> {
    /// So many records each second, evenly: the `n`th is due `n / rate` seconds after the start, whatever became of those
    /// before it, and has arrived then. Of several that are read together, because they are due within 0.1 ms or an eighth
    /// of what the job is behind, the first one's time counts.
    #[must_use]
    pub fn rate(self, records_per_second: f64) -> Generate<T> {
        Generate { rate: Some(records_per_second), ..self }
    }

    /// Ends after so many records.
    #[must_use]
    pub fn count(self, records: u64) -> Generate<T> {
        Generate { count: Some(records), ..self }
    }

    fn records(&self) -> u64 {
        self.count.unwrap_or(u64::MAX)
    }

    fn schedule(&self) -> Option<Schedule> {
        self.rate.map(|rate| Schedule { rate, records: self.records(), spacing: Spacing::Even })
    }

    /// How many records are due at a moment.
    fn due(&self, now: Moment) -> u64 {
        let Some(schedule) = self.schedule() else { return self.records() };
        lock(&self.began).map_or(0, |began| schedule.count(now - began))
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
            return Err(Error::new(ErrorKind::Option, "`rate` must be more than nothing, and a number"));
        }
        if open.bounded && !open.compared && self.count.is_none() {
            return Err(Error::new(ErrorKind::Option, "a run with an end needs a `count` of what is generated"));
        }
        // The engine keeps the schedule of runs that are compared.
        let rate = self.rate.filter(|_| !open.compared);
        Ok(GenerateShared {
            source: Generate { rate, ..self },
            workers: open.workers,
            resume: open.resume.unwrap_or_default(),
            clock: open.clock,
            timer: Arc::default(),
            committed: Mutex::default(),
        })
    }

    fn reader(shared: &Arc<GenerateShared<T>>, worker: Worker, wake: Wake) -> Result<GenerateReader<T>> {
        shared.timer.add(wake);
        let partition = partition(worker.index);
        let made = shared.resume.get(&partition).map_or(0, |next| next.0);
        Ok(GenerateReader {
            source: shared.source.clone(),
            clock: shared.clock.clone(),
            worker,
            partition,
            made,
            is_forgotten: false,
        })
    }
}

fn partition(worker: usize) -> Partition {
    Partition::new(format!("generate/{worker}"))
}

/// The half of a [`Generate`] source that a process has once.
pub struct GenerateShared<T> {
    source: Generate<T>,
    workers: usize,
    resume: Offsets,
    clock: Clock,
    timer: Arc<Timer>,
    committed: Mutex<Offsets>,
}

impl<T> GenerateShared<T> {
    /// The first record that is not committed.
    fn least_resumed(&self) -> u64 {
        let next = |worker| {
            let made = self.resume.get(&partition(worker)).map_or(0, |next| next.0);
            made * self.workers as u64 + worker as u64
        };
        (0..self.workers).map(next).min().filter(|_| !self.resume.is_empty()).unwrap_or(0)
    }
}

impl<T: 'static> SharedSource for GenerateShared<T> {
    fn begin(&self) -> Result<()> {
        let began = {
            let mut began = lock(&self.source.began);
            // What nothing was committed of begins anew, with its schedule. A run that goes on with a source made anew goes
            // on where that schedule would be by now.
            let first = began.filter(|_| !self.resume.is_empty()).unwrap_or_else(|| {
                let done = self.source.schedule().map_or(Duration::ZERO, |schedule| schedule.due(self.least_resumed()));
                self.clock.now().before(done)
            });
            *began.insert(first)
        };
        self.timer.wake_all();
        self.source.schedule().map_or(Ok(()), |schedule| self.timer.start(schedule, &self.clock, began))
    }

    fn commit(&self, _: CheckpointId, offsets: &Offsets) -> Result<Progress> {
        lock(&self.committed).merge(offsets);
        Ok(Progress::Done)
    }

    fn lag(&self) -> Vec<Lag> {
        let (committed, due) = (lock(&self.committed), self.source.due(self.clock.now()));
        // Without a rate and a count there is no end to be behind.
        if due == u64::MAX {
            return Vec::new();
        }
        let of = |worker: usize| {
            let partition = partition(worker);
            let next = committed.get(&partition).unwrap_or_default();
            let of_worker = (due + self.workers as u64 - 1).saturating_sub(worker as u64) / self.workers as u64;
            Lag::new(&partition, Offset(0), next, Offset(of_worker))
        };
        (0..self.workers).map(of).collect()
    }

    fn close(&self, _: Last) {
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
    worker: Worker,
    partition: Partition,
    /// How many of this worker's are made.
    made: u64,
    /// Nothing more is wanted of it.
    is_forgotten: bool,
}

impl<T: 'static> Reader for GenerateReader<T> {
    type Item = T;

    fn poll(&mut self, batch: &mut Batch<T>, room: Room) -> Result<Polled> {
        if self.is_forgotten {
            return Ok(Polled::Ended);
        }
        let now = self.clock.now();
        let all_due = self.source.due(now);
        let mut due = all_due;
        let size = Bytes(size_of::<T>().max(1) as u64);
        let before = self.made;
        let next = |made: u64| made * self.worker.peers as u64 + self.worker.index as u64;
        if let (Some(schedule), Some(began)) = (self.source.schedule(), *lock(&self.source.began)) {
            let first = schedule.due(next(before));
            batch.arrived(began.after(first));
            due = due.min(schedule.count(first.saturating_add(together(now - began, first))));
        }
        while next(self.made) < due && batch.len() < room.records && batch.bytes() < room.bytes {
            batch.push((self.source.make)(next(self.made)), size);
            self.made += 1;
        }
        if self.made > before {
            batch.read_to(self.partition.clone(), Offset(self.made));
        }
        Ok(match (self.has_ended(), next(self.made) < due) {
            (true, _) => Polled::Ended,
            (false, true) => Polled::More,
            (false, false) if next(self.made) < all_due => Polled::More,
            (false, false) => Polled::Idle,
        })
    }

    fn has_ended(&self) -> bool {
        let next = self.made * self.worker.peers as u64 + self.worker.index as u64;
        self.is_forgotten || self.source.count.is_some_and(|count| next >= count)
    }

    fn forget(&mut self, partitions: &[Partition]) {
        self.is_forgotten |= partitions.contains(&self.partition);
    }
}

impl<T> fmt::Debug for GenerateReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerateReader({} made)", self.made)
    }
}
