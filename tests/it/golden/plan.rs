//! The plans of scenarios, as pipelines.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use millstream::{Aggregated, Exchange, InTime, Pane, Session, Sliding, Stream, WindowTable, Windowed, Windows};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A value of a row.
#[derive(Clone, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
pub(super) enum Cell {
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
    pub(super) fn long(&self) -> Option<i64> {
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

pub(super) type Row = Vec<Cell>;

/// A stream of rows whose columns have names.
pub(super) struct Table<'a> {
    pub(super) columns: Vec<String>,
    pub(super) rows: Stream<'a, Row>,
}

/// The column of that name.
pub(super) fn column(columns: &[String], name: &str) -> usize {
    columns.iter().position(|column| column == name).unwrap_or_else(|| panic!("there is no column {name}"))
}

/// One aggregate of a group.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    function: String,
    column: Option<usize>,
}

/// What an aggregate keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    count: i64,
    value: Cell,
}

impl Asked {
    fn of(asked: &Value, columns: &[String]) -> Asked {
        let column = asked.get("column").map(|name| column(columns, text(name)));
        Asked { function: text(&asked["fn"]).to_owned(), column }
    }

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

    /// Adds what other rows have led to.
    fn merge(&self, kept: &mut Kept, other: &Kept) {
        kept.count += other.count;
        let now = other.value.partial_cmp(&kept.value);
        let is_first = kept.value == Cell::Null;
        match self.function.as_str() {
            _ if other.value == Cell::Null => {}
            "sum" | "avg" if !is_first => kept.value = kept.value.plus(&other.value),
            "min" if !is_first && now != Some(Ordering::Less) => {}
            "max" if !is_first && now != Some(Ordering::Greater) => {}
            _ => kept.value = other.value.clone(),
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

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not text"))
}

pub(super) fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|value| text(value).to_owned()).collect()
}

/// Applies one operator; `sorted` and `limit` were asked for behind it.
pub(super) fn aggregate<'a>(
    input: Table<'a>,
    plan: &Value,
    mode: &str,
    order: Option<&Value>,
    limit: Option<usize>,
) -> Table<'a> {
    let Table { columns, rows } = input;
    let keys: Vec<usize> = texts(&plan["keys"]).iter().map(|key| column(&columns, key)).collect();
    let asked: Vec<Asked> =
        plan["aggregates"].as_array().unwrap().iter().map(|asked| Asked::of(asked, &columns)).collect();
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

/// Applies an aggregate over windows.
pub(super) fn window_aggregate<'a>(input: Table<'a>, plan: &Value, mode: &str) -> Table<'a> {
    let Table { columns, rows } = input;
    let keys: Vec<usize> = texts(&plan["keys"]).iter().map(|key| column(&columns, key)).collect();
    let asked: Vec<Asked> =
        plan["aggregates"].as_array().unwrap().iter().map(|asked| Asked::of(asked, &columns)).collect();
    let window = &plan["window"];
    let is_session = window["kind"] == "session";
    let prefix = if is_session { "session_window" } else { "window" };
    let mut out: Vec<String> = ["start", "end"].iter().map(|edge| format!("{prefix}_{edge}")).collect();
    out.extend(keys.iter().map(|key| columns[*key].clone()));
    out.extend(plan["aggregates"].as_array().unwrap().iter().map(|asked| text(&asked["as"]).to_owned()));
    let millis = |name: &str| Duration::from_millis(window[name].as_u64().unwrap());
    let by_key =
        |rows: Stream<'a, Row>| rows.key_by(move |row: &Row| keys.iter().map(|key| row[*key].clone()).collect::<Row>());
    let rows = if !is_session {
        let windows = Sliding::new(millis("size_ms"), millis("slide_ms")).offset(millis("offset_ms"));
        let windows = by_key(rows).window(windows);
        match &asked[..] {
            // A count has panes of its own.
            [Asked { function, column: None }] if function.starts_with("count") => {
                by_time(windows.count(), mode, |count| vec![Cell::Long(*count as i64)])
            }
            _ => by_time(values(windows, &asked), mode, results(&asked)),
        }
    } else if let Some(gap) = window.get("gap_per_row") {
        let (user, value) = (column(&columns, "user"), column(&columns, "value"));
        let is_value = match text(gap) {
            "value seconds" => true,
            "5 s for user a; else 20 s if value > 10; else 10 s" => false,
            other => panic!("the gap {other:?} is unknown"),
        };
        let seconds = move |row: &Row| match is_value {
            true => row[value].long().unwrap_or(0),
            false if row[user] == Cell::Text("a".to_owned()) => 5,
            false => {
                if row[value].long() > Some(10) {
                    20
                } else {
                    10
                }
            }
        };
        // Spark leaves them out; here they would be sessions of a millisecond.
        let rows = rows.filter(move |row| seconds(row) > 0);
        let windows =
            by_key(rows).window(Session::by_record(move |row: &Row| Duration::from_secs(seconds(row) as u64)));
        by_session(values(windows, &asked), mode, results(&asked))
    } else {
        let windows = by_key(rows).window(Session::with_gap(millis("gap_ms")));
        by_session(values(windows, &asked), mode, results(&asked))
    };
    Table { columns: out, rows }
}

