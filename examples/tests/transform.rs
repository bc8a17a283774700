//! The example as a function, and as a real process that gets signals: the first makes it drain,
//! commit and exit with status 0, a second one aborts it. If the job fails, it exits with status 1.

#[path = "../transform.rs"]
#[allow(dead_code, reason = "its own main is not called here")]
mod transform;

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use krafka::testing::FakeBroker;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};

/// The longest that a test waits for something.
const PATIENCE: Duration = Duration::from_secs(30);
const ORDERS: u64 = 1_000;

#[test]
fn writes_an_invoice_for_each_order_that_costs_something() {
    transform::run(clap::Parser::parse_from(["transform", "--trigger", "available-now"])).unwrap();
}

struct Running {
    child: Child,
    broker: FakeBroker,
    runtime: tokio::runtime::Runtime,
}

/// Starts the example, whose program is beside the test's own, on a thousand orders of a broker in
/// this process.
fn start() -> Running {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let broker = runtime.block_on(FakeBroker::start()).unwrap();
    broker.create_topic("orders", 1);
    broker.create_topic("invoices", 1);
    let producer: BaseProducer = client(&broker).create().unwrap();
    for id in 0..ORDERS {
        let order = format!(r#"{{"id":{id},"due":0,"customer":1,"cents":100,"pad":""}}"#);
        producer.send(BaseRecord::to("orders").key("1").payload(&order)).map_err(|(error, _)| error).unwrap();
    }
    wait_until("the orders are there", || {
        producer.poll(Duration::from_millis(5));
        producer.in_flight_count() == 0
    });
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
fn the_first_one_drains_commits_and_ends_with_status_0() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut running = start();
        wait_until("the invoices are written", || running.written() == ORDERS);
        running.signal(signal);
        assert_eq!(running.status(), Some(0), "{signal:?}");
        assert_eq!(running.committed(), Offset::Offset(ORDERS as i64), "{signal:?}");
    }
}

#[test]
fn a_second_one_aborts_what_cannot_drain() {
    let mut running = start();
    wait_until("the invoices are written", || running.written() == ORDERS);
    // From now on, nothing answers a commit.
    running.broker.crash(0);
    running.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(500));
    let drains = running.child.try_wait().unwrap().is_none();
    running.signal(Signal::TERM);
    let asked = Instant::now();
    let status = running.status();
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    // The process may have committed before the broker was gone; then it had nothing to wait for.
    assert_eq!(status, Some(if drains { 1 } else { 0 }));
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
fn one_before_the_job_has_started_ends_it_with_status_0() {
    let mut running = start();
    running.signal(Signal::TERM);
    // Before the handler is set, the signal itself ends the process, which then has no exit status.
    assert!(matches!(running.status(), Some(0) | None));
}
