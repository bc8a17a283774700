//! The part of a payload between the schema's id and the message: it says which message of a
//! Protobuf schema the payload is.

use crate::format::Cause;

/// A message of a Protobuf schema: its index among the messages of the file, then the index among
/// the messages nested in that one, and so on.
pub(crate) type Path = Vec<i32>;

/// Payloads that claim deeper nesting are malformed.
const DEPTH_MAX: i64 = 64;

/// Splits a payload into the path of its message and the rest.
pub(crate) fn path_of(payload: &[u8]) -> Result<(Path, &[u8]), Cause> {
    let mut rest = payload;
    let mut next = || take_varint(&mut rest).ok_or("cannot read which message of its schema it is");
    let path = match next()? {
        // The short form of the first message.
        0 => vec![0],
        count @ 1..=DEPTH_MAX => (0..count)
            .map(|_| {
                next().and_then(|index| {
                    i32::try_from(index)
                        .ok()
                        .filter(|index| *index >= 0)
                        .ok_or("it has a message index that no schema can have")
                })
            })
            .collect::<Result<_, _>>()?,
        count => return Err(format!("it claims to be a message nested {count} deep in its schema").into()),
    };
    Ok((path, rest))
}

pub(crate) fn put_path(path: &[i32], payload: &mut Vec<u8>) {
    if path == [0] {
        return payload.push(0);
    }
    put_varint(path.len() as i64, payload);
    path.iter().for_each(|index| put_varint(i64::from(*index), payload));
}

/// Takes a zigzag number of at most ten bytes; `None` if it does not end within them.
fn take_varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((number >> 1) as i64 ^ -((number & 1) as i64));
        }
    }
    None
}

fn put_varint(number: i64, bytes: &mut Vec<u8>) {
    let mut rest = (number << 1 ^ number >> 63) as u64;
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    /// Computed by hand from the specification of the wire format.
    #[test]
    fn paths_are_as_confluent_writes_them() {
        for (path, bytes) in [
            (vec![0], &[0][..]),
            (vec![1], &[2, 2]),
            (vec![1, 0], &[4, 2, 0]),
            (vec![0, 0], &[4, 0, 0]),
            (vec![3, 64], &[4, 6, 0x80, 1]),
        ] {
            let mut written = Vec::new();
            put_path(&path, &mut written);
            assert_eq!(written, bytes, "{path:?}");
            assert_eq!(path_of(&[bytes, b"rest"].concat()).expect("it is a path"), (path, &b"rest"[..]));
        }
        // The first message in its long form, which must be readable too.
        assert_eq!(path_of(&[2, 0]).expect("it is a path").0, [0]);
    }

    #[test]
    fn bytes_that_are_not_a_path_are_refused() {
        for bytes in [&[][..], &[2], &[4, 0], &[1], &[2, 1], &[0x80; 20], &[0xfe, 0xff, 0xff, 0xff, 0x0f], &[2, 0xff]] {
            assert!(path_of(bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4_000) })]

        #[test]
        fn a_path_is_read_as_it_was_written(path in vec(0..=i32::MAX, 1..65), body in vec(any::<u8>(), 0..20)) {
            let mut payload = Vec::new();
            put_path(&path, &mut payload);
            payload.extend_from_slice(&body);
            prop_assert_eq!(path_of(&payload).expect("it is a path"), (path, &body[..]));
        }

        #[test]
        fn arbitrary_bytes_have_a_path_or_a_cause(payload in vec(any::<u8>(), 0..80)) {
            if let Ok((path, body)) = path_of(&payload) {
                prop_assert!(payload.ends_with(body));
                prop_assert!((1..=64).contains(&path.len()) && path.iter().all(|index| *index >= 0));
            }
        }
    }
}
