//! What Apache Spark answers on small inputs, batch by batch, and what this engine answers: every
//! scenario of `tests/golden`, or of the folder that `MILLSTREAM_GOLDEN` names, whose operators
//! exist here, by an interpreter of its plan.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millstream::{
    Clock, Collected, EventTime, Job, Stream, TestRun, Trigger, Watermark, WatermarkPolicy, channel, collect, rows,
};
use serde_json::{Value, json};

mod plan;

use plan::{Cell, Row, Table, column, discretized, filter, structured, text, texts};

/// Operators that do not exist yet: scenarios with one of them are left out.
const LATER: &[&str] = &[
    "cogroup",
    "count_by_value_and_window",
    "count_by_window",
    "group_by_key_and_window",
    "join",
    "join_static",
    "join_streams",
    "map_with_state",
    "reduce_by_key_and_window",
    "reduce_by_window",
    "state_by_key",
    "update_state_by_key",
    "window",
];

/// Scenarios that are left out for another reason.
const NOT_RUN: &[(&str, &str)] = &[
    ("limit_append", "a stream has no `limit`: the first rows of an endless stream are timing's"),
    ("dedup_by_id_with_watermark", "`dedup` is for ever, and loses no record that is new: Spark drops late ones"),
    ("union_watermarks_restart", "a restart forgets no input's watermark here, and Spark's is questionable"),
];

/// A batch without rows is no batch here: nothing runs, so nothing comes out. Spark runs it: a
/// complete table is shown again, and in these scenarios a count of 0.
const SHOW_EMPTY_BATCHES: &[(&str, &str)] =
    &[("dstream_count", "rdd"), ("dstream_scala_count", "rdd"), ("global_aggregate", "update")];

/// The rows of each batch and input.
type Input = BTreeMap<(u64, String), Vec<Row>>;

struct Scenario {
    name: String,
    folder: PathBuf,
    asked: Value,
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

impl Scenario {
    fn is_stream_of_batches(&self) -> bool {
        self.asked["feed"] == "dstream"
    }

    /// Why it is left out, if it is.
    fn left_out(&self) -> Option<String> {
        let semantics = &self.asked["semantics"];
        if let Some((_, why)) = NOT_RUN.iter().find(|(name, _)| *name == self.name) {
            return Some((*why).to_owned());
        }
        let operators = semantics["plan"].as_array()?.iter().map(|operator| text(&operator["op"]));
        let mut later = operators.filter(|operator| LATER.contains(operator));
        later.next().map(|operator| format!("there is no {operator} yet"))
    }

    /// The rows of each batch and input, as cells in the order of the columns.
    fn input(&self) -> (Vec<String>, Input, Vec<String>) {
        let inputs = self.asked["semantics"]["inputs"].as_object().unwrap();
        let names: Vec<String> = inputs.keys().cloned().collect();
        let columns: Vec<String> = match inputs[&names[0]].get("columns") {
            Some(columns) => columns.as_array().unwrap().iter().map(|c| text(&c["name"]).to_owned()).collect(),
            None => vec!["row".to_owned()],
        };
        let mut rows = Input::new();
        for line in lines(&self.folder.join("input.jsonl")) {
            let at = (line["batch"].as_u64().unwrap(), text(&line["input"]).to_owned());
            rows.entry(at).or_default().push(columns.iter().map(|column| Cell::from(&line[column])).collect());
        }
        (names, rows, columns)
    }

