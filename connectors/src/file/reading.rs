//! One turn at one file: from where it was left to where it was seen to end, a chunk at a time.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use millstream::{Offset, Partition};

use crate::format::{self, Framing, Header};

use super::block::{Block, Content, Flaw, Records, too_long};
use super::cut::Cutter;

/// What becomes of a last record without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is left for the next turn.
    Open,
    /// It is taken as it stands.
    AsItStands,
}

/// How far a file was read; what is kept of it between two turns.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Where reading goes on: between two records, or within one that is too long.
    pub(super) next: u64,
    /// The position that was handed to the worker last.
    pub(super) handed: u64,
    /// The rest of a record that is too long is being left out.
    skipping: Option<Cutter>,
    header: Option<Arc<Header>>,
    /// What stood before `handed` when it was read.
    tail: Vec<u8>,
}

/// By so much of what was read a file is known again: one that was written anew has something else there.
const TAIL: usize = 256;

impl Progress {
    /// As an earlier run committed it.
    pub(super) fn from(committed: u64) -> Progress {
        Progress { next: committed, handed: committed, ..Progress::default() }
    }

    /// Whether what was read last still stands there.
    pub(super) fn is_of(&self, file: &mut File) -> io::Result<bool> {
        let mut there = Vec::with_capacity(self.tail.len());
        file.seek(SeekFrom::Start(self.handed - self.tail.len() as u64))?;
        file.take(self.tail.len() as u64).read_to_end(&mut there)?;
        Ok(there == self.tail)
    }
}

pub(super) struct Reading {
    pub(super) file: File,
    pub(super) path: Partition,
    pub(super) partition: Partition,
    pub(super) until: u64,
    pub(super) ending: Ending,
    pub(super) framing: Framing,
    pub(super) record_max: usize,
    cutter: Cutter,
    is_skipping: bool,
    header: Option<Arc<Header>>,
    /// Where to go on once the header is read.
    resume_at: u64,
    handed: u64,
    tail: Vec<u8>,
    /// Where the buffer begins in the file.
    offset: u64,
    buffer: Vec<u8>,
    /// How much of the buffer has been searched for ends.
    scanned: usize,
    /// The file has ended before `until`.
    is_at_end: bool,
}

/// What a file is read with.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) path: Partition,
    pub(super) partition: Partition,
    pub(super) until: u64,
    pub(super) ending: Ending,
}

impl Reading {
    pub(super) fn new(opened: Opened, progress: Progress, framing: Framing, record_max: usize) -> io::Result<Reading> {
        let Opened { file, path, partition, until, ending } = opened;
        let mut reading = Reading {
            file,
            path,
            partition,
            until,
            ending,
            framing,
            record_max,
            is_skipping: progress.skipping.is_some(),
            cutter: progress.skipping.unwrap_or_else(|| Cutter::new(framing)),
            header: progress.header,
            resume_at: progress.next,
            handed: progress.handed,
            tail: progress.tail,
            offset: 0,
            buffer: Vec::new(),
            scanned: 0,
            is_at_end: false,
        };
        let begin = if reading.is_header_due() { 0 } else { progress.next };
        reading.go_to(begin)?;
        Ok(reading)
    }

    fn is_header_due(&self) -> bool {
        self.framing.has_header() && self.header.is_none()
    }

    fn go_to(&mut self, offset: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.offset = offset;
        self.buffer.clear();
        self.scanned = 0;
        Ok(())
    }

