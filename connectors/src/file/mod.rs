//! Files of a directory as a source of lines, JSON or CSV: each file is read once, while files are
//! added and grow.
//!
//! ```text
//! connect ─ checks, first look      close ─ waits for the thread
//!    │                                │
//! feed (a thread) ──look──▶ tasks ──reading──▶ blocks ──▶ ahead ──▶ readers (workers) ──▶ records
//!    ▲                                                      │
//!    └── done: deleted, moved ◀── committed offsets ◀───────┘
//! ```
//!
//! One thread looks at the directory and cuts the contents of the files into *blocks* of whole
//! records; workers decode them. It is a separate thread because a file on a network may block for
//! long, and a single one because cutting is cheap compared with decoding. What it reads ahead is
//! bounded; a worker that has enough does not hold up the others.
//!
//! A partition is a file: its path and its identity, so that a new file with an old name is another
//! partition. Offsets count bytes and always lie between two records; in a compressed file they
//! count decompressed bytes.

mod ahead;
mod block;
mod content;
mod cut;
mod done;
mod feed;
mod gap;
mod input;
mod look;
mod progress;
mod reader;
mod reading;
mod source;
mod watch;

pub use done::WhenDone;
pub use look::FileOrder;
pub use reader::{Values, WithOrigin};
pub use source::FileRecords;

use std::path::PathBuf;
use std::time::Duration;

use millstream::ByteSize;

use crate::format::{Csv, Decode, Json, Text};

use look::{Links, Reach, Temporary};
use reading::Contents;

