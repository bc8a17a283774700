//! Detects what a file is, by its first bytes and not by its name: text, compressed, or neither.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use flate2::bufread::MultiGzDecoder;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Packing::Gzip => "gzip",
            Packing::Zstd => "zstd",
        })
    }
}

impl Packing {
    /// Decompresses the first `until` bytes of a file, which may be several members or frames.
    pub(super) fn unpack(self, mut file: File, until: u64) -> io::Result<Box<dyn Read + Send>> {
        file.seek(SeekFrom::Start(0))?;
        let packed = BufReader::with_capacity(BUFFER, file.take(until));
        Ok(match self {
            Packing::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Packing::Zstd => Box::new(zstd::Decoder::with_buffer(packed)?),
        })
    }
}

/// What is read at once of a compressed file; decompressors ask for a few bytes at a time.
const BUFFER: usize = 32 << 10;

/// What a file is, as its first bytes show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Packed(Packing),
    /// Not text; the value says what it is.
    Foreign(&'static str),
    /// Too short to tell.
    Open,
}

/// The number of bytes at the beginning that are looked at: enough for the magic in a tar header.
pub(super) const HEAD: usize = 1024;

const PACKED: [(&[u8], Packing); 2] = [(b"\x1f\x8b\x08", Packing::Gzip), (b"\x28\xb5\x2f\xfd", Packing::Zstd)];

/// The first bytes of formats that are not text and that zeros alone would not reveal.
const FOREIGN: [(&[u8], &str); 17] = [
    (b"PK\x03\x04", "is a ZIP archive"),
    (b"PK\x05\x06", "is a ZIP archive"),
    (b"BZh", "is compressed with bzip2"),
    (b"\xfd7zXZ\0", "is compressed with xz"),
    (b"\x04\x22\x4d\x18", "is compressed with lz4"),
    (b"\xff\x06\0\0sNaPpY", "is compressed with Snappy"),
    (b"\x1f\x9d", "is compressed with compress"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive"),
    (b"Rar!\x1a\x07", "is a RAR archive"),
    (b"\x89PNG\r\n\x1a\n", "is a PNG image"),
    (b"\xff\xd8\xff", "is a JPEG image"),
    (b"%PDF-", "is a PDF document"),
    (b"PAR1", "is a Parquet file"),
    (b"Obj\x01", "is an Avro container file"),
    (b"\x7fELF", "is an ELF binary"),
    (b"\xff\xfe", "is encoded in UTF-16 or UTF-32"),
    (b"\xfe\xff", "is encoded in UTF-16"),
];

/// The magic of zstd's skippable frames, with which some writers begin: one of sixteen first bytes,
/// then these.
const SKIPPED: &[u8] = b"\x2a\x4d\x18";
/// What follows `BZh` and a digit.
const BZIP2: &[u8] = b"1AY&SY";
/// The offset of the magic in a tar header, and the magic.
const TAR: (usize, &[u8]) = (257, b"ustar");

impl Kind {
    /// The kind of a file that begins with `head`. `is_all` means that nothing follows.
    pub(super) fn of(head: &[u8], is_all: bool) -> Kind {
        if let Some((_, packing)) = PACKED.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Kind::Packed(*packing);
        }
        if head.first().is_some_and(|first| first & 0xf0 == 0x50) && head[1..].starts_with(SKIPPED) {
            return Kind::Packed(Packing::Zstd);
        }
        let foreign = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic));
        if let Some((magic, what)) = foreign
            && (*magic != b"BZh" || head.get(4..).is_some_and(|rest| rest.starts_with(BZIP2)))
        {
            return Kind::Foreign(what);
        }
        if head.get(TAR.0..).is_some_and(|header| header.starts_with(TAR.1)) {
            return Kind::Foreign("is a tar archive");
        }
        if is_wide(head) {
            return Kind::Foreign("is encoded in UTF-16");
        }
        if is_binary(head) {
            return Kind::Foreign("contains binary data");
        }
        let mut magics = PACKED.iter().map(|(magic, _)| *magic).chain(FOREIGN.iter().map(|(magic, _)| *magic));
        let is_beginning = magics.any(|magic| magic.starts_with(head));
        if is_beginning && !is_all { Kind::Open } else { Kind::Text }
    }
}

/// Whether there are many zeros, and only at every second byte, as in text of two bytes per
/// character. A hole has zeros at every byte.
fn is_wide(head: &[u8]) -> bool {
    let zeros = |odd: usize| head.iter().skip(odd).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd) = (zeros(0), zeros(1));
    even.min(odd) == 0 && even.max(odd) * 4 > head.len() && head.len() > 3
}

/// Whether there are zeros and control characters, apart from zeros at the beginning. Zeros alone
/// are a hole in a text.
fn is_binary(head: &[u8]) -> bool {
    let is_control = |byte: &u8| (1..=8).contains(byte) || (14..=26).contains(byte) || (28..=31).contains(byte);
    let begin = head.iter().position(|byte| *byte != 0).unwrap_or(head.len());
    let head = &head[begin..];
    head.contains(&0) && head.iter().any(is_control)
}

/// The first bytes of a file.
pub(super) fn head(file: &mut File) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD);
    file.seek(SeekFrom::Start(0))?;
    file.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &[u8], expected: Kind) {
        assert_eq!(Kind::of(head, false), expected, "{head:?}");
    }

    #[test]
    fn text_is_text_whatever_it_begins_with() {
        let texts: [&[u8]; 12] = [
            b"",
            b"{\"x\":1}\n",
            b"\xef\xbb\xbfa,b\n",
            b"PKW,1\n",
            b"BZh,1\nBZh9,2\n",
            b"\xff,latin-1 or so\n",
            b"a\0b\n",
            b"\0\0\0\0a line\n",
            b"a\n\0b\n\0c\n",
            b"a\n\0\0\0\0\0\0b\n\0\0\0\0\0\0\0",
            b"\x1b[31mred\x1b[0m\n",
            b"\x01 a control character\n",
        ];
        // An empty file may become anything, so it is checked on its own.
        texts[1..].iter().for_each(|text| check(text, Kind::Text));
        assert_eq!(Kind::of(texts[0], true), Kind::Text);
    }

    #[test]
    fn what_may_become_anything_is_left_open() {
        for head in [&b"\x1f"[..], b"\x1f\x8b", b"P", b"PK\x03", b"\x28\xb5", b"\xff"] {
            check(head, Kind::Open);
            assert_eq!(Kind::of(head, true), Kind::Text, "nothing follows");
        }
    }

    #[test]
    fn what_is_foreign_is_named() {
        for (magic, what) in FOREIGN {
            let rest = if magic == b"BZh" { &b"91AY&SY"[..] } else { b"rest" };
            check(&[magic, rest].concat(), Kind::Foreign(what));
        }
        check(b"a\0b\0c\0\n\0", Kind::Foreign("is encoded in UTF-16"));
        check(b"\0a\0b\0c\0\n", Kind::Foreign("is encoded in UTF-16"));
        check(b"a\n\x02\x00\x05", Kind::Foreign("contains binary data"));
    }
}
