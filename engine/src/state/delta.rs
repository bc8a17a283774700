//! The encoded changes of a table: what a checkpoint keeps of it, by key group. Entries are bytes
//! here, so that they can leave the worker, whatever their types, and be merged without knowing
//! them.
//!
//! ```text
//! entry   key's length << 1 | is a put, key, and for a put the state's length and the state
//!         lengths, keys and states as postcard writes them
//! ```
//!
//! What is not in it is unchanged, and never gone.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::words::{EventTime, KEY_GROUPS, KeyGroup};

/// Encoded entries of one key group, in their order: a later one replaces an earlier one of the
/// same key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) count: u64,
    pub(crate) bytes: Vec<u8>,
}

/// The changes of a table, by key group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    /// Empty, or one for each key group.
    groups: Vec<Entries>,
    count: u64,
    bytes: usize,
    /// How many entries more there are after it.
    pub(crate) grown: i64,
    /// The watermark up to which windows are closed in it.
    pub(crate) watermark: Option<EventTime>,
}

impl Delta {
    /// The state of a key.
    pub(crate) fn put<K: Serialize, S: Serialize>(&mut self, group: KeyGroup, key: &K, state: &S) -> Encoded {
        self.add(group, |bytes| {
            framed(bytes, |length| (length as u64) << 1 | 1, |bytes| encode(key, bytes))?;
            framed(bytes, |length| length as u64, |bytes| encode(state, bytes))
        })
    }

    /// The state of a key, both already encoded.
    pub(crate) fn put_encoded(&mut self, group: KeyGroup, key: &[u8], state: &[u8]) {
        let copy = |from: &[u8], to: &mut Vec<u8>| {
            to.extend_from_slice(from);
            Ok(())
        };
        let added = self.add(group, |bytes| {
            framed(bytes, |length| (length as u64) << 1 | 1, |bytes| copy(key, bytes))?;
            framed(bytes, |length| length as u64, |bytes| copy(state, bytes))
        });
        added.expect("bytes are copied");
    }

    /// A key, already encoded, has no state any more.
    pub(crate) fn delete(&mut self, group: KeyGroup, key: &[u8]) {
        let added = self.add(group, |bytes| {
            framed(
                bytes,
                |length| (length as u64) << 1,
                |bytes| {
                    bytes.extend_from_slice(key);
                    Ok(())
                },
            )
        });
        added.expect("bytes are copied");
    }

    /// A key has no state any more.
    pub(crate) fn remove<K: Serialize>(&mut self, group: KeyGroup, key: &K) -> Encoded {
        self.add(group, |bytes| framed(bytes, |length| (length as u64) << 1, |bytes| encode(key, bytes)))
    }

    /// Adds later changes.
    pub(crate) fn append(&mut self, later: Delta) {
        if self.groups.is_empty() {
            self.groups = later.groups;
        } else {
            for (own, later) in self.groups.iter_mut().zip(later.groups) {
                own.count += later.count;
                own.bytes.extend_from_slice(&later.bytes);
            }
        }
        self.count += later.count;
        self.bytes += later.bytes;
        self.grown += later.grown;
    }

    /// Copies an entry as it is.
    pub(crate) fn copy(&mut self, group: KeyGroup, entry: &RawEntry<'_>) {
        let added = self.add(group, |bytes| {
            bytes.extend_from_slice(entry.whole);
            Ok(())
        });
        added.expect("bytes are copied");
    }

    fn add(&mut self, group: KeyGroup, write: impl FnOnce(&mut Vec<u8>) -> Encoded) -> Encoded {
        if self.groups.is_empty() {
            self.groups.resize(KEY_GROUPS, Entries::default());
        }
        let entries = &mut self.groups[group.index()];
        let before = entries.bytes.len();
        write(&mut entries.bytes).inspect_err(|_| entries.bytes.truncate(before))?;
        entries.count += 1;
        self.count += 1;
        self.bytes += entries.bytes.len() - before;
        Ok(())
    }

    /// The number of entries.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The size of all entries.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The groups with entries, in order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (KeyGroup, &Entries)> {
        KeyGroup::all().zip(&self.groups).filter(|(_, entries)| entries.count > 0)
    }
}

/// Whether something could be encoded. A user's `Serialize` may fail.
pub(crate) type Encoded = Result<(), postcard::Error>;

/// Appends to a vector.
struct Append<'b>(&'b mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Append<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn encode<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Encoded {
    postcard::serialize_with_flavor(value, Append(bytes))
}

