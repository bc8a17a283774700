//! One run of a comparison: its sources are read on a schedule that was fixed in advance, up to an end that is the same in
//! every run, and its sinks say what they wrote. The first run decides which records these are, by taking what comes;
//! those after it take as many of each partition.
//!
//! A record has arrived when it was *due*, whenever it was read: a run that falls behind cannot hide it.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::words::{Batch, Clock, Error, ErrorKind, Moment, Offsets, Partition, Result, Room, SinkMeter, lock};

use super::schedule::{Schedule, Timer, together};
use super::{AtStop, Polled, Reader, Wake};

/// What each source of a comparison gives to each run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    pub(crate) schedule: Schedule,
    /// What arrives before is not measured.
    pub(crate) warm_up: Duration,
}

/// What a run of a comparison shares with whoever compares.
pub(crate) struct Trial {
    course: Course,
    clock: Clock,
    turns: Mutex<Vec<Arc<Turn>>>,
    sinks: Mutex<Vec<Arc<SinkMeter>>>,
    /// What the run before took, per source.
    before: Vec<Taken>,
    timer: Arc<Timer>,
}

/// What a run took of a source.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    start: Offsets,
    records: u64,
    of: HashMap<Partition, u64>,
}

impl Trial {
    /// A run over that course; with what the one before it took, over the same records.
    pub(crate) fn new(course: Course, before: Vec<Taken>) -> Trial {
        Trial {
            course,
            clock: Clock::system(),
            turns: Mutex::default(),
            sinks: Mutex::default(),
            before,
            timer: Arc::default(),
        }
    }

    /// Where the run before began to read this source.
    pub(crate) fn start(&self, source: usize) -> Option<Offsets> {
        self.before.get(source).map(|taken| taken.start.clone())
    }

    /// The next source of the plan, and where it begins.
    pub(crate) fn turn(&self, start: Offsets) -> Arc<Turn> {
        let mut turns = lock(&self.turns);
        let quotas = self.before.get(turns.len()).cloned();
        let schedule = self.course.schedule;
        let records = quotas.as_ref().map_or(schedule.records, |taken| taken.records);
        let turn = Arc::new(Turn {
            schedule: Schedule { records, ..schedule },
            clock: self.clock.clone(),
            began: OnceLock::new(),
            quotas: quotas.map(|taken| taken.of),
            timer: Arc::clone(&self.timer),
            state: Mutex::new(State { taken: Taken { start, records: 0, of: HashMap::new() }, reserved: 0 }),
        });
        turns.push(Arc::clone(&turn));
        turn
    }

    /// The next sink of the plan.
    pub(crate) fn sink(&self, meter: &Arc<SinkMeter>) {
        lock(&self.sinks).push(Arc::clone(meter));
    }

    /// All sources have begun, and so does the schedule.
    pub(crate) fn begin(&self) -> Result<()> {
        let began = self.clock.now();
        lock(&self.sinks).iter().for_each(|sink| sink.measure_from(began.after(self.course.warm_up)));
        lock(&self.turns).iter().for_each(|turn| {
            turn.began.get_or_init(|| began);
        });
        self.timer.start(self.course.schedule, &self.clock, began)
    }

    /// The run is over.
    pub(crate) fn end(&self) {
        self.timer.end();
    }

    /// What the run took, per source.
    pub(crate) fn taken(&self) -> Vec<Taken> {
        lock(&self.turns).iter().map(|turn| lock(&turn.state).taken.clone()).collect()
    }

    /// What the run's sinks counted.
    pub(crate) fn sinks(&self) -> Vec<Arc<SinkMeter>> {
        lock(&self.sinks).clone()
    }
}

impl Taken {
    /// How many records were taken.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trial({:?})", self.course)
    }
}

/// One source's share of a trial, with all workers at it.
pub(crate) struct Turn {
    schedule: Schedule,
    clock: Clock,
    began: OnceLock<Moment>,
    /// How many records of each partition are taken; what comes when there is nothing before.
    quotas: Option<HashMap<Partition, u64>>,
    timer: Arc<Timer>,
    state: Mutex<State>,
}

struct State {
    taken: Taken,
    /// What workers are reading at this moment.
    reserved: u64,
}

