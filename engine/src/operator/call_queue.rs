//! Records whose calls are not made yet, in the order in which they may be made.
//!
//! Without keys that is the order in which they came, the oldest checkpoint first. With keys, the
//! records of a key are in a *lane*, of which one is called at a time: a record waits until the one
//! before it is answered, also through its retries, and meanwhile the lanes beside it go on.
//!
//! A record of an older checkpoint never waits for the retry of a newer one, nor for room of a
//! writer that a newer one needs: the newer one may itself wait for the older checkpoint.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::rc::Rc;
use std::time::Instant;

use crate::words::{ByCheckpoint, CheckpointId};

use super::attempt::RecordId;

/// A record whose call is to be made.
pub(super) struct Waiting<T> {
    pub(super) id: RecordId,
    pub(super) value: T,
    /// The number of attempts that have failed.
    pub(super) failed: u32,
}

/// The lane of a key: its hash. Two keys with one hash share a lane, and wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneId(pub(crate) u64);

/// The lane of a record.
pub(crate) type LaneOf<T> = Rc<dyn Fn(&T) -> LaneId>;

/// The queue of a stage.
pub(super) struct CallQueue<T> {
    lane_of: Option<LaneOf<T>>,
    /// Without keys: all records.
    waiting: ByCheckpoint<Waiting<T>>,
    /// With keys: those of which a record waits, is called, or waits for its retry.
    lanes: HashMap<LaneId, Lane<T>>,
    /// Lanes whose first record may be called. A lane counts only under the checkpoint under which
    /// it is offered.
    offered: ByCheckpoint<LaneId>,
    /// The number of lanes that are offered.
    offers: usize,
    /// Records whose calls have failed, by the time of their retry and the number of the call.
    paused: BTreeMap<(Instant, u64), Waiting<T>>,
}

/// The records of a key.
struct Lane<T> {
    waiting: ByCheckpoint<Waiting<T>>,
    is_called: bool,
    /// The checkpoints of its records that wait for a retry: at most one of each checkpoint.
    paused: Vec<CheckpointId>,
    /// The checkpoint under which it is offered.
    offered: Option<CheckpointId>,
}

impl<T> Default for Lane<T> {
    fn default() -> Lane<T> {
        Lane { waiting: ByCheckpoint::default(), is_called: false, paused: Vec::new(), offered: None }
    }
}

impl<T> Lane<T> {
    /// The checkpoint of its first record, if that may be called now.
    fn callable(&self) -> Option<CheckpointId> {
        let first = self.waiting.oldest().filter(|_| !self.is_called)?;
        self.paused.iter().all(|paused| *paused > first).then_some(first)
    }

    fn is_empty(&self) -> bool {
        self.waiting.oldest().is_none() && !self.is_called && self.paused.is_empty()
    }
}

impl<T> CallQueue<T> {
    pub(super) fn new(lane_of: Option<LaneOf<T>>) -> CallQueue<T> {
        CallQueue {
            lane_of,
            waiting: ByCheckpoint::default(),
            lanes: HashMap::new(),
            offered: ByCheckpoint::default(),
            offers: 0,
            paused: BTreeMap::new(),
        }
    }

    /// Adds a record, behind those of its checkpoint and key.
    pub(super) fn push(&mut self, (checkpoint, group): (CheckpointId, u64), index: usize, value: T) {
        let lane = self.lane_of.as_ref().map(|lane_of| lane_of(&value));
        let id = RecordId { group: (checkpoint, group), index, lane };
        let record = Waiting { id, value, failed: 0 };
        match lane {
            None => self.waiting.push(checkpoint, record),
            Some(lane) => {
                self.lanes.entry(lane).or_default().waiting.push(checkpoint, record);
                self.offer(lane, ByCheckpoint::push);
            }
        }
    }

    /// The record whose call may be made next: its checkpoint, and whether it is a retry.
    pub(super) fn front(&mut self) -> Option<(CheckpointId, bool)> {
        if self.lane_of.is_none() {
            return self.waiting.front_mut().map(|(checkpoint, record)| (checkpoint, record.failed > 0));
        }
        loop {
            let (checkpoint, lane) = self.offered.front_mut()?;
            let lane = self.lanes.get_mut(lane).filter(|lane| lane.offered == Some(checkpoint));
            if let Some((checkpoint, record)) = lane.and_then(|lane| lane.waiting.front_mut()) {
                return Some((checkpoint, record.failed > 0));
            }
            // It was offered again, under an older checkpoint.
            self.offered.pop_front();
        }
    }

    /// Takes that record, to make its call.
    pub(super) fn pop(&mut self) -> Option<Waiting<T>> {
        self.front()?;
        if self.lane_of.is_none() {
            return self.waiting.pop_front();
        }
        let lane = self.lanes.get_mut(&self.offered.pop_front()?)?;
        (lane.is_called, lane.offered) = (true, None);
        self.offers -= 1;
        lane.waiting.pop_front()
    }

    /// A call is answered: the next record of its key may be called.
    pub(super) fn answered(&mut self, id: RecordId) {
        let Some(lane) = id.lane else { return };
        self.lanes.entry(lane).or_default().is_called = false;
        self.offer(lane, ByCheckpoint::push);
    }

    /// A call has failed, and its record waits for a retry.
    pub(super) fn pause(&mut self, until: Instant, call: u64, record: Waiting<T>) {
        let RecordId { group: (checkpoint, _), lane, .. } = record.id;
        self.paused.insert((until, call), record);
        if let Some(lane) = lane {
            let own = self.lanes.entry(lane).or_default();
            own.is_called = false;
            own.paused.push(checkpoint);
            self.offer(lane, ByCheckpoint::push);
        }
    }

