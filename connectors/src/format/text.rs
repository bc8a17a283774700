//! UTF-8 text.

use super::{BYTE_ORDER_MARK, Cause, Decode, Encode, Payload, tombstone, without_mark};

/// A value as UTF-8 text. A byte order mark before it is no part of it, so text that begins with one cannot be written. Text
/// without a character is a payload without a byte, and no tombstone.
#[derive(Clone, Debug)]
pub struct Text;

impl Decode for Text {
    type Value = String;

    fn decode(&self, payload: Option<&[u8]>) -> Result<String, Cause> {
        Ok(std::str::from_utf8(without_mark(payload.ok_or_else(tombstone)?))?.to_owned())
    }

    fn held(&self, _: Option<&[u8]>, text: &String) -> millstream::Bytes {
        millstream::Bytes(text.capacity() as u64)
    }
}

impl<V: AsRef<str>> Encode<V> for Text {
    fn encode(&self, value: &V, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        let text = value.as_ref().as_bytes();
        if text.starts_with(BYTE_ORDER_MARK) {
            return Err("the text begins with a byte order mark, which would be no part of it when it is read".into());
        }
        payload.extend_from_slice(text);
        Ok(Payload::Present)
    }
}
