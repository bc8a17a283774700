//! UTF-8 text.

use super::{Cause, Decode, Encode, Payload, tombstone};

/// A value as UTF-8 text.
#[derive(Clone, Debug)]
pub struct Text;

impl Decode for Text {
    type Value = String;

    fn decode(&self, payload: Option<&[u8]>) -> Result<String, Cause> {
        Ok(std::str::from_utf8(payload.ok_or_else(tombstone)?)?.to_owned())
    }
}

impl<V: AsRef<str>> Encode<V> for Text {
    fn encode(&self, value: &V, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        payload.extend_from_slice(value.as_ref().as_bytes());
        Ok(Payload::Present)
    }
}
