//! What is counted and measured while records pass: always on, and read by the report.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::{EventTime, Moment, Partition, lock};

/// A count that some threads add to and others read. Relaxed, because each count stands alone.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds to the count.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }

    /// The count so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A count of what is done: a thread that reads it also sees what was done before it was counted.
#[derive(Debug, Default)]
pub(crate) struct DoneCounter(AtomicU64);

impl DoneCounter {
    /// Adds to the count, after what it counts is done.
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Release);
    }

    /// The count so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Acquire)
    }
}

/// A number that several threads change.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicU64);

impl Gauge {
    /// One thread's part of the number was `before` and is `now`. Returns the sum of all parts.
    pub(crate) fn change(&self, before: u64, now: u64) -> u64 {
        let change = now.wrapping_sub(before);
        self.0.fetch_add(change, Relaxed).wrapping_add(change)
    }

    /// The sum of all parts.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A time that goes forward, as workers see it.
#[derive(Debug)]
pub(crate) struct Forward(AtomicI64);

impl Default for Forward {
    fn default() -> Forward {
        Forward(AtomicI64::new(EventTime::NONE.0))
    }
}

impl Forward {
    pub(crate) fn see(&self, time: EventTime) {
        self.0.fetch_max(time.0, Relaxed);
    }

    /// The largest that was seen.
    pub(crate) fn get(&self) -> Option<EventTime> {
        EventTime(self.0.load(Relaxed)).known()
    }
}

/// What a source counts, over all workers.
#[derive(Debug, Default)]
pub(crate) struct SourceMeter {
    /// Records polled from a channel; counted after they were queued or released, and noted as a
    /// reason for the next epoch. So a job that has polled all of them and has no reason left is
    /// settled.
    pub fed: DoneCounter,
    /// Records released into the job.
    pub records: Counter,
    /// Bytes of these records.
    pub bytes: Counter,
    /// Polls that returned records.
    pub batches: Counter,
    /// Records that were received a second time within one assignment and dropped.
    pub repeated: Counter,
    /// By worker and partition: the mark, and whether it is idle.
    marks: Mutex<BTreeMap<usize, Vec<ShownMark>>>,
    /// Workers whose reader has ended.
    ended: DoneCounter,
    /// Workers among them whose reader ended only with the run.
    ended_with_run: Counter,
}

/// A partition with its mark, and whether it is idle.
pub(crate) type ShownMark = (Partition, EventTime, bool);

impl SourceMeter {
    /// Shows the marks of a worker's partitions.
    pub(crate) fn show_marks(&self, worker: usize, marks: Vec<ShownMark>) {
        lock(&self.marks).insert(worker, marks);
    }

    /// The marks of all partitions, by their names.
    pub(crate) fn marks(&self) -> Vec<ShownMark> {
        let mut marks: Vec<ShownMark> = lock(&self.marks).values().flatten().cloned().collect();
        marks.sort_unstable();
        marks
    }

    /// Counts a worker whose reader has ended: with its data (`of_time`), or only with this run.
    pub(crate) fn end(&self, of_time: bool) {
        // Before `ended`, which shows it to the thread that reads both.
        if !of_time {
            self.ended_with_run.add(1);
        }
        self.ended.add(1);
    }

    /// Whether the source ended with its data; `None` until the readers of all workers have ended.
    pub(crate) fn ended(&self, workers: usize) -> Option<bool> {
        (self.ended.get() == workers as u64).then(|| self.ended_with_run.get() == 0)
    }
}

/// What a stage counts, over all workers.
#[derive(Debug, Default)]
pub(crate) struct StageMeter {
    /// Records in.
    pub records_in: Counter,
    /// Records out.
    pub records_out: Counter,
    /// Records that were late for a window, or had no event time.
    pub late: Counter,
    /// The watermark in force.
    pub watermark: Forward,
    /// Where workers hold event time back for records that they have.
    pub held: Mutex<BTreeMap<usize, EventTime>>,
    /// Calls that failed and were retried.
    pub retried: Counter,
    /// Entries of its state, and the memory that they take.
    pub entries: Gauge,
    pub state_bytes: Gauge,
    /// Bytes of a record in and of one out, without what they point to.
    pub sizes: (usize, usize),
}

impl StageMeter {
    /// Shows where a worker holds event time back, if it does.
    pub(crate) fn show_held(&self, worker: usize, at: Option<EventTime>) {
        let mut held = lock(&self.held);
        match at {
            Some(at) => drop(held.insert(worker, at)),
            None => drop(held.remove(&worker)),
        }
    }

