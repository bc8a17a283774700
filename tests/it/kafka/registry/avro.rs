//! Avro as bytes: compatible with other clients, across versions of a schema, and when it is
//! malformed.

use std::collections::BTreeMap;

use millstream_connectors::{Avro, Decode, Encode};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{ORDER, Order, behind, encoded, malformed, order, registry};
use crate::support::registry::TestRegistry;
use crate::support::seed;

#[test]
fn is_encoded_as_other_clients_encode_it() {
    let served = TestRegistry::start();
    let format = Avro::<Order>::new(&registry(&served)).schema(ORDER).unwrap();
    // Computed by hand: 0, the id, 7 as a zigzag, the union's first branch. Then -65, the second
    // branch, 2 letters.
    assert_eq!(encoded(format.clone(), "orders", &order(7)), [0, 0, 0, 0, 1, 14, 0]);
    let note = Order { customer: -65, note: Some("hi".to_owned()) };
    let payload = encoded(format.clone(), "orders", &note);
    assert_eq!(payload, [0, 0, 0, 0, 1, 0x81, 1, 2, 4, b'h', b'i']);
    assert_eq!(format.decode(Some(&payload)).unwrap(), note);
    assert_eq!(served.versions("orders-value"), [1]);
}

/// For a schema that is only `"bytes"`, Confluent's serializer writes no length.
#[test]
fn of_the_schema_bytes_has_no_length_prefix() {
    mod blob {
        use serde::de::{Deserializer, Visitor};
        pub(super) fn serialize<S: serde::Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(bytes)
        }
        pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
            struct Any;
            impl Visitor<'_> for Any {
                type Value = Vec<u8>;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("bytes")
                }
                fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                    Ok(bytes.to_vec())
                }
            }
            deserializer.deserialize_bytes(Any)
        }
    }
    #[derive(Debug, PartialEq, Deserialize, Serialize)]
    #[serde(transparent)]
    struct Raw(#[serde(with = "blob")] Vec<u8>);
    let served = TestRegistry::start();
    let format = Avro::<Raw>::new(&registry(&served)).schema(r#""bytes""#).unwrap();
    for bytes in [vec![], vec![1, 2, 3], vec![7; 300]] {
        let payload = encoded(format.clone(), "raw", &Raw(bytes.clone()));
        assert_eq!(payload, behind(1, &bytes));
        assert_eq!(format.decode(Some(&payload)).unwrap(), Raw(bytes));
    }
}

#[test]
fn of_an_older_or_newer_writer_is_resolved_into_the_readers_schema() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Grown {
        note: Option<String>,
        customer: i64,
        cents: i64,
        tags: Vec<String>,
    }
    const GROWN: &str = r#"{"type": "record", "name": "OrderCreated", "namespace": "shop", "fields": [
        {"name": "note", "type": ["null", "string"], "default": null},
        {"name": "customer", "type": "long"},
        {"name": "cents", "type": "long", "default": 12},
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": ["new"]}]}"#;
    let served = TestRegistry::start();
    let registry = registry(&served);
    let (old, new) = (served.add_avro(ORDER), served.add_avro(GROWN));
    let reads_grown = Avro::<Grown>::new(&registry).schema(GROWN).unwrap();
    let added = Grown { note: None, customer: 7, cents: 12, tags: vec!["new".to_owned()] };
    assert_eq!(reads_grown.decode(Some(&behind(old, &[14, 0]))).unwrap(), added);
    // Two tags, in a block that also has its length in bytes.
    let newer = behind(new, &[2, 2, b'n', 14, 24, 3, 8, 2, b'a', 2, b'b', 0]);
    let kept = reads_grown.decode(Some(&newer)).unwrap();
    assert_eq!((kept.customer, kept.cents, kept.tags.len()), (7, 12, 2));
    let reads_old = Avro::<Order>::new(&registry).schema(ORDER).unwrap();
    let expected = Order { customer: 7, note: Some("n".to_owned()) };
    assert_eq!(reads_old.decode(Some(&newer)).unwrap(), expected, "unknown fields are dropped");
    let as_written = Avro::<Order>::new(&registry);
    assert_eq!(as_written.decode(Some(&newer)).unwrap(), expected, "also without a schema of its own");
    let number = served.add_avro(r#""long""#);
    assert!(malformed(&reads_old, &behind(number, &[2])).len() < 1_000);
}

#[test]
fn whose_schema_has_references_is_read() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Basket {
        orders: Vec<Order>,
        by: BTreeMap<String, Id>,
    }
    #[derive(Debug, Deserialize, PartialEq)]
    struct Id {
        id: i32,
    }
    let served = TestRegistry::start();
    served.add(
        "ids/all",
        &json!({ "schema": r#"{"type": "record", "name": "shop.Id", "fields": [{"name": "id", "type": "int"}]}"# }),
    );
    served.add("orders", &json!({ "schema": ORDER }));
    let reference = |subject: &str| json!({ "name": subject, "subject": subject, "version": 1 });
    let schema = r#"{"type": "record", "name": "shop.Basket", "fields": [
        {"name": "orders", "type": {"type": "array", "items": "shop.OrderCreated"}},
        {"name": "by", "type": {"type": "map", "values": "shop.Id"}}]}"#;
    let references = [reference("ids/all"), reference("orders"), reference("orders")];
    let id = served.add("baskets", &json!({ "schema": schema, "references": references }));
    let payload = behind(id, &[2, 14, 0, 0, 2, 2, b'k', 6, 0]);
    let basket = Avro::<Basket>::new(&registry(&served)).decode(Some(&payload)).unwrap();
    assert_eq!(basket, Basket { orders: vec![order(7)], by: [("k".to_owned(), Id { id: 3 })].into() });
    let broken = served.add("baskets", &json!({ "schema": schema, "references": [reference("gone")] }));
    let cause = malformed(&Avro::<Basket>::new(&registry(&served)), &behind(broken, &[0, 0]));
    assert!(cause.contains("`gone`"), "{cause}");
}

