//! The files that hold state: a chain of blocks, of which each continues the digest of the one
//! before. A file is appended to, checkpoint by checkpoint; a manifest says how long it is at its
//! checkpoint, and the digest there.
//!
//! ```text
//! file    block of its head, blocks of entries
//! block   length of the body: 4 bytes, little endian
//!         body
//!         digest: 8 bytes, xxh3 of the body with the digest before it as seed
//! body    head (postcard), and behind that of entries the entries of its groups
//! ```

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::words::KeyGroup;

use super::delta::Delta;
use super::disk::{Disk, Input, Output};

/// How far a file reaches at a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRef {
    pub(crate) name: String,
    pub(crate) length: u64,
    pub(crate) digest: u64,
}

/// The first block of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileHead {
    /// [`FORMAT`].
    pub(crate) format: String,
    pub(crate) job: String,
    /// The run that wrote it.
    pub(crate) run: String,
    /// The names of the operators that its blocks speak of.
    pub(crate) operators: Vec<String>,
}

/// What every file begins with; it changes when files become unreadable for what wrote them before.
pub(crate) const FORMAT: &str = "millstream state 1";

/// What stands before the entries of a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockHead {
    /// The operator, by its place in the file's head.
    pub(crate) operator: u32,
    /// The key groups, in order, with the number and the size of their entries.
    pub(crate) groups: Vec<(u8, u64, u64)>,
}

/// A block is complete when it has so many bytes of entries. A larger group has a block to itself.
const BLOCK_BYTES: usize = 1 << 20;

/// Appends blocks to a file.
pub(crate) struct BlockWriter {
    output: Box<dyn Output>,
    at: FileRef,
}

impl BlockWriter {
    /// Creates a file.
    pub(crate) fn create(disk: &dyn Disk, name: String, head: &FileHead) -> io::Result<BlockWriter> {
        let output = disk.create(&name)?;
        let mut writer = BlockWriter { output, at: FileRef { name, length: 0, digest: 0 } };
        writer.append(&postcard::to_stdvec(head).map_err(io::Error::other)?)?;
        Ok(writer)
    }

    fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len()).map_err(|_| io::Error::other("a block is larger than 4 GiB"))?;
        self.at.digest = xxh3_64_with_seed(body, self.at.digest);
        self.output.write(&length.to_le_bytes())?;
        self.output.write(body)?;
        self.output.write(&self.at.digest.to_le_bytes())?;
        self.at.length += body.len() as u64 + FRAME;
        Ok(())
    }

    /// Appends the changes of an operator.
    pub(crate) fn append_delta(&mut self, operator: u32, delta: &Delta) -> io::Result<()> {
        let (mut head, mut payload) = (BlockHead { operator, groups: Vec::new() }, Vec::new());
        for (group, entries) in delta.groups() {
            if !payload.is_empty() && payload.len() + entries.bytes.len() > BLOCK_BYTES {
                self.append_entries(&head, &payload)?;
                head.groups.clear();
                payload.clear();
            }
            head.groups.push((group.index() as u8, entries.count, entries.bytes.len() as u64));
            payload.extend_from_slice(&entries.bytes);
        }
        if payload.is_empty() { Ok(()) } else { self.append_entries(&head, &payload) }
    }

    fn append_entries(&mut self, head: &BlockHead, payload: &[u8]) -> io::Result<()> {
        let mut body = postcard::to_stdvec(head).map_err(io::Error::other)?;
        body.extend_from_slice(payload);
        self.append(&body)
    }

    /// The name of the file.
    pub(crate) fn name(&self) -> &str {
        &self.at.name
    }

    /// Makes everything appended so far durable, and returns how far that is.
    pub(crate) fn sync(&mut self) -> io::Result<FileRef> {
        self.output.sync()?;
        Ok(self.at.clone())
    }
}

/// The bytes of a block that are not its body.
const FRAME: u64 = 12;

/// Where a block of entries is.
#[derive(Clone, Debug)]
pub(crate) struct BlockAt {
    operator: u32,
    /// The first and the last of its groups.
    groups: (u8, u8),
    pub(crate) count: u64,
    /// Where its body begins.
    offset: u64,
    length: u32,
}

impl BlockAt {
    /// The size of its body.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.length)
    }

    /// Whether it may have entries of any of these groups.
    fn has_any_of(&self, groups: &Range<usize>) -> bool {
        usize::from(self.groups.0) < groups.end && usize::from(self.groups.1) >= groups.start
    }
}

/// A file that was read to its end, and found undamaged.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    pub(crate) file: FileRef,
    pub(crate) head: FileHead,
    blocks: Vec<BlockAt>,
}

impl Verified {
    /// The blocks that speak of an operator and may have entries of any of these groups.
    pub(crate) fn blocks_of(&self, operator: &str, groups: Range<usize>) -> impl Iterator<Item = &BlockAt> {
        let place = self.head.operators.iter().position(|name| name == operator);
        let is_of_it = move |block: &&BlockAt| Some(block.operator as usize) == place && block.has_any_of(&groups);
        self.blocks.iter().filter(is_of_it)
    }
}

