//! Results on standard output, for looking at.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};

use comfy_table::{Table, presets};
use millstream::{
    Accepted, Batch, Bytes, Delivery, Error, ErrorKind, OpenSink, Result, SharedSink, Sink, SinkMeter, Wake, Worker,
    Writer,
};
use serde::Serialize;
use serde_json::Value;

use crate::lock;

/// A sink that prints each record on a line of standard output.
pub fn console() -> Console {
    Console { first: None }
}

/// See [`console`].
#[derive(Clone, Debug)]
pub struct Console {
    first: Option<u64>,
}

impl Console {
    /// Prints only the first so many records of a run; the others are dropped, and count as done.
    #[must_use]
    pub fn first(self, records: u64) -> Console {
        Console { first: Some(records) }
    }

    /// Prints tables instead: one for what reaches the sink together, with a column for each field of a record. Under
    /// micro-batches that is a batch, or a part of it.
    #[must_use]
    pub fn table(self) -> ConsoleTable {
        ConsoleTable(self)
    }
}

/// A console that prints tables; see [`Console::table`].
#[derive(Clone, Debug)]
pub struct ConsoleTable(Console);

/// What the writers of a console share.
#[derive(Debug)]
pub struct ConsoleShared {
    /// How many records of the run may still be printed, when not all.
    left: Mutex<Option<u64>>,
    meter: Arc<SinkMeter>,
}

impl SharedSink for ConsoleShared {}

impl ConsoleShared {
    fn new(console: &Console, open: OpenSink) -> ConsoleShared {
        ConsoleShared { left: Mutex::new(console.first), meter: open.meter }
    }

    /// Adds a record to the fingerprint of a run that is compared with others, printed or not.
    fn note(&self, text: impl FnOnce() -> String) {
        if let Some(fingerprint) = self.meter.fingerprint() {
            fingerprint.add(&text());
        }
    }

    /// How many of so many records are printed.
    fn admit(&self, records: usize) -> usize {
        match &mut *lock(&self.left) {
            None => records,
            Some(left) => {
                let now = records.min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= now as u64;
                now
            }
        }
    }
}

fn cannot(cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Sink, "cannot write to standard output").caused_by(cause)
}

impl<T: fmt::Display + 'static> Sink<T> for Console {
    type Shared = ConsoleShared;
    type Writer = ConsoleWriter;

    fn name(&self) -> String {
        "console".to_owned()
    }

    fn connect(self, open: OpenSink) -> Result<ConsoleShared> {
        Ok(ConsoleShared::new(&self, open))
    }

    fn writer(shared: &Arc<ConsoleShared>, _: Worker, _: Wake) -> Result<ConsoleWriter> {
        Ok(ConsoleWriter(Arc::clone(shared)))
    }
}

/// Prints lines.
#[derive(Debug)]
pub struct ConsoleWriter(Arc<ConsoleShared>);

impl<T: fmt::Display> Writer<T> for ConsoleWriter {
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted> {
        let (records, admitted) = (batch.len(), self.0.admit(batch.len()));
        let mut text = String::new();
        for record in batch.by_ref().take(admitted) {
            let line = record.to_string();
            self.0.note(|| line.clone());
            text.push_str(&line);
            text.push('\n');
        }
        batch.for_each(|record| self.0.note(|| record.to_string()));
        print(&text)?;
        delivery.acknowledge(records as u64, Bytes(text.len() as u64));
        Ok(Accepted::All)
    }
}

/// Whole batches are written at once, so that workers do not write into each other's lines.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(cannot)
}

impl<T: Serialize + 'static> Sink<T> for ConsoleTable {
    type Shared = ConsoleShared;
    type Writer = TableWriter;

    fn name(&self) -> String {
        "console".to_owned()
    }

    fn connect(self, open: OpenSink) -> Result<ConsoleShared> {
        Ok(ConsoleShared::new(&self.0, open))
    }

    fn writer(shared: &Arc<ConsoleShared>, _: Worker, _: Wake) -> Result<TableWriter> {
        Ok(TableWriter(Arc::clone(shared)))
    }
}

/// Prints tables.
#[derive(Debug)]
pub struct TableWriter(Arc<ConsoleShared>);

impl<T: Serialize> Writer<T> for TableWriter {
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted> {
        let (records, admitted) = (batch.len(), self.0.admit(batch.len()));
        let rows: serde_json::Result<Vec<Value>> = batch.by_ref().take(admitted).map(serde_json::to_value).collect();
        batch.for_each(|record| self.0.note(|| serde_json::to_value(&record).unwrap_or_default().to_string()));
        let rows = rows.map_err(|cause| {
            Error::new(ErrorKind::Malformed, "cannot make a row of a table of a record").caused_by(cause)
        })?;
        rows.iter().for_each(|row| self.0.note(|| row.to_string()));
        let text = if rows.is_empty() { String::new() } else { table(&rows) };
        print(&text)?;
        delivery.acknowledge(records as u64, Bytes(text.len() as u64));
        Ok(Accepted::All)
    }
}

/// A column for each field of the first record that has fields; what has none stands in a column `value`.
fn table(rows: &[Value]) -> String {
    let fields = rows.iter().find_map(Value::as_object);
    let columns: Vec<String> = fields.map_or_else(|| vec!["value".to_owned()], |row| row.keys().cloned().collect());
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let cells = |row: &Value| -> Vec<String> {
        match row.as_object() {
            Some(row) => columns.iter().map(|column| row.get(column).map_or_else(String::new, cell)).collect(),
            None => vec![cell(row)],
        }
    };
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(&columns).add_rows(rows.iter().map(cells));
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_column_for_each_field() {
        let rows = [serde_json::json!({"word": "to", "count": 2}), serde_json::json!({"word": "be", "count": null})];
        let text = table(&rows);
        assert!(["word", "count", "to", "2", "be"].iter().all(|part| text.contains(part)), "{text}");
        assert!(table(&[serde_json::json!(7)]).contains("value"));
    }

    #[test]
    fn no_more_than_the_first_are_printed() {
        let shared = ConsoleShared { left: Mutex::new(console().first(3).first), meter: Arc::default() };
        assert_eq!((shared.admit(2), shared.admit(2), shared.admit(2)), (2, 1, 0));
    }
}