pub(super) fn values<'a, W: 'static>(
    windows: Windowed<'a, Row, Row, W>,
    asked: &[Asked],
) -> WindowTable<'a, Row, Vec<Kept>, W> {
    let (zero, add, merge) = (vec![Kept { count: 0, value: Cell::Null }; asked.len()], asked.to_vec(), asked.to_vec());
    let values = windows.aggregate(
        move || zero.clone(),
        move |kept: &mut Vec<Kept>, row: Row| add.iter().zip(kept).for_each(|(asked, kept)| asked.add(kept, &row)),
    );
    values.merge(move |kept, other| {
        merge.iter().zip(kept).zip(other).for_each(|((asked, kept), other)| asked.merge(kept, other));
    })
}

pub(super) fn results(asked: &[Asked]) -> impl Fn(&Vec<Kept>) -> Row + 'static {
    let asked = asked.to_vec();
    move |kept| asked.iter().zip(kept).map(|(asked, kept)| asked.result(kept)).collect()
}

pub(super) fn pane_row<V>(pane: Pane<Row, V>, results: impl Fn(&V) -> Row) -> Row {
    let Pane { key, window, value } = pane;
    let edges = [window.start.0, window.end.0].map(Cell::Long);
    edges.into_iter().chain(key).chain(results(&value)).collect()
}

pub(super) fn by_time<'a, V: Exchange + Clone>(
    table: WindowTable<'a, Row, V>,
    mode: &str,
    results: impl Fn(&V) -> Row + 'static,
) -> Stream<'a, Row> {
    match mode {
        "update" => table.updates().map(move |pane| pane_row(pane, &results)),
        _ => by_session(table, mode, results),
    }
}

pub(super) fn by_session<'a, V: Exchange + Clone, W: InTime>(
    table: WindowTable<'a, Row, V, W>,
    mode: &str,
    results: impl Fn(&V) -> Row + 'static,
) -> Stream<'a, Row> {
    match mode {
        "append" => table.finals().map(move |pane| pane_row(pane, &results)),
        "complete" => table.complete().map(move |pane| pane_row(pane, &results)),
        _ => panic!("mode {mode} does not go with these windows"),
    }
}

/// Groups by the event time: rows have its columns.
pub(super) fn by_event_time<'a>(input: Table<'a>, plan: &Value, mode: &str) -> Table<'a> {
    let Table { columns, rows } = input;
    let asked: Vec<Asked> =
        plan["aggregates"].as_array().unwrap().iter().map(|asked| Asked::of(asked, &columns)).collect();
    let mut out = vec!["event_time".to_owned()];
    out.extend(plan["aggregates"].as_array().unwrap().iter().map(|asked| text(&asked["as"]).to_owned()));
    let windows = rows.key_by(|_| Row::new()).window(Windows::instants());
    let rows = by_time(values(windows, &asked), mode, results(&asked)).map(|mut row| {
        row.remove(1);
        row
    });
    Table { columns: out, rows }
}

