//! What a source knows of event time in its partitions, on one worker. It is the board between the
//! operator of the source, which says which partition a batch is of and reports to operators that
//! wait for event time, and the stage of the watermark in its chain, which gives each record its
//! [`Stamp`].

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::words::{EventTime, Moment, Partition, PartitionTime, Stamp};

use super::watermark::Summary;

/// See the module.
#[derive(Debug)]
pub(crate) struct Board(RefCell<Marks>);

#[derive(Debug)]
struct Marks {
    delay: Duration,
    partitions: HashMap<Partition, Known>,
    /// The partition of the batch that is on its way through the chain.
    current: Option<Partition>,
    now: Known,
    /// When its records arrived.
    arrived: Moment,
    /// What a checkpoint knows of partitions that the reader does not have yet.
    restored: BTreeMap<Partition, PartitionTime>,
    /// When the records arrived that moved a mark last, unless that is reported.
    moved: Option<Moment>,
    is_reported: bool,
    /// Whether the reader says which partitions it has.
    is_assigned: bool,
    has_ended: bool,
    /// The least mark of all partitions that may have records, as last shown.
    least: EventTime,
    /// Whether it may be another one now.
    is_least_old: bool,
}

/// What is known of a partition.
#[derive(Clone, Copy, Debug)]
struct Known {
    time: PartitionTime,
    /// Whether the newest piece of a checkpoint lacks it.
    is_new: bool,
}

impl Known {
    const NOTHING: Known = Known { time: PartitionTime::UNKNOWN, is_new: false };

    fn mark(&self, delay: Duration) -> EventTime {
        self.time.largest.before(delay)
    }
}

impl Board {
    /// The board of a run that goes on from what a checkpoint knows.
    pub(crate) fn new(delay: Duration, restored: BTreeMap<Partition, PartitionTime>) -> Board {
        Board(RefCell::new(Marks {
            delay,
            partitions: HashMap::new(),
            current: None,
            now: Known::NOTHING,
            arrived: Moment::default(),
            restored,
            moved: None,
            is_reported: false,
            is_assigned: false,
            has_ended: false,
            least: EventTime::NONE,
            is_least_old: true,
        }))
    }

    /// These are the partitions of the reader. Those that it has from the beginning hold time back
    /// until their first record.
    pub(super) fn assign(&self, partitions: Vec<Partition>) {
        let marks = &mut *self.0.borrow_mut();
        marks.leave();
        let is_first = !std::mem::replace(&mut marks.is_assigned, true);
        let mut before = std::mem::take(&mut marks.partitions);
        for partition in partitions {
            let known = before.remove(&partition).unwrap_or_else(|| {
                let mut known = marks.found(&partition);
                // One that is found later counts from its first record on: it holds nothing back.
                known.time.is_idle |= !is_first && known.time == PartitionTime::UNKNOWN;
                known
            });
            marks.partitions.insert(partition, known);
        }
        (marks.moved, marks.is_least_old) = (Some(marks.arrived), true);
    }

    /// A batch of that partition follows, whose records arrived then.
    pub(super) fn enter(&self, partition: &Partition, arrived: Moment) {
        let marks = &mut *self.0.borrow_mut();
        marks.arrived = arrived;
        if marks.current.as_ref() == Some(partition) {
            return;
        }
        marks.leave();
        marks.now = match marks.partitions.get(partition) {
            Some(known) => *known,
            None => marks.found(partition),
        };
        marks.current = Some(partition.clone());
    }

    /// No more records of the partition that was entered last will ever come.
    pub(super) fn end_partition(&self) {
        let marks = &mut *self.0.borrow_mut();
        let time = PartitionTime { largest: EventTime::END, is_idle: false };
        marks.now = Known { time, is_new: true };
        marks.leave();
        (marks.moved, marks.is_least_old) = (Some(marks.arrived), true);
    }

    /// The source has ended, for ever.
    pub(super) fn end(&self) {
        let marks = &mut *self.0.borrow_mut();
        marks.has_ended = true;
        (marks.moved, marks.is_least_old) = (Some(marks.arrived), true);
    }

