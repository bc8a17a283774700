//! A table for each micro-batch, with its number, as Spark's console prints it. The rows of a batch
//! from all workers are kept until its checkpoint is complete on all of them. Then they are printed
//! as one block, before any source commits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use comfy_table::CellAlignment;
use millstream::connector::{
    Accepted, Acknowledges, Batch, CheckpointId, Committed, Delivery, OpenSink, SharedSink, Wake, Worker, Writer,
};
use millstream::{ByteSize, Error, ErrorKind, Result, Sink};
use serde::Serialize;

use crate::lock;

use super::row::{Row, table_of};
use super::{Console, ConsoleShared};

/// A console that prints each micro-batch as one table; see [`Console::each_batch`].
///
/// ```text
/// -------------------------------------------
/// Batch: 0
/// -------------------------------------------
/// +----+-----+
/// |word|count|
/// +----+-----+
/// |  to|    2|
/// |  be|    1|
/// +----+-----+
/// only showing top 2 rows
///
/// ```
///
/// Columns are the fields of the batch's first record, or `value` when it has none. Cells of more
/// than 20 characters are cut, as in Spark; [`untruncated`](ConsoleBatches::untruncated) prints
/// them in full. Each batch is one block with any number of workers. The rows of a partition keep
/// their order; rows of several partitions are in order of arrival.
///
/// Numbers begin at 0 in each run, also in one that follows a failure. A batch without records for
/// the console is not printed, and its number is skipped.
///
/// With [`Continuous`](millstream::Trigger::Continuous) and `AvailableNow` a batch is the records
/// between two checkpoints, as in Spark's continuous mode: those of one second by default
/// ([`Job::checkpoint_every`](millstream::Job::checkpoint_every)).
///
/// A batch is acknowledged when it is printed, so its memory is freed only then. A batch that is
/// not finished when the job fails is printed by the run that reads it again.
#[derive(Clone, Debug)]
#[must_use = "a sink prints nothing until a pipeline ends in it"]
pub struct ConsoleBatches {
    console: Console,
    rows: usize,
    cells: Cells,
}

/// How cells are written.
#[derive(Clone, Copy, Debug)]
enum Cells {
    /// Right-aligned, at most 20 characters.
    Cut,
    /// Left-aligned, in full.
    Whole,
}

impl ConsoleBatches {
    pub(super) fn new(console: Console, rows: usize) -> ConsoleBatches {
        ConsoleBatches { console, rows, cells: Cells::Cut }
    }

    /// Prints cells in full, however long they are.
    pub fn untruncated(self) -> ConsoleBatches {
        ConsoleBatches { cells: Cells::Whole, ..self }
    }
}

/// What the writers of a console of batches share.
#[derive(Debug)]
pub struct BatchesShared {
    console: ConsoleShared,
    rows: usize,
    cells: Cells,
    open: Mutex<BTreeMap<CheckpointId, Block>>,
}

/// A batch that is not complete yet.
#[derive(Debug, Default)]
struct Block {
    rows: Vec<Row>,
    records: u64,
    deliveries: Vec<(Delivery, u64)>,
}

impl<T: Serialize + 'static> Sink<T> for ConsoleBatches {
    type Shared = BatchesShared;
    type Writer = BatchesWriter;

    fn name(&self) -> String {
        "console".to_owned()
    }

    fn connect(self, open: OpenSink) -> Result<BatchesShared> {
        if self.rows == 0 {
            return Err(Error::new(ErrorKind::Config, "`each_batch` must show at least one row"));
        }
        let ConsoleBatches { console, rows, cells } = self;
        Ok(BatchesShared { console: ConsoleShared::new(&console, open), rows, cells, open: Mutex::default() })
    }

    fn writer(shared: &Arc<BatchesShared>, _: Worker, _: Wake) -> Result<BatchesWriter> {
        Ok(BatchesWriter(Arc::clone(shared)))
    }
}

impl SharedSink for BatchesShared {
    fn acknowledges(&self) -> Acknowledges {
        Acknowledges::WhenCommitted
    }

    fn commit(&self, checkpoint: CheckpointId) -> Result<Committed> {
        let mut open = lock(&self.open);
        let later = open.split_off(&CheckpointId::new(checkpoint.number() + 1));
        let complete = std::mem::replace(&mut *open, later);
        drop(open);
        for (checkpoint, block) in complete {
            let mut bytes = self.print(checkpoint, &block)?;
            for (delivery, records) in block.deliveries {
                // The first delivery carries all the bytes written.
                delivery.settle(records, std::mem::take(&mut bytes));
            }
        }
        Ok(Committed::Now)
    }
}

