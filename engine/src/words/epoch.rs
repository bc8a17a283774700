//! The timestamp of the dataflow. Every record is stamped with the [`Epoch`] that was open when it
//! was released. An epoch carries the checkpoint it belongs to, so any worker can tell from a
//! timestamp on which side of a cut it lies.

use std::fmt;

/// The bits of an epoch that hold its sequence within its checkpoint. At ten epochs a second they
/// last for 19 days without a boundary, and 40 bits are left for checkpoints.
const SEQUENCE_BITS: u32 = 24;

/// A moment in the order of the dataflow: `checkpoint << 24 | sequence`, totally ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Epoch(u64);

impl Epoch {
    /// After all others.
    pub(crate) const LAST: Epoch = Epoch(u64::MAX);

    /// An epoch from a timestamp of the dataflow.
    pub(crate) fn from_raw(raw: u64) -> Epoch {
        Epoch(raw)
    }

    /// The timestamp that the dataflow sees.
    pub(crate) fn as_raw(self) -> u64 {
        self.0
    }

    /// The checkpoint this epoch belongs to.
    pub(crate) fn checkpoint(self) -> CheckpointId {
        CheckpointId(self.0 >> SEQUENCE_BITS)
    }

    /// The number of epochs of its checkpoint before it.
    pub(crate) fn sequence(self) -> u64 {
        self.0 & ((1 << SEQUENCE_BITS) - 1)
    }

    /// The epoch after this one in the same checkpoint, or `None` when the sequence is used up and
    /// a boundary is due.
    pub(crate) fn next(self) -> Option<Epoch> {
        let next = Epoch(self.0 + 1);
        (next.checkpoint() == self.checkpoint()).then_some(next)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.checkpoint(), self.sequence())
    }
}

/// The name of a durable cut between two epochs: everything stamped with it or less lies before the
/// cut. Numbers continue over the runs of a job: a run that resumes where another had committed
/// checkpoint `c` begins with `c + 1`. A run that resumes nothing begins with 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct CheckpointId(u64);

impl CheckpointId {
    /// The first checkpoint of a run that resumes nothing.
    pub(crate) const FIRST: CheckpointId = CheckpointId(1);

    /// A checkpoint from its number.
    pub fn new(number: u64) -> CheckpointId {
        CheckpointId(number)
    }

    /// Its number.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The checkpoint after this one.
    #[must_use]
    pub(crate) fn next(self) -> CheckpointId {
        CheckpointId(self.0 + 1)
    }

    /// The checkpoint before this one.
    #[must_use]
    pub(crate) fn previous(self) -> CheckpointId {
        CheckpointId(self.0.saturating_sub(1))
    }

    /// The first epoch of this checkpoint. A frontier at the first epoch of `c + 1` means that `c`
    /// is complete.
    pub(crate) fn first_epoch(self) -> Epoch {
        Epoch(self.0 << SEQUENCE_BITS)
    }

    /// The epoch at which sources begin in a run whose first checkpoint is this one. The epoch
    /// before it, of sequence 0, belongs to what is restored.
    pub(crate) fn opening_epoch(self) -> Epoch {
        Epoch(self.first_epoch().0 + 1)
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_knows_its_side_of_the_cut() {
        let cut = CheckpointId::new(7);
        assert_eq!(cut.first_epoch().checkpoint(), cut);
        assert!(cut.first_epoch().next().is_some_and(|next| next < cut.next().first_epoch()));
    }

    #[test]
    fn a_used_up_sequence_asks_for_a_boundary() {
        let last = Epoch::from_raw(CheckpointId::new(8).first_epoch().as_raw() - 1);
        assert_eq!((last.checkpoint(), last.next()), (CheckpointId::new(7), None));
    }
}
