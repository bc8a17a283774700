//! Promises that need Kafka.

mod formats;
mod groups;
mod limits;
mod mistakes;
mod modes;
mod offsets;
mod outages;
mod positions;
mod receipts;
mod refused;
#[cfg(feature = "registry")]
mod registry;
mod runs;
#[cfg(feature = "tls")]
mod security;
mod starts;
mod state;
mod transactions;
mod windows;

use millstream_connectors::Kafka;

use crate::support::broker::Broker;

pub fn kafka(broker: &Broker) -> Kafka {
    Kafka::new(&broker.address)
}
