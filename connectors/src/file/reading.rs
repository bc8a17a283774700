//! One turn at one file: reads from where the last turn stopped to the end that a look found, a
//! chunk at a time.

use std::fs::File;
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use memchr::memchr;
use millstream::EventTime;
use millstream::connector::{Moment, Offset, Partition};

use crate::format::{self, Framing, Header};

use super::block::{Block, Content, Flaw, Records, too_long};
use super::content::{self, Kind};
use super::cut::Cutter;
use super::done::CutFiles;
use super::gap::{self, Gap};
use super::input::{Input, Skipped};
use super::progress::{Form, Progress, Skipping, Whole};
use super::reader::{self, BYTE_ORDER_MARK};

/// What happens to a last record without an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It is left for the next turn.
    Open,
    /// It is taken as it is.
    AsItStands,
}

/// Whether the contents of a file are checked before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Text or compressed text.
    Text,
    /// Any bytes, read as they are.
    Raw,
}

/// How the files of a source are read.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) framing: Framing,
    pub(super) record_max: usize,
    pub(super) contents: Contents,
    pub(super) cut: CutFiles,
}

/// Why a turn ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The file cannot be read.
    System(io::Error),
    /// It is not text; the value says what it is.
    Foreign(&'static str),
    /// It is compressed, and truncated or damaged.
    Damaged(Flaw),
    /// It contains less than was read before.
    Shorter,
    /// It is too short to tell what it is.
    Open(File),
}

impl From<io::Error> for Failure {
    fn from(cause: io::Error) -> Failure {
        Failure::System(cause)
    }
}

pub(super) struct Reading {
    input: Input,
    path: Partition,
    partition: Partition,
    pub(super) until: u64,
    pub(super) ending: Ending,
    manner: Manner,
    progress: Progress,
    cutter: Cutter,
    /// The number of bytes skipped so far, while the rest of a record that is too long is being
    /// skipped.
    skipped: Option<u64>,
    gap: Gap,
    /// Where to continue once the header is read.
    resume_at: u64,
    /// The offset of the buffer in the file, or in its decompressed contents.
    offset: u64,
    buffer: Vec<u8>,
    modified: EventTime,
    /// How much of the buffer has been searched for ends.
    scanned: usize,
    /// The index of the next zero, or the end of the buffer; updated when it is passed.
    filled: usize,
    /// A read has found the end of the input.
    is_at_end: bool,
}

/// An open file and how far to read it.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) path: Partition,
    pub(super) partition: Partition,
    pub(super) until: u64,
    pub(super) ending: Ending,
}

/// In milliseconds since 1970, or no time where the file system does not say.
fn modified(file: &File) -> EventTime {
    let modified = file.metadata().and_then(|metadata| metadata.modified()).ok();
    let since = modified.and_then(|modified| modified.duration_since(UNIX_EPOCH).ok());
    EventTime(since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(i64::MIN))
}

impl Reading {
    pub(super) fn new(opened: Opened, mut progress: Progress, manner: Manner) -> Result<Reading, Failure> {
        let Opened { mut file, path, partition, until, ending } = opened;
        if progress.form == Form::Unknown {
            progress.form = match Reading::kind(&mut file, manner.contents, ending)? {
                Kind::Text => Form::Plain,
                Kind::Packed(packing) => Form::Packed { packing, whole: None },
                Kind::Foreign(what) => return Err(Failure::Foreign(what)),
                Kind::Open => return Err(Failure::Open(file)),
            };
        }
        let modified = modified(&file);
        let input = Input::new(file, until, progress.form)?;
        let (skipped, cutter) = match progress.skipping.take() {
            Some(Skipping { cutter, bytes }) => (Some(bytes), cutter),
            None => (None, Cutter::new(manner.framing)),
        };
        let mut reading = Reading {
            gap: Gap::default(),
            resume_at: progress.next,
            input,
            path,
            partition,
            until,
            ending,
            manner,
            progress,
            cutter,
            skipped,
            offset: 0,
            buffer: Vec::new(),
            modified,
            scanned: 0,
            filled: 0,
            is_at_end: false,
        };
        let begin = if reading.is_header_due() { 0 } else { reading.resume_at };
        reading.go_to(begin)?;
        Ok(reading)
    }

