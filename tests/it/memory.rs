//! The memory of the process, whatever stages make of a record: before a sink that never has room,
//! it stays within `Job::memory` plus what code, threads and one batch in progress take. Each case
//! runs in its own process.

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use millstream::connector::{Accepted, Batch, Delivery, OpenSink, Wake, Worker, Writer};
use millstream::{ByteSize, Calls, Flow, Job, Result, Sink, Stream, Trigger, generate};
use millstream_connectors::files;

/// A sink that never has room.
#[derive(Clone)]
struct NeverRoom;

impl<T: 'static> Sink<T> for NeverRoom {
    type Shared = ();
    type Writer = NeverRoom;

    fn name(&self) -> String {
        "never room".to_owned()
    }

    fn connect(self, _: OpenSink) -> Result<()> {
        Ok(())
    }

    fn writer(_: &Arc<()>, _: Worker, _: Wake) -> Result<NeverRoom> {
        Ok(NeverRoom)
    }
}

impl<T: 'static> Writer<T> for NeverRoom {
    fn write(&mut self, _: &mut Batch<T>, _: &Delivery) -> Result<Accepted> {
        Ok(Accepted::Full)
    }
}

const MEMORY: u64 = 32 << 20;
/// Stacks, the allocator's overhead, and a batch that was in progress when the sink had no room;
/// behind a fork each worker has it twice. The most that was seen is 20 MiB with all records.
const BESIDE: u64 = 8 << 20;
const CASE: &str = "MILLSTREAM_MEMORY_CASE";
const DIRECTORY: &str = "MILLSTREAM_MEMORY_DIRECTORY";

fn numbers<'a>(flow: &Flow<'a>) -> Result<Stream<'a, String>> {
    // A hundred bytes each.
    flow.source(generate(|n| format!("{n:0100}")))
}

fn large(_: String) -> Vec<u8> {
    vec![b'x'; 64 << 10]
}

fn pipeline(case: &str) -> fn(&Flow<'_>) -> Result<()> {
    match case {
        "flat_map" => |flow| numbers(flow)?.flat_map(|text| vec![text; 1_000]).sink(NeverRoom),
        "map" => |flow| numbers(flow)?.map(large).sink(NeverRoom),
        "fork" => |flow| {
            let large = numbers(flow)?.map(large);
            large.clone().sink(NeverRoom)?;
            large.sink(NeverRoom)
        },
        "map before an exchange" => |flow| numbers(flow)?.map(large).rebalance().sink(NeverRoom),
        "map behind an exchange" => |flow| numbers(flow)?.rebalance().map(large).sink(NeverRoom),
        "map_async" => |flow| {
            let calls = Calls::ordered(64);
            numbers(flow)?.map_async(calls, |text| async move { large(text) }).sink(NeverRoom)
        },
        "json" => |flow| {
            let directory = std::env::var(DIRECTORY).expect("the parent process sets it");
            flow.source(files(directory).json::<serde_json::Value>())?.or_stop().sink(NeverRoom)
        },
        other => unreachable!("unknown case: {other}"),
    }
}

/// The memory that is not a file's: of the program itself, more is loaded while it runs.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// What the process of a case runs. Does nothing in an ordinary test run.
#[test]
fn in_a_process_of_its_own() {
    let Ok(case) = std::env::var(CASE) else { return };
    let (case, trigger) = case.split_once('/').unwrap();
    let trigger =
        if trigger == "continuous" { Trigger::Continuous } else { Trigger::micro_batch(Duration::from_millis(10)) };
    let before = resident();
    let running =
        Job::new("memory", pipeline(case)).trigger(trigger).workers(2).memory(ByteSize(MEMORY)).start().unwrap();
    let mut most = 0;
    for _ in 0..60 {
        std::thread::sleep(Duration::from_millis(25));
        most = most.max(resident().saturating_sub(before));
    }
    println!("took {most} bytes");
    running.abort();
    drop(running.wait());
}

#[track_caller]
fn check(case: &str) {
    let directory = tempfile::tempdir().unwrap();
    if case == "json" {
        let mut file = std::fs::File::create(directory.path().join("rows.json")).unwrap();
        for n in 0..400_000 {
            writeln!(file, "{{\"id\":{n},\"name\":\"a name\",\"tags\":[\"a\",\"b\"],\"at\":{{\"x\":1,\"y\":2}}}}")
                .unwrap();
        }
    }
    for trigger in ["continuous", "micro-batch"] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["memory::in_a_process_of_its_own", "--exact", "--nocapture"]);
        child.env(CASE, format!("{case}/{trigger}")).env(DIRECTORY, directory.path());
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let took = text.split_once("took ").and_then(|(_, rest)| rest.split_once(" bytes"));
        let took: u64 =
            took.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))).0.parse().unwrap();
        println!("{case}, {trigger}: {} MiB", took >> 20);
        assert!(took <= MEMORY + BESIDE, "{case}, {trigger}: {} MiB", took >> 20);
    }
}

#[test]
fn of_a_record_that_becomes_a_thousand() {
    check("flat_map");
}

#[test]
fn of_a_record_that_becomes_a_large_one() {
    check("map");
}

#[test]
fn of_records_that_are_forked() {
    check("fork");
}

#[test]
fn of_large_records_that_change_workers() {
    check("map before an exchange");
    check("map behind an exchange");
}

#[test]
fn of_large_answers_to_calls() {
    check("map_async");
}

#[test]
fn of_decoded_json() {
    check("json");
}
