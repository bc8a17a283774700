//! Files of a directory as a source: lines, JSON or CSV, each file once, while more of them come and grow.
//!
//! ```text
//! connect ─ checks, first look      close ─ waits for the thread
//!    │                                │
//! feed (a thread) ──look──▶ tasks ──reading──▶ blocks ──▶ ahead ──▶ reader (each worker) ──▶ records
//!    ▲                                                      │
//!    └── done: deleted, moved ◀── committed positions ◀─────┘
//! ```
//!
//! One thread looks at the directory and cuts what the files hold into *blocks* of whole records; workers decode them. It
//! is a thread because a file on a network may block for long, and one because cutting is cheap beside decoding. What it
//! has read ahead is bounded; a worker that has enough holds up no other.
//!
//! A partition is a file: its path and its identity, so that a new file of an old name is another partition. A position
//! is an offset in bytes, and always one between two records; of a compressed file, an offset in what it holds.

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
pub use reader::{FileReader, Values, WithOrigin};
pub use source::{FileRecords, FilesShared};

use std::path::PathBuf;
use std::time::Duration;

use millstream::Bytes;

use crate::format::{Csv, Decode, Json, Text};

use look::{Links, Reach, Temporary};
use reading::Contents;

/// The files of a directory, to be read as they come: what is there, what is moved in, and what is appended, for as long
/// as the job runs. Choose a format to make them a source. Under
/// [`Trigger::AvailableNow`](millstream::Trigger::AvailableNow) the run ends with what was there when it began.
///
/// Directories within it are entered when [`matching`](Files::matching) says so. Names that begin with `.` or `_`, and those
/// that uploaders and editors give to files that are not whole, are left out, so that a writer can finish a file under such a
/// name and then rename it; see [`include_temporary`](Files::include_temporary).
///
/// ```
/// use millstream::{Job, Trigger, collect};
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
/// Within a process each file is read once, also by runs that a [restart](millstream::Job::restart) begins: they go on
/// where the one before them committed, so the records in flight at that moment come again, and none is lost. A new process
/// knows of nothing that was read before, and reads all files it finds. For one that does not, use
/// [`when_done`](Files::when_done): a file that was deleted or moved away, which happens when every output of its records
/// is acknowledged, is not found again.
///
/// # What a file is
///
/// A file is read by what it is, and not by its name:
///
/// * Files that are compressed by gzip or zstd are unpacked, also those of several members or frames. Offsets, such as that
///   of [`Malformed::origin`](millstream::Malformed::origin), count what is unpacked. Unpacking takes memory beside that of the
///   [job](millstream::Job::memory): for zstd the window of the file, up to 128 MiB for each worker. One that is still being written is read
///   on when it has not changed for [`settled_after`](Files::settled_after). One that is cut short or damaged is a
///   [`Malformed`](millstream::Malformed), once, behind the records before that; it is never deleted or moved, and is tried
///   again when it has changed.
/// * What is not text, such as an archive, an image, or text in UTF-16, is a `Malformed` without bytes, once. It is not read,
///   and never deleted or moved.
/// * A hole of zeros is left out, as a log has it that was copied and cut (`copytruncate`) under a writer that does not append.
///   The record behind it is whole, and what stands before it within a record is one as it stands. Within a record 64 zeros
///   are a hole, and fewer are part of it. An event says so.
/// * A byte order mark of UTF-8 at the beginning of a file is no part of its first record.
///
/// [`raw`](Files::raw) takes all of these as they are, for formats that are not text.
///
/// # Order
///
/// Each file belongs to one worker, which reads its records in their order. The files that one look at the directory finds
/// are read in the [`order`](Files::order) asked for, those of the next look after them. With several workers each reads
/// its own files in that order; over all files it holds with one worker.
///
/// # Files that change
///
/// * A file that grows is read on, whole records at a time. A last line without its end waits until it is whole, or until
///   the file has not changed for [`settled_after`](Files::settled_after), or comes as it stands when the run ends with
///   what is there. What is appended to a line that was taken as it stood is a record of its own.
/// * A file that was deleted before it was opened is left out. One that is deleted, or replaced by another of its name, is
///   read on until it has not changed for [`settled_after`](Files::settled_after): whoever writes a log that is rotated hears
///   of it a moment later. That is for 128 files that are held open, of which half may be settled ones.
/// * A file that was read to its end and has settled may be replaced or written anew: that is a new file. When it happens
///   before, a [`Malformed`](millstream::Malformed) says so, and what stands there then is read from its beginning.
/// * A file is its name: one that is renamed within the directory is a new one, but for temporary names. Let [`matching`](Files::matching) leave
///   out the names that rotated logs get. One that is moved away and back is read on where it was,
///   for ten minutes at least.
/// * Files are told apart by inode and time of birth, and one that is written anew in place by the last 256 bytes that were
///   read of it; over a restart, by its length alone. Where a file system has no birth times (some network ones) a restart
///   reads all files again.
/// * A file that cannot be read is a `Malformed` without bytes, once, and is tried again for as long as the run lasts.
///
/// `Malformed::origin` is the path of the file, and where in it the record begins.
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
/// | files must be whole when they appear | they may grow |
/// | `mode`, `columnNameOfCorruptRecord` | [`Malformed`](millstream::Malformed) |
/// | what was read is remembered over processes | not yet: `when_done` |
pub fn files(directory: impl Into<PathBuf>) -> Files {
    Files {
        directory: directory.into(),
        matching: None,
        order: FileOrder::default(),
        reach: Reach { temporary: Temporary::LeftOut, links: Links::Within },
        contents: Contents::Text,
        record_max: Bytes::mebibytes(1),
        look_every: Duration::from_millis(200),
        settled_after: Duration::from_secs(1),
        when_done: WhenDone::default(),
        when_cut: WhenDone::default(),
    }
}