#[test]
fn that_is_invalid_is_malformed_and_the_cause_says_where() {
    let served = TestRegistry::start();
    let id = served.add_avro(ORDER);
    let other = served.add("other", &json!({ "schema": "message A {}", "schemaType": "PROTOBUF" }));
    let nonsense = served.add_avro("{");
    let format = Avro::<Order>::new(&registry(&served));
    for (payload, says) in [
        (vec![], "0 bytes"),
        (vec![0, 0, 0, 0], "4 bytes"),
        (b"{\"customer\": 1}".to_vec(), "0x7b"),
        (behind(77, &[14, 0]), "schema 77"),
        (behind(u32::MAX, &[14, 0]), "schema 4294967295"),
        (behind(other, &[14, 0]), "PROTOBUF"),
        (behind(nonsense, &[14, 0]), "schema 3"),
        (behind(id, &[]), "field `customer`"),
        (behind(id, &[14]), "field `note`"),
        (behind(id, &[14, 2]), "field `note`"),
        (behind(id, &[14, 2, 20, b'x']), "10 more bytes are needed and 1 are left"),
        (behind(id, &[14, 2, 1]), "-1 is not a valid length"),
        (behind(id, &[14, 4]), "branch index 2 is out of range, there are 2"),
        (behind(id, &[14, 1]), "branch index -1 is out of range, there are 2"),
        (behind(id, &[0x80; 11]), "a number is longer than ten bytes"),
        (behind(id, &[14, 0, 0]), "1 bytes follow"),
        (behind(id, &[14, 2, 2, 0xff]), "utf-8"),
    ] {
        let cause = malformed(&format, &payload);
        assert!(cause.contains(says), "`{cause}` does not say `{says}`");
    }
    assert!(format.decode(None).is_err(), "a tombstone");
    assert_eq!(format.decode(Some(&behind(id, &[14, 0]))).unwrap(), order(7), "a good payload is still decoded");
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Node {
    next: Option<Box<Node>>,
}

const NODE: &str = r#"{"type": "record", "name": "Node", "fields": [
    {"name": "next", "type": ["null", "Node"], "default": null}]}"#;

