//! How values stand in bytes. A format decodes what a source reads and encodes what a sink writes; both may fail for a
//! record, which then is malformed. An absent payload is a tombstone, and none is dropped silently: a format either
//! takes it ([`Tombstones`]) or the record is malformed.
//!
//! What is written is read back as the same value, or it is refused; where a format has several ways to say one thing, its
//! own page says which value comes of each ([`Json`], [`Csv`], [`Text`]).
//!
//! A format that needs somebody else, such as a schema registry, asks when the job starts ([`Decode::open`],
//! [`Encode::open`]), and its own failure is never a record's: see [`Cause`].

#[cfg(feature = "avro")]
pub mod avro;
mod bytes;
mod compressed;
mod csv;
mod framing;
mod json;
mod keys;
mod measured;
mod memory;
#[cfg(feature = "protobuf")]
pub mod protobuf;
#[cfg(any(feature = "avro", feature = "protobuf"))]
pub mod registry;
mod strict;
mod text;

use std::error::Error as StdError;

use millstream::Error;

pub use bytes::Bytes;
pub use compressed::{Codec, Compressed};
pub use csv::Csv;
pub(crate) use csv::{header, parser};
pub use framing::{Columns, Framing, Header};
pub use json::Json;
pub use measured::Measured;
pub use text::Text;

/// Why a record could not be decoded or encoded. When it is a [`millstream::Error`], it is no fault of the record: the
/// format itself has failed, and that error ends the run.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// What can be read.
pub trait Decode: 'static {
    /// What a payload becomes.
    type Value: 'static;

    /// Called once when the job starts, before anything is decoded; may block.
    ///
    /// # Errors
    /// What is known to be wrong already.
    fn open(&mut self) -> millstream::Result<()> {
        Ok(())
    }

    /// Decodes a payload; `None` is a tombstone. A byte order mark before it is the format's to take off.
    ///
    /// # Errors
    /// Why it is malformed, or the [`millstream::Error`] with which the format has failed.
    fn decode(&self, payload: Option<&[u8]>) -> Result<Self::Value, Cause>;

    /// How records of this format follow each other in a file; by default each is a line.
    fn framing(&self) -> Framing {
        Framing::Lines
    }

    /// Decodes a record of a file whose [`framing`](Decode::framing) gives it a header. By default that is ignored.
    ///
    /// # Errors
    /// Why it is malformed.
    fn decode_under(&self, header: &Header, payload: &[u8]) -> Result<Self::Value, Cause> {
        let _ = header;
        self.decode(Some(payload))
    }

    /// How much memory a decoded value holds beside its own size, `size_of::<Self::Value>()`: text, vectors and the like. The
    /// engine counts it against [`Job::memory`](millstream::Job::memory) for as long as the record is on its way, so it is
    /// better too large than too small. By default it is the length of the payload.
    fn held(&self, payload: Option<&[u8]>, value: &Self::Value) -> millstream::Bytes {
        let _ = value;
        millstream::Bytes(payload.map_or(0, <[u8]>::len) as u64)
    }

    /// As [`decode`](Decode::decode), with what the value [holds](Decode::held); for formats that unpack a payload and would do
    /// so twice.
    ///
    /// # Errors
    /// As `decode`.
    fn decode_sized(&self, payload: Option<&[u8]>) -> Result<(Self::Value, millstream::Bytes), Cause> {
        let value = self.decode(payload)?;
        let held = self.held(payload, &value);
        Ok((value, held))
    }
}

/// What can be written.
#[diagnostic::on_unimplemented(message = "the format `{Self}` cannot encode `{V}`")]
pub trait Encode<V>: 'static {
    /// Called once when the job starts, before anything is encoded; may block. `topic` is where all of it goes, `None`
    /// when each record names its own.
    ///
    /// # Errors
    /// What is known to be wrong already.
    fn open(&mut self, topic: Option<&str>) -> millstream::Result<()> {
        let _ = topic;
        Ok(())
    }

    /// Appends the payload of a value to `payload`.
    ///
    /// # Errors
    /// Why it cannot be encoded, or the [`millstream::Error`] with which the format has failed.
    fn encode(&self, value: &V, payload: &mut Vec<u8>) -> Result<Payload, Cause>;
}

/// Whether a value has a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// It was appended.
    Present,
    /// The value is a tombstone.
    Tombstone,
}

/// A format that keeps tombstones: `None` stands for them.
#[derive(Clone, Debug)]
pub struct Tombstones<F>(pub(crate) F);

impl<F: Decode> Decode for Tombstones<F> {
    type Value = Option<F::Value>;

    fn open(&mut self) -> millstream::Result<()> {
        self.0.open()
    }

    fn decode(&self, payload: Option<&[u8]>) -> Result<Option<F::Value>, Cause> {
        payload.map(|payload| self.0.decode(Some(payload))).transpose()
    }

    fn held(&self, payload: Option<&[u8]>, value: &Option<F::Value>) -> millstream::Bytes {
        value.as_ref().map_or(millstream::Bytes(0), |value| self.0.held(payload, value))
    }

    fn decode_sized(&self, payload: Option<&[u8]>) -> Result<(Option<F::Value>, millstream::Bytes), Cause> {
        let decoded = payload.map(|payload| self.0.decode_sized(Some(payload))).transpose()?;
        Ok(decoded.map_or((None, millstream::Bytes(0)), |(value, held)| (Some(value), held)))
    }
}

impl<V, F: Encode<V>> Encode<Option<V>> for Tombstones<F> {
    fn open(&mut self, topic: Option<&str>) -> millstream::Result<()> {
        self.0.open(topic)
    }

    fn encode(&self, value: &Option<V>, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        value.as_ref().map_or(Ok(Payload::Tombstone), |value| self.0.encode(value, payload))
    }
}

/// UTF-8's, which some programs write before a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A payload of text without the mark before it.
pub(crate) fn without_mark(payload: &[u8]) -> &[u8] {
    payload.strip_prefix(BYTE_ORDER_MARK).unwrap_or(payload)
}

/// The cause of a tombstone where none is expected.
fn tombstone() -> Cause {
    "the record is a tombstone (it has no value); `with_tombstones()` keeps those".into()
}

/// Of a cause what is the record's; what is the format's own ends the run.
pub(crate) fn of_record(cause: Cause) -> millstream::Result<Cause> {
    cause.downcast::<Error>().map_or_else(Ok, |error| Err(*error))
}
