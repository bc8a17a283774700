//! Runs the same pipeline on the same input under one trigger after the other. What differs is the
//! latency, and that is shown.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::io::{Schedule, Spacing};
use crate::run::graph::Emits;
use crate::words::{Error, ErrorKind, Latencies, LatencySnapshot, Percentile, Print, Result, as_nanos};

use super::job::Job;
use super::trial::{Course, TakenBy, Trial};
use super::trigger::Trigger;

/// How much input each run of a comparison gets, and how fast.
#[derive(Clone, Copy, Debug)]
#[must_use = "it only configures `Job::compare`"]
pub struct For {
    length: Length,
    rate: f64,
    warm_up: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Length {
    Records(u64),
    Time(Duration),
}

impl For {
    /// This many measured records of each source, at a thousand each second unless
    /// [`rate`](For::rate) changes that, after a [warm-up](For::warm_up) of a second.
    pub fn records(records: u64) -> For {
        For { length: Length::Records(records), rate: 1_000.0, warm_up: Duration::from_secs(1) }
    }

    /// As many records as are due in this time.
    pub fn time(time: Duration) -> For {
        For { length: Length::Time(time), ..For::records(0) }
    }

    /// Sets the number of records each second: the `n`th is due in the `n`th slot of `1 / rate`
    /// seconds after the start, whatever happened to those before it, and its latency counts from
    /// then. Each has a different place in its slot, so that no rate keeps in step with a tick, and
    /// the same place in every run.
    pub fn rate(self, records_per_second: f64) -> For {
        For { rate: records_per_second, ..self }
    }

    /// How long each run lasts before it is measured; a second by default. Meanwhile clients
    /// connect, and caches and branch predictors warm up, which a comparison should not measure.
    pub fn warm_up(self, time: Duration) -> For {
        For { warm_up: time, ..self }
    }

    fn course(self) -> Result<Course> {
        let wrong = |doing: &str| Err(Error::new(ErrorKind::Config, format!("cannot compare: {doing}")));
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return wrong("`rate` must be a finite number greater than zero");
        }
        let of = |time: Duration| (time.as_secs_f64() * self.rate).ceil() as u64;
        let measured = match self.length {
            Length::Records(records) => records,
            Length::Time(time) => of(time),
        };
        if measured == 0 {
            return wrong("there is nothing to measure");
        }
        let schedule =
            Schedule { rate: self.rate, spacing: Spacing::Spread, records: measured.saturating_add(of(self.warm_up)) };
        Ok(Course { schedule, warm_up: self.warm_up })
    }
}

impl Job {
    /// Runs the pipeline under each trigger in turn, on the same records, due at the same times,
    /// and shows what that does to their latency. [`trigger`](Job::trigger),
    /// [`restart`](Job::restart) and [`clock`](Job::clock) of this job are ignored. It blocks until
    /// the last run has ended; in async code call it in `tokio::task::spawn_blocking`.
    ///
    /// Each source gives its first records, from where it would begin if it had never been read.
    /// They are prefetched as usual and admitted when they are due, so the time to *fetch* them is
    /// not in the figures. Nothing is committed, so the cost of commits is not in them either;
    /// micro-batches of a few milliseconds commit hundreds of times as often as a continuous job.
    /// The delay of the schedule itself, about 0.1 ms, counts against every run, and the first run
    /// also pays what a process pays once, beyond its warm-up. Each run writes its outputs: give
    /// the pipeline a topic of its own for that. Sources that cannot be read again (a channel, a
    /// socket) are an error.
    ///
    /// Results are compared by the [`Fingerprint`](crate::connector::Fingerprint)s of the sinks:
    /// the same records in any order. Behind an operator that keeps state a sink gets more or fewer
    /// updates, by the trigger, of which the last for each key is the same: there it is what the
    /// operator keeps at the end that is compared, as it is encoded. What follows
    /// [`per_batch`](crate::Stream::per_batch), or keeps state of such updates, is not comparable,
    /// and [`Results`] says so. State begins empty in each run and is not kept: checkpoints cost
    /// nothing here, and none is read or written.
    ///
    /// ```
    /// use millstream::{For, Job, Trigger, collect, generate};
    /// use std::time::Duration;
    ///
    /// let sink = collect().by_hash();
    /// let job = Job::new("squares", move |flow| flow.source(generate(|n| n))?.map(|n| n *
    /// n).sink(&sink));
    /// let triggers = [Trigger::Continuous, Trigger::micro_batch(Duration::from_millis(50))];
    /// let comparison = job.compare(triggers, For::records(200).warm_up(Duration::ZERO))?;
    /// println!("{comparison}");
    /// assert!(comparison.results.are_equal());
    /// assert!(comparison.runs[0].latency.p50 < comparison.runs[1].latency.p50);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Job::run`]; and when a source cannot be read again or has nothing to read, or when a
    /// trigger says when a run ends and not when results leave ([`Trigger::AvailableNow`]).
    pub fn compare(self, triggers: impl IntoIterator<Item = Trigger>, input: For) -> Result<Comparison> {
        let course = input.course()?;
        let triggers: Vec<Trigger> = triggers.into_iter().collect();
        let wrong = |why: &str| Err(Error::new(ErrorKind::Config, format!("cannot compare: {why}")));
        if triggers.is_empty() {
            return wrong("no trigger was given");
        }
        if triggers.contains(&Trigger::AvailableNow) {
            return wrong("`Trigger::AvailableNow` only sets when a run ends, and all compared runs end alike");
        }
        let mut comparison = Comparison {
            job: self.name().to_owned(),
            workers: self.worker_count(),
            records_per_second: course.schedule.rate,
            warm_up: course.warm_up,
            records: 0,
            results: Results::Equal,
            runs: Vec::new(),
        };
        let mut first: Option<Outcome> = None;
        let mut before = Vec::new();
        for trigger in triggers {
            let (run, outcome, taken) = self.clone().compared(trigger, course, before)?;
            tracing::info!(job = comparison.job, %trigger, latency = %run.latency, "compared");
            comparison.records = taken.iter().map(TakenBy::records).sum();
            before = taken;
            comparison.runs.push(run);
            let first = first.get_or_insert_with(|| outcome.clone());
            comparison.results = comparison.results.and(Results::of(trigger, first, &outcome));
        }
        Ok(comparison)
    }

