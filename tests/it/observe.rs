//! What a job shows to monitoring: an exporter of the `metrics` facade shows what the report says,
//! and events are in the spans of their job.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use millstream::{
    Clock, EventTime, Job, METRICS, MetricKind, Restart, Trigger, Tumbling, channel, collect, discard, histograms, rows,
};
use millstream_connectors::report::write_line;

use super::kafka::kafka;
use crate::support::broker::shared;
use crate::support::{events, eventually};

/// What the exporter shows of one job, a line for each value.
fn shown(job: &str) -> Vec<String> {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    let exporter = EXPORTER.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap());
    let of_job = format!("{{job_name=\"{job}\"");
    (exporter.render() + &histograms()).lines().filter(|line| line.contains(&of_job)).map(str::to_owned).collect()
}

/// The value of a metric that has these labels in addition to the job's name.
#[track_caller]
fn value(job: &str, name: &str, labels: &str) -> f64 {
    let lines = shown(job);
    let start = format!("{name}{{job_name=\"{job}\"{labels}}} ");
    let line = lines.iter().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {start} in {lines:#?}")).parse().unwrap()
}

#[test]
fn metrics_say_what_the_report_says() {
    let name = "observed";
    shown(name);
    let results = collect();
    let sink = results.clone();
    let job = Job::new(name, move |flow| {
        flow.source(rows(0..1_000_u64))?.filter(|n| n % 4 == 0).named("every fourth").sink(&sink)
    });
    let report = job.workers(2).run().unwrap();
    let sink = ",sink=\"collect\"";
    assert_eq!(value(name, "millstream_source_records_total", ",source=\"rows\""), report.records_in() as f64);
    assert_eq!(value(name, "millstream_stage_records_in_total", ",stage=\"every fourth\""), 1_000.0);
    assert_eq!(value(name, "millstream_stage_records_out_total", ",stage=\"every fourth\""), 250.0);
    assert_eq!(value(name, "millstream_sink_records_total", sink), report.records_out() as f64);
    assert_eq!(value(name, "millstream_commits_total", ""), report.commits as f64);
    assert_eq!(value(name, "millstream_running_jobs", ""), 0.0);
    let slowest = value(name, "millstream_sink_latency_recent_seconds", ",sink=\"collect\",percentile=\"100\"");
    let max = report.sinks[0].latency.max.as_secs_f64();
    assert!((slowest - max).abs() < max * 0.01, "{slowest} and {max}");
}

#[test]
fn every_metric_of_the_table_is_published_and_no_other() {
    let name = "observed table";
    shown(name);
    let broker = shared();
    let topic = broker.topic("table", 1);
    broker.write(&topic, [(None, "", Some("1")), (None, "", Some("2"))]);
    let (kafka, directory) = (kafka(broker), tempfile::tempdir().unwrap());
    let job = Job::new(name, move |flow| {
        let numbers = flow.source(kafka.topic(&topic).json::<u64>())?.or_stop();
        let timed = numbers.with_watermark(|n| EventTime(*n as i64), Duration::ZERO);
        timed.clone().key_by(|n| *n).count().named("running").updates().sink(discard())?;
        let windows = timed.key_by(|n| *n).window(Tumbling::new(Duration::from_millis(1)));
        windows.count().finals().sink(discard())
    });
    let job = job.checkpoints(directory.path());
    job.trigger(Trigger::AvailableNow).run().unwrap();
    let lines = shown(name);
    let names = |line: &String| line.split_once('{').unwrap().0.to_owned();
    let mut told: Vec<String> = lines.iter().map(names).collect();
    for metric in METRICS.iter().filter(|metric| metric.kind == MetricKind::Histogram) {
        for suffix in ["_bucket", "_sum", "_count"] {
            let part = format!("{}{suffix}", metric.name);
            assert!(told.contains(&part), "no {part} in {lines:#?}");
            told.retain(|name| *name != part);
        }
    }
    told.sort_unstable();
    told.dedup();
    let mut table: Vec<&str> =
        METRICS.iter().filter(|metric| metric.kind != MetricKind::Histogram).map(|m| m.name).collect();
    table.sort_unstable();
    assert_eq!(told, table);
}

#[test]
fn metrics_and_the_report_say_how_checkpoints_fare() {
    let name = "observed checkpoints";
    shown(name);
    let ((numbers, source), directory) = (channel::<u64>(100), tempfile::tempdir().unwrap());
    let count =
        move |flow: &millstream::Flow<'_>| flow.source(&source)?.key_by(|n| n % 10).count().updates().sink(discard());
    let job = Job::new(name, count).workers(2).checkpoints(directory.path());
    let running = job.checkpoint_every(Duration::from_millis(5)).start().unwrap();
    (0..50).for_each(|n| drop(numbers.try_send(n).unwrap()));
    let durable = || running.report().checkpoints.unwrap();
    eventually("all of it is durable", || durable().entries >= 10 && running.report().committed > 0);
    eventually("the gauges are published", || {
        let of_entries = "millstream_stage_state_entries{job_name=\"observed checkpoints\",stage=\"count\"} 10";
        shown(name).iter().any(|line| line == of_entries)
    });
    let stage = running.report().stages.into_iter().find(|stage| stage.name == "count").unwrap();
    assert_eq!(value(name, "millstream_stage_state_bytes", ",stage=\"count\""), stage.state_bytes as f64);
    drop(numbers);
    let report = running.wait().unwrap();
    let shown = report.checkpoints.clone().unwrap();
    assert!(shown.cutting.count >= 1 && shown.cutting.count == shown.encoding.count, "{shown:?}");
    assert!(shown.writing.count >= shown.committing.count && shown.committing.count >= 1, "{shown:?}");
    for part in ["cutting, an operator", "encoding, an operator", "writing", "committing"] {
        assert!(report.to_string().contains(&format!("    {part}")), "{report}");
    }
    assert_eq!(value(name, "millstream_checkpoints_total", ""), shown.writing.count as f64);
    assert_eq!(value(name, "millstream_checkpoint_entries_total", ""), shown.entries as f64);
    assert_eq!(value(name, "millstream_checkpoint_written_bytes_total", ""), shown.bytes as f64);
    assert_eq!(value(name, "millstream_checkpoint_failures_total", ""), 0.0);
    let slowest = ",part=\"writing\",percentile=\"100\"";
    assert!(value(name, "millstream_checkpoint_part_recent_seconds", slowest) > 0.0);
    // A run that has ended holds nothing.
    assert_eq!(value(name, "millstream_stage_state_entries", ",stage=\"count\""), 0.0);
}

/// Quantiles of several processes cannot be averaged: a fleet adds up buckets.
#[test]
fn latencies_are_a_histogram_that_counts_every_record_over_restarts() {
    let name = "observed buckets";
    shown(name);
    let clock = Clock::simulated();
    let (numbers, source) = channel::<u64>(100);
    let fell = Arc::new(AtomicBool::new(false));
    let job = Job::new(name, move |flow| {
        let fell = Arc::clone(&fell);
        let falls = move |n: &u64| assert!(*n != 99 || fell.swap(true, SeqCst), "once");
        flow.source(&source)?.inspect(falls).sink(discard())
    });
    let tick = Duration::from_millis(40);
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let running = job.trigger(Trigger::micro_batch(tick)).clock(clock.clone()).restart(restart).start().unwrap();
    let send_and_tick = |n: u64| {
        drop(numbers.try_send(n).unwrap());
        eventually("the record is acknowledged", || {
            clock.advance(tick);
            running.report().records_out() == n + 1
        });
    };
    (0..3).for_each(send_and_tick);
    drop(numbers.try_send(99).unwrap());
    eventually("the job restarts", || {
        clock.advance(tick);
        running.report().restarts == 1
    });
    drop(numbers);
    let mut running = running;
    eventually("the job ends", || {
        clock.advance(tick);
        running.wait_for(Duration::from_millis(1)).is_some()
    });
    let sink = ",sink=\"discard\"";
    let done = value(name, "millstream_sink_records_total", sink);
    assert!(done >= 3.0, "{done}");
    assert_eq!(value(name, "millstream_sink_latency_seconds_count", sink), done);
    let bucket = |le: &str| value(name, "millstream_sink_latency_seconds_bucket", &format!("{sink},le=\"{le}\""));
    assert_eq!(bucket("+Inf"), done);
    let bounds = ["0.0001", "0.0025", "0.025", "0.05", "0.25", "1", "10", "60", "+Inf"];
    assert!(bounds.map(bucket).is_sorted(), "buckets are not cumulative: {:?}", bounds.map(bucket));
    // Its value depends on how far the clock was advanced.
    value(name, "millstream_sink_latency_seconds_sum", sink);
}

/// Two jobs with the same name used to share their series: the gauges of one overwrote those of the
/// other.
#[test]
fn two_jobs_of_one_name_have_series_of_their_own() {
    let name = "observed twins";
    shown(name);
    let start = || {
        let (numbers, source) = channel::<u64>(100);
        let job = Job::new(name, move |flow| flow.source(&source)?.sink(discard()));
        (numbers, job.start().unwrap())
    };
    let ((first, one), (second, two)) = (start(), start());
    drop(first.try_send(1).unwrap());
    (0..2).for_each(|n| drop(second.try_send(n).unwrap()));
    drop((first, second));
    one.wait().unwrap();
    two.wait().unwrap();
    assert_eq!(value(name, "millstream_sink_records_total", ",sink=\"discard\""), 1.0);
    assert_eq!(value(name, "millstream_sink_records_total", ",clone=\"2\",sink=\"discard\""), 2.0);
    assert_eq!(value(name, "millstream_sink_latency_seconds_count", ",clone=\"2\",sink=\"discard\""), 2.0);
    let (third, three) = start();
    drop(third);
    three.wait().unwrap();
    assert!(shown(name).iter().all(|line| !line.contains("clone=\"3\"")), "a free number is not reused");
}

#[test]
fn counts_go_on_over_a_restart() {
    let name = "observed restart";
    shown(name);
    let fell = Arc::new(AtomicBool::new(false));
    let job = Job::new(name, move |flow| {
        let fell = Arc::clone(&fell);
        let falls = move |n: &u64| assert!(*n != 700 || fell.swap(true, SeqCst), "once");
        flow.source(rows(0..1_000_u64))?.inspect(falls).sink(discard())
    });
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let report = job.restart(restart).run().unwrap();
    assert_eq!((report.restarts, value(name, "millstream_restarts_total", "")), (1, 1.0));
    let done = value(name, "millstream_sink_records_total", ",sink=\"discard\"");
    // The report covers the newest run only; a counter never decreases.
    assert!(done > report.records_out() as f64 && done <= 2_000.0, "{done}");
}

#[test]
fn metrics_are_published_while_the_job_runs_and_lag_is_zero_after_its_end() {
    let name = "observed lag";
    shown(name);
    let broker = shared();
    let topic = broker.topic("observed", 1);
    let (kafka, from) = (kafka(broker), topic.clone());
    let valve = crate::support::valve::Valve::shut();
    let sink = valve.clone();
    let job = Job::new(name, move |flow| {
        flow.source(kafka.topic(&from).group(&from).partitions([0]).json::<u64>())?.or_stop().sink(&sink)
    });
    let running = job.memory(millstream::ByteSize(64)).start().unwrap();
    let numbers: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    broker.write(&topic, numbers.iter().map(|n| (None, "", Some(n.as_str()))));
    let lag = format!(",source=\"kafka {topic}\",partition=\"{topic}/0\"");
    eventually("the lag is reported", || {
        shown(name).iter().any(|line| line.contains("lag_records"))
            && value(name, "millstream_source_lag_records", &lag) > 0.0
    });
    assert_eq!(value(name, "millstream_running_jobs", ""), 1.0);
    valve.open();
    eventually("all records are acknowledged", || running.report().records_out() == 1_000);
    running.stop();
    running.wait().unwrap();
    assert_eq!(value(name, "millstream_source_lag_records", &lag), 0.0);
    assert_eq!(value(name, "millstream_sink_records_total", ",sink=\"valve\""), 1_000.0);
}

#[test]
fn events_stand_in_the_spans_of_their_job_and_worker() {
    events::begin();
    let name = format!("traced-{}", fastrand::u64(..));
    let job = Job::new(&name, |flow| {
        flow.source(rows([1, 2, 3]))?.inspect(|n| tracing::info!(target: "millstream::user", n, "seen")).sink(discard())
    });
    job.workers(2).run().unwrap();
    let job = format!("job name=\"{name}\"");
    assert!(events::was_logged(&[&job, "INFO", "running"]), "the start is not logged");
    assert!(events::was_logged(&[&job, "INFO", "ended"]), "the end is not logged");
    for n in 1..=3 {
        let (n, worker) = (format!("n={n}"), ["worker index=0", "worker index=1"]);
        assert!(worker.iter().any(|worker| events::was_logged(&[&job, worker, "seen", &n])), "{n}");
    }
    let failing = Job::new(&name, |flow| flow.source(rows([1]))?.inspect(|_| panic!("on purpose")).sink(discard()));
    failing.run().unwrap_err();
    assert!(events::was_logged(&[&job, "ERROR", "failed", "on purpose"]), "the reason is not logged");
}

#[test]
fn checkpoints_and_merges_are_spans_of_their_job() {
    events::begin();
    let (name, directory) = (format!("kept-{}", fastrand::u64(..)), tempfile::tempdir().unwrap());
    let (sender, numbers) = channel(10);
    let job = Job::new(&name, move |flow| flow.source(&numbers)?.global().count().updates().sink(discard()));
    let running = job.checkpoints(directory.path()).workers(2).start().unwrap();
    (1..=3).for_each(|n| drop(sender.try_send(n).unwrap()));
    let job = format!("job name=\"{name}\"");
    // Between checkpoints, on a thread of its own: a run that ends does not wait for it.
    eventually("the merge is shown", || events::was_opened(&[&job, "merge"]));
    drop(sender);
    running.wait().unwrap();
    assert!(events::was_opened(&[&job, "checkpoint number=", "entries=1"]), "the checkpoint is not shown");
}

/// Takes one call at a time, as whoever follows a file sees it.
struct Pieces(Vec<Vec<u8>>);

impl Write for Pieces {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        self.0.push(piece.to_vec());
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_report_is_written_as_one_whole_line() {
    let job = Job::new("line", |flow| flow.source(&rows(1..=3))?.sink(discard()));
    let report = job.start().unwrap().wait().unwrap();
    let mut pieces = Pieces(Vec::new());
    write_line(&report, &mut pieces).unwrap();
    let [line] = &pieces.0[..] else { panic!("{} pieces", pieces.0.len()) };
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(line).unwrap()["job"], "line");
}
