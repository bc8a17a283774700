//! What a source tells others of event time.

use std::time::Duration;

use super::super::watermark;
use super::{Ingest, Release};
use crate::io::End;
use crate::words::{EventTime, Moment, Partition};

impl<T> Ingest<T> {
    /// Tells operators that wait for event time what they do not know yet, at the epoch that
    /// closes.
    pub(super) fn report(&mut self) {
        self.assign();
        if let Some(marks) = self.setting.marks.as_ref().filter(|marks| marks.is_by_clock()) {
            let _ = marks.clock_time(EventTime(self.setting.clock.wall().0));
        }
        let (Some(marks), Some(reports)) = (&self.setting.marks, &mut self.reports) else { return };
        let report = marks.take_report();
        if marks.needs_batch() {
            self.setting.pulse.note_records();
        }
        let Some((summary, arrived)) = report else { return };
        let (own, at) = ((self.setting.node, self.setting.worker), &self.capabilities[1]);
        let mut reports = reports.activate();
        let mut session = reports.session(at);
        watermark::reports(own, self.setting.workers, summary, arrived).for_each(|report| session.give(report));
    }

    /// Where event time is the time of the clock: lets an epoch open when it has come to where an
    /// operator waits for it, and asks to be woken then.
    pub(super) fn look_at_clock(&mut self) {
        let Some(marks) = self.setting.marks.clone().filter(|marks| marks.is_by_clock()) else { return };
        let Some(due) = self.setting.pulse.least_due() else { return };
        let now = marks.clock_time(EventTime(self.setting.clock.wall().0));
        if now < due {
            let wait = u64::try_from(due.0.saturating_sub(now.0)).unwrap_or(u64::MAX);
            let moment = self.setting.clock.now().after(Duration::from_millis(wait));
            if self.waits_until != Some(due) {
                self.waits_until = Some(due);
                self.setting.pulse.wake_at(moment, self.wake.clone());
            }
            return;
        }
        let own = (self.setting.node, self.setting.worker);
        self.setting.pulse.note_mark(own, now);
        if self.setting.release == Release::AtTicks && self.setting.pulse.has_come() {
            self.setting.pulse.note_records();
        }
    }

    /// Asks the reader what partitions it has, before it returns records of them: silence begins
    /// when a partition is there.
    pub(super) fn assign_first(&mut self) {
        if self.setting.marks.as_ref().is_some_and(|marks| !marks.is_assigned()) {
            self.assign();
        }
    }

    fn assign(&mut self) {
        let (Some(marks), Some(reader)) = (&self.setting.marks, &mut self.reader) else { return };
        if let Some(partitions) = reader.assigned() {
            marks.assign(partitions, self.setting.clock.now());
        }
    }

    /// Leaves out partitions that are silent, once they are read to their end: that closes windows,
    /// and so is a reason for an epoch. `is_all_read` says that the last poll found nothing.
    pub(super) fn look_for_idle(&mut self, now: Moment, is_all_read: bool) {
        let Some(marks) = self.setting.marks.clone() else { return };
        if marks.next_look().is_some_and(|look| now >= look) {
            self.assign();
        }
        let (Some(look), Some(reader)) = (marks.next_look(), &self.reader) else { return };
        if now >= look {
            let waits = |partition: &Partition| {
                self.queue.iter().any(|queued| queued.position.as_ref().is_some_and(|(of, _)| of == partition))
            };
            let is_at_end =
                |partition: &Partition| reader.is_at_end(partition).unwrap_or(is_all_read) && !waits(partition);
            if marks.look(now, is_at_end, is_all_read && self.queue.is_empty()) {
                self.show_least();
                self.setting.pulse.note_records();
            }
        }
        if let Some(look) = marks.next_look().filter(|look| self.looks_at != Some(*look)) {
            self.looks_at = Some(look);
            self.setting.pulse.wake_at(look, self.wake.clone());
        }
    }

    /// The source has ended.
    pub(super) fn end_time(&self) {
        match (&self.setting.marks, self.ended) {
            (Some(marks), Some(End::OfTime)) => marks.end(),
            (Some(marks), Some(End::OfRun)) if !self.setting.pulse.is_stopping() => marks.leave_out_empty(),
            _ => {}
        }
    }

    /// Lets an epoch open at once when event time has come to where an operator waits for it. A
    /// micro-batch is an epoch anyway, and may be needed where the clock says so.
    pub(super) fn show_least(&self) {
        if (self.setting.release == Release::AtOnce || self.setting.pulse.has_clocks())
            && let Some(least) = self.setting.marks.as_ref().and_then(|marks| marks.take_least())
        {
            self.setting.pulse.note_mark((self.setting.node, self.setting.worker), least);
        }
    }
}