    /// The pipeline of the scenario, over these streams of its inputs.
    /// Without a policy nothing is late.
    fn build<'a>(&self, inputs: Vec<Stream<'a, Row>>, mode: &str, policy: Option<WatermarkPolicy>) -> Stream<'a, Row> {
        let semantics = &self.asked["semantics"];
        let plan = semantics["plan"].as_array().unwrap();
        if self.is_stream_of_batches() {
            return discretized(inputs, plan);
        }
        let (names, _, columns) = self.input();
        let delays: Vec<Option<Duration>> = names
            .iter()
            .map(|name| semantics["inputs"][name]["watermark_delay_ms"].as_u64().map(Duration::from_millis))
            .collect();
        let is_timed =
            delays.iter().any(Option::is_some) || plan.iter().any(|operator| operator["op"] == "window_aggregate");
        // Spark's optimizer puts such a filter before the watermark.
        let filters = plan.iter().take_while(|operator| operator["op"] == "filter" && is_timed).count();
        let inputs = inputs.into_iter().zip(&delays).map(|(mut rows, delay)| {
            for operator in &plan[..filters] {
                rows = rows.filter(filter(&columns, text(&operator["expr"])));
            }
            if !is_timed {
                return rows;
            }
            let at = column(&columns, "event_time");
            // Without a watermark nothing is ever late.
            let watermark = match delay.zip(policy) {
                Some((delay, policy)) => Watermark::delay(delay).policy(policy),
                None => Watermark::delay(Duration::MAX),
            };
            rows.with_watermark(move |row| row[at].long().map(EventTime), watermark)
        });
        let rows = inputs.reduce(Stream::union).expect("there is an input");
        structured(Table { columns: columns.clone(), rows }, &plan[filters..], mode, delays[0]).rows
    }

    fn output(&self) -> Vec<String> {
        let output = self.asked["semantics"]
            .get("output_columns")
            .map(|columns| columns.as_array().unwrap().iter().map(|column| text(&column["name"]).to_owned()).collect());
        output.unwrap_or_else(|| vec!["row".to_owned()])
    }

    fn run(self: &Arc<Self>, mode: &str, workers: usize) {
        let (names, rows, columns) = self.input();
        let time = columns.iter().position(|column| column == "event_time");
        let (senders, sources): (Vec<_>, Vec<_>) = names.iter().map(|_| channel::<Row>(1_000)).unzip();
        let results: Collected<Row> = collect();
        let (own, sink, mode_of_job) = (Arc::clone(self), results.clone(), mode.to_owned());
        let policy = match self.asked["semantics"]["watermark_policy"] == "max" {
            true => WatermarkPolicy::MaxSeenByFastest,
            false => WatermarkPolicy::MaxSeen,
        };
        let job = Job::new(&self.name, move |flow| {
            let inputs = sources.iter().map(|source| flow.source(source)).collect::<Result<Vec<_>, _>>()?;
            own.build(inputs, &mode_of_job, Some(policy)).sink(&sink)
        });
        let job = job.state_in_memory().workers(workers).trigger(Trigger::micro_batch(Duration::from_secs(1)));
        let mut test = TestRun::start(job.clock(Clock::simulated())).unwrap();
        let expected = lines(&self.folder.join(format!("expected.{mode}.jsonl")));
        let output = self.output();
        let (is_ordered, is_backlog) =
            (self.asked["semantics"]["output_ordered"] == true, self.asked["feed"] == "backlog");
        let batches = self.asked["batches"].as_u64().unwrap();
        for batch in 1..=batches {
            let mut is_empty = true;
            for (name, sender) in names.iter().zip(&senders) {
                let rows = rows.get(&(batch, name.clone())).cloned().unwrap_or_default();
                // Rows without an event time are in no window.
                let has_time = |row: &Row| time.is_none_or(|time| row[time] != Cell::Null);
                is_empty &= !rows.iter().any(has_time);
                test.feed(sender, rows).unwrap();
            }
            let shown = expected.iter().filter(|row| row["batch"] == json!(batch)).count();
            if is_empty && shown > 0 && (mode == "complete" || SHOW_EMPTY_BATCHES.contains(&(&self.name, mode))) {
                test.advance(Duration::from_secs(1)).unwrap();
                assert!(test.drain(&results).unwrap().is_empty(), "{}, {mode}, batch {batch} has no rows", self.name);
                continue;
            }
            test.advance(Duration::from_secs(1)).unwrap();
            if !is_backlog || batch == batches {
                // Time for a batch without rows, if the watermark has moved.
                test.advance(Duration::from_secs(1)).unwrap();
            }
            // A batch without rows is no batch here, so a table is not shown again behind one.
            let is_shown = |row: &&Value| mode != "complete" || row["no_data"] != true;
            let of_batch = expected.iter().filter(|row| row["batch"] == json!(batch)).filter(is_shown);
            let mut wanted: Vec<Row> =
                of_batch.map(|row| output.iter().map(|column| Cell::from(&row[column])).collect()).collect();
            let mut got = test.drain(&results).unwrap();
            if !is_ordered {
                wanted.sort_by(|a, b| a.partial_cmp(b).unwrap());
                got.sort_by(|a, b| a.partial_cmp(b).unwrap());
            }
            assert_eq!(got, wanted, "{}, {mode}, batch {batch}, {workers} workers", self.name);
        }
    }

    /// Whether there is an answer to all rows at once that finals can be compared with.
    fn has_batch_answer(&self) -> bool {
        let modes = texts(&self.asked["semantics"]["output_modes"]);
        let plan = self.asked["semantics"]["plan"].as_array().unwrap();
        let is_windowed = plan.iter().any(|operator| text(&operator["op"]).contains("window"));
        is_windowed && modes.contains(&"append".to_owned()) && self.folder.join("expected.batch.jsonl").exists()
    }

    /// The same pipeline over rows that end, against Spark's answer to all of them at once.
    fn run_bounded(self: &Arc<Self>, workers: usize) {
        let (names, input, _) = self.input();
        let of =
            |name: &String| input.iter().filter(|((_, of), _)| of == name).flat_map(|(_, rows)| rows.clone()).collect();
        let inputs: Vec<Vec<Row>> = names.iter().map(of).collect();
        let results: Collected<Row> = collect();
        let (own, sink) = (Arc::clone(self), results.clone());
        let job = Job::new(&self.name, move |flow| {
            let inputs = inputs.iter().map(|own| flow.source(rows(own.clone()).partitions(1)));
            let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
            own.build(inputs, "append", None).sink(&sink)
        });
        job.state_in_memory().workers(workers).trigger(Trigger::AvailableNow).run().unwrap();
        let output = self.output();
        let expected = lines(&self.folder.join("expected.batch.jsonl"));
        let mut wanted: Vec<Row> =
            expected.iter().map(|row| output.iter().map(|column| Cell::from(&row[column])).collect()).collect();
        let mut got = results.take();
        wanted.sort_by(|a, b| a.partial_cmp(b).unwrap());
        got.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(got, wanted, "{}, all at once, {workers} workers", self.name);
    }
}

