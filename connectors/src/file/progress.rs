//! How far a file was read, and by what it is known again: what is kept of it between two turns.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use crate::format::Header;

use super::content::Packing;
use super::cut::Cutter;

/// How far a file was read; what is kept of it between two turns. Positions in a compressed file are positions in what it
/// holds.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Where reading goes on: between two records, or within one that is too long.
    pub(super) next: u64,
    /// The position that was handed to the worker last.
    pub(super) handed: u64,
    /// The rest of a record that is too long is being left out.
    pub(super) skipping: Option<Skipping>,
    pub(super) header: Option<Arc<Header>>,
    pub(super) form: Form,
    /// What stood before `handed` when it was read; of a compressed file, where it was read to.
    tail: Vec<u8>,
}

/// Where reading stands within a record that is too long.
#[derive(Debug)]
pub(super) struct Skipping {
    pub(super) cutter: Cutter,
    /// How much of it was left out.
    pub(super) bytes: u64,
}

/// How a file holds its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Form {
    /// It was not looked at.
    #[default]
    Unknown,
    Plain,
    Packed {
        packing: Packing,
        /// The last turn has read all that was there.
        whole: Option<Whole>,
    },
}

/// A compressed file that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// How long it was.
    pub(super) packed: u64,
    /// How much it held.
    pub(super) unpacked: u64,
}

/// By so much of what was read a file is known again: one that was written anew has something else there.
const TAIL: usize = 256;

impl Progress {
    /// As an earlier run committed it.
    pub(super) fn from(committed: u64) -> Progress {
        Progress { next: committed, handed: committed, ..Progress::default() }
    }

    pub(super) fn is_packed(&self) -> bool {
        matches!(self.form, Form::Packed { .. })
    }

    /// How much of the file itself was read.
    pub(super) fn file_read(&self) -> u64 {
        match self.form {
            Form::Unknown | Form::Plain => self.next,
            Form::Packed { whole, .. } => whole.map_or(0, |whole| whole.packed),
        }
    }

    /// Whether a file of that length was read, and handed on, to its end. The position of one whose last record is being left
    /// out has not been handed on.
    pub(super) fn is_whole(&self, len: u64) -> bool {
        let end = match self.form {
            Form::Unknown | Form::Plain => len,
            Form::Packed { whole: Some(whole), .. } if whole.packed == len => whole.unpacked,
            Form::Packed { .. } => return false,
        };
        self.next == end && self.handed == end
    }

    /// The position at the end of a file of that length. Of a compressed one that was not read to its end it is as if what
    /// follows were not compressed.
    pub(super) fn end(&self, len: u64) -> u64 {
        match self.form {
            Form::Unknown | Form::Plain => len,
            Form::Packed { whole: Some(whole), .. } => whole.unpacked + len.saturating_sub(whole.packed),
            Form::Packed { whole: None, .. } => self.next + len,
        }
    }

    /// Whether what was read last still stands there.
    pub(super) fn is_of(&self, file: &mut File) -> io::Result<bool> {
        let len = self.tail.len() as u64;
        let begin = match self.form {
            Form::Packed { whole: None, .. } => 0,
            Form::Packed { whole: Some(whole), .. } => whole.packed - len,
            Form::Unknown | Form::Plain => self.handed - len,
        };
        Ok(read_from(file, begin, len)? == self.tail)
    }

    /// These bytes, which stand before it, were handed on up to that position.
    pub(super) fn hand(&mut self, bytes: &[u8], position: u64) {
        if self.handed + bytes.len() as u64 != position {
            // Something was left out before it.
            self.tail.clear();
        }
        self.handed = position;
        if !self.is_packed() {
            self.tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL)..]);
            self.tail.drain(..self.tail.len().saturating_sub(TAIL));
        }
    }

    /// A turn at a compressed file that was so long is over. One that was not read to its end is known again by its beginning.
    pub(super) fn remember_packed(&mut self, file: &mut File, len: u64) {
        let Form::Packed { whole, .. } = self.form else { return };
        let begin = if whole.is_some() { len.saturating_sub(TAIL as u64) } else { 0 };
        // What cannot be read is found out in the next turn.
        self.tail = read_from(file, begin, len.min(TAIL as u64)).unwrap_or_default();
    }
}

fn read_from(file: &mut File, begin: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len as usize);
    file.seek(SeekFrom::Start(begin))?;
    file.take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}
