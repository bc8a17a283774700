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
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    total: Histogram<u64>,
    queue: Histogram<u64>,
    compute: Histogram<u64>,
    acknowledgement: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Latencies {
        let total = Histogram::new_with_bounds(LOWEST_NANOS, HIGHEST_NANOS, 3).expect("the bounds are constants");
        Latencies { queue: total.clone(), compute: total.clone(), acknowledgement: total.clone(), total }
    }
}

const LOWEST_NANOS: u64 = 1_000;
const HIGHEST_NANOS: u64 = 3_600_000_000_000;

impl Latencies {
    fn record(&mut self, arrival: Moment, released: Moment, written: Moment, now: Moment, count: u64) {
        let nanos = |part: Duration| part.as_nanos() as u64;
        self.queue.saturating_record_n(nanos(released - arrival), count);
        self.compute.saturating_record_n(nanos(written - released), count);
        self.acknowledgement.saturating_record_n(nanos(now - written), count);
        self.total.saturating_record_n(nanos(now - arrival), count);
    }

    /// From arrival to acknowledgement.
    pub(crate) fn total(&self) -> LatencySnapshot {
        LatencySnapshot::of(&self.total)
    }

    /// From arrival to release: the wait for a micro-batch's tick.
    pub(crate) fn queue(&self) -> LatencySnapshot {
        LatencySnapshot::of(&self.queue)
    }

    /// From release to the sink's writer.
    pub(crate) fn compute(&self) -> LatencySnapshot {
        LatencySnapshot::of(&self.compute)
    }

    /// From the writer to the acknowledgement.
    pub(crate) fn acknowledgement(&self) -> LatencySnapshot {
        LatencySnapshot::of(&self.acknowledgement)
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

impl LatencySnapshot {
    fn of(histogram: &Histogram<u64>) -> LatencySnapshot {
        let at = |quantile| Duration::from_nanos(histogram.value_at_quantile(quantile));
        LatencySnapshot {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: Duration::from_nanos(histogram.max()),
        }
    }
}
