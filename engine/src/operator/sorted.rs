//! The rows of a table in an order, at the end of each checkpoint.

use std::collections::VecDeque;

use crate::state::keep::Held;
use crate::words::{Batch, Result, Stamp};

use super::keyed::Operate;

/// Collects the rows of a checkpoint, and hands them on in order.
pub(crate) struct Sorted<T, F> {
    compare: F,
    limit: usize,
    rows: Vec<T>,
    sorted: Option<std::vec::IntoIter<T>>,
}

impl<T, F: Fn(&T, &T) -> std::cmp::Ordering> Sorted<T, F> {
    pub(crate) fn new(compare: F, limit: usize) -> Sorted<T, F> {
        Sorted { compare, limit, rows: Vec::new(), sorted: None }
    }
}

impl<T: 'static, F: Fn(&T, &T) -> std::cmp::Ordering + 'static> Operate for Sorted<T, F> {
    type Key = ();
    type Input = T;
    type Output = T;

    const EMITS_AT_CLOSE: bool = true;

    fn apply(&mut self, records: Vec<((), T)>, _: VecDeque<Stamp>, _: &mut Batch<T>) -> Result<()> {
        self.rows.extend(records.into_iter().map(|(_, row)| row));
        Ok(())
    }

    fn close(&mut self, rows: usize, out: &mut Batch<T>) -> bool {
        let sorted = self.sorted.get_or_insert_with(|| {
            let mut rows = std::mem::take(&mut self.rows);
            rows.sort_by(&self.compare);
            rows.truncate(self.limit);
            rows.into_iter()
        });
        sorted.by_ref().take(rows).for_each(|row| out.append(row, None));
        let has_more = sorted.len() > 0;
        if !has_more {
            self.sorted = None;
        }
        has_more
    }

    fn held(&mut self) -> Option<&mut dyn Held> {
        Some(&mut self.rows)
    }
}

/// What rows point to is not known; as much is in the table that they come from, and counted there.
impl<T> Held for Vec<T> {
    fn has_grown(&mut self) -> bool {
        false
    }

    fn len(&self) -> u64 {
        self.len() as u64
    }

    fn bytes(&self) -> u64 {
        (self.capacity() * size_of::<T>()) as u64
    }
}
