//! How records are separated in a file, and the header row that may name their columns.

use csv::ByteRecord;

/// How records of a format are separated in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Framing {
    /// Each record is a line. The line ending, `\n` or `\r\n`, is not part of the record.
    #[default]
    Lines,
    /// As [`Lines`](Framing::Lines), but lines of only white space are skipped.
    FilledLines,
    /// Rows of CSV, whose quoted fields may contain line endings. Empty lines are skipped.
    Csv {
        /// The separator between fields.
        delimiter: u8,
        /// How the fields of a row are matched to columns.
        columns: Columns,
    },
}

/// How the fields of a row are matched to columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Columns {
    /// By the names in the first row of each file.
    #[default]
    ByName,
    /// By their order; there is no header.
    ByOrder,
}

impl Framing {
    /// Whether the first record of a file is its header.
    #[cfg(feature = "files")]
    pub(crate) fn has_header(self) -> bool {
        matches!(self, Framing::Csv { columns: Columns::ByName, .. })
    }
}

/// The first row of a file: the names of its columns.
#[derive(Clone, Debug)]
pub struct Header(pub(crate) ByteRecord);
