//! Floor 0: the words that all other floors use. Records travel in a [`Batch`], stamped with an
//! [`Epoch`], under an [`Admission`] that knows when they arrived and frees their memory when they
//! are done. Also here: how threads start and how they wake each other.

pub(crate) mod sync;
mod thread;

mod error;
mod quantity;
mod time;

mod epoch;
mod group;
mod offsets;
mod pane;
mod policy;
mod record;
mod stamp;

mod read_batch;
mod batch;
mod batch_values;
mod admission;
mod budget;
mod state_budget;
mod stall;
mod by_checkpoint;
mod flight;

mod bell;
mod wake;

mod fingerprint;
mod meter;

pub(crate) use admission::{Admission, HeldReceipts, Outcome};
pub use batch::Batch;
pub use batch_values::BatchValues;
pub(crate) use bell::Bell;
pub(crate) use budget::Budget;
pub(crate) use by_checkpoint::ByCheckpoint;
pub use epoch::CheckpointId;
pub(crate) use epoch::Epoch;
pub use error::{Error, ErrorKind, Result};
pub use fingerprint::Fingerprint;
pub(crate) use fingerprint::Print;
pub(crate) use flight::Flight;
pub(crate) use group::{KEY_GROUPS, KeyGroup, stable_hash};
pub(crate) use meter::{
    CheckpointMeter, Gauge, Latencies, Latency, ShownMark, SinkMeter, SourceMeter, StageMeter, as_nanos,
};
pub use meter::{LatencySnapshot, Percentile};
pub(crate) use offsets::PartitionTime;
pub use offsets::{Offset, Offsets, Partition};
pub use pane::{Late, Lateness, Pane, Span};
pub use policy::WatermarkPolicy;
pub use quantity::{ByteSize, RECORD_OVERHEAD, Room, Worker};
pub use read_batch::ReadBatch;
pub use record::{Change, Headers, Keyed, Malformed, Origin, TimedOut};
pub(crate) use stall::{Backlog, Stall};
pub(crate) use stamp::Stamp;
pub(crate) use state_budget::StateBudget;
pub(crate) use sync::lock;
pub(crate) use thread::panic_message;
pub use thread::{spawn, spawn_watched};
pub use time::{Clock, EventTime, Moment, WallTime};
pub(crate) use time::{deadline_after, unique_name};
pub use wake::Wake;
