//! What is kept of a file between two turns: how far it was read, and how to recognise it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use crate::format::Header;

use super::content::Packing;
use super::cut::Cutter;

/// How far a file was read. Offsets in a compressed file count decompressed bytes.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Where reading continues: between two records, or within one that is too long.
    pub(super) next: u64,
    /// The offset that was last handed to the worker.
    pub(super) handed: u64,
    /// Set while the rest of a record that is too long is being skipped.
    pub(super) skipping: Option<Skipping>,
    pub(super) header: Option<Arc<Header>>,
    pub(super) form: Form,
    /// The bytes before `handed` when they were read. Of a compressed file: its last bytes if it
    /// was read to its end, otherwise its first.
    tail: Vec<u8>,
}

/// The state of reading within a record that is too long.
#[derive(Debug)]
pub(super) struct Skipping {
    pub(super) cutter: Cutter,
    /// The number of bytes skipped so far.
    pub(super) bytes: u64,
}

/// How a file contains its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// It has not been looked at.
    #[default]
    Unknown,
    Plain,
    Packed {
        packing: Packing,
        /// Set if the last turn read to the end.
        whole: Option<Whole>,
    },
}

/// A compressed file that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// The length of the file.
    pub(super) packed: u64,
    /// The length of its contents.
    pub(super) unpacked: u64,
}

/// The number of bytes by which a file is recognised: a file that was overwritten has others there.
const TAIL: usize = 256;

impl Progress {
    /// The progress of a file that was committed up to `committed`.
    pub(super) fn from(committed: u64) -> Progress {
        Progress { next: committed, handed: committed, ..Progress::default() }
    }

    pub(super) fn is_packed(&self) -> bool {
        matches!(self.form, Form::Packed { .. })
    }

    /// The number of bytes read of the file itself.
    pub(super) fn file_read(&self) -> u64 {
        match self.form {
            Form::Unknown | Form::Plain => self.next,
            Form::Packed { whole, .. } => whole.map_or(0, |whole| whole.packed),
        }
    }

    /// Whether a file of that length was read, and handed on, to its end. If its last record is
    /// being skipped, its end has not been handed on.
    pub(super) fn is_whole(&self, len: u64) -> bool {
        let end = match self.form {
            Form::Unknown | Form::Plain => len,
            Form::Packed { whole: Some(whole), .. } if whole.packed == len => whole.unpacked,
            Form::Packed { .. } => return false,
        };
        self.next == end && self.handed == end
    }

    /// The offset at the end of a file of that length. The unread part of a compressed file counts
    /// as if it were not compressed.
    pub(super) fn end(&self, len: u64) -> u64 {
        match self.form {
            Form::Unknown | Form::Plain => len,
            Form::Packed { whole: Some(whole), .. } => whole.unpacked + len.saturating_sub(whole.packed),
            Form::Packed { whole: None, .. } => self.next + len,
        }
    }

    /// Whether the bytes that were read last are still there.
    pub(super) fn is_of(&self, file: &mut File) -> io::Result<bool> {
        let len = self.tail.len() as u64;
        let begin = match self.form {
            Form::Packed { whole: None, .. } => 0,
            Form::Packed { whole: Some(whole), .. } => whole.packed - len,
            Form::Unknown | Form::Plain => self.handed - len,
        };
        Ok(read_from(file, begin, len)? == self.tail)
    }

    /// Notes that everything up to `position` was handed on; `bytes` are those before it.
    pub(super) fn hand(&mut self, bytes: &[u8], position: u64) {
        if self.handed + bytes.len() as u64 != position {
            // Something was skipped before these bytes.
            self.tail.clear();
        }
        self.handed = position;
        if !self.is_packed() {
            self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL)..]);
            self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        }
    }

    /// Ends a turn at a compressed file of length `len`. A file that was not read to its end is
    /// recognised by its beginning.
    pub(super) fn remember_packed(&mut self, file: &mut File, len: u64) {
        let Form::Packed { whole, .. } = self.form else { return };
        let begin = if whole.is_some() { len.saturating_sub(TAIL as u64) } else { 0 };
        // A read error shows again in the next turn.
        self.tail = read_from(file, begin, len.min(TAIL as u64)).unwrap_or_default();
    }
}

fn read_from(file: &mut File, begin: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len as usize);
    file.seek(SeekFrom::Start(begin))?;
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}
