//! A format whose values' memory the user knows better.

use millstream::Bytes;

use super::{Cause, Decode, Encode, Framing, Header, Payload};

/// A format, and how much memory its values hold; what `sized` makes of one.
#[derive(Clone, Debug)]
pub struct Measured<F, V> {
    format: F,
    held: fn(&V) -> Bytes,
}

impl<F: Decode> Measured<F, F::Value> {
    /// Values of a format that hold so much beside their own size: what their text, vectors and the like take.
    pub fn new(format: F, held: fn(&F::Value) -> Bytes) -> Measured<F, F::Value> {
        Measured { format, held }
    }
}

impl<F: Decode> Decode for Measured<F, F::Value> {
    type Value = F::Value;

    fn open(&mut self) -> millstream::Result<()> {
        self.format.open()
    }

    fn decode(&self, payload: Option<&[u8]>) -> Result<F::Value, Cause> {
        self.format.decode(payload)
    }

    fn framing(&self) -> Framing {
        self.format.framing()
    }

    fn decode_under(&self, header: &Header, payload: &[u8]) -> Result<F::Value, Cause> {
        self.format.decode_under(header, payload)
    }

    fn held(&self, _: Option<&[u8]>, value: &F::Value) -> Bytes {
        (self.held)(value)
    }
}

impl<V, D, F: Encode<V>> Encode<V> for Measured<F, D>
where
    D: 'static,
{
    fn open(&mut self, topic: Option<&str>) -> millstream::Result<()> {
        self.format.open(topic)
    }

    fn encode(&self, value: &V, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        self.format.encode(value, payload)
    }
}
