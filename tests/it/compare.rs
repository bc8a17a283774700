//! `Job::compare`: the same records under each trigger, due at the same times, and no trace left.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use millstream::{
    Collected, ErrorKind, For, Job, Result, Results, Stream, Trigger, channel, collect, discard, generate, rows,
};
use millstream_connectors::{Kafka, Message, files, report};

use crate::support::broker::shared;

const TICK: Duration = Duration::from_millis(20);

fn triggers() -> [Trigger; 3] {
    [Trigger::Continuous, Trigger::micro_batch(TICK), Trigger::micro_batch(Duration::ZERO)]
}

fn fast(records: u64) -> For {
    For::records(records).rate(10_000.0).warm_up(Duration::ZERO)
}

#[test]
fn every_run_gets_the_same_records_at_any_number_of_workers() {
    for workers in [1, 2, 4] {
        // Which partitions are read first is not specified, only that they are the same in each
        // run.
        for (of, source) in [(3_000, 3_000), (3_000, 1_000), (1_000, 3_000)] {
            let results = collect().by_hash();
            let sink = results.clone();
            let numbers = rows(0..of as u64).partitions(7);
            let job = Job::new("same", move |flow| flow.source(&numbers)?.map(|n| n * 3).rebalance().sink(&sink));
            let comparison = job.workers(workers).compare(triggers(), fast(source as u64)).unwrap();
            let count = of.min(source);
            assert_eq!(comparison.results, Results::Equal, "{workers} workers");
            assert_eq!(comparison.records, count as u64);
            let values = results.take();
            assert_eq!(values.len(), 3 * count);
            let mut runs: Vec<Vec<u64>> = values.chunks(count).map(<[u64]>::to_vec).collect();
            runs.iter_mut().for_each(|run| run.sort_unstable());
            assert!(runs.iter().all(|run| *run == runs[0]), "{workers} workers");
        }
    }
}

type Pipeline = fn(Stream<'_, u64>, Collected<String>) -> Result<()>;

/// Pipelines with state, and the sinks of theirs that cannot be compared.
const STATEFUL: [(&str, Pipeline, usize); 8] = [
    ("updates", |numbers, sink| shown(numbers.key_by(|n| n % 10).count().updates()).sink(&sink), 0),
    ("changes", |numbers, sink| shown(numbers.key_by(|n| n % 10).sum(|n| *n).changes()).sink(&sink), 0),
    (
        "complete",
        |numbers, sink| shown(numbers.key_by(|n| n % 10).count().complete().sorted_by(Ord::cmp).rows()).sink(&sink),
        0,
    ),
    // What comes out is the same under each trigger, and is compared.
    ("dedup", |numbers, sink| shown(numbers.map(|n| n % 70).distinct()).sink(&sink), 0),
    // Their sketches have more in them than their result, which depends on the order of the
    // records.
    (
        "different values",
        |numbers, sink| shown(numbers.key_by(|n| n % 3).approx_count_distinct(|n| *n).updates()).sink(&sink),
        0,
    ),
    (
        "quantiles",
        |numbers, sink| shown(numbers.key_by(|n| n % 3).approx_quantiles(|n| *n as f64 * 1.1).updates()).sink(&sink),
        0,
    ),
    ("per batch", |numbers, sink| shown(numbers.per_batch().count()).sink(&sink), 1),
    // The second counts how often the first spoke.
    (
        "two in a row",
        |numbers, sink| {
            let updates = numbers.key_by(|n| n % 10).count().named("first").updates();
            shown(updates.key_by(|(key, _)| key % 2).count().named("second").updates()).sink(&sink)
        },
        1,
    ),
];

fn shown<T: std::fmt::Debug + 'static>(stream: Stream<'_, T>) -> Stream<'_, String> {
    stream.map(|value| format!("{value:?}"))
}

#[test]
fn state_is_compared_by_what_it_is_at_the_end() {
    for (name, pipeline, incomparable) in STATEFUL {
        for workers in [1, 3] {
            let directory = tempfile::tempdir().unwrap();
            let numbers = rows(0..2_000_u64).partitions(3);
            let job = Job::new(name, move |flow| pipeline(flow.source(&numbers)?, collect().by_hash()));
            // Of which a comparison neither reads nor writes a checkpoint.
            let job = job.checkpoints(directory.path()).workers(workers);
            let comparison = job.compare(triggers(), fast(2_000)).unwrap();
            match &comparison.results {
                Results::Incomparable { sinks } => assert_eq!(sinks.len(), incomparable, "{name}"),
                results => assert_eq!((results, incomparable), (&Results::Equal, 0), "{name}, {workers} workers"),
            }
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "{name}");
        }
    }
}

