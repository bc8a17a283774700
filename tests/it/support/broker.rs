//! The broker of the Kafka tests: a real one when `MILLSTREAM_KAFKA` names it, an embedded one
//! otherwise. A test that needs the real one reports on the embedded one that it is skipped, and
//! why; with `MILLSTREAM_NO_SKIP` set, a skip is a failure.

#[path = "proxy.rs"]
pub mod proxy;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use krafka::testing::FakeBroker;
use millstream_tests::Record;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use tokio::runtime::Runtime;

/// The client id of the tests' own clients.
pub const CLIENT: &str = "tests";

/// A broker for tests.
pub struct Broker {
    pub address: String,
    embedded: Option<FakeBroker>,
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
    })
}

/// The broker that all tests share; topics keep them apart.
pub fn shared() -> &'static Broker {
    static SHARED: OnceLock<Broker> = OnceLock::new();
    SHARED.get_or_init(|| match std::env::var("MILLSTREAM_KAFKA") {
        Ok(address) => Broker::at(&address),
        Err(_) => Broker::embedded(),
    })
}

/// The real broker, for tests that need it. Otherwise reports that a test is skipped, and why.
pub fn real(why: &str) -> Option<&'static Broker> {
    let broker = shared();
    if broker.embedded.is_none() {
        return Some(broker);
    }
    // Bypasses the test harness, which hides the output of a test that passes.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("skipped: {why}\n").as_bytes());
    assert!(std::env::var_os("MILLSTREAM_NO_SKIP").is_none(), "a test was skipped: {why}");
    None
}

impl Broker {
    fn embedded() -> Broker {
        let broker = runtime().block_on(FakeBroker::start()).expect("the embedded broker starts");
        Broker { address: broker.bootstrap_servers(), embedded: Some(broker) }
    }

    /// A real broker.
    pub fn at(address: &str) -> Broker {
        Broker { address: address.to_owned(), embedded: None }
    }

    /// The end offset of a partition.
    pub fn end(&self, topic: &str, partition: i32) -> i64 {
        let consumer: BaseConsumer = self.client().create().unwrap();
        consumer.fetch_watermarks(topic, partition, crate::PATIENCE).unwrap().1
    }

    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    /// Creates a topic with a unique name.
    pub fn topic(&self, name: &str, partitions: i32) -> String {
        self.topic_with(name, partitions, &[])
    }

