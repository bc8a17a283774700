//! An operator that is one of two, as the trigger wants it.

use std::collections::VecDeque;

use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::state::keep::{Held, Keep};
use crate::words::{Admission, Batch, EventTime, Result, Stamp, WatermarkPolicy};

use super::keyed::Operate;
use super::late::LateStream;
use super::stage::Capabilities;

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
    const IS_STRICT: bool = O::IS_STRICT;

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

    fn begin(&mut self, watermark: EventTime, policy: WatermarkPolicy) {
        match self {
            ByTrigger::Alone(operate) => operate.begin(watermark, policy),
            ByTrigger::InBatches(operate) => operate.begin(watermark, policy),
        }
    }

    fn advance(&mut self, watermark: EventTime) {
        match self {
            ByTrigger::Alone(operate) => operate.advance(watermark),
            ByTrigger::InBatches(operate) => operate.advance(watermark),
        }
    }

    fn fire(&mut self, rows: usize, out: &mut Batch<O::Output>) -> Result<bool> {
        match self {
            ByTrigger::Alone(operate) => operate.fire(rows, out),
            ByTrigger::InBatches(operate) => operate.fire(rows, out),
        }
    }

    fn due(&self) -> Option<EventTime> {
        match self {
            ByTrigger::Alone(operate) => operate.due(),
            ByTrigger::InBatches(operate) => operate.due(),
        }
    }

    fn open_late<'a>(&mut self, builder: &mut OperatorBuilder<'a, u64>) -> Option<LateStream<'a, O::Input>> {
        match self {
            ByTrigger::Alone(operate) => operate.open_late(builder),
            ByTrigger::InBatches(operate) => operate.open_late(builder),
        }
    }

    fn hand_on_late(&mut self, admission: Option<&Admission>, at: &Capabilities) -> Result<u64> {
        match self {
            ByTrigger::Alone(operate) => operate.hand_on_late(admission, at),
            ByTrigger::InBatches(operate) => operate.hand_on_late(admission, at),
        }
    }

    fn kept(&mut self) -> Option<&mut dyn Keep> {
        match self {
            ByTrigger::Alone(operate) => operate.kept(),
            ByTrigger::InBatches(operate) => operate.kept(),
        }
    }

    fn held(&mut self) -> Option<&mut dyn Held> {
        match self {
            ByTrigger::Alone(operate) => operate.held(),
            ByTrigger::InBatches(operate) => operate.held(),
        }
    }

    fn rows(&self) -> Option<usize> {
        match self {
            ByTrigger::Alone(operate) => operate.rows(),
            ByTrigger::InBatches(operate) => operate.rows(),
        }
    }
}