/// Reads the files of a directory for as long as the job runs: files that exist, files that are
/// moved in, and what is appended. Choose a format to make it a source. Under
/// [`Trigger::AvailableNow`](millstream::Trigger::AvailableNow) the run ends with what existed when
/// it began.
///
/// Subdirectories are entered when [`matching`](Files::matching) says so. Names that begin with `.`
/// or `_`, and names that uploaders and editors give to unfinished files, are skipped, so that a
/// writer can finish a file under such a name and then rename it; see
/// [`include_temporary`](Files::include_temporary).
///
/// ```
/// use millstream::{collect, Job, Trigger};
/// use millstream_connectors::{WhenDone, files};
/// use serde::Deserialize;
///
/// #[derive(Clone, Debug, PartialEq, Deserialize)]
/// struct Order { customer: String, cents: i64 }
///
/// # let directory = tempfile::tempdir().unwrap();
/// # let (directory, results) = (directory.path().to_owned(), collect());
/// # let sink = results.clone();
/// std::fs::write(directory.join("one.csv"), "customer,cents\nada,70\n\"b, c\",80\n").unwrap();
/// let job = Job::new("orders", move |flow| {
///     let orders = files(&directory).matching("*.csv").when_done(WhenDone::Delete).csv::<Order>();
///     flow.source(orders)?.or_stop().sink(&sink)
/// });
/// job.trigger(Trigger::AvailableNow).run()?;
/// assert_eq!(results.values()[1], Order { customer: "b, c".to_owned(), cents: 80 });
/// # Ok::<(), millstream::Error>(())
/// ```
///
/// # Each record once
///
/// Within a process each file is read once, also across the runs of a
/// [restart](millstream::Job::restart): a new run resumes at the committed offsets, so the records
/// in flight at the failure are read again and none is lost. A new process does not know what was
/// read before, and reads all files it finds. To avoid that, use [`when_done`](Files::when_done): a
/// file is deleted or moved away when every output of its records is acknowledged, so it is not
/// found again.
///
/// # What a file is
///
/// A file's contents, not its name, decide how it is read:
///
/// * Files compressed with gzip or zstd are decompressed, also those of several members or frames.
///   Offsets, such as that of [`Malformed::origin`](millstream::Malformed::origin), count
///   decompressed bytes. Decompression takes memory in addition to that of the
///   [job](millstream::Job::memory): for zstd the window of the file, up to 128 MiB per worker. A
///   compressed file that is still being written is read on once it has not changed for
///   [`settled_after`](Files::settled_after). If it is truncated or damaged, a single
///   [`Malformed`](millstream::Malformed) follows the records before that point; the file is never
///   deleted or moved, and is tried again when it has changed.
/// * A file that is not text, such as an archive, an image, or text in UTF-16, is one `Malformed`
///   without bytes. It is not read, and never deleted or moved.
/// * A hole of zeros is skipped, and an event reports it. A log has one when it was copied and
///   truncated (`copytruncate`) under a writer that does not append. The record after the hole is
///   whole; an unfinished record before it is a record as it is. Within a record 64 zeros or more
///   are a hole; fewer are part of the record.
/// * A UTF-8 byte order mark at the beginning of a file is not part of its first record.
///
/// [`raw`](Files::raw) reads all of these as they are, for formats that are not text.
///
/// # Order
///
/// Each file belongs to one worker, which reads its records in order. Files found by the same look
/// at the directory are read in the given [`order`](Files::order), and files found by a later look
/// after them. With several workers each reads its own files in that order; only with one worker
/// does the order hold across all files.
///
/// # Files that change
///
/// * A file that grows is read on, in whole records. A last line without its end waits until it is
///   complete, or until the file has not changed for [`settled_after`](Files::settled_after), or is
///   taken as it is when a bounded run ends. What is appended to a line that was taken as it was is
///   a record of its own.
/// * A file that is deleted before it is opened is skipped. A file that is deleted or replaced
///   later is read until it has not changed for [`settled_after`](Files::settled_after), because
///   the writer of a rotated log may continue to write it for a moment. This applies to up to 128
///   files held open, of which half may be settled ones.
/// * A file that was read to its end and has settled may be replaced or overwritten: that is a new
///   file. When it happens earlier, a [`Malformed`](millstream::Malformed) reports it, and the new
///   contents are read from the beginning.
/// * A file is identified by its name: a file that is renamed within the directory is a new one,
///   except for temporary names. Use [`matching`](Files::matching) to exclude the names that
///   rotated logs get. A file that is moved away and back within ten minutes is read on where it
///   was; after that it may be read again.
/// * Files are distinguished by inode and birth time, and a file that is overwritten in place by
///   the last 256 bytes that were read of it; after a restart, by its length alone. On a file
///   system without birth times (some network file systems) a restart reads all files again.
/// * A file that cannot be read is one `Malformed` without bytes, and is tried again for as long as
///   the run lasts.
///
/// `Malformed::origin` is the path of the file and the offset where the record begins.
///
/// # If you come from Spark
///
/// | Spark | here |
/// |---|---|
/// | `textFileStream`, `format("text")`, `"json"`, `"csv"` | [`lines`](Files::lines), [`json`](Files::json), [`csv`](Files::csv) |
/// | `pathGlobFilter` | [`matching`](Files::matching) |
/// | `recursiveFileLookup` | a glob with `**` |
/// | `latestFirst`, oldest first by default | [`order`](Files::order), oldest first by default; there is no latest first |
/// | `cleanSource`, `sourceArchiveDir` | [`when_done`](Files::when_done), at the commit and not some batches later |
/// | `maxFilesPerTrigger`, `maxBytesPerTrigger` | not needed: memory is bounded whatever a batch holds |
/// | files must be complete when they appear | they may grow |
/// | `mode`, `columnNameOfCorruptRecord` | [`Malformed`](millstream::Malformed) |
/// | remembers across processes what was read | not yet: use `when_done` |
pub fn files(directory: impl Into<PathBuf>) -> Files {
    Files {
        directory: directory.into(),
        matching: None,
        order: FileOrder::default(),
        reach: Reach { temporary: Temporary::LeftOut, links: Links::Within },
        contents: Contents::Text,
        record_max: ByteSize::mebibytes(1),
        look_every: Duration::from_millis(200),
        settled_after: Duration::from_secs(1),
        when_done: WhenDone::default(),
        when_cut: WhenDone::default(),
    }
}

/// The files of a directory and how they are read; see [`files`].
#[derive(Clone, Debug)]
#[must_use = "files are not read until they have a format and a pipeline reads them"]
pub struct Files {
    directory: PathBuf,
    matching: Option<String>,
    order: FileOrder,
    reach: Reach,
    contents: Contents,
    record_max: ByteSize,
    look_every: Duration,
    settled_after: Duration,
    when_done: WhenDone,
    when_cut: WhenDone,
}

impl Files {
    /// Reads only files whose whole name matches a glob, such as `*.json` or `{2024,2025}-*.csv`.
    ///
    /// A glob with a `/` or a `**` matches paths below the directory, and subdirectories are
    /// entered: `**/*.json` reads JSON at any depth, `2025/*/*.json` one level below `2025`. Links
    /// to directories are not followed.
    pub fn matching(self, glob: impl Into<String>) -> Files {
        Files { matching: Some(glob.into()), ..self }
    }

