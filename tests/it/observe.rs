//! What a job tells those who watch it: an exporter of the `metrics` facade shows what the report says.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use millstream::{Job, Restart, collect, discard, rows};

use super::kafka::kafka;
use crate::support::broker::shared;
use crate::support::{events, eventually};

/// What the exporter shows of one job, a line for each value.
fn shown(job: &str) -> Vec<String> {
    static EXPORTER: OnceLock<PrometheusHandle> = OnceLock::new();
    let exporter = EXPORTER.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap());
    let of_job = format!("job=\"{job}\"");
    exporter.render().lines().filter(|line| line.contains(&of_job)).map(str::to_owned).collect()
}

/// The value of a metric whose labels are as given beside the job's.
#[track_caller]
fn value(job: &str, name: &str, labels: &str) -> f64 {
    let lines = shown(job);
    let start = format!("{name}{{job=\"{job}\"{labels}}} ");
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
    assert_eq!(value(name, "millstream_running", ""), 0.0);
    let slowest = value(name, "millstream_sink_latency_seconds", ",sink=\"collect\",quantile=\"1\"");
    let max = report.sinks[0].latency.max.as_secs_f64();
    assert!((slowest - max).abs() < max * 0.01, "{slowest} and {max}");
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
    let restart = Restart::Backoff { first: Duration::from_millis(1), most: Duration::from_millis(1) };
    let report = job.restart(restart).run().unwrap();
    assert_eq!((report.restarts, value(name, "millstream_restarts_total", "")), (1, 1.0));
    let done = value(name, "millstream_sink_records_total", ",sink=\"discard\"");
    // The report is of the newest run; a counter never goes back.
    assert!(done > report.records_out() as f64 && done <= 2_000.0, "{done}");
}

#[test]
fn metrics_are_told_while_the_job_runs_and_lag_is_nobodys_when_it_has_ended() {
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
    let running = job.memory(millstream::Bytes(64)).start().unwrap();
    let numbers: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    broker.write(&topic, numbers.iter().map(|n| (None, "", Some(n.as_str()))));
    let lag = format!(",source=\"kafka {topic}\",partition=\"{topic}/0\"");
    eventually("the lag is told", || {
        shown(name).iter().any(|line| line.contains("lag_records"))
            && value(name, "millstream_source_lag_records", &lag) > 0.0
    });
    assert_eq!(value(name, "millstream_running", ""), 1.0);
    valve.open();
    eventually("all of it is done", || running.report().records_out() == 1_000);
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
    assert!(events::was_logged(&[&job, "INFO", "running"]), "its start");
    assert!(events::was_logged(&[&job, "INFO", "ended"]), "its end");
    for n in 1..=3 {
        let (n, worker) = (format!("n={n}"), ["worker index=0", "worker index=1"]);
        assert!(worker.iter().any(|worker| events::was_logged(&[&job, worker, "seen", &n])), "{n}");
    }
    let failing = Job::new(&name, |flow| flow.source(rows([1]))?.inspect(|_| panic!("on purpose")).sink(discard()));
    failing.run().unwrap_err();
    assert!(events::was_logged(&[&job, "ERROR", "failed", "on purpose"]), "why it ended");
}
