//! Epochs and wake-ups in memory: how long it takes until an epoch is complete, until a record has
//! crossed to another worker, and until a job has started, and what an idle job uses.
//!
//! Method: (1) A record each millisecond and an epoch each hundred, through ten operators on one
//! spinning worker. The report's own histograms run from the source's downgrade, and from the
//! opening of the epoch on the ticker's thread, until everything before it is complete. (2) A
//! record each millisecond through an exchange between two parked workers, from `send` to the
//! writer; only records that changed workers count. (3) From `start` to the first value, a hundred
//! times. (4) CPU of this process while a job waits. Not shown: other loads on the machine.
//!
//! `cargo bench --bench epochs`

use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use millstream::{Job, channel, collect, discard, rows};
use millstream_benches::machine::cpu;

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    epoch_through_ten_operators(if smoke { 300 } else { 30_000 });
    record_across_two_parked_workers(if smoke { 100 } else { 5_000 });
    start_to_first_record(if smoke { 3 } else { 100 });
    idle(Duration::from_secs(if smoke { 1 } else { 20 }));
}

fn print(what: &str, histogram: &Histogram<u64>, to_reach: &str) {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{what}: p50 {:.1} p99 {:.1} max {:.1} us, {} of them ({to_reach})",
        at(0.5),
        at(0.99),
        histogram.max() as f64 / 1e3,
        histogram.len()
    );
}

fn epoch_through_ten_operators(records: u64) {
    let (sender, source) = channel::<u64>(16);
    let job = Job::new("epochs", move |flow| {
        // Ingest, eight exchanges, egress: exchanges are never fused.
        let exchanged = (0..8).fold(flow.source(&source)?, |stream, _| stream.rebalance());
        exchanged.sink(discard())
    });
    let running = job.spin(Duration::from_secs(1)).start().expect("nothing can fail");
    for n in 0..records {
        thread::sleep(Duration::from_millis(1));
        drop(sender.try_send(n).expect("there is room"));
    }
    drop(sender);
    let report = running.wait().expect("nothing can fail");
    let parts = [("the source's downgrade", report.frontier, " (target: 15, 40)"), ("its opening", report.epoch, "")];
    for (from, epoch, to_reach) in parts {
        println!(
            "an epoch from {from} to the sink's frontier, ten operators, one spinning worker: p50 {:.1} p99 {:.1} us, {} of them{to_reach}",
            epoch.p50.as_secs_f64() * 1e6,
            epoch.p99.as_secs_f64() * 1e6,
            epoch.count,
        );
    }
}

fn record_across_two_parked_workers(records: usize) {
    let (sender, source) = channel::<Instant>(16);
    let (results, ends) = (collect(), records);
    let sink = results.clone();
    // `Instant` cannot be encoded, and nothing is encoded within a process: the stream carries
    // nanoseconds since the beginning.
    let begin = Instant::now();
    let job = Job::new("across", move |flow| {
        flow.source(&source)?
            .map(move |sent| (sent - begin).as_nanos() as u64)
            .rebalance()
            .map(move |sent| {
                (thread::current().name() == Some("millstream-1"), begin.elapsed().as_nanos() as u64 - sent)
            })
            .sink(&sink)
    });
    let running = job.workers(2).start().expect("nothing can fail");
    for _ in 0..records {
        thread::sleep(Duration::from_millis(1));
        drop(sender.try_send(Instant::now()).expect("there is room"));
    }
    results.wait_for(ends, Duration::from_secs(10)).expect("all records arrive");
    drop(sender);
    running.wait().expect("nothing can fail");
    let mut histogram = Histogram::new(3).expect("three digits are allowed");
    results.values().into_iter().filter(|(crossed, _)| *crossed).for_each(|(_, nanos)| histogram += nanos);
    print("a record across the exchange of two parked workers", &histogram, "target: p50 60");
}

fn start_to_first_record(times: usize) {
    let mut histogram = Histogram::new(3).expect("three digits are allowed");
    for _ in 0..times {
        let results = collect();
        let sink = results.clone();
        let begin = Instant::now();
        let job = Job::new("start", move |flow| flow.source(rows(0..1))?.sink(&sink));
        let running = job.start().expect("nothing can fail");
        results.wait_for(1, Duration::from_secs(10)).expect("the record arrives");
        histogram += begin.elapsed().as_nanos() as u64;
        running.wait().expect("nothing can fail");
    }
    print("start to first record, in memory", &histogram, "target: 60 000");
}

fn idle(time: Duration) {
    let (sender, source) = channel::<u64>(16);
    let running =
        Job::new("idle", move |flow| flow.source(&source)?.sink(discard())).start().expect("nothing can fail");
    thread::sleep(Duration::from_millis(500));
    let before = cpu(std::process::id());
    thread::sleep(time);
    let used = cpu(std::process::id()) - before;
    println!(
        "an idle job in memory uses {:.3} % of a core (target: 0.1)",
        used.as_secs_f64() / time.as_secs_f64() * 100.0
    );
    drop(sender);
    running.wait().expect("nothing can fail");
}
