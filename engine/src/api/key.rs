//! What types must be able to do to travel, to be kept, and to be a key.

use std::hash::Hash;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What travels between workers: anything that is `Send` and that serde can write and read.
pub trait Exchange: Send + Serialize + DeserializeOwned + 'static {}

impl<T: Send + Serialize + DeserializeOwned + 'static> Exchange for T {}

/// What is kept as state: anything that serde can write and read.
pub trait State: Serialize + DeserializeOwned + 'static {}

impl<T: Serialize + DeserializeOwned + 'static> State for T {}

/// The key of a stream: it travels, and is hashed and compared.
///
/// Its `Hash` decides which worker owns the key, so it should not change between versions of a
/// program.
pub trait Key: Exchange + Hash + Eq + Clone {}

impl<T: Exchange + Hash + Eq + Clone> Key for T {}
