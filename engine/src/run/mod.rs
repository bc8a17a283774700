//! Floor 5: what a process does. The [`supervisor`] has one run after the other; a [`planner`] connects
//! it; the [`server`] starts a [`worker`] thread each, serves clients, commits, has partitions drained
//! ([`revocation`]), and takes everything down again. The program asks and is told through the
//! [`handle`].

// What a run is made of.
pub(crate) mod spec;
pub(crate) mod graph;
pub(crate) mod plan;
mod events;
mod vitals;
pub(crate) mod shared;

// What is told of it.
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
mod server;
pub(crate) mod supervisor;
