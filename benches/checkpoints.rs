//! Checkpoints of keyed state: what do they cost the records, and how long does recovery take?
//!
//! Method: counts by `u64` key on one worker, with every update emitted. (1) Throughput with a
//! checkpoint each second against none, interleaved, medians: keys drawn from all (everything is
//! dirty) or from a window of one in a hundred that moves on each second, as the rate of a run
//! before says. Then how many bytes are written for each byte of changed entries, merges included,
//! over 200 checkpoints of 50 ms in which the same keys change, or new ones come. (2) The time from
//! when a record is due until its update is written, at a fixed rate that changes one key in a
//! hundred each second, with and without checkpoints, one worker and two; and while a table grows
//! from nothing. (3) The time from `start` to the first output of a job that goes on from a
//! checkpoint, at the longest chain: nine of ten entries are in the files twice. (4) The memory of
//! the process for each key of a count, beside a hash table by hand that was filled in the same
//! way; each in a process of its own. (5) The time from opening an epoch until it is through, by
//! the number of keyed operators that get nothing, in the same job and in others of the process.
//! Not shown: a disk with a slow sync, other loads.
//!
//! `cargo bench --bench checkpoints`; `-- --only throughput`, `stalls`, `recovery`, `memory` or
//! `idle` for a part

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use millstream::{ByteSize, Collected, Job, Report, Stream, Trigger, channel, collect, discard, generate};
use millstream_benches::machine::memory;
use millstream_benches::statistics::median;

/// More than the largest state here needs.
const STATE: ByteSize = ByteSize::mebibytes(4096);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let smoke = arguments.iter().any(|argument| argument == "--smoke");
    let only = arguments.iter().skip_while(|argument| *argument != "--only").nth(1);
    let wants = |part: &str| only.is_none_or(|only| only == part);
    if wants("throughput") {
        throughput(if smoke { 200_000 } else { 100_000_000 }, if smoke { 1_000 } else { 1_000_000 });
        amplification(if smoke { 5 } else { 200 });
    }
    if wants("stalls") {
        let (keys, seconds) = if smoke { (10_000, 1) } else { (6_000_000, 20) };
        stalls(keys, seconds);
    }
    if wants("recovery") {
        recovery(if smoke { 10_000 } else { 10_000_000 });
        recovery_of_texts(if smoke { 1_000 } else { 4_000_000 });
    }
    if wants("memory") {
        let sizes: &[u64] = if smoke { &[10_000] } else { &[1_000_000, 1_400_000, 2_000_000, 5_000_000, 10_000_000] };
        sizes.iter().for_each(|keys| memory_for_each_key(*keys));
    }
    if let Some(part) = only.and_then(|only| only.strip_prefix("one-")) {
        let keys =
            arguments.last().and_then(|keys| keys.parse().ok()).expect("the number of keys is the last argument");
        println!("{}", held(part == "engine", keys));
    }
    if wants("idle") {
        idle(if smoke { &[0, 10] } else { &[0, 1_000, 2_000] }, if smoke { &[100] } else { &[1_000, 2_000, 10_000] });
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is room for a directory")
}

/// Spreads numbers over all keys.
fn spread(n: u64, keys: u64) -> u64 {
    ((u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) * u128::from(keys)) >> 64) as u64
}