/// What is emitted of a table, as rows with these columns.
pub(super) fn emitted<'a, V: Exchange + Clone>(
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
pub(super) fn dedup<'a>(
    Table { columns, rows }: Table<'a>,
    plan: &Value,
    (delay, within): (Option<Duration>, bool),
) -> Table<'a> {
    let names = texts(&plan["keys"]);
    let keys: Vec<usize> = names.iter().map(|key| column(&columns, key)).collect();
    if let Some(delay) = delay.filter(|_| within || names.contains(&"event_time".to_owned())) {
        let keys: Vec<usize> = keys.into_iter().filter(|key| columns[*key] != "event_time").collect();
        let by_key = rows.key_by(move |row: &Row| keys.iter().map(|key| row[*key].clone()).collect::<Row>());
        let rows = match within {
            true => by_key.dedup_within(delay).records(),
            false => by_key.dedup_by_time().records(),
        };
        return Table { columns, rows };
    }
    let rows = match keys.len() == columns.len() {
        true => rows.distinct(),
        false => rows.key_by(move |row: &Row| keys.iter().map(|key| row[*key].clone()).collect::<Row>()).dedup(),
    };
    Table { columns, rows }
}

/// Expressions of the scenarios, which are text for people.
pub(super) fn filter(columns: &[String], expression: &str) -> impl Fn(&Row) -> bool + 'static {
    let (name, is_null_kept, keep): (&str, bool, fn(i64) -> bool) = match expression {
        "count is even" => ("count", false, |value| value % 2 == 0),
        "value > 0" => ("value", false, |value| value > 0),
        "n > 1" => ("n", false, |value| value > 1),
        "value is null or value >= 0" => ("value", true, |value| value >= 0),
        other => panic!("the filter {other:?} is unknown"),
    };
    let column = column(columns, name);
    move |row| row[column].long().map_or(is_null_kept, keep)
}

/// Builds the plan of a scenario of Structured Streaming.
pub(super) fn structured<'a>(mut table: Table<'a>, plan: &[Value], mode: &str, delay: Option<Duration>) -> Table<'a> {
    for (index, operator) in plan.iter().enumerate() {
        let behind = |name: &str| plan[index + 1..].iter().find(|next| next["op"] == name);
        let limit = behind("limit").map(|limit| limit["rows"].as_u64().unwrap() as usize);
        table = match text(&operator["op"]) {
            "aggregate" if operator["keys"] == json!(["event_time"]) => by_event_time(table, operator, mode),
            "aggregate" => aggregate(table, operator, mode, behind("sort"), limit),
            "window_aggregate" => window_aggregate(table, operator, mode),
            // Done with the aggregate, and before the plan.
            "sort" | "limit" | "union" => table,
            "filter" => {
                let keep = filter(&table.columns, text(&operator["expr"]));
                Table { rows: table.rows.filter(keep), ..table }
            }
            "project" if texts(&operator["columns"]).iter().all(|name| table.columns.contains(name)) => {
                let names = texts(&operator["columns"]);
                let kept: Vec<usize> = names.iter().map(|name| column(&table.columns, name)).collect();
                let rows = table.rows.map(move |row: Row| kept.iter().map(|column| row[*column].clone()).collect());
                Table { columns: names, rows }
            }
            "project" if operator["columns"][0] == "window.start as start" => {
                let mut columns = table.columns;
                columns.remove(1);
                "start".clone_into(&mut columns[0]);
                let rows = table.rows.map(|mut row| {
                    row.remove(1);
                    row
                });
                Table { columns, rows }
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
            "dedup" => dedup(table, operator, (delay, false)),
            "dedup_within_watermark" => dedup(table, operator, (delay, true)),
            other => panic!("the operator {other} is neither interpreted nor left out"),
        };
    }
    table
}

pub(super) fn flat_map<'a>(table: Table<'a>, operator: &Value) -> Table<'a> {
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

pub(super) fn pair(row: Row) -> (Cell, Cell) {
    let Some(Cell::List(pair)) = row.into_iter().next() else { panic!("a pair is a list") };
    let [key, value] = <[Cell; 2]>::try_from(pair).unwrap();
    (key, value)
}

pub(super) fn one(cell: Cell) -> Row {
    vec![cell]
}

pub(super) fn both(a: Cell, b: Cell) -> Row {
    vec![Cell::List(vec![a, b])]
}

/// Builds the plan of a scenario of DStreams, whose rows are one cell each.
pub(super) fn discretized<'a>(mut inputs: Vec<Stream<'a, Row>>, plan: &[Value]) -> Stream<'a, Row> {
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