    pub fn topic_with(&self, name: &str, partitions: i32, properties: &[(&str, &str)]) -> String {
        let topic = format!("{name}-{}", fastrand::u64(..));
        if let Some(embedded) = &self.embedded {
            assert!(embedded.create_topic(&topic, partitions));
            return topic;
        }
        let new = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1));
        let new = properties.iter().fold(new, |new, (key, value)| new.set(key, value));
        let created = runtime().block_on(self.admin().create_topics([&new], &AdminOptions::new())).unwrap();
        created.into_iter().for_each(|topic| drop(topic.unwrap()));
        self.await_leaders(&topic, partitions);
        topic
    }

    pub fn add_partitions(&self, topic: &str, count: i32) {
        if let Some(embedded) = &self.embedded {
            embedded.add_partitions(topic, count);
        } else {
            let new = NewPartitions::new(topic, count as usize);
            runtime().block_on(self.admin().create_partitions([&new], &AdminOptions::new())).unwrap();
            self.await_leaders(topic, count);
        }
    }

    pub fn await_leaders(&self, topic: &str, partitions: i32) {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let deadline = Instant::now() + crate::PATIENCE;
        loop {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
            let known = metadata.topics()[0].partitions();
            if known.len() as i32 == partitions && known.iter().all(|partition| partition.leader() >= 0) {
                return;
            }
            assert!(Instant::now() < deadline, "{topic} has no leaders");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    pub fn delete_topic(&self, topic: &str) {
        let deleted = runtime().block_on(self.admin().delete_topics(&[topic], &AdminOptions::new())).unwrap();
        deleted.into_iter().for_each(|topic| drop(topic.unwrap()));
    }

    pub fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        runtime().block_on(self.admin().delete_records(&list, &AdminOptions::new())).unwrap();
    }

    pub fn producer(&self) -> BaseProducer {
        self.client()
            .set("client.id", CLIENT)
            .set("partitioner", "murmur2_random")
            .set("enable.idempotence", "true")
            .create()
            .unwrap()
    }

    /// Writes 2 000 records a second while `during` runs, with key and value from `record`, and
    /// each with a header of its own; a record that is late is still written. `during` is passed
    /// the number of records so far. Returns the number of records, all of which the broker has,
    /// and the result of `during`.
    pub fn under_load<T>(
        &self,
        topic: &str,
        record: impl Fn(u64) -> (String, String) + Sync,
        during: impl FnOnce(&AtomicU64) -> T,
    ) -> (u64, T) {
        let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let (producer, begin) = (self.producer(), Instant::now());
                for n in (0..).take_while(|_| !done.load(SeqCst)) {
                    let due = begin + Duration::from_micros(n * 500);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let ((key, value), number) = (record(n), n.to_string());
                    let headers = headers(&[("number", Some(&number))]);
                    send(&producer, BaseRecord::to(topic).key(key.as_str()).payload(value.as_str()).headers(headers));
                    sent.store(n + 1, SeqCst);
                }
                flush(&producer);
            });
            // The load must end even if `during` panics.
            let ended = catch_unwind(AssertUnwindSafe(|| during(&sent)));
            done.store(true, SeqCst);
            load.join().expect("it only writes");
            (sent.load(SeqCst), ended.unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }

    /// Writes records and waits until the broker has them.
    pub fn write<'r>(&self, topic: &str, records: impl IntoIterator<Item = (Option<i32>, &'r str, Option<&'r str>)>) {
        let producer = self.producer();
        for (partition, key, value) in records {
            let mut record = BaseRecord::to(topic).key(key);
            record.partition = partition;
            record.payload = value;
            send(&producer, record);
        }
        flush(&producer);
    }

    /// All records of a topic: a list for each partition.
    pub fn read(&self, topic: &str) -> Vec<Vec<Read>> {
        self.read_with(topic, "read_committed")
    }

    pub fn read_with(&self, topic: &str, isolation: &str) -> Vec<Vec<Read>> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "tests")
            .set("enable.auto.commit", "false")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "20")
            .create()
            .unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).unwrap();
        let count = metadata.topics()[0].partitions().len();
        let mut list = TopicPartitionList::new();
        (0..count).for_each(|partition| list.add_partition_offset(topic, partition as i32, Offset::Beginning).unwrap());
        consumer.assign(&list).unwrap();
        let mut records = vec![Vec::new(); count];
        let mut ended = vec![false; count];
        let deadline = Instant::now() + crate::PATIENCE;
        while ended.contains(&false) {
            assert!(Instant::now() < deadline, "{topic} does not end");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => records[message.partition() as usize].push(Read::of(&message)),
                Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => ended[partition as usize] = true,
                Some(Err(error)) => panic!("{topic}: {error}"),
                None => {}
            }
        }
        records
    }

    /// All records of a topic whose values are numbers, for the checker: a list for each partition.
    pub fn records(&self, topic: &str) -> Vec<Vec<Record>> {
        let record = |read: &Read| Record {
            id: read.value.as_ref().expect("no tombstone is written").parse().expect("a number"),
            key: read.key.clone().unwrap_or_default().into_bytes(),
            headers: read.headers.clone(),
        };
        self.read(topic).iter().map(|partition| partition.iter().map(record).collect()).collect()
    }

    /// The offsets that a group has committed for the partitions of a topic, where there are any.
    pub fn committed(&self, group: &str, topic: &str, partitions: i32) -> Vec<Option<i64>> {
        let consumer: BaseConsumer = self.client().set("client.id", CLIENT).set("group.id", group).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, partitions - 1);
        // A coordinator that has just started, or is moving, returns an error once or twice.
        let deadline = Instant::now() + crate::PATIENCE;
        let committed = loop {
            match consumer.committed_offsets(list.clone(), Duration::from_secs(10)) {
                Ok(committed) => break committed,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let offset = |partition| match committed.find_partition(topic, partition).unwrap().offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        (0..partitions).map(offset).collect()
    }

    pub fn commit(&self, group: &str, topic: &str, offsets: &[i64]) {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().unwrap();
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets.iter().enumerate() {
            list.add_partition_offset(topic, partition as i32, Offset::Offset(*offset)).unwrap();
        }
        consumer.commit(&list, rdkafka::consumer::CommitMode::Sync).unwrap();
    }
}

/// A record as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub offset: i64,
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: Vec<(String, Option<String>)>,
    pub timestamp: Option<i64>,
}

