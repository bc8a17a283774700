//! Avro and Protobuf with the ids of a schema registry that runs in the test.

mod avro;
mod outages;
mod protobuf;
mod start;
mod through_kafka;
#[cfg(feature = "tls")]
mod tls;

use millstream::Error;
use millstream_connectors::{Decode, Encode, Registry};
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::support::registry::TestRegistry;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Order {
    customer: i64,
    note: Option<String>,
}

/// The record's name differs from the struct's; this does not matter.
const ORDER: &str = r#"{"type": "record", "name": "OrderCreated", "namespace": "shop", "fields": [
    {"name": "customer", "type": "long"},
    {"name": "note", "type": ["null", "string"], "default": null}]}"#;

fn order(customer: i64) -> Order {
    Order { customer, note: (customer % 2 == 0).then(|| format!("ü{customer}")) }
}

fn registry(served: &TestRegistry) -> Registry {
    Registry::new(&served.address).within(Duration::from_millis(600))
}

/// The payload of a value, encoded by a format that was opened for a topic.
#[track_caller]
fn encoded<V, F: Encode<V>>(mut format: F, topic: &str, value: &V) -> Vec<u8> {
    Encode::open(&mut format, Some(topic)).expect("it opens");
    let mut payload = Vec::new();
    format.encode(value, &mut payload).expect("it is encoded");
    payload
}

/// Why a payload is malformed; the format itself must not have failed.
#[track_caller]
fn malformed<F: Decode<Value: std::fmt::Debug>>(format: &F, payload: &[u8]) -> String {
    let cause = format.decode(Some(payload)).expect_err("it is malformed");
    assert!(!cause.is::<Error>(), "the format failed: {cause}");
    cause.to_string()
}

/// The error with which the format itself fails.
#[track_caller]
fn failed<F: Decode<Value: std::fmt::Debug>>(format: &F, payload: &[u8]) -> Error {
    let cause = format.decode(Some(payload)).expect_err("the format fails");
    *cause.downcast::<Error>().unwrap_or_else(|cause| panic!("the record is malformed instead: {cause}"))
}

/// A payload after the id of its schema.
fn behind(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], body].concat()
}