fn scenarios() -> Vec<Scenario> {
    let folder = env::var_os("MILLSTREAM_GOLDEN").map_or_else(|| PathBuf::from("golden"), PathBuf::from);
    let mut scenarios: Vec<Scenario> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("scenario.json").exists())
        .map(|folder| Scenario {
            name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            asked: serde_json::from_str(&fs::read_to_string(folder.join("scenario.json")).unwrap()).unwrap(),
            folder,
        })
        .collect();
    scenarios.sort_by(|a, b| a.name.cmp(&b.name));
    scenarios
}

#[test]
fn answers_are_those_of_spark_batch_by_batch() {
    let (mut run, mut left_out, mut bounded) = (0, 0, 0);
    for scenario in scenarios().into_iter().map(Arc::new) {
        if scenario.left_out().is_some() {
            left_out += 1;
            continue;
        }
        for mode in texts(&scenario.asked["semantics"]["output_modes"]) {
            [1, 3].into_iter().for_each(|workers| scenario.run(&mode, workers));
        }
        if scenario.has_batch_answer() {
            [1, 3].into_iter().for_each(|workers| scenario.run_bounded(workers));
            bounded += 1;
        }
        run += 1;
    }
    println!("{run} scenarios were run, {bounded} of them also over rows that end, {left_out} left out");
    assert!(run > 0 && bounded > 0, "no scenario was run");
}