    /// In which order files found at the same time are read; [`FileOrder::Modified`] by default.
    pub fn order(self, order: FileOrder) -> Files {
        Files { order, ..self }
    }

    /// Also reads files whose names begin with `.` or `_`, or end with `.part`, `.filepart`,
    /// `.tmp`, `._COPYING_`, `~` or `.crdownload`, and enters directories with such names. They are
    /// skipped by default, because their writers rename them when they are complete. A file that is
    /// renamed by dropping the temporary prefix or ending is read on and not read again.
    pub fn include_temporary(self) -> Files {
        Files { reach: Reach { temporary: Temporary::Read, ..self.reach }, ..self }
    }

    /// Follows links to files wherever they point. By default a link out of the directory is a
    /// [`Malformed`](millstream::Malformed) without bytes: otherwise a user who may write to the
    /// directory could have the job read any file that the job may read.
    pub fn follow_links(self) -> Files {
        Files { reach: Reach { links: Links::Anywhere, ..self.reach }, ..self }
    }

    /// Reads every file as the bytes it contains: nothing is decompressed, zeros are part of
    /// records, and no file is refused for its contents. For formats that are not text.
    pub fn raw(self) -> Files {
        Files { contents: Contents::Raw, ..self }
    }

    /// The longest record that is accepted, 1 MiB by default. The length is that of its bytes in
    /// the file, without the line ending (`\n` or `\r\n`) and without a byte order mark before it;
    /// a row of CSV counts with its quotes.
    ///
    /// The beginning of a longer record is kept as malformed, and the rest is skipped as it is
    /// read: an event reports how many bytes, and the file is not [done](Files::when_cut). A CSV
    /// quote that is never closed makes everything after it one record.
    pub fn record_max(self, most: ByteSize) -> Files {
        Files { record_max: most, ..self }
    }

    /// How often the source looks at the directory, every 200 ms by default. If a look takes long
    /// because the directory is large, looks become less frequent: they take no more than a tenth
    /// of the time.
    pub fn look_every(self, interval: Duration) -> Files {
        Files { look_every: interval, ..self }
    }

    /// How long a file must not have changed before its last line is taken without an end, and
    /// before the file is [done](Files::when_done); 1 s by default.
    pub fn settled_after(self, pause: Duration) -> Files {
        Files { settled_after: pause, ..self }
    }

    /// What happens to a file that is done; [`WhenDone::Keep`] by default. A file is done when it
    /// was read to its end, has settled, and every output of its records, malformed ones included,
    /// is acknowledged. A file of which something was not read is not done; for a file with a
    /// record that was cut, see [`when_cut`](Files::when_cut).
    ///
    /// A bounded run waits at its end until files that changed a moment ago have settled. A file
    /// that changes during that wait stays, and a later run reads it again. Writers must not append
    /// to a file that is done: what they write at that very moment may be lost.
    pub fn when_done(self, when_done: WhenDone) -> Files {
        Files { when_done, ..self }
    }

    /// What happens to a file with a record that was cut because it was longer than
    /// [`record_max`](Files::record_max), when it is otherwise done; [`WhenDone::Keep`] by default,
    /// whatever [`when_done`](Files::when_done) says, because the skipped bytes exist only in the
    /// file.
    pub fn when_cut(self, when_cut: WhenDone) -> Files {
        Files { when_cut, ..self }
    }

    /// Reads lines of UTF-8 text, without their line endings: `Result<String, Malformed>`.
    pub fn lines(self) -> FileRecords<Values<Text>> {
        self.format(Text)
    }

    /// Reads one JSON value per line, typed by serde: `Result<T, Malformed>`. Empty lines are
    /// skipped.
    pub fn json<T>(self) -> FileRecords<Values<Json<T>>> {
        FileRecords::new(self, Values(Json::new()))
    }

    /// Reads rows of CSV, typed by serde: `Result<T, Malformed>`. The first row of each file names
    /// its columns. For files without such a row, or with another delimiter, use the options of the
    /// format: `format(Csv::<T>::new().delimiter(b';').without_header())`, see [`Csv`].
    pub fn csv<T>(self) -> FileRecords<Values<Csv<T>>> {
        FileRecords::new(self, Values(Csv::new()))
    }

    /// Reads records in a format of your own, cut by its [`framing`](Decode::framing), by default
    /// into lines.
    pub fn format<F: Decode>(self, format: F) -> FileRecords<Values<F>> {
        FileRecords::new(self, Values(format))
    }
}
