//! Results on standard output, to look at: a line for each record, a table for the records that
//! arrive together, or a numbered table for each batch (`batches`).

mod batches;
mod row;

use std::fmt;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};

use comfy_table::presets;
use millstream::connector::{Accepted, Batch, Delivery, Fingerprint, OpenSink, SharedSink, Wake, Worker, Writer};
use millstream::{ByteSize, Error, ErrorKind, Result, Sink};
use serde::Serialize;

use crate::lock;
use row::{Row, table};

pub use batches::ConsoleBatches;

/// A sink that prints each record on a line of standard output.
pub fn console() -> Console {
    Console { first: None, out: Out::default() }
}

/// A console that prints lines; see [`console`].
#[derive(Clone, Debug)]
#[must_use = "a sink prints nothing until a pipeline ends in it"]
pub struct Console {
    first: Option<u64>,
    out: Out,
}

impl Console {
    /// Prints only the first `records` records of a run. The others are dropped, but acknowledged.
    pub fn first(self, records: u64) -> Console {
        Console { first: Some(records), ..self }
    }

    /// Prints tables instead: one for the records that reach the sink together, with a column for
    /// each field. With micro-batches these are a batch or a part of it.
    pub fn table(self) -> ConsoleTable {
        ConsoleTable(self)
    }

    /// Prints each micro-batch as one table with its number and its first `rows` records, as
    /// Spark's console does; see [`ConsoleBatches`].
    pub fn each_batch(self, rows: usize) -> ConsoleBatches {
        ConsoleBatches::new(self, rows)
    }
}

/// Where a console prints: to standard output or, in tests, to memory.
#[derive(Clone, Debug, Default)]
struct Out(Option<Arc<Mutex<String>>>);

impl Out {
    /// Writes the text in one piece, so that workers do not write into each other's lines.
    fn print(&self, text: &str) -> Result<()> {
        if let Some(memory) = &self.0 {
            lock(memory).push_str(text);
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(cannot)
    }
}

/// A console that prints tables; see [`Console::table`].
#[derive(Clone, Debug)]
#[must_use = "a sink prints nothing until a pipeline ends in it"]
pub struct ConsoleTable(Console);

/// What the writers of a console share.
#[derive(Debug)]
pub struct ConsoleShared {
    /// How many records of the run may still be printed; `None` if all.
    left: Mutex<Option<u64>>,
    fingerprint: Option<Arc<Fingerprint>>,
    out: Out,
}

impl SharedSink for ConsoleShared {}

impl ConsoleShared {
    fn new(console: &Console, open: OpenSink) -> ConsoleShared {
        ConsoleShared { left: Mutex::new(console.first), fingerprint: open.fingerprint, out: console.out.clone() }
    }

    /// Adds a record, printed or not, to the fingerprint, if there is one.
    fn note(&self, text: impl FnOnce() -> String) {
        if let Some(fingerprint) = &self.fingerprint {
            fingerprint.add(&text());
        }
    }

    /// The row of a record that is printed.
    fn row<T: Serialize>(&self, record: &T) -> Result<Row> {
        let row = Row::of(record)?;
        self.note(|| row.text().to_owned());
        Ok(row)
    }

    /// Adds a record that is not printed to the fingerprint, if there is one.
    fn skip<T: Serialize>(&self, record: &T) -> Result<()> {
        if self.fingerprint.is_some() { self.row(record).map(drop) } else { Ok(()) }
    }

    /// How many of the next `records` records are printed.
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
        self.0.out.print(&text)?;
        delivery.acknowledge(records as u64, ByteSize(text.len() as u64));
        Ok(Accepted::All)
    }
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
        let rows: Result<Vec<Row>> = batch.by_ref().take(admitted).map(|record| self.0.row(&record)).collect();
        batch.try_for_each(|record| self.0.skip(&record))?;
        let rows = rows?;
        let text = if rows.is_empty() {
            String::new()
        } else {
            format!("{}\n", table(&rows).load_preset(presets::UTF8_BORDERS_ONLY))
        };
        self.0.out.print(&text)?;
        delivery.acknowledge(records as u64, ByteSize(text.len() as u64));
        Ok(Accepted::All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_column_for_each_field_in_its_order() {
        #[derive(Serialize)]
        struct Word {
            word: &'static str,
            count: Option<u64>,
        }
        let rows = [Word { word: "to", count: Some(2) }, Word { word: "be", count: None }];
        let rows: Vec<Row> = rows.iter().map(|word| Row::of(word).unwrap()).collect();
        let text = table(&rows).load_preset(presets::NOTHING).to_string();
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words, [vec!["word", "count"], vec!["to", "2"], vec!["be"]]);
        assert!(table(&[Row::of(&7).unwrap()]).to_string().contains("value"));
    }

    #[test]
    fn no_more_than_the_first_are_printed() {
        let shared =
            ConsoleShared { left: Mutex::new(console().first(3).first), fingerprint: None, out: Out::default() };
        assert_eq!((shared.admit(2), shared.admit(2), shared.admit(2)), (2, 1, 0));
    }
}
