//! What is emitted of a table reaches each kind of sink: the table of sinks in the documentation of
//! `Aggregated`.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream::{Change, Collected, Flow, Job, Result, Stream, Trigger, collect, rows};
use millstream_connectors::{Kafka, console};
use serde::Serialize;

use super::kafka;
use crate::support::broker::shared;

/// A row, with a name for each column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize)]
struct Row {
    page: String,
    views: u64,
}

fn row((page, views): (String, u64)) -> Row {
    Row { page, views }
}

/// Ends a stream in a sink of each kind.
fn everywhere<T>(stream: Stream<'_, T>, key: fn(&T) -> String, to: (&Kafka, &str, &Collected<T>)) -> Result<()>
where
    T: Clone + std::fmt::Debug + Send + Serialize + 'static,
{
    let (kafka, topic, memory) = to;
    stream.clone().sink_by(key, kafka.topic(topic).json())?;
    stream.clone().sink(console().table())?;
    stream.clone().sink(console().each_batch(20))?;
    stream.clone().map(|row| format!("{row:?}")).sink(console())?;
    stream.sink(memory)
}

const VIEWS: [&str; 7] = ["home", "shop", "home", "home", "cart", "shop", "home"];

fn views<'a>(flow: &Flow<'a>) -> Result<Stream<'a, String>> {
    Ok(flow.source(rows(VIEWS.map(str::to_owned)).partitions(1))?.batch_at_most(3))
}

fn table() -> BTreeMap<String, u64> {
    let mut table = BTreeMap::new();
    VIEWS.iter().for_each(|view| *table.entry((*view).to_owned()).or_default() += 1);
    table
}

/// Runs a pipeline whose first topic is new, and returns what that got, in order, by key.
fn run(
    name: &str,
    pipeline: impl Fn(&Flow<'_>, &Kafka, &str) -> Result<()> + Send + Sync + 'static,
) -> Vec<(String, serde_json::Value)> {
    let broker = shared();
    let (topic, kafka) = (broker.topic(name, 1), kafka(broker));
    let to = topic.clone();
    let job = Job::new(name, move |flow| pipeline(flow, &kafka, &to));
    job.state_in_memory().trigger(Trigger::micro_batch(Duration::from_millis(1))).workers(2).run().unwrap();
    let records = broker.read(&topic).into_iter().flatten();
    records.map(|record| (record.key.unwrap(), serde_json::from_str(&record.value.unwrap()).unwrap())).collect()
}

/// All rows that went to a topic are those that went to memory, and have their keys.
fn check<T: Serialize>(topic: &[(String, serde_json::Value)], memory: Vec<T>, key: fn(&T) -> String) {
    let mut expected: Vec<_> = memory.iter().map(|row| (key(row), serde_json::to_value(row).unwrap())).collect();
    let mut topic = topic.to_vec();
    let order = |row: &(String, serde_json::Value)| row.1.to_string();
    expected.sort_by_key(order);
    topic.sort_by_key(order);
    assert!(!topic.is_empty());
    assert_eq!(topic, expected);
}

#[test]
fn updates_make_the_table_everywhere() {
    let memory = collect();
    let sink = memory.clone();
    let topic = run("updates", move |flow, kafka, topic| {
        let counts = views(flow)?.key_by(String::clone).count().updates().map(row);
        everywhere(counts, |row| row.page.clone(), (kafka, topic, &sink))
    });
    // As a compacted topic keeps them.
    let last: BTreeMap<String, u64> =
        topic.iter().map(|(key, row)| (key.clone(), row["views"].as_u64().unwrap())).collect();
    assert_eq!(last, table());
    check(&topic, memory.take(), |row: &Row| row.page.clone());
}

#[test]
fn the_complete_table_reaches_every_sink_with_each_batch() {
    let memory = collect();
    let sink = memory.clone();
    let topic = run("complete", move |flow, kafka, topic| {
        let counts = views(flow)?.key_by(String::clone).count().complete().rows().map(row);
        everywhere(counts, |row| row.page.clone(), (kafka, topic, &sink))
    });
    let memory = memory.take();
    // Of seven views, three at a time: the tables after three, six and seven.
    assert_eq!(memory.iter().map(|row| row.views).sum::<u64>(), 3 + 6 + 7);
    check(&topic, memory, |row| row.page.clone());
}

#[test]
fn changes_reach_every_sink_as_such() {
    let memory = collect();
    let sink = memory.clone();
    let topic = run("changes", move |flow, kafka, topic| {
        let counts = views(flow)?.key_by(String::clone).count().changes().map(|change| match change {
            Change::Delete(old) => Change::Delete(row(old)),
            Change::Insert(new) => Change::Insert(row(new)),
        });
        everywhere(counts, page, (kafka, topic, &sink))
    });
    let mut rows = Vec::new();
    for (_, change) in &topic {
        match serde_json::from_value(change.clone()).unwrap() {
            Change::Insert(Row { page, views }) => rows.push((page, views)),
            Change::Delete(Row { page, views }) => {
                let place = rows.iter().position(|row| *row == (page.clone(), views));
                rows.swap_remove(place.expect("what goes was there"));
            }
        }
    }
    rows.sort_unstable();
    assert_eq!(rows, table().into_iter().collect::<Vec<_>>(), "what was replaced is gone");
    check(&topic, memory.take(), page);
}

fn page(change: &Change<Row>) -> String {
    let (Change::Delete(row) | Change::Insert(row)) = change;
    row.page.clone()
}
