//! JSON, typed by serde.

use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Cause, Decode, Encode, Framing, Payload, tombstone};

/// A value as JSON.
pub struct Json<T>(PhantomData<fn(T) -> T>);

impl<T> Json<T> {
    /// JSON as serde reads and writes `T`.
    pub fn new() -> Json<T> {
        Json(PhantomData)
    }
}

impl<T> Default for Json<T> {
    fn default() -> Self {
        Json::new()
    }
}

impl<T> Clone for Json<T> {
    fn clone(&self) -> Self {
        Json::new()
    }
}

impl<T> fmt::Debug for Json<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Json")
    }
}

impl<T: DeserializeOwned + 'static> Decode for Json<T> {
    type Value = T;

    fn decode(&self, payload: Option<&[u8]>) -> Result<T, Cause> {
        Ok(serde_json::from_slice(payload.ok_or_else(tombstone)?)?)
    }

    fn framing(&self) -> Framing {
        Framing::FilledLines
    }
}

impl<T: Serialize + 'static> Encode<T> for Json<T> {
    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        serde_json::to_writer(payload, value)?;
        Ok(Payload::Present)
    }
}
