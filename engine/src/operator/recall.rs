//! Partitions that the control thread wants back from readers: it posts a recall to each worker's [`ingest`](super::ingest),
//! which answers with the last checkpoint in which it released something of them.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use crate::words::{CheckpointId, Partition, lock};

/// Partitions that the control thread wants back from the readers of a source.
#[derive(Debug)]
pub(crate) struct Recall {
    pub(crate) partitions: Vec<Partition>,
    /// Whether what was released of them can still be committed.
    pub(crate) lost: bool,
    /// How many workers have not answered yet.
    pub(crate) waiting: AtomicUsize,
    /// The newest checkpoint in which any worker released something of them.
    pub(crate) checkpoint: Mutex<CheckpointId>,
}

impl Recall {
    /// A worker has released nothing of the partitions after this checkpoint, and will not.
    pub(super) fn answer(&self, checkpoint: CheckpointId) {
        let mut newest = lock(&self.checkpoint);
        *newest = checkpoint.max(*newest);
        drop(newest);
        self.waiting.fetch_sub(1, SeqCst);
    }
}

/// The recalls that one worker's ingest has not seen yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recalls(Arc<Mutex<Inbox>>);

#[derive(Debug, Default)]
struct Inbox {
    recalls: Vec<Arc<Recall>>,
    /// The last checkpoint of an ingest that has ended.
    ended: Option<CheckpointId>,
}

impl Recalls {
    /// Asks the ingest; one that has ended has answered.
    pub(crate) fn post(&self, recall: &Arc<Recall>) {
        let mut inbox = lock(&self.0);
        match inbox.ended {
            Some(checkpoint) => recall.answer(checkpoint),
            None => inbox.recalls.push(Arc::clone(recall)),
        }
    }

    pub(super) fn take(&self) -> Vec<Arc<Recall>> {
        mem::take(&mut lock(&self.0).recalls)
    }

    /// A partition that is wanted back from an ended reader is free.
    pub(super) fn end(&self, checkpoint: CheckpointId) {
        let mut inbox = lock(&self.0);
        inbox.ended = Some(checkpoint);
        inbox.recalls.drain(..).for_each(|recall| recall.answer(checkpoint));
    }
}