/// Writes something behind what `frame` makes of its length.
fn framed(bytes: &mut Vec<u8>, frame: impl Fn(usize) -> u64, write: impl FnOnce(&mut Vec<u8>) -> Encoded) -> Encoded {
    let start = bytes.len();
    // Most frames are one byte; the others are inserted once the length is known.
    bytes.push(0);
    write(bytes)?;
    let frame = frame(bytes.len() - start - 1);
    if frame < 0x80 {
        bytes[start] = frame as u8;
        return Ok(());
    }
    let mut buffer = [0; 10];
    let varint = postcard::to_slice(&frame, &mut buffer)?;
    bytes.splice(start..=start, varint.iter().copied());
    Ok(())
}

/// An encoded entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawEntry<'b> {
    pub(crate) key: &'b [u8],
    /// `None` when the key has no state any more.
    pub(crate) state: Option<&'b [u8]>,
    /// All of it.
    pub(crate) whole: &'b [u8],
}

/// The entries in encoded bytes. After an error there are no more.
pub(crate) struct RawEntries<'b>(&'b [u8]);

/// What is wrong with encoded bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotEntries;

impl<'b> RawEntries<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> RawEntries<'b> {
        RawEntries(bytes)
    }

    fn take(&mut self) -> Option<RawEntry<'b>> {
        let start = self.0;
        let frame = self.take_number()?;
        let key = self.take_bytes(frame >> 1)?;
        let state = match frame & 1 {
            0 => None,
            _ => {
                let length = self.take_number()?;
                Some(self.take_bytes(length)?)
            }
        };
        let whole = &start[..start.len() - self.0.len()];
        Some(RawEntry { key, state, whole })
    }

    fn take_number(&mut self) -> Option<u64> {
        let (number, rest) = postcard::take_from_bytes(self.0).ok()?;
        self.0 = rest;
        Some(number)
    }

    fn take_bytes(&mut self, length: u64) -> Option<&'b [u8]> {
        let (bytes, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(bytes)
    }
}

impl<'b> Iterator for RawEntries<'b> {
    type Item = Result<RawEntry<'b>, NotEntries>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let entry = self.take();
        if entry.is_none() {
            self.0 = &[];
        }
        Some(entry.ok_or(NotEntries))
    }
}

/// Decodes a value, which must take all of the bytes.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

        #[test]
        fn entries_survive(entries in vec((any::<u64>(), "[a-z]{0,200}", any::<Option<Vec<u8>>>()), 0..30)) {
            let (mut delta, mut expected) = (Delta::default(), vec![Vec::new(); KEY_GROUPS]);
            for (key, name, state) in entries {
                let (group, key) = (KeyGroup::of(&key), (key, name));
                match &state {
                    Some(state) => delta.put(group, &key, state).unwrap(),
                    None => delta.delete(group, &postcard::to_stdvec(&key).unwrap()),
                }
                expected[group.index()].push((key, state));
            }
            let mut read = vec![Vec::new(); KEY_GROUPS];
            let mut size = 0;
            for (group, entries) in delta.groups() {
                for entry in RawEntries::new(&entries.bytes) {
                    let RawEntry { key, state, whole } = entry.unwrap();
                    let key: (u64, String) = decode(key).unwrap();
                    let state: Option<Vec<u8>> = state.map(|state| decode(state).unwrap());
                    size += whole.len();
                    read[group.index()].push((key, state));
                }
                prop_assert_eq!(read[group.index()].len() as u64, entries.count);
            }
            prop_assert_eq!(size, delta.bytes());
            prop_assert_eq!(read.iter().map(Vec::len).sum::<usize>() as u64, delta.count());
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_bytes_are_entries_or_an_error(bytes in vec(any::<u8>(), 0..60)) {
            let read: Vec<_> = RawEntries::new(&bytes).collect();
            let whole: Vec<u8> = read.iter().flatten().flat_map(|entry| entry.whole.to_vec()).collect();
            prop_assert!(bytes.starts_with(&whole));
            prop_assert!(whole.len() == bytes.len() || read.last() == Some(&Err(NotEntries)));
        }
    }

    #[test]
    fn what_cannot_be_encoded_leaves_nothing() {
        struct Fails;
        impl Serialize for Fails {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("it cannot"))
            }
        }
        let (mut delta, group) = (Delta::default(), KeyGroup::of(&1_u64));
        delta.put(group, &1_u64, &Fails).unwrap_err();
        delta.put(group, &1_u64, &2_u64).unwrap();
        assert_eq!(delta.groups().next().unwrap().1.bytes, [3, 1, 1, 2]);
    }
}
