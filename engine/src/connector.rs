//! What the author of a connector needs: the traits of sources and sinks, and the types in their
//! methods.
//!
//! A source is a description ([`Source`]) that connects once per run. It then has a per-process
//! half ([`SharedSource`]), which the control thread serves, and a [`Reader`] for each worker,
//! which stays on that worker's thread. A sink is the same with [`Sink`], [`SharedSink`] and
//! [`Writer`]. Nothing that runs on a worker or on the control thread may block; threads of a
//! connector wake them ([`Wake`]).
//!
//! A source of the numbers from 1, which resumes where its job had committed:
//!
//! ```
//! use std::sync::Arc;
//!
//! use millstream::connector::{
//!     End, Offset, OpenSource, Partition, Polled, RECORD_OVERHEAD, ReadBatch, Reader, Room, SharedSource, Source, Wake,
//!     Worker,
//! };
//! use millstream::{ByteSize, Job, Result, collect};
//!
//! struct Numbers {
//!     last: u64,
//! }
//!
//! struct Shared {
//!     start: u64,
//!     last: u64,
//! }
//!
//! impl SharedSource for Shared {}
//!
//! impl Source for Numbers {
//!     type Item = u64;
//!     type Shared = Shared;
//!     type Reader = Next;
//!
//!     fn name(&self) -> String {
//!         "numbers".to_owned()
//!     }
//!
//!     fn connect(self, open: OpenSource) -> Result<Shared> {
//!         let start = open.resume.position(&Partition::new("numbers")).map_or(0, |next| next.0);
//!         Ok(Shared { start, last: self.last })
//!     }
//!
//!     fn reader(shared: &Arc<Shared>, worker: Worker, _: Wake) -> Result<Next> {
//!         // One partition, so one worker reads.
//!         let last = if worker.index == 0 { shared.last } else { 0 };
//!         Ok(Next { next: shared.start, last })
//!     }
//! }
//!
//! struct Next {
//!     next: u64,
//!     last: u64,
//! }
//!
//! impl Reader for Next {
//!     type Item = u64;
//!
//!     fn poll(&mut self, batch: &mut ReadBatch<u64>, room: Room) -> Result<Polled> {
//!         let until = self.last.min(self.next + room.records as u64);
//!         if self.next >= until {
//!             return Ok(Polled::Ended(End::OfTime));
//!         }
//!         batch.extend(self.next + 1..=until, ByteSize(8 + RECORD_OVERHEAD.0));
//!         self.next = until;
//!         batch.read_to(Partition::new("numbers"), Offset(until));
//!         Ok(Polled::More)
//!     }
//! }
//!
//! let results = collect();
//! let sink = results.clone();
//! Job::new("count", move |flow| flow.source(Numbers { last: 3 })?.sink(&sink)).run()?;
//! assert_eq!(results.values(), [1, 2, 3]);
//! # Ok::<(), millstream::Error>(())
//! ```

pub use crate::io::{
    Accepted, Acknowledges, AtStop, Claims, Closing, Committed, Delivery, End, Extent, KeyedSink, Lag, OpenSink,
    OpenSource, Polled, Reader, Resume, Revoked, SharedSink, SharedSource, Sink, SinkEvent, Source, SourceEvent,
    Writer,
};
pub use crate::words::{
    Batch, CheckpointId, Fingerprint, Moment, Offset, Offsets, Partition, RECORD_OVERHEAD, ReadBatch, Room, Wake,
    Worker, spawn, spawn_watched,
};
