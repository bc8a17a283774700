//! How much of a source is read: a pause, records each second, records for each batch. There is one
//! per source and run, shared by its workers and by the program, which may change it while the job
//! runs. A limit only decides whether a reader is polled, so it never holds back a cut, a commit or
//! a stop. A member of a consumer group that is not polled keeps its partitions.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::words::{CheckpointId, Moment, lock};

/// The limits of a source; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    pub(crate) is_paused: bool,
    /// Records each second, over all workers.
    pub(crate) rate: Option<f64>,
    /// Records in a batch, over all workers.
    pub(crate) batch: Option<u64>,
}

/// Records that a reader may be polled for. All of them count until [`Intake::came`] is told how
/// many came.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "records that did not come must be given back"]
pub(crate) struct Granted {
    pub(crate) records: usize,
    counts: Option<Counts>,
}

/// How much may be polled now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Grant {
    /// This many records.
    Records(Granted),
    /// Nothing until this time has passed.
    After(Duration),
    /// Nothing until something else happens: the source is resumed, or the next batch begins.
    Nothing,
}

/// See the module. `turns` is locked before `bucket` and `admitted`.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    limits: Mutex<Limits>,
    /// Whether there is any limit, so that a source without one takes no lock.
    is_limited: AtomicBool,
    bucket: Mutex<Bucket>,
    /// Records that wait for a micro-batch, or are polled for one.
    queued: AtomicU64,
    /// Where there is no micro-batch: the newest checkpoint, and the number of records admitted to
    /// it.
    admitted: Mutex<(CheckpointId, u64)>,
    /// Workers that found a batch full, in the order in which they asked: the first gets the next
    /// records.
    turns: Mutex<VecDeque<usize>>,
    /// How often time has passed or the limits have changed.
    looks: AtomicU64,
    /// The value of `looks`, and the moment, when a limit last kept a reader from being polled.
    held_back: Mutex<Option<(u64, Moment)>>,
}

/// The records that a rate allows now: at most a tenth of a second's, so that a pause is not made
/// up for in one burst.
#[derive(Debug, Default)]
struct Bucket {
    records: f64,
    filled: Option<Moment>,
}

/// The size of the bucket, in seconds.
const BURST: f64 = 0.1;

impl Bucket {
    fn fill(&mut self, rate: f64, now: Moment) {
        let most = (rate * BURST).max(1.0);
        let due = self.filled.map_or(f64::INFINITY, |filled| (now - filled).as_secs_f64() * rate);
        self.records = (self.records + due).min(most);
        // Another worker may have filled it at a later moment.
        self.filled = Some(self.filled.map_or(now, |filled| filled.max(now)));
    }
}

impl Intake {
    pub(crate) fn limits(&self) -> Limits {
        *lock(&self.limits)
    }

    /// Sets the limits from now on. The caller wakes the readers.
    pub(crate) fn set(&self, limits: Limits) {
        *lock(&self.limits) = limits;
        self.is_limited.store(limits != Limits::default(), SeqCst);
        lock(&self.turns).clear();
        self.look_again();
    }

    /// Time has passed or a limit has changed: whether readers are held back is unknown until they
    /// ask again.
    pub(crate) fn look_again(&self) {
        self.looks.fetch_add(1, SeqCst);
    }

    /// Whether a limit keeps a reader from being polled at this moment.
    pub(crate) fn holds_back(&self, now: Moment) -> bool {
        *lock(&self.held_back) == Some((self.looks.load(SeqCst), now))
    }

    /// How many of the `wanted` records a worker's reader may be polled for.
    pub(crate) fn grant(&self, worker: usize, wanted: usize, counts: Counts, now: Moment) -> Grant {
        if !self.is_limited.load(SeqCst) {
            return Grant::Records(self.without_limit(wanted, counts));
        }
        // Read before the limits: if they change meanwhile, the result is of an old look.
        let look = self.looks.load(SeqCst);
        let grant = self.limited(worker, wanted, counts, now);
        if !matches!(grant, Grant::Records(_)) {
            *lock(&self.held_back) = Some((look, now));
        }
        grant
    }

