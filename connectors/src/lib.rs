//! Sources and sinks for [millstream]: Kafka, the files of a directory, lines from a socket, the
//! console. Formats are JSON, CSV, text, bytes, Avro and Protobuf.
//!
//! ```no_run
//! use millstream::{Job, Result};
//! use millstream_connectors::Kafka;
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize)]
//! struct Order { customer: u64, cents: i64 }
//! #[derive(Serialize)]
//! struct Invoice { customer: u64, amount: f64 }
//!
//! fn main() -> Result<()> {
//!     let kafka = Kafka::new("localhost:9092");
//!     Job::new("invoices", move |flow| {
//!         flow.source(kafka.topic("orders").json::<Order>())?
//!             .or_stop()
//!             .filter(|order| order.cents > 0)
//!             .map(|order| Invoice { customer: order.customer, amount: order.cents as f64 / 100.0 })
//!             .sink_by(|invoice| invoice.customer.to_string(), kafka.topic("invoices").json())
//!     })
//!     .run()?;
//!     Ok(())
//! }
//! ```
//!
//! # Features
//!
//! All features are off by default.
//!
//! | feature | adds |
//! |---|---|
//! | `avro` | `Avro`, with the ids of a schema registry or bare |
//! | `protobuf` | `Protobuf`, likewise |
//! | `exact-numbers` | numbers in a `serde_json::Value` keep their digits, in the whole program; read [`Json`] before you enable it |
//! | `tls` | TLS and SASL (SCRAM, OAUTHBEARER) to brokers, https to a registry (`Registry::tls`); builds OpenSSL from source, which needs perl and takes minutes |

pub mod console;
pub mod file;
pub mod format;
pub mod kafka;
pub mod report;
pub mod socket;

pub use console::console;
pub use file::{FileOrder, Files, WhenDone, files};
#[cfg(feature = "avro")]
pub use format::avro::Avro;
#[cfg(feature = "protobuf")]
pub use format::protobuf::Protobuf;
#[cfg(any(feature = "avro", feature = "protobuf"))]
pub use format::registry::Registry;
pub use format::{Codec, Compressed, Csv, Decode, Encode, Json};
pub use kafka::{
    Compression, DataLoss, DeadLetter, End, GroupProtocol, Isolation, Kafka, Message, OnRefused, Partitioner, Profile,
    Records, RecordsWithMetadata, Sasl, Secret, StartAt, Tls, Token, Topic,
};
pub use socket::lines;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, even after a thread panicked while it held it: what is guarded here is valid at
/// every step.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
