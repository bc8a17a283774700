//! Kafka to Kafka: what does the engine add to a hand-written loop?
//!
//! Question: latency, CPU and throughput of the `transform` example (E) compared with F
//! (`floor.rs`), the same work by hand with the same client settings. Method: pairs F-E-E-F on
//! fresh topics of one broker; an open loop at a fixed rate; latency from when an order was *due*
//! until its invoice is read; a histogram for each run, and the machine's own hiccups. Figures are
//! medians over runs. Differences and ratios are of neighbouring runs, with the bootstrap's 95 %
//! interval.
//!
//! Not shown: brokers over a network, replication, more than one partition leader, and rates at
//! which the broker and the driver leave no CPU to the process under test (on two shared cores, a
//! few thousand per second).
//!
//! ```text
//! tests/kafka/broker up
//! cargo build --release --example transform --bin floor
//! cargo bench --bench k2k -- --brokers 127.0.0.1:19092 --rates 100,1000 --pairs 7
//! cargo bench --bench k2k -- --brokers 127.0.0.1:19092 --saturate --pairs 5
//! cargo bench --bench k2k -- --brokers 127.0.0.1:19092 --ticks 10ms,100ms,1s
//! cargo bench --bench k2k -- --brokers 127.0.0.1:19092 --footprint
//! ```
//!
//! With `--counts` E is the `counts` example with a checkpoint each second, and F counts in a hash
//! table that it does not keep:
//!
//! ```text
//! cargo build --release --example counts --bin floor
//! cargo bench --bench k2k -- --brokers 127.0.0.1:19092 --counts --rates 1000
//! ```

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use millstream_benches::driver::{self, PARTITIONS, Run};
use millstream_benches::machine::{self, Hiccups, cpu, memory};
use millstream_benches::statistics::{estimate, median};
use millstream_benches::topics::{create, create_with};
use rdkafka::Message;
use rdkafka::consumer::{BaseConsumer, Consumer};

#[derive(Debug, Parser)]
struct Options {
    /// Bootstrap servers of a real broker
    #[arg(long, env = "MILLSTREAM_KAFKA", default_value = "127.0.0.1:19092")]
    brokers: String,
    /// Orders per second
    #[arg(long, value_delimiter = ',')]
    rates: Vec<u64>,
    /// Pairs of F and E at each rate
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Seconds measured in each run, after three of warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Measure throughput: all orders are written before the process starts
    #[arg(long)]
    saturate: bool,
    /// Orders to write for --saturate
    #[arg(long, default_value_t = 1_000_000)]
    orders: u64,
    /// Intervals of micro-batches to measure, at 1 000 orders per second
    #[arg(long, value_delimiter = ',')]
    ticks: Vec<String>,
    /// Batches for each interval
    #[arg(long, default_value_t = 1_000)]
    batches: u64,
    /// Count the orders of each customer instead of making invoices
    #[arg(long)]
    counts: bool,
    /// Measure start time, idle CPU, memory and program size
    #[arg(long)]
    footprint: bool,
    /// Run everything once, briefly, only to see that it works
    #[arg(long)]
    smoke: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Which of the two programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Floor,
    Engine,
}

fn main() {
    let mut options = Options::parse();
    if options.smoke {
        options = Options {
            rates: vec![500],
            pairs: 1,
            seconds: 2,
            saturate: true,
            orders: 20_000,
            footprint: true,
            ..options
        };
        (options.ticks, options.batches) = (vec!["20ms".to_owned()], 100);
    }
    for rate in options.rates.clone() {
        pairs(&options, rate);
    }
    if options.saturate {
        saturate(&options);
    }
    for tick in options.ticks.clone() {
        ticks(&options, &tick);
    }
    if options.footprint {
        footprint(&options);
    }
}

/// The path of a program in the folder of release builds, beside this one.
fn program(name: &str) -> PathBuf {
    machine::program(name, "cargo build --release --example transform --example counts --bin floor")
}

/// A process under test, with its own topics.
struct Subject {
    child: Child,
    input: String,
    output: String,
    report: PathBuf,
    /// Removed with it.
    _checkpoints: tempfile::TempDir,
}

