//! The latency of sinks as a histogram that can be added up over many processes. The buckets are
//! counted once a second from what the report measures anyway, so a record costs nothing extra. The
//! [`metrics`](super::metrics) facade takes one value for each record and does not accept counts,
//! so this writes Prometheus' text format itself.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::time::Duration;

use crate::words::{Latency, lock};

use super::labels::{Labels, escaped};
use super::names::SINK_LATENCY;

/// The upper bounds of the buckets: 100 µs to a minute, three in each power of ten.
const BOUNDS: [Duration; 18] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// What all sinks of this process have measured. It is kept over restarts and after the end of
/// their jobs, because counters never go back.
static SERIES: Mutex<BTreeMap<(Labels, String), Buckets>> = Mutex::new(BTreeMap::new());

/// The number of records up to each bound, the number of all records, and the sum of their
/// latencies.
#[derive(Debug, Default)]
struct Buckets {
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

/// Adds what a sink has measured since the last call.
pub(super) fn add(job: &Labels, sink: &str, since: &Latency) {
    let mut series = lock(&SERIES);
    let buckets = series.entry((job.clone(), sink.to_owned())).or_default();
    for (count, new) in buckets.counts.iter_mut().zip(since.counts_to(BOUNDS)) {
        *count += new;
    }
    buckets.count += since.count();
    buckets.sum += since.sum();
}

/// The latency of all sinks of this process as a histogram in Prometheus' text format, from 100 µs
/// to 60 s. Append it to what an exporter of the `metrics` facade writes. Empty until a sink has
/// acknowledged a record.
///
/// Quantiles of several processes cannot be averaged, but buckets can be added up:
///
/// ```text
/// histogram_quantile(0.99, sum by (le) (
///     rate(millstream_sink_latency_seconds_bucket{job_name="invoices"}[5m])))
/// ```
///
/// It is updated once a second, as everything in [`METRICS`](crate::METRICS), and continues over
/// restarts. A latency that is less than half a per cent above a bound may count as within it.
/// Latencies above an hour count as an hour in the sum.
pub fn histograms() -> String {
    let series = lock(&SERIES);
    let mut text = String::new();
    if !series.is_empty() {
        let (name, help) = (SINK_LATENCY.name, SINK_LATENCY.help);
        line(&mut text, format_args!("# HELP {name} {help}\n# TYPE {name} histogram"));
    }
    series.iter().for_each(|((job, sink), buckets)| buckets.write(&mut text, job, sink));
    text
}

impl Buckets {
    fn write(&self, text: &mut String, job: &Labels, sink: &str) {
        let name = SINK_LATENCY.name;
        let labels = format!("{job},sink=\"{}\"", escaped(sink));
        for (count, bound) in self.counts.iter().zip(BOUNDS) {
            line(text, format_args!("{name}_bucket{{{labels},le=\"{}\"}} {count}", bound.as_secs_f64()));
        }
        line(text, format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {}", self.count));
        line(text, format_args!("{name}_sum{{{labels}}} {}", self.sum.as_secs_f64()));
        line(text, format_args!("{name}_count{{{labels}}} {}", self.count));
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to memory succeeds");
}
