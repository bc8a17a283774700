//! Finds where records end in bytes that arrive in parts.

use csv_core::{ReadRecordResult, Reader};
use memchr::memchr;

use crate::format::{self, Framing};

/// Finds the ends of the records of one file. The parts that it is given may end anywhere.
#[derive(Debug)]
pub(super) enum Cutter {
    Lines,
    Rows(Box<Reader>),
}

impl Cutter {
    pub(super) fn new(framing: Framing) -> Cutter {
        match framing {
            Framing::Lines | Framing::FilledLines => Cutter::Lines,
            Framing::Csv { delimiter, .. } => Cutter::Rows(Box::new(format::parser(delimiter))),
        }
    }

    /// The number of bytes that belong to the current record, including its end; `None` when the
    /// record continues after them.
    pub(super) fn end_in(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Cutter::Lines => memchr(b'\n', bytes).map(|at| at + 1),
            Cutter::Rows(parser) => {
                // Only the end matters, so the fields are discarded.
                let (mut nowhere, mut ends, mut taken) = ([0; 1 << 10], [0; 1 << 6], 0);
                while taken < bytes.len() {
                    let (result, read, ..) = parser.read_record(&bytes[taken..], &mut nowhere, &mut ends);
                    taken += read;
                    if result == ReadRecordResult::Record {
                        // A row that ends with `\r` includes the `\n` after it.
                        let has_both = bytes[taken - 1] == b'\r' && bytes.get(taken) == Some(&b'\n');
                        return Some(taken + usize::from(has_both));
                    }
                }
                None
            }
        }
    }

    /// Whether the bytes since the last end, of which there is at least one, are a record when
    /// nothing follows.
    pub(super) fn is_record_at_end(&mut self) -> bool {
        match self {
            Cutter::Lines => true,
            Cutter::Rows(parser) => parser.read_record(&[], &mut [0], &mut [0]).0 == ReadRecordResult::Record,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Columns;

    const CSV: Framing = Framing::Csv { delimiter: b',', columns: Columns::ByName };

    /// The records of a text that comes in parts of `step` bytes.
    fn cut(framing: Framing, text: &str, step: usize) -> Vec<String> {
        let (mut cutter, mut records, mut record) = (Cutter::new(framing), Vec::new(), Vec::new());
        for mut part in text.as_bytes().chunks(step) {
            while let Some(len) = cutter.end_in(part) {
                record.extend_from_slice(&part[..len]);
                records.push(String::from_utf8(std::mem::take(&mut record)).unwrap());
                part = &part[len..];
            }
            record.extend_from_slice(part);
        }
        if !record.is_empty() && cutter.is_record_at_end() {
            records.push(String::from_utf8(record).unwrap());
        }
        records
    }

    #[track_caller]
    fn check(framing: Framing, records: &[&str]) {
        for step in 1..=records.concat().len() {
            assert_eq!(cut(framing, &records.concat(), step), records, "in parts of {step}");
        }
    }

    #[test]
    fn lines_are_cut_wherever_parts_end() {
        check(Framing::Lines, &["one\n", "\n", "two\r\n", "three"]);
        check(Framing::FilledLines, &["one\n", "\n", "two\n"]);
    }

    #[test]
    fn rows_are_cut_wherever_parts_end() {
        check(
            CSV,
            &["a,b\n", "\"two\nlines\",\"a \"\"b\"\"\r\n\"\n", "a\"b,c\n", "\nafter an empty line,x\n", "last,row"],
        );
        check(CSV, &["\u{feff}a,b\n", "1,\"never\nclosed\n1,2\n"]);
    }

    #[test]
    fn rows_may_end_with_carriage_returns() {
        assert_eq!(cut(CSV, "a,b\r\nc,d\r\n", 100), ["a,b\r\n", "c,d\r\n"]);
        // When a part ends between the two bytes, the second is an empty line before the next row.
        assert_eq!(cut(CSV, "a,b\r\nc,d\r\n", 4), ["a,b\r", "\nc,d\r\n"]);
        assert_eq!(cut(CSV, "a,b\rc,d", 1), ["a,b\r", "c,d"]);
    }

    #[test]
    fn what_is_wide_and_long_is_one_row() {
        let row = format!("{}\n", vec!["x".repeat(3_000); 200].join(","));
        assert_eq!(cut(CSV, &row, 1 << 16), [row]);
    }

    #[test]
    fn empty_lines_at_the_end_are_no_rows() {
        assert_eq!(cut(CSV, "a,b\n\n\n", 3), ["a,b\n"]);
        assert!(cut(CSV, "", 1).is_empty());
    }
}
