//! A format for which the user says how much memory its values hold.

use millstream::ByteSize;

use super::{Cause, Decode, Encode, Framing, Header, Payload};

/// A format, and how much memory its values hold; created by the `sized` methods.
#[derive(Clone, Debug)]
pub struct Measured<F, V> {
    format: F,
    held: fn(&V) -> ByteSize,
}

impl<F: Decode> Measured<F, F::Value> {
    /// Creates a format whose values hold the memory that `held` returns besides their own size:
    /// what their text, vectors and the like take.
    pub fn new(format: F, held: fn(&F::Value) -> ByteSize) -> Measured<F, F::Value> {
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

    fn held(&self, _: Option<&[u8]>, value: &F::Value) -> ByteSize {
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
