//! Sources and sinks for [millstream]: Kafka, with JSON, text and bytes as formats; lines from a socket; the console.
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
//! `tls` adds TLS and SASL/SCRAM to brokers. It builds OpenSSL from source, which wants perl and takes minutes, so it is
//! off by default.

pub mod console;
pub mod format;
pub mod kafka;
pub mod report;
pub mod socket;

pub use console::console;
pub use format::{Decode, Encode};
pub use kafka::{
    Compression, DataLoss, DeadLetter, End, GroupProtocol, Isolation, Kafka, Message, OnRefused, Partitioner, Profile,
    Records, RecordsWithMetadata, StartAt, Topic,
};
pub use socket::lines;
