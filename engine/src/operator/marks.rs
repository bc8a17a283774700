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
    has_ended: bool,
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
            has_ended: false,
        }))
    }

    /// These are the partitions of the reader. What is not known of them holds time back.
    pub(super) fn assign(&self, partitions: Vec<Partition>) {
        let marks = &mut *self.0.borrow_mut();
        let mut before = std::mem::take(&mut marks.partitions);
        for partition in partitions {
            let known = before.remove(&partition).unwrap_or_else(|| marks.found(&partition));
            marks.partitions.insert(partition, known);
        }
        marks.moved = Some(marks.arrived);
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

    /// No more records of that partition will ever come.
    pub(super) fn end_partition(&self, partition: &Partition) {
        let marks = &mut *self.0.borrow_mut();
        marks.leave();
        let time = PartitionTime { largest: EventTime::END, is_idle: false };
        marks.partitions.insert(partition.clone(), Known { time, is_new: true });
        marks.moved = Some(marks.arrived);
    }

    /// The source has ended, for ever.
    pub(super) fn end(&self) {
        let marks = &mut *self.0.borrow_mut();
        (marks.has_ended, marks.moved) = (true, Some(marks.arrived));
    }

    /// Gives records of the partition their stamps.
    pub(crate) fn stamp(&self, times: impl Iterator<Item = EventTime>, stamps: &mut impl Extend<Stamp>) {
        let marks = &mut *self.0.borrow_mut();
        let (delay, before) = (marks.delay, marks.now.time.largest);
        let (mut largest, mut mark) = (before, before.before(delay));
        stamps.extend(times.map(|time| {
            let stamp = Stamp { time, mark };
            if time > largest {
                (largest, mark) = (time, time.before(delay));
            }
            stamp
        }));
        if largest > before {
            marks.now = Known { time: PartitionTime { largest, is_idle: false }, is_new: true };
            marks.moved = Some(marks.arrived);
        }
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
        marks.moved = Some(marks.arrived);
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

    /// Writes back what the records of a partition have changed.
    fn leave(&mut self) {
        if let Some(partition) = self.current.take() {
            self.partitions.insert(partition, self.now);
        }
    }

    fn summary(&self) -> Summary {
        if self.has_ended {
            return Summary { active: Some(EventTime::END), idle: None };
        }
        let mark = |known: &Known| known.mark(self.delay);
        let of = |is_idle: bool| self.partitions.values().filter(move |known| known.time.is_idle == is_idle).map(mark);
        Summary { active: of(false).min(), idle: of(true).max() }
    }
}
