//! The names of a job's metrics and what they mean, in one table. It provides the descriptions for
//! the `metrics` facade, the names under which [`metrics`](super::metrics) and
//! [`histogram`](super::histogram) publish, and the documentation of [`METRICS`].

/// A metric of a job: its name in Prometheus, and by OpenTelemetry's conventions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Metric {
    /// Its name in Prometheus, with its unit and the suffix of its kind. Exporters of the `metrics`
    /// facade get this name.
    pub name: &'static str,
    /// Its kind.
    pub kind: MetricKind,
    /// Its labels. A second job of the same name that runs at the same time in the same process
    /// also has the label `clone`.
    pub labels: &'static [&'static str],
    /// Its name by OpenTelemetry's conventions. OpenTelemetry's exporter to Prometheus turns it
    /// into `name`.
    pub otel_name: &'static str,
    /// Its unit by OpenTelemetry's conventions, in UCUM notation.
    pub otel_unit: &'static str,
    /// What it means.
    pub help: &'static str,
}

/// The kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricKind {
    /// A count that never goes back while the process lives.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Counts by upper bound, a sum and a count, which can be added up over processes. The
    /// `metrics` facade does not accept counts that were made elsewhere;
    /// [`histograms`](crate::histograms) writes it.
    Histogram,
}

/// Turns the table into a constant for each metric, the list of all, and the list's documentation.
/// It is a macro because a function cannot generate documentation.
macro_rules! metrics {
    ($($metric:ident: $kind:ident $name:literal [$($label:literal),+], $otel:literal in $unit:literal, $help:literal;)+) => {
        $(pub(crate) const $metric: Metric = Metric {
            name: $name,
            kind: MetricKind::$kind,
            labels: &[$($label),+],
            otel_name: $otel,
            otel_unit: $unit,
            help: $help,
        };)+

        /// All metrics of a job: names, kinds and labels as in Prometheus, with OpenTelemetry's
        /// name and unit.
        ///
        /// | name | kind | labels | OpenTelemetry | unit | meaning |
        /// |---|---|---|---|---|---|
        $(#[doc = concat!(
            "| `", $name, "` | ", stringify!($kind), " | ", $("`", $label, "` ",)+ "| `", $otel, "` | `", $unit, "` | ", $help, " |"
        )])+
        ///
        /// `job_name` is the name that was passed to [`Job::new`](crate::Job::new). When several
        /// jobs of the same name run in one process at the same time, the second also has the label
        /// `clone` with the value `2`, the third `3`: otherwise their gauges would overwrite each
        /// other. The label `job` is reserved by Prometheus for what it scrapes.
        pub const METRICS: &[Metric] = &[$($metric),+];
    };
}

