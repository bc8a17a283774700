//! Orders in, invoices out: reads orders from a topic, keeps those that cost something, and writes
//! invoices under the same key to another topic, at least once.
//!
//! ```text
//! cargo run --release --example transform
//! cargo run --release --example transform -- \
//!     --brokers localhost:9092 --input orders --output invoices
//! ```
//!
//! Without `--brokers` it starts its own broker, generates 250 orders a second for a minute, and
//! shows the time from when an order was due until its invoice is read.
//!
//! On SIGINT or SIGTERM the job drains, commits and ends; a second signal aborts it. Exit status: 0
//! if the job ended or was stopped, 1 if it could not start, failed or was aborted (the reason is
//! on standard error), 2 for a wrong flag.

mod support;

use std::time::Duration;

use clap::Parser;
use millstream::{Flow, Job, Result};
use millstream_connectors::Kafka;
use serde::Serialize;
use support::Options;
use support::embedded::Order;

/// Makes an invoice for each order that costs something, from topic to topic
#[derive(Debug, Parser)]
pub(crate) struct Transform {
    #[command(flatten)]
    common: Options,
    /// The topic to write
    #[arg(long, default_value = "invoices")]
    output: String,
}

#[derive(Debug, Serialize)]
struct Invoice {
    id: u64,
    due: u64,
    customer: u64,
    amount: f64,
    pad: String,
}

impl From<Order> for Invoice {
    fn from(order: Order) -> Invoice {
        let Order { id, due, customer, cents, pad } = order;
        Invoice { id, due, customer, amount: cents as f64 / 100.0, pad }
    }
}

fn invoices(flow: &Flow<'_>, kafka: &Kafka, options: &Options, output: &str) -> Result<()> {
    flow.source(options.topic(kafka).json::<Order>().with_metadata())?
        .or_stop()
        .filter(|order| order.value().cents > 0)
        .map(|order| order.map(Invoice::from))
        .sink(kafka.topic(output).json().with_metadata())
}

pub(crate) fn run(transform: Transform) -> Result<()> {
    let Transform { common: mut options, output } = transform;
    let embedded = options.embed(&output, Duration::from_secs(60))?;
    let kafka = options.kafka(embedded.as_ref());
    let of_job = options.clone();
    let job = Job::new("transform", move |flow| invoices(flow, &kafka, &of_job, &output));
    support::run_shown(job, &options, embedded.as_ref())
}

fn main() -> Result<()> {
    run(Transform::parse())
}
