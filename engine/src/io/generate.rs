//! Records that are made on a schedule: for trying a pipeline, and for measuring one. The schedule is fixed in advance, so a
//! job that falls behind cannot make its input slower and hide it.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crate::words::{
    Batch, Bytes, CheckpointId, Clock, Error, ErrorKind, Moment, Offset, Offsets, Partition, Result, Room, Worker, lock,
};

use super::{Lag, OpenSource, Polled, Progress, Reader, SharedSource, Source, Wake};

/// A source that makes its `n`th record, counted from 0, of `n`; as many as the job takes, until there is a
/// [`rate`](Generate::rate), and without an end, until there is a [`count`](Generate::count). Workers make every
/// `workers`th record each.
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
    began: Arc<OnceLock<Moment>>,
}

impl<T> Generate<T> {
    /// So many records each second, evenly: the `n`th is due `n / rate` seconds after the start, whatever became of those
    /// before it.
    #[must_use]
    pub fn rate(self, records_per_second: f64) -> Generate<T> {
        Generate { rate: Some(records_per_second), ..self }
    }

    /// Ends after so many records.
    #[must_use]
    pub fn count(self, records: u64) -> Generate<T> {
        Generate { count: Some(records), ..self }
    }

    /// How many records are due at a moment.
    fn due(&self, now: Moment) -> u64 {
        let most = self.count.unwrap_or(u64::MAX);
        match (self.rate, self.began.get()) {
            (None, _) => most,
            (Some(_), None) => 0,
            // The first is due at once.
            (Some(rate), Some(began)) => most.min(((now - *began).as_secs_f64() * rate) as u64 + 1),
        }
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

/// Wakes readers when their next record is due.
#[derive(Default)]
struct Timer {
    state: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    wakes: Vec<Wake>,
    is_over: bool,
}

/// The shortest sleep: at higher rates several records come at once.
const SLEEP_LEAST: Duration = Duration::from_micros(500);

impl Timer {
    fn run(&self, clock: &Clock, interval: Duration) {
        let mut state = lock(&self.state);
        while !state.is_over {
            state.wakes.iter().for_each(Wake::wake);
            state = clock.wait(state, &self.changed, Some(clock.now().after(interval.max(SLEEP_LEAST))));
        }
    }

    fn ring(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
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
        if open.bounded && self.count.is_none() {
            return Err(Error::new(ErrorKind::Option, "a run with an end needs a `count` of what is generated"));
        }
        Ok(GenerateShared {
            source: self,
            workers: open.workers,
            resume: open.resume.unwrap_or_default(),
            clock: open.clock,
            timer: Arc::default(),
            committed: Mutex::default(),
        })
    }

    fn reader(shared: &Arc<GenerateShared<T>>, worker: Worker, wake: Wake) -> Result<GenerateReader<T>> {
        lock(&shared.timer.state).wakes.push(wake);
        let partition = partition(worker.index);
        let made = shared.resume.get(&partition).map_or(0, |next| next.0);
        Ok(GenerateReader { source: shared.source.clone(), clock: shared.clock.clone(), worker, partition, made })
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

impl<T: 'static> SharedSource for GenerateShared<T> {
    fn begin(&self) -> Result<()> {
        self.source.began.get_or_init(|| self.clock.now());
        lock(&self.timer.state).wakes.iter().for_each(Wake::wake);
        let Some(rate) = self.source.rate else { return Ok(()) };
        let weak = Arc::downgrade(&self.timer);
        self.clock.on_advance(move || weak.upgrade().map(|timer| timer.ring()).is_some());
        let (timer, clock) = (Arc::clone(&self.timer), self.clock.clone());
        let interval = Duration::from_secs_f64((1.0 / rate).min(1.0));
        let thread = thread::Builder::new().name("millstream-generate".to_owned());
        let started = thread.spawn(move || timer.run(&clock, interval));
        started.map(drop).map_err(|cause| {
            Error::new(ErrorKind::Source, "cannot start the thread that keeps a schedule").caused_by(cause)
        })
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

    fn close(&self) {
        lock(&self.timer.state).is_over = true;
        self.timer.ring();
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
}

impl<T: 'static> Reader for GenerateReader<T> {
    type Item = T;

    fn poll(&mut self, batch: &mut Batch<T>, room: Room) -> Result<Polled> {
        let due = self.source.due(self.clock.now());
        let size = Bytes(size_of::<T>().max(1) as u64);
        let before = self.made;
        let next = |made: u64| made * self.worker.peers as u64 + self.worker.index as u64;
        while next(self.made) < due && batch.len() < room.records && batch.bytes() < room.bytes {
            batch.push((self.source.make)(next(self.made)), size);
            self.made += 1;
        }
        if self.made > before {
            batch.read_to(self.partition.clone(), Offset(self.made));
        }
        let is_last = self.source.count.is_some_and(|count| next(self.made) >= count);
        Ok(match (is_last, next(self.made) < due) {
            (true, _) => Polled::Ended,
            (false, true) => Polled::More,
            (false, false) => Polled::Idle,
        })
    }
}

impl<T> fmt::Debug for GenerateReader<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GenerateReader({} made)", self.made)
    }
}
