//! What each output mode shows of the same two batches: views and clicks of users, counted by
//! action.
//!
//! ```text
//! cargo run --release --example clickstream
//! ```
//!
//! The first batch has a view and two clicks, the second has two views. `append` shows the events
//! as they are, `update` the counts that the batch has changed, and `complete` all counts. So after
//! the second batch `update` shows the three views alone, and `complete` also the two clicks.
//!
//! Exit status: 0 if the jobs ended, 1 if one failed (the reason is on standard error), 2 for a
//! wrong flag.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use millstream::{Flow, Job, Result, Trigger, rows};
use millstream_connectors::console;
use serde::{Deserialize, Serialize};

/// Shows what each output mode emits of the same two batches
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Only this output mode; without it, all of them, one after the other
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// The interval of micro-batches
    #[arg(long, default_value = "100ms", value_parser = humantime::parse_duration)]
    trigger: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// The events, as they are
    Append,
    /// The counts that a batch has changed
    Update,
    /// All counts
    Complete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    View,
    Click,
}

#[derive(Clone, Debug, Serialize)]
struct Event {
    user: &'static str,
    action: Action,
}

#[derive(Debug, Serialize)]
struct Row {
    action: Action,
    count: u64,
}

const EVENTS: [Event; 5] = [
    Event { user: "ada", action: Action::View },
    Event { user: "ada", action: Action::Click },
    Event { user: "max", action: Action::Click },
    Event { user: "max", action: Action::View },
    Event { user: "ada", action: Action::View },
];
const FIRST_BATCH: u64 = 3;

fn clickstream(flow: &Flow<'_>, mode: Mode) -> Result<()> {
    let events = flow.source(rows(EVENTS).partitions(1))?.batch_at_most(FIRST_BATCH);
    let (action, row) = (|event: &Event| event.action, |(action, count)| Row { action, count });
    let sink = console().each_batch(20);
    match mode {
        Mode::Append => events.sink(sink),
        Mode::Update => events.key_by(action).count().updates().map(row).sink(sink),
        Mode::Complete => {
            let table = events.key_by(action).count().complete();
            table.sorted_by(|a, b| a.0.cmp(&b.0)).rows().map(row).sink(sink)
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let modes = options.mode.as_ref().map_or(Mode::value_variants(), std::slice::from_ref);
    for &mode in modes {
        println!("{mode:?}");
        let job = Job::new("clickstream", move |flow| clickstream(flow, mode));
        job.state_in_memory().trigger(Trigger::micro_batch(options.trigger)).run()?;
    }
    Ok(())
}

fn main() -> Result<()> {
    run(&Options::parse())
}
