//! Floor 1: inputs and outputs. A connector implements [`Source`] and [`Sink`]. Each has a
//! per-process half ([`SharedSource`], [`SharedSink`]), which the control thread serves, and a half
//! for each worker ([`Reader`], [`Writer`]). The connectors of this crate work in memory: [`rows`],
//! [`generate`], [`channel()`] and [`collect`].
//!
//! On a record's path: `Reader` → the dataflow → `Writer`, and back as a [`Delivery`] that is
//! acknowledged.

mod source;
mod sink;
mod delivery;

mod schedule;
mod memory;
mod generate;
mod channel;

pub use channel::{ChannelSource, Receipt, SendError, Sender, Undelivered, channel};
pub use delivery::Delivery;
pub use generate::{Generate, generate};
pub use memory::{Collected, CollectedWithKeys, Discard, Rows, collect, discard, rows};
pub(crate) use schedule::{Schedule, Spacing, Timer, together};
pub use sink::{Accepted, Acknowledges, KeyedSink, OpenSink, SharedSink, Sink, SinkEvent, Writer};
pub use source::{
    AtStop, Claims, Closing, Committed, End, Extent, Lag, OpenSource, Polled, Reader, Resume, Revoked, SharedSource,
    Source, SourceEvent,
};