fn throughput(records: u64, keys: u64) {
    println!("count by key, {keys} keys, one worker, {records} records, a checkpoint each second");
    println!("{:8} {:>12} {:>12} {:>8}   entries", "dirty", "without, M/s", "with, M/s", "lost");
    for (what, is_window, target) in [("1 %", true, 3), ("100 %", false, 15)] {
        let mut rates: [Vec<f64>; 2] = Default::default();
        let mut written = None;
        // How many records share a window of keys.
        let mut window = records / 4;
        for round in 0..4 {
            for (index, rates) in rates.iter_mut().enumerate() {
                let place = directory();
                let key = move |n| match is_window {
                    true => (n / window * (keys / 100) + spread(n, keys / 100)) % keys,
                    false => spread(n, keys),
                };
                let source = generate(key).count(records).partitions(1);
                let job = Job::new("throughput", move |flow| {
                    flow.source(&source)?.key_by(|key| *key).count().updates().sink(discard())
                });
                let job = if index == 0 { job.state_in_memory() } else { job.checkpoints(place.path()) };
                let begin = Instant::now();
                let report = job.state_memory(STATE).run().expect("nothing can fail");
                let rate = records as f64 / begin.elapsed().as_secs_f64();
                if round == 0 {
                    // Only to know it.
                    window = (rate as u64).max(1);
                    continue;
                }
                rates.push(rate / 1e6);
                written = report.checkpoints.or(written);
            }
        }
        let [without, with] = rates.map(|rates| median(&rates));
        let written = written.expect("it keeps checkpoints");
        println!(
            "{what:8} {without:12.1} {with:12.1} {:7.1} %   {} in {} checkpoints (target: {target} %)",
            (1.0 - with / without) * 100.0,
            written.entries,
            written.writing.count
        );
    }
}

/// How much is written for what changes.
fn amplification(checkpoints: u64) {
    let each = 20_000;
    type Key = fn(u64) -> u64;
    let keys: [(&str, Key); 3] = [
        ("the same 20 000 keys each time", |n| n % 20_000),
        ("one in a hundred of 2 M keys each time", |n| spread(n, 2_000_000)),
        ("new keys each time", |n| spread(n, u64::MAX)),
    ];
    for (what, key) in keys {
        let place = directory();
        let source = generate(key).rate(each as f64 * 20.0).count(each * checkpoints).partitions(1);
        let job = Job::new("amplification", move |flow| {
            flow.source(&source)?.key_by(|key| *key).count().updates().sink(discard())
        });
        let job = job.checkpoints(place.path()).checkpoint_every(Duration::from_millis(50)).state_memory(STATE);
        let written = job.run().expect("nothing can fail").checkpoints.expect("it keeps checkpoints");
        println!(
            "{what}: {} checkpoints, {:.1} MB of changes, {:.1} MB merged: {:.2} bytes written for each (target: 2.2)",
            written.writing.count,
            written.bytes as f64 / 1e6,
            written.merged_bytes as f64 / 1e6,
            (written.bytes + written.merged_bytes) as f64 / written.bytes as f64
        );
    }
}

/// Fills a directory with a count of 1 for each key.
fn fill(place: &Path, keys: u64, from: u64) -> Report {
    let source = generate(move |n| n).count(keys).partitions(1);
    let job = Job::new("checkpoints", move |flow| {
        flow.source(&source)?.named(&format!("fill {from}")).key_by(|key| *key).count().updates().sink(discard())
    });
    job.checkpoints(place).forget_state(["fill 0"]).state_memory(STATE).run().expect("nothing can fail")
}

fn stalls(keys: u64, seconds: u64) {
    let rate = keys as f64 / 100.0;
    println!("from due to written, {keys} keys, {rate} records a second, each another key");
    for workers in [1, 2] {
        for checkpoints in [false, true] {
            let (place, records) = (directory(), rate as u64 * seconds);
            fill(place.path(), keys, 0);
            let source = generate(move |n| spread(n, keys)).rate(rate).count(records).partitions(8);
            let job = Job::new("checkpoints", move |flow| {
                flow.source(&source)?.named("load").key_by(|key| *key).count().updates().sink(discard())
            });
            let every = if checkpoints { Duration::from_secs(1) } else { Duration::from_secs(3600) };
            let job = job
                .checkpoints(place.path())
                .checkpoint_every(every)
                .forget_state(["fill 0"])
                .workers(workers)
                .state_memory(STATE);
            let report = job.run().expect("nothing can fail");
            let latency = report.sinks[0].latency;
            let [p50, p99, p999, max] = [latency.p50, latency.p99, latency.p999, latency.max];
            println!(
                "{workers} workers, checkpoints {}: p50 {p50:?} p99 {p99:?} p99.9 {p999:?} max {max:?} (target: p99 {} ms)",
                if checkpoints { "each second" } else { "none" },
                if workers == 1 { 1 } else { 3 }
            );
        }
    }
    let (place, growing) = (directory(), keys / seconds / 2);
    let source = generate(move |n| n).rate(growing as f64).count(growing * seconds);
    let job = Job::new("grow", move |flow| flow.source(&source)?.key_by(|key| *key).count().updates().sink(discard()));
    let report = job.checkpoints(place.path()).state_memory(STATE).run().expect("nothing can fail");
    let latency = report.sinks[0].latency;
    println!(
        "a table that grows by {growing} keys a second: p50 {:?} p99 {:?} p99.9 {:?} max {:?} (target: p99 1 ms)",
        latency.p50, latency.p99, latency.p999, latency.max
    );
}

