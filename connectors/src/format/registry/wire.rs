//! The header of a payload: a zero byte and the schema's id.

use super::SchemaId;
use crate::format::Cause;

const MAGIC: u8 = 0;

/// Splits a payload into the id of its schema and the rest.
pub(crate) fn split(payload: &[u8]) -> Result<(SchemaId, &[u8]), Cause> {
    match payload {
        [MAGIC, a, b, c, d, rest @ ..] if *a < 0x80 => Ok((SchemaId(u32::from_be_bytes([*a, *b, *c, *d])), rest)),
        // Registries use signed ids, and do not handle a request for any other number well.
        [MAGIC, a, b, c, d, ..] => {
            let id = u32::from_be_bytes([*a, *b, *c, *d]);
            Err(format!("its first bytes name schema {id}, an id that no registry assigns").into())
        }
        [MAGIC, ..] | [] => Err(format!(
            "its {} bytes are too few for the schema id that a schema registry's serializers write first",
            payload.len()
        )
        .into()),
        [first, ..] => Err(format!(
            "it begins with the byte {first:#04x}, not with the 0 and schema id that a schema registry's serializers write"
        )
        .into()),
    }
}

pub(crate) fn put_header(id: SchemaId, payload: &mut Vec<u8>) {
    payload.push(MAGIC);
    payload.extend_from_slice(&id.0.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn an_id_is_big_endian() {
        let mut payload = Vec::new();
        put_header(SchemaId(0x0102_0304), &mut payload);
        assert_eq!(payload, [0, 1, 2, 3, 4]);
        assert_eq!(split(&payload).expect("it has an id"), (SchemaId(0x0102_0304), &[][..]));
        for wrong in
            [&[][..], &[0], &[0, 1, 2, 3], &[1, 0, 0, 0, 1, 9], &[0, 0xff, 0xff, 0xff, 0xff, 9], b"{}", b"plain text"]
        {
            assert!(split(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

        #[test]
        fn a_header_is_read_as_it_was_written(id in 0..0x8000_0000_u32, body in vec(any::<u8>(), 0..20)) {
            let mut payload = Vec::new();
            put_header(SchemaId(id), &mut payload);
            payload.extend_from_slice(&body);
            prop_assert_eq!(split(&payload).expect("it has an id"), (SchemaId(id), &body[..]));
        }

        /// Whatever is taken for a header is written as the same bytes.
        #[test]
        fn arbitrary_bytes_have_a_header_or_a_cause(first in 0..3_u8, rest in vec(any::<u8>(), 0..12)) {
            let payload = [&[first], &rest[..]].concat();
            if let Ok((id, body)) = split(&payload) {
                let mut written = Vec::new();
                put_header(id, &mut written);
                prop_assert_eq!([&written[..], body].concat(), payload);
            }
        }
    }
}