    /// Where event time is held back.
    pub(crate) fn held(&self) -> Option<EventTime> {
        lock(&self.held).values().min().copied()
    }
}

/// What a sink counts, over all workers.
#[derive(Debug, Default)]
pub(crate) struct SinkMeter {
    /// Records that reached it.
    pub records: Counter,
    /// Records acknowledged.
    pub acknowledged: Counter,
    /// Bytes acknowledged, as the connector counts them.
    pub bytes: Counter,
    /// Records disposed of by the sink's policy.
    pub skipped: Counter,
    latencies: Mutex<Option<Box<Latencies>>>,
    /// Records that arrived before this are not measured; nanoseconds of the clock.
    measured_from: AtomicU64,
}

impl SinkMeter {
    /// Excludes records that arrived before that moment from the latencies.
    pub(crate) fn measure_from(&self, moment: Moment) {
        self.measured_from.store(moment.as_nanos(), Relaxed);
    }

    /// Records the latencies of `count` records that are acknowledged now.
    pub(crate) fn acknowledge(&self, arrival: Moment, released: Moment, written: Moment, now: Moment, count: u64) {
        self.acknowledged.add(count);
        if arrival.as_nanos() < self.measured_from.load(Relaxed) {
            return;
        }
        lock(&self.latencies).get_or_insert_default().record(arrival, released, written, now, count);
    }

    /// The number of records that were measured.
    pub(crate) fn measured(&self) -> u64 {
        lock(&self.latencies).as_ref().map_or(0, |latencies| latencies.total.count())
    }

    /// The time from arrival to acknowledgement so far.
    pub(crate) fn total(&self) -> Option<Latency> {
        lock(&self.latencies).as_ref().map(|latencies| latencies.total.clone())
    }

    /// The latencies so far.
    pub(crate) fn snapshot(&self) -> Option<Latencies> {
        lock(&self.latencies).as_deref().cloned()
    }
}

/// How long the parts of checkpoints take that are not the writing of files.
#[derive(Debug, Default)]
pub(crate) struct CheckpointMeter {
    // A histogram takes 260 KB.
    cutting: Mutex<Option<Latency>>,
    encoding: Mutex<Option<Latency>>,
    committing: Mutex<Option<Latency>>,
}

impl CheckpointMeter {
    /// A worker has put aside what was changed in an operator; no record was processed meanwhile.
    pub(crate) fn cut(&self, took: Duration) {
        lock(&self.cutting).get_or_insert_default().record(took, 1);
    }

    /// These changes are encoded, and between records; since the cut.
    pub(crate) fn encoded(&self, took: Duration) {
        lock(&self.encoding).get_or_insert_default().record(took, 1);
    }

    /// All sinks have committed a checkpoint, since it was durable.
    pub(crate) fn committed(&self, took: Duration) {
        lock(&self.committing).get_or_insert_default().record(took, 1);
    }

    pub(crate) fn cutting(&self) -> Option<Latency> {
        lock(&self.cutting).clone()
    }

    pub(crate) fn encoding(&self) -> Option<Latency> {
        lock(&self.encoding).clone()
    }

    pub(crate) fn committing(&self) -> Option<Latency> {
        lock(&self.committing).clone()
    }
}

/// The time from a record's arrival to its acknowledgement, in total and in parts. Every record is
/// counted.
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

