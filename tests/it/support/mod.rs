//! What the tests of the engine share: a source that follows a script, sinks that acknowledge when
//! a test says so, a probe that counts rounds, and a clock that is advanced until a job has ended.

pub mod broker;
#[cfg(feature = "tls")]
pub mod certificates;
pub mod events;
pub mod probe;
#[cfg(feature = "registry")]
pub mod registry;
pub mod script;
pub mod topic;
pub mod valve;
pub mod wire;

use std::time::{Duration, Instant};

use millstream::{Clock, Report, Result, Running};

/// The longest that a test waits: a job that hangs is a failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Advances the clock until the job has ended.
#[track_caller]
pub fn run_to_end(mut running: Running, clock: &Clock, step: Duration) -> Result<Report> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = running.wait_for(Duration::from_micros(200)) {
            return result;
        }
        assert!(Instant::now() < deadline, "the job hangs:\n{}", running.report());
        clock.advance(step);
    }
}

/// Waits until `holds` returns true.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        // Leaves the processor to the threads that make it hold.
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// A seed that is printed, so that a failure can be repeated with `MILLSTREAM_SEED`.
pub fn seed() -> u64 {
    let seed = std::env::var("MILLSTREAM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLSTREAM_SEED={seed}");
    seed
}