impl BatchesShared {
    fn print(&self, checkpoint: CheckpointId, block: &Block) -> Result<ByteSize> {
        if block.rows.is_empty() {
            // The limit of `Console::first` was reached.
            return Ok(ByteSize(0));
        }
        let text = block.text(checkpoint.number() - 1, self.cells);
        self.console.out.print(&text)?;
        Ok(ByteSize(text.len() as u64))
    }
}

impl Block {
    fn text(&self, number: u64, cells: Cells) -> String {
        const LINE: &str = "-------------------------------------------";
        let rows = self.rows.len();
        let only = match rows {
            _ if rows as u64 == self.records => String::new(),
            1 => "only showing top 1 row\n".to_owned(),
            _ => format!("only showing top {rows} rows\n"),
        };
        format!("{LINE}\nBatch: {number}\n{LINE}\n{}\n{only}\n", cells.table(&self.rows))
    }
}

impl Cells {
    fn table(self, rows: &[Row]) -> comfy_table::Table {
        /// Spark's table frame, in the order of a `comfy_table` preset.
        const FRAME: &str = "||--+-++|    ++++++";
        let mut table = table_of(rows, |cell| self.written(&cell));
        table.load_preset(FRAME);
        for column in table.column_iter_mut() {
            column.set_padding((0, 0)).set_cell_alignment(match self {
                Cells::Cut => CellAlignment::Right,
                Cells::Whole => CellAlignment::Left,
            });
        }
        table
    }

    /// The text of a cell on one line: control characters are escaped.
    fn written(self, cell: &str) -> String {
        const LENGTH_MAX: usize = 20;
        const MORE: &str = "...";
        let on_one_line = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
        let cell: String = cell.chars().map(on_one_line).collect();
        match self {
            Cells::Cut if cell.chars().count() > LENGTH_MAX => {
                cell.chars().take(LENGTH_MAX - MORE.len()).chain(MORE.chars()).collect()
            }
            Cells::Cut | Cells::Whole => cell,
        }
    }
}

/// Keeps rows until their batch is complete.
#[derive(Debug)]
pub struct BatchesWriter(Arc<BatchesShared>);

