//! Floor 5: what a process does. The [`control`] thread plans a run, starts a [`worker`] thread each, serves clients,
//! commits, and takes everything down again; it restarts what failed when the job says so. The only floor with threads.

pub(crate) mod begin;
pub(crate) mod control;
pub(crate) mod handle;
pub(crate) mod health;
pub(crate) mod histogram;
pub(crate) mod jobs;
pub(crate) mod listener;
mod metrics;
pub(crate) mod names;
pub(crate) mod plan;
pub(crate) mod report;
#[cfg(feature = "terminal")]
pub(crate) mod terminal;
pub(crate) mod worker;
