//! Reading topics. In the order of a record: the [`consumer`] fetches, and a worker's [`reader`]
//! polls the queues of its own partitions. [`source`] holds what the readers share. How it gets
//! partitions: `pattern` names topics, `group` answers the consumer group, `start` finds where
//! reading begins, `lease` lets runs that are not members of the group detect each other. Requests
//! that wait for the group, above all commits, are made by `coordinator` on a thread of its own, as
//! `orders` say.

pub(crate) mod partition;
pub(crate) mod consumer;
mod pattern;
pub(crate) mod group;
mod lease;
mod start;
mod coordinator;
mod orders;
pub(crate) mod reader;
mod source;
mod complaints;

pub(crate) use reader::{Incoming, KafkaReader, Read};
pub(crate) use source::KafkaShared;
