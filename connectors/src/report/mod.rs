//! Reports as JSON lines, and comparisons as JSON and as an HTML page with a plot.

#[cfg(feature = "page")]
mod page;

use std::io::{self, Write};

use millstream::{Comparison, Report};

#[cfg(feature = "page")]
pub use page::{page, plot};

/// Writes the report as one line of JSON: durations in nanoseconds, everything else as documented
/// on its field. The line goes to `writer` in one piece, so a program that follows a file sees
/// whole lines.
///
/// # Errors
/// When writing to `writer` fails.
pub fn write_line(report: &Report, writer: &mut impl Write) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    writer.write_all(&line)
}

/// A comparison as JSON: durations in nanoseconds, everything else as documented on its field.
pub fn json(comparison: &Comparison) -> String {
    serde_json::to_string_pretty(comparison).expect("a comparison is text and numbers")
}
