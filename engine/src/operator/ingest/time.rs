//! What a source tells others of event time.

use super::super::watermark;
use super::{Ingest, Release};

impl<T> Ingest<T> {
    /// Tells operators that wait for event time what they do not know yet, at the epoch that
    /// closes.
    pub(super) fn report(&mut self) {
        let (Some(marks), Some(reports)) = (&self.setting.marks, &mut self.reports) else { return };
        if let Some(partitions) = self.reader.as_mut().and_then(|reader| reader.assigned()) {
            marks.assign(partitions);
        }
        let Some((summary, arrived)) = marks.take_report() else { return };
        let (own, at) = ((self.setting.node, self.setting.worker), &self.capabilities[1]);
        let mut reports = reports.activate();
        let mut session = reports.session(at);
        watermark::reports(own, self.setting.workers, summary, arrived).for_each(|report| session.give(report));
    }

    /// Lets an epoch open at once when event time has come to where an operator waits for it. A
    /// micro-batch is an epoch anyway.
    pub(super) fn show_least(&self) {
        if self.setting.release == Release::AtOnce
            && let Some(least) = self.setting.marks.as_ref().and_then(|marks| marks.take_least())
        {
            self.setting.pulse.note_mark((self.setting.node, self.setting.worker), least);
        }
    }
}
