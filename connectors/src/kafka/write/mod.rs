//! Writing topics. In the order of a record: `sink` encodes it, `limits` are what its topic is
//! known not to accept, `producer` sends it and hears of its delivery, and `again` sends alone what
//! was refused in a batch with others.

mod sync;
mod sending;
mod ticket;
mod limits;
mod resend;
mod producer;
mod sink;

pub(crate) use sink::{KafkaOutlet, KafkaWriter, Write};
