//! What a source knows of event time in its partitions, on one worker. It is the board between the
//! operator of the source, which says which partition a batch is of and reports to operators that
//! wait for event time, and the stage of the watermark in its chain, which gives each record its
//! [`Stamp`].

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use crate::words::{EventTime, Moment, Partition, PartitionTime, Stamp, WatermarkPolicy};

use super::watermark::Summary;

/// See the module.
#[derive(Debug)]
pub(crate) struct Board(RefCell<Marks>);

/// How watermarks come about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) delay: Duration,
    /// How long a partition that is read to its end may be silent before it is left out.
    pub(crate) idle_after: Duration,
    pub(crate) policy: WatermarkPolicy,
    /// Whether event time is the time of the clock at which records enter.
    pub(crate) is_by_clock: bool,
}

#[derive(Debug)]
struct Marks {
    rule: Rule,
    /// The latest time of the clock, where that counts.
    clock: EventTime,
    /// Whether a new watermark may close something.
    closes: bool,
    spark: Maximum,
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
    /// Whether a reader that does not say what it has is silent, and has been since the start.
    is_silent: bool,
    /// When that is looked at again, if ever.
    look: Option<Moment>,
    /// The least mark of all partitions that may have records, as last shown.
    least: EventTime,
    /// Whether it may be another one now.
    is_least_old: bool,
}

/// What counts by Spark's rule: the largest event time of all partitions. It is told a micro-batch
/// later.
#[derive(Clone, Copy, Debug)]
struct Maximum {
    /// The largest time so far.
    seen: EventTime,
    /// The mark at the end of the micro-batch before, which is told next.
    next: EventTime,
    told: Option<EventTime>,
}

impl Maximum {
    /// Takes what is to be told at the end of a micro-batch, if it is new.
    fn take(&mut self, delay: Duration) -> Option<EventTime> {
        let now = self.next;
        self.next = self.seen.before(delay).max(now);
        (self.told.replace(now) != Some(now)).then_some(now)
    }
}

/// What is known of a partition.
#[derive(Clone, Copy, Debug)]
struct Known {
    time: PartitionTime,
    /// Whether the newest piece of a checkpoint lacks it.
    is_new: bool,
    /// When its last record was released, or when it was assigned.
    heard: Moment,
    /// It was idle when the run began, and may have got records meanwhile.
    was_idle: bool,
}

impl Known {
    fn nothing() -> Known {
        Known { time: PartitionTime::UNKNOWN, is_new: false, heard: Moment::default(), was_idle: false }
    }

    fn mark(&self, delay: Duration) -> EventTime {
        self.time.largest.before(delay)
    }
}

impl Board {
    /// The board of a run that goes on from what a checkpoint knows. `closes` says whether any
    /// operator waits for a new watermark.
    pub(crate) fn new(rule: Rule, closes: bool, restored: BTreeMap<Partition, PartitionTime>, now: Moment) -> Board {
        let largest = restored.values().map(|time| time.largest).filter(|largest| *largest != EventTime::END);
        let largest = largest.max().unwrap_or(EventTime::NONE);
        // Neither the maximum of all partitions nor the clock waits for one of them.
        let waits = !rule.policy.is_max_seen() && !rule.is_by_clock;
        Board(RefCell::new(Marks {
            rule,
            clock: largest,
            closes,
            spark: Maximum { seen: largest, next: largest.before(rule.delay).max(EventTime(0)), told: None },
            partitions: HashMap::new(),
            current: None,
            now: Known::nothing(),
            arrived: Moment::default(),
            restored,
            moved: None,
            is_reported: false,
            is_assigned: false,
            has_ended: false,
            is_silent: false,
            look: Some(now.after(rule.idle_after)).filter(|_| waits),
            least: EventTime::NONE,
            is_least_old: true,
        }))
    }

    /// These are the partitions of the reader. Those that it has from the beginning hold time back
    /// until their first record.
    pub(super) fn assign(&self, partitions: Vec<Partition>, now: Moment) {
        let marks = &mut *self.0.borrow_mut();
        marks.leave();
        let is_first = !std::mem::replace(&mut marks.is_assigned, true);
        let mut before = std::mem::take(&mut marks.partitions);
        for partition in partitions {
            let known = before.remove(&partition).unwrap_or_else(|| {
                let mut known = marks.found(&partition, now);
                // One that is found later counts from its first record on: it holds nothing back.
                known.time.is_idle |= !is_first && known.time == PartitionTime::UNKNOWN;
                known
            });
            marks.partitions.insert(partition, known);
        }
        (marks.moved, marks.is_least_old) = (Some(marks.arrived), true);
        marks.look = Some(now);
    }

    pub(super) fn is_assigned(&self) -> bool {
        self.0.borrow().is_assigned
    }

    /// A batch of that partition follows, whose records arrived then.
    pub(super) fn enter(&self, partition: &Partition, arrived: Moment, now: Moment) {
        let marks = &mut *self.0.borrow_mut();
        marks.arrived = arrived;
        if marks.current.as_ref() != Some(partition) {
            marks.leave();
            marks.now = match marks.partitions.get(partition) {
                Some(known) => *known,
                None => marks.found(partition, now),
            };
            marks.current = Some(partition.clone());
        }
        marks.now.heard = now;
    }

