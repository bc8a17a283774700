//! What the tests of the engine share: a source that reads as a test says, sinks that acknowledge when a test says, and
//! a clock that is moved until a job has ended.

pub mod broker;
#[cfg(feature = "tls")]
pub mod certificates;
pub mod events;
#[cfg(feature = "registry")]
pub mod registry;
pub mod script;
pub mod valve;
pub mod wire;

use std::time::{Duration, Instant};

use millstream::{Clock, Report, Result, Running};

/// No test waits for longer: a job that hangs is a failure and not a wait.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Moves the clock until the job has ended.
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

/// Waits until something holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to be that {what}");
        // Whoever makes it hold wants the processor more.
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
