//! Event time, as an operator that waits for it knows it. Sources report the marks of their
//! partitions when they close an epoch, and operators relay what they know. A report of epoch `e`
//! takes effect once nothing of an epoch up to `e` can arrive any more: then every record that is
//! not late by its own mark has been applied, so it never meets a closed window. What it lets fire
//! leaves at `e` itself, and so does the report that the operator relays: the operator behind it
//! cannot pass `e` before both are there.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use timely::dataflow::channels::pact::Exchange;

use crate::words::{CheckpointId, Epoch, EventTime, Moment, WatermarkPolicy};

use super::fault::Node;
use super::stage::Capabilities;

/// What is known of the time in several partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Summary {
    /// The least mark of those that may have records; `None` when there are none.
    pub(crate) active: Option<EventTime>,
    /// The largest mark of those that have none at the moment.
    pub(crate) idle: Option<EventTime>,
    /// Whether there will never be a record again.
    pub(crate) has_ended: bool,
}

impl Summary {
    /// That of an operator which emits nothing before this time.
    pub(crate) fn at(time: EventTime) -> Summary {
        match time {
            EventTime::END => Summary::ENDED,
            _ => Summary { active: Some(time), idle: None, has_ended: false },
        }
    }

    pub(crate) const ENDED: Summary = Summary { active: None, idle: None, has_ended: true };

    fn before(self, earlier: Duration) -> Summary {
        let before = |time: Option<EventTime>| time.map(|time| time.before(earlier));
        Summary { active: before(self.active), idle: before(self.idle), ..self }
    }

    fn and(self, other: Summary) -> Summary {
        let least = |one: Option<EventTime>, other| one.into_iter().chain(other).min();
        Summary {
            active: least(self.active, other.active),
            idle: self.idle.max(other.idle),
            has_ended: self.has_ended && other.has_ended,
        }
    }

    /// How far time has come. Where nothing is active, it is where the last partition fell silent;
    /// `None` when there is no partition, and may be one later.
    fn time(self) -> Option<EventTime> {
        self.active.or(self.idle).or(self.has_ended.then_some(EventTime::END))
    }
}

pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);

/// Who reports: a source or an operator, on one worker.
pub(crate) type Reporter = (Node, usize);

/// What a reporter tells one worker.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Report {
    to: usize,
    from: (usize, usize),
    summary: Summary,
    /// When the records arrived that led to it.
    arrived: u64,
}

/// The same report for each worker. They are records, because progress counts what is sent before
/// it is distributed.
pub(crate) fn reports(
    (node, worker): Reporter,
    workers: usize,
    summary: Summary,
    arrived: Moment,
) -> impl Iterator<Item = Report> {
    (0..workers).map(move |to| Report { to, from: (node.0, worker), summary, arrived: arrived.as_nanos() })
}

/// Brings each report to its worker.
pub(crate) fn to_worker() -> Exchange<Report, impl FnMut(&Report) -> u64> {
    Exchange::new(|report: &Report| report.to as u64)
}

/// The time of an operator on one worker.
#[derive(Debug)]
pub(crate) struct Watermarks {
    /// The number of reporters; until all of them have reported, the time is not known.
    reporters: usize,
    lowered: Vec<Node>,
    policy: WatermarkPolicy,
    known: HashMap<(usize, usize), Summary>,
    /// Reports that have no effect yet, by epoch, with a capability of each port.
    pending: BTreeMap<Epoch, (Capabilities, Vec<Report>)>,
    watermark: EventTime,
}

/// A new watermark.
pub(crate) struct Advanced {
    pub(crate) watermark: EventTime,
    /// Capabilities of the epoch at which it takes effect.
    pub(crate) at: Capabilities,
    /// When the records arrived that moved it.
    pub(crate) arrived: Moment,
}

impl Watermarks {
    /// That of an operator with so many reporters, some of which count as of the millisecond
    /// before. It goes on from a watermark.
    pub(crate) fn new(
        reporters: usize,
        lowered: Vec<Node>,
        policy: WatermarkPolicy,
        watermark: EventTime,
    ) -> Watermarks {
        // In Spark time begins with 1970.
        let watermark = if policy.is_max_seen() { watermark.max(EventTime(0)) } else { watermark };
        Watermarks { reporters, lowered, policy, known: HashMap::new(), pending: BTreeMap::new(), watermark }
    }

    /// Takes reports of an epoch.
    pub(crate) fn take(&mut self, epoch: Epoch, at: impl FnOnce() -> Capabilities, reports: &mut Vec<Report>) {
        self.pending.entry(epoch).or_insert_with(|| (at(), Vec::new())).1.append(reports);
    }

    /// The oldest checkpoint with a report that has no effect yet.
    pub(crate) fn oldest(&self) -> Option<CheckpointId> {
        self.pending.first_key_value().map(|(epoch, _)| epoch.checkpoint())
    }

    /// Lets the reports of the next epoch take effect, if it lies before `until` and in that
    /// checkpoint.
    pub(crate) fn advance(&mut self, until: Option<Epoch>, checkpoint: CheckpointId) -> Option<Advanced> {
        let is_complete = |epoch: Epoch| until.is_none_or(|until| epoch < until) && epoch.checkpoint() <= checkpoint;
        let next = self.pending.first_entry().filter(|next| is_complete(*next.key()))?;
        let (at, reports) = next.remove();
        let mut arrived = 0;
        for report in reports {
            let is_lowered = self.lowered.iter().any(|node| node.0 == report.from.0);
            let summary = if is_lowered { report.summary.before(MILLISECOND) } else { report.summary };
            self.known.insert(report.from, summary);
            arrived = report.arrived.max(arrived);
        }
        self.watermark = self.watermark.max(self.now());
        Some(Advanced { watermark: self.watermark, at, arrived: Moment::from_nanos(arrived) })
    }

    /// What all reports together say.
    fn now(&self) -> EventTime {
        if self.known.len() < self.reporters {
            return EventTime::NONE;
        }
        let time = match self.policy.is_max_seen() {
            false => self.known.values().copied().reduce(Summary::and).and_then(Summary::time),
            true => self.largest_seen(),
        };
        time.unwrap_or(EventTime::NONE)
    }

    /// Of each reporter the largest over its workers; of them the smallest, or the largest.
    fn largest_seen(&self) -> Option<EventTime> {
        let mut by_node: BTreeMap<usize, Summary> = BTreeMap::new();
        for ((node, _), summary) in &self.known {
            let of_node = by_node.entry(*node).or_insert(*summary);
            of_node.active = of_node.active.max(summary.active);
            of_node.has_ended &= summary.has_ended;
        }
        let times =
            by_node.into_values().filter_map(|node| if node.has_ended { Some(EventTime::END) } else { node.active });
        match self.policy {
            WatermarkPolicy::MaxSeenByFastest => times.max(),
            _ => times.min(),
        }
    }

    pub(crate) fn policy(&self) -> WatermarkPolicy {
        self.policy
    }

    pub(crate) fn watermark(&self) -> EventTime {
        self.watermark
    }
}
