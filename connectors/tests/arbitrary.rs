//! Every decoder of foreign bytes, with arbitrary bytes: it returns a value or a cause, and never
//! panics. Bytes that a format decodes it also encodes, or says why not.

use millstream_connectors::format::{Bytes, Text};
use millstream_connectors::{Compressed, Csv, Decode, Encode, Json, Message};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};
use proptest::sample::select;
use proptest::strategy::{Strategy, Union};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    customer: String,
    amount: Option<f64>,
    flags: (bool, i8),
}

/// Bytes, often with the beginnings and the characters that formats look at.
fn foreign() -> impl Strategy<Value = Vec<u8>> {
    const TOLD: [&[u8]; 14] = [
        b"",
        b"\x1f\x8b\x08\x00",
        b"\x28\xb5\x2f\xfd",
        b"\xef\xbb\xbf",
        b"\x00\x00\x00\x00\x01",
        b"{\"id\":1,\"customer\":\"",
        b"\"a\"\"b\",",
        b"[[[[[[[[",
        b"1e400",
        b"\\ud800",
        b"\r\n",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\xff\xff\xff\x7f",
        b"1,a,2.5,true,-1",
    ];
    let part = Union::new([
        vec(any::<u8>(), 0..24).boxed(),
        select(TOLD.to_vec()).prop_map(<[u8]>::to_vec).boxed(),
        vec(select(b"{}[]\",:;\r\n0123456789.eE+-truefalsn\\u".to_vec()), 0..24).boxed(),
    ]);
    vec(part, 0..5).prop_map(|parts| parts.concat())
}

/// Decodes the bytes, and encodes what came of them.
fn check<V, F: Decode<Value = V> + Encode<V>>(format: &F, bytes: &[u8]) {
    let Ok((value, held)) = format.decode_sized(Some(bytes)) else { return };
    assert!(held.0 < 1 << 32, "{} bytes for {} bytes of payload", held.0, bytes.len());
    let mut buffer = Vec::new();
    drop(format.encode(&value, &mut buffer));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

    #[test]
    fn of_text_json_csv_and_compressed_values(bytes in foreign()) {
        check(&Bytes, &bytes);
        check(&Text, &bytes);
        check(&Json::<Order>::new(), &bytes);
        check(&Json::<serde_json::Value>::new(), &bytes);
        check(&Csv::<Order>::new(), &bytes);
        check(&Csv::<Vec<String>>::new(), &bytes);
        check(&Compressed::new(Bytes), &bytes);
        check(&Compressed::new(Json::<Order>::new()), &bytes);
    }

    #[test]
    fn of_headers_of_dead_letters(headers in vec((0..9usize, foreign()), 0..9), name in foreign()) {
        const NAMES: [&str; 8] = ["topic", "path", "partition", "offset", "refused-by", "cause", "time", "stripped"];
        let mut message = Message::new(1);
        for (index, value) in headers {
            let name = NAMES.get(index).map_or_else(|| String::from_utf8_lossy(&name).into_owned(), |name| {
                format!("millstream.{name}")
            });
            message = message.header(name, value);
        }
        let is_letter = message.dead_letter().is_some();
        assert!(is_letter || message.revived().is_none());
    }
}

#[cfg(feature = "avro")]
proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

    #[test]
    fn of_avro(bytes in foreign()) {
        const SCHEMA: &str = r#"{"type": "record", "name": "Order", "fields": [
            {"name": "id", "type": "long"}, {"name": "customer", "type": "string"},
            {"name": "amount", "type": ["null", "double"]},
            {"name": "tags", "type": {"type": "array", "items": {"type": "map", "values": "bytes"}}}]}"#;
        let format = millstream_connectors::Avro::<serde_json::Value>::bare(SCHEMA).unwrap();
        drop(format.decode(Some(&bytes)));
    }
}

#[cfg(feature = "protobuf")]
mod protobuf {
    use super::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Basket {
        #[prost(uint64, tag = "1")]
        id: u64,
        #[prost(string, repeated, tag = "2")]
        names: Vec<String>,
        #[prost(message, optional, boxed, tag = "3")]
        inner: Option<Box<Basket>>,
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

        #[test]
        fn of_protobuf(bytes in foreign()) {
            let mut format = millstream_connectors::Protobuf::<Basket>::bare();
            Decode::open(&mut format).unwrap();
            check(&format, &bytes);
        }
    }
}
