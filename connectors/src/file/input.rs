//! The input of a turn: a file as it is, or its decompressed contents, which can only be read
//! forwards.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use super::content::{HEAD, Kind, Packing};
use super::progress::Form;

pub(super) struct Input {
    file: File,
    /// The file is read up to this offset.
    until: u64,
    unpacking: Option<Unpacking>,
}

struct Unpacking {
    packing: Packing,
    stream: Box<dyn Read + Send>,
    /// The number of bytes to skip, because an earlier turn has read them.
    to_skip: u64,
}

/// The result of one step of skipping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skipped {
    Some,
    /// The contents ended before everything was skipped.
    Everything,
}

/// The most chunks that are skipped in one step, so that other files get their turn.
const SKIPPED_MAX: usize = 16;

impl Input {
    /// Begins at the beginning of the file.
    pub(super) fn new(file: File, until: u64, form: Form) -> io::Result<Input> {
        let unpacking = match form {
            Form::Packed { packing, .. } => {
                Some(Unpacking { packing, stream: packing.unpack(file.try_clone()?, until)?, to_skip: 0 })
            }
            Form::Plain | Form::Unknown => None,
        };
        Ok(Input { file, until, unpacking })
    }

    pub(super) fn packing(&self) -> Option<Packing> {
        self.unpacking.as_ref().map(|unpacking| unpacking.packing)
    }

    /// The file, if it is read as it is.
    pub(super) fn plain(&self) -> Option<&File> {
        self.unpacking.is_none().then_some(&self.file)
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }

    /// Continues at `offset`, coming from `at`. In decompressed contents `offset` is not before
    /// `at`.
    pub(super) fn go_to(&mut self, at: u64, offset: u64) -> io::Result<()> {
        match &mut self.unpacking {
            None => self.file.seek(SeekFrom::Start(offset)).map(drop),
            Some(unpacking) => {
                unpacking.to_skip = offset - at;
                Ok(())
            }
        }
    }

    /// The number of bytes after `at`; `u64::MAX` if it is unknown.
    pub(super) fn left(&self, at: u64) -> u64 {
        match self.unpacking {
            None => self.until.saturating_sub(at),
            Some(_) => u64::MAX,
        }
    }

    /// Whether bytes have to be skipped before reading can continue.
    pub(super) fn is_behind(&self) -> bool {
        self.unpacking.as_ref().is_some_and(|unpacking| unpacking.to_skip > 0)
    }

    /// Skips some chunks and returns, so that the thread can do something else.
    pub(super) fn skip(&mut self, chunk: usize) -> io::Result<Skipped> {
        let mut nowhere = vec![0; chunk];
        for _ in 0..SKIPPED_MAX {
            let Some(unpacking) = self.unpacking.as_mut().filter(|unpacking| unpacking.to_skip > 0) else { break };
            let want = unpacking.to_skip.min(chunk as u64) as usize;
            match read(&mut unpacking.stream, &mut nowhere[..want])? {
                0 => return Ok(Skipped::Everything),
                got => unpacking.to_skip -= got as u64,
            }
        }
        Ok(Skipped::Some)
    }

    /// Reads once; zero bytes mean the end.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.unpacking {
            None => read(&mut self.file, into),
            Some(unpacking) => read(&mut unpacking.stream, into),
        }
    }

    /// Checks the beginning of decompressed contents.
    ///
    /// # Errors
    /// When they are not text either; the error says what they are.
    pub(super) fn look_at(&self, begin: &[u8]) -> Result<(), &'static str> {
        if self.unpacking.is_none() {
            return Ok(());
        }
        match Kind::of(&begin[..begin.len().min(HEAD)], true) {
            Kind::Text | Kind::Open => Ok(()),
            Kind::Packed(_) => Err("is compressed twice"),
            Kind::Foreign(what) => Err(what),
        }
    }
}

fn read(from: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            got => return got,
        }
    }
}
