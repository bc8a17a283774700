//! Payloads that are compressed one by one. (Compression of whole batches by a producer is the
//! Kafka client's business and is not visible here.)

use std::borrow::Cow;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use millstream::ByteSize;

use super::{Cause, Decode, Encode, Payload};

/// A format whose payloads may be compressed with gzip or zstd.
///
/// When reading, the first bytes decide: a payload that begins like gzip or zstd is decompressed,
/// any other is taken as it is. A payload that cannot be decompressed, or decompresses to more than
/// [`value_max`](Compressed::value_max), is malformed. When writing, the
/// [`codec`](Compressed::codec) is used. Tombstones stay tombstones.
///
/// ```
/// use millstream_connectors::format::{Codec, Compressed, Decode, Encode, Text};
///
/// let format = Compressed::new(Text).codec(Codec::Zstd);
/// let mut payload = Vec::new();
/// format.encode(&"again ".repeat(1_000), &mut payload)?;
/// assert!(payload.len() < 100);
/// assert_eq!(format.decode(Some(&payload))?.len(), 6_000);
/// assert_eq!(format.decode(Some(b"as it stands"))?, "as it stands");
/// # Ok::<(), millstream_connectors::format::Cause>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a format does nothing until a source or a sink uses it"]
pub struct Compressed<F> {
    format: F,
    codec: Codec,
    value_max: ByteSize,
}

/// How payloads are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// The format of `gzip`; supported everywhere.
    #[default]
    Gzip,
    /// The format of `zstd`, with a checksum; faster and smaller than gzip.
    Zstd,
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Base-2 logarithms of the zstd window that every decoder must support, and of the largest that
/// this one accepts: 8 MiB and 128 MiB.
const WINDOW_MIN: u32 = 23;
const WINDOW_MAX: u32 = 27;

impl<F> Compressed<F> {
    /// Creates a format that compresses the payloads of another one.
    pub fn new(format: F) -> Compressed<F> {
        Compressed { format, codec: Codec::default(), value_max: ByteSize::mebibytes(16) }
    }

    /// The codec for writing; gzip by default. Payloads that are read may use either codec.
    pub fn codec(self, codec: Codec) -> Compressed<F> {
        Compressed { codec, ..self }
    }

    /// The maximum size of a decompressed payload, 16 MiB by default. A larger value is malformed
    /// when read, and is not written.
    pub fn value_max(self, most: ByteSize) -> Compressed<F> {
        Compressed { value_max: most, ..self }
    }

    fn unpacked<'p>(&self, payload: &'p [u8]) -> Result<Cow<'p, [u8]>, Cause> {
        let most = self.value_max.0;
        let unpack = |name: &str, reader: &mut dyn Read| {
            let mut value = Vec::new();
            let unpacked = reader.take(most.saturating_add(1)).read_to_end(&mut value);
            unpacked.map_err(|cause| format!("it begins like {name} but cannot be decompressed: {cause}"))?;
            self.check(value.len())?;
            Ok(Cow::Owned(value))
        };
        if payload.starts_with(GZIP) {
            return unpack("gzip", &mut MultiGzDecoder::new(payload));
        }
        if payload.starts_with(ZSTD) {
            let mut reader = zstd::Decoder::with_buffer(payload)?;
            // A window larger than the value is never needed.
            reader.window_log_max(most.max(1).ilog2().saturating_add(1).clamp(WINDOW_MIN, WINDOW_MAX))?;
            return unpack("zstd", &mut reader);
        }
        Ok(Cow::Borrowed(payload))
    }

    fn check(&self, len: usize) -> Result<(), Cause> {
        if len as u64 > self.value_max.0 {
            return Err(format!("it is larger than {} when decompressed", self.value_max).into());
        }
        Ok(())
    }
}

impl<F: Decode> Decode for Compressed<F> {
    type Value = F::Value;

    fn open(&mut self) -> millstream::Result<()> {
        self.format.open()
    }

    fn decode(&self, payload: Option<&[u8]>) -> Result<F::Value, Cause> {
        self.decode_sized(payload).map(|(value, _)| value)
    }

    fn held(&self, payload: Option<&[u8]>, value: &F::Value) -> ByteSize {
        let unpacked = payload.map(|payload| self.unpacked(payload).unwrap_or(Cow::Borrowed(payload)));
        self.format.held(unpacked.as_deref(), value)
    }