    fn kind(file: &mut File, contents: Contents, ending: Ending) -> io::Result<Kind> {
        match contents {
            Contents::Raw => Ok(Kind::Text),
            Contents::Text => Ok(Kind::of(&content::head(file)?, ending == Ending::AsItStands)),
        }
    }

    fn is_header_due(&self) -> bool {
        self.manner.framing.has_header() && self.progress.header.is_none()
    }

    /// Moves to an offset that is ahead, or still in the buffer.
    fn go_to(&mut self, offset: u64) -> io::Result<()> {
        let read_to = self.read_to();
        (self.scanned, self.filled) = (0, 0);
        if offset < read_to {
            self.buffer.drain(..(offset - self.offset) as usize);
        } else {
            self.input.go_to(read_to, offset)?;
            self.buffer.clear();
        }
        self.offset = offset;
        Ok(())
    }

    /// How far the file, or its decompressed contents, were read.
    pub(super) fn read_to(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// Whether there is nothing more to do in this turn.
    pub(super) fn is_done(&self) -> bool {
        self.is_at_end || !self.is_unpacking() && self.read_to() >= self.until
    }

    pub(super) fn is_unpacking(&self) -> bool {
        self.input.packing().is_some()
    }

    /// Reads at most one chunk, and hands on the records that are complete.
    pub(super) fn step(&mut self, chunk: usize, mut hand: impl FnMut(Block)) -> Result<(), Failure> {
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
        // Moves the offset behind a header alone, empty lines, or the end of a skipped record.
        if self.is_done() && self.skipped.is_none() && !self.is_header_due() && self.offset > self.progress.handed {
            hand(self.block_until(0, Vec::new()));
        }
        Ok(())
    }

    /// The file and the progress to keep until the next turn.
    pub(super) fn into_progress(mut self) -> (File, Progress) {
        let is_header_torn = self.is_header_due() && self.ending == Ending::Open;
        let unpacked = self.read_to();
        let (mut file, mut progress) = (self.input.into_file(), self.progress);
        progress.next = if is_header_torn { self.resume_at } else { self.offset };
        progress.skipping = self.skipped.map(|bytes| Skipping { cutter: self.cutter, bytes });
        if let Form::Packed { whole, .. } = &mut progress.form {
            *whole = self.is_at_end.then_some(Whole { packed: self.until, unpacked });
            progress.remember_packed(&mut file, self.until);
        }
        self.gap.end(&self.path);
        (file, progress)
    }

    fn fill(&mut self, chunk: usize) -> Result<(), Failure> {
        if self.input.is_behind() {
            let skipped = self.input.skip(chunk).map_err(|cause| self.failed(cause))?;
            return if skipped == Skipped::Everything { Err(Failure::Shorter) } else { Ok(()) };
        }
        self.pass_over_gap()?;
        let begin = self.buffer.len();
        let want = self.input.left(self.read_to()).min(chunk as u64) as usize;
        self.filled = 0;
        self.buffer.resize(begin + want, 0);
        let got = self.input.read(&mut self.buffer[begin..]);
        self.buffer.truncate(begin + *got.as_ref().unwrap_or(&0));
        self.is_at_end = got.map_err(|cause| self.failed(cause))? == 0;
        let is_first = self.offset == 0 && begin == 0;
        match self.manner.contents {
            Contents::Text if is_first => self.input.look_at(&self.buffer).map_err(Failure::Foreign),
            Contents::Text | Contents::Raw => Ok(()),
        }
    }

    /// Moves past a hole, which may be too long to be read.
    fn pass_over_gap(&mut self) -> io::Result<()> {
        if self.buffer.is_empty()
            && let Some(file) = self.input.plain()
            && let Some(data) = self.gap.data(file, self.offset, self.until)
        {
            self.gap.extend(self.offset, data - self.offset);
            self.input.go_to(self.offset, data)?;
            self.offset = data;
        }
        Ok(())
    }

    /// Whether a failed read is a fault of the file system or of the compressed data. Of the
    /// current record only the bytes read so far are available.
    fn failed(&self, cause: io::Error) -> Failure {
        let Some(packing) = self.input.packing().filter(|_| cause.raw_os_error().is_none()) else {
            return Failure::System(cause);
        };
        let cause = match cause.kind() {
            io::ErrorKind::UnexpectedEof => format!("the file is truncated: its {packing} data has no end"),
            _ => format!("the file is damaged: cannot decompress its {packing} data: {cause}"),
        };
        let is_torn = self.skipped.is_none() && !self.buffer.is_empty();
        let most = self.buffer.len().min(self.manner.record_max);
        Failure::Damaged(Flaw { at: self.offset, bytes: is_torn.then(|| self.buffer[..most].to_vec()), cause })
    }

    /// Finds the complete records. Returns where the current one begins.
    fn cut(&mut self, ranges: &mut Vec<Range<usize>>) -> io::Result<usize> {
        let mut begin = 0;
        loop {
            if begin == self.scanned && self.skipped.is_none() {
                self.leave_out_gap();
                begin = self.scanned;
            }
            match self.search() {
                Found::Nothing => return Ok(begin),
                Found::NoRecord => {}
                Found::Record => {
                    if self.end_record(begin..self.scanned, ranges)? {
                        return Ok(0);
                    }
                }
            }
            begin = self.scanned;
        }
    }

    /// Skips zeros at the beginning of a record, which are not part of it.
    fn leave_out_gap(&mut self) {
        if self.manner.contents == Contents::Raw || self.scanned == self.buffer.len() {
            return;
        }
        let zeros = gap::zeros(&self.buffer[self.scanned..]);
        self.gap.extend(self.offset + self.scanned as u64, zeros as u64);
        self.scanned += zeros;
        if self.scanned < self.buffer.len() {
            self.gap.end(&self.path);
        }
    }

    /// Searches for the end of the current record.
    fn search(&mut self) -> Found {
        let is_last = self.is_done() && self.ending == Ending::AsItStands;
        while self.scanned < self.buffer.len() {
            if self.filled <= self.scanned {
                self.filled = self.next_zero();
            }
            if let Some(len) = self.cutter.end_in(&self.buffer[self.scanned..self.filled]) {
                self.scanned += len;
                return Found::Record;
            }
            self.scanned = self.filled;
            let rest = &self.buffer[self.scanned..];
            let zeros = gap::zeros(rest);
            if zeros >= gap::WITHIN_MIN {
                let is_record = self.skipped.is_some() || self.cutter.is_record_at_end();
                self.cutter = Cutter::new(self.manner.framing);
                return if is_record { Found::Record } else { Found::NoRecord };
            }
            if zeros > 0 && zeros == rest.len() && !is_last {
                // More zeros may follow.
                return Found::Nothing;
            }
            self.cutter.end_in(&rest[..zeros]);
            self.scanned += zeros;
        }
        Found::Nothing
    }

    fn next_zero(&self) -> usize {
        let end = self.buffer.len();
        match self.manner.contents {
            Contents::Text => memchr(0, &self.buffer[self.scanned..]).map_or(end, |at| self.scanned + at),
            Contents::Raw => end,
        }
    }

    /// Ends a record, the rest of a skipped one, or the header. Returns whether reading continues
    /// at another offset.
    fn end_record(&mut self, range: Range<usize>, ranges: &mut Vec<Range<usize>>) -> io::Result<bool> {
        if let Some(skipped) = self.skipped.take() {
            // The end of a header that is too long is not a header either.
            self.say_left_out(skipped + range.len() as u64);
        } else if self.is_header_due() {
            let end = self.offset + range.end as u64;
            self.take_header(range);
            if self.resume_at > end {
                self.cutter = Cutter::new(self.manner.framing);
                self.go_to(self.resume_at)?;
                return Ok(true);
            }
        } else {
            self.look_at_length(range.clone());
            ranges.push(range);
        }
        Ok(false)
    }

    /// Notes a record that the worker will cut because it is too long: its file is not done.
    fn look_at_length(&mut self, range: Range<usize>) {
        let most = self.manner.record_max;
        if range.len() > most {
            let len = reader::content(self.manner.framing, &self.buffer[range]).1.len();
            if len > most {
                self.note_cut();
                self.say_left_out((len - most) as u64);
            }
        }
    }

    /// Takes the rest of the buffer as the last record, because nothing follows it.
    fn take_last(&mut self, begin: usize, ranges: &mut Vec<Range<usize>>) -> usize {
        let range = begin..self.buffer.len();
        if let Some(skipped) = self.skipped.take() {
            self.say_left_out(skipped + range.len() as u64);
        } else if !range.is_empty() && self.cutter.is_record_at_end() {
            if self.is_header_due() {
                self.take_header(range);
            } else {
                self.look_at_length(range.clone());
                ranges.push(range);
            }
        }
        self.buffer.len()
    }

    fn take_header(&mut self, range: Range<usize>) {
        if let Framing::Csv { delimiter, .. } = self.manner.framing {
            self.progress.header = Some(Arc::new(format::header(&self.buffer[range], delimiter)));
        }
    }

    /// Takes the first `len` bytes out of the buffer as a block.
    fn block_until(&mut self, len: usize, ranges: Vec<Range<usize>>) -> Block {
        let rest = self.buffer.split_off(len);
        let mut bytes = mem::replace(&mut self.buffer, rest);
        let offset = self.offset;
        self.scanned -= len;
        self.offset += len as u64;
        self.progress.hand(&bytes, self.offset);
        if ranges.is_empty() {
            bytes = Vec::new();
        }
        Block {
            path: self.path.clone(),
            content: Content::Records(Records {
                bytes,
                offset,
                ranges,
                header: self.progress.header.clone(),
                modified: self.modified,
            }),
            position: Some((self.partition.clone(), Offset(self.offset))),
            arrived: Moment::default(),
        }
    }

    /// Reports a record that is too long as malformed at once, with its beginning. The offset moves
    /// only when its end is found, so that a later run does not begin in the middle of it.
    fn leave_out_what_is_too_long(&mut self, hand: &mut impl FnMut(Block)) {
        let most = self.manner.record_max;
        let is_marked = self.offset == 0 && self.buffer.starts_with(BYTE_ORDER_MARK);
        // It may still be short enough, if it ends with a line ending of two bytes.
        let beside = 2 + if is_marked { BYTE_ORDER_MARK.len() } else { 0 };
        if self.skipped.is_none() && self.buffer.len() > most.saturating_add(beside) {
            let bytes = Some(self.buffer[..most].to_vec());
            let flaw = Flaw { at: self.offset, bytes, cause: too_long(most) };
            hand(Block::flaw(&self.path, flaw));
            self.note_cut();
            if self.is_header_due() {
                // With a header without columns every row is malformed and its cause says why.
                self.progress.header = Some(Arc::new(Header(Default::default())));
                self.resume_at = self.offset;
            }
            self.offset += most as u64;
            self.buffer.drain(..most);
            self.skipped = Some(0);
        }
        if let Some(skipped) = &mut self.skipped {
            *skipped += self.buffer.len() as u64;
            self.offset += self.buffer.len() as u64;
            self.buffer.clear();
            self.scanned = 0;
        }
    }

    fn note_cut(&self) {
        self.manner.cut.note(&self.partition);
    }

    fn say_left_out(&self, bytes: u64) {
        let record_max = self.manner.record_max;
        tracing::warn!(file = self.path.name(), bytes, record_max, "skipped the rest of a record that is too long");
    }
}

/// What a search found.
enum Found {
    Record,
    /// The end of something that does not count as a record.
    NoRecord,
    Nothing,
}
