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
//! `kafka` is on by default. Without default features nothing of it is compiled, and librdkafka
//! neither.
//!
//! | feature | adds |
//! |---|---|
//! | `kafka` | [`Kafka`]: topics as sources and sinks; builds librdkafka, which takes a minute or two |
//! | `files` | `files`: the files of a directory as a source |
//! | `socket` | `lines`: lines from a socket as a source |
//! | `console` | `console`: records on standard output, as lines, tables or batches |
//! | `page` | `report::page`: a comparison as an HTML page with a plot |
//! | `avro` | `Avro`, with the ids of a schema registry or bare |
//! | `protobuf` | `Protobuf`, likewise |
//! | `exact-numbers` | numbers in a `serde_json::Value` keep their digits, in the whole program; read [`Json`] before you enable it |
//! | `tls` | TLS and SASL (SCRAM, OAUTHBEARER) to brokers, https to a registry (`Registry::tls`); builds OpenSSL from source, which needs perl and takes minutes |

#[cfg(feature = "console")]
mod console;
#[cfg(feature = "files")]
pub mod file;
pub mod format;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod report;
#[cfg(any(feature = "kafka", feature = "avro", feature = "protobuf"))]
#[cfg_attr(not(feature = "kafka"), allow(dead_code, unused_imports, reason = "a registry uses a part of it"))]
pub mod security;
#[cfg(feature = "socket")]
mod socket;

#[cfg(feature = "console")]
pub use console::{Console, ConsoleBatches, ConsoleTable, console};
#[cfg(feature = "files")]
pub use file::{FileOrder, Files, WhenDone, files};
#[cfg(feature = "avro")]
pub use format::avro::Avro;
#[cfg(feature = "protobuf")]
pub use format::protobuf::Protobuf;
#[cfg(any(feature = "avro", feature = "protobuf"))]
pub use format::registry::Registry;
pub use format::{Codec, Compressed, Csv, Decode, Encode, Json};
#[cfg(feature = "kafka")]
pub use kafka::{
    Compression, DeadLetter, EndAt, GroupProtocol, Isolation, Kafka, Message, OnDataLoss, OnRefused, Partitioner,
    Profile, Records, Sasl, StartAt, Token, Topic,
};
#[cfg(any(feature = "kafka", feature = "avro", feature = "protobuf"))]
pub use security::{Secret, Tls};
#[cfg(feature = "socket")]
pub use socket::{Lines, lines};

/// Locks a mutex, even after a thread panicked while it held it: what is guarded here is valid at
/// every step.
#[cfg(any(
    feature = "kafka",
    feature = "files",
    feature = "socket",
    feature = "console",
    feature = "avro",
    feature = "protobuf"
))]
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
