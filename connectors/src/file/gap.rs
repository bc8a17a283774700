//! Holes of zeros in text. A log that is copied and then cut (`copytruncate`) under a writer that does not append goes on
//! where that writer stands, and what lies before it reads as zeros; so does what a machine had not written when its power
//! failed. A hole is no part of any record.

use std::fs::File;

use millstream::Partition;

/// A hole at the beginning of a record may have any length; zeros within one are a hole when there are so many.
pub(super) const WITHIN_LEAST: usize = 64;
/// Where a hole is as long as this the file system is asked where it ends.
const ASK_FROM: u64 = 4 << 10;

/// A hole that is being left out.
#[derive(Debug, Default)]
pub(super) struct Gap {
    at: u64,
    len: u64,
}

impl Gap {
    /// So many zeros at that offset belong to it.
    pub(super) fn extend(&mut self, at: u64, len: u64) {
        if self.len == 0 {
            self.at = at;
        }
        self.len += len;
    }

    /// Something else follows, or nothing.
    pub(super) fn end(&mut self, path: &Partition) {
        let Gap { at, len: bytes } = std::mem::take(self);
        if bytes > 0 {
            tracing::warn!(file = path.name(), at, bytes, "left out a hole of zeros");
        }
    }

    /// Where the data behind it begin, when the file system knows of nothing but zeros before.
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
        // There is nothing but zeros behind it.
        Err(rustix::io::Errno::NXIO) => Some(u64::MAX),
        Err(_) => None,
    }
}

#[cfg(not(target_os = "linux"))]
fn next_data(_: &File, _: u64) -> Option<u64> {
    None
}

/// How many zeros the bytes begin with.
pub(super) fn zeros(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| **byte == 0).count()
}