    /// Gives records of the partition their stamps. Times after `last` are not believed.
    pub(crate) fn stamp(
        &self,
        times: impl Iterator<Item = EventTime>,
        last: EventTime,
        stamps: &mut impl Extend<Stamp>,
    ) {
        let marks = &mut *self.0.borrow_mut();
        let (delay, before) = (marks.delay, marks.now.time.largest);
        let (mut largest, mut mark) = (before, before.before(delay));
        stamps.extend(times.map(|time| {
            if time > last {
                return Stamp::refused(time);
            }
            let stamp = Stamp { time, mark };
            if time > largest {
                // The end of time is that of a partition that has ended.
                largest = time.min(EventTime::LAST);
                mark = largest.before(delay);
            }
            stamp
        }));
        if largest > before {
            // Only what holds time back can move it.
            marks.is_least_old |= before.before(delay) <= marks.least;
            marks.now = Known { time: PartitionTime { largest, is_idle: false }, is_new: true };
            marks.moved = Some(marks.arrived);
        }
    }

    /// The least mark of all partitions that may have records, when it has moved since it was last
    /// asked for.
    pub(super) fn take_least(&self) -> Option<EventTime> {
        let marks = &mut *self.0.borrow_mut();
        if !std::mem::take(&mut marks.is_least_old) {
            return None;
        }
        marks.keep();
        let least = marks.summary().active.unwrap_or(EventTime::END);
        (std::mem::replace(&mut marks.least, least) != least).then_some(least)
    }

    /// What operators that wait for event time are to be told, if they do not know it yet, and when
    /// the records arrived that led to it.
    pub(super) fn take_report(&self) -> Option<(Summary, Moment)> {
        let marks = &mut *self.0.borrow_mut();
        if marks.moved.is_none() && marks.is_reported {
            return None;
        }
        marks.leave();
        marks.is_reported = true;
        Some((marks.summary(), marks.moved.take().unwrap_or(marks.arrived)))
    }

    /// What has changed since the last piece of a checkpoint.
    pub(super) fn take_changed(&self) -> Vec<(Partition, PartitionTime)> {
        let marks = &mut *self.0.borrow_mut();
        marks.leave();
        let all = marks.partitions.iter_mut();
        let new = |known: &mut Known| std::mem::take(&mut known.is_new).then_some(known.time);
        all.filter_map(|(partition, known)| Some((partition.clone(), new(known)?))).collect()
    }

    /// Partitions whose records are not to be released any more.
    pub(super) fn forget(&self, partitions: &[Partition]) {
        let marks = &mut *self.0.borrow_mut();
        marks.leave();
        marks.partitions.retain(|partition, _| !partitions.contains(partition));
        (marks.moved, marks.is_least_old) = (Some(marks.arrived), true);
    }

    /// The mark of each partition, and whether it is idle.
    pub(super) fn show(&self) -> Vec<(Partition, EventTime, bool)> {
        let marks = &mut *self.0.borrow_mut();
        marks.leave();
        let all = marks.partitions.iter();
        all.map(|(partition, known)| (partition.clone(), known.mark(marks.delay), known.time.is_idle)).collect()
    }
}

impl Marks {
    fn found(&mut self, partition: &Partition) -> Known {
        let time = self.restored.remove(partition).unwrap_or(PartitionTime::UNKNOWN);
        Known { time, is_new: false }
    }

    /// Writes back what the records of a partition have changed so far.
    fn keep(&mut self) {
        if let Some(partition) = &self.current {
            self.partitions.insert(partition.clone(), self.now);
        }
    }

    /// Writes back what the records of a partition have changed, before something else changes it.
    fn leave(&mut self) {
        if let Some(partition) = self.current.take() {
            self.partitions.insert(partition, self.now);
        }
    }

    fn summary(&self) -> Summary {
        if self.has_ended {
            return Summary::ENDED;
        }
        if self.partitions.is_empty() && !self.is_assigned {
            // Any of its partitions may have a record of any time.
            return Summary::at(EventTime::NONE);
        }
        let mark = |known: &Known| known.mark(self.delay);
        let of = |is_idle: bool| self.partitions.values().filter(move |known| known.time.is_idle == is_idle).map(mark);
        let active = of(false).filter(|mark| *mark != EventTime::END).min();
        Summary { active, idle: of(true).max(), has_ended: false }
    }
}