    /// Makes one run.
    fn compared(
        self,
        trigger: Trigger,
        course: Course,
        before: Vec<TakenBy>,
    ) -> Result<(ComparedRun, Outcome, Vec<TakenBy>)> {
        let trial = Arc::new(Trial::new(course, before));
        let mut running = self.trigger(trigger).measured().start_trial(&trial)?;
        let (early, cpu) = (running.wait_for(course.warm_up), cpu_time());
        let report = early.unwrap_or_else(|| running.wait())?;
        let cpu = cpu.zip(cpu_time()).map(|(before, after)| after.saturating_sub(before));
        let taken = trial.taken();
        let warm_up = course.schedule.count(course.warm_up);
        let measured: u64 = taken.iter().map(|source| source.records().saturating_sub(warm_up)).sum();
        let records: u64 = taken.iter().map(TakenBy::records).sum();
        if records == 0 {
            return Err(Error::new(ErrorKind::NotFound, "cannot compare: the sources have no records"));
        }
        let mut latencies = Latencies::default();
        let sinks = trial.sinks();
        sinks.iter().filter_map(|sink| sink.meter.snapshot()).for_each(|of_sink| latencies.add(&of_sink));
        let written = sinks.iter().zip(&report.sinks).map(|(sink, report)| Written {
            sink: report.name.clone(),
            records: sink.meter.acknowledged.get(),
            print: Some(sink.fingerprint.print()).filter(|print| print.records > 0),
            follows: sink.follows,
        });
        let outcome = Outcome { written: written.collect(), states: trial.states() };
        let run = ComparedRun {
            trigger: trigger.to_string(),
            records_in: records,
            records_out: report.records_out(),
            seconds: report.elapsed_seconds,
            cpu_per_record: cpu.filter(|_| measured > 0).map(|cpu| cpu.div_f64(measured as f64)),
            latency: latencies.total(),
            queue: latencies.queue(),
            compute: latencies.compute(),
            acknowledgement: latencies.acknowledgement(),
            curve: latencies.curve(),
        };
        Ok((run, outcome, taken))
    }
}

/// What a run led to.
#[derive(Clone, Debug)]
struct Outcome {
    written: Vec<Written>,
    /// What the operators kept at the end.
    states: Vec<(String, Print)>,
}

/// What a sink wrote in a run.
#[derive(Clone, Debug)]
struct Written {
    sink: String,
    records: u64,
    /// `None` when the sink does not report what it writes.
    print: Option<Print>,
    follows: Emits,
}

/// What [`Job::compare`] found: as a table ([`Display`](fmt::Display)), as a value, and through
/// serde as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Comparison {
    /// The job's name.
    pub job: String,
    /// Its worker threads.
    pub workers: usize,
    /// Records that were due each second, of each source.
    pub records_per_second: f64,
    /// The first part of each run, whose records were not measured; nanoseconds in the serialised
    /// form.
    #[serde(serialize_with = "as_nanos")]
    pub warm_up: Duration,
    /// Records that each run got, warm-up included.
    pub records: u64,
    /// Whether all runs wrote the same.
    pub results: Results,
    /// Each run, in the order in which they ran.
    pub runs: Vec<ComparedRun>,
}

