//! Which of a fleet of services has fallen silent: each sends a beat again and again, and one that
//! has sent none for a while is shown, by the clock alone, without another record.
//!
//! ```text
//! cargo run --release --example availability
//! cargo run --release --example availability -- --services 10 --gap 30s --for 5m
//! ```
//!
//! The services are threads of this process here. Each one beats ten times in a gap; the last one
//! falls silent after a third of the time, and after two thirds it beats again. What is watched is
//! a session by *processing time*: it ends when its service has been silent for the gap.
//!
//! Exit status: 0 if the job ended, 1 if it failed (the reason is on standard error), 2 for a wrong
//! flag.

use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use millstream::{ChannelSource, Flow, Job, Result, Sender, Session, channel};
use millstream_connectors::console;
use serde::Serialize;

/// Shows which services have fallen silent
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// How many services there are
    #[arg(long, default_value_t = 3)]
    services: usize,
    /// How long a service may be silent
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    gap: Duration,
    /// How long it is watched
    #[arg(long = "for", default_value = "15s", value_parser = humantime::parse_duration)]
    duration: Duration,
}

#[derive(Debug, Serialize)]
struct Row {
    service: String,
    beats: u64,
    silent_since: i64,
}

fn availability(flow: &Flow<'_>, beats: &ChannelSource<String>, gap: Duration) -> Result<()> {
    let by_service = flow.source(beats)?.with_processing_time().key_by(String::clone);
    let heard = by_service.window(Session::with_gap(gap)).count().finals();
    let rows = heard.map(move |session| {
        let silent_since = session.window.end.0 - gap.as_millis() as i64;
        Row { service: session.key, beats: session.value, silent_since }
    });
    rows.sink(console().table())
}

/// Sends the beats of a service for as long as it is watched.
fn beat(service: usize, options: &Options, sender: &Sender<String>) {
    let (begin, is_last) = (Instant::now(), service + 1 == options.services);
    let third = options.duration / 3;
    while begin.elapsed() < options.duration {
        let is_silent = is_last && (third..third * 2).contains(&begin.elapsed());
        if !is_silent && sender.try_send(format!("service-{service}")).is_err() {
            return;
        }
        thread::sleep(options.gap / 10);
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let (sender, beats) = channel(1_000);
    let gap = options.gap;
    let job = Job::new("availability", move |flow| availability(flow, &beats, gap));
    let running = job.state_in_memory().start()?;
    thread::scope(|scope| {
        for service in 0..options.services {
            let sender = sender.clone();
            scope.spawn(move || beat(service, options, &sender));
        }
    });
    // Stopped and not ended: the services that still beat have not fallen silent.
    running.stop();
    running.wait().map(drop)
}

fn main() -> Result<()> {
    run(&Options::parse())
}
