//! What Apache Spark answers on small inputs, batch by batch, and what this engine answers: every
//! scenario of `tests/golden`, or of the folder that `MILLSTREAM_GOLDEN` names, whose operators
//! exist here, by an interpreter of its plan.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream::{Aggregated, Clock, Collected, Exchange, Job, Stream, TestRun, Trigger, channel, collect};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Operators that do not exist yet: scenarios with one of them are left out.
const LATER: &[&str] = &[
    "cogroup",
    "count_by_value_and_window",
    "count_by_window",
    "dedup_within_watermark",
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
    "window_aggregate",
];

/// Scenarios that are left out for another reason.
const NOT_RUN: &[(&str, &str)] =
    &[("limit_append", "a stream has no `limit`: the first rows of an endless stream are timing's")];

/// A batch without rows is no batch here: nothing runs, so nothing comes out. Spark runs it, and
/// then these scenarios show the whole table again, or a count of 0.
const SHOW_EMPTY_BATCHES: &[(&str, &str)] = &[
    ("clickstream_one_key_changes", "complete"),
    ("dstream_count", "rdd"),
    ("dstream_scala_count", "rdd"),
    ("global_aggregate", "complete"),
    ("global_aggregate", "update"),
    ("running_aggregates", "complete"),
    ("top_n", "complete"),
    ("word_count", "complete"),
];

/// A value of a row.
#[derive(Clone, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
enum Cell {
    Null,
    Bool(bool),
    Long(i64),
    Double(f64),
    Text(String),
    List(Vec<Cell>),
}

impl Eq for Cell {}

impl Hash for Cell {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Cell::Null => 0_u8.hash(state),
            Cell::Bool(value) => value.hash(state),
            Cell::Long(value) => value.hash(state),
            Cell::Double(value) => value.to_bits().hash(state),
            Cell::Text(value) => value.hash(state),
            Cell::List(values) => values.hash(state),
        }
    }
}

impl From<&Value> for Cell {
    fn from(value: &Value) -> Cell {
        match value {
            Value::Null => Cell::Null,
            Value::Bool(value) => Cell::Bool(*value),
            Value::Number(number) => number.as_i64().map_or_else(|| Cell::Double(number.as_f64().unwrap()), Cell::Long),
            Value::String(text) => Cell::Text(text.clone()),
            Value::Array(values) => Cell::List(values.iter().map(Cell::from).collect()),
            Value::Object(_) => panic!("a cell is not an object: {value}"),
        }
    }
}

impl Cell {
    fn long(&self) -> Option<i64> {
        if let Cell::Long(value) = self { Some(*value) } else { None }
    }

    fn number(&self) -> f64 {
        match self {
            Cell::Long(value) => *value as f64,
            Cell::Double(value) => *value,
            _ => panic!("{self:?} is not a number"),
        }
    }

    fn plus(&self, other: &Cell) -> Cell {
        match (self, other) {
            (Cell::Long(a), Cell::Long(b)) => Cell::Long(a + b),
            _ => Cell::Double(self.number() + other.number()),
        }
    }
}

type Row = Vec<Cell>;

/// A stream of rows whose columns have names.
struct Table<'a> {
    columns: Vec<String>,
    rows: Stream<'a, Row>,
}

/// The column of that name.
fn column(columns: &[String], name: &str) -> usize {
    columns.iter().position(|column| column == name).unwrap_or_else(|| panic!("there is no column {name}"))
}

/// One aggregate of a group.
#[derive(Clone, Debug)]
struct Asked {
    function: String,
    column: Option<usize>,
}

/// What an aggregate keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    count: i64,
    value: Cell,
}

impl Asked {
    fn add(&self, kept: &mut Kept, row: &Row) {
        let cell = self.column.map_or(&Cell::Null, |column| &row[column]);
        if self.function.starts_with("count_rows") || self.function == "count" {
            kept.count += 1;
            return;
        }
        if *cell == Cell::Null {
            return;
        }
        kept.count += 1;
        let is_first = kept.value == Cell::Null;
        let now = cell.partial_cmp(&kept.value);
        match self.function.as_str() {
            "count_non_null" => {}
            "sum" | "avg" if !is_first => kept.value = kept.value.plus(cell),
            "min" if !is_first && now != Some(Ordering::Less) => {}
            "max" if !is_first && now != Some(Ordering::Greater) => {}
            "sum" | "avg" | "min" | "max" => kept.value = cell.clone(),
            other => panic!("there is no aggregate {other}"),
        }
    }

