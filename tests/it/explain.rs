//! What `Job::explain` shows: operators, fused nodes, and where records change workers. Nothing
//! connects for it.

use millstream::{Calls, Flow, Job, Result, Trigger, collect, discard, rows};

use crate::support::script::Script;

#[track_caller]
fn check(pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static, lines: &[&str]) {
    let explanation = Job::new("explained", pipeline).workers(3).explain().unwrap();
    let text = explanation.to_string();
    assert_eq!(text.lines().collect::<Vec<_>>(), lines, "{text}");
}

#[test]
fn a_chain_is_one_operator() {
    check(
        |flow| flow.source(rows(0..3))?.map(|n| n).filter(|_| true).named("few").sink(discard()),
        &[
            "explained: continuous, workers: 3",
            "operator 1",
            "  source  rows",
            "  stage   map <- rows",
            "  stage   few (filter) <- map",
            "  sink    discard <- few",
        ],
    );
}

#[test]
fn forks_branches_unions_and_exchanges_begin_new_operators() {
    let pipeline = |flow: &Flow<'_>| {
        let numbers = flow.source(rows(0..3u64))?.map(|n| n);
        let copy = numbers.clone();
        let (even, odd) = numbers.branch(|n| n % 2 == 0);
        odd.rebalance().sink(discard())?;
        even.union(copy).map(|n| n + 1).sink(discard())
    };
    check(
        pipeline,
        &[
            "explained: continuous, workers: 3",
            "operator 1",
            "  source  rows",
            "  stage   map <- rows",
            "operator 2, reads from 1",
            "  stage   branch <- map",
            "operator 3, reads from 2, records change workers",
            "  stage   rebalance <- branch",
            "  sink    discard <- rebalance",
            "operator 4, reads from 2 and 1",
            "  stage   union <- branch, map",
            "  stage   map 2 (map) <- union",
            "  sink    discard 2 (discard) <- map 2",
        ],
    );
}

#[test]
fn the_own_chain_of_a_source_ends_where_records_meet_others_or_are_kept() {
    let pipeline = |flow: &Flow<'_>| {
        let call = |n: u64| async move { n };
        flow.source(rows(0..3u64))?.map(|n| n).map_async(Calls::ordered(1), call).or_skip().sink(discard())
    };
    let explanation = Job::new("calls", pipeline).trigger(Trigger::AvailableNow).explain().unwrap();
    let own: Vec<_> = explanation.operators[0].nodes.iter().map(|node| node.own_chain_of.as_deref()).collect();
    assert_eq!(own, [Some("rows"), Some("rows"), None, None, None]);
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["trigger"], "available now");
    assert_eq!(json["operators"][0]["nodes"][2]["kind"], "stage");
    assert_eq!(json["operators"][0]["nodes"][2]["what"], "map_async");
}

#[test]
fn nothing_connects_and_what_is_wrong_is_an_error() {
    let (script, results) = (Script::numbers(10, 1, 1), collect());
    let (log, sink) = (script.log.clone(), results.clone());
    let job = Job::new("kept", move |flow| flow.source(&script)?.sink(&sink));
    job.explain().unwrap();
    assert_eq!(log.connects.load(std::sync::atomic::Ordering::SeqCst), 0);
    let loose = Job::new("loose", |flow| {
        drop(flow.source(rows(0..3))?.named("forked"));
        Ok(())
    });
    assert!(loose.explain().unwrap_err().to_string().contains("`forked` does not reach a sink"));
}

/// What is explained is what runs: the report of a run has the same nodes.
#[test]
fn a_report_has_the_nodes_of_the_explanation() {
    let job = Job::new("same", |flow| {
        let (yes, no) = flow.source(rows(0..30u64))?.rebalance().branch(|n| n % 3 == 0);
        yes.sink(discard())?;
        no.map(|n| n).sink(discard())
    });
    let explanation = job.clone().workers(2).explain().unwrap();
    let names: Vec<&str> =
        explanation.operators.iter().flat_map(|operator| &operator.nodes).map(|n| &*n.name).collect();
    let report = job.workers(2).run().unwrap();
    let stages = report.stages.iter().map(|stage| stage.name.as_str());
    let mut reported: Vec<&str> = report.sources.iter().map(|source| source.name.as_str()).chain(stages).collect();
    reported.extend(report.sinks.iter().map(|sink| sink.name.as_str()));
    let sorted = |mut names: Vec<&str>| {
        names.sort_unstable();
        names.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(sorted(names), sorted(reported));
}