/// Reads a file up to where a manifest says that it ends.
///
/// # Errors
/// What is damaged, or the error of the system.
pub(crate) fn verify(disk: &dyn Disk, file: &FileRef) -> io::Result<Verified> {
    verify_opened(&mut *disk.open(&file.name)?, file)
}

/// As [`verify`], where the file is open already.
///
/// # Errors
/// As there.
pub(crate) fn verify_opened(input: &mut dyn Input, file: &FileRef) -> io::Result<Verified> {
    let size = input.seek(SeekFrom::End(0))?;
    if size < file.length {
        return Err(damaged(format!("it has {size} of {} bytes", file.length)));
    }
    input.rewind()?;
    let mut input = BufReader::with_capacity(1 << 18, input.take(file.length));
    let (mut offset, mut digest, mut body) = (0, 0, Vec::new());
    let (mut file_head, mut blocks) = (None, Vec::new());
    while offset < file.length {
        let at = |what: &str| damaged(format!("{what} at byte {offset}"));
        let mut length = [0; 4];
        input.read_exact(&mut length).map_err(|_| at("a block is cut off"))?;
        let length = u32::from_le_bytes(length);
        if u64::from(length) + FRAME > file.length - offset {
            return Err(at("a block is cut off"));
        }
        // No more than the file has.
        body.resize(length as usize, 0);
        input.read_exact(&mut body)?;
        let mut expected = [0; 8];
        input.read_exact(&mut expected)?;
        digest = xxh3_64_with_seed(&body, digest);
        if digest != u64::from_le_bytes(expected) {
            return Err(at("the digest is wrong of the block"));
        }
        if file_head.is_none() {
            let (head, _) = take_head::<FileHead>(&body).ok_or_else(|| at("there is no head"))?;
            if head.format != FORMAT {
                return Err(damaged(format!("its format is `{}`, not `{FORMAT}`", head.format)));
            }
            file_head = Some(head);
        } else {
            let (head, payload) = take_head::<BlockHead>(&body).ok_or_else(|| at("there is no head of the block"))?;
            let size = head.groups.iter().try_fold(0_u64, |size, (_, _, bytes)| size.checked_add(*bytes));
            let (Some(first), Some(last)) = (head.groups.first(), head.groups.last()) else {
                return Err(at("there is no group in the block"));
            };
            if size != Some(payload.len() as u64) || !head.groups.is_sorted_by_key(|(group, ..)| *group) {
                return Err(at("the groups do not fit the block"));
            }
            blocks.push(BlockAt {
                operator: head.operator,
                groups: (first.0, last.0),
                count: head.groups.iter().map(|(_, count, _)| count).sum(),
                offset: offset + 4,
                length,
            });
        }
        offset += u64::from(length) + FRAME;
    }
    match file_head {
        Some(head) if digest == file.digest => Ok(Verified { file: file.clone(), head, blocks }),
        _ => Err(damaged("it is not the file that the manifest names".to_owned())),
    }
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn take_head<T: DeserializeOwned>(body: &[u8]) -> Option<(T, &[u8])> {
    postcard::take_from_bytes(body).ok()
}

/// Reads blocks of a file that was verified.
pub(crate) struct BlockFile {
    input: Box<dyn Input>,
    body: Vec<u8>,
    name: String,
}

impl BlockFile {
    pub(crate) fn open(disk: &dyn Disk, file: &Verified) -> io::Result<BlockFile> {
        Ok(BlockFile::opened(disk.open(&file.file.name)?, file))
    }

    /// As [`open`](BlockFile::open), where the file is open already.
    pub(crate) fn opened(input: Box<dyn Input>, file: &Verified) -> BlockFile {
        BlockFile { input, body: Vec::new(), name: file.file.name.clone() }
    }

    /// The entries of a block that are of these groups, by group.
    pub(crate) fn read(&mut self, block: &BlockAt, of: &Range<usize>) -> io::Result<Vec<(KeyGroup, &[u8])>> {
        self.input.seek(SeekFrom::Start(block.offset))?;
        self.body.resize(block.length as usize, 0);
        self.input.read_exact(&mut self.body)?;
        let changed = || damaged(format!("`{}` has changed since it was verified", self.name));
        let (head, mut payload) = take_head::<BlockHead>(&self.body).ok_or_else(changed)?;
        let mut groups = Vec::with_capacity(head.groups.len());
        for (group, _, size) in head.groups {
            let size = usize::try_from(size).map_err(|_| changed())?;
            let (entries, rest) = payload.split_at_checked(size).ok_or_else(changed)?;
            payload = rest;
            if of.contains(&usize::from(group)) {
                groups.push((KeyGroup::from_index(group), entries));
            }
        }
        Ok(groups)
    }
}
