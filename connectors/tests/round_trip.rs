//! Every format reads a value back as it was written, or refuses to write it: tested with random
//! values.

#![allow(clippy::print_stdout, reason = "a seed is printed")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use fastrand::Rng;
use millstream_connectors::format::{Bytes, Payload, Text};
use millstream_connectors::{Codec, Compressed, Csv, Decode, Encode, Json};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const ROUNDS: usize = 2_000;

fn random() -> Rng {
    let seed = std::env::var("MILLSTREAM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("MILLSTREAM_SEED={seed}");
    Rng::with_seed(seed)
}

/// Appends a value to a buffer, as a sink does, and reads it back. Returns whether it was written.
#[track_caller]
fn check<V: Debug, F: Decode<Value = V> + Encode<V> + Debug>(format: &F, value: &V) -> bool {
    let mut payload = b"before".to_vec();
    let written = match format.encode(value, &mut payload) {
        Ok(Payload::Present) => Some(&payload[6..]),
        Ok(Payload::Tombstone) => None,
        Err(_) => return false,
    };
    let shown = String::from_utf8_lossy(written.unwrap_or(b"a tombstone"));
    let read = format.decode(written).unwrap_or_else(|cause| panic!("{format:?}: {value:?} as {shown}: {cause}"));
    // Compared as debug text, because NaN is not equal to itself.
    assert_eq!(format!("{read:?}"), format!("{value:?}"), "{format:?}: as {shown}");
    true
}

fn text(random: &mut Rng) -> String {
    const ODD: [&str; 16] = [
        "",
        " ",
        "null",
        "\"",
        "\"\"",
        "a,b",
        "a;b",
        "\r",
        "\n",
        "two\r\nlines",
        "\0",
        "ü",
        "\u{feff}",
        "\u{feff}a",
        "\u{10ffff}\\u0000\\",
        "1.10",
    ];
    match random.u8(..3) {
        0 => random.choice(ODD).expect("the list is not empty").to_owned(),
        1 => (0..random.usize(..9)).map(|_| random.char(..)).collect(),
        _ => (0..random.usize(1..40)).map(|_| random.alphabetic()).collect(),
    }
}

fn double(random: &mut Rng) -> f64 {
    const ODD: [f64; 9] =
        [0.0, -0.0, 1.1, f64::MAX, f64::MIN_POSITIVE, 5e-324, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    match random.u8(..8) {
        0 => random.choice(ODD).expect("the list is not empty"),
        1 => random.i32(..).into(),
        _ => f64::from_bits(random.u64(..)),
    }
}

fn maybe<V>(random: &mut Rng, make: impl FnOnce(&mut Rng) -> V) -> Option<V> {
    if random.bool() { Some(make(random)) } else { None }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
enum Kind {
    Plain,
    Named { name: Option<String>, size: f32 },
    Of(Option<Box<Tree>>),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Tree {
    kind: Kind,
    numbers: (i8, u16, i64, u64, i128),
    doubles: Vec<f64>,
    nested: Option<Option<bool>>,
    unit: Option<()>,
    letter: char,
    texts: Vec<Option<String>>,
    branches: BTreeMap<String, Tree>,
}

fn tree(random: &mut Rng, depth: usize) -> Tree {
    let float = |random: &mut Rng| if random.u8(..4) == 0 { f32::NAN } else { f32::from_bits(random.u32(..)) };
    Tree {
        kind: match random.u8(..3) {
            0 => Kind::Plain,
            1 => Kind::Named { name: maybe(random, text), size: float(random) },
            _ => Kind::Of((depth > 0 && random.bool()).then(|| Box::new(tree(random, depth - 1)))),
        },
        numbers: (random.i8(..), random.u16(..), random.i64(..), random.u64(..), random.i128(..)),
        doubles: (0..random.usize(..3)).map(|_| double(random)).collect(),
        nested: if random.u8(..9) == 0 { Some(None) } else { maybe(random, |random| Some(random.bool())) },
        unit: if random.u8(..9) == 0 { Some(()) } else { None },
        letter: random.char(..),
        texts: (0..random.usize(..3)).map(|_| maybe(random, text)).collect(),
        branches: (0..random.usize(..=depth)).map(|_| (text(random), tree(random, depth - 1))).collect(),
    }
}

/// Whether JSON can represent the value.
fn is_plain(tree: &Tree) -> bool {
    let kind = match &tree.kind {
        Kind::Plain => true,
        Kind::Named { size, .. } => size.is_finite(),
        Kind::Of(inner) => inner.as_deref().is_none_or(is_plain),
    };
    kind && tree.doubles.iter().all(|double| double.is_finite())
        && tree.nested != Some(None)
        && tree.unit.is_none()
        && tree.branches.values().all(is_plain)
}

#[test]
fn json_typed() {
    let (mut random, format) = (random(), Json::new());
    for _ in 0..ROUNDS {
        let tree = tree(&mut random, 2);
        assert_eq!(check(&format, &tree), is_plain(&tree), "{tree:?}");
    }
}

/// Without `float_roundtrip` some of these were read back as a neighbouring value.
#[test]
fn json_doubles() {
    let (mut random, format) = (random(), Json::new());
    for _ in 0..10 * ROUNDS {
        let double = double(&mut random);
        assert_eq!(check(&format, &double), double.is_finite(), "{double:?}");
    }
}

fn json(random: &mut Rng, depth: usize) -> Value {
    match random.u8(..if depth > 0 { 8 } else { 6 }) {
        0 => Value::Null,
        1 => random.bool().into(),
        2 => random.i64(..).into(),
        3 => random.u64(..).into(),
        4 => double(random).into(),
        5 => text(random).into(),
        6 => (0..random.usize(..4)).map(|_| json(random, depth - 1)).collect(),
        _ => (0..random.usize(..4)).map(|_| (text(random), json(random, depth - 1))).collect(),
    }
}

#[test]
fn json_of_any_shape() {
    let (mut random, format) = (random(), Json::new());
    for _ in 0..ROUNDS {
        let value = json(&mut random, 4);
        assert!(check(&format, &value), "{value}");
        assert!(check(&Compressed::new(format.clone()).codec(Codec::Zstd), &value), "{value}");
    }
}

/// A field and an entry of a flattened map may have the same name: serde writes both, and can read
/// neither back.
#[test]
fn json_of_maps_beside_fields() {
    #[derive(Debug, Deserialize, Serialize)]
    struct Beside {
        a: u8,
        #[serde(flatten)]
        others: BTreeMap<String, u8>,
    }
    for (name, is_written) in [("a", false), ("b", true)] {
        let value = Beside { a: 1, others: BTreeMap::from([(name.to_owned(), 2)]) };
        assert_eq!(check(&Json::new(), &value), is_written, "{name}");
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
enum Size {
    Small,
    Large,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Row {
    first: String,
    maybe: Option<String>,
    numbers: (i8, u64, f32),
    double: Option<f64>,
    flag: bool,
    letter: Option<char>,
    size: Option<Size>,
    last: Option<String>,
}

#[test]
fn csv() {
    let mut random = random();
    for round in 0..ROUNDS {
        let format = Csv::new().delimiter(random.choice(*b",;\t|").expect("the list is not empty"));
        let row = Row {
            first: text(&mut random),
            maybe: maybe(&mut random, text),
            numbers: (random.i8(..), random.u64(..), f32::from_bits(random.u32(..) & !0x0040_0000)),
            double: maybe(&mut random, double),
            flag: random.bool(),
            letter: maybe(&mut random, |random| random.char(..)),
            size: maybe(&mut random, |random| if random.bool() { Size::Small } else { Size::Large }),
            last: maybe(&mut random, text),
        };
        let is_plain = [&row.maybe, &row.last].iter().all(|text| text.as_deref() != Some(""));
        assert_eq!(check(&format, &row), is_plain, "{row:?}");
        let texts: Vec<String> = (0..round % 4).map(|_| text(&mut random)).collect();
        assert_eq!(check(&Csv::new(), &texts), !texts.is_empty(), "{texts:?}");
        let texts: Vec<Option<String>> = (0..round % 4).map(|_| maybe(&mut random, text)).collect();
        let is_plain = !texts.is_empty() && texts.iter().all(|text| text.as_deref() != Some(""));
        assert_eq!(check(&Csv::new(), &texts), is_plain, "{texts:?}");
        check(&Csv::new(), &text(&mut random));
    }
}

#[test]
fn text_and_bytes() {
    let mut random = random();
    for _ in 0..ROUNDS {
        let value = text(&mut random);
        assert_eq!(check(&Text, &value), !value.starts_with('\u{feff}'), "{value:?}");
        let bytes: Vec<u8> = (0..random.usize(..20)).map(|_| random.u8(..)).collect();
        assert!(check(&Bytes, &bytes));
        assert!(check(&Compressed::new(Bytes), &bytes));
    }
    assert!(check(&Bytes, &"\u{feff}a".as_bytes().to_vec()));
}

#[cfg(feature = "avro")]
#[test]
fn avro() {
    const SCHEMA: &str = r#"{"type": "record", "name": "Reading", "fields": [
        {"name": "number", "type": "int"}, {"name": "long", "type": "long"}, {"name": "float", "type": "float"},
        {"name": "double", "type": "double"}, {"name": "flag", "type": "boolean"}, {"name": "text", "type": "string"},
        {"name": "maybe", "type": ["null", "string"]}, {"name": "nested", "type": ["null", "boolean"]},
        {"name": "many", "type": {"type": "array", "items": ["null", "double"]}},
        {"name": "named", "type": {"type": "map", "values": "long"}}]}"#;
    #[derive(Debug, Deserialize, Serialize)]
    struct Reading {
        number: i32,
        long: i64,
        float: f32,
        double: f64,
        flag: bool,
        text: String,
        maybe: Option<String>,
        nested: Option<Option<bool>>,
        many: Vec<Option<f64>>,
        named: BTreeMap<String, i64>,
    }
    let (mut random, format) =
        (random(), millstream_connectors::Avro::<Reading>::bare(SCHEMA).expect("the schema is valid"));
    for _ in 0..ROUNDS {
        let reading = Reading {
            number: random.i32(..),
            long: random.i64(..),
            float: double(&mut random) as f32,
            double: double(&mut random),
            flag: random.bool(),
            text: text(&mut random),
            maybe: maybe(&mut random, text),
            nested: if random.u8(..9) == 0 { Some(None) } else { None },
            many: (0..random.usize(..3)).map(|_| maybe(&mut random, double)).collect(),
            named: (0..random.usize(..3)).map(|_| (text(&mut random), random.i64(..))).collect(),
        };
        assert_eq!(check(&format, &reading), reading.nested.is_none(), "{reading:?}");
    }
}

#[cfg(feature = "protobuf")]
#[test]
fn protobuf() {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Part {
        #[prost(string, tag = "1")]
        text: String,
        #[prost(double, optional, tag = "2")]
        maybe: Option<f64>,
    }
    #[derive(Clone, PartialEq, prost::Message)]
    struct Whole {
        #[prost(int64, tag = "1")]
        number: i64,
        #[prost(float, tag = "2")]
        float: f32,
        #[prost(string, optional, tag = "3")]
        maybe: Option<String>,
        #[prost(message, optional, tag = "4")]
        part: Option<Part>,
        #[prost(message, repeated, tag = "5")]
        parts: Vec<Part>,
        #[prost(uint64, repeated, tag = "6")]
        numbers: Vec<u64>,
        #[prost(btree_map = "string, bytes", tag = "7")]
        named: BTreeMap<String, Vec<u8>>,
    }
    let part = |random: &mut Rng| Part { text: text(random), maybe: maybe(random, double) };
    let (mut random, format) = (random(), millstream_connectors::Protobuf::<Whole>::bare());
    for _ in 0..ROUNDS {
        let whole = Whole {
            number: random.i64(..),
            // prost treats -0.0 as 0.0, which is not written.
            float: double(&mut random) as f32 + 0.0,
            maybe: maybe(&mut random, text),
            part: maybe(&mut random, part),
            parts: (0..random.usize(..3)).map(|_| part(&mut random)).collect(),
            numbers: (0..random.usize(..3)).map(|_| random.u64(..)).collect(),
            named: (0..random.usize(..3)).map(|_| (text(&mut random), vec![random.u8(..)])).collect(),
        };
        assert!(check(&format, &whole), "{whole:?}");
    }
}
