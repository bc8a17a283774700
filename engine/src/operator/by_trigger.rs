//! An operator that is one of two, as the trigger wants it.

use std::collections::VecDeque;

use crate::state::keep::Keep;
use crate::words::{Batch, Result, Stamp};

use super::keyed::Operate;

/// One of two operators, as the trigger wants it.
pub(crate) enum ByTrigger<O, B> {
    /// Emits with each record.
    Alone(O),
    /// Emits when a micro-batch is closed.
    InBatches(B),
}

impl<O: Operate, B: Operate<Key = O::Key, Input = O::Input, Output = O::Output>> Operate for ByTrigger<O, B> {
    type Key = O::Key;
    type Input = O::Input;
    type Output = O::Output;

    const EMITS_AT_CLOSE: bool = false;

    fn emits_at_close(&self) -> bool {
        matches!(self, ByTrigger::InBatches(_))
    }

    fn apply(
        &mut self,
        records: Vec<(O::Key, O::Input)>,
        stamps: VecDeque<Stamp>,
        out: &mut Batch<O::Output>,
    ) -> Result<()> {
        match self {
            ByTrigger::Alone(operate) => operate.apply(records, stamps, out),
            ByTrigger::InBatches(operate) => operate.apply(records, stamps, out),
        }
    }

    fn close(&mut self, rows: usize, out: &mut Batch<O::Output>) -> bool {
        match self {
            ByTrigger::Alone(operate) => operate.close(rows, out),
            ByTrigger::InBatches(operate) => operate.close(rows, out),
        }
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        match self {
            ByTrigger::Alone(operate) => operate.kept(),
            ByTrigger::InBatches(operate) => operate.kept(),
        }
    }

    fn rows(&self) -> Option<usize> {
        match self {
            ByTrigger::Alone(operate) => operate.rows(),
            ByTrigger::InBatches(operate) => operate.rows(),
        }
    }
}
