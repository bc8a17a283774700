//! Extract, transform, load: reads the orders of `transform`, writes cleaned and enriched JSON
//! under the same key, and writes records that are not orders to a topic of dead letters. A second
//! mode sends those back when the program or the data has been fixed.
//!
//! ```text
//! cargo run --release --example etl
//! cargo run --release --example etl -- \
//!     --brokers localhost:9092 --input orders --output clean-orders
//! cargo run --release --example etl -- \
//!     --brokers localhost:9092 --input orders --replay --cause "missing field"
//! ```
//!
//! On SIGINT or SIGTERM the job drains, commits and ends; a second signal aborts it. Exit status: 0
//! if the job ended or was stopped, 1 if it could not start, failed or was aborted (the reason is
//! on standard error), 2 for a wrong flag.

mod support;

use std::time::Duration;

use clap::Parser;
use millstream::{Error, ErrorKind, Flow, Job, Result};
use millstream_connectors::Kafka;
use serde::Serialize;
use support::Options;
use support::embedded::{Order, print};
use support::replay::{Filter, replay};

/// Cleans orders, from topic to topic, and sets aside records that are not orders
#[derive(Debug, Parser)]
pub(crate) struct Etl {
    #[command(flatten)]
    common: Options,
    /// The topic to write
    #[arg(long, default_value = "clean-orders")]
    output: String,
    /// The topic for records that are not orders [default: the input's name and `.dead`]
    #[arg(long)]
    dead_letters: Option<String>,
    /// Send the dead letters back to the topics they were read from, and exit
    #[arg(long, requires = "brokers")]
    replay: bool,
    #[command(flatten)]
    filter: Filter,
}

/// The job's name; also the default name of its group.
const NAME: &str = "etl";

/// An order as the rest of the company wants it.
#[derive(Debug, Serialize)]
struct Clean {
    id: u64,
    due: u64,
    customer: String,
    amount: f64,
    currency: &'static str,
    size: &'static str,
}

impl From<Order> for Clean {
    fn from(order: Order) -> Clean {
        let size = match order.cents {
            ..1_000 => "small",
            1_000..50_000 => "medium",
            _ => "large",
        };
        let customer = format!("C{:06}", order.customer);
        Clean { id: order.id, due: order.due, customer, amount: order.cents as f64 / 100.0, currency: "EUR", size }
    }
}

fn pipeline(flow: &Flow<'_>, kafka: &Kafka, options: &Options, output: &str, dead_letters: &str) -> Result<()> {
    let (orders, malformed) = flow.source(options.topic(kafka).json::<Order>().with_metadata())?.partition_results();
    orders
        .filter(|order| order.value().cents > 0)
        .map(|order| order.map(Clean::from))
        .sink(kafka.topic(output).json().with_metadata())?;
    malformed.sink(kafka.dead_letters(dead_letters))
}

pub(crate) fn run(etl: Etl) -> Result<()> {
    let Etl { common: mut options, output, dead_letters, replay: is_replay, filter } = etl;
    if !is_replay && (filter.origin.is_some() || filter.cause.is_some()) {
        return Err(Error::new(ErrorKind::Config, "`--origin` and `--cause` need `--replay`"));
    }
    let dead_letters = dead_letters.unwrap_or_else(|| format!("{}.dead", options.input));
    let embedded = options.embed(&output, Duration::from_secs(20))?;
    if let Some(embedded) = &embedded {
        embedded.create_topic(&dead_letters);
        embedded.write_malformed(&options.input)?;
    }
    let kafka = options.kafka(embedded.as_ref());
    if is_replay {
        let group = format!("{}.replay", options.group.as_deref().unwrap_or(NAME));
        println!("{}", replay(&kafka, dead_letters, group, filter)?);
        return Ok(());
    }
    let of_job = options.clone();
    let job = Job::new(NAME, move |flow| pipeline(flow, &kafka, &of_job, &output, &dead_letters));
    let report = support::run(job, &options, |_| {})?;
    print(embedded.as_ref(), &report);
    Ok(())
}

fn main() -> Result<()> {
    run(Etl::parse())
}
