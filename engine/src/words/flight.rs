//! The records of one checkpoint that a writer has taken and that are not acknowledged yet. The
//! last acknowledgement matters once the checkpoint is cut: before that, more records may come.

use std::fmt;

use super::CheckpointId;
use super::sync::{Arc, AtomicU64, SeqCst};

/// Counts records in flight. Each egress has one for each open checkpoint.
pub(crate) struct Flight {
    checkpoint: CheckpointId,
    open: AtomicU64,
    /// Called whenever the last record has landed.
    landed: Box<dyn Fn(CheckpointId) + Send + Sync>,
}

impl Flight {
    /// A flight without records. `landed` is called, from any thread, whenever no record is open
    /// any more. It wakes the egress if the checkpoint is cut; when a checkpoint is cut, all
    /// egresses are woken.
    pub(crate) fn new(checkpoint: CheckpointId, landed: impl Fn(CheckpointId) + Send + Sync + 'static) -> Arc<Flight> {
        Arc::new(Flight { checkpoint, open: AtomicU64::new(0), landed: Box::new(landed) })
    }

    pub(crate) fn checkpoint(&self) -> CheckpointId {
        self.checkpoint
    }

    pub(crate) fn depart(&self, records: u64) {
        self.open.fetch_add(records, SeqCst);
    }

    pub(crate) fn land(&self, records: u64) {
        // With the cut: this counts down and then reads whether the checkpoint is cut; the ticker
        // cuts and then wakes the egress, which reads the count. One of the two sees the other.
        if self.open.fetch_sub(records, SeqCst) == records {
            (self.landed)(self.checkpoint);
        }
    }

    /// The number of records in flight.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(SeqCst)
    }
}

impl fmt::Debug for Flight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records of checkpoint {} in flight", self.open(), self.checkpoint)
    }
}
