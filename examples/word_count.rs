//! Counts the words of lines from a socket, and prints the counts batch by batch: all of them
//! (`complete`), those that the batch changed (`update`), or those of the batch alone (`batch`).
//!
//! ```text
//! nc -lk 9999
//! cargo run --release --example word_count
//! cargo run --release --example word_count -- --mode update --trigger 5s
//! ```
//!
//! Start netcat first, and type lines into it. The counts live in the memory of the process: what a
//! socket has delivered cannot be read again, so a restart begins at zero.
//!
//! On SIGINT or SIGTERM the job drains, commits and ends; a second signal aborts it. Exit status: 0
//! if the job ended or was stopped, 1 if it could not start, failed or was aborted (the reason is
//! on standard error), 2 for a wrong flag.

mod support;

use std::time::Duration;

use clap::{Parser, ValueEnum};
use millstream::{Flow, Job, Result, Trigger};
use millstream_connectors::{console, lines};
use serde::Serialize;
use support::{run_job, trigger};

/// Counts the words of lines from a socket
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The address to read lines from
    #[arg(long, default_value = "localhost:9999")]
    address: String,
    /// What each batch prints
    #[arg(long, value_enum, default_value_t = Mode::Complete)]
    mode: Mode,
    /// The interval of micro-batches, such as 5s; continuous, which prints once a second; or
    /// available-now (until the other side closes the connection)
    #[arg(long, default_value = "1s", value_parser = trigger)]
    trigger: Trigger,
    /// Stop after this time, such as 30s
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// All counts, the largest first
    Complete,
    /// The counts that the batch has changed
    Update,
    /// How often each word is in the batch
    Batch,
}

#[derive(Debug, Serialize)]
struct Row {
    word: String,
    count: u64,
}

fn word_count(flow: &Flow<'_>, address: &str, mode: Mode) -> Result<()> {
    let words = flow
        .source(lines(address))?
        .or_skip()
        .flat_map(|line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .key_by(String::clone);
    let counts = match mode {
        Mode::Complete => {
            let table = words.count().complete();
            table.sorted_by(|(a, m), (b, n)| n.cmp(m).then_with(|| a.cmp(b))).rows()
        }
        Mode::Update => words.count().updates(),
        Mode::Batch => words.per_batch().count(),
    };
    counts.map(|(word, count)| Row { word, count }).sink(console().each_batch(20))
}

pub(crate) fn run(options: Options) -> Result<()> {
    let Options { address, mode, trigger, duration } = options;
    let job = Job::new("word_count", move |flow| word_count(flow, &address, mode));
    run_job(job.state_in_memory().trigger(trigger), None, duration, |_| {}).map(drop)
}

fn main() -> Result<()> {
    run(Options::parse())
}
