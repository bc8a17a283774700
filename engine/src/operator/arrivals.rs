//! When records arrived, for the latency of what is emitted later than with them.

use std::collections::VecDeque;
use std::time::Duration;

use crate::words::Moment;

/// When the records arrived to which what is emitted as a whole goes back: a row to the first
/// record that changed it, which has waited longest.
#[derive(Default)]
pub(super) struct Arrivals {
    /// Up to which row records go back to that moment, in order.
    until: VecDeque<(usize, Moment)>,
    /// The number of rows that were emitted.
    pub(super) emitted: usize,
}

/// Arrivals that are closer are not told apart.
const ARRIVALS_APART: Duration = Duration::from_micros(500);

impl Arrivals {
    /// Records that arrived then are applied, and there are so many rows now. `None` says that
    /// their order is not that of the records: they all go back to the first.
    pub(super) fn note(&mut self, arrival: Moment, rows: Option<usize>) {
        let rows = rows.unwrap_or(usize::MAX);
        match self.until.back_mut() {
            Some((until, first)) if *until == rows || arrival < first.after(ARRIVALS_APART) => *until = rows,
            _ => self.until.push_back((rows, arrival)),
        }
    }

    /// How many of the next rows go back to one moment, and to which.
    pub(super) fn next(&mut self, rows_max: usize) -> (usize, Option<Moment>) {
        while self.until.len() > 1 && self.until[0].0 <= self.emitted {
            self.until.pop_front();
        }
        match self.until.front() {
            Some((until, arrival)) if *until > self.emitted => (rows_max.min(until - self.emitted), Some(*arrival)),
            known => (rows_max, known.map(|(_, arrival)| *arrival)),
        }
    }
}