    fn result(&self, kept: &Kept) -> Cell {
        match self.function.as_str() {
            "count" | "count_rows" | "count_non_null" => Cell::Long(kept.count),
            "avg" if kept.count > 0 => Cell::Double(kept.value.number() / kept.count as f64),
            _ => kept.value.clone(),
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text"))
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|value| text(value).to_owned()).collect()
}

/// Applies one operator; `sorted` and `limit` were asked for behind it.
fn aggregate<'a>(input: Table<'a>, plan: &Value, mode: &str, order: Option<&Value>, limit: Option<usize>) -> Table<'a> {
    let Table { columns, rows } = input;
    let keys: Vec<usize> = texts(&plan["keys"]).iter().map(|key| column(&columns, key)).collect();
    let asked: Vec<Asked> = plan["aggregates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|asked| Asked {
            function: text(&asked["fn"]).to_owned(),
            column: asked.get("column").map(|name| column(&columns, text(name))),
        })
        .collect();
    let mut out: Vec<String> = keys.iter().map(|key| columns[*key].clone()).collect();
    out.extend(plan["aggregates"].as_array().unwrap().iter().map(|asked| text(&asked["as"]).to_owned()));
    let by_key = rows.key_by(move |row: &Row| keys.iter().map(|key| row[*key].clone()).collect::<Row>());
    let rows = if let [Asked { function, column: None }] = &asked[..]
        && function.starts_with("count")
    {
        let row = |(mut key, count): (Row, u64)| {
            key.push(Cell::Long(count as i64));
            key
        };
        emitted(by_key.count(), row, &out, (mode, order, limit))
    } else {
        let (zero, add) = (vec![Kept { count: 0, value: Cell::Null }; asked.len()], asked.clone());
        let table = by_key.aggregate(
            move || zero.clone(),
            move |kept: &mut Vec<Kept>, row: Row| add.iter().zip(kept).for_each(|(asked, kept)| asked.add(kept, &row)),
        );
        let row = move |(mut key, kept): (Row, Vec<Kept>)| {
            key.extend(asked.iter().zip(&kept).map(|(asked, kept)| asked.result(kept)));
            key
        };
        emitted(table, row, &out, (mode, order, limit))
    };
    Table { columns: out, rows }
}

/// What is emitted of a table, as rows with these columns.
fn emitted<'a, V: Exchange + Clone>(
    table: Aggregated<'a, Row, V>,
    row: impl Fn((Row, V)) -> Row + Clone + 'static,
    out: &[String],
    (mode, order, limit): (&str, Option<&Value>, Option<usize>),
) -> Stream<'a, Row> {
    match (mode, order) {
        ("update", None) => table.updates().map(row),
        ("complete", None) => table.complete().rows().map(row),
        ("complete", Some(order)) => {
            let by: Vec<(usize, bool)> = texts(&order["by"])
                .iter()
                .map(|by| (column(out, by.split(' ').next().unwrap()), by.contains("desc")))
                .collect();
            let row_of = row.clone();
            let compare = move |a: &(Row, V), b: &(Row, V)| {
                let (a, b) = (row_of(a.clone()), row_of(b.clone()));
                let each = by.iter().map(|(column, is_descending)| {
                    let order = a[*column].partial_cmp(&b[*column]).unwrap();
                    if *is_descending { order.reverse() } else { order }
                });
                each.fold(Ordering::Equal, Ordering::then)
            };
            table.complete().sorted_by(compare).limit(limit.unwrap_or(usize::MAX)).rows().map(row)
        }
        _ => panic!("mode {mode} does not go with this plan"),
    }
}

/// The first row of each key; with all columns as its key it is the different rows.
fn dedup<'a>(Table { columns, rows }: Table<'a>, plan: &Value) -> Table<'a> {
    let keys: Vec<usize> = texts(&plan["keys"]).iter().map(|key| column(&columns, key)).collect();
    let rows = match keys.len() == columns.len() {
        true => rows.distinct(),
        false => rows.key_by(move |row: &Row| keys.iter().map(|key| row[*key].clone()).collect::<Row>()).dedup(),
    };
    Table { columns, rows }
}