impl Subject {
    fn topics(options: &Options) -> (String, String) {
        let id = fastrand::u32(..);
        let (input, output) = (format!("bench-in-{id}"), format!("bench-out-{id}"));
        create(&options.brokers, &[&input], PARTITIONS);
        create_with(&options.brokers, &[&output], PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
        (input, output)
    }

    /// Starts the process in its own group, because a member that was killed would keep the next
    /// one waiting until its session times out.
    fn start(who: Who, options: &Options, (input, output): (String, String), trigger: &str) -> Subject {
        let group = &format!("bench-{}", fastrand::u64(..));
        let report = std::env::temp_dir().join(format!("{output}.jsonl"));
        let checkpoints = tempfile::tempdir().expect("there is room for a directory");
        let mut command = match who {
            Who::Floor => {
                let mut command = Command::new(program("floor"));
                command.args([&options.brokers, &input, &output, group]);
                command.args(options.counts.then_some("counts"));
                command
            }
            Who::Engine => {
                let example = if options.counts { "counts" } else { "transform" };
                let mut command = Command::new(program(&format!("examples/{example}")));
                command.args(["--brokers", &options.brokers, "--input", &input, "--output", &output, "--group", group]);
                command.args(["--trigger", trigger]).arg("--report").arg(&report);
                if options.counts {
                    command.arg("--checkpoints").arg(checkpoints.path());
                }
                command
            }
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().expect("the program starts");
        Subject { child, input, output, report, _checkpoints: checkpoints }
    }

    fn drive(&self, options: &Options, rate: u64, seconds: u64) -> Run {
        let (warm, measured) = (Duration::from_secs(3), Duration::from_secs(seconds));
        driver::drive(&options.brokers, &self.input, &self.output, self.child.id(), rate, warm, measured)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_file(&self.report));
    }
}

/// Measures pairs F-E-E-F at one rate.
fn pairs(options: &Options, rate: u64) {
    println!("\n{rate} orders/s, 1.2 kB, {} pairs, {} s each; ms from due time", options.pairs, options.seconds);
    println!(
        "{:8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10} {:>8}",
        "", "p50", "p90", "p99", "p99.9", "max", "CPU s/M", "RSS MB"
    );
    let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
    // The first run after the broker has started measures the broker's start too; it is not
    // counted.
    let first = Subject::start(Who::Floor, options, Subject::topics(options), "");
    first.drive(options, rate, options.seconds);
    drop(first);
    let hiccups = Hiccups::start();
    for pair in 0..options.pairs {
        let order = if pair % 2 == 0 { [Who::Floor, Who::Engine] } else { [Who::Engine, Who::Floor] };
        for who in order {
            let subject = Subject::start(who, options, Subject::topics(options), "continuous");
            std::thread::sleep(Duration::from_millis(800));
            let run = subject.drive(options, rate, options.seconds);
            let name = if who == Who::Floor { "F" } else { "E" };
            println!(
                "{name:8} {:8.3} {:8.3} {:8.3} {:8.3} {:8.3} {:10.1} {:8.1}  {} of {}, driver late p99 {:.3}",
                run.milliseconds(0.5),
                run.milliseconds(0.9),
                run.milliseconds(0.99),
                run.milliseconds(0.999),
                run.latency.max() as f64 / 1e6,
                run.cpu_per_million(),
                memory(subject.child.id()).0 as f64 / 1e6,
                run.received,
                run.sent,
                run.late.value_at_quantile(0.99) as f64 / 1e6,
            );
            assert_eq!(run.received, run.sent, "{name} lost records");
            runs[(who == Who::Engine) as usize].push(run);
        }
    }
    let hiccups = hiccups.stop();
    let [floor, engine] = &runs;
    let paired = |f: &dyn Fn(&Run) -> f64, with: fn(f64, f64) -> f64| {
        let figures: Vec<f64> = floor.iter().zip(engine).map(|(floor, engine)| with(f(engine), f(floor))).collect();
        estimate(&figures)
    };
    let middle = |runs: &[Run], f: &dyn Fn(&Run) -> f64| median(&runs.iter().map(f).collect::<Vec<_>>());
    let p50 = |run: &Run| run.milliseconds(0.5);
    let p99 = |run: &Run| run.milliseconds(0.99);
    println!(
        "median   F p50 {:.3} p99 {:.3}   E p50 {:.3} p99 {:.3}",
        middle(floor, &p50),
        middle(floor, &p99),
        middle(engine, &p50),
        middle(engine, &p99)
    );
    println!("E - F    p50 {} ms (target: 0.05, upper 0.15)", paired(&p50, |e, f| e - f));
    println!("E / F    p99 {} (target: 1.2, upper 1.4)", paired(&p99, |e, f| e / f));
    println!("E / F    CPU {} (target: 1.2)", paired(&Run::cpu_per_million, |e, f| e / f));
    println!(
        "hiccups  p99 {:.3} max {:.3} ms",
        hiccups.value_at_quantile(0.99) as f64 / 1e6,
        hiccups.max() as f64 / 1e6
    );
}

/// Measures a preloaded topic, from cold start to the last output; rates come from the broker's
/// append times.
fn saturate(options: &Options) {
    println!("\n{} orders preloaded, no driver", options.orders);
    println!("{:8} {:>12} {:>10} {:>10}", "", "records/s", "CPU s/M", "RSS MB");
    let (input, _) = Subject::topics(options);
    driver::preload(&options.brokers, &input, options.orders);
    let mut figures: [Vec<(f64, f64)>; 2] = [Vec::new(), Vec::new()];
    for pair in 0..options.pairs {
        let order = if pair % 2 == 0 { [Who::Floor, Who::Engine] } else { [Who::Engine, Who::Floor] };
        for who in order {
            let output = format!("bench-out-{}", fastrand::u32(..));
            create_with(&options.brokers, &[&output], PARTITIONS, &[("message.timestamp.type", "LogAppendTime")]);
            let subject = Subject::start(who, options, (input.clone(), output), "continuous");
            wait_for_end(options, &subject.output, options.orders);
            let (used, most) = (cpu(subject.child.id()).as_secs_f64(), memory(subject.child.id()).1);
            let (first, last) = append_times(options, &subject.output, options.orders);
            let rate = options.orders as f64 / ((last - first).max(1) as f64 / 1e3);
            let per_million = used * 1e6 / options.orders as f64;
            let name = if who == Who::Floor { "F" } else { "E" };
            println!("{name:8} {rate:12.0} {per_million:10.2} {:10.1}", most as f64 / 1e6);
            figures[(who == Who::Engine) as usize].push((rate, per_million));
        }
    }
    let ratio = |figure: fn(&(f64, f64)) -> f64| {
        let ratios: Vec<f64> = figures[0].iter().zip(&figures[1]).map(|(f, e)| figure(e) / figure(f)).collect();
        estimate(&ratios)
    };
    println!("E / F    records/s {} (target: 0.9)   CPU {} (target: 1.15)", ratio(|f| f.0), ratio(|f| f.1));
}

/// Waits until a topic has this many records, without reading them.
fn wait_for_end(options: &Options, topic: &str, records: u64) {
    let consumer: BaseConsumer = millstream_benches::topics::client(&options.brokers).create().expect("constants");
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let ends = (0..PARTITIONS).map(|partition| {
            consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).map_or(0, |ends| ends.1 as u64)
        });
        if ends.sum::<u64>() >= records {
            return;
        }
        assert!(Instant::now() < deadline, "{topic} did not get {records} records in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// When the broker appended the first and the last record, in milliseconds.
fn append_times(options: &Options, topic: &str, records: u64) -> (i64, i64) {
    let consumer = driver::consumer(&options.brokers, topic, PARTITIONS);
    let (mut first, mut last, mut seen) = (i64::MAX, i64::MIN, 0);
    while seen < records {
        let Some(Ok(message)) = consumer.poll(Duration::from_secs(10)) else { panic!("{topic} ends early") };
        let at = message.timestamp().to_millis().expect("the topic has append times");
        (first, last, seen) = (first.min(at), last.max(at), seen + 1);
    }
    (first, last)
}

/// The figures of the engine's own report at the end of a run, in milliseconds.
struct Own {
    latency: f64,
    queue: f64,
    compute: f64,
    acknowledgement: f64,
    epochs: u64,
    elapsed: f64,
}

/// Runs the engine once at 1 000 orders per second; returns the run and the figures of its report.
fn reported(options: &Options, trigger: &str, seconds: u64) -> (Run, Own) {
    let subject = Subject::start(Who::Engine, options, Subject::topics(options), trigger);
    std::thread::sleep(Duration::from_millis(800));
    let run = subject.drive(options, 1_000, seconds);
    std::thread::sleep(Duration::from_millis(2_100));
    let report = machine::newest_report(&subject.report).expect("the job reports each second");
    let own = |part: &str| report["sinks"][0][part]["p50"].as_f64().expect("a number") / 1e6;
    let own = Own {
        latency: own("latency"),
        queue: own("queue"),
        compute: own("compute"),
        acknowledgement: own("acknowledgement"),
        epochs: report["epochs"].as_u64().expect("a number"),
        elapsed: report["elapsed_seconds"].as_f64().expect("a number") * 1e3,
    };
    (run, own)
}

/// Measures micro-batches against a model: half an interval of waiting, the floor, and the batch's
/// own time B. B is how much longer a record in a batch takes from its tick to its acknowledgement
/// than a record that comes alone, by the engine's own report in two separate runs.
fn ticks(options: &Options, tick: &str) {
    let interval = tick.trim_end_matches(char::is_alphabetic).parse::<f64>().expect("a number and a unit");
    let interval = if tick.ends_with("ms") { interval } else { interval * 1e3 };
    let seconds = ((interval * options.batches as f64 / 1e3) as u64).max(options.seconds);
    println!("\nmicro-batch of {tick} at 1 000 per second, {seconds} s; ms from due time");
    let floor = Subject::start(Who::Floor, options, Subject::topics(options), "");
    std::thread::sleep(Duration::from_millis(800));
    let floor = floor.drive(options, 1_000, options.seconds).milliseconds(0.5);
    let (_, alone) = reported(options, "continuous", options.seconds);
    let (_, batched) = reported(options, tick, options.seconds.max((interval / 25.0) as u64));
    let batch = batched.latency - interval / 2.0 - alone.latency;
    let (run, own) = reported(options, tick, seconds);
    let p50 = run.milliseconds(0.5);
    let model = interval / 2.0 + floor + batch;
    println!("E        p50 {p50:.3} p99 {:.3} max {:.3}", run.milliseconds(0.99), run.latency.max() as f64 / 1e6);
    println!(
        "model    T/2 {:.1} + F {floor:.3} + B {batch:.3} = {model:.3}   E / model {:.3} (target: within 5 %)",
        interval / 2.0,
        p50 / model
    );
    println!(
        "report   p50 {:.3} (queue {:.3}, compute {:.3}, acknowledgement {:.3})",
        own.latency, own.queue, own.compute, own.acknowledgement
    );
    let [first, last] = run.quarters.map(|quarter| quarter.value_at_quantile(0.5) as f64 / 1e6);
    println!(
        "drift    {} batches in {:.0} ticks; p50 of the first quarter {first:.3}, of the last {last:.3}",
        own.epochs,
        own.elapsed / interval
    );
}

/// Measures the time from start to first output, idle CPU, idle memory, and the size of the
/// stripped program.
fn footprint(options: &Options) {
    println!("\nfootprint of `transform`");
    for who in [Who::Floor, Who::Engine] {
        let topics = Subject::topics(options);
        driver::preload(&options.brokers, &topics.0, 1);
        let consumer = driver::consumer(&options.brokers, &topics.1, PARTITIONS);
        // The consumer has started before the clock runs.
        drop(consumer.poll(Duration::from_millis(700)));
        let begin = Instant::now();
        let subject = Subject::start(who, options, topics, "continuous");
        while consumer.poll(Duration::from_millis(5)).is_none() {
            assert!(begin.elapsed() < Duration::from_secs(30), "no output arrives");
        }
        let first = begin.elapsed();
        std::thread::sleep(Duration::from_secs(2));
        let (before, since) = (cpu(subject.child.id()), Instant::now());
        std::thread::sleep(Duration::from_secs(if options.smoke { 1 } else { 20 }));
        let idle = (cpu(subject.child.id()) - before).as_secs_f64() / since.elapsed().as_secs_f64();
        println!(
            "{who:?}: first output after {:.0} ms, idle {:.2} % of a core, idle memory {:.1} MB",
            first.as_secs_f64() * 1e3,
            idle * 100.0,
            memory(subject.child.id()).0 as f64 / 1e6
        );
    }
    let stripped = std::env::temp_dir().join("transform-stripped");
    let done = Command::new("strip").arg("-o").arg(&stripped).arg(program("examples/transform")).status();
    if done.is_ok_and(|status| status.success()) {
        println!("stripped: {:.1} MB", fs::metadata(&stripped).expect("it was written").len() as f64 / 1e6);
        drop(fs::remove_file(&stripped));
    }
}
