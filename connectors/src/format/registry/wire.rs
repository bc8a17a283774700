//! What stands before a payload: a zero, and the schema's id.

use super::SchemaId;
use crate::format::Cause;

const MAGIC: u8 = 0;

/// The id of the schema, and the payload behind it.
pub(crate) fn split(payload: &[u8]) -> Result<(SchemaId, &[u8]), Cause> {
    match payload {
        [MAGIC, a, b, c, d, rest @ ..] if *a < 0x80 => Ok((SchemaId(u32::from_be_bytes([*a, *b, *c, *d])), rest)),
        // Registries count with signed numbers, and take a question for another one badly.
        [MAGIC, a, b, c, d, ..] => {
            let id = u32::from_be_bytes([*a, *b, *c, *d]);
            Err(format!("its first bytes name schema {id}, a number that no registry gives").into())
        }
        [MAGIC, ..] | [] => Err(format!(
            "its {} bytes are too few to begin with a schema's id, as a schema registry's serializers write",
            payload.len()
        )
        .into()),
        [first, ..] => Err(format!(
            "it begins with the byte {first:#04x}, not with 0 and a schema's id, as a schema registry's serializers write"
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
    use super::*;

    #[test]
    fn an_id_is_big_endian() {
        let mut payload = Vec::new();
        put_header(SchemaId(0x0102_0304), &mut payload);
        assert_eq!(payload, [0, 1, 2, 3, 4]);
        assert_eq!(split(&payload).expect("it is one"), (SchemaId(0x0102_0304), &[][..]));
        for wrong in
            [&[][..], &[0], &[0, 1, 2, 3], &[1, 0, 0, 0, 1, 9], &[0, 0xff, 0xff, 0xff, 0xff, 9], b"{}", b"plain text"]
        {
            assert!(split(wrong).is_err(), "{wrong:?}");
        }
    }
}
