//! The example `windows`, killed again and again: each window is final once, in value.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{PATIENCE, Process, broker, seed};

const LENGTH: i64 = 2_000;
const STEP: i64 = 1_000;
const DELAY: i64 = 300;

fn windows(broker: &broker::Broker, (input, output): (&str, &str), directory: &Path, flags: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windows"));
    command.args(["--brokers", &broker.address, "--input", input, "--output", output, "--group", input]);
    command.args(["--window", "sliding:2s,1s", "--delay", "300ms"]);
    command.arg("--checkpoints").arg(directory).args(["--checkpoint-every", "100ms"]).args(flags);
    Process(command.stdout(Stdio::null()).spawn().expect("the example starts"))
}

/// Half a millisecond for each record, out of order by less than the delay, and now and then by
/// much more.
fn event(n: u64) -> (String, String) {
    let behind = if n % 101 == 100 { 3_000 } else { n as i64 * 7_919 % (DELAY - 50) };
    let key = format!("key-{}", n % 53);
    (key.clone(), json!({ "key": key, "at": n as i64 / 2 - behind }).to_string())
}

/// A key and the start of a window.
type Sums = BTreeMap<(String, i64), u64>;

/// What all windows hold, recomputed of the topic; how many records are late for a window; and the
/// time up to which all partitions have come.
fn expected(broker: &broker::Broker, input: &str) -> (Sums, u64, i64) {
    let (mut sums, mut late, mut least) = (Sums::new(), 0, i64::MAX);
    for partition in broker.read(input) {
        let mut mark = i64::MIN;
        for read in partition {
            let event: Value = serde_json::from_str(&read.value.expect("there are no tombstones")).expect("JSON");
            let (key, at) = (event["key"].as_str().expect("text"), event["at"].as_i64().expect("a number"));
            let last = at - at.rem_euclid(STEP);
            for start in (0..LENGTH / STEP).map(|back| last - back * STEP) {
                if start + LENGTH <= mark {
                    late += 1;
                } else {
                    *sums.entry((key.to_owned(), start)).or_default() += 1;
                }
            }
            mark = mark.max(at - DELAY);
        }
        least = least.min(mark);
    }
    (sums, late, least)
}

/// What was written, and how many rows repeat another one.
fn written(broker: &broker::Broker, output: &str) -> (Sums, u64, BTreeSet<(String, i64)>) {
    let (mut seen, mut repeated, mut wrong) = (Sums::new(), 0, BTreeSet::new());
    for read in broker.read(output).into_iter().flatten() {
        let row: Value = serde_json::from_str(&read.value.expect("there are no tombstones")).expect("JSON");
        let at = (row["key"].as_str().expect("text").to_owned(), row["start"].as_i64().expect("a number"));
        let count = row["count"].as_u64().expect("a number");
        if let Some(before) = seen.insert(at.clone(), count) {
            repeated += 1;
            if before != count {
                wrong.insert(at);
            }
        }
    }
    (seen, repeated, wrong)
}

/// Under both triggers and with another number of workers each time. The load goes on throughout.
#[test]
fn a_hundred_kills_and_every_window_is_final_once_in_value() {
    const KILLS: usize = 100;
    let broker = broker::shared();
    let (input, output) = (broker.topic("windows-in", 4), broker.topic("windows-out", 4));
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let mut random = fastrand::Rng::with_seed(seed());
    let begin = Instant::now();
    let (sent, ()) = broker.under_load(&input, event, |_| {
        for kill in 0..KILLS {
            let workers = random.usize(1..4).to_string();
            let trigger = ["continuous", "20ms"][kill % 2];
            let flags = ["--workers", &workers, "--trigger", trigger];
            let mut process = windows(broker, (&input, &output), directory.path(), &flags);
            let life = if kill % 3 == 0 { random.u64(0..250) } else { random.u64(250..1_200) };
            std::thread::sleep(Duration::from_millis(life));
            assert!(process.0.try_wait().expect("it is a child of this process").is_none(), "it ended by itself");
            drop(process);
        }
    });
    let took = begin.elapsed();
    let last = windows(broker, (&input, &output), directory.path(), &["--workers", "2"]);
    let (sums, late, least) = expected(broker, &input);
    let over: Sums =
        sums.iter().filter(|((_, start), _)| start + LENGTH <= least).map(|(at, n)| (at.clone(), *n)).collect();
    let deadline = Instant::now() + PATIENCE;
    let (seen, repeated, wrong) = loop {
        let (seen, repeated, wrong) = written(broker, &output);
        if over.keys().all(|at| seen.contains_key(at)) || Instant::now() > deadline {
            break (seen, repeated, wrong);
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    drop(last);
    println!(
        "{KILLS} kills in {took:?}: {sent} events, {late} times late for a window, {} windows that are over, {repeated} \
         rows repeated",
        over.len()
    );
    assert!(wrong.is_empty(), "repeated with another value: {:?}", wrong.iter().take(5).collect::<Vec<_>>());
    let missing: Vec<_> = over.keys().filter(|at| !seen.contains_key(*at)).take(5).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    let differ: Vec<_> = seen.iter().filter(|(at, count)| sums.get(*at) != Some(count)).take(5).collect();
    assert!(differ.is_empty(), "other counts: {differ:?}");
    assert!(late > 0, "nothing was late");
    assert!(repeated > 0, "nothing is repeated: the kills did not hit a working process");
    assert!(over.len() > 1_000, "too little went through: {}", over.len());
}
