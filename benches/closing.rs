//! Kafka to Kafka: how long is it from a record that closes a window to that window's row?
//!
//! Question: what does waiting for event time add to the latency of a record that needs none.
//! Method: the `windows` example (E) counts events in tumbling windows of 10 ms of event time, with
//! a checkpoint each second; beside it F (`floor.rs`), which transforms orders one by one. Both get
//! an open loop of 1 000 records of 1.2 kB a second in four partitions, in pairs F-E-E-F on fresh
//! topics. The event time of a record is its number in milliseconds, without disorder or delay, and
//! its partition is its number modulo four. So a window is over with the third record behind its
//! end: then each partition has one. E is measured from when that record was *due* until the row
//! of the window is read, F from when an order was due until its invoice is read. Figures are
//! medians over runs; differences and ratios are of neighbouring runs, with the bootstrap's 95 %
//! interval.
//!
//! Not shown: windows of many rows, watermarks with a delay (which is then the latency), brokers
//! over a network.
//!
//! ```text
//! tests/kafka/broker up
//! cargo build --release --example windows --bin floor
//! cargo bench --bench closing -- --brokers 127.0.0.1:19092 --pairs 5
//! ```

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use millstream_benches::driver::{self, PARTITIONS};
use millstream_benches::machine::{self, Hiccups, monotonic_nanos};
use millstream_benches::statistics::{estimate, median};
use millstream_benches::topics::{client, create};
use rdkafka::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde::{Deserialize, Serialize};

#[derive(Debug, Parser)]
struct Options {
    /// Bootstrap servers of a real broker
    #[arg(long, env = "MILLSTREAM_KAFKA", default_value = "127.0.0.1:19092")]
    brokers: String,
    /// Pairs of F and E
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds measured in each run, after three of warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Run everything once, briefly, only to see that it works
    #[arg(long)]
    smoke: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

const RATE: u64 = 1_000;
/// The length of a window, in milliseconds, which is in records.
const WINDOW: u64 = 10;
/// The event time of the first record.
const FIRST: u64 = 1_764_000_000_000;
const WARM: u64 = 3;

#[derive(Serialize)]
struct Event<'p> {
    key: &'p str,
    at: u64,
    pad: &'p str,
}

#[derive(Deserialize)]
struct Row {
    end: u64,
}

/// Ended when it is dropped.
struct Subject(Child);

