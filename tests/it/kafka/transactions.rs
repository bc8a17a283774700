//! Read-committed input: aborted records are not read, and the control records at the end of a
//! partition neither hang a bounded run nor show as lag.

use std::time::Duration;

use millstream::{Job, Trigger, collect};
use millstream_connectors::Isolation;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use super::kafka;
use crate::support::broker::{Broker, real};
use crate::support::eventually;

const LONG: Duration = Duration::from_secs(20);

pub fn transaction(broker: &Broker, topic: &str, values: std::ops::Range<u64>, commit: bool) {
    let id = format!("tx-{}", fastrand::u64(..));
    let producer: ThreadedProducer<DefaultProducerContext> =
        broker.client().set("transactional.id", &id).create().unwrap();
    producer.init_transactions(LONG).unwrap();
    producer.begin_transaction().unwrap();
    for n in values {
        let value = n.to_string();
        producer.send(BaseRecord::to(topic).partition(0).key("").payload(&value)).map_err(|(error, _)| error).unwrap();
    }
    // An abort would drop records that have not been sent.
    eventually("all of it is at the broker", || producer.in_flight_count() == 0);
    if commit {
        producer.commit_transaction(LONG).unwrap();
    } else {
        producer.abort_transaction(LONG).unwrap();
    }
}

#[test]
fn aborted_records_and_control_records_are_skipped() {
    let Some(broker) = real("the embedded broker serves no transactions of librdkafka") else { return };
    let topic = broker.topic("transactions", 1);
    transaction(broker, &topic, 0..10, true);
    transaction(broker, &topic, 10..20, false);
    transaction(broker, &topic, 20..30, true);
    transaction(broker, &topic, 30..40, false);
    for (isolation, expected) in [(Isolation::ReadCommitted, 20), (Isolation::ReadUncommitted, 40)] {
        let (kafka, results, name) = (kafka(broker), collect(), topic.clone());
        let (sink, group) = (results.clone(), format!("{isolation:?}-{topic}"));
        let of_job = group.clone();
        let job = Job::new("transactions", move |flow| {
            let source = kafka.topic(&name).group(&of_job).isolation(isolation).json::<u64>();
            flow.source(source)?.or_stop().sink(&sink)
        });
        let running = job.trigger(Trigger::AvailableNow).start().unwrap();
        let mut running = running;
        let report = running.wait_for(LONG).expect("control records do not hang it").unwrap();
        assert_eq!(results.len(), expected, "{isolation:?}");
        assert_eq!(report.sources[0].lag_records(), 0);
        // Forty records and four markers.
        assert_eq!(broker.committed(&group, &topic, 1), [Some(44)], "the whole log is committed");
    }
}

#[test]
fn control_records_at_the_end_do_not_count_as_lag_of_a_continuous_run() {
    let Some(broker) = real("the embedded broker serves no transactions of librdkafka") else { return };
    let topic = broker.topic("markers", 1);
    let (kafka, results, name) = (kafka(broker), collect(), topic.clone());
    let (sink, group) = (results.clone(), format!("group-{topic}"));
    let of_job = group.clone();
    let job = Job::new("markers", move |flow| {
        flow.source(kafka.topic(&name).group(&of_job).json::<u64>())?.or_stop().sink(&sink)
    });
    let running = job.checkpoint_every(Duration::from_millis(50)).start().unwrap();
    transaction(broker, &topic, 0..10, true);
    transaction(broker, &topic, 10..15, true);
    results.wait_for(15, LONG).expect("all of it is read");
    // The client's statistics, which contain the end offset, arrive every five seconds.
    eventually("the report shows no lag", || {
        let report = running.report();
        report.sources[0].lag[0].end == 17 && report.sources[0].lag_records() == 0
    });
    running.stop();
    running.wait().unwrap();
    assert_eq!(broker.committed(&group, &topic, 1), [Some(17)]);
}