#[test]
fn state_that_depends_on_the_run_is_found() {
    let (runs, numbers) = (Arc::<AtomicU64>::default(), rows(0..1_000_u64).partitions(1));
    let job = Job::new("differs", move |flow| {
        // Counts the pipeline's calls, of which each run has the same number.
        let call = runs.fetch_add(1, SeqCst);
        let sum = flow.source(&numbers)?.key_by(|n| n % 10).aggregate(|| 0, move |sum, n| *sum += n + call);
        sum.named("of the run").updates().sink(collect().by_hash())
    });
    let comparison = job.state_in_memory().compare(triggers(), fast(1_000)).unwrap();
    let Results::Different { what } = &comparison.results else { panic!("{comparison}") };
    assert!(what.contains("`of the run` ended with other values under"), "{what}");
}

#[test]
fn files_give_the_same_records_too() {
    let directory = tempfile::tempdir().unwrap();
    for file in 0..7 {
        let lines: String = (0..300).map(|line| format!("{file} {line}\n")).collect();
        std::fs::write(directory.path().join(file.to_string()), lines).unwrap();
    }
    for workers in [1, 3] {
        let (path, sink) = (directory.path().to_owned(), collect().by_hash());
        let job = Job::new("files", move |flow| flow.source(files(&path).lines())?.or_stop().sink(&sink));
        let comparison = job.workers(workers).compare(triggers(), fast(1_000)).unwrap();
        assert_eq!((comparison.records, comparison.results), (1_000, Results::Equal), "{workers} workers");
    }
}

#[test]
fn results_that_differ_are_found() {
    let asked = Arc::new(AtomicU64::new(0));
    let sink = collect().by_hash();
    // Record 1500 of all runs is record 500 of the second run.
    let job = Job::new("differs", move |flow| {
        let asked = Arc::clone(&asked);
        let change = move |n| if asked.fetch_add(1, SeqCst) == 1_500 { n + 1 } else { n };
        flow.source(generate(|n| n))?.map(change).sink(&sink)
    });
    let comparison = job.compare(triggers(), fast(1_000)).unwrap();
    let Results::Different { what } = &comparison.results else { panic!("{:?}", comparison.results) };
    assert!(what.contains("`collect`") && what.contains("micro-batch 20ms"), "{what}");
    assert!(comparison.to_string().contains("WROTE DIFFERENT RECORDS"), "{comparison}");
}

#[test]
fn a_record_more_or_less_is_found_by_counts_alone() {
    let asked = Arc::new(AtomicU64::new(0));
    let job = |asked: Option<Arc<AtomicU64>>| {
        Job::new("counts", move |flow| {
            let asked = asked.clone();
            let keep = move |_: &u64| asked.as_ref().is_none_or(|asked| asked.fetch_add(1, SeqCst) != 1_500);
            flow.source(generate(|n| n))?.filter(keep).sink(discard())
        })
    };
    let equal = job(None).compare(triggers(), fast(1_000)).unwrap();
    assert_eq!(equal.results, Results::EqualCounts { sinks: vec!["discard".to_owned()] });
    let differs = job(Some(asked)).compare(triggers(), fast(1_000)).unwrap();
    assert!(matches!(differs.results, Results::Different { .. }), "{:?}", differs.results);
}

#[test]
fn latency_counts_from_when_a_record_was_due() {
    let pause = Duration::from_millis(300);
    let job = Job::new("stalls", move |flow| {
        let stall = move |n: &u64| {
            if *n == 500 {
                thread::sleep(pause);
            }
        };
        flow.source(generate(|n| n))?.inspect(stall).sink(discard())
    });
    let input = For::records(1_000).rate(1_000.0).warm_up(Duration::from_millis(100));
    let comparison = job.compare([Trigger::Continuous], input).unwrap();
    let run = &comparison.runs[0];
    assert_eq!(
        (run.records_in, run.latency.count),
        (1_100, 1_000),
        "records that arrive in the warm-up are not measured"
    );
    // Records that were due in the pause had waited before they were read: 300 of 1 000.
    assert!(run.latency.p90 > pause / 3, "{comparison}");
    assert!(run.latency.max >= pause, "{comparison}");
    let curve: Vec<_> = run.curve.iter().map(|point| (point.percentile, point.latency)).collect();
    assert!(curve.is_sorted() && curve.len() > 40, "{curve:?}");
}

