//! Visits of a site: the clicks of a user that follow each other within a gap, shown when the visit
//! is over, with its length, the number of pages and the last one.
//!
//! ```text
//! cargo run --release --example sessions
//! cargo run --release --example sessions -- --gap 30m --file clicks.jsonl
//! ```
//!
//! A click is `{"user": "ann", "page": "/shop", "at": 1764000000000}`, with its time in
//! milliseconds since 1970. Without a file there are nine clicks.
//!
//! Exit status: 0 if the job ended, 1 if it failed (the reason is on standard error), 2 for a wrong
//! flag.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use millstream::{Error, ErrorKind, EventTime, Flow, Job, Result, Session, rows};
use millstream_connectors::console;
use serde::{Deserialize, Serialize};

/// Shows the visits of users, when they are over
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// A file with a click on each line
    #[arg(long)]
    file: Option<PathBuf>,
    /// A visit is over when its user does nothing for this time
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    gap: Duration,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Click {
    user: String,
    page: String,
    at: i64,
}

/// What is known of a visit.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Visit {
    pages: u64,
    /// When the last page was looked at, and which it was.
    last: (i64, String),
}

#[derive(Debug, Serialize)]
struct Row {
    user: String,
    began: i64,
    seconds: f64,
    pages: u64,
    last: String,
}

const CLICKS: [(&str, &str, i64); 9] = [
    ("ann", "/", 0),
    ("bob", "/", 2_000),
    ("ann", "/shop", 9_000),
    ("ann", "/cart", 31_000),
    ("bob", "/shop", 40_000),
    ("ann", "/", 95_000),
    ("bob", "/cart", 68_000),
    ("ann", "/help", 99_000),
    ("bob", "/", 140_000),
];

fn sessions(flow: &Flow<'_>, clicks: &[Click], gap: Duration) -> Result<()> {
    let clicks = flow.source(rows(clicks.to_vec()).partitions(1))?;
    let by_user = clicks.with_watermark(|click| EventTime(click.at), gap).key_by(|click| click.user.clone());
    let add = |visit: &mut Visit, click: Click| {
        visit.pages += 1;
        visit.last = (click.at, click.page).max(std::mem::take(&mut visit.last));
    };
    let visits = by_user.window(Session::with_gap(gap)).aggregate(Visit::default, add).merge(|visit, other| {
        visit.pages += other.pages;
        visit.last = other.last.clone().max(std::mem::take(&mut visit.last));
    });
    let rows = visits.finals().map(|pane| {
        let (began, Visit { pages, last: (until, last) }) = (pane.window.start.0, pane.value);
        Row { user: pane.key, began, seconds: (until - began) as f64 / 1e3, pages, last }
    });
    rows.sink(console().table())
}

fn clicks(options: &Options) -> Result<Vec<Click>> {
    let Some(file) = &options.file else {
        return Ok(CLICKS.map(|(user, page, at)| Click { user: user.to_owned(), page: page.to_owned(), at }).to_vec());
    };
    let wrong = |what: String| Error::new(ErrorKind::Config, format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|cause| wrong(cause.to_string()))?;
    let click = |(line, text): (usize, &str)| {
        serde_json::from_str(text).map_err(|cause| wrong(format!("line {}: {cause}", line + 1)))
    };
    text.lines().enumerate().map(click).collect()
}

pub(crate) fn run(options: Options) -> Result<()> {
    let clicks = clicks(&options)?;
    Job::new("sessions", move |flow| sessions(flow, &clicks, options.gap)).state_in_memory().run().map(drop)
}

fn main() -> Result<()> {
    run(Options::parse())
}
