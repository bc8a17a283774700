//! F, the hand-written loop that every figure is compared with: consume, parse, keep orders that
//! cost something, serialise, produce under the same key; offsets are committed once a second,
//! after their records are acknowledged. One thread, no library but the client. Usage:
//! `floor BROKERS INPUT OUTPUT GROUP`; its driver ends it. It may be replaced by a better one.
//!
//! With `counts` behind that, it writes how many orders their customer has had, of a hash table in
//! memory, which no checkpoint keeps.

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext, Message, Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Order {
    id: u64,
    due: u64,
    customer: u64,
    cents: i64,
    pad: String,
}

#[derive(Serialize)]
struct Invoice {
    id: u64,
    due: u64,
    customer: u64,
    amount: f64,
    pad: String,
}

#[derive(Serialize)]
struct Count {
    id: u64,
    due: u64,
    customer: u64,
    count: u64,
}

/// For each of four partitions, the offsets in flight and the next offset to read.
#[derive(Default)]
struct Partitions {
    open: [Mutex<BTreeSet<i64>>; 4],
    next: [AtomicI64; 4],
}

struct Reports(&'static Partitions);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        assert!(result.is_ok(), "not delivered: {result:?}");
        let (partition, offset) = (opaque & 3, (opaque >> 2) as i64);
        self.0.open[partition].lock().unwrap().remove(&offset);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, brokers, input, output, group, rest @ ..] = &arguments[..] else {
        panic!("floor BROKERS INPUT OUTPUT GROUP [counts]")
    };
    let mut counts = (rest == ["counts"]).then(HashMap::<u64, u64>::new);
    let partitions: &'static Partitions = Box::leak(Box::default());
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.min.bytes", "1")
        .set("fetch.queue.backoff.ms", "5")
        .create()
        .unwrap();
    let producer: BaseProducer<Reports> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", "0")
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        .create_with_context(Reports(partitions))
        .unwrap();
    consumer.fetch_metadata(Some(input), Duration::from_secs(10)).unwrap();
    producer.client().fetch_metadata(Some(output), Duration::from_secs(10)).unwrap();
    let mut list = TopicPartitionList::new();
    (0..4).for_each(|partition| list.add_partition_offset(input, partition, Offset::Beginning).unwrap());
    consumer.assign(&list).unwrap();
    let mut committed = Instant::now();
    loop {
        producer.poll(Duration::ZERO);
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            let message = message.unwrap();
            let (partition, offset) = (message.partition() as usize, message.offset());
            let order: Order = serde_json::from_slice(message.payload().unwrap()).unwrap();
            if order.cents > 0 {
                let Order { id, due, customer, cents, pad } = order;
                let payload = match &mut counts {
                    None => {
                        let invoice = Invoice { id, due, customer, amount: cents as f64 / 100.0, pad };
                        serde_json::to_vec(&invoice).unwrap()
                    }
                    Some(counts) => {
                        let count = counts.entry(customer).or_default();
                        *count += 1;
                        serde_json::to_vec(&Count { id, due, customer, count: *count }).unwrap()
                    }
                };
                partitions.open[partition].lock().unwrap().insert(offset);
                let opaque = (offset as usize) << 2 | partition;
                let key = message.key().unwrap();
                let mut record = BaseRecord::with_opaque_to(output, opaque).key(key).payload(&payload);
                while let Err((_, back)) = producer.send(record) {
                    producer.poll(Duration::from_millis(1));
                    record = back;
                }
            }
            partitions.next[partition].store(offset + 1, SeqCst);
        }
        if committed.elapsed() > Duration::from_secs(1) {
            committed = Instant::now();
            let mut done = TopicPartitionList::new();
            for partition in 0..4 {
                let next = partitions.next[partition].load(SeqCst);
                let oldest = partitions.open[partition].lock().unwrap().first().copied();
                done.add_partition_offset(input, partition as i32, Offset::Offset(oldest.unwrap_or(next))).unwrap();
            }
            consumer.commit(&done, CommitMode::Async).unwrap();
        }
    }
}
