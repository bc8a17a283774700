//! What single features cost: how much does `partition_results`, metadata, receipts, `map_async` or
//! metrics add to a record?
//!
//! Question: how many nanoseconds of wall-clock time per record, on one worker, a pipeline with the
//! feature takes more than the same one without. Method: both over the same preloaded input,
//! interleaved A-B-A, medians of the differences with the bootstrap's 95 % interval. In memory, the
//! sink drops its records. Metadata are those of Kafka (key, two headers, origin), read from a
//! preloaded topic by bounded runs, whose start is in both. Metrics are CPU at a fixed rate, first
//! without an exporter and then with one, because an installed exporter cannot be removed.
//!
//! Not shown: what a feature costs under contention, and calls that take time: `map_async` gets
//! futures that are ready.
//!
//! ```text
//! tests/kafka/broker up
//! cargo bench --bench costs -- --brokers 127.0.0.1:19092
//! ```

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use metrics_exporter_prometheus::PrometheusBuilder;
use millstream::{Calls, For, Job, Malformed, Report, Trigger, channel, discard, generate, rows};
use millstream_benches::statistics::{estimate, median};
use millstream_benches::topics::{client, create};
use millstream_connectors::Kafka;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::{mpsc, oneshot};

#[derive(Debug, Parser)]
struct Options {
    /// Bootstrap servers of a real broker; without them, metadata are left out
    #[arg(long, env = "MILLSTREAM_KAFKA")]
    brokers: Option<String>,
    /// Pairs of runs
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Run everything once, briefly, only to see that it works
    #[arg(long)]
    smoke: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let mut options = Options::parse();
    let scale = if options.smoke { 100 } else { 1 };
    if options.smoke {
        options.pairs = 1;
    }
    println!("ns per record, {} pairs: without, with, and the difference with its 95 % interval", options.pairs);
    partition_results(options.pairs, 8_000_000 / scale);
    receipts(options.pairs, 400_000 / scale);
    map_async(options.pairs, 400_000 / scale);
    if let Some(brokers) = &options.brokers {
        metadata(brokers, options.pairs, 400_000 / scale);
    }
    // Last, because an installed recorder cannot be removed.
    metrics(options.pairs, if options.smoke { Duration::from_millis(200) } else { Duration::from_secs(5) });
}

/// A-B-A: each run of `with` is between two of `without`.
fn pair(name: &str, pairs: usize, records: u64, without: &dyn Fn(), with: &dyn Fn()) {
    let nanos = |run: &dyn Fn()| {
        let begin = Instant::now();
        run();
        begin.elapsed().as_nanos() as f64 / records as f64
    };
    nanos(without);
    nanos(with);
    let (mut plain, mut featured, mut differences) = (vec![nanos(without)], Vec::new(), Vec::new());
    for _ in 0..pairs {
        let before = *plain.last().expect("one ran before");
        let between = nanos(with);
        let after = nanos(without);
        differences.push(between - f64::midpoint(before, after));
        featured.push(between);
        plain.push(after);
    }
    println!("{name:44} {:9.1} {:9.1}   {}", median(&plain), median(&featured), estimate(&differences));
}

fn run(job: Job) -> Report {
    job.run().expect("nothing can fail")
}

fn partition_results(pairs: usize, records: u64) {
    let malformed = Malformed::new("seventh");
    for (share, every) in [("none malformed", u64::MAX), ("one in 100 malformed", 100)] {
        let values = (1..=records).map(|n| if n % every == 0 { Err(malformed.clone()) } else { Ok(n) });
        let source = rows(values).partitions(1);
        let (skipped, parted) = (source.clone(), source);
        let skip = move || {
            let source = skipped.clone();
            run(Job::new("skip", move |flow| flow.source(&source)?.or_skip().sink(discard())));
        };
        let part = move || {
            let source = parted.clone();
            run(Job::new("part", move |flow| {
                let (values, malformed) = flow.source(&source)?.partition_results();
                values.sink(discard())?;
                malformed.sink(discard())
            }));
        };
        pair(&format!("partition_results over or_skip, {share}"), pairs, records, &skip, &part);
    }
}

