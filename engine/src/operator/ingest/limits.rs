//! How much a source is polled for: what its limits allow, and what takes about a step.

use crate::words::Moment;

use super::super::intake::{Counts, Grant, Granted};
use super::{ASK_AGAIN_WITHIN, Ingest, RECORDS_MAX, Release, STEP};
use crate::io::AtStop;

impl<T> Ingest<T> {
    /// How many of the `wanted` records may be polled now; `None` when none may.
    pub(super) fn granted(&mut self, wanted: usize) -> Option<Granted> {
        // No limit applies: records that are drained cannot be read again.
        if self.at_stop == Some(AtStop::Drain) {
            return Some(self.setting.intake.without_limit(wanted, self.counts()));
        }
        match self.setting.intake.grant(self.setting.worker, wanted, self.counts(), self.setting.clock.now()) {
            Grant::Records(granted) => Some(granted),
            Grant::After(wait) => {
                // A simulated clock wakes this operator when it moves.
                if self.setting.clock.is_system() {
                    self.activator.activate_after(wait.min(ASK_AGAIN_WITHIN));
                }
                None
            }
            Grant::Nothing => None,
        }
    }

    /// Reports how many of the granted records came; another worker may have the rest.
    pub(super) fn came(&self, granted: Granted, came: usize) {
        if self.setting.intake.came(granted, came) {
            self.setting.pulse.wake_ingests();
        }
    }

    /// Passes this worker's turn on to another worker.
    pub(super) fn pass_on(&self) {
        if self.setting.intake.pass_on(self.setting.worker) {
            self.setting.pulse.wake_ingests();
        }
    }

    /// What the limit of a batch counts.
    pub(super) fn counts(&self) -> Counts {
        match self.setting.release {
            Release::AtTicks => Counts::Queued,
            Release::AtOnce => Counts::InCheckpoint(self.epoch().checkpoint()),
        }
    }

    /// Adapts the size of the next poll to the time this one took.
    pub(super) fn adapt(&mut self, records: usize, since: Moment) {
        // A single record says nothing about the pace.
        if records <= 1 && self.records_max > 1 {
            return;
        }
        let took = self.setting.clock.now() - since;
        if took > 2 * STEP {
            self.records_max = (self.records_max / 2).max(1);
        } else if took < STEP / 2 && records >= self.records_max {
            self.records_max = (self.records_max * 2).min(RECORDS_MAX);
        }
    }
}
