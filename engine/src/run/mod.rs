//! Floor 5: how a process runs a job. The [`supervisor`] starts one run after the other; a
//! [`planner`] connects it; the [`server`] starts the [`worker`] threads, serves clients, commits,
//! drains revoked partitions ([`revocation`]), and takes everything down again. The program makes
//! requests and gets reports through the [`handle`].

// What a run is made of.
pub(crate) mod spec;
pub(crate) mod graph;
pub(crate) mod plan;
pub(crate) mod memory;
mod events;
mod vitals;
pub(crate) mod shared;

// How it is reported.
pub(crate) mod report;
pub(crate) mod health;
pub(crate) mod listener;
pub(crate) mod handle;
pub(crate) mod jobs;
pub(crate) mod names;
mod labels;
pub(crate) mod histogram;
mod metrics;
#[cfg(feature = "terminal")]
mod terminal;

// How it is run.
pub(crate) mod planner;
mod worker;
mod revocation;
mod memory_guard;
mod server;
pub(crate) mod supervisor;

#[cfg(test)]
pub(crate) use memory_guard::tests::pretend_that_memory_is_scarce;
