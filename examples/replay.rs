//! Sends dead letters back to the topics they were read from, with their original value, key and
//! headers: all of them, or those of one origin or cause. The group commits how many letters were
//! read, so each goes back once; letters that do not match count as read too. Another `--group`
//! starts with the first letter.
//!
//! ```text
//! cargo run --release --example replay -- \
//!     --brokers localhost:9092 --letters orders.dead --cause "missing field"
//! ```
//!
//! Exit status: 0 at the end, 1 if something failed (the reason is on standard error), 2 for a
//! wrong flag.

mod support;

use clap::Parser;
use millstream::Result;
use millstream_connectors::Kafka;
use support::replay::{Filter, replay};

/// Sends dead letters back to the topics they were read from
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Bootstrap servers
    #[arg(long)]
    brokers: String,
    /// The topic of the dead letters
    #[arg(long)]
    letters: String,
    /// The consumer group that commits how many letters were read, including those that do not
    /// match; another group starts with the first letter
    #[arg(long, default_value = "replay")]
    group: String,
    #[command(flatten)]
    filter: Filter,
}

pub(crate) fn run(options: Options) -> Result<()> {
    let Options { brokers, letters, group, filter } = options;
    println!("{}", replay(&Kafka::new(brokers), letters, group, filter)?);
    Ok(())
}

fn main() -> Result<()> {
    run(Options::parse())
}
