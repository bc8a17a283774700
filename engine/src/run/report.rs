//! The report: what a job has done so far, as a value, as text ([`Display`](std::fmt::Display))
//! and, through serde, as JSON or any other format.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::epoch::durable::Durability;
use crate::io::{End, Lag};
use crate::words::{
    ByteSize, CheckpointMeter, EventTime, Latency, LatencySnapshot, ShownMark, SinkMeter, SourceMeter, StageMeter,
    WallTime,
};

use super::plan::Meter;
use super::shared::Run;

/// What a job's newest run has done. After a restart all counts except `restarts` and `committed`
/// start from zero; the counters of the `metrics` facade continue.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The job's name.
    pub job: String,
    /// Seconds since the newest run began.
    pub elapsed_seconds: f64,
    /// How often the job was restarted.
    pub restarts: u64,
    /// Epochs opened after the first.
    pub epochs: u64,
    /// The newest checkpoint whose commit was answered; 0 when there is none.
    pub committed: u64,
    /// Commits that sources have answered.
    pub commits: u64,
    /// The time from opening an epoch until everything before it had reached the sinks.
    pub epoch: LatencySnapshot,
    /// The part of it after the last source had left the previous epoch: the time that the frontier
    /// needs through the operators.
    pub frontier: LatencySnapshot,
    /// Each source, in the order of the pipeline.
    pub sources: Vec<SourceReport>,
    /// Each stage, in the order of the pipeline.
    pub stages: Vec<StageReport>,
    /// Each sink, in the order of the pipeline.
    pub sinks: Vec<SinkReport>,
    /// Its checkpoints, if the job keeps any.
    pub checkpoints: Option<CheckpointReport>,
}

/// What a job keeps of its state.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CheckpointReport {
    /// The newest checkpoint that is durable; `None` before the first of this run.
    pub durable: Option<u64>,
    /// Seconds since it became durable.
    pub age_seconds: Option<f64>,
    /// Entries of state that were written: those that had changed.
    pub entries: u64,
    /// Bytes written for checkpoints.
    pub bytes: u64,
    /// Bytes written to merge what checkpoints had written.
    pub merged_bytes: u64,
    /// The time in which an operator put aside what had changed, on one worker; it processes no
    /// record meanwhile.
    pub cutting: LatencySnapshot,
    /// The time until the changes of an operator were encoded on one worker, between records.
    pub encoding: LatencySnapshot,
    /// The time from handing a checkpoint to the thread that writes it until it was durable.
    pub writing: LatencySnapshot,
    /// The time from then until all sinks had committed it.
    pub committing: LatencySnapshot,
    /// Attempts that failed.
    pub failures: u64,
    /// Why the checkpoint that is being written is not durable yet: it is tried again.
    pub failing: Option<String>,
}

/// What came in through a source.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SourceReport {
    /// The source's name.
    pub name: String,
    /// Records released into the job.
    pub records: u64,
    /// Bytes of these records.
    pub bytes: u64,
    /// Polls that returned records.
    pub batches: u64,
    /// Records that a client delivered twice within one assignment, and that were dropped.
    pub repeated: u64,
    /// Records each second, on average.
    pub records_per_second: f64,
    /// Bytes each second, on average.
    pub bytes_per_second: f64,
    /// How far each partition is behind its end, as far as the source knows.
    pub lag: Vec<Lag>,
    /// Whether the program has paused it.
    pub paused: bool,
    /// What the source waits for and cannot go on without, such as a broker that does not answer.
    pub waiting: Option<String>,
    /// What has ended, once the source has no more records in this run.
    pub ended: Option<End>,
    /// How far event time has come in each partition, as of the newest checkpoint, where the stream
    /// has a watermark.
    pub marks: Vec<PartitionMark>,
}

/// How far event time has come in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[non_exhaustive]
pub struct PartitionMark {
    /// The partition's name.
    pub partition: String,
    /// Its largest event time less the delay of the watermark; `None` before its first record.
    pub mark: Option<EventTime>,
    /// How far the mark is behind the job's clock, in milliseconds; 0 if it is ahead.
    pub behind_clock_millis: Option<u64>,
    /// Whether it has ended, for ever.
    pub ended: bool,
    /// Whether it has had no records for a while, and holds no window back.
    pub idle: bool,
}

