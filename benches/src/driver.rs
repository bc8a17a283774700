//! An open loop: orders are sent at times that are fixed in advance, whatever comes back. Latency
//! counts from when an order was *due* until its invoice is read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Message, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use crate::machine::{cpu, monotonic_nanos};
use crate::topics::client;

/// The number of partitions of every topic.
pub const PARTITIONS: i32 = 4;

/// The input, as JSON: 1.2 kB each.
#[derive(Debug, Serialize)]
pub struct Order<'p> {
    /// Its number.
    pub id: u64,
    /// When it was due, in nanoseconds of the monotonic clock.
    pub due: u64,
    /// The customer who pays.
    pub customer: u64,
    /// The amount in cents.
    pub cents: i64,
    /// Padding.
    pub pad: &'p str,
}

/// The fields of an invoice that are read.
#[derive(Debug, Deserialize)]
struct Seen {
    id: u64,
    due: u64,
}

/// The results of a run at a fixed rate.
#[derive(Debug)]
pub struct Run {
    /// Latency in nanoseconds, from due time.
    pub latency: Histogram<u64>,
    /// The latency in the first and in the last quarter.
    pub quarters: [Histogram<u64>; 2],
    /// Nanoseconds by which the driver itself was late.
    pub late: Histogram<u64>,
    /// CPU time of the process under test in the measured time.
    pub cpu: Duration,
    /// The number of measured orders, and of their invoices.
    pub sent: u64,
    pub received: u64,
}

impl Run {
    /// A quantile of the latency in milliseconds.
    pub fn milliseconds(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }

    /// CPU seconds per million records.
    pub fn cpu_per_million(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.sent.max(1) as f64
    }
}

/// Drives the process `pid`, which turns orders of `input` into invoices of `output`, at a fixed
/// rate.
pub fn drive(brokers: &str, input: &str, output: &str, pid: u32, rate: u64, warm: Duration, measured: Duration) -> Run {
    let warm_orders = (rate as f64 * warm.as_secs_f64()) as u64;
    let orders = warm_orders + (rate as f64 * measured.as_secs_f64()) as u64;
    let producer: BaseProducer = client(brokers)
        .set("linger.ms", "0")
        .set("acks", "all")
        .set("max.in.flight.requests.per.connection", "1")
        .create()
        .expect("the settings are constants");
    producer.client().fetch_metadata(Some(input), Duration::from_secs(10)).expect("the broker answers");
    let (sent_all, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut late = Histogram::new(3).expect("three digits are allowed");
    let mut used = Duration::ZERO;
    let (latency, quarters) = thread::scope(|scope| {
        let observer = scope.spawn(|| observe(brokers, output, warm_orders, orders, &sent_all, &received));
        let begin = monotonic_nanos() + 20_000_000;
        let pad = "x".repeat(1_100);
        let mut before = Duration::ZERO;
        for id in 0..orders {
            let due = begin + id * 1_000_000_000 / rate;
            thread::sleep(Duration::from_nanos(due.saturating_sub(monotonic_nanos())));
            if id == warm_orders {
                before = cpu(pid);
            }
            let customer = id % 1_000;
            let payload = serde_json::to_vec(&Order { id, due, customer, cents: 1 + id as i64 % 90_000, pad: &pad });
            let (key, payload) = (customer.to_string(), payload.expect("an order is JSON"));
            if id >= warm_orders {
                late += monotonic_nanos().saturating_sub(due);
            }
            let mut record = BaseRecord::to(input).key(&key).payload(&payload);
            while let Err((_, back)) = producer.send(record) {
                producer.poll(Duration::ZERO);
                record = back;
            }
            producer.poll(Duration::ZERO);
        }
        used = cpu(pid).saturating_sub(before);
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::ZERO);
            thread::sleep(Duration::from_millis(1));
        }
        sent_all.store(true, SeqCst);
        observer.join().expect("the observer only reads")
    });
    Run { latency, quarters, late, cpu: used, sent: orders - warm_orders, received: received.load(SeqCst) }
}

fn observe(
    brokers: &str,
    topic: &str,
    warm: u64,
    orders: u64,
    sent_all: &AtomicBool,
    received: &AtomicU64,
) -> (Histogram<u64>, [Histogram<u64>; 2]) {
    let consumer = consumer(brokers, topic, PARTITIONS);
    let histogram = || Histogram::new(3).expect("three digits are allowed");
    let (mut latency, mut quarters) = (histogram(), [histogram(), histogram()]);
    let mut seen_at = Instant::now();
    // Ends when all invoices have arrived, or when none has arrived for a while after the last
    // order was sent.
    while received.load(SeqCst) < orders - warm {
        let quiet = if sent_all.load(SeqCst) { Duration::from_secs(5) } else { Duration::from_secs(30) };
        if seen_at.elapsed() > quiet {
            break;
        }
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let now = monotonic_nanos();
        seen_at = Instant::now();
        let seen: Seen = serde_json::from_slice(message.payload().unwrap_or_default()).expect("an invoice is JSON");
        if seen.id >= warm {
            let nanos = now.saturating_sub(seen.due);
            latency += nanos;
            match 4 * (seen.id - warm) / (orders - warm) {
                0 => quarters[0] += nanos,
                3 => quarters[1] += nanos,
                _ => {}
            }
            received.fetch_add(1, SeqCst);
        }
    }
    (latency, quarters)
}

/// Creates a consumer of a whole topic from its beginning.
pub fn consumer(brokers: &str, topic: &str, partitions: i32) -> BaseConsumer {
    let consumer: BaseConsumer = client(brokers)
        .set("group.id", "observer")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "5")
        .create()
        .expect("the settings are constants");
    consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).expect("the broker answers");
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        all.add_partition_offset(topic, partition, Offset::Beginning).expect("the beginning is an offset");
    }
    consumer.assign(&all).expect("the topic exists");
    consumer
}

/// Writes this many orders to a topic as fast as possible.
pub fn preload(brokers: &str, input: &str, orders: u64) {
    let producer: BaseProducer = client(brokers)
        .set("linger.ms", "20")
        .set("queue.buffering.max.messages", "200000")
        .create()
        .expect("the settings are constants");
    let pad = "x".repeat(1_100);
    for id in 0..orders {
        let customer = id % 1_000;
        let payload = serde_json::to_vec(&Order { id, due: 0, customer, cents: 1 + id as i64 % 90_000, pad: &pad });
        let (key, payload) = (customer.to_string(), payload.expect("an order is JSON"));
        let mut record = BaseRecord::to(input).key(&key).payload(&payload);
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::from_millis(5));
            record = back;
        }
    }
    while producer.in_flight_count() > 0 {
        producer.poll(Duration::from_millis(20));
    }
}
