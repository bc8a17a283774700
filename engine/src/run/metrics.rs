//! What a run counts, told once a second to the [`metrics`] facade, so that whatever exporter the program has installed shows
//! it. Without one this costs next to nothing, and records cost nothing extra in either case: they are counted anyway. What
//! there is stands in the crate's documentation.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use metrics::{Label, Unit, counter, describe_counter, describe_gauge, gauge};

use crate::words::{Latency, SinkMeter};

use super::plan::{Meter, Run};

/// How often the facade is told.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Tells the facade what a run has done since it was told before.
pub(crate) struct Publisher {
    job: String,
    told_at: Instant,
    /// What was told of each count.
    told: HashMap<(&'static str, String), u64>,
    latencies: HashMap<String, Latency>,
    /// Partitions whose lag was told.
    lagging: BTreeSet<(String, String)>,
}

impl Publisher {
    pub(crate) fn new(job: &str) -> Publisher {
        describe();
        Publisher {
            job: job.to_owned(),
            told_at: Instant::now(),
            told: HashMap::new(),
            latencies: HashMap::new(),
            lagging: BTreeSet::new(),
        }
    }

    /// A run of the job has begun.
    pub(crate) fn begin(&self) {
        gauge!("millstream_running", "job" => self.job.clone()).increment(1.0);
    }

    /// Tells, when it is time.
    pub(crate) fn tell_sometimes(&mut self, run: &Run, commits: u64) {
        if self.told_at.elapsed() >= TELL_EVERY {
            self.tell(run, commits);
        }
    }

    /// The run has ended; what was not told yet is.
    pub(crate) fn end(&mut self, run: &Run, commits: u64) {
        self.tell(run, commits);
        for (source, partition) in std::mem::take(&mut self.lagging) {
            self.lag(source, partition, 0);
        }
        gauge!("millstream_running", "job" => self.job.clone()).decrement(1.0);
    }

    fn tell(&mut self, run: &Run, commits: u64) {
        self.told_at = Instant::now();
        self.count("millstream_epochs_total", None, run.ticker.epochs());
        self.count("millstream_commits_total", None, commits);
        let mut lags = run.plan.sources.iter().map(|source| source.shared.lag());
        let mut lagging = BTreeSet::new();
        for node in &run.plan.nodes {
            let name = &node.name;
            match &node.meter {
                Meter::Source(meter) => {
                    self.count("millstream_source_records_total", Some(("source", name)), meter.records.get());
                    self.count("millstream_source_bytes_total", Some(("source", name)), meter.bytes.get());
                    for lag in lags.next().unwrap_or_default() {
                        let records = lag.records();
                        lagging.insert((name.clone(), lag.partition.clone()));
                        self.lag(name.clone(), lag.partition, records);
                    }
                }
                Meter::Stage(meter) => {
                    self.count("millstream_stage_records_in_total", Some(("stage", name)), meter.records_in.get());
                    self.count("millstream_stage_records_out_total", Some(("stage", name)), meter.records_out.get());
                }
                Meter::Sink(meter) => {
                    self.count("millstream_sink_records_total", Some(("sink", name)), meter.acknowledged.get());
                    self.count("millstream_sink_bytes_total", Some(("sink", name)), meter.bytes.get());
                    self.count("millstream_sink_skipped_total", Some(("sink", name)), meter.skipped.get());
                    self.latencies(name, meter);
                }
            }
        }
        // A partition that is somebody else's by now is behind for us no more.
        for (source, partition) in std::mem::replace(&mut self.lagging, lagging) {
            if !self.lagging.contains(&(source.clone(), partition.clone())) {
                self.lag(source, partition, 0);
            }
        }
    }

    fn count(&mut self, name: &'static str, of: Option<(&'static str, &str)>, count: u64) {
        let node = of.map_or_else(String::new, |(_, node)| node.to_owned());
        let told = self.told.entry((name, node)).or_default();
        let mut labels = vec![Label::new("job", self.job.clone())];
        labels.extend(of.map(|(kind, node)| Label::new(kind, node.to_owned())));
        counter!(name, labels).increment(count.saturating_sub(*told));
        *told = count;
    }

    fn lag(&self, source: String, partition: String, records: u64) {
        let labels = [("job", self.job.clone()), ("source", source), ("partition", partition)];
        gauge!("millstream_source_lag_records", &labels).set(records as f64);
    }

    fn latencies(&mut self, name: &str, meter: &SinkMeter) {
        let told = self.latencies.entry(name.to_owned()).or_default();
        if meter.measured() == told.count() {
            return;
        }
        let Some(now) = meter.total() else { return };
        let since = now.since(told).snapshot();
        let quantiles =
            [("0.5", since.p50), ("0.9", since.p90), ("0.99", since.p99), ("0.999", since.p999), ("1", since.max)];
        for (quantile, latency) in quantiles {
            let labels = [("job", self.job.clone()), ("sink", name.to_owned()), ("quantile", quantile.to_owned())];
            gauge!("millstream_sink_latency_seconds", &labels).set(latency.as_secs_f64());
        }
        *told = now;
    }
}

/// A run that failed is followed by another.
pub(crate) fn restarts(job: &str) {
    counter!("millstream_restarts_total", "job" => job.to_owned()).increment(1);
}

fn describe() {
    describe_gauge!("millstream_running", Unit::Count, "how many jobs of this name run");
    describe_counter!("millstream_restarts_total", Unit::Count, "runs that followed a failed one");
    describe_counter!("millstream_commits_total", Unit::Count, "commits that sources have answered");
    describe_counter!("millstream_epochs_total", Unit::Count, "epochs opened");
    describe_counter!("millstream_source_records_total", Unit::Count, "records released into the job");
    describe_counter!("millstream_source_bytes_total", Unit::Bytes, "what they held");
    describe_gauge!("millstream_source_lag_records", Unit::Count, "records behind the end of a partition");
    describe_counter!("millstream_stage_records_in_total", Unit::Count, "records that went into a stage");
    describe_counter!("millstream_stage_records_out_total", Unit::Count, "records that came out of a stage");
    describe_counter!("millstream_sink_records_total", Unit::Count, "records that a sink has acknowledged");
    describe_counter!("millstream_sink_bytes_total", Unit::Bytes, "what they held");
    describe_counter!("millstream_sink_skipped_total", Unit::Count, "records that a sink has disposed of");
    let latency = "from arrival to acknowledgement, of the records acknowledged in the last second that had any";
    describe_gauge!("millstream_sink_latency_seconds", Unit::Seconds, latency);
}
