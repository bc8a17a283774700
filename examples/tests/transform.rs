//! The example as a function, with its broker and with another one, and as a real process that gets
//! signals: the first makes it drain, commit and exit with status 0, a second one aborts it. If the
//! job fails, it exits with status 1.

#[path = "../transform.rs"]
#[allow(dead_code, reason = "its own main is not called here")]
mod transform;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use krafka::error::ErrorCode;
use krafka::testing::{ApiKey, Control, FakeBroker};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The longest that a test waits for something.
const PATIENCE: Duration = Duration::from_secs(30);
const ORDERS: u64 = 1_000;

#[test]
fn brings_its_own_broker() {
    transform::run(clap::Parser::parse_from(["transform", "--trigger", "available-now"])).unwrap();
}

#[test]
fn writes_an_invoice_for_each_order_that_costs_something() {
    let (runtime, broker) = broker();
    write(&broker, [1_250, 0, 5].into_iter().enumerate());
    let brokers = broker.bootstrap_servers();
    let flags = ["transform", "--trigger", "available-now", "--brokers", &brokers];
    transform::run(clap::Parser::parse_from(flags)).unwrap();
    let invoices = runtime.block_on(async { broker.all_records("invoices") }).unwrap();
    let written: Vec<(String, Value)> = invoices
        .iter()
        .map(|record| {
            let key = String::from_utf8(record.key.clone().unwrap().to_vec()).unwrap();
            (key, serde_json::from_slice(record.value.as_ref().unwrap()).unwrap())
        })
        .collect();
    let invoice = |id: u64, amount: f64| {
        ("1".to_owned(), json!({"id": id, "due": 0, "customer": 1, "amount": amount, "pad": ""}))
    };
    assert_eq!(written, [invoice(0, 12.5), invoice(2, 0.05)]);
}

struct Running {
    child: Child,
    broker: FakeBroker,
    runtime: Runtime,
}

/// A broker in this process.
fn broker() -> (Runtime, FakeBroker) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let broker = runtime.block_on(FakeBroker::start()).unwrap();
    broker.create_topic("orders", 1);
    broker.create_topic("invoices", 1);
    (runtime, broker)
}

/// Writes orders with these ids and cents.
fn write(broker: &FakeBroker, orders: impl Iterator<Item = (usize, i64)>) {
    let producer: BaseProducer = client(broker).create().unwrap();
    for (id, cents) in orders {
        let order = format!(r#"{{"id":{id},"due":0,"customer":1,"cents":{cents},"pad":""}}"#);
        producer.send(BaseRecord::to("orders").key("1").payload(&order)).map_err(|(error, _)| error).unwrap();
    }
    wait_until("the orders are there", || {
        producer.poll(Duration::from_millis(5));
        producer.in_flight_count() == 0
    });
}

/// Starts the example, whose program is beside the test's own, on a thousand orders.
fn start() -> Running {
    let (runtime, broker) = broker();
    write(&broker, (0..ORDERS as usize).map(|id| (id, 100)));
    let own = std::env::current_exe().unwrap();
    let example: PathBuf = own.parent().and_then(|deps| deps.parent()).unwrap().join("examples/transform");
    let mut command = Command::new(example);
    // Offsets are committed once a second. Without the commit at shutdown, the last records would
    // be read again.
    command.args(["--brokers", &broker.bootstrap_servers(), "--group", "signals"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("cargo builds examples with tests");
    Running { child, broker, runtime }
}

fn client(broker: &FakeBroker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap_servers());
    config
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether a signal has not been delivered to the process yet.
    fn is_pending(&self, signal: Signal) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let pending =
            status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).expect("it is a line of each process");
        u64::from_str_radix(pending.trim(), 16).unwrap() & 1 << (signal.as_raw() - 1) != 0
    }

    fn status(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until("the process has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    fn written(&self) -> u64 {
        let consumer: BaseConsumer = client(&self.broker).create().unwrap();
        consumer.fetch_watermarks("invoices", 0, Duration::from_secs(5)).map_or(0, |(_, end)| end as u64)
    }

    fn committed(&self) -> Offset {
        let consumer: BaseConsumer = client(&self.broker).set("group.id", "signals").create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition("orders", 0);
        let committed = consumer.committed_offsets(list, Duration::from_secs(5)).unwrap();
        committed.find_partition("orders", 0).unwrap().offset()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        // The broker's tasks end when their runtime is dropped.
        let _ = &self.runtime;
    }
}

#[test]
fn the_first_signal_drains_commits_and_ends_with_status_0() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut running = start();
        wait_until("the invoices are written", || running.written() == ORDERS);
        running.signal(signal);
        assert_eq!(running.status(), Some(0), "{signal:?}");
        assert_eq!(running.committed(), Offset::Offset(ORDERS as i64), "{signal:?}");
    }
}

#[test]
fn a_second_signal_aborts_a_job_that_cannot_drain() {
    let mut running = start();
    // No commit succeeds, so the job cannot drain.
    running.broker.on(ApiKey::OffsetCommit, |_| Control::Error(ErrorCode::CoordinatorNotAvailable));
    wait_until("the invoices are written", || running.written() == ORDERS);
    running.signal(Signal::TERM);
    // Two signals of one kind that are pending are one signal.
    wait_until("the process has the first one", || !running.is_pending(Signal::TERM));
    running.signal(Signal::TERM);
    let asked = Instant::now();
    assert_eq!(running.status(), Some(1), "it was aborted");
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    assert_eq!(running.committed(), Offset::Invalid);
}

#[test]
fn a_job_that_fails_ends_with_status_1_and_says_why() {
    let mut running = start();
    let producer: BaseProducer = client(&running.broker).create().unwrap();
    producer.send(BaseRecord::to("orders").key("1").payload("no order")).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
    assert_eq!(running.status(), Some(1));
    let mut said = String::new();
    running.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("Error: ") && said.contains("orders/0") && said.contains("Malformed"), "{said}");
}

#[test]
fn a_signal_before_the_job_has_started_ends_it_with_status_0() {
    let mut running = start();
    running.signal(Signal::TERM);
    // Before the handler is set, the signal itself ends the process, which then has no exit status.
    assert!(matches!(running.status(), Some(0) | None));
}
