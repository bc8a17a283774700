//! What the benches share: a driver that keeps to its schedule, measurements of a process's CPU and
//! memory, and statistics with confidence intervals.

pub mod driver;
pub mod machine;
pub mod statistics;
pub mod topics;
