//! Holes of zeros in text. When a log is copied and then truncated (`copytruncate`) under a writer
//! that does not append, the writer continues at its old offset, and everything before that reads
//! as zeros. So does data that a machine had not written when its power failed. A hole is not part
//! of any record.

use std::fs::File;

use millstream::connector::Partition;

/// The least number of zeros within a record that are a hole. A hole at the beginning of a record
/// may have any length.
pub(super) const WITHIN_MIN: usize = 64;
/// From this length on, the file system is asked where a hole ends.
const ASK_FROM: u64 = 4 << 10;

/// A hole that is being skipped.
#[derive(Debug, Default)]
pub(super) struct Gap {
    at: u64,
    len: u64,
}

impl Gap {
    /// Adds `len` zeros at the offset `at`.
    pub(super) fn extend(&mut self, at: u64, len: u64) {
        if self.len == 0 {
            self.at = at;
        }
        self.len += len;
    }

    /// Ends the hole, if there is one, and logs it.
    pub(super) fn end(&mut self, path: &Partition) {
        let Gap { at, len: bytes } = std::mem::take(self);
        if bytes > 0 {
            tracing::warn!(file = path.name(), at, bytes, "skipped a hole of zeros");
        }
    }

    /// Where the data after the hole begin, if the file system knows that there are only zeros
    /// before them.
    pub(super) fn data(&self, file: &File, offset: u64, until: u64) -> Option<u64> {
        if self.len < ASK_FROM {
            return None;
        }
        let data = next_data(file, offset)?.min(until);
        (data > offset).then_some(data)
    }
}

#[cfg(target_os = "linux")]
fn next_data(file: &File, offset: u64) -> Option<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => Some(data),
        // Only zeros follow.
        Err(rustix::io::Errno::NXIO) => Some(u64::MAX),
        Err(_) => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn next_data(_: &File, _: u64) -> Option<u64> {
    None
}

/// The number of zeros at the beginning.
pub(super) fn zeros(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| **byte == 0).count()
}
