//! A million windows that close at once: how long do records wait meanwhile, and what memory does
//! it take?
//!
//! Method: one worker, and a checkpoint each second. A million keys have a count each in one window
//! of event time, which nothing closes yet. Then an open loop of records, a few thousand a second,
//! of later windows; in the middle the event time of one of them closes the million. A second
//! branch of the same stream takes each record's time from when it was *due* until it has gone
//! through. Shown are the records that were due from the closing one until the last of the million
//! rows was out, and those of as long a time before. The memory is that of the process: before the
//! firing, and the most while it goes on. Not shown: several workers, rows that allocate, a sink
//! that is slow (then the firing waits, `tests/it/windows/edges.rs`).
//!
//! `cargo bench --bench firing`

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use millstream::{ByteSize, Collected, EventTime, Job, Tumbling, channel, collect, discard, generate};
use millstream_benches::machine::{memory, monotonic_nanos};
use millstream_benches::statistics::median;

/// A key, an event time, and when the record was due.
type Record = (u64, i64, u64);

const WINDOW: Duration = Duration::from_secs(10);

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    let (keys, rate, seconds, rounds) = if smoke { (10_000, 1_000, 1, 1) } else { (1_000_000, 5_000, 6, 5) };
    let mut p99s = Vec::new();
    for _ in 0..rounds {
        p99s.push(firing(keys, rate, seconds));
    }
    println!("p99 of the record path while it fires, median of {rounds}: {:.3} ms (target: 1)", median(&p99s));
}

/// Fires that many windows in the middle of so many seconds. Returns the 99th percentile of the
/// latency meanwhile, in milliseconds.
fn firing(keys: u64, rate: u64, seconds: u64) -> f64 {
    let (sender, load) = channel::<Record>(10_000);
    let fill = generate(|n| (n, 0, 0)).count(keys).partitions(1);
    let latencies: Collected<(u64, u64)> = collect();
    let (rows, last_row) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (sink, counted, last) = (latencies.clone(), Arc::clone(&rows), Arc::clone(&last_row));
    let job = Job::new("firing", move |flow| {
        let fill =
            flow.source(&fill)?.named("fill").with_watermark(|(_, at, _): &Record| EventTime(*at), Duration::ZERO);
        let load = flow.source(&load)?.named("load");
        let load = load.with_watermark(|(_, at, _): &Record| EventTime(*at), Duration::ZERO);
        load.clone().map(|(.., due)| (due, monotonic_nanos().saturating_sub(due))).sink(&sink)?;
        let counts = fill.union(load).key_by(|(key, ..)| *key).window(Tumbling::new(WINDOW)).count().finals();
        let (counted, last) = (Arc::clone(&counted), Arc::clone(&last));
        let counts = counts.filter(|pane| pane.window.start == EventTime(0)).inspect(move |_| {
            counted.fetch_add(1, SeqCst);
            last.store(monotonic_nanos(), SeqCst);
        });
        counts.sink(discard())
    });
    let place = tempfile::tempdir().expect("there is room for a directory");
    let job = job.checkpoints(place.path()).state_memory(ByteSize::mebibytes(4096));
    let running = job.start().expect("nothing can fail");
    while running.report().stages.iter().map(|stage| stage.entries).max() < Some(keys) {
        thread::sleep(Duration::from_millis(20));
    }
    // Until what has changed is encoded and written.
    thread::sleep(Duration::from_secs(3));
    let (own, done) = (std::process::id(), Arc::new(AtomicBool::new(false)));
    let before = memory(own).0;
    let seen = Arc::clone(&done);
    let peak = thread::spawn(move || {
        let mut peak = 0;
        while !seen.load(SeqCst) {
            peak = memory(own).0.max(peak);
            thread::sleep(Duration::from_millis(1));
        }
        peak
    });
    let begin = monotonic_nanos() + 10_000_000;
    let (records, closing) = (rate * seconds, rate * seconds / 2);
    let due_of = |record: u64| begin + record * 1_000_000_000 / rate;
    for record in 0..records {
        let due = due_of(record);
        thread::sleep(Duration::from_nanos(due.saturating_sub(monotonic_nanos())));
        let at = if record < closing { 1 } else { 10_000 + record as i64 };
        drop(sender.try_send((keys + record % 100, at, due)).expect("there is room"));
    }
    let waited = Instant::now();
    while rows.load(SeqCst) < keys {
        assert!(waited.elapsed() < Duration::from_secs(60), "{} rows came", rows.load(SeqCst));
        thread::sleep(Duration::from_millis(1));
    }
    done.store(true, SeqCst);
    let peak = peak.join().expect("the thread only reads");
    drop(sender);
    // The rows of the last window come when the source ends.
    let (from, until) = (due_of(closing), last_row.load(SeqCst));
    running.wait().expect("nothing can fail");
    let mut quiet = Histogram::<u64>::new(3).expect("three digits are allowed");
    let mut meanwhile = quiet.clone();
    for (due, nanos) in latencies.take() {
        match due {
            due if due >= from && due <= until => meanwhile += nanos,
            due if due < from && due + (until - from) >= from => quiet += nanos,
            _ => {}
        }
    }
    let at = |histogram: &Histogram<u64>, quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
    println!(
        "{keys} windows fire within {:.0} ms; records at {rate}/s meanwhile: {} of them, p50 {:.3} p99 {:.3} max {:.3} ms; \
         before: p99 {:.3} max {:.3}; memory {:.0} MB, at most {:.0}",
        (until - from) as f64 / 1e6,
        meanwhile.len(),
        at(&meanwhile, 0.5),
        at(&meanwhile, 0.99),
        meanwhile.max() as f64 / 1e6,
        at(&quiet, 0.99),
        quiet.max() as f64 / 1e6,
        before as f64 / 1e6,
        peak as f64 / 1e6
    );
    at(&meanwhile, 0.99)
}
