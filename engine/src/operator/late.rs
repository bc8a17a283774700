//! What becomes of records that are late, and of those without an event time.

use std::sync::Arc;

use timely::dataflow::Stream;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::words::{Admission, Batch, Late, Result, Span, StageMeter, Stamp};

use super::stage::{Capabilities, Next, Port};

/// The late records of an operator.
pub(crate) type LateStream<'a, T> = Stream<'a, u64, Batch<Late<T>>>;

/// Where an operator puts its late records: they are counted, and handed on if that is asked for.
pub(crate) struct LateRecords<T: 'static> {
    count: u64,
    /// What counts those that are handed on, if any are.
    handed_on: Option<Arc<StageMeter>>,
    rows: Batch<Late<T>>,
    /// Where they go, once the operator is built.
    next: Option<Next<Late<T>>>,
}

impl<T: 'static> LateRecords<T> {
    pub(crate) fn new(handed_on: Option<Arc<StageMeter>>) -> LateRecords<T> {
        LateRecords { count: 0, handed_on, rows: Batch::default(), next: None }
    }

    /// Adds the port on which they leave, if they do.
    pub(crate) fn open<'a>(&mut self, builder: &mut OperatorBuilder<'a, u64>) -> Option<LateStream<'a, T>> {
        let meter = self.handed_on.take()?;
        let (port, stream) = Port::new(builder);
        self.next = Some(Next::new(meter, Box::new(port)));
        Some(stream)
    }

    /// A record missed these windows.
    pub(crate) fn add(&mut self, record: T, stamp: Stamp, windows: Vec<Span>) {
        self.count += 1;
        if self.next.is_some() {
            self.rows.append(Late { record, time: stamp.time(), windows, why: stamp.lateness() }, Some(stamp));
        }
    }

    /// Hands on what was added, under the admission of its records. Returns how many were late.
    pub(crate) fn hand_on(&mut self, admission: Option<&Admission>, at: &Capabilities) -> Result<u64> {
        if let Some(next) = &mut self.next
            && !self.rows.is_empty()
        {
            next.hand_on(std::mem::take(&mut self.rows).admitted_as(admission.cloned()), at)?;
        }
        Ok(std::mem::take(&mut self.count))
    }
}