/// Nesting half a million levels deep fits into a megabyte and would overflow any stack.
#[test]
fn nested_without_end_is_malformed() {
    let served = TestRegistry::start();
    let id = served.add_avro(NODE);
    // The same schema with one more field resolves, which takes another code path.
    let resolved =
        NODE.replace(r#""default": null}"#, r#""default": null}, {"name": "n", "type": "int", "default": 1}"#);
    for format in
        [Avro::<Node>::new(&registry(&served)), Avro::<Node>::new(&registry(&served)).schema(&resolved).unwrap()]
    {
        let deep = |levels: usize| behind(id, &[vec![2; levels], vec![0]].concat());
        assert!(format.decode(Some(&deep(12))).is_ok());
        for levels in [13, 1_000, 500_000] {
            assert!(malformed(&format, &deep(levels)).contains("nested"));
        }
    }
}

#[test]
fn with_a_length_beyond_its_end_takes_no_memory() {
    let served = TestRegistry::start();
    let longs = served.add_avro(r#"{"type": "array", "items": "long"}"#);
    let nulls = served.add_avro(r#"{"type": "array", "items": "null"}"#);
    let map = served.add_avro(r#"{"type": "map", "values": "bytes"}"#);
    // 2^62 items, a block with the smallest possible count, and a length of 2^40.
    let (many, least) = ([&[0x80; 8][..], &[0x80, 1]].concat(), [&[0xff; 9][..], &[1, 0]].concat());
    let long = [0x80, 0x80, 0x80, 0x80, 0x80, 0x40];
    let registry = registry(&served);
    for count in [&many, &least] {
        malformed(&Avro::<Vec<i64>>::new(&registry), &behind(longs, count));
        malformed(&Avro::<Vec<()>>::new(&registry), &behind(nulls, count));
        malformed(&Avro::<BTreeMap<String, String>>::new(&registry), &behind(map, count));
    }
    malformed(&Avro::<BTreeMap<String, String>>::new(&registry), &behind(map, &[&[2][..], &long].concat()));
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
enum Size {
    Small,
    Large,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Wide {
    flag: bool,
    small: i32,
    big: i64,
    real: f32,
    double: f64,
    text: String,
    size: Size,
    maybe: Option<Order>,
    list: Vec<Order>,
    by: BTreeMap<String, i64>,
}

const WIDE: &str = r#"{"type": "record", "name": "Wide", "fields": [
    {"name": "flag", "type": "boolean"}, {"name": "small", "type": "int"}, {"name": "big", "type": "long"},
    {"name": "real", "type": "float"}, {"name": "double", "type": "double"}, {"name": "text", "type": "string"},
    {"name": "size", "type": {"type": "enum", "name": "Size", "symbols": ["Small", "Large"]}},
    {"name": "maybe", "type": ["null", {"type": "record", "name": "Order", "fields": [
        {"name": "customer", "type": "long"}, {"name": "note", "type": ["null", "string"]}]}]},
    {"name": "list", "type": {"type": "array", "items": "Order"}},
    {"name": "by", "type": {"type": "map", "values": "long"}}]}"#;

/// Random payloads, and good payloads that were damaged: each is either decoded or malformed, and a
/// decoded value can be encoded and decoded to the same value.
#[test]
fn of_arbitrary_bytes_is_decoded_or_malformed() {
    let mut random = fastrand::Rng::with_seed(seed());
    let served = TestRegistry::start();
    let registry = registry(&served);
    let id = served.add_avro(WIDE);
    let mut format = Avro::<Wide>::new(&registry).schema(WIDE).unwrap();
    Encode::open(&mut format, Some("wide")).unwrap();
    let resolving = Avro::<Wide>::new(&registry)
        .schema(
            &WIDE.replace(r#"{"name": "flag""#, r#"{"name": "added", "type": "int", "default": 0}, {"name": "flag""#),
        )
        .unwrap();
    let mut decoded = 0;
    for _ in 0..20_000 {
        let wide = Wide {
            flag: random.bool(),
            small: random.i32(..),
            big: random.i64(..) >> random.u32(..64),
            real: random.f32(),
            double: random.f64(),
            text: (0..random.usize(..40)).map(|_| random.char(..)).collect(),
            size: if random.bool() { Size::Small } else { Size::Large },
            maybe: random.bool().then(|| order(random.i64(..))),
            list: (0..random.usize(..5)).map(|_| order(random.i64(..))).collect(),
            by: (0..random.usize(..5)).map(|n| (n.to_string(), random.i64(..))).collect(),
        };
        let mut payload = Vec::new();
        format.encode(&wide, &mut payload).unwrap();
        assert_eq!(format.decode(Some(&payload)).unwrap(), wide);
        assert_eq!(resolving.decode(Some(&payload)).unwrap(), wide);
        match random.u8(..4) {
            0 => payload = behind(id, &(0..random.usize(..60)).map(|_| random.u8(..)).collect::<Vec<_>>()),
            1 => payload.truncate(random.usize(5..payload.len())),
            2 => payload.extend((0..random.usize(1..4)).map(|_| random.u8(..))),
            _ => (0..random.usize(1..4)).for_each(|_| {
                let at = random.usize(5..payload.len());
                payload[at] = random.u8(..);
            }),
        }
        let (left, right) = (format.decode(Some(&payload)), resolving.decode(Some(&payload)));
        assert_eq!(left.is_ok(), right.is_ok(), "{payload:?}: {left:?} and {right:?}");
        if let Ok(wide) = left {
            decoded += 1;
            let mut again = Vec::new();
            format.encode(&wide, &mut again).unwrap();
            let again = format.decode(Some(&again)).unwrap();
            assert_eq!(format!("{again:?}"), format!("{wide:?}"), "NaN is not itself");
        }
    }
    assert!(decoded > 100, "some damaged payloads are still valid");
}