    /// Leaves out partitions that are silent and read to their end, which the function says.
    /// Returns whether there is one more.
    pub(super) fn look(&self, now: Moment, is_at_end: impl Fn(&Partition) -> bool, is_all_read: bool) -> bool {
        let marks = &mut *self.0.borrow_mut();
        if marks.look.is_none_or(|look| now < look) {
            return false;
        }
        marks.leave();
        let (idle_after, mut next, mut has_fallen) = (marks.rule.idle_after, None::<Moment>, false);
        // Not more often, however many partitions there are.
        let again = now.after((idle_after / 32).max(Duration::from_millis(1)));
        let awake = |known: &&mut Known| !known.time.is_idle && known.time.largest != EventTime::END;
        for (partition, known) in &mut marks.partitions {
            let Some(known) = Some(known).filter(awake) else { continue };
            let due = known.heard.after(idle_after);
            if !known.was_idle && now < due {
                next = Some(next.map_or(due, |next| next.min(due)).max(again));
            } else if is_at_end(partition) {
                (known.time.is_idle, known.is_new, known.was_idle) = (true, true, false);
                has_fallen = true;
            } else {
                next = Some(again);
            }
        }
        if marks.is_assigned || !marks.partitions.is_empty() || marks.is_silent {
            // Then each partition counts by itself.
        } else if is_all_read {
            (marks.is_silent, has_fallen) = (true, true);
        } else {
            next = Some(again);
        }
        marks.look = next;
        if has_fallen {
            (marks.moved, marks.is_least_old) = (Some(now), true);
        }
        has_fallen
    }

    /// When partitions are to be looked at again for being silent.
    pub(super) fn next_look(&self) -> Option<Moment> {
        self.0.borrow().look
    }

    /// The run has read what there was. A partition that never had a record does not hold time back
    /// for ever.
    pub(super) fn leave_out_empty(&self) {
        let marks = &mut *self.0.borrow_mut();
        marks.leave();
        let empty = |known: &&mut Known| known.time == PartitionTime::UNKNOWN;
        for known in marks.partitions.values_mut().filter(empty) {
            (known.time.is_idle, known.is_new) = (true, true);
            (marks.moved, marks.is_least_old) = (Some(marks.arrived), true);
        }
    }

    /// No more records of the partition that was entered last will ever come.
    pub(super) fn end_partition(&self) {
        let marks = &mut *self.0.borrow_mut();
        if marks.rule.policy.is_max_seen() || marks.rule.is_by_clock {
            return;
        }
        let time = PartitionTime { largest: EventTime::END, is_idle: false };
        marks.now = Known { time, is_new: true, ..marks.now };
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
        if marks.now.time.is_idle || marks.now.was_idle {
            marks.wake();
        }
        let (delay, before) = (marks.rule.delay, marks.now.time.largest);
        let (mut largest, mut mark) = (before, before.before(delay));
        let by_partition = marks.rule.policy == WatermarkPolicy::ByPartition && !marks.rule.is_by_clock;
        stamps.extend(times.map(|time| {
            if time > last {
                return Stamp::refused(time);
            }
            // By the other policies the watermark alone decides.
            let stamp = Stamp { time, mark: if by_partition { mark } else { EventTime::NONE } };
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
            (marks.now.time.largest, marks.now.is_new) = (largest, true);
            marks.spark.seen = marks.spark.seen.max(largest);
            marks.moved = Some(marks.arrived);
        }
    }

    /// The time of the clock, which does not go back here.
    pub(crate) fn clock_time(&self, now: EventTime) -> EventTime {
        let marks = &mut *self.0.borrow_mut();
        marks.is_least_old |= now > marks.clock;
        marks.clock = marks.clock.max(now);
        marks.clock
    }

    /// Whether event time is the time of the clock at which records enter.
    pub(super) fn is_by_clock(&self) -> bool {
        self.0.borrow().rule.is_by_clock
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
        if marks.rule.policy.is_max_seen() && !marks.has_ended {
            let told = marks.spark.take(marks.rule.delay)?;
            return Some((Summary::at(told), marks.moved.take().unwrap_or(marks.arrived)));
        }
        if marks.moved.is_none() && marks.is_reported && !marks.rule.is_by_clock {
            return None;
        }
        marks.leave();
        marks.is_reported = true;
        Some((marks.summary(), marks.moved.take().unwrap_or(marks.arrived)))
    }

    /// Whether the watermark moves with the next micro-batch, whatever is in it.
    pub(super) fn needs_batch(&self) -> bool {
        let marks = self.0.borrow();
        let is_spark = marks.rule.policy.is_max_seen() && marks.closes;
        is_spark && !marks.has_ended && marks.spark.told != Some(marks.spark.next)
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
        all.map(|(partition, known)| (partition.clone(), known.mark(marks.rule.delay), known.time.is_idle)).collect()
    }
}

impl Marks {
    /// What is known of a partition when it is first met. One that was idle holds time back until
    /// it is known that it has got no records meanwhile.
    fn found(&mut self, partition: &Partition, now: Moment) -> Known {
        let before = self.restored.remove(partition).unwrap_or(PartitionTime::UNKNOWN);
        let time = PartitionTime { is_idle: false, ..before };
        Known { time, is_new: false, heard: now, was_idle: before.is_idle }
    }

    /// The partition of the batch has records again.
    fn wake(&mut self) {
        (self.now.time.is_idle, self.now.was_idle, self.now.is_new) = (false, false, true);
        (self.moved, self.is_least_old) = (Some(self.arrived), true);
        let due = self.now.heard.after(self.rule.idle_after);
        self.look = Some(self.look.map_or(due, |look| look.min(due)));
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
        if self.rule.is_by_clock {
            return Summary::at(self.clock);
        }
        if self.partitions.is_empty() && !self.is_assigned && !self.is_silent {
            // Any of its partitions may have a record of any time.
            return Summary::at(EventTime::NONE);
        }
        let mark = |known: &Known| known.mark(self.rule.delay);
        let of = |is_idle: bool| self.partitions.values().filter(move |known| known.time.is_idle == is_idle).map(mark);
        let active = of(false).filter(|mark| *mark != EventTime::END).min();
        Summary { active, idle: of(true).max(), has_ended: false }
    }
}
