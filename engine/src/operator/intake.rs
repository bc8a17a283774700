//! How much of a source is let in: a pause, records each second, records for each batch. One per source and run, shared by
//! its workers and by the program, which may change it while the job runs. A limit decides only whether a reader is polled,
//! so it holds back no cut, no commit and no stop; a member of a consumer group that is not polled keeps its partitions.

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

/// How much may be polled now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Grant {
    /// So many records.
    Records(usize),
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
    /// Records that wait for a micro-batch.
    queued: AtomicU64,
    /// Records that were let into a checkpoint where there is no micro-batch.
    admitted: Mutex<(CheckpointId, u64)>,
    /// A reader was not polled because of a limit.
    holds_back: AtomicBool,
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
        let since = self.filled.map_or(Duration::MAX, |filled| now - filled);
        self.records = (self.records + since.as_secs_f64() * rate).min(most);
        self.filled = Some(now);
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
        self.look_again();
    }

    /// Time has passed, or a limit is another one: nobody knows whether readers are held back before they look.
    pub(crate) fn look_again(&self) {
        self.holds_back.store(false, SeqCst);
    }

    /// Whether a reader was not polled because of a limit.
    pub(crate) fn holds_back(&self) -> bool {
        self.holds_back.load(SeqCst)
    }

    /// How many records a reader may be polled for, of the `wanted`. What of them does not come is
    /// [given back](Intake::came).
    pub(crate) fn grant(&self, wanted: usize, counts: Counts, now: Moment) -> Grant {
        if !self.is_limited.load(SeqCst) {
            return Grant::Records(wanted);
        }
        let grant = self.limited(wanted, counts, now);
        if !matches!(grant, Grant::Records(_)) {
            self.holds_back.store(true, SeqCst);
        }
        grant
    }

    fn limited(&self, wanted: usize, counts: Counts, now: Moment) -> Grant {
        let limits = self.limits();
        if limits.is_paused {
            return Grant::Nothing;
        }
        let mut records = wanted;
        if let Some(most) = limits.batch {
            let used = match counts {
                Counts::Queued => self.queued.load(SeqCst),
                Counts::InCheckpoint(checkpoint) => {
                    let admitted = lock(&self.admitted);
                    if admitted.0 == checkpoint { admitted.1 } else { 0 }
                }
            };
            records = records.min(usize::try_from(most.saturating_sub(used)).unwrap_or(usize::MAX));
            if records == 0 {
                return Grant::Nothing;
            }
        }
        if let Some(rate) = limits.rate {
            let mut bucket = lock(&self.bucket);
            bucket.fill(rate, now);
            if bucket.records < 1.0 {
                let wait = Duration::try_from_secs_f64((1.0 - bucket.records) / rate).unwrap_or(Duration::MAX);
                // Not a moment too early because of a rounding.
                return Grant::After(wait.saturating_add(Duration::from_micros(1)));
            }
            records = records.min(bucket.records as usize);
            bucket.records -= records as f64;
        }
        Grant::Records(records)
    }

    /// So many of the granted records came.
    pub(crate) fn came(&self, granted: usize, came: usize, counts: Counts) {
        match counts {
            Counts::Queued => drop(self.queued.fetch_add(came as u64, SeqCst)),
            Counts::InCheckpoint(checkpoint) if self.is_limited.load(SeqCst) => {
                let mut admitted = lock(&self.admitted);
                if admitted.0 != checkpoint {
                    *admitted = (checkpoint, 0);
                }
                admitted.1 += came as u64;
            }
            Counts::InCheckpoint(_) => {}
        }
        if self.is_limited.load(SeqCst) && self.limits().rate.is_some() {
            lock(&self.bucket).records += granted.saturating_sub(came) as f64;
        }
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

    #[test]
    fn a_rate_lets_through_what_is_due_and_gives_back_what_did_not_come() {
        let intake = Intake::default();
        intake.set(Limits { rate: Some(100.0), ..Limits::default() });
        assert_eq!(intake.grant(4_096, Counts::Queued, at(0)), Grant::Records(10), "a tenth of a second's");
        assert!(matches!(intake.grant(1, Counts::Queued, at(0)), Grant::After(_)));
        assert!(intake.holds_back());
        intake.came(10, 4, Counts::Queued);
        assert_eq!(intake.grant(4_096, Counts::Queued, at(0)), Grant::Records(6));
        assert_eq!(intake.grant(4_096, Counts::Queued, at(50)), Grant::Records(5));
        assert_eq!(intake.grant(4_096, Counts::Queued, at(10_000)), Grant::Records(10), "a pause is not made up for");
    }

    #[test]
    fn a_batch_is_full_until_it_leaves() {
        let intake = Intake::default();
        intake.set(Limits { batch: Some(5), ..Limits::default() });
        assert_eq!(intake.grant(3, Counts::Queued, at(0)), Grant::Records(3));
        intake.came(3, 3, Counts::Queued);
        assert_eq!(intake.grant(3, Counts::Queued, at(0)), Grant::Records(2));
        intake.came(2, 2, Counts::Queued);
        assert_eq!(intake.grant(3, Counts::Queued, at(0)), Grant::Nothing);
        assert!(intake.leave(3), "others may go on");
        assert_eq!(intake.grant(4, Counts::Queued, at(0)), Grant::Records(3));
        let (one, two) = (CheckpointId::new(1), CheckpointId::new(2));
        intake.came(5, 5, Counts::InCheckpoint(one));
        assert_eq!(intake.grant(1, Counts::InCheckpoint(one), at(0)), Grant::Nothing);
        assert_eq!(intake.grant(9, Counts::InCheckpoint(two), at(0)), Grant::Records(5));
    }
}
