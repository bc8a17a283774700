//! Floor 1: what comes and goes. A connector implements [`Source`] and [`Sink`]; each has a half that a process has
//! once ([`SharedSource`], [`SharedSink`]), which lives and dies on the control thread, and a half for each worker
//! ([`Reader`], [`Writer`]). In memory there are [`rows`], [`generate`], [`channel()`] and [`collect`].
//!
//! On a record's path: `Reader` → the dataflow → `Writer`, and back as a [`Delivery`] that is acknowledged.

mod channel;
mod delivery;
mod generate;
mod memory;
mod schedule;
mod sink;
mod source;
mod trial;
mod wake;

pub use channel::{ChannelSource, Receipt, SendError, Sender, Undelivered, channel};
pub use delivery::Delivery;
pub(crate) use delivery::Flight;
pub use generate::{Generate, generate};
pub use memory::{Collected, CollectedWithKeys, Discard, Rows, collect, discard, rows};
pub(crate) use schedule::{Schedule, Spacing};
pub use sink::{Accepted, Acknowledges, KeyedSink, OpenSink, SharedSink, Sink, Writer};
pub use source::{
    AtStop, Change, Claims, Lag, Last, OpenSource, Polled, Progress, Reader, SharedSource, Source, Taken,
};
pub(crate) use trial::{Course, Paced, Taken as TakenBy, Trial, Turn};
pub use wake::Wake;
