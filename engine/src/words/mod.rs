//! Floor 0: what everybody talks about. Records travel in a [`Batch`], under an [`Admission`] that says when they
//! came and frees their memory when they are done, stamped with an [`Epoch`]. Nothing here moves anything.

mod admission;
mod batch;
mod epoch;
mod error;
mod fingerprint;
mod meter;
mod offsets;
mod quantity;
mod record;
mod thread;
mod time;

pub(crate) use admission::{Admission, Backlog, Budget, Outcome, Stall};
pub use batch::Batch;
pub use epoch::{CheckpointId, Epoch};
pub use error::{Error, ErrorKind, Result};
pub use fingerprint::Fingerprint;
pub(crate) use fingerprint::Print;
pub(crate) use meter::{Latencies, Latency, SourceMeter, StageMeter, as_nanos};
pub use meter::{LatencySnapshot, Percentile, SinkMeter};
pub use offsets::{Offset, Offsets, Partition};
pub use quantity::{Bytes, RECORD_OVERHEAD, Room, Worker};
pub use record::{Headers, Keyed, Malformed, Origin, TimedOut};
pub(crate) use thread::panic_message;
pub use thread::{spawn, spawn_watched};
pub use time::{Clock, EventTime, Moment};
pub(crate) use time::{deadline_after, lock};
