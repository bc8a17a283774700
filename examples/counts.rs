//! How many orders each customer has made so far: reads orders from a topic, and writes for every
//! one of them the count of its customer, under the order's key; in micro-batches for the last one
//! of each customer in the batch. The counts survive: with `--checkpoints` they are kept in a
//! directory, from which the next start goes on, also after a crash.
//!
//! ```text
//! cargo run --release --example counts
//! cargo run --release --example counts -- \
//!     --brokers localhost:9092 --input orders --output counts --checkpoints counts.state
//! ```
//!
//! Without `--brokers` it starts its own broker, generates 250 orders a second for a minute, and
//! shows the time from when an order was due until its count is read.
//!
//! On SIGINT or SIGTERM the job drains, commits and ends; a second signal aborts it. Exit status: 0
//! if the job ended or was stopped, 1 if it could not start, failed or was aborted (the reason is
//! on standard error), 2 for a wrong flag.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use millstream::{Flow, Job, Result};
use millstream_connectors::{Kafka, Message};
use serde::{Deserialize, Serialize};
use support::Options;
use support::embedded::Order;

/// Counts the orders of each customer, from topic to topic
#[derive(Debug, Parser)]
pub(crate) struct Counts {
    #[command(flatten)]
    common: Options,
    /// The topic to write
    #[arg(long, default_value = "counts")]
    output: String,
    /// A directory for checkpoints, from which the next start goes on; without it, counts begin at
    /// zero with each start
    #[arg(long)]
    checkpoints: Option<PathBuf>,
    /// How often a checkpoint is taken
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    checkpoint_every: Duration,
}

/// What is read of an order.
#[derive(Debug, Deserialize, Serialize)]
struct Taken {
    key: Option<Vec<u8>>,
    id: u64,
    due: u64,
}

/// The orders of a customer so far: how many, and the last one.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Tally {
    count: u64,
    key: Option<Vec<u8>>,
    id: u64,
    due: u64,
}

#[derive(Debug, Serialize)]
struct Row {
    id: u64,
    due: u64,
    customer: u64,
    count: u64,
}

fn counts(flow: &Flow<'_>, kafka: &Kafka, options: &Options, output: &str) -> Result<()> {
    let orders = flow.source(options.topic(kafka).json::<Order>().with_metadata())?.or_stop();
    let taken = orders.map(|order: Message<Order>| {
        let key = order.key_bytes().map(<[u8]>::to_vec);
        let Order { id, due, customer, .. } = order.into_value();
        (customer, Taken { key, id, due })
    });
    taken
        .key_by(|(customer, _)| *customer)
        .aggregate(Tally::default, |tally, (_, Taken { key, id, due })| {
            *tally = Tally { count: tally.count + 1, key, id, due };
        })
        .updates()
        .map(|(customer, Tally { count, key, id, due })| {
            let row = Message::new(Row { id, due, customer, count });
            match key {
                Some(key) => row.key(key),
                None => row,
            }
        })
        .sink(kafka.topic(output).json().with_metadata())
}

pub(crate) fn run(flags: Counts) -> Result<()> {
    let Counts { common: mut options, output, checkpoints, checkpoint_every } = flags;
    let embedded = options.embed(&output, Duration::from_secs(60))?;
    let kafka = options.kafka(embedded.as_ref());
    let of_job = options.clone();
    let job = Job::new("counts", move |flow| counts(flow, &kafka, &of_job, &output));
    let job = match checkpoints {
        Some(directory) => job.checkpoints(directory),
        None => job.state_in_memory(),
    };
    support::run_shown(job.checkpoint_every(checkpoint_every), &options, embedded.as_ref())
}

fn main() -> Result<()> {
    run(Counts::parse())
}