    /// Grants all that are wanted.
    pub(crate) fn without_limit(&self, wanted: usize, counts: Counts) -> Granted {
        // What waits for a micro-batch is always counted: a limit may be set later.
        let counts = (counts == Counts::Queued).then_some(counts);
        if counts.is_some() {
            self.queued.fetch_add(wanted as u64, SeqCst);
        }
        Granted { records: wanted, counts }
    }

    fn limited(&self, worker: usize, wanted: usize, counts: Counts, now: Moment) -> Grant {
        let limits = self.limits();
        if limits.is_paused {
            return Grant::Nothing;
        }
        let Some(most) = limits.batch else {
            return match self.due(wanted, &limits, now) {
                Ok(records) => Grant::Records(self.without_limit(records, counts)),
                Err(wait) => Grant::After(wait),
            };
        };
        // Held until the records are counted, so that two workers do not take the same ones.
        let mut turns = lock(&self.turns);
        let left = usize::try_from(most.saturating_sub(self.used(counts))).unwrap_or(usize::MAX);
        if left == 0 || turns.front().is_some_and(|first| *first != worker) {
            if !turns.contains(&worker) {
                turns.push_back(worker);
            }
            return Grant::Nothing;
        }
        let records = match self.due(wanted.min(left), &limits, now) {
            Ok(records) => records,
            Err(wait) => return Grant::After(wait),
        };
        turns.pop_front();
        match counts {
            Counts::Queued => drop(self.queued.fetch_add(records as u64, SeqCst)),
            Counts::InCheckpoint(_) => lock(&self.admitted).1 += records as u64,
        }
        Grant::Records(Granted { records, counts: Some(counts) })
    }

    /// The number of records in the batch so far.
    fn used(&self, counts: Counts) -> u64 {
        match counts {
            Counts::Queued => self.queued.load(SeqCst),
            Counts::InCheckpoint(checkpoint) => {
                let mut admitted = lock(&self.admitted);
                if admitted.0 < checkpoint {
                    *admitted = (checkpoint, 0);
                }
                // A checkpoint that other workers have left is full.
                if admitted.0 == checkpoint { admitted.1 } else { u64::MAX }
            }
        }
    }

    /// How many of these records are due by the rate; if none, how long until one is.
    fn due(&self, mut records: usize, limits: &Limits, now: Moment) -> Result<usize, Duration> {
        if let Some(rate) = limits.rate {
            let mut bucket = lock(&self.bucket);
            bucket.fill(rate, now);
            if bucket.records < 1.0 {
                let wait = Duration::try_from_secs_f64((1.0 - bucket.records) / rate).unwrap_or(Duration::MAX);
                // A microsecond more, so that rounding cannot end the wait too early.
                return Err(wait.saturating_add(Duration::from_micros(1)));
            }
            records = records.min(bucket.records as usize);
            bucket.records -= records as f64;
        }
        Ok(records)
    }

    /// Reports how many of the granted records came. Returns whether another worker waits for the
    /// rest.
    pub(crate) fn came(&self, granted: Granted, came: usize) -> bool {
        let left = granted.records.saturating_sub(came) as u64;
        match granted.counts {
            Some(Counts::Queued) => drop(self.queued.fetch_sub(left, SeqCst)),
            Some(Counts::InCheckpoint(checkpoint)) => {
                let mut admitted = lock(&self.admitted);
                if admitted.0 == checkpoint {
                    admitted.1 -= left;
                }
            }
            None => {}
        }
        if !self.is_limited.load(SeqCst) {
            return false;
        }
        let limits = self.limits();
        if limits.rate.is_some() {
            lock(&self.bucket).records += left as f64;
        }
        let has_room = limits.batch.zip(granted.counts).is_some_and(|(most, counts)| self.used(counts) < most);
        has_room && !lock(&self.turns).is_empty()
    }

    /// A worker wants no records now, or none any more. Returns whether another worker waits and
    /// may take its turn.
    pub(crate) fn pass_on(&self, worker: usize) -> bool {
        let mut turns = lock(&self.turns);
        let was_first = turns.front() == Some(&worker);
        turns.retain(|waiting| *waiting != worker);
        was_first && !turns.is_empty()
    }

