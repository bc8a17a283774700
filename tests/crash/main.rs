//! A real process, killed with SIGKILL, and its memory measured from outside.

mod counts;
mod members;
mod windows;

#[path = "../it/support/broker.rs"]
#[allow(dead_code, reason = "the other test binary uses the rest")]
mod broker;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use members::Watch;
use millstream_tests::compare;
use rdkafka::producer::BaseRecord;

/// The longest that a test waits for something.
const PATIENCE: Duration = Duration::from_secs(60);

/// Killed with SIGKILL when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn target(arguments: &[&str], stdout: Stdio) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crash-target"));
    Process(command.args(arguments).stdout(stdout).spawn().expect("the target starts"))
}

/// Prints a seed, so that a failure can be repeated with `MILLSTREAM_SEED`.
fn seed() -> u64 {
    let seed = std::env::var("MILLSTREAM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLSTREAM_SEED={seed}");
    seed
}

/// Under both triggers in turn. Half of the kills come within a second and a half, including the
/// start of the process. The others come after the process has committed, so an engine that never
/// commits fails here. 2 000 records a second are written throughout. The checker's own tests show
/// that it finds planted faults.
#[test]
fn fifty_kills_lose_nothing_and_repeat_only_what_was_not_committed() {
    const KILLS: usize = 50;
    let broker = broker::shared();
    let (input, output) = (broker.topic("kills-in", 4), broker.topic("kills-out", 4));
    let mut random = fastrand::Rng::with_seed(seed());
    let start = |trigger| target(&["copy", &broker.address, &input, &output, &input, trigger], Stdio::null());
    let watch = Watch::new(broker, &input, 4);
    // What a killed process can have written and not committed, over all kills.
    let mut uncommitted = 0;
    let during = |sent: &AtomicU64| {
        for kill in 0..KILLS {
            let before = watch.committed();
            let mut process = start(if kill % 2 == 0 { "continuous" } else { "20" });
            let life = if kill % 4 < 2 {
                random.u64(0..1_500)
            } else {
                watch.wait_for(before + 1, "a kill");
                random.u64(0..300)
            };
            std::thread::sleep(Duration::from_millis(life));
            assert!(process.0.try_wait().expect("it is a child of this process").is_none(), "it ended by itself");
            drop(process);
            uncommitted += watch.uncommitted(sent);
        }
    };
    broker.under_load(&input, |n| ((n % 100).to_string(), n.to_string()), during);
    let last = start("continuous");
    let expected = broker.records(&input);
    let deadline = Instant::now() + PATIENCE;
    let findings = loop {
        let findings = compare(&expected, &broker.records(&output));
        if findings.lost.is_empty() || Instant::now() > deadline {
            break findings;
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    drop(last);
    let repeats = findings.looked_at.saturating_sub(expected.iter().flatten().count()) as u64;
    println!("{KILLS} kills: {repeats} repeats of {uncommitted} uncommitted, {findings}");
    assert!(findings.at_least_once(), "{findings}");
    assert!(findings.looked_at > KILLS * 500, "too little went through: {findings}");
    assert!(repeats <= uncommitted, "{repeats} repeats, but only {uncommitted} were uncommitted: {findings}");
    assert!(repeats > 0, "nothing is repeated: the kills did not hit a working process");
}

/// The records that wait for a micro-batch are read, but neither written nor committed: a process
/// that is killed then loses nothing.
#[test]
fn a_kill_in_the_middle_of_a_micro_batchs_queue_loses_nothing() {
    let broker = broker::shared();
    let (input, output) = (broker.topic("queue-in", 2), broker.topic("queue-out", 2));
    let start = |trigger: &str| target(&["copy", &broker.address, &input, &output, &input, trigger], Stdio::piped());
    let write = |range: std::ops::Range<i32>| {
        let numbers: Vec<String> = range.map(|n| n.to_string()).collect();
        broker.write(&input, numbers.iter().map(|n| (None, n.as_str(), Some(n.as_str()))));
    };
    let watch = Watch::new(broker, &input, 2);
    write(0..500);
    let first = start("20");
    watch.wait_for(500, "the first batch");
    drop(first);
    let mut second = start("600000");
    write(500..1_000);
    // It has read them, and could have committed twenty times since; its tick is minutes away.
    let told = BufReader::new(second.0.stdout.take().expect("it is piped")).lines();
    let mut has_read = told.take(600).filter(|line| line.as_ref().is_ok_and(|line| line == "1000"));
    assert!(has_read.nth(20).is_some(), "it does not read");
    assert_eq!(watch.committed(), 500, "records that wait for their tick are not committed");
    assert_eq!(broker.records(&output).iter().flatten().count(), 500);
    drop(second);
    let third = start("continuous");
    watch.wait_for(1_000, "the kill");
    drop(third);
    let findings = compare(&broker.records(&input), &broker.records(&output));
    assert!(findings.at_least_once() && findings.doubled.is_empty(), "{findings}");
}

#[test]
fn memory_stays_bounded_before_a_slow_sink() {
    // The default. A broker sends whole batches of a producer, here of a megabyte each, so at least
    // 64 of them are fetched ahead, whatever the bound.
    const MEMORY: u64 = 256 << 20;
    let Some(broker) = broker::real("the embedded broker would keep a million records in memory") else { return };
    let input = broker.topic("backlog", 64);
    let (producer, value) = (broker.producer(), "x".repeat(1_200));
    for n in 0..1_000_000_i32 {
        broker::send(&producer, BaseRecord::to(&input).partition(n % 64).key("").payload(value.as_str()));
    }
    broker::flush(&producer);
    let child = target(&["slow", &broker.address, &input, &MEMORY.to_string()], Stdio::null());
    let begin = Instant::now();
    let mut most = 0;
    // Memory that grows without a bound shows only with time. The backlog builds up within seconds.
    while begin.elapsed() < Duration::from_secs(12) {
        std::thread::sleep(Duration::from_millis(100));
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.0.id())).expect("the target runs");
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it has a high-water mark");
        most = line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok()).expect("a number")
            * 1024;
    }
    drop(child);
    println!("peak memory: {} MiB of {} MiB", most >> 20, MEMORY >> 20);
    assert!(most > MEMORY / 3, "only {} MiB: the backlog did not build up", most >> 20);
    assert!(most < MEMORY * 115 / 100, "{} MiB, more than {} MiB and 15 %", most >> 20, MEMORY >> 20);
}
