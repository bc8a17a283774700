//! Protobuf as bytes: compatible with other clients, for messages anywhere in their files, and when
//! it is malformed.

use millstream_connectors::{Decode, Encode, Protobuf};
use prost::Message;
use serde_json::json;

use super::{behind, encoded, malformed, registry};
use crate::support::registry::TestRegistry;
use crate::support::seed;

#[derive(Clone, PartialEq, Message)]
struct Order {
    #[prost(int64, tag = "1")]
    customer: i64,
    #[prost(string, optional, tag = "2")]
    note: Option<String>,
    #[prost(message, optional, boxed, tag = "3")]
    before: Option<Box<Order>>,
}

const FILE: &str = r#"syntax = "proto3";
package shop;
message Head { map<string, string> by = 1; message Order { int64 customer = 1; optional string note = 2; Order before = 3; } }
message Order { int64 customer = 1; optional string note = 2; Order before = 3; }"#;

fn order(customer: i64) -> Order {
    Order { customer, note: Some("hi".to_owned()), before: None }
}

#[test]
fn is_encoded_as_other_clients_encode_it() {
    let served = TestRegistry::start();
    let format = Protobuf::<Order>::new(&registry(&served)).schema(FILE).unwrap();
    // Computed by hand: 0, the id, which message; field 1 as a varint is 08, field 2 of 2 bytes is
    // 12 02.
    let body = [0x08, 7, 0x12, 2, b'h', b'i'];
    for (message, path) in [("Order", &[2, 2][..]), ("Head.Order", &[4, 0, 0]), ("shop.Head.Order", &[4, 0, 0])] {
        let format = format.clone().message(message);
        let payload = encoded(format.clone(), "orders", &order(7));
        assert_eq!(payload, behind(1, &[path, &body].concat()), "{message}");
        assert_eq!(format.decode(Some(&payload)).unwrap(), order(7));
    }
    let first =
        Protobuf::<Order>::new(&registry(&served)).schema(&FILE.replace("message Head", "message Tail")).unwrap();
    assert_eq!(encoded(first.message("Tail"), "tails", &order(7)), behind(2, &[&[0][..], &body].concat()));
    assert_eq!((served.versions("orders-value"), served.versions("tails-value")), (vec![1], vec![2]));
}

/// Clients that use a file's descriptor count the entries of a map as a message before the nested
/// one.
#[test]
fn with_either_way_to_count_messages_is_read() {
    let served = TestRegistry::start();
    let id = served.add("orders", &json!({ "schema": FILE, "schemaType": "PROTOBUF" }));
    let format = Protobuf::<Order>::new(&registry(&served)).message("Head.Order");
    for path in [[4, 0, 0], [4, 0, 2]] {
        assert_eq!(format.decode(Some(&behind(id, &[&path[..], &[8, 7]].concat()))).unwrap().customer, 7);
    }
    assert!(malformed(&format, &behind(id, &[4, 0, 4, 8, 7])).contains("[0, 2]"));
}

#[test]
fn of_a_file_that_was_rearranged_is_found_by_its_name() {
    let served = TestRegistry::start();
    let other =
        "syntax = \"proto3\"; package shop; message Order { int64 customer = 1; string added = 9; } message Head {}";
    let id = served.add("orders", &json!({ "schema": other, "schemaType": "PROTOBUF" }));
    let format = Protobuf::<Order>::new(&registry(&served)).message("Order");
    let payload = behind(id, &[0, 8, 7, 0x4a, 1, b'x']);
    assert_eq!(format.decode(Some(&payload)).unwrap().customer, 7, "an unknown field is dropped");
    let cause = malformed(&format, &behind(id, &[2, 2]));
    assert!(cause.contains("message [1] of schema 1"), "{cause}");
}

#[test]
fn that_is_invalid_is_malformed() {
    let served = TestRegistry::start();
    let id = served.add("orders", &json!({ "schema": FILE, "schemaType": "PROTOBUF" }));
    let without = served.add("orders", &json!({ "schema": "message Other {}", "schemaType": "PROTOBUF" }));
    let avro = served.add_avro(r#""long""#);
    let format = Protobuf::<Order>::new(&registry(&served)).message("Order");
    for (payload, says) in [
        (behind(id, &[]), "which message"),
        (behind(id, &[2]), "which message"),
        (behind(id, &[1]), "nested -1 deep"),
        (behind(id, &[0x80, 0x80, 0x80, 0x80, 0x10]), "deep"),
        (behind(id, &[2, 1]), "no schema can have"),
        (behind(id, &[0, 8, 7]), "message [0] of schema 1"),
        (behind(id, &[2, 2, 8]), "varint"),
        (behind(id, &[2, 2, 0x12, 9, b'x']), "buffer underflow"),
        (behind(avro, &[2]), "which message"),
        (behind(avro, &[0]), "AVRO"),
        (behind(without, &[0]), "no message `Order`, only `Other`"),
        (behind(99, &[0]), "schema 99"),
        (vec![0, 0], "2 bytes"),
        (vec![9; 20], "0x09"),
    ] {
        let cause = malformed(&format, &payload);
        assert!(cause.contains(says), "`{cause}` does not say `{says}`");
    }
    let mut deep = Vec::new();
    for _ in 0..1_000 {
        let mut outer = vec![0x1a];
        prost::encoding::encode_varint(deep.len() as u64, &mut outer);
        deep = [outer, deep].concat();
    }
    assert!(malformed(&format, &behind(id, &[&[2, 2], &deep[..]].concat())).contains("recursion"));
}

#[test]
fn without_a_registry_has_no_prefix() {
    let format = Protobuf::<Order>::bare();
    let mut payload = Vec::new();
    format.encode(&order(7), &mut payload).unwrap();
    assert_eq!(payload, [0x08, 7, 0x12, 2, b'h', b'i']);
    assert_eq!(format.decode(Some(&payload)).unwrap(), order(7));
    assert!(format.decode(Some(&[0x08])).is_err() && format.decode(None).is_err());
}

#[test]
fn of_arbitrary_bytes_is_decoded_or_malformed() {
    let mut random = fastrand::Rng::with_seed(seed());
    let served = TestRegistry::start();
    let mut format = Protobuf::<Order>::new(&registry(&served)).schema(FILE).unwrap().message("Order");
    Encode::open(&mut format, Some("orders")).unwrap();
    for _ in 0..20_000 {
        let order = Order {
            customer: random.i64(..),
            note: random.bool().then(|| (0..random.usize(..40)).map(|_| random.char(..)).collect()),
            before: random.bool().then(|| Box::new(order(random.i64(..)))),
        };
        let mut payload = Vec::new();
        format.encode(&order, &mut payload).unwrap();
        assert_eq!(format.decode(Some(&payload)).unwrap(), order);
        // The id stays as it is; another id would be looked up.
        (0..random.usize(1..5)).for_each(|_| {
            let at = random.usize(5..payload.len());
            payload[at] = random.u8(..);
        });
        payload.truncate(random.usize(5..=payload.len()));
        if let Ok(order) = format.decode(Some(&payload)) {
            let mut again = Vec::new();
            format.encode(&order, &mut again).unwrap();
            assert_eq!(format.decode(Some(&again)).unwrap(), order);
        }
    }
}