    /// How far the file was read.
    pub(super) fn read_to(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// Whether there is nothing more to do in this turn.
    pub(super) fn is_done(&self) -> bool {
        self.is_at_end || self.read_to() >= self.until
    }

    /// Reads at most a chunk, and hands on what it made whole.
    pub(super) fn step(&mut self, chunk: usize, mut hand: impl FnMut(Block)) -> io::Result<()> {
        self.fill(chunk)?;
        let mut ranges = Vec::new();
        let mut begin = self.cut(&mut ranges)?;
        if self.is_done() && self.ending == Ending::AsItStands {
            begin = self.take_last(begin, &mut ranges);
        }
        if begin > 0 {
            hand(self.block_until(begin, ranges));
        }
        self.leave_out_what_is_too_long(&mut hand);
        // A header alone, empty lines, or the end of a record that was left out.
        if self.is_done() && !self.is_skipping && !self.is_header_due() && self.offset > self.handed {
            hand(self.block_until(0, Vec::new()));
        }
        Ok(())
    }

    /// What is kept until the next turn.
    pub(super) fn into_progress(self) -> (File, Progress) {
        let is_header_torn = self.is_header_due() && self.ending == Ending::Open;
        let next = if is_header_torn { self.resume_at } else { self.offset };
        let skipping = self.is_skipping.then_some(self.cutter);
        (self.file, Progress { next, handed: self.handed, skipping, header: self.header, tail: self.tail })
    }

    fn fill(&mut self, chunk: usize) -> io::Result<()> {
        let want = (self.until.saturating_sub(self.read_to())).min(chunk as u64) as usize;
        let begin = self.buffer.len();
        self.buffer.resize(begin + want, 0);
        let got = loop {
            match self.file.read(&mut self.buffer[begin..]) {
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                got => break got,
            }
        };
        self.buffer.truncate(begin + *got.as_ref().unwrap_or(&0));
        self.is_at_end = got? == 0;
        Ok(())
    }

    /// Finds the records that are whole, and where the one under way begins.
    fn cut(&mut self, ranges: &mut Vec<Range<usize>>) -> io::Result<usize> {
        let mut begin = 0;
        while let Some(len) = self.cutter.end_in(&self.buffer[self.scanned..]) {
            self.scanned += len;
            if mem::take(&mut self.is_skipping) {
                // The end of a header that is too long is no header either.
            } else if self.is_header_due() {
                self.take_header(begin..self.scanned);
                if self.resume_at > self.offset + self.scanned as u64 {
                    self.cutter = Cutter::new(self.framing);
                    self.go_to(self.resume_at)?;
                    return Ok(0);
                }
            } else {
                ranges.push(begin..self.scanned);
            }
            begin = self.scanned;
        }
        self.scanned = self.buffer.len();
        Ok(begin)
    }

    /// Nothing follows what is there.
    fn take_last(&mut self, begin: usize, ranges: &mut Vec<Range<usize>>) -> usize {
        let end = self.buffer.len();
        if !mem::take(&mut self.is_skipping) && begin < end && self.cutter.is_record_at_end() {
            if self.is_header_due() {
                self.take_header(begin..end);
            } else {
                ranges.push(begin..end);
            }
        }
        end
    }

    fn take_header(&mut self, range: Range<usize>) {
        if let Framing::Csv { delimiter, .. } = self.framing {
            self.header = Some(Arc::new(format::header(&self.buffer[range], delimiter)));
        }
    }

    /// The first `len` bytes of the buffer leave it.
    fn block_until(&mut self, len: usize, ranges: Vec<Range<usize>>) -> Block {
        let rest = self.buffer.split_off(len);
        let bytes = mem::replace(&mut self.buffer, rest);
        let offset = self.offset;
        self.scanned -= len;
        self.offset += len as u64;
        self.tail = bytes[len.saturating_sub(TAIL)..].to_vec();
        self.handed = self.offset;
        Block {
            path: self.path.clone(),
            content: Content::Records(Records { bytes, offset, ranges, header: self.header.clone() }),
            position: Some((self.partition.clone(), Offset(self.offset))),
        }
    }

    /// A record that is longer than it may be is malformed at once, by its beginning. Its position stays until its end is
    /// found, so that a later run does not begin in the middle of it.
    fn leave_out_what_is_too_long(&mut self, hand: &mut impl FnMut(Block)) {
        // It may still turn out to be as long as it may be, with an end of two bytes.
        if !self.is_skipping && self.buffer.len() > self.record_max.saturating_add(2) {
            let bytes = Some(self.buffer[..self.record_max].to_vec());
            let flaw = Flaw { at: self.offset, bytes, cause: too_long(self.record_max) };
            hand(Block { path: self.path.clone(), content: Content::Flaw(flaw), position: None });
            self.is_skipping = true;
            if self.is_header_due() {
                // Under a header without columns each row is malformed and says why.
                self.header = Some(Arc::new(Header(Default::default())));
                self.resume_at = self.offset;
            }
        }
        if self.is_skipping {
            self.offset += self.buffer.len() as u64;
            self.buffer.clear();
            self.scanned = 0;
        }
    }
}
