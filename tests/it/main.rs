//! The promises, each as a test, in one binary. Tests that use Kafka run on a real broker when
//! `MILLSTREAM_KAFKA` names one, and on an embedded one otherwise; all others need nothing.

mod support;

use support::PATIENCE;

mod bounds;
mod calls;
mod checkpoints;
mod compare;
mod ends;
mod epochs;
mod every;
mod explain;
mod faults;
mod files;
mod golden;
mod health;
mod idle;
mod intake;
mod keyed;
mod keyed_calls;
mod kafka;
mod kept_calls;
mod listeners;
mod memory;
mod migration;
mod mistakes;
mod observe;
mod random;
mod receipts;
mod recovery;
mod results;
mod revocation;
mod sockets;
mod state;
mod surface;
mod testing;
mod windows;