/// A run of a [`Comparison`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ComparedRun {
    /// Its trigger, such as `micro-batch 100ms`.
    pub trigger: String,
    /// Records that came in.
    pub records_in: u64,
    /// Records that sinks acknowledged.
    pub records_out: u64,
    /// How long it ran.
    pub seconds: f64,
    /// CPU time of the whole process after the warm-up, per record that came in then, where the
    /// system reports it; nanoseconds in the serialised form.
    #[serde(serialize_with = "as_nanos_if_known")]
    pub cpu_per_record: Option<Duration>,
    /// From when a record was due until its acknowledgement.
    pub latency: LatencySnapshot,
    /// The part of it before its release: the wait for a tick.
    pub queue: LatencySnapshot,
    /// From its release to the sink.
    pub compute: LatencySnapshot,
    /// From the sink to the acknowledgement.
    pub acknowledgement: LatencySnapshot,
    /// The whole distribution of `latency`.
    pub curve: Vec<Percentile>,
}

/// Whether the runs of a comparison wrote the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub enum Results {
    /// The same records, in any order; behind operators with state, the same last value for each
    /// key.
    Equal,
    /// The same number of records; these sinks do not report what they write.
    EqualCounts {
        /// Their names.
        sinks: Vec<String>,
    },
    /// The same as far as it can be compared. What these sinks got depends on when batches close.
    Incomparable {
        /// Their names.
        sinks: Vec<String>,
    },
    /// Not the same.
    Different {
        /// Which sink, and under which trigger.
        what: String,
    },
}

impl Results {
    fn of(trigger: Trigger, first: &Outcome, outcome: &Outcome) -> Results {
        for ((name, first), (_, now)) in first.states.iter().zip(&outcome.states) {
            if first != now {
                let what = format!("`{name}` ended with other values under {trigger} than in the first run");
                return Results::Different { what };
            }
        }
        let (mut unknown, mut incomparable) = (Vec::new(), Vec::new());
        for (first, now) in first.written.iter().zip(&outcome.written) {
            match now.follows {
                Emits::ByRecords => {}
                Emits::LastValues => continue,
                Emits::PerBatch => {
                    incomparable.push(now.sink.clone());
                    continue;
                }
            }
            if (first.records, first.print) != (now.records, now.print) {
                let what = match first.records == now.records {
                    true => format!("different records under {trigger} than in the first run"),
                    false => format!("{} records under {trigger} and {} in the first run", now.records, first.records),
                };
                return Results::Different { what: format!("`{}` got {what}", now.sink) };
            }
            if now.print.is_none() && now.records > 0 {
                unknown.push(now.sink.clone());
            }
        }
        match (unknown.is_empty(), incomparable.is_empty()) {
            (true, true) => Results::Equal,
            (false, true) => Results::EqualCounts { sinks: unknown },
            (_, false) => Results::Incomparable { sinks: incomparable },
        }
    }

    fn and(self, other: Results) -> Results {
        match (&self, &other) {
            (Results::Different { .. }, _) => self,
            (_, Results::Different { .. } | Results::EqualCounts { .. } | Results::Incomparable { .. }) => other,
            (_, Results::Equal) => self,
        }
    }

    /// Whether they are known to be equal.
    pub fn are_equal(&self) -> bool {
        *self == Results::Equal
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Results::Equal => f.write_str("all runs wrote the same"),
            Results::EqualCounts { sinks } => {
                write!(f, "all runs wrote equally many records; not compared by content: {}", sinks.join(", "))
            }
            Results::Incomparable { sinks } => {
                write!(
                    f,
                    "what these sinks got depends on when batches close, and is not compared: {}",
                    sinks.join(", ")
                )
            }
            Results::Different { what } => write!(f, "THE RUNS WROTE DIFFERENT RECORDS: {what}"),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.runs.iter().map(|run| run.trigger.len()).max().unwrap_or(0).max(7);
        writeln!(
            f,
            "{}: {} records, {} due each second, workers: {}; milliseconds from due to acknowledged",
            self.job, self.records, self.records_per_second, self.workers
        )?;
        let columns = ["p50", "p90", "p99", "p99.9", "max"];
        write!(f, "{:width$}", "trigger")?;
        columns.iter().try_for_each(|column| write!(f, "{column:>11}"))?;
        writeln!(f, "{:>16}{:>10}", "µs CPU/record", "measured")?;
        for run in &self.runs {
            let latency = &run.latency;
            write!(f, "{:width$}", run.trigger)?;
            for at in [latency.p50, latency.p90, latency.p99, latency.p999, latency.max] {
                write!(f, "{:>11.3}", at.as_secs_f64() * 1e3)?;
            }
            let cpu =
                run.cpu_per_record.map_or_else(|| "-".to_owned(), |cpu| format!("{:.1}", cpu.as_secs_f64() * 1e6));
            writeln!(f, "{cpu:>16}{:>10}", latency.count)?;
        }
        writeln!(f, "{}", self.results)
    }
}

/// CPU time of this process, where the system reports it.
fn cpu_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::try_from(time).ok()
    }
    #[cfg(not(unix))]
    {
        None
    }
}

fn as_nanos_if_known<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_nanos() as u64).serialize(serializer)
}