/// Runs a job to its end. Returns how long its first output took from its start.
fn first_output<T: Clone + Send + 'static>(job: Job, outputs: &Collected<T>) -> Duration {
    let begin = Instant::now();
    let running = job.state_memory(STATE).start().expect("nothing can fail");
    while outputs.is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = begin.elapsed();
    running.wait().expect("nothing can fail");
    took
}

fn recovery(keys: u64) {
    let place = directory();
    fill(place.path(), keys, 0);
    fill(place.path(), keys * 9 / 10, 1);
    let bytes: u64 = std::fs::read_dir(place.path())
        .expect("it is there")
        .map(|entry| entry.and_then(|entry| entry.metadata()).map_or(0, |metadata| metadata.len()))
        .sum();
    for workers in [1, 2] {
        let (counts, source) = (collect(), generate(move |n| n % keys).rate(100.0).count(1));
        let sink = counts.clone();
        let job = Job::new("checkpoints", move |flow| {
            flow.source(&source)?.named(&format!("load {workers}")).key_by(|key| *key).count().updates().sink(&sink)
        });
        let job = job.checkpoints(place.path()).forget_state(["fill 1", "load 1"]).trigger(Trigger::Continuous);
        let took = first_output(job.workers(workers), &counts);
        println!(
            "{keys} counts, {:.0} MB in files, {workers} workers: first output after {took:?} (target: 2 s), {:?}",
            bytes as f64 / 1e6,
            counts.take()
        );
    }
}

/// The same for the newest text of 240 bytes for each key.
fn recovery_of_texts(keys: u64) {
    let (place, text) = (directory(), |n: u64| (n, format!("{n:0240}")));
    for (name, count) in [("all", keys), ("again", keys * 9 / 10)] {
        let source = generate(text).count(count).partitions(1);
        let job = Job::new("checkpoints", move |flow| {
            let texts = flow.source(&source)?.named(name);
            texts.key_by(|(n, _)| *n).reduce(|_, newest| newest).updates().sink(discard())
        });
        job.checkpoints(place.path()).forget_state(["all"]).state_memory(STATE).run().expect("nothing can fail");
    }
    for workers in [1, 2] {
        let (texts, source) = (collect(), generate(text).rate(100.0).count(1));
        let sink = texts.clone();
        let job = Job::new("checkpoints", move |flow| {
            let loaded = flow.source(&source)?.named(&format!("load {workers}"));
            loaded.key_by(|(n, _)| *n).reduce(|_, newest| newest).updates().sink(&sink)
        });
        let job = job.checkpoints(place.path()).forget_state(["again", "load 1"]).trigger(Trigger::Continuous);
        let took = first_output(job.workers(workers), &texts);
        println!(
            "{keys} texts, {:.0} MB of state, {workers} workers: first output after {took:?} (target: 4 s)",
            keys as f64 * 250.0 / 1e6
        );
    }
}

/// Prints the memory for each key in processes of their own: what one has freed another would use.
fn memory_for_each_key(keys: u64) {
    let [hand, engine] = ["one-hand", "one-engine"].map(|part| {
        let this = std::env::current_exe().expect("this program has a path");
        let output = Command::new(this).args(["--only", part, &keys.to_string()]).output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.trim().parse::<u64>().unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    });
    let each = |bytes: u64| bytes as f64 / keys as f64;
    println!(
        "{keys} counts by u64: {:.1} bytes a key by hand, {:.1} by the engine, {:.2} (target: no more)",
        each(hand),
        each(engine),
        engine as f64 / hand as f64
    );
}