    fn decode_sized(&self, payload: Option<&[u8]>) -> Result<(F::Value, ByteSize), Cause> {
        let unpacked = payload.map(|payload| self.unpacked(payload)).transpose()?;
        self.format.decode_sized(unpacked.as_deref())
    }
}

impl<V, F: Encode<V>> Encode<V> for Compressed<F> {
    fn open(&mut self, topic: Option<&str>) -> millstream::Result<()> {
        self.format.open(topic)
    }

    fn encode(&self, value: &V, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        let mut unpacked = Vec::new();
        if self.format.encode(value, &mut unpacked)? == Payload::Tombstone {
            return Ok(Payload::Tombstone);
        }
        self.check(unpacked.len())?;
        match self.codec {
            Codec::Gzip => {
                let mut writer = GzEncoder::new(payload, Compression::default());
                writer.write_all(&unpacked)?;
                writer.finish()?;
            }
            Codec::Zstd => {
                let mut writer = zstd::Encoder::new(payload, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                writer.include_checksum(true)?;
                writer.write_all(&unpacked)?;
                writer.finish()?;
            }
        }
        Ok(Payload::Present)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Json, Text, Tombstones};

    fn packed(codec: Codec, text: &str) -> Vec<u8> {
        let mut payload = b"before".to_vec();
        Compressed::new(Text).codec(codec).encode(&text, &mut payload).unwrap();
        payload.split_off(6)
    }

    #[test]
    fn each_codec_is_read_by_its_first_bytes() {
        for text in ["", "a", &"long ".repeat(100_000)] {
            for codec in [Codec::Gzip, Codec::Zstd] {
                assert_eq!(Compressed::new(Text).decode(Some(&packed(codec, text))).unwrap(), text, "{codec:?}");
            }
            assert_eq!(Compressed::new(Text).decode(Some(text.as_bytes())).unwrap(), text);
        }
        // Concatenated gzip streams are one stream.
        let both = [packed(Codec::Gzip, "one "), packed(Codec::Gzip, "two")].concat();
        assert_eq!(Compressed::new(Text).decode(Some(&both)).unwrap(), "one two");
    }

    #[test]
    fn what_is_broken_is_malformed() {
        for codec in [Codec::Gzip, Codec::Zstd] {
            let whole = packed(codec, &"some text, and more of it. ".repeat(50));
            for len in 4..whole.len() {
                let cause = Compressed::new(Text).decode(Some(&whole[..len])).expect_err("it is cut").to_string();
                assert!(cause.contains("cannot be decompressed"), "{codec:?}, {len}: {cause}");
            }
            for at in 12..whole.len() {
                let mut other = whole.clone();
                other[at] ^= 0x55;
                let read = Compressed::new(Text).decode(Some(&other));
                assert!(read.is_err(), "{codec:?}: byte {at} was changed, and it is read as {read:?}");
            }
        }
    }

    #[test]
    fn a_value_has_a_largest_size_whatever_it_is_packed_to() {
        let most = ByteSize(1 << 20);
        for codec in [Codec::Gzip, Codec::Zstd] {
            let format = Compressed::new(Text).codec(codec).value_max(most);
            let (fits, bomb) = ("a".repeat(1 << 20), "a".repeat(1 << 26));
            assert_eq!(format.decode(Some(&packed_up_to(codec, &fits))).unwrap(), fits);
            let cause = format.decode(Some(&packed_up_to(codec, &bomb))).expect_err("it is too large").to_string();
            assert!(cause.contains("larger than 1024 KiB"), "{cause}");
            assert!(format.encode(&bomb, &mut Vec::new()).is_err(), "and it is not written");
        }
    }

    fn packed_up_to(codec: Codec, text: &str) -> Vec<u8> {
        let mut payload = Vec::new();
        let format = Compressed::new(Text).codec(codec).value_max(ByteSize(u64::MAX));
        format.encode(&text, &mut payload).unwrap();
        payload
    }

    #[test]
    fn tombstones_stay_tombstones() {
        let format = Compressed::new(Tombstones(Json::<u8>::new()));
        let mut payload = Vec::new();
        assert_eq!(format.encode(&None, &mut payload).unwrap(), Payload::Tombstone);
        assert!(payload.is_empty());
        assert_eq!(format.decode(None).unwrap(), None);
        assert!(Compressed::new(Text).decode(None).is_err());
    }
}
