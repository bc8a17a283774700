//! What the Kafka examples share: flags, signals, the report file, and, if no broker is named, a
//! broker in this process with a generator and an observer.

#![allow(dead_code, unreachable_pub, reason = "no example uses all of it")]

pub mod embedded;
pub mod replay;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use millstream::{Error, ErrorKind, Job, JobHandle, Report, Result, Trigger};
use millstream_connectors::{GroupProtocol, Kafka, StartAt, Topic, report};

use embedded::{Embedded, brokers, print};

// The flags of every Kafka example. A doc comment here would become the text of `--help` in an
// example without one of its own.
#[derive(Clone, Debug, Parser)]
pub struct Options {
    /// Bootstrap servers; without them, a broker, a generator and an observer run in this process
    #[arg(long)]
    pub brokers: Option<String>,
    /// A property of librdkafka, such as session.timeout.ms=6000; can be repeated
    #[arg(long, value_name = "PROPERTY=VALUE", value_parser = property)]
    pub set: Vec<(String, String)>,
    /// The topic to read
    #[arg(long, default_value = "orders")]
    pub input: String,
    /// The consumer group that commits how much of the input is done [default: the example's name]
    #[arg(long)]
    pub group: Option<String>,
    /// The group protocol: classic, or consumer, in which the broker assigns partitions
    #[arg(long, default_value = "classic", value_parser = group_protocol)]
    pub group_protocol: GroupProtocol,
    /// Where to start if the group has no committed offsets: earliest or latest
    #[arg(long, default_value = "earliest", value_parser = start)]
    pub start: StartAt,
    /// continuous, available-now, or the interval of micro-batches, such as 100ms
    #[arg(long, default_value = "continuous", value_parser = trigger)]
    pub trigger: Trigger,
    /// Threads that process records
    #[arg(long, default_value_t = 1)]
    pub workers: usize,
    /// A file for the job's report, written every second as a line of JSON
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Stop after this time, such as 30s [default: 60s without --brokers, else never]
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
}

impl Options {
    /// The named cluster, or the embedded broker.
    pub fn kafka(&self, embedded: Option<&Embedded>) -> Kafka {
        let kafka = Kafka::new(brokers(embedded, self.brokers.as_ref()));
        self.set.iter().fold(kafka, |kafka, (property, value)| kafka.set(property, value))
    }

    /// Starts the embedded broker if no cluster is named. The job then ends after `duration`,
    /// unless a flag says otherwise.
    pub fn embed(&mut self, output: &str, duration: Duration) -> Result<Option<Embedded>> {
        if self.brokers.is_some() {
            return Ok(None);
        }
        self.duration.get_or_insert(duration);
        let preload = (self.trigger == Trigger::AvailableNow).then_some(20_000);
        Embedded::start(&self.input, output, preload).map(Some)
    }

    /// The topic to read, as a member of the named group, or of the job's own group.
    pub fn topic(&self, kafka: &Kafka) -> Topic {
        let topic = kafka.topic(&self.input).group_protocol(self.group_protocol).start_at(self.start.clone());
        match &self.group {
            Some(group) => topic.group(group),
            None => topic,
        }
    }
}

fn group_protocol(text: &str) -> Result<GroupProtocol, &'static str> {
    match text {
        "classic" => Ok(GroupProtocol::Classic),
        "consumer" => Ok(GroupProtocol::Consumer),
        _ => Err("must be `classic` or `consumer`"),
    }
}

fn property(text: &str) -> Result<(String, String), &'static str> {
    let (property, value) = text.split_once('=').ok_or("must contain `=`")?;
    Ok((property.to_owned(), value.to_owned()))
}

fn start(text: &str) -> Result<StartAt, String> {
    match text {
        "earliest" => Ok(StartAt::Earliest),
        "latest" => Ok(StartAt::Latest),
        _ => Err("must be `earliest` or `latest`".to_owned()),
    }
}

pub fn trigger(text: &str) -> Result<Trigger, String> {
    match text {
        "continuous" => Ok(Trigger::Continuous),
        "available-now" => Ok(Trigger::AvailableNow),
        interval => match humantime::Duration::from_str(interval) {
            Ok(interval) => Ok(Trigger::micro_batch(interval.into())),
            Err(_) => Err("must be `continuous`, `available-now` or an interval such as `100ms`".to_owned()),
        },
    }
}

/// Runs a job with the flags of a Kafka example.
pub fn run(job: Job, options: &Options, each_second: impl FnMut(&Report)) -> Result<Report> {
    let job = job.workers(options.workers).trigger(options.trigger);
    let job = if options.brokers.is_some() { job.live() } else { job };
    run_job(job, options.report.as_deref(), options.duration, each_second)
}

/// Runs a job with the flags of a Kafka example; shows meanwhile what the observer of the embedded
/// broker sees, and the result at the end.
pub fn run_shown(job: Job, options: &Options, embedded: Option<&Embedded>) -> Result<()> {
    let line = ProgressBar::no_length().with_style(ProgressStyle::with_template("{msg}").expect("it is a constant"));
    let report = run(job, options, |report| {
        if let Some(embedded) = embedded {
            let read = report.fraction().filter(|_| options.trigger == Trigger::AvailableNow);
            let percent = read.map_or_else(String::new, |read| format!("{:.0} %  ", read * 100.0));
            line.set_message(percent + &embedded.line());
        }
    })?;
    line.finish_and_clear();
    print(embedded, &report);
    Ok(())
}

/// Runs a job until it ends, a signal stops it, or its time is over.
pub fn run_job(
    job: Job,
    report: Option<&Path>,
    duration: Option<Duration>,
    mut each_second: impl FnMut(&Report),
) -> Result<Report> {
    let stopper = stop_on_signals();
    let mut running = job.start()?;
    drop(stopper.set(running.handle()));
    let mut lines = report
        .map(File::create)
        .transpose()
        .map_err(|cause| Error::new(ErrorKind::Config, "cannot create the report file").caused_by(cause))?;
    let deadline = duration.map(|duration| Instant::now() + duration);
    let mut stopped = false;
    loop {
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        if let Some(result) = running.wait_for(left.clamp(Duration::from_millis(1), Duration::from_secs(1))) {
            let report = result?;
            write(&mut lines, &report)?;
            return Ok(report);
        }
        let report = running.report();
        write(&mut lines, &report)?;
        each_second(&report);
        if left.is_zero() && !stopped {
            stopped = true;
            running.stop();
        }
    }
}

fn write(lines: &mut Option<impl Write>, report: &Report) -> Result<()> {
    lines
        .as_mut()
        .map_or(Ok(()), |lines| report::write_line(report, lines))
        .map_err(|cause| Error::new(ErrorKind::Sink, "cannot write to the report file").caused_by(cause))
}

/// The first SIGINT or SIGTERM makes the job drain, commit and end; a second one aborts it. Before
/// the job has started, there is nothing to drain.
fn stop_on_signals() -> Arc<OnceLock<JobHandle>> {
    let (stopper, count) = (Arc::<OnceLock<JobHandle>>::default(), AtomicUsize::new(0));
    let of_job = Arc::clone(&stopper);
    let set = ctrlc::set_handler(move || match (of_job.get(), count.fetch_add(1, SeqCst)) {
        (None, _) => std::process::exit(0),
        (Some(stopper), 0) => stopper.stop(),
        (Some(stopper), _) => stopper.abort(),
    });
    // A process can have only one handler; in a test there may be one already.
    drop(set);
    stopper
}