    /// This many records no longer wait for a micro-batch. Returns whether others may be polled
    /// now.
    pub(crate) fn leave(&self, records: usize) -> bool {
        let before = self.queued.fetch_sub(records as u64, SeqCst);
        self.is_limited.load(SeqCst) && self.limits().batch.is_some_and(|most| before >= most)
    }
}

/// What the limit of a batch counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Counts {
    /// What waits for the next micro-batch.
    Queued,
    /// What was admitted to this checkpoint.
    InCheckpoint(CheckpointId),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    /// What a worker is granted; 0 is nothing.
    #[track_caller]
    fn granted(intake: &Intake, worker: usize, wanted: usize, counts: Counts, now: u64) -> Granted {
        match intake.grant(worker, wanted, counts, at(now)) {
            Grant::Records(granted) => granted,
            Grant::After(_) | Grant::Nothing => Granted { records: 0, counts: None },
        }
    }

    #[test]
    fn a_rate_lets_through_what_is_due_and_gives_back_what_did_not_come() {
        let intake = Intake::default();
        intake.set(Limits { rate: Some(100.0), ..Limits::default() });
        let grant = |wanted, now| granted(&intake, 0, wanted, Counts::Queued, now);
        let first = grant(4_096, 0);
        assert_eq!(first.records, 10, "a tenth of a second's");
        assert_eq!(grant(1, 0).records, 0);
        assert!(intake.holds_back(at(0)) && !intake.holds_back(at(1)));
        intake.look_again();
        assert!(!intake.holds_back(at(0)), "no reader has asked since");
        intake.came(first, 4);
        assert_eq!(grant(4_096, 0).records, 6);
        assert_eq!(grant(4_096, 50).records, 5);
        assert_eq!(grant(4_096, 20).records, 0, "the clock of another worker is behind");
        assert_eq!(grant(4_096, 50).records, 0, "and no time is counted twice");
        assert_eq!(grant(4_096, 10_000).records, 10, "a pause is not made up for");
    }

    #[test]
    fn a_batch_is_full_until_it_leaves() {
        let intake = Intake::default();
        intake.set(Limits { batch: Some(5), ..Limits::default() });
        let grant = |wanted, counts| granted(&intake, 0, wanted, counts, 0);
        assert_eq!(grant(3, Counts::Queued).records, 3);
        let two = grant(3, Counts::Queued);
        assert_eq!(two.records, 2, "what is polled for counts");
        assert_eq!(grant(3, Counts::Queued).records, 0);
        assert!(intake.came(two, 1), "there is room for one");
        assert_eq!(grant(3, Counts::Queued).records, 1);
        assert!(intake.leave(3), "others may go on");
        assert_eq!(grant(4, Counts::Queued).records, 3);
        let (one, two) = (CheckpointId::new(1), CheckpointId::new(2));
        let first = grant(5, Counts::InCheckpoint(one));
        assert_eq!((first.records, grant(1, Counts::InCheckpoint(one)).records), (5, 0));
        assert_eq!(grant(9, Counts::InCheckpoint(two)).records, 5);
        intake.came(first, 0);
        assert_eq!(grant(1, Counts::InCheckpoint(two)).records, 0, "what comes late is of the other one");
        assert_eq!(grant(1, Counts::InCheckpoint(one)).records, 0, "which is over");
    }

    #[test]
    fn workers_take_turns_with_batches() {
        let intake = Intake::default();
        intake.set(Limits { batch: Some(5), ..Limits::default() });
        let grant = |worker| granted(&intake, worker, 5, Counts::Queued, 0).records;
        assert_eq!((grant(0), grant(1), grant(2)), (5, 0, 0));
        intake.leave(5);
        assert_eq!((grant(0), grant(2), grant(1)), (0, 0, 5), "the one that has waited longest");
        intake.leave(5);
        assert!(intake.pass_on(2), "the next one is to be woken");
        assert_eq!((grant(1), grant(0)), (0, 5));
        intake.leave(5);
        assert!(!intake.pass_on(1), "no other worker waits");
        assert_eq!(grant(0), 5);
    }
}
