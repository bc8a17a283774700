//! How records stand in a file one after another, and the first row that may name their columns.

use csv::ByteRecord;

/// How records of a format follow each other in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Framing {
    /// Each on a line of its own. The end of the line, `\n` or `\r\n`, is no part of it.
    #[default]
    Lines,
    /// As [`Lines`](Framing::Lines); a line of nothing but white space is no record.
    FilledLines,
    /// As rows of CSV, whose quoted fields may hold ends of lines. Empty lines are no rows.
    Csv {
        /// What stands between two fields.
        delimiter: u8,
        /// How a row's fields are told apart.
        columns: Columns,
    },
}

/// How the fields of a row are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Columns {
    /// By the names that the first row of each file gives them.
    #[default]
    ByName,
    /// By their order; there is no header.
    ByOrder,
}

impl Framing {
    /// Whether the first record of a file is its header.
    pub(crate) fn has_header(self) -> bool {
        matches!(self, Framing::Csv { columns: Columns::ByName, .. })
    }
}

/// The first row of a file: the names of its columns.
#[derive(Clone, Debug)]
pub struct Header(pub(crate) ByteRecord);
