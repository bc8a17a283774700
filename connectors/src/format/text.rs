//! UTF-8 text.

use super::{BYTE_ORDER_MARK, Cause, Decode, Encode, Payload, tombstone, without_mark};

/// A value as UTF-8 text. A byte order mark at the beginning is not part of the value, so text that
/// begins with one cannot be written. An empty string is an empty payload, not a tombstone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text;

impl Decode for Text {
    type Value = String;

    fn decode(&self, payload: Option<&[u8]>) -> Result<String, Cause> {
        Ok(std::str::from_utf8(without_mark(payload.ok_or_else(tombstone)?))?.to_owned())
    }

    fn held(&self, _: Option<&[u8]>, text: &String) -> millstream::ByteSize {
        millstream::ByteSize(text.capacity() as u64)
    }
}

impl<V: AsRef<str>> Encode<V> for Text {
    fn encode(&self, value: &V, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        let text = value.as_ref().as_bytes();
        if text.starts_with(BYTE_ORDER_MARK) {
            return Err("the text begins with a byte order mark, which would be stripped when it is read back".into());
        }
        payload.extend_from_slice(text);
        Ok(Payload::Present)
    }
}