impl<T: Serialize> Writer<T> for BatchesWriter {
    fn write(&mut self, batch: &mut Batch<T>, delivery: &Delivery) -> Result<Accepted> {
        let (shared, records) = (&self.0, batch.len());
        let mut open = lock(&shared.open);
        let block = open.entry(delivery.checkpoint()).or_default();
        let shown = shared.console.admit(records.min(shared.rows - block.rows.len()));
        for record in batch.by_ref().take(shown) {
            block.rows.push(shared.console.row(&record)?);
        }
        block.records += records as u64;
        block.deliveries.push((delivery.clone(), records as u64));
        drop(open);
        batch.try_for_each(|record| shared.console.skip(&record))?;
        delivery.stage(records as u64);
        Ok(Accepted::All)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millstream::{Job, TestRun, Trigger, channel, rows};

    use super::super::{Out, console};
    use super::*;

    #[derive(Clone, Serialize)]
    struct Word {
        word: &'static str,
        count: u64,
    }

    /// A console that prints into memory.
    fn printer() -> (Arc<Mutex<String>>, Console) {
        let memory = Arc::<Mutex<String>>::default();
        (Arc::clone(&memory), Console { out: Out(Some(memory)), ..console() })
    }

    #[track_caller]
    fn check(
        records: impl IntoIterator<Item = impl Serialize + Clone + Send + Sync + 'static>,
        sink: fn(Console) -> ConsoleBatches,
        printed: &str,
    ) {
        let (memory, console) = printer();
        let (records, sink): (Vec<_>, _) = (records.into_iter().collect(), sink(console));
        Job::new("printed", move |flow| flow.source(rows(records.clone()))?.sink(&sink)).run().unwrap();
        assert_eq!(*lock(&memory), printed, "\n{}", lock(&memory));
    }

    #[test]
    fn a_batch_is_printed_as_spark_prints_it() {
        let words = [("to", 2), ("be", 1), ("or", 1)].map(|(word, count)| Word { word, count });
        check(
            words,
            |console| console.each_batch(2),
            concat!(
                "-------------------------------------------\n",
                "Batch: 0\n",
                "-------------------------------------------\n",
                "+----+-----+\n",
                "|word|count|\n",
                "+----+-----+\n",
                "|  to|    2|\n",
                "|  be|    1|\n",
                "+----+-----+\n",
                "only showing top 2 rows\n",
                "\n",
            ),
        );
    }

    #[test]
    fn what_is_long_is_cut_unless_it_is_wanted_whole() {
        let texts = ["twenty characters ok", "twenty-one characters", "two\nlines"];
        check(
            texts,
            |console| console.each_batch(5),
            concat!(
                "-------------------------------------------\n",
                "Batch: 0\n",
                "-------------------------------------------\n",
                "+--------------------+\n",
                "|               value|\n",
                "+--------------------+\n",
                "|twenty characters ok|\n",
                "|twenty-one charac...|\n",
                "|          two\\nlines|\n",
                "+--------------------+\n",
                "\n",
            ),
        );
        check(
            texts,
            |console| console.each_batch(5).untruncated(),
            concat!(
                "-------------------------------------------\n",
                "Batch: 0\n",
                "-------------------------------------------\n",
                "+---------------------+\n",
                "|value                |\n",
                "+---------------------+\n",
                "|twenty characters ok |\n",
                "|twenty-one characters|\n",
                "|two\\nlines           |\n",
                "+---------------------+\n",
                "\n",
            ),
        );
    }

    #[test]
    fn only_the_first_of_a_run_are_printed_when_that_is_asked_for() {
        let (memory, console) = printer();
        let sink = console.first(1).each_batch(5);
        Job::new("first", move |flow| flow.source(rows(0..3_u64))?.sink(&sink)).run().unwrap();
        assert!(lock(&memory).contains("|    0|\n+-----+\nonly showing top 1 row\n"), "{}", lock(&memory));
    }

    #[test]
    fn to_show_no_rows_is_refused() {
        let job = Job::new("none", |flow| flow.source(rows([1_u64]))?.sink(console().each_batch(0)));
        let error = job.run().unwrap_err();
        assert!(error.kind() == ErrorKind::Config && format!("{error:#}").contains("each_batch"), "{error:#}");
    }

    /// The number and the values of each block.
    fn blocks(printed: &str) -> Vec<(u64, Vec<u64>)> {
        let mut blocks: Vec<(u64, Vec<u64>)> = Vec::new();
        for line in printed.lines() {
            if let Some(number) = line.strip_prefix("Batch: ") {
                blocks.push((number.parse().unwrap(), Vec::new()));
            } else if let Ok(value) = line.trim_matches('|').trim().parse() {
                blocks.last_mut().unwrap().1.push(value);
            }
        }
        blocks
    }

    #[test]
    fn each_micro_batch_is_one_block_with_any_number_of_workers() {
        for workers in [1, 3] {
            let (memory, console) = printer();
            let (numbers, source) = channel::<u64>(100);
            let sink = console.each_batch(100);
            let job =
                Job::new("blocks", move |flow| flow.source(&source)?.rebalance().filter(|n| *n != 20).sink(&sink));
            let second = Duration::from_secs(1);
            let mut test = TestRun::start(job.workers(workers).trigger(Trigger::micro_batch(second))).unwrap();
            // The second batch has nothing for the console.
            for batch in [vec![10, 11, 12, 13, 14, 15], vec![20], vec![30, 31]] {
                let before = lock(&memory).clone();
                test.feed(&numbers, batch).unwrap();
                assert_eq!(*lock(&memory), before, "a batch is printed before its tick");
                test.advance(second).unwrap();
            }
            drop(numbers);
            test.end().unwrap();
            let mut blocks = blocks(&lock(&memory));
            blocks.iter_mut().for_each(|(_, values)| values.sort_unstable());
            let printed: Vec<u64> = blocks.iter().flat_map(|(_, values)| values.clone()).collect();
            assert_eq!(printed, [10, 11, 12, 13, 14, 15, 30, 31], "{workers} workers: {blocks:?}");
            assert_eq!(blocks.len(), 2, "{workers} workers: {blocks:?}");
            assert!(blocks[0].0 == 0 && blocks[1].0 == 2, "a batch without rows has a number: {blocks:?}");
        }
    }

    #[test]
    fn in_continuous_the_checkpoint_is_the_batch() {
        let (memory, console) = printer();
        let (numbers, source) = channel::<u64>(100);
        let sink = console.each_batch(10);
        let job = Job::new("checkpoints", move |flow| flow.source(&source)?.sink(&sink));
        let running = job.checkpoint_every(Duration::from_millis(1)).start().unwrap();
        for n in 0..3 {
            // It is acknowledged when it is printed.
            numbers.try_send(n).unwrap().wait().unwrap();
            assert_eq!(blocks(&lock(&memory)).len() as u64, n + 1);
        }
        drop(numbers);
        running.wait().unwrap();
        let blocks = blocks(&lock(&memory));
        assert!(blocks.is_sorted() && blocks[0].0 == 0, "{blocks:?}");
        assert!(blocks.iter().map(|(_, values)| values.clone()).eq([vec![0], vec![1], vec![2]]), "{blocks:?}");
    }
}