/// Expressions of the scenarios, which are text for people.
fn filter(columns: &[String], expression: &str) -> impl Fn(&Row) -> bool + 'static {
    let (name, is_even) = match expression {
        "count is even" => ("count", true),
        "value > 0" => ("value", false),
        other => panic!("the filter {other:?} is unknown"),
    };
    let column = column(columns, name);
    move |row| row[column].long().is_some_and(|value| if is_even { value % 2 == 0 } else { value > 0 })
}

/// Builds the plan of a scenario of Structured Streaming.
fn structured<'a>(mut table: Table<'a>, plan: &[Value], mode: &str) -> Table<'a> {
    for (index, operator) in plan.iter().enumerate() {
        let behind = |name: &str| plan[index + 1..].iter().find(|next| next["op"] == name);
        let limit = behind("limit").map(|limit| limit["rows"].as_u64().unwrap() as usize);
        table = match text(&operator["op"]) {
            "aggregate" => aggregate(table, operator, mode, behind("sort"), limit),
            // Done with the aggregate.
            "sort" | "limit" => table,
            "filter" => {
                let keep = filter(&table.columns, text(&operator["expr"]));
                Table { rows: table.rows.filter(keep), ..table }
            }
            "project" => {
                assert_eq!(texts(&operator["columns"]), ["user", "value * 2 as twice"]);
                let (user, value) = (column(&table.columns, "user"), column(&table.columns, "value"));
                let rows = table.rows.map(move |row: Row| {
                    vec![row[user].clone(), row[value].long().map_or(Cell::Null, |value| Cell::Long(value * 2))]
                });
                Table { columns: vec!["user".to_owned(), "twice".to_owned()], rows }
            }
            "flat_map" => flat_map(table, operator),
            "dedup" => dedup(table, operator),
            other => panic!("the operator {other} is neither interpreted nor left out"),
        };
    }
    table
}