    /// Adds what another sink has measured.
    pub(crate) fn add(&mut self, other: &Latencies) {
        self.queue.add(&other.queue);
        self.compute.add(&other.compute);
        self.acknowledgement.add(&other.acknowledgement);
        self.total.add(&other.total);
    }

    /// The curve of the time from arrival to acknowledgement.
    pub(crate) fn curve(&self) -> Vec<Percentile> {
        self.total.curve()
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

/// A histogram of durations, from 1 µs to an hour, with three significant digits.
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

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// What was recorded since `earlier`, a copy of this histogram, was taken.
    pub(crate) fn since(&self, earlier: &Latency) -> Latency {
        let mut new = self.0.clone();
        new.subtract(&earlier.0).expect("an earlier copy holds no more than this one");
        Latency(new)
    }

    /// The number of durations up to each bound, within the histogram's precision. The bounds must
    /// ascend.
    pub(crate) fn counts_to<const N: usize>(&self, bounds: [Duration; N]) -> [u64; N] {
        let mut counts = [0; N];
        for recorded in self.0.iter_recorded() {
            let least = Duration::from_nanos(self.0.lowest_equivalent(recorded.value_iterated_to()));
            let first = bounds.partition_point(|bound| *bound < least);
            counts[first..].iter_mut().for_each(|count| *count += recorded.count_since_last_iteration());
        }
        counts
    }

    /// The sum of all durations, within the histogram's precision.
    pub(crate) fn sum(&self) -> Duration {
        const SECOND: u128 = 1_000_000_000;
        let nanos = self.0.iter_recorded().map(|recorded| {
            u128::from(self.0.median_equivalent(recorded.value_iterated_to()))
                * u128::from(recorded.count_since_last_iteration())
        });
        let nanos: u128 = nanos.sum();
        Duration::new((nanos / SECOND) as u64, (nanos % SECOND) as u32)
    }

    fn add(&mut self, other: &Latency) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// Percentiles that approach 100 in even steps of the logarithm of `1 / (1 - quantile)`, as far
    /// as there are enough records to tell them apart.
    fn curve(&self) -> Vec<Percentile> {
        const STEPS_PER_NINE: f64 = 20.0;
        let at = |step: u32| 1.0 - 10f64.powf(-f64::from(step) / STEPS_PER_NINE);
        let told_apart = |quantile: &f64| (1.0 - quantile) * self.0.len() as f64 >= 1.0;
        let point = |quantile| Percentile {
            percentile: quantile * 100.0,
            latency: Duration::from_nanos(self.0.value_at_quantile(quantile)),
        };
        (0..).map(at).take_while(told_apart).map(point).collect()
    }

    pub(crate) fn snapshot(&self) -> LatencySnapshot {
        if self.count() == 0 {
            return LatencySnapshot::default();
        }
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[non_exhaustive]
pub struct LatencySnapshot {
    /// The number of records that were measured.
    pub count: u64,
    /// The median; nanoseconds in the serialised form, like all durations here.
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

/// A point of a latency's distribution.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Percentile {
    /// From 0 to 100.
    pub percentile: f64,
    /// The latency that this percentage of the records did not exceed; nanoseconds in the
    /// serialised form.
    #[serde(serialize_with = "as_nanos")]
    pub latency: Duration,
}

/// Serialises a duration as nanoseconds.
pub(crate) fn as_nanos<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_counts_what_took_no_longer_and_the_sum_is_within_the_precision() {
        let mut latency = Latency::default();
        for (micros, count) in [(50, 1), (100, 2), (400, 3), (501, 1), (7_200_000_000, 1)] {
            latency.record(Duration::from_micros(micros), count);
        }
        let bounds = [Duration::from_micros(100), Duration::from_micros(500), Duration::from_secs(60)];
        assert_eq!(latency.counts_to(bounds), [3, 6, 7]);
        let sum = latency.sum().as_secs_f64();
        assert!((sum - 3_600.002).abs() < 3.6, "two hours count as one: {sum}");
    }
}
