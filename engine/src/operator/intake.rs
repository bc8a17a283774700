//! How much of a source is let in: a pause, records each second, records for each batch. One per source and run, shared by
//! its workers and by the program, which may change it while the job runs. A limit decides only whether a reader is polled,
//! so it holds back no cut, no commit and no stop; a member of a consumer group that is not polled keeps its partitions.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::words::{CheckpointId, Moment, lock};

/// What a source may be told; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    pub(crate) is_paused: bool,
    /// Records each second, over all workers.
    pub(crate) rate: Option<f64>,
    /// Records in a batch, over all workers.
    pub(crate) batch: Option<u64>,
}

/// Records that a reader may be polled for. They count until it is [said](Intake::came) how many came.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "records that did not come have to be given back"]
pub(crate) struct Granted {
    pub(crate) records: usize,
    counts: Option<Counts>,
}

/// How much may be polled now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Grant {
    /// So many records.
    Records(Granted),
    /// Nothing before this has passed.
    After(Duration),
    /// Nothing until something else happens: a resumption, a next batch.
    Nothing,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    limits: Mutex<Limits>,
    /// Whether there is any limit, so that a source without one takes no lock.
    is_limited: AtomicBool,
    bucket: Mutex<Bucket>,
    /// Records that wait for a micro-batch, or are polled for one.
    queued: AtomicU64,
    /// Records that were let into a checkpoint where there is no micro-batch.
    admitted: Mutex<(CheckpointId, u64)>,
    /// Workers that found a batch full, in the order in which they asked: the first of them has the next records.
    turns: Mutex<VecDeque<usize>>,
    /// How often time has passed or limits have changed, and the last of these counts and the moment at which a reader was not
    /// polled because of a limit.
    looks: AtomicU64,
    held_back: Mutex<Option<(u64, Moment)>>,
}

/// Records that may come at once: what a tenth of a second brings, so that a pause is not made up for in one go.
#[derive(Debug, Default)]
struct Bucket {
    records: f64,
    filled: Option<Moment>,
}

const BURST: f64 = 0.1;

impl Bucket {
    fn fill(&mut self, rate: f64, now: Moment) {
        let most = (rate * BURST).max(1.0);
        let due = self.filled.map_or(f64::INFINITY, |filled| (now - filled).as_secs_f64() * rate);
        self.records = (self.records + due).min(most);
        // Another worker may have looked at its clock later.
        self.filled = Some(self.filled.map_or(now, |filled| filled.max(now)));
    }
}

impl Intake {
    pub(crate) fn limits(&self) -> Limits {
        *lock(&self.limits)
    }

    /// From now on. Readers are woken by who calls this.
    pub(crate) fn set(&self, limits: Limits) {
        *lock(&self.limits) = limits;
        self.is_limited.store(limits != Limits::default(), SeqCst);
        lock(&self.turns).clear();
        self.look_again();
    }

    /// Time has passed, or a limit is another one: nobody knows whether readers are held back before they look.
    pub(crate) fn look_again(&self) {
        self.looks.fetch_add(1, SeqCst);
    }

    /// Whether a limit keeps a reader from being polled at this moment.
    pub(crate) fn holds_back(&self, now: Moment) -> bool {
        *lock(&self.held_back) == Some((self.looks.load(SeqCst), now))
    }

    /// How many records a worker's reader may be polled for, of the `wanted`.
    pub(crate) fn grant(&self, worker: usize, wanted: usize, counts: Counts, now: Moment) -> Grant {
        if !self.is_limited.load(SeqCst) {
            return Grant::Records(self.without_limit(wanted, counts));
        }
        let look = self.looks.load(SeqCst);
        let grant = self.limited(worker, wanted, counts, now);
        if !matches!(grant, Grant::Records(_)) {
            *lock(&self.held_back) = Some((look, now));
        }
        grant
    }

    /// Grants all of it.
    pub(crate) fn without_limit(&self, wanted: usize, counts: Counts) -> Granted {
        // What waits for a micro-batch is always counted: a limit may come later.
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
        // Held until the records are counted, so that workers do not take the same ones.
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

    /// What is in a batch already.
    fn used(&self, counts: Counts) -> u64 {
        match counts {
            Counts::Queued => self.queued.load(SeqCst),
            Counts::InCheckpoint(checkpoint) => {
                let mut admitted = lock(&self.admitted);
                if admitted.0 < checkpoint {
                    *admitted = (checkpoint, 0);
                }
                // A checkpoint that others have left is full.
                if admitted.0 == checkpoint { admitted.1 } else { u64::MAX }
            }
        }
    }

    /// How many of these are due by the rate; if none, how long it takes.
    fn due(&self, mut records: usize, limits: &Limits, now: Moment) -> Result<usize, Duration> {
        if let Some(rate) = limits.rate {
            let mut bucket = lock(&self.bucket);
            bucket.fill(rate, now);
            if bucket.records < 1.0 {
                let wait = Duration::try_from_secs_f64((1.0 - bucket.records) / rate).unwrap_or(Duration::MAX);
                // Not a moment too early because of a rounding.
                return Err(wait.saturating_add(Duration::from_micros(1)));
            }
            records = records.min(bucket.records as usize);
            bucket.records -= records as f64;
        }
        Ok(records)
    }

    /// So many of the granted records came. Says whether another worker waits for what is left.
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

    /// A worker does not want records now, or no more. Says whether another one waits that may have its turn.
    pub(crate) fn pass_on(&self, worker: usize) -> bool {
        let mut turns = lock(&self.turns);
        let was_first = turns.front() == Some(&worker);
        turns.retain(|waiting| *waiting != worker);
        was_first && !turns.is_empty()
    }

    /// So many records wait for no micro-batch any more. Says whether others may be polled for now.
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
    /// What was let into this checkpoint.
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
        assert!(!intake.holds_back(at(0)), "nobody has looked since");
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
        assert_eq!((grant(0), grant(2), grant(1)), (0, 0, 5), "who has waited for longest");
        intake.leave(5);
        assert!(intake.pass_on(2), "the next one is to be woken");
        assert_eq!((grant(1), grant(0)), (0, 5));
        intake.leave(5);
        assert!(!intake.pass_on(1), "nobody waits");
        assert_eq!(grant(0), 5);
    }
}
