//! Compares what formats estimate that a decoded value holds with what it does hold, as the
//! allocator counts it. A binary of its own with one test, because the allocator counts for all
//! threads.

#![allow(clippy::print_stdout, reason = "figures are printed")]

use std::alloc::System;
use std::collections::{BTreeMap, HashMap};

use millstream_connectors::format::{Bytes, Text};
use millstream_connectors::{Compressed, Csv, Decode, Encode, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Decodes a payload and compares what the format counts with what the value holds.
#[track_caller]
fn check<F: Decode>(what: &str, format: &F, payload: &[u8], least: f64, most: f64) {
    let region = Region::new(ALLOCATOR);
    let value = format.decode(Some(payload)).expect("it can be decoded");
    let change = region.change();
    let held = (change.bytes_allocated as isize - change.bytes_deallocated as isize) as f64;
    let counted = format.held(Some(payload), &value).0 as f64;
    let part = counted / held;
    println!("{what:40} {:>8} bytes, {held:>8} held, {counted:>8} counted, {part:.2}", payload.len());
    assert!((least..=most).contains(&part), "{what}: {part:.2} of the memory held is counted");
    let sized = format.decode_sized(Some(payload)).expect("it can be decoded").1.0;
    assert_eq!(sized as f64, counted, "{what}: `decode_sized` counts the same");
}

fn encoded<V, F: Encode<V>>(format: &F, value: &V) -> Vec<u8> {
    let mut payload = Vec::new();
    format.encode(value, &mut payload).expect("it can be encoded");
    payload
}

#[derive(Debug, Deserialize, Serialize)]
struct Order {
    customer: String,
    street: String,
    note: Option<String>,
    cents: i64,
}

#[derive(Debug, Deserialize, Serialize)]
struct Tagged {
    tags: Vec<String>,
}

fn order(n: usize) -> Order {
    Order { customer: format!("customer {n}"), street: "a".repeat(n % 40 + 5), note: None, cents: 1_000 + n as i64 }
}

#[test]
fn what_is_counted_is_at_least_most_of_what_is_held() {
    let value = |what: &str, value: &Value| {
        check(what, &Json::<Value>::new(), value.to_string().as_bytes(), 0.8, 2.5);
    };
    value("value: small object", &json!({"a": 1}));
    value("value: nested objects", &json!({"a": {"b": {"c": {"d": "e"}}}}));
    value("value: order", &serde_json::to_value(order(30)).expect("it is JSON"));
    value("value: list of orders", &(0..1_000).map(|n| serde_json::to_value(order(n)).expect("it is JSON")).collect());
    value("value: numbers", &(0..1_025).collect());
    for fields in [11, 12, 20, 100, 10_000] {
        value(&format!("value: {fields} fields"), &(0..fields).map(|n| (format!("k{n:06}"), Value::from(n))).collect());
        let mut random = fastrand::Rng::with_seed(fields);
        let at_random = (0..fields).map(|n| (format!("k{:09}", random.u32(..)), Value::from(n)));
        let text: Vec<String> = at_random.map(|(key, n): (String, Value)| format!("\"{key}\":{n}")).collect();
        let text = format!("{{{}}}", text.join(","));
        check(&format!("value: {fields} fields at random"), &Json::<Value>::new(), text.as_bytes(), 0.8, 2.5);
    }
    let json = Json::<String>::new();
    check("text in json", &json, &encoded(&json, &"some text".repeat(20)), 0.8, 1.5);
    let json = Json::<Order>::new();
    check("struct of text", &json, &encoded(&json, &order(30)), 0.8, 10.0);
    let json = Json::<Vec<Order>>::new();
    for count in [1_000, 1_025] {
        check("list of structs of text", &json, &encoded(&json, &(0..count).map(order).collect::<Vec<_>>()), 0.8, 4.0);
    }
    let json = Json::<Tagged>::new();
    for (count, len) in [(3, 5), (100, 1), (1_024, 10), (1_025, 10), (1_025, 0)] {
        let tags = (0..count).map(|_| "t".repeat(len)).collect();
        check(&format!("struct of {count} texts of {len}"), &json, &encoded(&json, &Tagged { tags }), 0.8, 4.0);
    }
    let json = Json::<Vec<u64>>::new();
    check("numbers", &json, &encoded(&json, &(0..1_025).collect::<Vec<u64>>()), 0.8, 8.0);
    let json = Json::<HashMap<String, String>>::new();
    for count in [4, 100, 450] {
        let map: HashMap<_, _> = (0..count).map(|n| (n.to_string(), n.to_string())).collect();
        check(&format!("map of {count} short texts"), &json, &encoded(&json, &map), 0.5, 3.0);
    }
    let json = Json::<BTreeMap<String, String>>::new();
    let map: BTreeMap<_, _> = (0..100).map(|n| (n.to_string(), n.to_string())).collect();
    check("ordered map of 100 short texts", &json, &encoded(&json, &map), 0.5, 3.0);
    check("text", &Text, "some text".as_bytes(), 1.0, 1.0);
    check("bytes", &Bytes, &[7; 1_000], 1.0, 1.0);
    let csv = Csv::<Order>::new();
    check("row of a struct", &csv, &encoded(&csv, &order(30)), 0.8, 10.0);
    let csv = Csv::<Vec<String>>::new();
    for count in [3, 17, 100] {
        let texts: Vec<String> = (0..count).map(|n| n.to_string()).collect();
        check(&format!("row of {count} texts"), &csv, &encoded(&csv, &texts), 0.8, 4.0);
    }
    let compressed = Compressed::new(Text);
    check("compressed text", &compressed, &encoded(&compressed, &"again ".repeat(10_000)), 0.8, 1.3);
    binary();
}

#[cfg(feature = "avro")]
fn binary() {
    use millstream_connectors::Avro;

    const ORDER: &str = r#"{"type": "record", "name": "Order", "fields": [
        {"name": "customer", "type": "string"}, {"name": "street", "type": "string"},
        {"name": "note", "type": ["null", "string"]}, {"name": "cents", "type": "long"}]}"#;
    let avro = Avro::<Order>::bare(ORDER).expect("the schema is valid");
    check("avro: struct of text", &avro, &encoded(&avro, &order(30)), 0.8, 10.0);
    let avro = Avro::<Vec<String>>::bare(r#"{"type": "array", "items": "string"}"#).expect("the schema is valid");
    let texts: Vec<String> = (0..1_000).map(|n| format!("text number {n}")).collect();
    check("avro: list of texts", &avro, &encoded(&avro, &texts), 0.8, 4.0);
}

#[cfg(not(feature = "avro"))]
fn binary() {}