    /// When the first of the pauses is over.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.paused.first_key_value().map(|((until, _), _)| *until)
    }

    /// Moves records whose pause is over to the front: their calls are made before those of records
    /// that came later.
    pub(super) fn resume(&mut self, now: Instant) {
        let later = self.paused.split_off(&(now, u64::MAX));
        for record in mem::replace(&mut self.paused, later).into_values().rev() {
            let RecordId { group: (checkpoint, _), lane, .. } = record.id;
            let Some(lane) = lane else {
                self.waiting.push_front(checkpoint, record);
                continue;
            };
            let own = self.lanes.entry(lane).or_default();
            own.paused.retain(|paused| *paused != checkpoint);
            own.waiting.push_front(checkpoint, record);
            self.offer(lane, ByCheckpoint::push_front);
        }
    }

    /// Offers a lane if its first record may be called, and forgets it if it is empty.
    fn offer(&mut self, id: LaneId, push: fn(&mut ByCheckpoint<LaneId>, CheckpointId, LaneId)) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        if lane.is_empty() {
            self.lanes.remove(&id);
            return;
        }
        let Some(checkpoint) = lane.callable().filter(|checkpoint| lane.offered != Some(*checkpoint)) else { return };
        if lane.offered.replace(checkpoint).is_none() {
            self.offers += 1;
        }
        push(&mut self.offered, checkpoint, id);
    }

    /// The number of calls that could be made now, were there no limit.
    pub(super) fn len(&self) -> usize {
        if self.lane_of.is_none() { self.waiting.len() } else { self.offers }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    /// Numbers, of which the last digit is the key.
    fn queue() -> CallQueue<u64> {
        CallQueue::new(Some(Rc::new(|n| LaneId(n % 10))))
    }

    fn take(queue: &mut CallQueue<u64>) -> Vec<Waiting<u64>> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    fn values(taken: &[Waiting<u64>]) -> Vec<u64> {
        taken.iter().map(|record| record.value).collect()
    }

    fn checkpoints() -> [CheckpointId; 2] {
        [1, 2].map(CheckpointId::new)
    }

    #[test]
    fn an_older_checkpoint_waits_for_no_retry_of_a_newer_one_and_for_none_that_is_not_called_yet() {
        let (mut queue, now, [one, two]) = (queue(), Instant::now(), checkpoints());
        queue.push((two, 0), 0, 11);
        queue.push((two, 0), 1, 21);
        assert_eq!((queue.front(), queue.len()), (Some((two, false)), 1));
        queue.push((one, 1), 0, 31);
        assert_eq!((queue.front(), queue.len()), (Some((one, false)), 1), "it goes ahead");
        let first = take(&mut queue);
        assert_eq!(values(&first), [31], "one at a time");
        queue.answered(first[0].id);
        let second = take(&mut queue).pop().unwrap();
        assert_eq!(second.value, 11);
        queue.push((one, 2), 0, 41);
        assert_eq!(queue.front(), None, "a call that is made goes on");
        queue.pause(now, 0, second);
        let third = take(&mut queue);
        assert_eq!(values(&third), [41], "ahead of the retry");
        queue.resume(now);
        assert_eq!(queue.front(), None);
        queue.answered(third[0].id);
        let fourth = take(&mut queue);
        assert_eq!(values(&fourth), [11]);
        queue.answered(fourth[0].id);
        let fifth = take(&mut queue);
        assert_eq!(values(&fifth), [21]);
        queue.answered(fifth[0].id);
        assert!(queue.lanes.is_empty() && queue.len() == 0, "nothing is left of the key");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        /// Records of two checkpoints and few keys; calls are answered or fail in any order.
        #[test]
        fn each_record_is_called_one_at_a_time_by_key_and_in_order_within_a_checkpoint(
            steps in vec((0..4_u8, any::<u8>()), 1..200),
        ) {
            let (mut queue, now, [one, two]) = (queue(), Instant::now(), checkpoints());
            let (mut called, mut answered, mut next) = (Vec::<Waiting<u64>>::new(), Vec::new(), 0);
            for (call, (step, any)) in (0_u64..).zip(steps.into_iter().chain([(4, 0)])) {
                match step {
                    0 => {
                        queue.push((if any % 4 == 0 { one } else { two }, next), 0, next * 10 + u64::from(any % 3));
                        next += 1;
                    }
                    1 => called.extend(queue.pop()),
                    2 if !called.is_empty() => {
                        let record = called.swap_remove(usize::from(any) % called.len());
                        queue.answered(record.id);
                        answered.push((record.id.group.0, record.value));
                    }
                    3 if !called.is_empty() => {
                        let record = called.swap_remove(usize::from(any) % called.len());
                        queue.pause(now + Duration::from_nanos(any.into()), call, Waiting { failed: 1, ..record });
                    }
                    4 => while answered.len() < next as usize {
                        queue.resume(now + Duration::from_secs(1));
                        called.extend(queue.pop());
                        let record = called.pop().expect("each record is called in the end");
                        queue.answered(record.id);
                        answered.push((record.id.group.0, record.value));
                    },
                    _ => queue.resume(now + Duration::from_nanos(any.into())),
                }
                let lanes: BTreeSet<u64> = called.iter().map(|record| record.value % 10).collect();
                prop_assert_eq!(lanes.len(), called.len(), "one at a time");
                let offered = queue.lanes.values().filter(|lane| lane.offered.is_some()).count();
                prop_assert_eq!(queue.len(), offered);
            }
            for key in 0..3 {
                for checkpoint in [one, two] {
                    let own = answered.iter().filter(|(own, value)| *own == checkpoint && value % 10 == key);
                    prop_assert!(own.map(|(_, value)| value).is_sorted());
                }
            }
            prop_assert!(queue.lanes.is_empty());
        }
    }
}