fn receipts(pairs: usize, records: u64) {
    const ROOM: usize = 1_024;
    // By hand: the cost of an answer per record without an engine.
    let by_hand = || {
        let (sender, mut receiver) = mpsc::channel::<(u64, oneshot::Sender<()>)>(ROOM);
        let reader = thread::spawn(move || {
            while let Some((n, done)) = receiver.blocking_recv() {
                black_box(n);
                done.send(()).expect("the answer is awaited");
            }
        });
        let answers: Vec<_> = (0..records)
            .map(|n| {
                let (done, answer) = oneshot::channel();
                sender.blocking_send((n, done)).expect("it is read");
                answer
            })
            .collect();
        drop(sender);
        answers.into_iter().for_each(|answer| answer.blocking_recv().expect("it is answered"));
        reader.join().expect("it only reads");
    };
    let through_a_job = |is_awaited: bool| {
        move || {
            let (sender, source) = channel::<u64>(ROOM);
            let running = Job::new("receipts", move |flow| flow.source(&source)?.sink(discard())).start();
            let running = running.expect("nothing can fail");
            let send = |n| sender.blocking_send(n).expect("the job reads");
            if is_awaited {
                let receipts: Vec<_> = (0..records).map(send).collect();
                drop(sender);
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("it needs nothing");
                runtime.block_on(async {
                    for receipt in receipts {
                        receipt.await.expect("it is delivered");
                    }
                });
            } else {
                (0..records).for_each(|n| drop(send(n)));
                drop(sender);
            }
            running.wait().expect("nothing can fail");
        }
    };
    let (dropped, awaited) = (through_a_job(false), through_a_job(true));
    pair("receipts awaited over receipts dropped", pairs, records, &dropped, &awaited);
    pair("receipts awaited over an answer by hand", pairs, records, &by_hand, &awaited);
}

fn map_async(pairs: usize, records: u64) {
    let mapped = || {
        let source = rows(0..records).partitions(1);
        run(Job::new("map", move |flow| flow.source(&source)?.map(|n| n + 1).sink(discard())));
    };
    for (name, calls) in [("ordered", Calls::ordered as fn(usize) -> Calls), ("unordered", Calls::unordered)] {
        let called = || {
            let source = rows(0..records).partitions(1);
            let calls = calls(256);
            run(Job::new("calls", move |flow| {
                let called = flow.source(&source)?.map_async(calls, |n| async move { n + 1 });
                called.sink(discard())
            }));
        };
        pair(&format!("map_async over map, {name}, 256 at once"), pairs, records, &mapped, &called);
    }
}

fn metadata(brokers: &str, pairs: usize, records: u64) {
    let topic = format!("bench-metadata-{}", fastrand::u32(..));
    create(brokers, &[&topic], 1);
    let producer: BaseProducer = client(brokers).set("linger.ms", "20").create().expect("the settings are constants");
    let headers = OwnedHeaders::new()
        .insert(Header { key: "trace", value: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-01") })
        .insert(Header { key: "source", value: Some("bench") });
    for n in 0..records {
        let (key, value) =
            (n.to_string(), format!("{{\"id\":{n},\"customer\":{},\"cents\":{}}}", n % 1_000, n % 90_000));
        let mut record = BaseRecord::to(&topic).key(&key).payload(&value).headers(headers.clone());
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::from_millis(5));
            record = back;
        }
    }
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_millis(20));
    }
    let (kafka, from) = (Kafka::new(brokers), topic.clone());
    let read = move |is_with: bool| {
        let (kafka, from) = (kafka.clone(), from.clone());
        let group = format!("bench-{}", fastrand::u64(..));
        let job = Job::new("metadata", move |flow| {
            let topic = kafka.topic(&from).group(&group).bytes();
            match is_with {
                true => flow.source(topic.with_metadata())?.or_stop().sink(discard()),
                false => flow.source(topic)?.or_stop().sink(discard()),
            }
        });
        assert_eq!(run(job.trigger(Trigger::AvailableNow)).records_in(), records);
    };
    pair("metadata (key, 2 headers) over bare bytes", pairs, records, &|| read(false), &|| read(true));
}

/// A job that generates records at a fixed rate reports its CPU per record; then the same job runs
/// again with a recorder.
fn metrics(pairs: usize, time: Duration) {
    let per_record = || {
        let job = Job::new("metrics", |flow| flow.source(generate(|n| n))?.map(|n| n + 1).sink(discard()));
        let input = For::time(time).rate(20_000.0).warm_up(Duration::ZERO);
        let comparison = job.compare([Trigger::Continuous], input).expect("nothing can fail");
        comparison.runs[0].cpu_per_record.map_or(f64::NAN, |cpu| cpu.as_nanos() as f64)
    };
    let without: Vec<f64> = (0..pairs).map(|_| per_record()).collect();
    PrometheusBuilder::new().install_recorder().expect("no other recorder is installed");
    let with: Vec<f64> = (0..pairs).map(|_| per_record()).collect();
    let differences: Vec<f64> = without.iter().zip(&with).map(|(without, with)| with - without).collect();
    println!(
        "{:44} {:9.1} {:9.1}   {}",
        "metrics sent each second, CPU at 20 000/s",
        median(&without),
        median(&with),
        estimate(&differences)
    );
}
