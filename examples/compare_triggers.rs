//! Runs the same pipeline on the same orders, record by record and in batches of 10, 100 and 1000
//! ms: what does a batch cost?
//!
//! ```text
//! cargo run --release --example compare_triggers -- --page compare.html
//! cargo run --release --example compare_triggers -- \
//!     --brokers localhost:9092 --input orders --output scratch --fill
//! ```
//!
//! Without `--brokers`, the orders are generated and the invoices kept in this process: this
//! measures the engine alone. With `--brokers`, the records go from Kafka to Kafka; each run writes
//! its invoices to the output topic, and no offsets of the input are committed.
//!
//! Exit status: 0 at the end, 1 if something failed (the reason is on standard error), 2 for a
//! wrong flag.

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use millstream::{Collected, Error, ErrorKind, Flow, For, Job, Result, Trigger, collect, generate};
use millstream_connectors::{Kafka, report};
use serde::Serialize;
use support::embedded::{Order, order};

/// Compares triggers: the same pipeline on the same orders, record by record and in batches
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// Bootstrap servers
    #[arg(long)]
    brokers: Option<String>,
    /// The topic to read, from its beginning
    #[arg(long, default_value = "orders", requires = "brokers")]
    input: String,
    /// The topic to write; each run writes its invoices to it
    #[arg(long, default_value = "invoices", requires = "brokers")]
    output: String,
    /// Write orders to the input topic first, as many as needed
    #[arg(long, requires = "brokers")]
    fill: bool,
    /// The triggers to compare: continuous, or intervals of micro-batches
    #[arg(long, value_delimiter = ',', default_value = "continuous,10ms,100ms,1s", value_parser = support::trigger)]
    triggers: Vec<Trigger>,
    /// How long to measure each trigger, after a second of warm-up
    #[arg(long = "for", default_value = "20s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Orders per second
    #[arg(long, default_value_t = 1_000.0)]
    rate: f64,
    /// Threads that process records
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// A file for the page, with plot and table
    #[arg(long)]
    page: Option<PathBuf>,
    /// A file for the plot alone, as SVG
    #[arg(long)]
    plot: Option<PathBuf>,
    /// A file for all results, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Debug, Hash, Serialize)]
struct Invoice {
    id: u64,
    customer: u64,
    cents: i64,
}

impl From<Order> for Invoice {
    fn from(order: Order) -> Invoice {
        Invoice { id: order.id, customer: order.customer, cents: order.cents }
    }
}

/// The pipeline from Kafka to Kafka.
fn topics(flow: &Flow<'_>, kafka: &Kafka, options: &Options) -> Result<()> {
    flow.source(kafka.topic(&options.input).json::<Order>().with_metadata())?
        .or_stop()
        .filter(|order| order.value().cents > 0)
        .map(|order| order.map(Invoice::from))
        .sink(kafka.topic(&options.output).json().with_metadata())
}

/// The pipeline within this process.
fn memory(flow: &Flow<'_>, invoices: &Collected<Invoice>) -> Result<()> {
    flow.source(generate(|id| order(id, 0)))?.filter(|order| order.cents > 0).map(Invoice::from).sink(invoices)
}

fn fill(kafka: &Kafka, options: &Options) -> Result<()> {
    let count = ((options.time + WARM_UP).as_secs_f64() * options.rate).ceil() as u64;
    let topic = kafka.topic(&options.input).json();
    let job = Job::new("fill", move |flow| {
        flow.source(generate(|id| order(id, 0)).count(count))?.sink_by(|order| order.customer.to_string(), &topic)
    });
    job.run().map(drop)
}

pub(crate) fn run(options: Options) -> Result<()> {
    let job = match &options.brokers {
        Some(brokers) => {
            let kafka = Kafka::new(brokers);
            if options.fill {
                fill(&kafka, &options)?;
            }
            let options = options.clone();
            Job::new("Kafka to Kafka", move |flow| topics(flow, &kafka, &options))
        }
        None => {
            let invoices = collect().by_hash();
            Job::new("in memory", move |flow| memory(flow, &invoices))
        }
    };
    let job = job.workers(options.workers).live();
    let comparison = job.compare(options.triggers, For::time(options.time).rate(options.rate).warm_up(WARM_UP))?;
    println!("{comparison}");
    write(options.page, || report::page(&comparison))?;
    write(options.plot, || report::plot(&comparison))?;
    write(options.json, || report::json(&comparison))
}

fn write(path: Option<PathBuf>, text: impl FnOnce() -> String) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    fs::write(&path, text())
        .map_err(|cause| Error::new(ErrorKind::Sink, format!("cannot write `{}`", path.display())).caused_by(cause))
}

fn main() -> Result<()> {
    run(Options::parse())
}