impl Read {
    fn of(message: &impl Message) -> Read {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message
            .headers()
            .map(|headers| headers.iter().map(|header| (header.key.to_owned(), header.value.map(text))).collect());
        Read {
            offset: message.offset(),
            key: message.key().map(text),
            value: message.payload().map(text),
            headers: headers.unwrap_or_default(),
            timestamp: message.timestamp().to_millis(),
        }
    }
}

/// Sends a record; waits for room.
pub fn send(producer: &BaseProducer, mut record: BaseRecord<'_, str, str>) {
    while let Err((error, back)) = producer.send(record) {
        assert_eq!(error.rdkafka_error_code(), Some(rdkafka::types::RDKafkaErrorCode::QueueFull), "{error}");
        producer.poll(Duration::from_millis(5));
        record = back;
    }
    producer.poll(Duration::ZERO);
}

pub fn flush(producer: &BaseProducer) {
    let deadline = Instant::now() + crate::PATIENCE;
    while producer.in_flight_count() > 0 {
        assert!(Instant::now() < deadline, "records are not delivered");
        producer.poll(Duration::from_millis(2));
    }
}

/// Headers for a record.
pub fn headers(pairs: &[(&str, Option<&str>)]) -> OwnedHeaders {
    pairs.iter().fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: *value }))
}

/// The script that starts and stops real brokers.
pub const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kafka/broker");

/// A broker of one test, which may stop and start it.
pub struct OwnBroker {
    pub broker: Broker,
    port: Option<u16>,
    advertised: u16,
    /// Additional lines of its configuration.
    properties: String,
}

/// A free port, after which the next seven are free as well.
fn free_port() -> u16 {
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    std::iter::repeat_with(|| 20_000 + fastrand::u16(..10_000) / 8 * 8)
        .find(|port| (0..8).all(|next| is_free(port + next)))
        .expect("there is always another")
}

impl OwnBroker {
    /// A real broker behind a proxy. The address is the proxy's.
    pub fn behind_a_proxy() -> (OwnBroker, proxy::Proxy) {
        let port = free_port();
        let proxy = proxy::Proxy::start(port + 2, port);
        let address = format!("127.0.0.1:{}", port + 2);
        let own = OwnBroker {
            broker: Broker { address, embedded: None },
            port: Some(port),
            advertised: port + 2,
            properties: String::new(),
        };
        own.script(&["up"]);
        (own, proxy)
    }

    /// A real broker with additional settings.
    pub fn with(properties: &str) -> OwnBroker {
        OwnBroker::with_ports(|_| properties.to_owned())
    }

    /// A real broker with additional settings, which depend on its port. The six ports from the
    /// second one after it are free for them.
    pub fn with_ports(properties: impl FnOnce(u16) -> String) -> OwnBroker {
        let port = free_port();
        let broker = Broker { address: format!("127.0.0.1:{port}"), embedded: None };
        let own = OwnBroker { broker, port: Some(port), advertised: port, properties: properties(port) };
        own.script(&["up"]);
        own
    }

    /// Runs one of Kafka's own tools on a real broker, and returns what it printed.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> String {
        self.script(&[&["tool", class], arguments].concat())
    }

    pub fn start() -> OwnBroker {
        if shared().embedded.is_some() {
            return OwnBroker { broker: Broker::embedded(), port: None, advertised: 0, properties: String::new() };
        }
        OwnBroker::with("")
    }

    fn script(&self, command: &[&str]) -> String {
        let Some(port) = self.port else { return String::new() };
        let mut child = Command::new(SCRIPT);
        child.args(command).env("MILLSTREAM_KAFKA_PORT", port.to_string()).env("MILLSTREAM_KAFKA_MINUTES", "10");
        child.env("MILLSTREAM_KAFKA_ADVERTISED", self.advertised.to_string());
        child.env("MILLSTREAM_KAFKA_PROPERTIES", &self.properties);
        let output = child.stderr(std::process::Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "cannot run the broker script: {command:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn kill(&self) {
        match &self.broker.embedded {
            Some(embedded) => embedded.crash(0),
            None => drop(self.script(&["kill"])),
        }
    }

    pub fn restart(&self) {
        match &self.broker.embedded {
            Some(embedded) => embedded.restart(0),
            None => drop(self.script(&["start"])),
        }
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        drop(self.script(&["down"]));
    }
}