metrics! {
    RUNNING: Gauge "millstream_running_jobs" ["job_name"],
        "millstream.running_jobs" in "{job}", "Jobs of this name that run.";
    RESTARTS: Counter "millstream_restarts_total" ["job_name"],
        "millstream.restarts" in "{restart}", "Runs that followed a failed one.";
    COMMITS: Counter "millstream_commits_total" ["job_name"],
        "millstream.commits" in "{commit}", "Commits that sources have answered.";
    EPOCHS: Counter "millstream_epochs_total" ["job_name"],
        "millstream.epochs" in "{epoch}", "Epochs opened.";
    SOURCE_RECORDS: Counter "millstream_source_records_total" ["job_name", "source"],
        "millstream.source.records" in "{record}", "Records that a source has released into the job.";
    SOURCE_BYTES: Counter "millstream_source_read_bytes_total" ["job_name", "source"],
        "millstream.source.read" in "By", "Bytes of the records that a source has released into the job.";
    SOURCE_LAG: Gauge "millstream_source_lag_records" ["job_name", "source", "partition"],
        "millstream.source.lag_records" in "{record}", "Records between the next one to read and the end of a partition.";
    STAGE_IN: Counter "millstream_stage_records_in_total" ["job_name", "stage"],
        "millstream.stage.records_in" in "{record}", "Records that went into a stage.";
    STAGE_OUT: Counter "millstream_stage_records_out_total" ["job_name", "stage"],
        "millstream.stage.records_out" in "{record}", "Records that came out of a stage.";
    STAGE_LATE: Counter "millstream_stage_late_records_total" ["job_name", "stage"],
        "millstream.stage.late_records" in "{record}", "Records that were late for a window, or had no event time.";
    STAGE_RETRIED: Counter "millstream_stage_retried_calls_total" ["job_name", "stage"],
        "millstream.stage.retried_calls" in "{call}", "Calls that had failed and were made again.";
    STAGE_ENTRIES: Gauge "millstream_stage_state_entries" ["job_name", "stage"],
        "millstream.stage.state_entries" in "{entry}", "Entries of the state of a stage: one for each key.";
    STAGE_STATE_BYTES: Gauge "millstream_stage_state_bytes" ["job_name", "stage"],
        "millstream.stage.state" in "By", "Memory that the state of a stage takes.";
    CHECKPOINTS: Counter "millstream_checkpoints_total" ["job_name"],
        "millstream.checkpoints" in "{checkpoint}", "Checkpoints that became durable.";
    CHECKPOINT_AGE: Gauge "millstream_checkpoint_age_seconds" ["job_name"],
        "millstream.checkpoint.age" in "s", "Time since the newest checkpoint became durable, or since the start of the run.";
    CHECKPOINT_ENTRIES: Counter "millstream_checkpoint_entries_total" ["job_name"],
        "millstream.checkpoint.entries" in "{entry}", "Changed entries of state that checkpoints have written.";
    CHECKPOINT_BYTES: Counter "millstream_checkpoint_written_bytes_total" ["job_name"],
        "millstream.checkpoint.written" in "By", "Bytes written for checkpoints, without those of merges.";
    CHECKPOINT_MERGED: Counter "millstream_checkpoint_merged_bytes_total" ["job_name"],
        "millstream.checkpoint.merged" in "By", "Bytes written to merge what checkpoints had written.";
    CHECKPOINT_FAILURES: Counter "millstream_checkpoint_failures_total" ["job_name"],
        "millstream.checkpoint.failures" in "{failure}", "Attempts to write a checkpoint, or to merge, that failed.";
    CHECKPOINT_RECENT: Gauge "millstream_checkpoint_part_recent_seconds" ["job_name", "part", "percentile"],
        "millstream.checkpoint.part.recent" in "s",
        "Percentile of the time that a part of a checkpoint took (cutting, encoding, writing or committing), in the last second with one.";
    SINK_RECORDS: Counter "millstream_sink_records_total" ["job_name", "sink"],
        "millstream.sink.records" in "{record}", "Records that a sink has acknowledged.";
    SINK_BYTES: Counter "millstream_sink_written_bytes_total" ["job_name", "sink"],
        "millstream.sink.written" in "By", "Bytes of the records that a sink has acknowledged.";
    SINK_SKIPPED: Counter "millstream_sink_skipped_records_total" ["job_name", "sink"],
        "millstream.sink.skipped_records" in "{record}", "Records that the policy of a sink has disposed of.";
    SINK_LATENCY: Histogram "millstream_sink_latency_seconds" ["job_name", "sink"],
        "millstream.sink.latency" in "s", "Time from the arrival of a record to its acknowledgement by a sink.";
    SINK_LATENCY_RECENT: Gauge "millstream_sink_latency_recent_seconds" ["job_name", "sink", "percentile"],
        "millstream.sink.latency.recent" in "s",
        "Percentile of the latency in the last second in which a sink acknowledged records.";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What OpenTelemetry's exporter to Prometheus makes of a name and a unit.
    fn translated(metric: &Metric) -> String {
        let unit = match metric.otel_unit {
            "s" => "_seconds",
            "By" => "_bytes",
            annotation if annotation.starts_with('{') => "",
            other => panic!("{other} has no translation here"),
        };
        let suffix = if metric.kind == MetricKind::Counter { "_total" } else { "" };
        format!("{}{unit}{suffix}", metric.otel_name.replace('.', "_"))
    }

    #[test]
    fn a_name_in_prometheus_is_what_opentelemetry_makes_of_its_own() {
        for metric in METRICS {
            assert_eq!(metric.name, translated(metric));
        }
    }

    #[test]
    fn no_label_is_one_that_prometheus_keeps_for_itself() {
        for metric in METRICS {
            for label in metric.labels {
                assert!(!["job", "instance", "le", "quantile"].contains(label), "{}: {label}", metric.name);
            }
        }
    }
}
