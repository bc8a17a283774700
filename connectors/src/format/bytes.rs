//! Raw bytes.

use super::{Cause, Decode, Encode, Payload, tombstone};

/// Raw bytes, unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes;

impl Decode for Bytes {
    type Value = Vec<u8>;

    fn decode(&self, payload: Option<&[u8]>) -> Result<Vec<u8>, Cause> {
        Ok(payload.ok_or_else(tombstone)?.to_vec())
    }

    fn held(&self, _: Option<&[u8]>, bytes: &Vec<u8>) -> millstream::ByteSize {
        millstream::ByteSize(bytes.capacity() as u64)
    }
}

impl<V: AsRef<[u8]>> Encode<V> for Bytes {
    fn encode(&self, value: &V, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        payload.extend_from_slice(value.as_ref());
        Ok(Payload::Present)
    }
}
