//! An executable model of what a job with state promises: event time, cuts, checkpoints, commits
//! and recovery. It has no thread, no file and no timely: one seed is one plan and one schedule of
//! it, and everything that may happen in another order does, with the random numbers of the seed.
//! Rules are tried here before they are built.
//!
//! # What is modelled
//!
//! 1–4 workers; channels that keep their order, with any delay; the frontiers of inputs, exact but
//! seen late, each on its own; one ticker; `Continuous` and `MicroBatch`; keyed operators in a
//! chain, which set aside what belongs to the next checkpoint, fire in slices, and hold a
//! capability of the ledger while they have changes; sources with marks, idle partitions and ends;
//! an exchange in front of two sinks, of which one acknowledges and one commits with the
//! checkpoint; a budget for records and a reserve for firings; the checkpoint thread, step by step,
//! on a disk that loses and tears what was not synced; a thread of an earlier run that hangs and
//! goes on later; crashes, faults within the process, and restarts with another number of workers
//! and the other trigger.
//!
//! # What is checked
//!
//! - The committed outputs of every operator, and its late records, are those of a sequential
//!   recomputation (`reference`), which knows the partitions and nothing else. The sink that
//!   acknowledges gets each of them at least once.
//! - An output and the change of state that caused it are on one side of every cut.
//! - A record that is not late by its own mark never meets what is closed already.
//! - A committed checkpoint can be read, and is not older than what a receipt has promised.
//! - Counts in state are exact at the end, and everything comes to rest.
//!
//! # What is not
//!
//! Timely's own progress protocol, several processes, serialization, and deltas: a section is the
//! whole state of an operator on a worker, if it has changed.
//!
//! Every rule can be broken on purpose ([`Mistake`]), and a test shows that the checks find it. A
//! model that cannot fail says nothing.

mod checkpoint;
mod disk;
mod egress;
mod kinds;
mod mistake;
mod operator;
mod plan;
mod progress;
mod recover;
mod reference;
mod source;
mod tokens;
mod world;

#[cfg(test)]
mod tests;

pub use mistake::Mistake;
pub use plan::Plan;

use world::World;

/// Runs the plan of a seed under three schedules. Returns what was wrong.
pub fn check(mistake: Mistake, seed: u64) -> Outcome {
    let plan = Plan::random(mistake.plan_of(seed));
    let expected = reference::of(&plan);
    let mut outcome = Outcome::default();
    for schedule in 0..3 {
        let run = World::run(&plan, mistake, seed * 3 + schedule);
        outcome.outputs += run.committed.len() + run.acknowledged.len();
        outcome.restarts += run.restarts;
        outcome.violations.extend(reference::compare(&plan, &expected, &run));
        outcome.violations.extend(run.violations);
    }
    outcome
}

/// What three runs of one plan did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many rows came out.
    pub outputs: usize,
    /// How often a run was begun again.
    pub restarts: usize,
    /// Each begins with the name of the check.
    pub violations: Vec<String>,
}
