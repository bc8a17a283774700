//! How a job is run.

use std::path::PathBuf;
use std::time::Duration;

use crate::epoch::ticker::Pace;
use crate::io::Extent;
use crate::words::{ByteSize, Clock};

/// The options of a job, as its runs use them.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) job: String,
    pub(crate) workers: usize,
    pub(crate) pace: Pace,
    pub(crate) extent: Extent,
    pub(crate) memory: ByteSize,
    /// The memory of state, if it is not a part of `memory`.
    pub(crate) state_memory: Option<ByteSize>,
    pub(crate) clock: Clock,
    pub(crate) restart: Option<Backoff>,
    /// How long a worker may be in one step.
    pub(crate) stuck_after: Duration,
    /// How long a worker without work spins before it parks.
    pub(crate) spin: Duration,
    /// How long revoked partitions are drained.
    pub(crate) drain_within: Duration,
    /// Where what it remembers is kept.
    pub(crate) remembers: Remembers,
    /// The operators and sources of which the state is dropped.
    pub(crate) forgotten: Vec<String>,
    /// The operators that begin without state.
    pub(crate) empty: Vec<String>,
    /// Whether to draw a line on the terminal.
    pub(crate) live: bool,
}

impl Spec {
    /// The memory for records, in a job with state or without.
    pub(crate) fn record_memory(&self, keeps_state: bool) -> ByteSize {
        let is_shared = keeps_state && self.state_memory.is_none();
        if is_shared { ByteSize(self.memory.0 / 2) } else { self.memory }
    }

    /// Whether the state of the operator, or the positions of the source, of that name are dropped.
    pub(crate) fn forgets(&self, name: &str) -> bool {
        self.forgotten.iter().any(|forgotten| forgotten == name)
    }

    /// Whether the operator of that name begins without state.
    pub(crate) fn starts_empty(&self, name: &str) -> bool {
        self.empty.iter().any(|empty| empty == name)
    }
}

/// Where a job keeps what it remembers of its runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Remembers {
    /// It has no state; its sources remember their positions.
    Nothing,
    /// In the memory of the process.
    InMemory,
    /// In a directory of checkpoints.
    InDirectory(PathBuf),
}

/// The pauses between the runs of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}
