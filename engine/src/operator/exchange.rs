//! Moves batches to other workers. Within a process a batch moves as it is, with its admission;
//! between processes its values and stamps would be encoded, and the sender would keep the
//! admission until the epoch is acknowledged.

use std::collections::VecDeque;
use std::hash::Hash;
use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;
use timely::communication::Push;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::channels::pushers::exchange::Distributor;
use timely::dataflow::channels::{ContainerBytes, Message};
use timely::progress::Stamp as EpochStamp;

use crate::words::{Batch, KeyGroup, Stall, Stamp};

/// The bytes of an exchanged batch: a length, then postcard, padded as timely requires.
impl<T: Serialize + DeserializeOwned> ContainerBytes for Batch<T> {
    fn from_bytes(bytes: timely::bytes::arc::Bytes) -> Self {
        // The trait cannot return an error; a peer of this job sends what `into_bytes` wrote.
        decode(&bytes).expect("the peer runs the same pipeline")
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

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Batch<T>, &'static str> {
    let (len, rest) = bytes.split_first_chunk().ok_or("the length is cut off")?;
    let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| "the length is out of range")?;
    let encoded = rest.get(..len).ok_or("the records are cut off")?;
    let (values, stamps): (VecDeque<T>, VecDeque<Stamp>) =
        postcard::from_bytes(encoded).map_err(|_| "the bytes are not records of this type")?;
    if !stamps.is_empty() && stamps.len() != values.len() {
        return Err("some records have no event time");
    }
    Ok(Batch::from_parts(values, stamps))
}

fn encode<T: Serialize>(batch: &Batch<T>) -> Vec<u8> {
    postcard::to_stdvec(&batch.parts()).expect("what can be exchanged can be encoded")
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
        stamp: &EpochStamp<Time>,
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

    fn flush<Time: Clone, P: Push<Message<Time, Batch<T>>>>(&mut self, _: &EpochStamp<Time>, _: &mut [P]) {}

    fn relax(&mut self) {}
}

/// Sends each record to the worker that owns the group of its key, and records that are notices to
/// all workers in turn.
pub(crate) fn by_key<T>(stall: &Stall, is_notice: fn(&T) -> bool) -> DistributorPact<impl FnOnce(usize) -> ByKey<T>> {
    let stall = stall.clone();
    DistributorPact(move |peers| ByKey { peers, stall, is_notice, turn: 0 })
}

/// See [`by_key`].
pub(crate) struct ByKey<T> {
    peers: usize,
    stall: Stall,
    is_notice: fn(&T) -> bool,
    /// The worker that gets the next notice.
    turn: usize,
}

impl<K: Hash, T> Distributor<Batch<(K, T)>> for ByKey<T> {
    fn partition<Time: Clone, P: Push<Message<Time, Batch<(K, T)>>>>(
        &mut self,
        batch: &mut Batch<(K, T)>,
        stamp: &EpochStamp<Time>,
        pushers: &mut [P],
    ) {
        self.stall.depart(batch.len());
        let mut parts: Vec<_> = (0..self.peers).map(|_| Batch::under(batch.admission().cloned())).collect();
        let mut stamps = batch.take_stamps().into_iter();
        for record in batch.take_values() {
            let worker = if (self.is_notice)(&record.1) {
                let turn = self.turn;
                self.turn = (turn + 1) % self.peers;
                turn
            } else {
                KeyGroup::of(&record.0).worker(self.peers)
            };
            parts[worker].append(record, stamps.next());
        }
        for (mut part, pusher) in parts.into_iter().zip(pushers) {
            if !part.is_empty() {
                Message::push_at(&mut part, stamp.clone(), pusher);
            }
        }
    }

    fn flush<Time: Clone, P: Push<Message<Time, Batch<(K, T)>>>>(&mut self, _: &EpochStamp<Time>, _: &mut [P]) {}

    fn relax(&mut self) {}
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};
    use timely::bytes::arc::BytesMut;

    use super::*;
    use crate::words::EventTime;

    type Record = (String, Option<i32>, Vec<u8>);

    fn wire(batch: &Batch<Record>) -> Vec<u8> {
        let mut bytes = Vec::new();
        batch.into_bytes(&mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

        #[test]
        fn a_batch_survives_the_wire(records in vec(any::<(Record, i64, i64)>(), 0..20), has_times in any::<bool>()) {
            let mut batch = Batch::default();
            for (record, time, mark) in records {
                let stamp = Stamp { time: EventTime(time), mark: EventTime(mark) };
                batch.append(record, has_times.then_some(stamp));
            }
            let bytes = wire(&batch);
            prop_assert_eq!(bytes.len(), batch.length_in_bytes());
            prop_assert_eq!(bytes.len() % 8, 0);
            let read: Batch<Record> = ContainerBytes::from_bytes(BytesMut::from(bytes).freeze());
            prop_assert_eq!(read.parts(), batch.parts());
        }

        #[test]
        fn foreign_bytes_are_a_batch_or_an_error(
            records in vec(any::<(Record, i64)>(), 0..5),
            changes in vec((any::<usize>(), any::<u8>()), 0..4),
            cut in any::<usize>(),
        ) {
            let mut batch = Batch::default();
            records.into_iter().for_each(|(record, time)| batch.append(record, Some(Stamp::in_time(EventTime(time)))));
            let mut bytes = wire(&batch);
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            bytes.truncate(cut % (bytes.len() + 1));
            if let Ok(batch) = decode::<Record>(&bytes) {
                let (values, times) = batch.parts();
                prop_assert!(times.is_empty() || times.len() == values.len());
            }
        }

        #[test]
        fn arbitrary_bytes_are_a_batch_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
            drop(decode::<Record>(&bytes));
            // Behind a length that fits.
            drop(decode::<Record>(&[&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat()));
        }
    }
}
