//! Sends dead letters back to the topics where they were read, with the value, key and headers they had: all of them, or
//! those of one origin or cause. The group remembers how far the letters were looked at, so each goes back once; those
//! that were left out were looked at too. Another `--group` begins with the first letter.
//!
//! ```text
//! cargo run --release --example replay -- --brokers localhost:9092 --letters orders.dead --cause "missing field"
//! ```
//!
//! Status: 0 at the end, 1 when something failed (the reason is on standard error), 2 for a wrong flag.

mod support;

use clap::Parser;
use millstream::Result;
use millstream_connectors::Kafka;
use support::replay::{Filter, replay};

/// Sends dead letters back to the topics where they were read
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Bootstrap servers
    #[arg(long)]
    brokers: String,
    /// The topic of the dead letters
    #[arg(long)]
    letters: String,
    /// The consumer group that remembers how far the letters were looked at, also those that were left out; another one
    /// begins with the first letter
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
