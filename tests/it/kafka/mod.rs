//! Promises that need Kafka.
