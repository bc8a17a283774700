//! A queue that returns the oldest checkpoint first. Behind an exchange a record of checkpoint `c`
//! may arrive after one of `c + 1`, because another worker had not seen the cut yet. Whatever keeps
//! `c + 1` waiting may itself wait for `c`, so `c` must never be queued behind it.

use std::collections::VecDeque;

use super::CheckpointId;

/// By checkpoint, the oldest first; within a checkpoint in the order of arrival.
#[derive(Debug)]
pub(crate) struct ByCheckpoint<T>(VecDeque<(CheckpointId, VecDeque<T>)>);

impl<T> Default for ByCheckpoint<T> {
    fn default() -> ByCheckpoint<T> {
        ByCheckpoint(VecDeque::new())
    }
}

impl<T> ByCheckpoint<T> {
    /// Adds an item behind all others of its checkpoint.
    pub(crate) fn push(&mut self, checkpoint: CheckpointId, item: T) {
        // There are one or two checkpoints at a time, and most items belong to the newest.
        let index = self.0.iter().rposition(|(own, _)| *own <= checkpoint);
        match index {
            Some(index) if self.0[index].0 == checkpoint => self.0[index].1.push_back(item),
            _ => self.0.insert(index.map_or(0, |index| index + 1), (checkpoint, VecDeque::from([item]))),
        }
    }

    /// Puts an item back in front of all others of its checkpoint.
    pub(crate) fn push_front(&mut self, checkpoint: CheckpointId, item: T) {
        match self.0.iter_mut().find(|(own, _)| *own == checkpoint) {
            Some((_, items)) => items.push_front(item),
            None => self.push(checkpoint, item),
        }
    }

    /// The last item of a checkpoint.
    pub(crate) fn last_mut(&mut self, checkpoint: CheckpointId) -> Option<&mut T> {
        self.0.iter_mut().rev().find(|(own, _)| *own == checkpoint).and_then(|(_, items)| items.back_mut())
    }

    /// The oldest checkpoint, and the first of its items.
    pub(crate) fn front_mut(&mut self) -> Option<(CheckpointId, &mut T)> {
        let (checkpoint, items) = self.0.front_mut()?;
        Some((*checkpoint, items.front_mut().expect("a checkpoint without items is removed")))
    }

    /// The oldest checkpoint.
    pub(crate) fn oldest(&self) -> Option<CheckpointId> {
        self.0.front().map(|(checkpoint, _)| *checkpoint)
    }

    /// Removes the first item of the oldest checkpoint.
    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let (_, items) = self.0.front_mut()?;
        let item = items.pop_front();
        if items.is_empty() {
            self.0.pop_front();
        }
        item
    }

    /// All items, in the order in which they are returned.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|(_, items)| items)
    }

    /// The number of items.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|(_, items)| items.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_checkpoint_comes_first() {
        let [one, two, three] = [1, 2, 3].map(CheckpointId::new);
        let mut queue = ByCheckpoint::default();
        for (checkpoint, item) in [(two, "a"), (three, "b"), (two, "c"), (one, "d"), (one, "e")] {
            queue.push(checkpoint, item);
        }
        queue.push_front(one, "f");
        assert_eq!((queue.len(), queue.oldest()), (6, Some(one)));
        assert_eq!(queue.front_mut(), Some((one, &mut "f")));
        assert_eq!([one, two, three].map(|own| queue.last_mut(own).copied()), [Some("e"), Some("c"), Some("b")]);
        assert_eq!(std::iter::from_fn(|| queue.pop_front()).collect::<String>(), "fdeacb");
        assert_eq!((queue.len(), queue.oldest()), (0, None));
    }
}
