//! Prints the words of lines from a socket on the console: as they arrive, or batch by batch.
//!
//! ```text
//! nc -lk 9999
//! cargo run --release --example lines -- --connect localhost:9999
//! cargo run --release --example lines -- --connect localhost:9999 --trigger 5s
//! ```
//!
//! Type lines into netcat.
//!
//! On SIGINT or SIGTERM the job drains, commits and ends; a second signal aborts it. Exit status: 0
//! if the job ended or was stopped, 1 if it could not start, failed or was aborted (the reason is
//! on standard error), 2 for a wrong flag.

mod support;

use std::time::Duration;

use clap::Parser;
use millstream::{Job, Result, Trigger};
use millstream_connectors::{console, lines};
use serde::Serialize;
use support::{run_job, trigger};

/// Shows the words of lines from a socket
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// The address to read lines from
    #[arg(long, default_value = "localhost:9999")]
    connect: String,
    /// continuous, available-now (until the other side closes the connection), or the interval of
    /// micro-batches, such as 5s
    #[arg(long, default_value = "continuous", value_parser = trigger)]
    trigger: Trigger,
    /// Stop after this time, such as 30s
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

#[derive(Debug, Serialize)]
struct Word {
    word: String,
    letters: usize,
}

pub(crate) fn run(options: Options) -> Result<()> {
    let Options { connect, trigger, duration } = options;
    let job = Job::new("lines", move |flow| {
        let words = flow.source(lines(&connect))?.or_skip().flat_map(|line: String| {
            let words =
                line.split_whitespace().map(|word| Word { word: word.to_owned(), letters: word.chars().count() });
            words.collect::<Vec<_>>()
        });
        match trigger {
            Trigger::MicroBatch { .. } => words.sink(console().each_batch(20)),
            _ => words.map(|word| format!("{} ({})", word.word, word.letters)).sink(console()),
        }
    });
    run_job(job.trigger(trigger), None, duration, |_| {}).map(drop)
}

fn main() -> Result<()> {
    run(Options::parse())
}