/// What went through a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StageReport {
    /// The stage's name.
    pub name: String,
    /// Records in.
    pub records_in: u64,
    /// Records out.
    pub records_out: u64,
    /// Entries of its state: one for each key.
    pub entries: u64,
    /// The memory that they take.
    pub state_bytes: u64,
    /// Records that were late, or had no event time, where the stage waits for it.
    pub late: u64,
    /// The watermark, where the stage waits for event time and has been told of it: windows that
    /// end by then are closed.
    pub watermark: Option<EventTime>,
    /// Where the stage holds event time back for those behind it, if it does: open calls whose
    /// records are kept do so until they are answered.
    pub holds_watermark_at: Option<EventTime>,
    /// Calls that failed and were retried ([`Calls::retry`](crate::Calls::retry)); their records
    /// are counted once.
    pub retried: u64,
    /// Memory of the records in, without what they point to.
    pub bytes_in: u64,
    /// Memory of the records out, without what they point to.
    pub bytes_out: u64,
    /// Records out each second, on average.
    pub records_per_second: f64,
    /// Bytes out each second, on average.
    pub bytes_per_second: f64,
}

/// What left through a sink.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SinkReport {
    /// The sink's name.
    pub name: String,
    /// Records that reached it.
    pub records: u64,
    /// Records acknowledged.
    pub acknowledged: u64,
    /// Bytes acknowledged.
    pub bytes: u64,
    /// Records disposed of by the sink's policy.
    pub skipped: u64,
    /// Records acknowledged each second, on average.
    pub records_per_second: f64,
    /// Bytes acknowledged each second, on average.
    pub bytes_per_second: f64,
    /// The time from a record's arrival to its acknowledgement.
    pub latency: LatencySnapshot,
    /// The part of it before the record was released: the wait for a tick.
    pub queue: LatencySnapshot,
    /// The part of it in the operators.
    pub compute: LatencySnapshot,
    /// The part of it after the writer had the record.
    pub acknowledgement: LatencySnapshot,
    /// What the sink waits for and cannot go on without.
    pub waiting: Option<String>,
}

impl Report {
    pub(crate) fn empty(job: &str) -> Report {
        Report {
            job: job.to_owned(),
            elapsed_seconds: 0.0,
            restarts: 0,
            epochs: 0,
            committed: 0,
            commits: 0,
            epoch: LatencySnapshot::default(),
            frontier: LatencySnapshot::default(),
            sources: Vec::new(),
            stages: Vec::new(),
            sinks: Vec::new(),
            checkpoints: None,
        }
    }

    pub(crate) fn of(job: &str, run: &Run, elapsed: Duration, restarts: u64) -> Report {
        let seconds = elapsed.as_secs_f64();
        let mut report = Report {
            elapsed_seconds: seconds,
            restarts,
            epochs: run.ticker.epochs(),
            committed: run.pulse.committed().number(),
            commits: run.pulse.commits(),
            epoch: run.ticker.durations(),
            frontier: run.ticker.frontiers(),
            checkpoints: run.checkpoints().map(|(shown, meter)| CheckpointReport::of(shown, meter)),
            ..Report::empty(job)
        };
        let mut sources = run.plan.sources.iter();
        let mut sinks = run.plan.sinks.iter().map(|sink| &sink.shared);
        for (node, meter) in run.plan.nodes() {
            match meter {
                Meter::Source(meter) => {
                    let planned = sources.next();
                    let shared = planned.map(|planned| &planned.shared);
                    let lag = shared.map_or_else(Vec::new, |shared| shared.lag());
                    let waiting = shared.and_then(|shared| shared.waiting());
                    let source = SourceReport::of(&node.name, meter, lag, (seconds, run.clock.wall()));
                    let paused = planned.is_some_and(|planned| planned.intake.limits().is_paused);
                    let of_time = meter.ended(run.workers);
                    let ended = of_time.map(|of_time| if of_time { End::OfTime } else { End::OfRun });
                    report.sources.push(SourceReport { waiting, paused, ended, ..source });
                }
                Meter::Stage(meter) => report.stages.push(StageReport::of(&node.name, meter, seconds)),
                Meter::Sink(meter) => {
                    let waiting = sinks.next().and_then(|shared| shared.waiting());
                    report.sinks.push(SinkReport { waiting, ..SinkReport::of(&node.name, meter, seconds) });
                }
            }
        }
        report
    }

    /// Records released by all sources.
    pub fn records_in(&self) -> u64 {
        self.sources.iter().map(|source| source.records).sum()
    }

    /// Records acknowledged by all sinks.
    pub fn records_out(&self) -> u64 {
        self.sinks.iter().map(|sink| sink.acknowledged).sum()
    }

    /// How much of a bounded run's input is read, from 0 to 1; `None` when the sources do not say
    /// where they end.
    pub fn fraction(&self) -> Option<f64> {
        let lags = || self.sources.iter().flat_map(|source| &source.lag);
        let whole: u64 = lags().map(|lag| lag.end.saturating_sub(lag.start)).sum();
        let read: u64 = lags().map(|lag| lag.next.saturating_sub(lag.start)).sum();
        (whole > 0).then(|| read as f64 / whole as f64)
    }
}

fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl SourceReport {
    fn of(name: &str, meter: &SourceMeter, lag: Vec<Lag>, (seconds, now): (f64, WallTime)) -> SourceReport {
        SourceReport {
            name: name.to_owned(),
            records: meter.records.get(),
            bytes: meter.bytes.get(),
            batches: meter.batches.get(),
            repeated: meter.repeated.get(),
            records_per_second: rate(meter.records.get(), seconds),
            bytes_per_second: rate(meter.bytes.get(), seconds),
            lag,
            paused: false,
            waiting: None,
            ended: None,
            marks: meter.marks().into_iter().map(|shown| PartitionMark::of(shown, now)).collect(),
        }
    }

    /// Records still to be read, over all partitions.
    pub fn lag_records(&self) -> u64 {
        self.lag.iter().map(Lag::records).sum()
    }
}

impl PartitionMark {
    fn of((partition, mark, idle): ShownMark, now: WallTime) -> PartitionMark {
        let ended = mark == EventTime::END;
        let mark = mark.known().filter(|_| !ended);
        let behind = |mark: EventTime| u64::try_from(now.0.saturating_sub(mark.0)).unwrap_or(0);
        let behind_clock_millis = mark.map(behind);
        PartitionMark { partition: partition.name().to_owned(), mark, behind_clock_millis, ended, idle }
    }
}

impl StageReport {
    fn of(name: &str, meter: &StageMeter, seconds: f64) -> StageReport {
        let (records_in, records_out) = (meter.records_in.get(), meter.records_out.get());
        let bytes_out = records_out * meter.sizes.1 as u64;
        StageReport {
            name: name.to_owned(),
            records_in,
            records_out,
            entries: meter.entries.get(),
            state_bytes: meter.state_bytes.get(),
            late: meter.late.get(),
            watermark: meter.watermark.get(),
            holds_watermark_at: meter.held(),
            retried: meter.retried.get(),
            bytes_in: records_in * meter.sizes.0 as u64,
            bytes_out,
            records_per_second: rate(records_out, seconds),
            bytes_per_second: rate(bytes_out, seconds),
        }
    }
}

