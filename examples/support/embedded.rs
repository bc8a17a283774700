//! A broker in this process, a generator that keeps to a fixed schedule, and an observer that
//! measures from the moment when each order was *due*, so that a generator that falls behind cannot
//! hide it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use krafka::testing::FakeBroker;
use millstream::{Error, ErrorKind, Report, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

const PARTITIONS: i32 = 4;
/// Orders per second. The broker searches its whole log for each fetch, so its cost grows with the
/// square of what it holds: at 1 000 per second it used a core after a minute, and the median was 4
/// ms.
const RATE: u64 = 250;

/// Nanoseconds of the monotonic clock, which all processes of a machine share.
pub fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The brokers that were named, or the embedded one.
pub fn brokers(embedded: Option<&Embedded>, named: Option<&String>) -> String {
    embedded.map(|embedded| &embedded.brokers).or(named).cloned().unwrap_or_default()
}

/// Prints the result of an example: what the observer has seen, and the job's own report.
pub fn print(embedded: Option<&Embedded>, report: &Report) {
    if let Some(embedded) = embedded {
        embedded.wait_for(report.sinks[0].acknowledged);
        println!("{}", embedded.line());
    }
    println!("{report}");
}

/// The input of the examples.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Order {
    pub id: u64,
    /// When the order was due, in nanoseconds of the monotonic clock.
    pub due: u64,
    pub customer: u64,
    pub cents: i64,
    pub pad: String,
}

/// Creates an order. `transform` drops one in ten.
pub fn order(id: u64, due: u64) -> Order {
    let cents = if id % 10 == 9 { -(id as i64 % 5_000) } else { id as i64 % 90_000 + 1 };
    Order { id, due, customer: id % 1_000, cents, pad: "x".repeat(1_000) }
}

/// A running broker with its generator and observer.
pub struct Embedded {
    pub brokers: String,
    generated: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    latencies: Arc<Mutex<Histogram<u64>>>,
    threads: Vec<JoinHandle<()>>,
    broker: FakeBroker,
    _runtime: Runtime,
}

impl Embedded {
    /// Starts all three. With `preload`, this many orders are written before the job reads, and
    /// none after.
    pub fn start(input: &str, output: &str, preload: Option<u64>) -> Result<Embedded> {
        let failed =
            |cause: String| Error::new(ErrorKind::Unreachable, "cannot start the embedded broker").caused_by(cause);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|cause| failed(cause.to_string()))?;
        let broker = runtime.block_on(FakeBroker::start()).map_err(|cause| failed(cause.to_string()))?;
        broker.create_topic(input, PARTITIONS);
        broker.create_topic(output, PARTITIONS);
        let mut embedded = Embedded {
            brokers: broker.bootstrap_servers(),
            generated: Arc::default(),
            done: Arc::default(),
            latencies: Arc::new(Mutex::new(Histogram::new(3).expect("three digits are allowed"))),
            threads: Vec::new(),
            broker,
            _runtime: runtime,
        };
        match preload {
            Some(count) => generate(&embedded.brokers, input, None, count, &embedded.generated, &embedded.done),
            None => embedded.spawn_generator(input),
        }
        embedded.spawn_observer(output);
        Ok(embedded)
    }

    pub fn create_topic(&self, name: &str) {
        self.broker.create_topic(name, PARTITIONS);
    }

    /// Writes a few records that are not orders.
    pub fn write_malformed(&self, topic: &str) -> Result<()> {
        let producer: BaseProducer = client(&self.brokers).create().expect("the settings are constants");
        for payload in ["no JSON", "{\"id\": 1}", ""] {
            let sent = producer.send(BaseRecord::to(topic).key("malformed").payload(payload));
            sent.map_err(|(cause, _)| {
                Error::new(ErrorKind::Sink, "cannot write to the embedded broker").caused_by(cause)
            })?;
        }
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(5));
        }
        Ok(())
    }

    fn spawn_generator(&mut self, input: &str) {
        let (brokers, topic) = (self.brokers.clone(), input.to_owned());
        let (generated, done) = (Arc::clone(&self.generated), Arc::clone(&self.done));
        self.threads.push(thread::spawn(move || generate(&brokers, &topic, Some(RATE), u64::MAX, &generated, &done)));
    }

    fn spawn_observer(&mut self, output: &str) {
        let (brokers, topic) = (self.brokers.clone(), output.to_owned());
        let (latencies, done) = (Arc::clone(&self.latencies), Arc::clone(&self.done));
        self.threads.push(thread::spawn(move || observe(&brokers, &topic, &latencies, &done)));
    }

    /// Waits until the observer has seen this many records, for at most two seconds.
    pub fn wait_for(&self, records: u64) {
        let seen = || self.latencies.lock().unwrap_or_else(PoisonError::into_inner).len();
        let deadline = Instant::now() + Duration::from_secs(2);
        while seen() < records && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// One line with the latencies so far, from due time to the observer.
    pub fn line(&self) -> String {
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
        format!(
            "{} orders in, {} invoices out  from due time: p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2} ms",
            self.generated.load(SeqCst),
            latencies.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            latencies.max() as f64 / 1e6,
        )
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.done.store(true, SeqCst);
        // The threads check `done` at least every 100 ms. If one of them panicked, that was
        // printed.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn generate(brokers: &str, topic: &str, rate: Option<u64>, count: u64, generated: &AtomicU64, done: &AtomicBool) {
    let producer: BaseProducer = client(brokers).set("linger.ms", "0").create().expect("the settings are constants");
    let begin = monotonic_nanos();
    for id in 0..count {
        let due = rate.map_or(begin, |rate| begin + id * 1_000_000_000 / rate);
        thread::sleep(Duration::from_nanos(due.saturating_sub(monotonic_nanos())));
        if done.load(SeqCst) {
            break;
        }
        let order = order(id, due);
        let (key, payload) = (order.customer.to_string(), serde_json::to_vec(&order).expect("an order is JSON"));
        while producer.send(BaseRecord::to(topic).key(&key).payload(&payload)).is_err() {
            producer.poll(Duration::ZERO);
        }
        producer.poll(Duration::ZERO);
        generated.fetch_add(1, SeqCst);
    }
    while producer.in_flight_count() > 0 && !done.load(SeqCst) {
        producer.poll(Duration::ZERO);
        thread::sleep(Duration::from_millis(1));
    }
}

fn observe(brokers: &str, topic: &str, latencies: &Mutex<Histogram<u64>>, done: &AtomicBool) {
    #[derive(Deserialize)]
    struct Seen {
        due: u64,
    }
    let consumer: BaseConsumer = client(brokers)
        .set("group.id", "observer")
        .set("enable.auto.commit", "false")
        .create()
        .expect("the settings are constants");
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(topic, partition, Offset::Beginning).expect("the beginning is an offset");
    }
    consumer.assign(&all).expect("the topic was created above");
    while !done.load(SeqCst) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let now = monotonic_nanos();
        let seen: Option<Seen> = message.payload().and_then(|payload| serde_json::from_slice(payload).ok());
        if let Some(seen) = seen {
            let mut latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
            *latencies += now.saturating_sub(seen.due);
        }
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}
