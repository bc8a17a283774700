//! Moves batches to other workers. Within a process a batch moves as it is, with its admission;
//! between processes its values and times would be encoded, and the sender would keep the admission
//! until the epoch is acknowledged.

use std::collections::VecDeque;
use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::communication::Push;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::channels::pushers::exchange::Distributor;
use timely::dataflow::channels::{ContainerBytes, Message};
use timely::progress::Stamp;

use crate::words::{Batch, EventTime, Stall};

/// The bytes of an exchanged batch: a length, then postcard, padded as timely requires.
impl<T: Serialize + DeserializeOwned> ContainerBytes for Batch<T> {
    fn from_bytes(bytes: timely::bytes::arc::Bytes) -> Self {
        let (len, rest) = bytes.split_at(8);
        let len = u64::from_le_bytes(len.try_into().expect("eight bytes were split off")) as usize;
        // The trait cannot return an error; a peer of this job sends what `into_bytes` wrote.
        let (values, times): (VecDeque<T>, VecDeque<i64>) =
            postcard::from_bytes(&rest[..len]).expect("the peer runs the same pipeline");
        Batch::from_parts(values, times.into_iter().map(EventTime).collect())
    }

    fn length_in_bytes(&self) -> usize {
        8 + encode(self).len().next_multiple_of(8)
    }

    fn into_bytes<W: Write>(&self, writer: &mut W) {
        let encoded = encode(self);
        let padding = encoded.len().next_multiple_of(8) - encoded.len();
        for part in [&(encoded.len() as u64).to_le_bytes()[..], &encoded, &[0; 8][..padding]] {
            writer.write_all(part).expect("the buffer was made for `length_in_bytes`");
        }
    }
}

fn encode<T: Serialize>(batch: &Batch<T>) -> Vec<u8> {
    let (values, times) = batch.parts();
    let times: Vec<i64> = times.iter().map(|time| time.0).collect();
    postcard::to_stdvec(&(values, times)).expect("what can be exchanged can be encoded")
}

/// Spreads records evenly over the workers, in turn. The order of records is lost.
pub(crate) fn in_turn(stall: &Stall) -> DistributorPact<impl FnOnce(usize) -> InTurn> {
    let stall = stall.clone();
    DistributorPact(|peers| InTurn { peers, turn: 0, stall })
}

/// See [`in_turn`].
pub(crate) struct InTurn {
    peers: usize,
    turn: usize,
    stall: Stall,
}

impl<T> Distributor<Batch<T>> for InTurn {
    fn partition<Time: Clone, P: Push<Message<Time, Batch<T>>>>(
        &mut self,
        batch: &mut Batch<T>,
        stamp: &Stamp<Time>,
        pushers: &mut [P],
    ) {
        self.stall.depart(batch.len());
        let share = batch.len().div_ceil(self.peers).max(1);
        while !batch.is_empty() {
            let rest = batch.split_off(share.min(batch.len()));
            Message::push_at(batch, stamp.clone(), &mut pushers[self.turn]);
            *batch = rest;
            self.turn = (self.turn + 1) % self.peers;
        }
    }

    fn flush<Time: Clone, P: Push<Message<Time, Batch<T>>>>(&mut self, _: &Stamp<Time>, _: &mut [P]) {}

    fn relax(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_survives_the_wire() {
        let mut batch = Batch::default();
        batch.append("one".to_owned(), Some(EventTime(1)));
        batch.append("two".to_owned(), Some(EventTime(-2)));
        let mut bytes = Vec::new();
        batch.into_bytes(&mut bytes);
        assert_eq!(bytes.len(), batch.length_in_bytes());
        let read: Batch<String> = ContainerBytes::from_bytes(timely::bytes::arc::BytesMut::from(bytes).freeze());
        assert_eq!(read.parts(), batch.parts());
    }
}
