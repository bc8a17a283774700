//! Merges the files of a checkpoint into one image, which holds each entry once. The workers are
//! not asked: entries are merged as bytes, a part of the key groups at a time.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use hashbrown::HashSet;

use crate::words::{KEY_GROUPS, KeyGroup};

use super::block::{BlockFile, BlockWriter, FileHead, FileRef, Verified, verify};
use super::delta::{Delta, RawEntries};
use super::disk::Disk;
use super::manifest::Operator;
use super::recover::verify_named;

/// So much is merged at a time: the eighth part, within these. More takes memory, and less reads
/// small blocks, which have all groups, again and again.
const PART_BYTES: (u64, u64) = (4 << 20, 32 << 20);

/// A merge that is under way.
pub(super) struct Merge {
    inputs: Vec<Verified>,
    operators: Vec<Operator>,
    image: BlockWriter,
    /// What is left to do: the operator and its groups.
    parts: Vec<(usize, Range<usize>)>,
    /// The number of entries and bytes of each operator in the image.
    volumes: Vec<Volume>,
}

/// What files hold of an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) count: u64,
    pub(super) bytes: u64,
}

/// A finished merge.
pub(super) struct Image {
    pub(super) file: FileRef,
    pub(super) volumes: Vec<Volume>,
}

impl Merge {
    /// Begins to merge these files, which are all that a checkpoint has.
    pub(super) fn begin(
        disk: &dyn Disk,
        files: &[FileRef],
        operators: &[Operator],
        name: String,
        head: &FileHead,
    ) -> io::Result<Merge> {
        let inputs: Vec<Verified> = files.iter().map(|file| verify_named(disk, file)).collect::<io::Result<_>>()?;
        let mut parts = Vec::new();
        for (index, operator) in operators.iter().enumerate() {
            parts.extend(parts_of(volume(&inputs, operator)).map(|groups| (index, groups)));
        }
        parts.reverse();
        let image = BlockWriter::create(disk, name, head)?;
        Ok(Merge {
            inputs,
            operators: operators.to_vec(),
            image,
            parts,
            volumes: vec![Volume::default(); operators.len()],
        })
    }

    /// The name of the file that it writes.
    pub(super) fn image_name(&self) -> &str {
        self.image.name()
    }

    /// Does a part of the work. Returns the image when it is finished, durable and read back.
    pub(super) fn step(&mut self, disk: &dyn Disk) -> io::Result<Option<Image>> {
        if let Some((index, groups)) = self.parts.pop() {
            let merged = merged(disk, &self.inputs, &self.operators[index], &groups)?;
            let volume = &mut self.volumes[index];
            *volume = Volume { count: volume.count + merged.count(), bytes: volume.bytes + merged.bytes() as u64 };
            self.image.append_delta(index as u32, &merged)?;
            return Ok(None);
        }
        let image = self.image.sync()?;
        // The files before it may go only when it is known to be whole.
        // If it is not, they still are, and another image may succeed: that is no damage of theirs.
        verify(disk, &image).map_err(io::Error::other)?;
        Ok(Some(Image { file: image, volumes: self.volumes.clone() }))
    }
}

/// The key groups in parts, of which each fits into memory.
pub(super) fn parts_of(volume: Volume) -> impl Iterator<Item = Range<usize>> {
    let part = (volume.bytes / 8).clamp(PART_BYTES.0, PART_BYTES.1);
    let count = (volume.bytes / part + 1).min(KEY_GROUPS as u64) as usize;
    (0..count).map(move |part| part * KEY_GROUPS / count..(part + 1) * KEY_GROUPS / count)
}

/// What the files hold of an operator.
pub(super) fn volume(files: &[Verified], operator: &Operator) -> Volume {
    let mut volume = Volume::default();
    for file in files.iter().skip(operator.since as usize) {
        for block in file.blocks_of(&operator.name, 0..KEY_GROUPS) {
            volume.count += block.count;
            volume.bytes += block.bytes();
        }
    }
    volume
}

/// The newest entry of each key in these groups.
fn merged(disk: &dyn Disk, files: &[Verified], operator: &Operator, groups: &Range<usize>) -> io::Result<Delta> {
    let mut read = ReadEntries::default();
    for file in files.iter().skip(operator.since as usize) {
        read.add(file, &mut BlockFile::open(disk, file)?, operator, groups)?;
    }
    read.newest()
}

/// Entries of an operator as its files have them, by key group: the older ones first.
#[derive(Debug, Default)]
pub(super) struct ReadEntries(BTreeMap<KeyGroup, Vec<Vec<u8>>>);

impl ReadEntries {
    /// Reads what the next file has in these groups.
    pub(super) fn add(
        &mut self,
        file: &Verified,
        blocks: &mut BlockFile,
        operator: &Operator,
        groups: &Range<usize>,
    ) -> io::Result<()> {
        for block in file.blocks_of(&operator.name, groups.clone()) {
            for (group, entries) in blocks.read(block, groups)? {
                self.0.entry(group).or_default().push(entries.to_vec());
            }
        }
        Ok(())
    }

    /// The newest entry of each key that has a state.
    pub(super) fn newest(self) -> io::Result<Delta> {
        let mut delta = Delta::default();
        for (group, parts) in self.0 {
            let mut seen = HashSet::new();
            // The newest first: what comes later is older.
            for entries in parts.iter().rev() {
                let entries: Result<Vec<_>, _> = RawEntries::new(entries).collect();
                let entries =
                    entries.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "these are not entries"))?;
                for entry in entries.into_iter().rev() {
                    if seen.insert(entry.key) && entry.state.is_some() {
                        delta.copy(group, &entry);
                    }
                }
            }
        }
        Ok(delta)
    }
}
