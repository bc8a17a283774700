//! Revoked and lost partitions. The control thread posts a [`Drain`] to each worker's
//! [`ingest`](super::ingest), which stops reading them and answers with the last checkpoint in
//! which it released records of them.

use std::mem;

use crate::words::sync::{Arc, AtomicU64, Mutex, SeqCst, lock};
use crate::words::{CheckpointId, Partition};

/// What happens to the records of a partition that were released and not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// They can still be committed: the partition was revoked.
    Committed,
    /// They cannot: the partition was lost.
    Dropped,
}

/// An order to the readers of a source to drop partitions.
#[derive(Debug)]
pub(crate) struct Drain {
    pub(crate) partitions: Vec<Partition>,
    pub(crate) released: Released,
    /// The number of workers that have not answered yet.
    waiting: AtomicU64,
    /// The newest checkpoint in which a worker released records of them.
    newest: Mutex<CheckpointId>,
}

impl Drain {
    /// An order to that many workers.
    pub(crate) fn new(partitions: Vec<Partition>, released: Released, workers: usize) -> Drain {
        Drain { partitions, released, waiting: AtomicU64::new(workers as u64), newest: Mutex::default() }
    }

    /// A worker has released no records of the partitions after this checkpoint, and will release
    /// none.
    fn answer(&self, checkpoint: CheckpointId) {
        let mut newest = lock(&self.newest);
        *newest = checkpoint.max(*newest);
        drop(newest);
        // After the checkpoint: a reader that sees all answers sees all checkpoints.
        self.waiting.fetch_sub(1, SeqCst);
    }

    /// Whether all workers have answered.
    pub(crate) fn is_answered(&self) -> bool {
        self.waiting.load(SeqCst) == 0
    }

    /// The newest checkpoint in which a worker that has answered released records of the
    /// partitions.
    pub(crate) fn newest(&self) -> CheckpointId {
        *lock(&self.newest)
    }
}

/// The orders that one worker's ingest has not seen yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drains(Arc<Mutex<Inbox>>);

#[derive(Debug, Default)]
struct Inbox {
    drains: Vec<Arc<Drain>>,
    /// The last checkpoint of an ingest that has ended.
    ended: Option<CheckpointId>,
}

impl Drains {
    /// Posts an order to the ingest. An ingest that has ended answers at once.
    pub(crate) fn post(&self, drain: &Arc<Drain>) {
        let mut inbox = lock(&self.0);
        match inbox.ended {
            Some(checkpoint) => drain.answer(checkpoint),
            None => inbox.drains.push(Arc::clone(drain)),
        }
    }

    /// Carries out the posted orders: `carry_out` drops the partitions and returns the open
    /// checkpoint. Returns whether there was an order.
    pub(super) fn answer(&self, mut carry_out: impl FnMut(&Drain) -> CheckpointId) -> bool {
        let drains = mem::take(&mut lock(&self.0).drains);
        for drain in &drains {
            let checkpoint = carry_out(drain);
            drain.answer(checkpoint);
        }
        !drains.is_empty()
    }

    /// The ingest has ended in this checkpoint, and has no partitions any more.
    pub(super) fn end(&self, checkpoint: CheckpointId) {
        let mut inbox = lock(&self.0);
        inbox.ended = Some(checkpoint);
        inbox.drains.drain(..).for_each(|drain| drain.answer(checkpoint));
    }
}
