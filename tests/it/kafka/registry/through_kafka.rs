//! Whole jobs: one job reads what another has written, and a registry that becomes unavailable ends
//! a run without losing a record.

use millstream::{ErrorKind, Job, Malformed, Trigger, collect, rows};
use millstream_connectors::{Avro, Message, OnRefused, Protobuf};
use rdkafka::producer::BaseRecord;

use super::{ORDER, Order, behind, order, registry};
use crate::kafka::kafka;
use crate::support::broker::{flush, shared};
use crate::support::registry::{Fault, TestRegistry};

#[derive(Clone, PartialEq, prost::Message)]
struct Invoice {
    #[prost(int64, tag = "1")]
    customer: i64,
}

/// Writes raw payloads.
fn write(topic: &str, payloads: &[Vec<u8>]) {
    let producer = shared().producer();
    for payload in payloads {
        let record = BaseRecord::<[u8], [u8]>::to(topic).partition(0).payload(payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    flush(&producer);
}

#[test]
fn records_that_one_job_writes_are_read_by_another() {
    let served = TestRegistry::start();
    let (orders, invoices) = (shared().topic("orders", 3), shared().topic("invoices", 2));
    let registry = registry(&served);
    let avro = Avro::<Order>::new(&registry).schema(ORDER).unwrap();
    let protobuf = Protobuf::<Invoice>::new(&registry).schema("message Invoice { int64 customer = 1; }").unwrap();
    let (kafka, written) = (kafka(shared()), (0..500).map(order).collect::<Vec<_>>());
    let (to, topic, format, values) = (kafka.clone(), orders.clone(), avro.clone(), written.clone());
    Job::new("orders", move |flow| {
        let orders = flow.source(rows(values.clone()))?;
        orders.sink_by(|order| order.customer.to_string(), to.topic(&topic).format(format.clone()))
    })
    .workers(2)
    .run()
    .unwrap();
    let (from, topics, formats) = (kafka.clone(), (orders.clone(), invoices.clone()), (avro, protobuf.clone()));
    let seen = collect();
    let sink = seen.clone();
    Job::new("invoices", move |flow| {
        let orders = flow.source(from.topic(&topics.0).format(formats.0.clone()).with_tombstones())?.or_stop();
        orders.clone().sink(&sink)?;
        orders
            .map(|order| order.map(|Order { customer, .. }| Invoice { customer }))
            .sink(from.topic(&topics.1).format(formats.1.clone()).with_tombstones())
    })
    .trigger(Trigger::AvailableNow)
    .workers(2)
    .run()
    .unwrap();
    let mut came: Vec<Order> = seen.values().into_iter().flatten().collect();
    came.sort_by_key(|order| order.customer);
    assert_eq!(came, written);
    let read = collect();
    let sink = read.clone();
    let topic = invoices.clone();
    Job::new("read", move |flow| {
        let invoices = flow.source(kafka.topic(&topic).format(protobuf.clone()).with_metadata())?.or_stop();
        invoices.map(Message::into_value).sink(&sink)
    })
    .trigger(Trigger::AvailableNow)
    .run()
    .unwrap();
    let mut customers: Vec<i64> = read.values().iter().map(|invoice: &Invoice| invoice.customer).collect();
    customers.sort_unstable();
    assert_eq!(customers, (0..500).collect::<Vec<_>>());
    assert!(served.asked("/schemas/ids/1") <= 2, "at most once by each worker at the same moment");
    assert_eq!(served.asked("/schemas/ids/2"), 1);
    assert_eq!(served.versions(&format!("{orders}-value")), [1]);
    assert_eq!(served.versions(&format!("{invoices}-value")), [2]);
}

/// The most important promise: while the registry is unavailable, `or_skip` skips nothing.
#[test]
fn a_registry_that_becomes_unavailable_ends_the_run_and_nothing_is_skipped() {
    let served = TestRegistry::start();
    let topic = shared().topic("away", 1);
    let (old, new) = (served.add_avro(ORDER), served.add_avro(&ORDER.replace("shop", "store")));
    write(&topic, &[behind(old, &[2, 0]), behind(99, &[0]), behind(old, &[4, 0]), behind(new, &[6, 0])]);
    let (kafka, seen, bad) = (kafka(shared()), collect(), collect::<Malformed>());
    let (sinks, registry) = ((seen.clone(), bad.clone()), registry(&served));
    let format = Avro::<Order>::new(&registry);
    let warm = behind(old, &[2, 0]);
    assert!(millstream_connectors::Decode::decode(&format, Some(&warm)).is_ok());
    let job = move |name: &str| {
        let (kafka, sinks, format, topic) = (kafka.clone(), sinks.clone(), format.clone(), topic.clone());
        Job::new(name, move |flow| {
            let topic = kafka.topic(&topic).group("away").format(format.clone());
            let (orders, malformed) = flow.source(topic)?.partition_results();
            orders.map(|order| order.customer).sink(&sinks.0)?;
            malformed.sink(&sinks.1)
        })
        .trigger(Trigger::AvailableNow)
    };
    // The registry answers at start, but not for the new schema.
    served.fault_at("/schemas/ids/2", Fault::Closes);
    let error = job("first").run().expect_err("the new schema cannot be looked up");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    let told = format!("{error:#}");
    assert!(told.contains(&served.address) && told.contains("schema 2"), "{told}");
    served.fault(None);
    job("second").run().unwrap();
    let mut customers = seen.values();
    customers.sort_unstable();
    customers.dedup();
    assert_eq!(customers, [1, 2, 3], "at least once");
    assert!(bad.values().iter().all(|malformed| malformed.cause.contains("schema 99")), "{:?}", bad.values());
    assert!(!bad.values().is_empty());
}

#[test]
fn a_record_that_does_not_fit_its_schema_is_refused_as_any_other() {
    let served = TestRegistry::start();
    let topic = shared().topic("unfit", 1);
    // Here the field is a number.
    let schema = ORDER.replace(r#"["null", "string"], "default": null"#, r#"["null", "int"], "default": null"#);
    let format = Avro::<Order>::new(&registry(&served)).schema(&schema).unwrap();
    let run = |policy: OnRefused| {
        let (kafka, topic, format) = (kafka(shared()), topic.clone(), format.clone());
        let job = Job::new("unfit", move |flow| {
            let topic = kafka.topic(&topic).on_refused(policy.clone()).format(format.clone());
            flow.source(rows((0..10).map(order).collect::<Vec<_>>()))?.sink(topic)
        });
        job.run()
    };
    assert_eq!(run(OnRefused::Stop).expect_err("the second is text").kind(), ErrorKind::Malformed);
    let report = run(OnRefused::Skip).unwrap();
    assert_eq!((report.sinks[0].acknowledged, report.sinks[0].skipped), (5, 5));
}
