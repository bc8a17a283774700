//! Counts events by key in windows of event time: from a topic to a topic, or from a file to the
//! console. Each event has the time at which it happened, and windows close by those times, however
//! late and out of order events come.
//!
//! ```text
//! cargo run --release --example windows
//! cargo run --release --example windows -- --window sliding:10s,1s --file events.jsonl
//! cargo run --release --example windows -- --window session:30s \
//!     --brokers localhost:9092 --input events --output counts --checkpoints windows.state
//! ```
//!
//! An event is `{"key": "ann", "at": 1764000000000}`, with its time in milliseconds since 1970; a
//! row is `{"key": "ann", "start": …, "end": …, "count": 3}`. Without a file or brokers there are
//! eight events. `--show finals` emits each window once, when it is over. `--show updates` emits
//! each change, and so the last row of a window counts; sessions have none.
//!
//! Exit status: 0 if the job ended or was stopped, 1 if it failed (the reason is on standard
//! error), 2 for a wrong flag.

mod support;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use millstream::{
    Error, ErrorKind, EventTime, Flow, Job, Pane, Result, Session, Sliding, Stream, Trigger, Tumbling, rows,
};
use millstream_connectors::{Kafka, console};
use serde::{Deserialize, Serialize};

/// Counts events by key in windows of event time
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// tumbling:LENGTH, sliding:LENGTH,STEP or session:GAP
    #[arg(long, default_value = "tumbling:10s")]
    window: Window,
    /// What is emitted of a window
    #[arg(long, value_enum, default_value = "finals")]
    show: Show,
    /// How far out of order events of a partition may be
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    delay: Duration,
    /// A file with an event on each line
    #[arg(long, conflicts_with = "brokers")]
    file: Option<PathBuf>,
    /// Bootstrap servers, to read and write topics
    #[arg(long)]
    brokers: Option<String>,
    /// The topic to read
    #[arg(long, default_value = "events")]
    input: String,
    /// The topic to write
    #[arg(long, default_value = "windows")]
    output: String,
    /// The consumer group
    #[arg(long, default_value = "windows")]
    group: String,
    /// A directory for checkpoints, from which the next start goes on
    #[arg(long)]
    checkpoints: Option<PathBuf>,
    /// How often a checkpoint is taken
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    checkpoint_every: Duration,
    /// continuous, available-now, or the interval of micro-batches, such as 100ms
    #[arg(long, default_value = "continuous", value_parser = support::trigger)]
    trigger: Trigger,
    /// Threads that process records
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Stop after this time, such as 30s
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
enum Window {
    Tumbling(Duration),
    Sliding(Duration, Duration),
    Session(Duration),
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Window, String> {
        let time = |text: &str| humantime::parse_duration(text).map_err(|cause| format!("`{text}`: {cause}"));
        match text.split_once(':') {
            Some(("tumbling", length)) => Ok(Window::Tumbling(time(length)?)),
            Some(("session", gap)) => Ok(Window::Session(time(gap)?)),
            Some(("sliding", both)) => match both.split_once(',') {
                Some((length, step)) => Ok(Window::Sliding(time(length)?, time(step)?)),
                None => Err("a sliding window has a length and a step, such as sliding:10s,1s".to_owned()),
            },
            _ => Err("must be tumbling:LENGTH, sliding:LENGTH,STEP or session:GAP".to_owned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Show {
    /// Each window once, when it is over
    Finals,
    /// Each change of a window
    Updates,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Event {
    key: String,
    at: i64,
}

#[derive(Debug, Serialize)]
struct Row {
    key: String,
    start: i64,
    end: i64,
    count: u64,
}

const EVENTS: [(&str, i64); 8] = [
    ("ann", 1_000),
    ("bob", 3_000),
    ("ann", 9_500),
    ("ann", 12_000),
    ("bob", 8_000),
    ("bob", 21_000),
    ("ann", 44_000),
    // Behind the mark, which is at 39 s: it is late.
    ("bob", 4_000),
];

fn counted<'a>(events: Stream<'a, Event>, options: &Options) -> Stream<'a, Row> {
    let by_key = events.with_watermark(|event| EventTime(event.at), options.delay).key_by(|event| event.key.clone());
    let panes = match (options.window, options.show) {
        (Window::Tumbling(length), Show::Finals) => by_key.window(Tumbling::new(length)).count().finals(),
        (Window::Tumbling(length), Show::Updates) => by_key.window(Tumbling::new(length)).count().updates(),
        (Window::Sliding(length, step), Show::Finals) => by_key.window(Sliding::new(length, step)).count().finals(),
        (Window::Sliding(length, step), Show::Updates) => by_key.window(Sliding::new(length, step)).count().updates(),
        (Window::Session(gap), _) => by_key.window(Session::with_gap(gap)).count().finals(),
    };
    panes.map(|Pane { key, window, value }| Row { key, start: window.start.0, end: window.end.0, count: value })
}

fn windows(flow: &Flow<'_>, options: &Options, events: &[Event]) -> Result<()> {
    match &options.brokers {
        Some(brokers) => {
            let kafka = Kafka::new(brokers);
            let events = flow.source(kafka.topic(&options.input).group(&options.group).json::<Event>())?.or_stop();
            counted(events, options).sink_by(|row| row.key.clone(), kafka.topic(&options.output).json())
        }
        None => counted(flow.source(rows(events.to_vec()).partitions(1))?, options).sink(console().table()),
    }
}

/// The events of a file, or those above.
fn events(options: &Options) -> Result<Vec<Event>> {
    let Some(file) = &options.file else {
        return Ok(EVENTS.map(|(key, at)| Event { key: key.to_owned(), at }).to_vec());
    };
    let wrong = |what: String| Error::new(ErrorKind::Config, format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|cause| wrong(cause.to_string()))?;
    let event = |(line, text): (usize, &str)| {
        serde_json::from_str(text).map_err(|cause| wrong(format!("line {}: {cause}", line + 1)))
    };
    text.lines().enumerate().map(event).collect()
}

pub(crate) fn run(options: Options) -> Result<()> {
    if options.show == Show::Updates && matches!(options.window, Window::Session(_)) {
        return Err(Error::new(ErrorKind::Config, "sessions have no updates: two of them may become one"));
    }
    let (events, of_job) = (events(&options)?, options.clone());
    let job = Job::new("windows", move |flow| windows(flow, &of_job, &events));
    let job = match &options.checkpoints {
        Some(directory) => job.checkpoints(directory),
        None => job.state_in_memory(),
    };
    let job = job.checkpoint_every(options.checkpoint_every).trigger(options.trigger).workers(options.workers);
    support::run_job(job, None, options.duration, |_| ()).map(drop)
}

fn main() -> Result<()> {
    run(Options::parse())
}
