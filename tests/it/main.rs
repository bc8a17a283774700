//! The promises, each as a test: one binary. Tests of the engine alone need nothing; those under `kafka` run on a real
//! broker when `MILLSTREAM_KAFKA` names one, and on an embedded one otherwise.

mod support;

use support::PATIENCE;

mod bounds;
mod calls;
mod checkpoints;
mod compare;
mod ends;
mod epochs;
mod explain;
mod faults;
mod files;
mod hand_over;
mod health;
mod intake;
mod kafka;
mod listeners;
mod memory;
mod mistakes;
mod observe;
mod receipts;
mod results;
mod sockets;
mod testing;
