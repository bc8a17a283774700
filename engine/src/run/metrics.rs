//! Publishes what a run counts to the [`metrics`] facade, once a second, so that any exporter that
//! the program has installed shows it. Without an exporter this costs next to nothing, and in
//! either case a record costs nothing extra: it is counted anyway. The metrics are listed in
//! [`names`](super::names).

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::words::{Latency, SinkMeter};

use super::histogram;
use super::labels::Labels;
use super::names::{
    CHECKPOINT_AGE, CHECKPOINT_BYTES, CHECKPOINT_ENTRIES, CHECKPOINT_FAILURES, CHECKPOINT_MERGED, CHECKPOINT_RECENT,
    CHECKPOINTS, COMMITS, EPOCHS, METRICS, Metric, MetricKind, RESTARTS, RUNNING, SINK_BYTES, SINK_LATENCY_RECENT,
    SINK_RECORDS, SINK_SKIPPED, SOURCE_BYTES, SOURCE_LAG, SOURCE_RECORDS, STAGE_ENTRIES, STAGE_IN, STAGE_LATE,
    STAGE_OUT, STAGE_RETRIED, STAGE_STATE_BYTES,
};
use super::plan::Meter;
use super::shared::Run;

/// How often the counts are published.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Publishes what a run has done since the last time.
pub(crate) struct Publisher {
    job: Labels,
    told_at: Instant,
    /// The published value of each count.
    told: HashMap<(&'static str, String), u64>,
    /// Of each sink, and of each part of checkpoints.
    latencies: HashMap<(&'static str, String), Latency>,
    /// When the run began.
    began: Instant,
    /// Partitions whose lag was published.
    lagging: BTreeSet<(String, String)>,
}

impl Publisher {
    pub(crate) fn new(job: Labels) -> Publisher {
        describe();
        Publisher {
            job,
            told_at: Instant::now(),
            told: HashMap::new(),
            latencies: HashMap::new(),
            began: Instant::now(),
            lagging: BTreeSet::new(),
        }
    }

    /// A run of the job has begun.
    pub(crate) fn begin(&self) {
        gauge!(RUNNING.name, self.job.of(&RUNNING, &[])).increment(1.0);
        // A series that begins at zero shows its first increase.
        counter!(RESTARTS.name, self.job.of(&RESTARTS, &[])).increment(0);
    }

    /// Publishes, if it is time.
    pub(crate) fn tell_sometimes(&mut self, run: &Run, commits: u64) {
        if self.told_at.elapsed() >= TELL_EVERY {
            self.tell(run, commits);
        }
    }

    /// Publishes what is left when the run has ended.
    pub(crate) fn end(&mut self, run: &Run, commits: u64) {
        self.tell(run, commits);
        for (source, partition) in std::mem::take(&mut self.lagging) {
            self.lag(&source, &partition, 0);
        }
        for (node, _) in run.plan.nodes().filter(|(node, _)| node.traits.keeps_state) {
            self.gauge(&STAGE_ENTRIES, &[&node.name], 0.0);
            self.gauge(&STAGE_STATE_BYTES, &[&node.name], 0.0);
        }
        if run.checkpoints().is_some() {
            self.gauge(&CHECKPOINT_AGE, &[], 0.0);
        }
        gauge!(RUNNING.name, self.job.of(&RUNNING, &[])).decrement(1.0);
    }

    fn tell(&mut self, run: &Run, commits: u64) {
        self.told_at = Instant::now();
        self.count(&EPOCHS, &[], run.ticker.epochs());
        self.count(&COMMITS, &[], commits);
        self.checkpoints(run);
        let mut lags = run.plan.sources.iter().map(|source| source.shared.lag());
        let mut lagging = BTreeSet::new();
        for (node, meter) in run.plan.nodes() {
            let name = node.name.as_str();
            match meter {
                Meter::Source(meter) => {
                    self.count(&SOURCE_RECORDS, &[name], meter.records.get());
                    self.count(&SOURCE_BYTES, &[name], meter.bytes.get());
                    for lag in lags.next().unwrap_or_default() {
                        self.lag(name, &lag.partition, lag.records());
                        lagging.insert((name.to_owned(), lag.partition));
                    }
                }
                Meter::Stage(meter) => {
                    self.count(&STAGE_IN, &[name], meter.records_in.get());
                    self.count(&STAGE_OUT, &[name], meter.records_out.get());
                    self.count(&STAGE_RETRIED, &[name], meter.retried.get());
                    if node.traits.time.waits() {
                        self.count(&STAGE_LATE, &[name], meter.late.get());
                    }
                    if node.traits.keeps_state {
                        self.gauge(&STAGE_ENTRIES, &[name], meter.entries.get() as f64);
                        self.gauge(&STAGE_STATE_BYTES, &[name], meter.state_bytes.get() as f64);
                    }
                }
                Meter::Sink(meter) => {
                    self.count(&SINK_RECORDS, &[name], meter.acknowledged.get());
                    self.count(&SINK_BYTES, &[name], meter.bytes.get());
                    self.count(&SINK_SKIPPED, &[name], meter.skipped.get());
                    self.sink_latencies(name, meter);
                }
            }
        }
        // The lag of a partition that was unassigned is published by its new owner.
        for (source, partition) in std::mem::replace(&mut self.lagging, lagging) {
            if !self.lagging.contains(&(source.clone(), partition.clone())) {
                self.lag(&source, &partition, 0);
            }
        }
    }

    fn count(&mut self, metric: &Metric, of: &[&str], count: u64) {
        let told = self.told.entry((metric.name, of.concat())).or_default();
        counter!(metric.name, self.job.of(metric, of)).increment(count.saturating_sub(*told));
        *told = count;
    }

    fn gauge(&self, metric: &Metric, of: &[&str], value: f64) {
        gauge!(metric.name, self.job.of(metric, of)).set(value);
    }

    fn lag(&self, source: &str, partition: &str, records: u64) {
        self.gauge(&SOURCE_LAG, &[source, partition], records as f64);
    }

    fn checkpoints(&mut self, run: &Run) {
        let Some((shown, meter)) = run.checkpoints() else { return };
        let progress = shown.get();
        self.count(&CHECKPOINTS, &[], progress.writing.count());
        self.count(&CHECKPOINT_ENTRIES, &[], progress.entries);
        self.count(&CHECKPOINT_BYTES, &[], progress.bytes);
        self.count(&CHECKPOINT_MERGED, &[], progress.merged);
        self.count(&CHECKPOINT_FAILURES, &[], progress.failures);
        let newest = progress.newest.map_or(self.began, |(_, at)| at);
        self.gauge(&CHECKPOINT_AGE, &[], newest.elapsed().as_secs_f64());
        let parts = [
            ("cutting", meter.cutting()),
            ("encoding", meter.encoding()),
            ("writing", Some(progress.writing)),
            ("committing", meter.committing()),
        ];
        for (part, now) in parts {
            now.and_then(|now| self.latencies(&CHECKPOINT_RECENT, part, now));
        }
    }

    fn sink_latencies(&mut self, sink: &str, meter: &SinkMeter) {
        // A histogram is only copied when there is something new in it.
        let told = self.latencies.get(&(SINK_LATENCY_RECENT.name, sink.to_owned())).map_or(0, Latency::count);
        if meter.measured() != told
            && let Some(since) = meter.total().and_then(|now| self.latencies(&SINK_LATENCY_RECENT, sink, now))
        {
            histogram::add(&self.job, sink, &since);
        }
    }

    /// Publishes percentiles of what was measured since the last time, if anything was. Returns it.
    fn latencies(&mut self, metric: &Metric, of: &str, now: Latency) -> Option<Latency> {
        let told = self.latencies.entry((metric.name, of.to_owned())).or_default();
        if now.count() == told.count() {
            return None;
        }
        let since = now.since(told);
        *told = now;
        let recent = since.snapshot();
        let percentiles =
            [("50", recent.p50), ("90", recent.p90), ("99", recent.p99), ("99.9", recent.p999), ("100", recent.max)];
        for (percentile, latency) in percentiles {
            self.gauge(metric, &[of, percentile], latency.as_secs_f64());
        }
        Some(since)
    }
}

/// Counts a run that follows a failed one.
pub(crate) fn restarts(job: &Labels) {
    counter!(RESTARTS.name, job.of(&RESTARTS, &[])).increment(1);
}

fn describe() {
    for metric in METRICS {
        let unit = match metric.otel_unit {
            "s" => Unit::Seconds,
            "By" => Unit::Bytes,
            _ => Unit::Count,
        };
        match metric.kind {
            MetricKind::Counter => describe_counter!(metric.name, unit, metric.help),
            MetricKind::Gauge => describe_gauge!(metric.name, unit, metric.help),
            // `histograms` writes it.
            MetricKind::Histogram => {}
        }
    }
}