fn flat_map<'a>(table: Table<'a>, operator: &Value) -> Table<'a> {
    let (columns, name) = (table.columns, text(&operator["as"]).to_owned());
    if text(&operator["expr"]).starts_with("split line on a single space") {
        let line = column(&columns, "line");
        let rows = table.rows.flat_map(move |row: Row| match &row[line] {
            Cell::Text(line) => line.split(' ').map(|word| vec![Cell::Text(word.to_owned())]).collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        return Table { columns: vec![name], rows };
    }
    assert_eq!(operator["expr"], "one row for 'x' and one for user");
    let user = column(&columns, "user");
    let rows = table.rows.flat_map(move |row: Row| {
        [Cell::Text("x".to_owned()), row[user].clone()].map(|item| {
            let mut row = row.clone();
            row.push(item);
            row
        })
    });
    Table { columns: columns.into_iter().chain([name]).collect(), rows }
}

fn pair(row: Row) -> (Cell, Cell) {
    let Some(Cell::List(pair)) = row.into_iter().next() else { panic!("a pair is a list") };
    let [key, value] = <[Cell; 2]>::try_from(pair).unwrap();
    (key, value)
}

fn one(cell: Cell) -> Row {
    vec![cell]
}

fn both(a: Cell, b: Cell) -> Row {
    vec![Cell::List(vec![a, b])]
}

/// Builds the plan of a scenario of DStreams, whose rows are one cell each.
fn discretized<'a>(mut inputs: Vec<Stream<'a, Row>>, plan: &[Value]) -> Stream<'a, Row> {
    let rows = inputs.remove(0);
    let [operator] = plan else { panic!("a DStream of the scenarios has one operator") };
    let sum = |a: Cell, b: Cell| a.plus(&b);
    let counted = |(value, count): (Cell, u64)| both(value, Cell::Long(count as i64));
    match text(&operator["op"]) {
        "count" => rows.per_batch().count().map(|count| one(Cell::Long(count as i64))),
        "count_by_value" => rows.map(|row| row.into_iter().next().unwrap()).per_batch().count_by_value().map(counted),
        "reduce" => rows.map(|row| row.into_iter().next().unwrap()).per_batch().reduce(sum).map(one),
        "reduce_by_key" => {
            let by_key = rows.map(pair).key_by(|(key, _)| key.clone()).per_batch();
            by_key.reduce(move |a, b| (a.0, sum(a.1, b.1))).map(|(key, (_, value))| both(key, value))
        }
        "group_by_key" => rows.map(pair).key_by(|(key, _)| key.clone()).per_batch().group().map(|(key, pairs)| {
            let mut values: Vec<Cell> = pairs.into_iter().map(|(_, value)| value).collect();
            values.sort_by(|a, b| a.partial_cmp(b).unwrap());
            both(key, Cell::List(values))
        }),
        "transform" => {
            assert_eq!(operator["fn"], "rows with value > 0, the key in upper case, distinct");
            rows.map(pair).per_batch().transform(|pairs| {
                let mut kept: Vec<Row> = Vec::new();
                for (key, value) in pairs.into_iter().filter(|(_, value)| value.long() > Some(0)) {
                    let Cell::Text(key) = key else { panic!("a key is text") };
                    let row = both(Cell::Text(key.to_uppercase()), value);
                    if !kept.contains(&row) {
                        kept.push(row);
                    }
                }
                kept
            })
        }
        "union" => inputs.into_iter().fold(rows, Stream::union),
        "flat_map, reduce_by_key" => {
            assert_eq!(operator["expr"], "each word and its upper case, counted");
            let words = rows.flat_map(|row: Row| {
                let Some(Cell::Text(word)) = row.into_iter().next() else { panic!("a word is text") };
                [Cell::Text(word.to_uppercase()), Cell::Text(word)]
            });
            words.per_batch().count_by_value().map(counted)
        }
        other => panic!("the operator {other} is neither interpreted nor left out"),
    }
}

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
        let has_watermark = semantics["inputs"]
            .as_object()?
            .values()
            .any(|input| input.get("watermark_delay_ms").is_some_and(|delay| !delay.is_null()));
        if has_watermark {
            return Some("there is no event time yet".to_owned());
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

    fn run(&self, mode: &str, workers: usize) {
        let (names, rows, columns) = self.input();
        let plan = self.asked["semantics"]["plan"].as_array().unwrap().clone();
        let is_stream = self.is_stream_of_batches();
        let (senders, sources): (Vec<_>, Vec<_>) = names.iter().map(|_| channel::<Row>(1_000)).unzip();
        let results: Collected<Row> = collect();
        let (sink, mode_of_job) = (results.clone(), mode.to_owned());
        let job = Job::new(&self.name, move |flow| {
            let inputs = sources.iter().map(|source| flow.source(source)).collect::<Result<Vec<_>, _>>()?;
            if is_stream {
                return discretized(inputs, &plan).sink(&sink);
            }
            let rows = inputs.into_iter().next().expect("there is an input");
            structured(Table { columns: columns.clone(), rows }, &plan, &mode_of_job).rows.sink(&sink)
        });
        let job = job.state_in_memory().workers(workers).trigger(Trigger::micro_batch(Duration::from_secs(1)));
        let mut test = TestRun::start(job.clock(Clock::simulated())).unwrap();
        let expected = lines(&self.folder.join(format!("expected.{mode}.jsonl")));
        let output = self.asked["semantics"]
            .get("output_columns")
            .map(|columns| columns.as_array().unwrap().iter().map(|column| text(&column["name"]).to_owned()).collect());
        let output: Vec<String> = output.unwrap_or_else(|| vec!["row".to_owned()]);
        let is_ordered = self.asked["semantics"]["output_ordered"] == true;
        for batch in 1..=self.asked["batches"].as_u64().unwrap() {
            let mut is_empty = true;
            for (name, sender) in names.iter().zip(&senders) {
                let rows = rows.get(&(batch, name.clone())).cloned().unwrap_or_default();
                is_empty &= rows.is_empty();
                test.feed(sender, rows).unwrap();
            }
            let shown = expected.iter().filter(|row| row["batch"] == json!(batch)).count();
            if is_empty && shown > 0 && SHOW_EMPTY_BATCHES.contains(&(&self.name, mode)) {
                test.advance(Duration::from_secs(1)).unwrap();
                assert!(test.drain(&results).unwrap().is_empty(), "{}, {mode}, batch {batch} has no rows", self.name);
                continue;
            }
            test.advance(Duration::from_secs(1)).unwrap();
            let of_batch = expected.iter().filter(|row| row["batch"] == json!(batch));
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
    let (mut run, mut left_out) = (0, 0);
    for scenario in scenarios() {
        if scenario.left_out().is_some() {
            left_out += 1;
            continue;
        }
        for mode in texts(&scenario.asked["semantics"]["output_modes"]) {
            [1, 3].into_iter().for_each(|workers| scenario.run(&mode, workers));
        }
        run += 1;
    }
    println!("{run} scenarios were run, {left_out} left out");
    assert!(run > 0, "no scenario was run");
}
