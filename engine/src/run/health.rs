//! The health of a job, for its operators. *Alive*: restarting the process would not help. *Ready*:
//! the job does its work. It is read from the [`vitals`](super::vitals); nothing here waits.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde::Serialize;

use crate::words::{Clock, Moment};

use super::plan::{Meter, Plan};
use super::report::{Report, SourceReport};
use super::shared::Run;
use super::vitals::{OpenCheckpoint, OpenStage};

/// What counts as healthy; see [`Running::health`](crate::JobHandle::health).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "limits do nothing until a job is asked for its health"]
pub struct HealthLimits {
    lag: Option<u64>,
    step: Option<Duration>,
    commit: Duration,
    group: Duration,
}

impl HealthLimits {
    /// The default limits, which are stated at each option.
    pub fn new() -> HealthLimits {
        HealthLimits { lag: None, step: None, commit: Duration::from_secs(300), group: Duration::from_secs(300) }
    }

    /// A job is ready when each source has at most this many records before its end. There is no
    /// limit by default.
    pub fn lag_at_most(self, records: u64) -> HealthLimits {
        HealthLimits { lag: Some(records), ..self }
    }

    /// A job is alive when no worker has been in one step, and the control thread in one round, for
    /// longer than `limit`; half of [`Job::stuck_after`](crate::Job::stuck_after) by default. A
    /// worker without work sleeps for up to a second, so a limit below two seconds counts as two
    /// seconds.
    pub fn step_within(self, limit: Duration) -> HealthLimits {
        HealthLimits { step: Some(limit), ..self }
    }

    /// A job is alive when a checkpoint that was cut is acknowledged and committed within `limit`;
    /// five minutes by default. While a broker is away nothing is committed, and restarting the
    /// process does not help: set a limit that is longer than the outages you expect.
    pub fn commit_within(self, limit: Duration) -> HealthLimits {
        HealthLimits { commit: limit, ..self }
    }

    /// A job is alive when no source waits longer than `limit` for what it needs to read, such as
    /// partitions of its consumer group or a broker that is away; five minutes by default. Here
    /// too, a new process does not bring the broker back.
    pub fn group_within(self, limit: Duration) -> HealthLimits {
        HealthLimits { group: limit, ..self }
    }
}

impl Default for HealthLimits {
    fn default() -> HealthLimits {
        HealthLimits::new()
    }
}

/// Whether a job is alive and ready, with the reasons when it is not.
///
/// Its text is a line such as ``alive, not ready: `kafka orders` is 1200 records behind its end,
/// 1000 are allowed``.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct Health {
    /// Why the job is not alive; empty when it is.
    pub not_alive: Vec<String>,
    /// Why a job that is alive is not ready; empty when it is.
    pub not_ready: Vec<String>,
}

impl Health {
    /// Whether the job works, or recovers by itself. If not, only a new process can help.
    pub fn is_alive(&self) -> bool {
        self.not_alive.is_empty()
    }

    /// Whether the job is alive, reads its input, and has caught up.
    pub fn is_ready(&self) -> bool {
        self.is_alive() && self.not_ready.is_empty()
    }

    pub(crate) fn dead(reason: String) -> Health {
        Health { not_alive: vec![reason], not_ready: Vec::new() }
    }

    pub(crate) fn unready(reason: String) -> Health {
        Health { not_alive: Vec::new(), not_ready: vec![reason] }
    }

    /// The health of a run that is under way.
    pub(crate) fn of(run: &Run, report: &Report, limits: &HealthLimits) -> Health {
        let (now, vitals) = (Clock::system().now(), &run.vitals);
        let mut health = Health::default();
        let Some(served) = vitals.served() else {
            return Health::unready("the run is starting or ending".to_owned());
        };
        let step = limits.step.unwrap_or(vitals.stuck_after / 2).max(STEP_MIN);
        if now - served > step {
            health.not_alive.push(format!("the control thread has not responded for {}", told(now - served)));
        }
        for (index, busy) in vitals.busy(now).enumerate().filter(|(_, busy)| *busy > step) {
            health.not_alive.push(format!("worker {index} has been in one step for {}", told(busy)));
        }
        if let Some(open) = vitals.open().filter(|open| now - open.since > limits.commit) {
            // A new process would find the same disk.
            let is_disk = open.stage == OpenStage::Disk;
            let list = if is_disk { &mut health.not_ready } else { &mut health.not_alive };
            list.push(open.reason(&run.plan, now));
        }
        for waiting in run.plan.waiting() {
            let since = vitals.waiting_since(&waiting).unwrap_or(now);
            let list = if now - since > limits.group { &mut health.not_alive } else { &mut health.not_ready };
            list.push(format!("{waiting} ({} so far)", told(now - since)));
        }
        if vitals.stops.load(Relaxed) {
            health.not_ready.push("the job is stopping".to_owned());
        }
        let behind = |source: &&SourceReport| limits.lag.is_some_and(|most| source.lag_records() > most);
        for source in report.sources.iter().filter(behind) {
            let (name, lag, most) = (&source.name, source.lag_records(), limits.lag.unwrap_or_default());
            health.not_ready.push(format!("`{name}` is {lag} records behind its end, {most} are allowed"));
        }
        health
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_alive(), self.not_ready.is_empty()) {
            (true, true) => f.write_str("alive and ready"),
            (true, false) => write!(f, "alive, not ready: {}", self.not_ready.join("; ")),
            (false, _) => write!(f, "not alive: {}", self.not_alive.join("; ")),
        }
    }
}

/// Twice the longest sleep of a worker.
const STEP_MIN: Duration = Duration::from_secs(2);

/// A duration as reasons show it.
fn told(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

impl OpenCheckpoint {
    fn reason(&self, plan: &Plan, now: Moment) -> String {
        let (checkpoint, age) = (self.checkpoint, told(now - self.since));
        match self.stage {
            OpenStage::Commit => format!("the commit of checkpoint {checkpoint} has not been answered for {age}"),
            OpenStage::Disk => format!("checkpoint {checkpoint} has not been written to its disk for {age}"),
            OpenStage::Acknowledgements => {
                let open = plan.nodes().filter_map(|(node, meter)| match meter {
                    Meter::Sink(meter) => {
                        let done = meter.acknowledged.get() + meter.skipped.get();
                        let open = meter.records.get().saturating_sub(done);
                        (open > 0).then(|| format!("{open} by `{}`", node.name))
                    }
                    Meter::Source(_) | Meter::Stage(_) => None,
                });
                let open: Vec<String> = open.collect();
                let of_sinks = if open.is_empty() { String::new() } else { format!(" ({})", open.join(", ")) };
                format!("records of checkpoint {checkpoint} have not been acknowledged{of_sinks} for {age}")
            }
        }
    }
}
