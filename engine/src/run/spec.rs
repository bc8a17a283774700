//! How a job is run.

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
    pub(crate) clock: Clock,
    pub(crate) restart: Option<Backoff>,
    /// How long a worker may be in one step.
    pub(crate) stuck_after: Duration,
    /// How long a worker without work spins before it parks.
    pub(crate) spin: Duration,
    /// How long revoked partitions are drained.
    pub(crate) drain_within: Duration,
    /// Whether state may live as long as the run only.
    pub(crate) state_in_memory: bool,
    /// Whether to draw a line on the terminal.
    pub(crate) live: bool,
}

/// The pauses between the runs of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}
