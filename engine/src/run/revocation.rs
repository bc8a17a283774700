//! How revoked and lost partitions leave a run: drained, committed, unassigned. Each step consumes
//! the one before.
//!
//! ```text
//! Revoked ─▶ Draining ── all workers answered, and what they released is committed ─▶ Committed
//! Lost ────▶ Draining ── all workers answered ──────────────────────────────────────▶ Committed
//!            Draining ── `drain_within` has passed ─────────────────────────────────▶ Committed
//! Committed ── nothing of them is committed any more; the source unassigns them ─▶ gone
//! ```

use std::sync::Arc;
use std::time::Instant;

use crate::epoch::commit::Committer;
use crate::io::{Revoked, SharedSource};
use crate::operator::drain::{Drain, Released};
use crate::operator::ingest::SourceIndex;
use crate::words::{CheckpointId, Result, deadline_after};

use super::shared::Run;
use super::spec::Spec;

/// Partitions that the readers are dropping.
pub(super) struct Draining {
    source: SourceIndex,
    revoked: Revoked,
    drain: Arc<Drain>,
    deadline: Instant,
}

/// Partitions that are drained, or whose time to drain is over.
pub(super) struct Committed {
    source: SourceIndex,
    revoked: Revoked,
    /// What was released of them up to here, and is not committed yet, must not be committed any
    /// more.
    until: CheckpointId,
}

impl Draining {
    /// Orders the readers of all workers to drop the partitions, and cuts a checkpoint for what
    /// they released.
    pub(super) fn begin(
        source: SourceIndex,
        revoked: Revoked,
        released: Released,
        run: &Run,
        spec: &Spec,
        committer: &mut Committer,
    ) -> Draining {
        if released == Released::Dropped {
            // What was released since that cut is dropped by the ingest.
            let cut = run.pulse.epoch().checkpoint().previous();
            committer.unassign(source, revoked.partitions(), cut);
        }
        let drain = Arc::new(Drain::new(revoked.partitions().to_vec(), released, spec.workers));
        run.plan.sources[source.0].drains.iter().for_each(|drains| drains.post(&drain));
        run.pulse.wake_ingests();
        run.ticker.cut_now();
        Draining { source, revoked, drain, deadline: deadline_after(spec.drain_within) }
    }

    /// Whether it is for nothing because these partitions are lost.
    pub(super) fn is_of(&self, source: SourceIndex, lost: &Revoked) -> bool {
        self.source == source && self.revoked.partitions().iter().all(|own| lost.partitions().contains(own))
    }

    /// Takes the next step, if possible now. `have_ended` says that no worker runs any more.
    pub(super) fn poll(self, run: &Run, have_ended: bool) -> Result<Committed, Draining> {
        let newest = self.drain.newest();
        let is_answered = self.drain.is_answered() || have_ended;
        let is_drained = is_answered && (self.drain.released == Released::Dropped || run.ticker.committed() >= newest);
        // A worker that was in the middle of a step has released more after the cut that was made
        // for this.
        if is_answered && !is_drained && run.pulse.epoch().checkpoint() <= newest {
            run.ticker.cut_now();
        }
        if !is_drained {
            if Instant::now() < self.deadline {
                return Err(self);
            }
            if self.drain.released == Released::Committed {
                tracing::warn!(
                    partitions = %self.revoked,
                    "revoked partitions are not committed in time, their next reader repeats records \
                     (`Job::drain_within`)"
                );
            }
        }
        Ok(Committed { source: self.source, revoked: self.revoked, until: newest })
    }
}

impl Committed {
    /// Unassigns the partitions.
    pub(super) fn unassign(self, source: &dyn SharedSource, committer: &mut Committer) -> Result<()> {
        committer.unassign(self.source, self.revoked.partitions(), self.until);
        source.unassign(self.revoked)
    }

    pub(super) fn source(&self) -> SourceIndex {
        self.source
    }
}
