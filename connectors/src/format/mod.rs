//! How values stand in bytes. A format decodes what a source reads and encodes what a sink writes; both may fail for a
//! record, which then is malformed. An absent payload is a tombstone, and none is dropped silently: a format either
//! takes it ([`Tombstones`]) or the record is malformed.

mod bytes;
mod json;
mod text;

use std::error::Error as StdError;

pub use bytes::Bytes;
pub use json::Json;
pub use text::Text;

/// Why a record could not be decoded or encoded.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// What can be read.
pub trait Decode: 'static {
    /// What a payload becomes.
    type Value: 'static;

    /// Decodes a payload; `None` is a tombstone.
    ///
    /// # Errors
    /// Why it is malformed.
    fn decode(&self, payload: Option<&[u8]>) -> Result<Self::Value, Cause>;
}

/// What can be written.
#[diagnostic::on_unimplemented(message = "the format `{Self}` cannot encode `{V}`")]
pub trait Encode<V>: 'static {
    /// Appends the payload of a value to `payload`.
    ///
    /// # Errors
    /// Why it cannot be encoded.
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

    fn decode(&self, payload: Option<&[u8]>) -> Result<Option<F::Value>, Cause> {
        payload.map(|payload| self.0.decode(Some(payload))).transpose()
    }
}

impl<V, F: Encode<V>> Encode<Option<V>> for Tombstones<F> {
    fn encode(&self, value: &Option<V>, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        value.as_ref().map_or(Ok(Payload::Tombstone), |value| self.0.encode(value, payload))
    }
}

/// The cause of a tombstone where none is expected.
fn tombstone() -> Cause {
    "the record is a tombstone (it has no value); `with_tombstones()` keeps those".into()
}
