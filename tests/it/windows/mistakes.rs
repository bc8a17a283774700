//! Mistakes are errors at start, which say where it belongs.

use std::time::Duration;

use millstream::{
    CalendarDays, Calls, Count, ErrorKind, EventTime, Flow, Job, Result, Session, Sliding, Stream, Trigger, Tumbling,
    Watermark, WatermarkPolicy, discard, rows,
};

use super::millis;

/// The error of a pipeline at its start.
fn mistake(pipeline: impl Fn(&Flow<'_>) -> Result<()> + Send + Sync + 'static) -> String {
    let error = Job::new("mistake", pipeline).state_in_memory().run().expect_err("it cannot be built");
    assert_eq!(error.kind(), ErrorKind::Pipeline, "{error:#}");
    format!("{error:#}")
}

fn numbers<'a>(flow: &Flow<'a>) -> Result<Stream<'a, i64>> {
    flow.source(rows(0..10_i64))
}

fn timed(numbers: Stream<'_, i64>) -> Stream<'_, i64> {
    numbers.with_watermark(|n| EventTime(*n), millis(1))
}

fn windows(numbers: Stream<'_, i64>) -> Result<()> {
    numbers.key_by(|n| *n).window(Tumbling::new(millis(10))).count().finals().sink(discard())
}

#[test]
fn mistakes_are_errors_that_say_where_it_belongs() {
    let error = mistake(|flow| windows(numbers(flow)?));
    assert!(error.contains("`count` waits for event time, and the stream of `rows` has no watermark"), "{error}");
    let error = mistake(|flow| windows(timed(numbers(flow)?).union(numbers(flow)?)));
    assert!(error.contains("a part of its stream has no watermark, that of `rows 2`"), "{error}");
    let error = mistake(|flow| {
        let counts = timed(numbers(flow)?).key_by(|n| *n).count().named("running").updates();
        windows(counts.map(|(n, _)| n))
    });
    assert!(error.contains("the rows of `running` have none"), "{error}");
    let error = mistake(|flow| {
        let by_spark = Watermark::delay(millis(0)).policy(WatermarkPolicy::MaxSeen);
        let timed = numbers(flow)?.with_watermark(|n| EventTime(*n), by_spark);
        windows(timed.map_async(Calls::ordered(4).kept(), |n| async move { n }).or_stop())
    });
    assert!(error.contains("`WatermarkPolicy::MaxSeen`, and `map_async` before it hands records on"), "{error}");
    let error = mistake(|flow| {
        let (counts, late) = timed(numbers(flow)?).key_by(|n| *n).window(Tumbling::new(millis(10))).late();
        counts.count().named("first").finals().sink(discard())?;
        windows(late.map(|late| late.record))
    });
    assert!(error.contains("the rows of `late` have none"), "{error}");
    let error = mistake(|flow| windows(timed(numbers(flow)?.rebalance())));
    assert!(error.contains("must stand behind its source") && error.contains("`rebalance`"), "{error}");
    let error = mistake(|flow| {
        let (even, odd) = numbers(flow)?.branch(|n| n % 2 == 0);
        odd.sink(discard())?;
        windows(timed(even))
    });
    assert!(error.contains("must stand behind its source") && error.contains("`branch`"), "{error}");
    let error = mistake(|flow| windows(timed(timed(numbers(flow)?))));
    assert!(error.contains("the stream has a watermark already"), "{error}");
    let error = mistake(|flow| {
        let watermark = |policy| Watermark::delay(millis(1)).policy(policy);
        let spark = numbers(flow)?.with_watermark(|n| EventTime(*n), watermark(WatermarkPolicy::WhileOpen));
        windows(timed(numbers(flow)?).union(spark))
    });
    assert!(error.contains("its inputs follow different policies (`ByPartition`, `WhileOpen`)"), "{error}");
    for trigger in [Trigger::Continuous, Trigger::AvailableNow] {
        let job = Job::new("spark", |flow| {
            let watermark = Watermark::delay(millis(1)).policy(WatermarkPolicy::MaxSeen);
            windows(numbers(flow)?.with_watermark(|n| EventTime(*n), watermark))
        });
        let error = job.state_in_memory().trigger(trigger).run().expect_err("it cannot be built");
        assert!(error.to_string().contains("it needs `Trigger::MicroBatch`"), "{error}");
    }
    for (length, every) in [(0, 0), (3, 4), (3, 0)] {
        let error = mistake(move |flow| {
            let sums = numbers(flow)?.global().window(Count::sliding(length, every)).sum(|n| *n).full();
            sums.sink(discard())
        });
        assert!(error.contains(&format!("windows of {length} records with one each {every} do not fit")), "{error}");
    }
    for (length, step) in [(10, 20), (10, 0), (0, 0)] {
        let (length, step) = (millis(length), millis(step));
        let error = mistake(move |flow| {
            let by_number = timed(numbers(flow)?).key_by(|n| *n);
            by_number.window(Sliding::new(length, step)).count().finals().sink(discard())
        });
        assert!(error.contains(&format!("windows of {length:?} with one each {step:?} do not fit")), "{error}");
    }
    let error = mistake(|flow| {
        let windows = timed(numbers(flow)?).global().window(Session::with_gap(Duration::ZERO));
        windows.count().finals().sink(discard())
    });
    assert!(error.contains("the gap of a session must be whole milliseconds, at least one, not 0ns"), "{error}");
    let error = mistake(|flow| {
        let windows = timed(numbers(flow)?).global().window(Session::with_gap(millis(1)));
        windows.aggregate(|| 0, |sum, n| *sum += n).finals().sink(discard())
    });
    assert!(error.contains("a record may join two sessions: say how their values become one (`merge`)"), "{error}");
    let error = mistake(|flow| {
        let windows = timed(numbers(flow)?).global().window(Tumbling::new(millis(1)));
        windows.count().merge(|a, b| *a += b).finals().sink(discard())
    });
    assert!(error.contains("`merge` is for `aggregate`"), "{error}");
    let error = mistake(|flow| {
        let windows = timed(numbers(flow)?).global().window(CalendarDays::new(1).in_zone("Europe/Atlantis"));
        windows.count().finals().sink(discard())
    });
    assert!(error.contains("the time zone `Europe/Atlantis` is not known"), "{error}");
    let error = mistake(|flow| {
        let windows = timed(numbers(flow)?).global().window(CalendarDays::new(0));
        windows.count().finals().sink(discard())
    });
    assert!(error.contains("at least one day and at most a million, not 0"), "{error}");
    let error = mistake(|flow| {
        let windows = timed(numbers(flow)?).global().window(Tumbling::new(millis(1)));
        windows.allowed_lateness(Duration::from_micros(1)).count().finals().sink(discard())
    });
    assert!(error.contains("the allowed lateness must be whole milliseconds, not 1µs"), "{error}");
    let error = mistake(|flow| {
        let (windows, late) = timed(numbers(flow)?).global().window(Tumbling::new(millis(1))).late();
        late.sink(discard())?;
        windows.count().complete().sink(discard())
    });
    assert!(error.contains("no record is late for a complete table"), "{error}");
    let error = mistake(|flow| {
        let windows = timed(numbers(flow)?).global().window(Tumbling::new(millis(1)));
        windows.count().early(millis(1)).finals().sink(discard())
    });
    assert!(error.contains("`early` is for updates and changes"), "{error}");
    let error = mistake(|flow| {
        let windows = numbers(flow)?.global().window(Tumbling::new(millis(1)));
        windows.count().complete().sink(discard())
    });
    assert!(error.contains("has no watermark"), "{error}");
    let error = mistake(|flow| {
        let updates = timed(numbers(flow)?).global().window(Tumbling::new(millis(1))).count().updates();
        windows(updates.map(|pane| pane.window.start.0))
    });
    assert!(error.contains("the rows of `count` have none"), "{error}");
    for length in [Duration::ZERO, Duration::from_micros(1_500)] {
        let error = mistake(move |flow| {
            let by_number = timed(numbers(flow)?).key_by(|n| *n);
            by_number.window(Tumbling::new(length)).count().finals().sink(discard())
        });
        assert!(error.contains(&format!("not {length:?}")), "{error}");
    }
}