impl Drop for Subject {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn program(name: &str) -> PathBuf {
    machine::program(name, "cargo build --release --example windows --bin floor")
}

fn main() {
    let mut options = Options::parse();
    if options.smoke {
        options = Options { pairs: 1, seconds: 2, ..options };
    }
    println!("{RATE} records/s, {} pairs, {} s each; ms from due time", options.pairs, options.seconds);
    println!("{:8} {:>8} {:>8} {:>8} {:>8}", "", "p50", "p90", "p99", "max");
    // The first run after the broker has started measures the broker's start too.
    drop(floor(&options));
    let hiccups = Hiccups::start();
    let mut runs: [Vec<Histogram<u64>>; 2] = Default::default();
    for pair in 0..options.pairs {
        for index in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            let run = if index == 0 { floor(&options) } else { windows(&options) };
            let at = |quantile| millis(run.value_at_quantile(quantile));
            let name = ["F", "E"][index];
            println!(
                "{name:8} {:8.3} {:8.3} {:8.3} {:8.3}  {} measured",
                at(0.5),
                at(0.9),
                at(0.99),
                millis(run.max()),
                run.len()
            );
            runs[index].push(run);
        }
    }
    let hiccups = hiccups.stop();
    let [floor, engine] = &runs;
    let at = |runs: &[Histogram<u64>], quantile| {
        median(&runs.iter().map(|run| millis(run.value_at_quantile(quantile))).collect::<Vec<_>>())
    };
    let paired = |quantile: f64, with: fn(f64, f64) -> f64| {
        let of = |run: &Histogram<u64>| millis(run.value_at_quantile(quantile));
        estimate(&floor.iter().zip(engine).map(|(floor, engine)| with(of(engine), of(floor))).collect::<Vec<_>>())
    };
    println!(
        "median   F p50 {:.3} p99 {:.3}   E p50 {:.3} p99 {:.3}",
        at(floor, 0.5),
        at(floor, 0.99),
        at(engine, 0.5),
        at(engine, 0.99)
    );
    println!("E - F    p50 {} ms (target: 1.5)", paired(0.5, |engine, floor| engine - floor));
    println!("E - 1.5 F  p99 {} ms (target: 3)", paired(0.99, |engine, floor| engine - 1.5 * floor));
    println!("hiccups  p99 {:.3} max {:.3} ms", millis(hiccups.value_at_quantile(0.99)), millis(hiccups.max()));
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

fn topics(options: &Options) -> (String, String) {
    let id = fastrand::u32(..);
    let topics = (format!("closing-in-{id}"), format!("closing-out-{id}"));
    create(&options.brokers, &[&topics.0, &topics.1], PARTITIONS);
    topics
}

fn start(command: &mut Command) -> Subject {
    let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("the program starts");
    thread::sleep(Duration::from_millis(800));
    Subject(child)
}

/// The latencies of orders, one by one.
fn floor(options: &Options) -> Histogram<u64> {
    let (input, output) = topics(options);
    let group = format!("closing-{}", fastrand::u64(..));
    let subject = start(Command::new(program("floor")).args([&options.brokers, &input, &output, &group]));
    let (warm, measured) = (Duration::from_secs(WARM), Duration::from_secs(options.seconds));
    driver::drive(&options.brokers, &input, &output, subject.0.id(), RATE, warm, measured).latency
}

/// The latencies from records that close windows to their rows.
fn windows(options: &Options) -> Histogram<u64> {
    let (input, output) = topics(options);
    let group = format!("closing-{}", fastrand::u64(..));
    let checkpoints = tempfile::tempdir().expect("there is room for a directory");
    let mut command = Command::new(program("examples/windows"));
    command.args(["--brokers", &options.brokers, "--input", &input, "--output", &output, "--group", &group]);
    command.args(["--window", &format!("tumbling:{WINDOW}ms"), "--delay", "0s"]);
    let _subject = start(command.arg("--checkpoints").arg(checkpoints.path()));
    let records = RATE * (WARM + options.seconds);
    thread::scope(|scope| {
        let begin = monotonic_nanos() + 200_000_000;
        let due = move |record: u64| begin + record * 1_000_000_000 / RATE;
        let observer = scope.spawn(move || observe(options, &output, records, due));
        write(&options.brokers, &input, records, due);
        observer.join().expect("the observer only reads")
    })
}

fn write(brokers: &str, topic: &str, records: u64, due: impl Fn(u64) -> u64) {
    let producer: BaseProducer = client(brokers)
        .set("linger.ms", "0")
        .set("acks", "all")
        .set("max.in.flight.requests.per.connection", "1")
        .create()
        .expect("the settings are constants");
    producer.client().fetch_metadata(Some(topic), Duration::from_secs(10)).expect("the broker answers");
    let pad = "x".repeat(1_100);
    for record in 0..records {
        thread::sleep(Duration::from_nanos(due(record).saturating_sub(monotonic_nanos())));
        let event = Event { key: "all", at: FIRST + record, pad: &pad };
        let payload = serde_json::to_vec(&event).expect("an event is JSON");
        let partition = (record % PARTITIONS as u64) as i32;
        let mut message = BaseRecord::<(), [u8]>::to(topic).partition(partition).payload(&payload);
        while let Err((_, back)) = producer.send(message) {
            producer.poll(Duration::ZERO);
            message = back;
        }
        producer.poll(Duration::ZERO);
    }
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::ZERO);
        thread::sleep(Duration::from_millis(1));
    }
}

fn observe(options: &Options, topic: &str, records: u64, due: impl Fn(u64) -> u64) -> Histogram<u64> {
    let consumer = driver::consumer(&options.brokers, topic, PARTITIONS);
    let mut latency = Histogram::new(3).expect("three digits are allowed");
    // Of the last window no record tells that it is over.
    let (mut seen, all) = (0, records / WINDOW - 1);
    let mut seen_at = Instant::now();
    while seen < all {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else {
            assert!(seen_at.elapsed() < Duration::from_secs(30), "{seen} of {all} windows came");
            continue;
        };
        let now = monotonic_nanos();
        (seen, seen_at) = (seen + 1, Instant::now());
        let row: Row = serde_json::from_slice(message.payload().unwrap_or_default()).expect("a row is JSON");
        let closing = row.end - FIRST + PARTITIONS as u64 - 1;
        if closing >= WARM * RATE {
            latency += now.saturating_sub(due(closing));
        }
    }
    latency
}
