//! Windows of so many records of a key, in the order in which they come.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::state::keep::Keep;
use crate::state::table::{Table, TableKey, TableState};
use crate::words::{Batch, EventTime, Result, Stamp};

use super::aggregate::{Aggregate, time_of};
use super::keyed::Operate;

/// What a key has in its open window.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Filling<S> {
    records: u64,
    state: S,
}

/// Emits the value of each `length` records of a key.
pub(crate) struct CountTumbling<K, A: Aggregate> {
    pub(crate) aggregate: A,
    pub(crate) length: u64,
    pub(crate) table: Table<K, Filling<A::State>>,
}

impl<K: TableKey, A: Aggregate> Operate for CountTumbling<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = (K, A::Value);

    const EMITS_AT_CLOSE: bool = false;

    fn apply(
        &mut self,
        records: Vec<(K, A::Input)>,
        stamps: VecDeque<Stamp>,
        out: &mut Batch<(K, A::Value)>,
    ) -> Result<()> {
        let (aggregate, length) = (&self.aggregate, self.length);
        let zero = || Filling { records: 0, state: aggregate.zero() };
        self.table.update(records, zero, |index, key, input, filling, _| {
            aggregate.add(&mut filling.state, input, time_of(&stamps, index))?;
            filling.records += 1;
            if filling.records >= length {
                out.append((key, aggregate.value(&filling.state)), None);
                *filling = zero();
            }
            Ok(())
        })
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }
}

/// The last records of a key.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Last<I> {
    inputs: VecDeque<(Option<EventTime>, I)>,
    /// The number of records since a value was emitted.
    since: u64,
}

/// Emits the value of the last `length` records of a key with each `every`-th of them.
pub(crate) struct CountSliding<K, A: Aggregate> {
    pub(crate) aggregate: A,
    pub(crate) length: u64,
    pub(crate) every: u64,
    pub(crate) table: Table<K, Last<A::Input>>,
}

impl<K: TableKey, A: Aggregate<Input: TableState + Clone>> Operate for CountSliding<K, A> {
    type Key = K;
    type Input = A::Input;
    type Output = (K, A::Value);

    const EMITS_AT_CLOSE: bool = false;

    fn apply(
        &mut self,
        records: Vec<(K, A::Input)>,
        stamps: VecDeque<Stamp>,
        out: &mut Batch<(K, A::Value)>,
    ) -> Result<()> {
        let (aggregate, length, every) = (&self.aggregate, self.length, self.every);
        let zero = || Last { inputs: VecDeque::new(), since: 0 };
        self.table.update(records, zero, |index, key, input, last, _| {
            last.inputs.push_back((time_of(&stamps, index), input));
            if last.inputs.len() as u64 > length {
                last.inputs.pop_front();
            }
            last.since += 1;
            if last.since >= every {
                last.since = 0;
                let mut state = aggregate.zero();
                let mut inputs = last.inputs.iter().cloned();
                inputs.try_for_each(|(time, input)| aggregate.add(&mut state, input, time))?;
                out.append((key, aggregate.value(&state)), None);
            }
            Ok(())
        })
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        Some(&mut self.table)
    }
}
