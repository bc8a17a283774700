//! The state with which a run begins: what the checkpoint has that it goes on from. Each worker
//! loads the key groups that it owns, while its operators are built.
//!
//! A key may have been kept under another group than it has now, because its `Hash` has changed.
//! Then the worker that loads it hands it on to the one that owns it, which takes it when it is
//! first scheduled. That is after all workers have loaded: none steps before.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::state::keep::{Keep, Strays};
use crate::state::recover::Recovered;
use crate::words::{EventTime, KEY_GROUPS, KeyGroup, Result, lock};

use super::fault::{Fault, Node};

/// Entries that are handed on, as key and state.
type HandedOn = Vec<(Vec<u8>, Vec<u8>)>;

/// What the operators of all workers begin with.
#[derive(Debug)]
pub(crate) struct Restored {
    recovered: Arc<Recovered>,
    workers: usize,
    /// By operator and worker.
    handed_on: Mutex<BTreeMap<(Node, usize), HandedOn>>,
    /// The number of workers that have loaded everything.
    loaded: Mutex<usize>,
    changed: Condvar,
}

impl Restored {
    pub(crate) fn new(recovered: Arc<Recovered>, workers: usize) -> Restored {
        Restored { recovered, workers, handed_on: Mutex::default(), loaded: Mutex::new(0), changed: Condvar::new() }
    }

    /// Whether the checkpoint has state of that operator.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.recovered.manifest.operators.iter().any(|known| known.name == name)
    }

    /// The watermark of that operator.
    pub(crate) fn watermark(&self, name: &str) -> EventTime {
        let known = self.recovered.manifest.operators.iter().find(|known| known.name == name);
        known.and_then(|known| known.watermark).unwrap_or(EventTime::NONE)
    }

    /// Loads the state of an operator that a worker owns.
    ///
    /// # Errors
    /// When it cannot be read, or is not of the types of the table.
    pub(crate) fn load(
        &self,
        (node, name): (Node, &str),
        worker: usize,
        table: &mut dyn Keep,
        loading: &mut dyn FnMut(&dyn Keep, u64) -> Result<()>,
    ) -> Result<()> {
        let groups = (0..KEY_GROUPS).filter(|group| KeyGroup::from_index(*group as u8).worker(self.workers) == worker);
        let (first, count) = (groups.clone().next().unwrap_or(0), groups.count());
        let mut strays = Strays::new();
        self.recovered.load(name, first..first + count, table, &mut strays, loading)?;
        for ((kept_under, key), (group, state)) in strays {
            table.disown(kept_under, &key);
            let owner = (node, group.worker(self.workers));
            lock(&self.handed_on).entry(owner).or_default().push((key, state));
        }
        Ok(())
    }

    /// What other workers have handed on to the operator of this one.
    pub(crate) fn take(&self, node: Node, worker: usize) -> HandedOn {
        lock(&self.handed_on).remove(&(node, worker)).unwrap_or_default()
    }

    /// Waits until all workers have loaded, or one has failed.
    pub(crate) fn wait_for_all(&self, fault: &Fault) {
        let mut loaded = lock(&self.loaded);
        *loaded += 1;
        self.changed.notify_all();
        while *loaded < self.workers && !fault.is_set() {
            // The time-out is for the fault.
            let waited = self.changed.wait_timeout(loaded, Duration::from_millis(5));
            loaded = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }
}
