//! What the benches share: a driver that keeps to its schedule, a look at a process's CPU and memory, and statistics
//! that say how sure they are.

pub mod driver;
pub mod machine;
pub mod statistics;
pub mod topics;