/// How many bytes of memory so many counts take, in this process.
fn held(is_engine: bool, keys: u64) -> u64 {
    if !is_engine {
        let before = memory(std::process::id()).0;
        let mut counts = HashMap::<u64, (u64, u32)>::new();
        let mut touched = Vec::new();
        for n in 0..keys {
            counts.insert(spread(n, u64::MAX), (1, 0));
            touched.push(n);
            // A checkpoint each million.
            if n % 1_000_000 == 0 {
                touched = Vec::new();
            }
        }
        black_box((&counts, &touched));
        return memory(std::process::id()).0.saturating_sub(before);
    }
    let source = generate(|n| spread(n, u64::MAX)).count(keys + 1).partitions(1);
    let (more, last) = channel::<u64>(1);
    let (place, counts) = (directory(), collect());
    let sink = counts.clone();
    let job = Job::new("memory", move |flow| {
        let all = flow.source(&source)?.named("all").union(flow.source(&last)?);
        all.key_by(|key| *key).count().updates().filter(|(_, count)| *count > 1).sink(&sink)
    });
    let before = memory(std::process::id()).0;
    let running = job.checkpoints(place.path()).state_memory(STATE).start().expect("nothing can fail");
    while running.report().records_in() < keys {
        std::thread::sleep(Duration::from_millis(20));
    }
    // Until what was touched last is encoded and written.
    std::thread::sleep(Duration::from_secs(3));
    let held = memory(std::process::id()).0.saturating_sub(before);
    drop(more);
    running.abort();
    drop(running.wait());
    held
}

/// Epochs beside keyed operators that get nothing: in the job itself, and in other jobs of the
/// process, a hundred in each.
fn idle(in_job: &[u64], in_others: &[u64]) {
    for operators in in_job.iter().copied() {
        print_epochs(&format!("{operators} idle keyed operators in the job"), operators);
    }
    for operators in in_others.iter().copied() {
        let (mut jobs, mut inputs) = (Vec::new(), Vec::new());
        for number in 0..operators / 100 {
            let (input, nothing) = channel::<u64>(1);
            let place = directory();
            let job = Job::new(format!("idle {number}"), move |flow| {
                let nothing = flow.source(&nothing)?;
                keyed(&nothing, 100)?;
                nothing.sink(discard())
            });
            jobs.push((job.checkpoints(place.path()).start().expect("nothing can fail"), place));
            inputs.push(input);
        }
        print_epochs(&format!("{operators} idle keyed operators in other jobs"), 0);
        drop(inputs);
        jobs.iter().for_each(|(running, _)| running.abort());
        jobs.into_iter().for_each(|(running, _)| drop(running.wait()));
    }
}

/// So many keyed operators behind a stream.
fn keyed(stream: &Stream<'_, u64>, operators: u64) -> millstream::Result<()> {
    (0..operators).try_for_each(|operator| {
        let name = format!("idle {operator}");
        stream.clone().key_by(|key| *key).count().named(&name).updates().sink(discard())
    })
}

/// How long epochs take in a job with one busy keyed operator, and so many that get nothing.
fn print_epochs(what: &str, operators: u64) {
    let (nothing, idle) = channel::<u64>(1);
    let busy = generate(|n| n % 1_000).rate(10_000.0).count(50_000);
    let job = Job::new("idle", move |flow| {
        flow.source(&busy)?.named("busy").key_by(|key| *key).count().named("busy counts").updates().sink(discard())?;
        let idle = flow.source(&idle)?.named("idle");
        keyed(&idle, operators)?;
        idle.sink(discard())
    });
    let place = directory();
    let running = job.checkpoints(place.path()).state_memory(STATE).start().expect("nothing can fail");
    while running.report().records_in() < 50_000 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = running.report();
    running.abort();
    drop((running.wait(), nothing));
    println!(
        "{what}: an epoch takes p50 {:?}, p99 {:?}, {} epochs (target: 50 µs more for each 1 000)",
        report.epoch.p50, report.epoch.p99, report.epochs
    );
}