impl SinkReport {
    fn of(name: &str, meter: &SinkMeter, seconds: f64) -> SinkReport {
        let latencies = meter.snapshot();
        let part = |of: fn(&crate::words::Latencies) -> LatencySnapshot| latencies.as_ref().map(of).unwrap_or_default();
        SinkReport {
            name: name.to_owned(),
            records: meter.records.get(),
            acknowledged: meter.acknowledged.get(),
            bytes: meter.bytes.get(),
            skipped: meter.skipped.get(),
            records_per_second: rate(meter.acknowledged.get(), seconds),
            bytes_per_second: rate(meter.bytes.get(), seconds),
            latency: part(crate::words::Latencies::total),
            queue: part(crate::words::Latencies::queue),
            compute: part(crate::words::Latencies::compute),
            acknowledgement: part(crate::words::Latencies::acknowledgement),
            waiting: None,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {:.1} s, {} epochs, {} commits, checkpoint {} committed, {} restarts",
            self.job, self.elapsed_seconds, self.epochs, self.commits, self.committed, self.restarts
        )?;
        for source in &self.sources {
            let (name, count, rate) = (&source.name, source.records, source.records_per_second);
            let (bytes, bytes_rate) = (ByteSize(source.bytes), ByteSize(source.bytes_per_second as u64));
            let lag = source.lag_records();
            writeln!(f, "  source {name:24} {count:>12} records {rate:>12.0}/s  {bytes}, {bytes_rate}/s  lag {lag}")?;
            for lag in source.lag.iter().filter(|lag| lag.records() > 0) {
                writeln!(f, "    {:27} {} behind {}", lag.partition, lag.records(), lag.end)?;
            }
            let marks = || source.marks.iter().filter(|mark| !mark.ended);
            let behind = |mark: &PartitionMark| Duration::from_millis(mark.behind_clock_millis.unwrap_or(0));
            let furthest = marks().max_by_key(|mark| mark.mark).filter(|mark| mark.mark.is_some());
            match (marks().filter(|mark| !mark.idle).min_by_key(|mark| mark.mark), furthest) {
                (Some(PartitionMark { mark: None, partition, .. }), _) => {
                    writeln!(f, "    event time is held by {partition}, which has had no record")?;
                }
                (Some(slowest @ PartitionMark { mark: Some(mark), partition, .. }), _) => {
                    writeln!(
                        f,
                        "    event time is held at {mark}, {:?} behind the clock, by {partition}",
                        behind(slowest)
                    )?;
                }
                (None, Some(furthest @ PartitionMark { mark: Some(mark), .. })) => {
                    let behind = behind(furthest);
                    writeln!(
                        f,
                        "    event time stands at {mark}, {behind:?} behind the clock: no partition has records"
                    )?;
                }
                (None, _) => {}
            }
            if source.paused {
                writeln!(f, "    paused")?;
            }
            waiting(f, source.waiting.as_deref())?;
        }
        for stage in &self.stages {
            let (name, count, rate) = (&stage.name, stage.records_out, stage.records_per_second);
            let (bytes, bytes_rate) = (ByteSize(stage.bytes_out), ByteSize(stage.bytes_per_second as u64));
            let within = stage.records_in;
            write!(f, "  stage  {name:24} {count:>12} out     {rate:>12.0}/s  {bytes}, {bytes_rate}/s  {within} in")?;
            if stage.entries > 0 {
                write!(f, ", {} entries in {}", stage.entries, ByteSize(stage.state_bytes))?;
            }
            if stage.late > 0 {
                write!(f, ", {} late", stage.late)?;
            }
            if let Some(watermark) = stage.watermark {
                write!(f, ", watermark {watermark}")?;
            }
            if let Some(held) = stage.holds_watermark_at {
                write!(f, ", which open calls hold at {held}")?;
            }
            match stage.retried {
                0 => writeln!(f)?,
                retried => writeln!(f, ", {retried} calls retried")?,
            }
        }
        for sink in &self.sinks {
            let (name, count, rate) = (&sink.name, sink.acknowledged, sink.records_per_second);
            let (bytes, bytes_rate) = (ByteSize(sink.bytes), ByteSize(sink.bytes_per_second as u64));
            let skipped = sink.skipped;
            writeln!(
                f,
                "  sink   {name:24} {count:>12} done    {rate:>12.0}/s  {bytes}, {bytes_rate}/s  {skipped} skipped"
            )?;
            let parts = [
                ("arrival to acknowledgement", &sink.latency),
                ("  queue", &sink.queue),
                ("  compute", &sink.compute),
                ("  acknowledgement", &sink.acknowledgement),
            ];
            for (part, latency) in parts {
                writeln!(f, "    {part:27} {latency}")?;
            }
            waiting(f, sink.waiting.as_deref())?;
        }
        self.checkpoints.as_ref().map_or(Ok(()), |checkpoints| checkpoints.fmt(f))
    }
}

impl CheckpointReport {
    fn of(shown: &Durability, meter: &CheckpointMeter) -> CheckpointReport {
        let progress = shown.get();
        let of = |part: Option<Latency>| part.as_ref().map(Latency::snapshot).unwrap_or_default();
        CheckpointReport {
            durable: progress.newest.map(|(checkpoint, _)| checkpoint.number()),
            age_seconds: progress.newest.map(|(_, at)| at.elapsed().as_secs_f64()),
            entries: progress.entries,
            bytes: progress.bytes,
            merged_bytes: progress.merged,
            cutting: of(meter.cutting()),
            encoding: of(meter.encoding()),
            writing: progress.writing.snapshot(),
            committing: of(meter.committing()),
            failures: progress.failures,
            failing: progress.failing,
        }
    }
}

impl fmt::Display for CheckpointReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.durable, self.age_seconds) {
            (Some(durable), Some(age)) => write!(f, "  checkpoint {durable} durable since {age:.1} s")?,
            _ => write!(f, "  no checkpoint durable yet")?,
        }
        let (entries, bytes, merged) = (self.entries, ByteSize(self.bytes), ByteSize(self.merged_bytes));
        writeln!(f, "  {entries} entries changed, {bytes} written, {merged} merged, {} failures", self.failures)?;
        let parts = [
            ("cutting, an operator", &self.cutting),
            ("encoding, an operator", &self.encoding),
            ("writing", &self.writing),
            ("committing", &self.committing),
        ];
        for (part, latency) in parts {
            writeln!(f, "    {part:27} {latency}")?;
        }
        waiting(f, self.failing.as_ref().map(|cause| format!("the disk: {cause}")).as_deref())
    }
}

fn waiting(f: &mut fmt::Formatter<'_>, what: Option<&str>) -> fmt::Result {
    what.map_or(Ok(()), |what| writeln!(f, "    waiting for {what}"))
}

impl fmt::Display for LatencySnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        write!(
            f,
            "p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3} ms  ({} records)",
            milliseconds(self.p50),
            milliseconds(self.p90),
            milliseconds(self.p99),
            milliseconds(self.p999),
            milliseconds(self.max),
            self.count
        )
    }
}