/// See [`files`].
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
    matching: Option<String>,
    order: FileOrder,
    reach: Reach,
    contents: Contents,
    record_max: Bytes,
    look_every: Duration,
    settled_after: Duration,
    when_done: WhenDone,
    when_cut: WhenDone,
}

impl Files {
    /// Reads only files whose whole name matches a glob, such as `*.json` or `{2024,2025}-*.csv`.
    ///
    /// A glob with a `/` or a `**` is one of paths below the directory, and directories are entered: `**/*.json` reads JSON at
    /// any depth, `2025/*/*.json` at one. Links to directories are not followed.
    #[must_use]
    pub fn matching(self, glob: impl Into<String>) -> Files {
        Files { matching: Some(glob.into()), ..self }
    }

    /// Which files come first of those that were found together; [`FileOrder::Modified`] by default.
    #[must_use]
    pub fn order(self, order: FileOrder) -> Files {
        Files { order, ..self }
    }

    /// Also reads files whose names begin with `.` or `_`, or end with `.part`, `.filepart`, `.tmp`, `._COPYING_`, `~` or
    /// `.crdownload`, and enters directories with such names. They are left out by default, because who writes them renames
    /// them when they are whole. A file that is renamed from such a name to what is left of it without that is read on and not
    /// read again.
    #[must_use]
    pub fn include_temporary(self) -> Files {
        Files { reach: Reach { temporary: Temporary::Read, ..self.reach }, ..self }
    }

    /// Follows links to files wherever they lead. By default one that leads out of the directory is a
    /// [`Malformed`](millstream::Malformed) without bytes: who may write to the directory could otherwise have the job read
    /// any file that the job may read.
    #[must_use]
    pub fn follow_links(self) -> Files {
        Files { reach: Reach { links: Links::Anywhere, ..self.reach }, ..self }
    }

    /// Takes every file as the bytes that it has: nothing is unpacked, zeros are part of records, and no file is refused for
    /// what it is. For formats that are not text.
    #[must_use]
    pub fn raw(self) -> Files {
        Files { contents: Contents::Raw, ..self }
    }

    /// The longest record that is taken, 1 MiB by default. What counts is its bytes as they are in the file, without the end
    /// of the line (`\n` or `\r\n`) and without a byte order mark before it; a row of CSV counts with its quotes.
    ///
    /// Of a longer one the beginning is kept as malformed, and the rest is left out as it is read: an event says how much that
    /// is, and the file is not [done](Files::when_cut). A quote of CSV that is never closed makes all that follows it one
    /// record.
    #[must_use]
    pub fn record_max(self, most: Bytes) -> Files {
        Files { record_max: most, ..self }
    }

    /// How often the directory is looked at, every 200 ms by default. One that is so large that a look takes long is looked
    /// at less often: looking takes no more than a tenth of the time.
    #[must_use]
    pub fn look_every(self, interval: Duration) -> Files {
        Files { look_every: interval, ..self }
    }

    /// How long a file must not have changed before its last line is taken without an end, and before it is
    /// [done](Files::when_done); 1 s by default.
    #[must_use]
    pub fn settled_after(self, pause: Duration) -> Files {
        Files { settled_after: pause, ..self }
    }

    /// What becomes of a file that was read to its end, has settled, and every output of whose records is acknowledged, also
    /// of the malformed ones; [`WhenDone::Keep`] by default. A file of which something was not read is not done; for one of
    /// which a record was cut there is [`when_cut`](Files::when_cut). A run that ends with what is there waits at its end
    /// until what changed a moment ago has settled; what changes then stays, and a later run reads it again. Writers must not
    /// append to a file any more when it is done: what is written at that very moment may be lost.
    #[must_use]
    pub fn when_done(self, when_done: WhenDone) -> Files {
        Files { when_done, ..self }
    }

    /// What becomes of a file of which a record was cut because it was longer than [`record_max`](Files::record_max), once it
    /// is done but for that; [`WhenDone::Keep`] by default, whatever [`when_done`](Files::when_done) says, because what was
    /// left out is nowhere but in the file.
    #[must_use]
    pub fn when_cut(self, when_cut: WhenDone) -> Files {
        Files { when_cut, ..self }
    }

    /// Lines of UTF-8 text, without their ends: `Result<String, Malformed>`.
    pub fn lines(self) -> FileRecords<Values<Text>> {
        self.format(Text)
    }

    /// A value of JSON on each line, typed by serde: `Result<T, Malformed>`. Empty lines are left out.
    pub fn json<T>(self) -> FileRecords<Values<Json<T>>> {
        FileRecords::new(self, Values(Json::new()))
    }

    /// Rows of CSV, typed by serde: `Result<T, Malformed>`. The first row of each file names its columns. For files without
    /// such a row, or with another delimiter, there are options of the format:
    /// `format(Csv::<T>::new().delimiter(b';').without_header())`, see [`Csv`].
    pub fn csv<T>(self) -> FileRecords<Values<Csv<T>>> {
        FileRecords::new(self, Values(Csv::new()))
    }

    /// Records in a format of your own: what its [`framing`](Decode::framing) cuts, by default lines.
    pub fn format<F: Decode>(self, format: F) -> FileRecords<Values<F>> {
        FileRecords::new(self, Values(format))
    }
}
