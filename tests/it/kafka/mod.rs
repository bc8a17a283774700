//! Promises that need Kafka.

mod formats;
mod groups;
mod mistakes;
mod offsets;
mod outages;
mod positions;
mod receipts;
mod refused;
mod transactions;

use millstream_connectors::Kafka;

use crate::support::broker::Broker;

fn kafka(broker: &Broker) -> Kafka {
    Kafka::new(&broker.address)
}
