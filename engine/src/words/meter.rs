//! What is counted while records go by: always on, one writer each, read by the report.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::{Moment, lock};

/// A count that one thread makes and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the count.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a source counts, over all workers.
#[derive(Debug, Default)]
pub(crate) struct SourceMeter {
    /// Records polled; counted when they are queued or released.
    pub polled: Counter,
    /// Records released into the job.
    pub records: Counter,
    /// What they held.
    pub bytes: Counter,
    /// Polls that returned records.
    pub batches: Counter,
    /// Records that came twice within one assignment and were dropped.
    pub repeated: Counter,
}

/// What a stage counts, over all workers.
#[derive(Debug, Default)]
pub(crate) struct StageMeter {
    /// Records in.
    pub records_in: Counter,
    /// Records out.
    pub records_out: Counter,
    /// Bytes of a record in and out, without what it points to.
    pub sizes: (usize, usize),
}

/// What a sink counts, over all workers.
#[derive(Debug, Default)]
pub struct SinkMeter {
    /// Records that reached it.
    pub records: Counter,
    /// Records acknowledged.
    pub acknowledged: Counter,
    /// Bytes acknowledged, as the connector counts them.
    pub bytes: Counter,
    /// Records disposed of by the sink's policy.
    pub skipped: Counter,
    latencies: Mutex<Option<Box<Latencies>>>,
}

impl SinkMeter {
    /// Records the way of `count` records that are now acknowledged.
    pub(crate) fn acknowledge(&self, arrival: Moment, released: Moment, written: Moment, now: Moment, count: u64) {
        self.acknowledged.add(count);
        lock(&self.latencies).get_or_insert_default().record(arrival, released, written, now, count);
    }

    /// The latencies so far.
    pub(crate) fn snapshot(&self) -> Option<Latencies> {
        lock(&self.latencies).as_deref().cloned()
    }
}

/// The time from a record's arrival to its acknowledgement, whole and in its parts; a count for every record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies {
    total: Latency,
    queue: Latency,
    compute: Latency,
    acknowledgement: Latency,
}

impl Latencies {
    fn record(&mut self, arrival: Moment, released: Moment, written: Moment, now: Moment, count: u64) {
        self.queue.record(released - arrival, count);
        self.compute.record(written - released, count);
        self.acknowledgement.record(now - written, count);
        self.total.record(now - arrival, count);
    }

    /// From arrival to acknowledgement.
    pub(crate) fn total(&self) -> LatencySnapshot {
        self.total.snapshot()
    }

    /// From arrival to release: the wait for a micro-batch's tick.
    pub(crate) fn queue(&self) -> LatencySnapshot {
        self.queue.snapshot()
    }

    /// From release to the sink's writer.
    pub(crate) fn compute(&self) -> LatencySnapshot {
        self.compute.snapshot()
    }

    /// From the writer to the acknowledgement.
    pub(crate) fn acknowledgement(&self) -> LatencySnapshot {
        self.acknowledgement.snapshot()
    }
}

/// A histogram of durations: 1 µs to an hour, three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Latency {
        Latency(Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3).expect("the bounds are constants"))
    }
}

impl Latency {
    pub(crate) fn record(&mut self, duration: Duration, count: u64) {
        self.0.saturating_record_n(duration.as_nanos() as u64, count);
    }

    pub(crate) fn snapshot(&self) -> LatencySnapshot {
        let at = |quantile| Duration::from_nanos(self.0.value_at_quantile(quantile));
        LatencySnapshot {
            count: self.0.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: Duration::from_nanos(self.0.max()),
        }
    }
}

/// Percentiles of a latency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LatencySnapshot {
    /// How many records were measured.
    pub count: u64,
    /// Half are faster than this; nanoseconds, as all of these are in the serialised form.
    #[serde(serialize_with = "as_nanos")]
    pub p50: Duration,
    /// The 90th percentile.
    #[serde(serialize_with = "as_nanos")]
    pub p90: Duration,
    /// The 99th percentile.
    #[serde(serialize_with = "as_nanos")]
    pub p99: Duration,
    /// The 99.9th percentile.
    #[serde(serialize_with = "as_nanos")]
    pub p999: Duration,
    /// The slowest.
    #[serde(serialize_with = "as_nanos")]
    pub max: Duration,
}

fn as_nanos<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_nanos() as u64)
}
