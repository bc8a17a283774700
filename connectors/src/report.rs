//! A job's report as JSON lines.

use std::io::{self, Write};

use millstream::Report;

/// Writes the report as one line of JSON: durations in nanoseconds, everything else as its field says.
///
/// # Errors
/// When `writer` does not take it.
pub fn write_line(report: &Report, writer: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *writer, report)?;
    writer.write_all(b"\n")
}
