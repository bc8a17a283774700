//! The topics of a run: created for it, so that no run sees another's records.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::runtime;

/// A client configuration for these brokers.
pub fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// Creates topics and waits until each of their partitions has a leader.
pub fn create(brokers: &str, topics: &[&str], partitions: i32) {
    create_with(brokers, topics, partitions, &[]);
}

/// As [`create`], with topic properties.
pub fn create_with(brokers: &str, topics: &[&str], partitions: i32, properties: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = client(brokers).create().expect("the settings are constants");
    let runtime = runtime::Builder::new_current_thread().build().expect("a runtime without drivers needs nothing");
    let new: Vec<NewTopic<'_>> = topics
        .iter()
        .map(|topic| {
            let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
            properties.iter().fold(new, |new, (key, value)| new.set(key, value))
        })
        .collect();
    let created = runtime.block_on(admin.create_topics(&new, &AdminOptions::new())).expect("the broker answers");
    created.into_iter().for_each(|topic| drop(topic.expect("the topic is new")));
    let consumer: BaseConsumer = client(brokers).create().expect("the settings are constants");
    let deadline = Instant::now() + Duration::from_secs(20);
    for topic in topics {
        let is_led = || {
            let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10)).expect("the broker answers");
            let partitions = metadata.topics()[0].partitions();
            !partitions.is_empty() && partitions.iter().all(|partition| partition.leader() >= 0)
        };
        while !is_led() {
            assert!(Instant::now() < deadline, "topic {topic} got no leader");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
