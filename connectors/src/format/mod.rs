//! How values are represented as bytes. A format decodes what a source reads and encodes what a
//! sink writes. Either can fail for a record; that record is then malformed. An absent payload is a
//! tombstone. Tombstones are never dropped silently: a format either takes them ([`Tombstones`]) or
//! the record is malformed.
//!
//! A value is read back as it was written, or writing it is refused. Where a format can express the
//! same thing in several ways, its own page says which value each of them becomes ([`Json`],
//! [`Csv`], [`Text`]).
//!
//! A format that depends on another service, such as a schema registry, contacts it when the job
//! starts ([`Decode::open`], [`Encode::open`]). A failure of the format itself never makes a record
//! malformed: see [`Cause`].

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

pub use bytes::Bytes;
pub use compressed::{Codec, Compressed};
pub use csv::Csv;
#[cfg(feature = "files")]
pub(crate) use csv::{header, parser};
pub use framing::{Columns, Framing, Header};
pub use json::Json;
pub use measured::Measured;
pub use text::Text;

/// Why a record could not be decoded or encoded. A [`millstream::Error`] is not the record's fault:
/// the format itself has failed, and that error ends the run.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// A format that can be read: it decodes payloads into values.
pub trait Decode: 'static {
    /// The type that a payload is decoded into.
    type Value: 'static;

    /// Called once when the job starts, before the first record is decoded; may block.
    ///
    /// # Errors
    /// If the format is already known not to work.
    fn open(&mut self) -> millstream::Result<()> {
        Ok(())
    }

    /// Decodes a payload; `None` is a tombstone. The format strips a byte order mark itself.
    ///
    /// # Errors
    /// Why the record is malformed, or the [`millstream::Error`] if the format itself has failed.
    fn decode(&self, payload: Option<&[u8]>) -> Result<Self::Value, Cause>;

    /// How records of this format are separated in a file; by default each is a line.
    fn framing(&self) -> Framing {
        Framing::Lines
    }

    /// Decodes a record of a file whose [`framing`](Decode::framing) includes a header. By default
    /// the header is ignored.
    ///
    /// # Errors
    /// Why it is malformed.
    fn decode_under(&self, header: &Header, payload: &[u8]) -> Result<Self::Value, Cause> {
        let _ = header;
        self.decode(Some(payload))
    }

    /// How much memory a decoded value holds besides its own size, `size_of::<Self::Value>()`:
    /// text, vectors and the like. The engine counts it against
    /// [`Job::memory`](millstream::Job::memory) while the record is in flight, so an estimate
    /// should rather be too large than too small. By default it is the length of the payload.
    fn held(&self, payload: Option<&[u8]>, value: &Self::Value) -> millstream::ByteSize {
        let _ = value;
        millstream::ByteSize(payload.map_or(0, <[u8]>::len) as u64)
    }

    /// As [`decode`](Decode::decode), together with what the value [holds](Decode::held); for
    /// formats that would otherwise unpack a payload twice.
    ///
    /// # Errors
    /// As `decode`.
    fn decode_sized(&self, payload: Option<&[u8]>) -> Result<(Self::Value, millstream::ByteSize), Cause> {
        let value = self.decode(payload)?;
        let held = self.held(payload, &value);
        Ok((value, held))
    }
}

/// A format that can be written: it encodes values of type `V` into payloads.
#[diagnostic::on_unimplemented(message = "the format `{Self}` cannot encode `{V}`")]
pub trait Encode<V>: 'static {
    /// Called once when the job starts, before the first value is encoded; may block. `topic` is
    /// the topic that all values go to, or `None` if each record names its own.
    ///
    /// # Errors
    /// If the format is already known not to work.
    fn open(&mut self, topic: Option<&str>) -> millstream::Result<()> {
        let _ = topic;
        Ok(())
    }

    /// Appends the payload of a value to `payload`.
    ///
    /// # Errors
    /// Why the value cannot be encoded, or the [`millstream::Error`] if the format itself has
    /// failed.
    fn encode(&self, value: &V, payload: &mut Vec<u8>) -> Result<Payload, Cause>;
}

/// Whether a value has a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Payload {
    /// The payload was appended.
    Present,
    /// The value is a tombstone.
    Tombstone,
}

/// A format that keeps tombstones as `None`.
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

    fn held(&self, payload: Option<&[u8]>, value: &Option<F::Value>) -> millstream::ByteSize {
        value.as_ref().map_or(millstream::ByteSize(0), |value| self.0.held(payload, value))
    }

    fn decode_sized(&self, payload: Option<&[u8]>) -> Result<(Option<F::Value>, millstream::ByteSize), Cause> {
        let decoded = payload.map(|payload| self.0.decode_sized(Some(payload))).transpose()?;
        Ok(decoded.map_or((None, millstream::ByteSize(0)), |(value, held)| (Some(value), held)))
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

/// The byte order mark of UTF-8, which some programs write at the beginning of a text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A payload of text without its byte order mark.
pub(crate) fn without_mark(payload: &[u8]) -> &[u8] {
    payload.strip_prefix(BYTE_ORDER_MARK).unwrap_or(payload)
}

/// The cause for a tombstone that the format does not take.
fn tombstone() -> Cause {
    "the record is a tombstone (it has no value); use `with_tombstones()` to keep tombstones".into()
}

/// Returns a cause that is the record's fault; a failure of the format itself is an error that ends
/// the run.
#[cfg(any(feature = "kafka", feature = "files"))]
pub(crate) fn of_record(cause: Cause) -> millstream::Result<Cause> {
    cause.downcast::<millstream::Error>().map_or_else(Ok, |error| Err(*error))
}
