//! The machine during a measurement: a clock that all processes share, the resources a process has
//! used, and stalls of the machine itself.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock, which all processes of a machine share.
pub fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The path of a program that was built beside this bench; `command` builds it.
pub fn program(name: &str, command: &str) -> PathBuf {
    let own = env::current_exe().expect("the path of the current program is known");
    let path = own.parent().and_then(Path::parent).expect("it is in target/release/deps").join(name);
    assert!(path.exists(), "{name} is not built: {command}");
    path
}

/// The newest whole line of a file of reports. A line that is still being written has no end yet.
pub fn newest_report(path: &Path) -> Option<serde_json::Value> {
    let reports = fs::read_to_string(path).ok()?;
    let whole = &reports[..reports.rfind('\n')?];
    Some(serde_json::from_str(whole.lines().last()?).expect("a line of reports is JSON"))
}

/// CPU time, user and system, that the live threads of a process have used. It has a resolution of
/// nanoseconds, while `/proc/<pid>/stat` counts ticks of ten milliseconds.
pub fn cpu(pid: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let nanos = threads.flatten().map(|thread| {
        let used = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        used.split_whitespace().next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0)
    });
    Duration::from_nanos(nanos.sum())
}

/// Resident memory of a process in bytes: `(now, peak)`.
pub fn memory(pid: u32) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0)
    };
    (kilobytes("VmRSS:") * 1024, kilobytes("VmHWM:") * 1024)
}

/// Sleeps for 1 ms at a time and records by how much the machine oversleeps: delays that no engine
/// causes.
pub struct Hiccups {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<Histogram<u64>>>,
}

impl Hiccups {
    /// Starts to measure.
    pub fn start() -> Hiccups {
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        let thread = thread::spawn(move || {
            let mut hiccups = Histogram::new(3).expect("three digits are allowed");
            while !seen.load(SeqCst) {
                let before = Instant::now();
                thread::sleep(Duration::from_millis(1));
                hiccups += (before.elapsed() - Duration::from_millis(1)).as_nanos() as u64;
            }
            hiccups
        });
        Hiccups { done, thread: Some(thread) }
    }

    /// Stops and returns the delays.
    pub fn stop(mut self) -> Histogram<u64> {
        self.done.store(true, SeqCst);
        self.thread.take().and_then(|thread| thread.join().ok()).expect("the thread only sleeps")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_still_being_written_is_not_read() {
        let path = env::temp_dir().join(format!("reports-{}.jsonl", fastrand::u64(..)));
        let newest = |text: &str| {
            fs::write(&path, text).unwrap();
            newest_report(&path).map(|report| report["epochs"].as_u64())
        };
        assert_eq!(newest(""), None);
        assert_eq!(newest("{\"epochs\":1}"), None);
        assert_eq!(newest("{\"epochs\":1}\n{\"epochs\":"), Some(Some(1)));
        assert_eq!(newest("{\"epochs\":1}\n{\"epochs\":2}\n"), Some(Some(2)));
        fs::remove_file(&path).unwrap();
    }
}