impl Turn {
    /// Polls a reader for what is due.
    fn poll<R: Reader>(&self, reader: &mut R, batch: &mut Batch<R::Item>, room: Room) -> Result<Polled> {
        let Some(began) = self.began.get() else { return Ok(Polled::Idle) };
        let (due, reserved) = match self.reserve(*began, room.records) {
            Due::Records { first, count } => (first, count),
            Due::Nothing => return Ok(Polled::Idle),
            // Until that worker is back, which may have found nothing.
            Due::Elsewhere => return Ok(Polled::More),
            Due::End => return Ok(Polled::Ended),
        };
        // Not under the lock: workers decode side by side.
        let polled = reader.poll(batch, Room { records: reserved as usize, ..room });
        let exhausted = self.keep(reserved, batch)?;
        let polled = polled?;
        batch.due(began.after(due));
        if let Some(partition) = exhausted {
            reader.forget(&[partition]);
        }
        match self.reserve(*began, 0) {
            Due::End => {
                self.timer.wake_all();
                Ok(Polled::Ended)
            }
            // Until more is due, the timer wakes.
            Due::Nothing if polled == Polled::More => Ok(Polled::Idle),
            Due::Nothing | Due::Elsewhere | Due::Records { .. } => Ok(polled),
        }
    }

    /// Takes what is due, at most so many records, for one worker: it is due once, whichever worker finds it.
    fn reserve(&self, began: Moment, most: usize) -> Due {
        let mut state = lock(&self.state);
        if state.taken.records >= self.schedule.records {
            return Due::End;
        }
        let since = self.clock.now() - began;
        let next = state.taken.records + state.reserved;
        let all = self.schedule.count(since);
        if all <= next {
            return if all > state.taken.records { Due::Elsewhere } else { Due::Nothing };
        }
        let first = self.schedule.due(next);
        let until = self.schedule.count(first.saturating_add(together(since, first))).min(all);
        let count = (until - next).max(1).min(most as u64);
        state.reserved += count;
        Due::Records { first, count }
    }

    /// Counts what was read of what was reserved, and drops what is beyond this run's end. Says whether its partition is
    /// done.
    fn keep<T>(&self, reserved: u64, batch: &mut Batch<T>) -> Result<Option<Partition>> {
        let mut state = lock(&self.state);
        state.reserved -= reserved;
        let Some(partition) = Batch::partition(batch).cloned() else {
            return match Batch::is_empty(batch) {
                true => Ok(None),
                false => {
                    Err(Error::new(ErrorKind::Option, "cannot compare runs over a source that names no partitions"))
                }
            };
        };
        let of = state.taken.of.entry(partition.clone()).or_default();
        let quota = self.quotas.as_ref().map_or(u64::MAX, |quotas| quotas.get(&partition).copied().unwrap_or(0));
        let kept = (batch.len() as u64).min(quota - *of);
        drop(batch.split_off(kept as usize));
        *of += kept;
        let is_exhausted = *of == quota;
        state.taken.records += kept;
        Ok(is_exhausted.then_some(partition))
    }
}

/// What a worker may read now.
enum Due {
    Records {
        first: Duration,
        count: u64,
    },
    Nothing,
    /// Another worker is reading what is due.
    Elsewhere,
    /// All that the run gets is read.
    End,
}

/// A reader under a schedule, when there is one.
pub(crate) struct Paced<R> {
    reader: R,
    turn: Option<Arc<Turn>>,
}

impl<R> Paced<R> {
    pub(crate) fn new(reader: R, turn: Option<&Arc<Turn>>, wake: Wake) -> Paced<R> {
        if let Some(turn) = turn {
            turn.timer.add(wake);
        }
        Paced { reader, turn: turn.cloned() }
    }
}

impl<R: Reader> Reader for Paced<R> {
    type Item = R::Item;

    fn poll(&mut self, batch: &mut Batch<R::Item>, room: Room) -> Result<Polled> {
        match &self.turn {
            None => self.reader.poll(batch, room),
            Some(turn) => turn.poll(&mut self.reader, batch, room),
        }
    }

    fn has_ended(&self) -> bool {
        self.reader.has_ended()
    }

    fn forget(&mut self, partitions: &[Partition]) {
        self.reader.forget(partitions);
    }

    fn stop(&mut self) -> AtStop {
        self.reader.stop()
    }
}
