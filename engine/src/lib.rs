//! A continuous, record-at-a-time dataflow engine.
//!
//! A pipeline is a function: it opens sources, processes their records, and ends in sinks. It
//! compiles to a [timely](https://docs.rs/timely) dataflow whose timestamps are *epochs*. Records
//! never wait: epochs only say what is complete, and carry progress, checkpoints and commits. Close
//! epochs on a timer and the same pipeline is a micro-batch engine with the same results.
//!
//! ```
//! use millstream::{Flow, Job, Result, collect, rows};
//!
//! fn shout(flow: &Flow<'_>, results: &millstream::Collected<String>) -> Result<()> {
//!     flow.source(rows(["to", "be", "or", "not", "to", "be"]))?
//!         .filter(|word| word.len() == 2)
//!         .map(str::to_uppercase)
//!         .sink(results)
//! }
//!
//! let results = collect();
//! let sink = results.clone();
//! let report = Job::new("shout", move |flow| shout(flow, &sink)).run()?;
//! assert_eq!(results.values(), ["TO", "BE", "OR", "TO", "BE"]);
//! println!("{report}");
//! # Ok::<(), millstream::Error>(())
//! ```
//!
//! # How to choose
//!
//! | you want | use |
//! |---|---|
//! | results as soon as they are available | [`Trigger::Continuous`], the default |
//! | batches on a timer, as with Spark's `ProcessingTime` | [`Trigger::micro_batch`] |
//! | to process the available input, and end | [`Trigger::AvailableNow`] |
//! | to feed a job yourself, and know when a record is safe | [`channel()`] and its [`Receipt`] |
//! | to test a pipeline step by step | [`TestRun`] |
//! | to see how continuous and micro-batch differ | [`Job::compare`] |
//! | records on a schedule, to try a pipeline or measure it | [`generate`] |
//! | to see what will run, before it runs | [`Job::explain`] |
//! | to see what is in a directory of checkpoints | the command `millstream state`, with the feature `inspect` |
//! | a connector of your own | the module [`connector`] |
//!
//! # Observing a job
//!
//! A [`Report`] counts every record and measures its latency, while the job runs and when it has
//! ended. Events of [`tracing`] are in spans: `job` with its `name`, and within it `worker` with
//! its `index`, including the program's own events in a stage; the thread that writes checkpoints
//! has `checkpoint`, with its `number`, `entries` and `bytes`, and `merge`. Once a second the
//! counts are published to the [`metrics`] facade, so that any exporter that the program has
//! installed shows [`METRICS`], except the histogram of latencies: [`histograms`] returns it as
//! text for Prometheus, to be appended to the exporter's.
//!
//! [`Job::on_progress`] calls a function of the program with what happens to the job,
//! [`JobHandle::health`] tells whether it is alive and ready, and [`jobs()`] lists the jobs of the
//! process.
//!
//! `Job::live` draws rate, latency and lag on a terminal. It needs the feature `terminal`, which is
//! on by default.
//!
//! # What it is not
//!
//! It is not a cluster: a job is threads of your process. Delivery is at-least-once: after a crash,
//! outputs since the last checkpoint may repeat, and state goes on from there
//! ([`Job::checkpoints`]). The order of records is kept per input partition, up to a
//! [`rebalance`](Stream::rebalance) or [unordered calls](Calls::unordered).
//!
//! # The code, in reading order
//!
//! Each module imports only from those above it: `words` (the terms of all others), `io` (inputs
//! and outputs), `state` (what is remembered), `operator` (what happens to records), `epoch`
//! (epochs and checkpoints), `run` (how a process runs a job), `api` (what a user writes).

// Private, from the bottom up; `tests/tidy.rs` enforces it.
mod words;

mod io;

mod state;

mod operator;

mod epoch;

mod run;

mod api;

pub mod connector;

#[cfg(feature = "inspect")]
#[doc(hidden)]
pub mod inspect;

pub use api::{
    Aggregated, Batches, Blocking, ByCount, BySession, ByTime, CalendarDays, CallPolicy, Calls, ComparedRun,
    Comparison, CompleteTable, Count, Deduplicated, Exchange, ExplainedNode, ExplainedOperator, Explanation, Flow, For,
    InTime, Job, JobHandle, KeptCalls, Key, KeyedBatches, KeyedCalls, KeyedStream, Restart, Results, RetriedCalls,
    Running, Session, Sliding, SourceControl, State, Stream, TestRun, Trigger, Tumbling, Watermark, Window,
    WindowTable, Windowed, Windows, jobs,
};
pub use io::{
    ChannelSource, Collected, CollectedWithKeys, Discard, End, Generate, KeyedSink, Lag, Receipt, Rows, SendError,
    Sender, Sink, Source, Undelivered, channel, collect, discard, generate, rows,
};
pub use operator::aggregates::Number;
pub use operator::sketches::Quantiles;
pub use run::graph::NodeKind;
pub use run::health::{Health, HealthLimits};
pub use run::histogram::histograms;
pub use run::listener::JobEvent;
pub use run::names::{METRICS, Metric, MetricKind};
pub use run::report::{CheckpointReport, PartitionMark, Report, SinkReport, SourceReport, StageReport};
pub use words::{
    BatchValues, ByteSize, Change, Clock, Error, ErrorKind, EventTime, Headers, Keyed, Late, LatencySnapshot, Lateness,
    Malformed, Moment, Offset, Origin, Pane, Partition, Percentile, Result, Span, TimedOut, WallTime, WatermarkPolicy,
};

/// No test comes near this. A length that is read from damaged bytes and allocated unchecked does,
/// and ends the tests.
#[cfg(test)]
#[global_allocator]
static MEMORY: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, 512 << 20);