#[test]
fn mistakes_are_errors_that_say_so() {
    #[track_caller]
    fn check(job: Job, triggers: &[Trigger], input: For, kind: ErrorKind, said: &str) {
        let error = job.compare(triggers.iter().copied(), input).unwrap_err();
        assert_eq!(error.kind(), kind, "{error:#}");
        assert!(format!("{error:#}").contains(said), "{error:#}");
    }
    let job = || Job::new("mistakes", |flow| flow.source(generate(|n| n))?.sink(discard()));
    let continuous = [Trigger::Continuous];
    check(job(), &[], fast(1), ErrorKind::Config, "no trigger");
    check(job(), &[Trigger::AvailableNow], fast(1), ErrorKind::Config, "AvailableNow");
    check(job(), &continuous, fast(0), ErrorKind::Config, "nothing to measure");
    check(job(), &continuous, fast(1).rate(f64::NAN), ErrorKind::Config, "`rate`");
    let nothing = Job::new("nothing", |flow| flow.source(rows(0..0))?.sink(discard()));
    check(nothing, &continuous, fast(1), ErrorKind::NotFound, "no records");
    let (_sender, source) = channel::<u64>(1);
    let once = Job::new("once", move |flow| flow.source(&source)?.sink(discard()));
    check(once, &continuous, fast(1), ErrorKind::Config, "`channel`");
}

#[test]
fn from_kafka_to_kafka_nothing_is_committed_and_results_are_equal() {
    let broker = shared();
    let (input, output) = (broker.topic("compare-in", 3), broker.topic("compare-out", 2));
    let numbers: Vec<String> = (0..2_000).map(|n| n.to_string()).collect();
    broker.write(&input, numbers.iter().enumerate().map(|(n, text)| (Some(n as i32 % 3), "", Some(text.as_str()))));
    let (kafka, from, to, group) =
        (Kafka::new(&broker.address), input.clone(), output.clone(), format!("group-{input}"));
    let of_job = group.clone();
    let job = Job::new("compare", move |flow| {
        let numbers = flow.source(kafka.topic(&from).group(&of_job).json::<u64>())?.or_stop();
        numbers.filter(|n| n % 2 == 0).sink_by(u64::to_string, kafka.topic(&to).json())
    });
    let comparison = job.workers(2).compare(triggers(), fast(1_500)).unwrap();
    assert_eq!(comparison.results, Results::Equal);
    assert_eq!(comparison.records, 1_500);
    let out = comparison.runs[0].records_out;
    assert!(out > 0 && comparison.runs.iter().all(|run| run.records_out == out), "{comparison}");
    assert_eq!(broker.read(&output).iter().flatten().count() as u64, 3 * out, "each run writes its outputs");
    for group in [&group, &format!("{group}.compare")] {
        assert_eq!(broker.committed(group, &input, 3), [None, None, None]);
    }
    let page = report::page(&comparison);
    assert!(page.contains("micro-batch 20ms") && page.contains("all runs wrote the same"), "{page}");
    let found: serde_json::Value = serde_json::from_str(&report::json(&comparison)).unwrap();
    assert_eq!(found["runs"][2]["records_in"], 1_500, "{found}");
}

/// The timestamp of a record is part of what is compared.
#[test]
fn runs_that_write_other_timestamps_are_not_equal() {
    let broker = shared();
    let (kafka, output, written) =
        (Kafka::new(&broker.address), broker.topic("compared-times", 1), Arc::<AtomicU64>::default());
    let job = Job::new("times", move |flow| {
        let written = Arc::clone(&written);
        let time = move || 1_700_000_000_000 + written.fetch_add(1, SeqCst) as i64;
        let messages = flow.source(generate(|n| n.to_string()))?.map(move |text| Message::new(text).timestamp(time()));
        messages.sink(kafka.topic(&output).text().with_metadata())
    });
    let comparison = job.compare(triggers(), fast(100)).unwrap();
    assert!(matches!(comparison.results, Results::Different { .. }), "{:?}", comparison.results);
}
