//! Windows over the records of a topic, whose marks and open windows are in the checkpoint.

use std::time::Duration;

use millstream::{Clock, EventTime, Job, Trigger, Tumbling, Watermark, collect};

use super::kafka;
use crate::support::broker::shared;
use crate::support::{PATIENCE, eventually};

#[test]
fn close_when_all_partitions_are_past_their_end_over_runs_with_other_workers() {
    let broker = shared();
    let (topic, directory) = (broker.topic("windows", 3), tempfile::tempdir().unwrap());
    let write = |partition: i32, times: &[i64]| {
        let times: Vec<String> = times.iter().map(i64::to_string).collect();
        broker.write(&topic, times.iter().map(|at| (Some(partition), "", Some(at.as_str()))));
    };
    // What a run counts in windows of 10 ms by the numbers in them, and the late ones.
    let run = |workers: usize, trigger: Trigger| {
        let (counts, late, kafka, name) = (collect(), collect(), kafka(broker), topic.clone());
        let sinks = (counts.clone(), late.clone());
        let job = Job::new(format!("windows-{topic}"), move |flow| {
            let times = flow.source(kafka.topic(&name).json::<i64>())?.or_stop();
            let timed = times.with_watermark(|at| EventTime(*at), Duration::ZERO);
            let (windows, late) = timed.global().window(Tumbling::new(Duration::from_millis(10))).late();
            late.map(|late| late.record).sink(&sinks.1)?;
            windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sinks.0)
        });
        job.checkpoints(directory.path()).trigger(trigger).workers(workers).run().unwrap();
        (counts.values(), late.values())
    };
    write(0, &[0, 5, 10, 25]);
    write(1, &[3, 12]);
    // The third partition has no record and is left out, so that it does not hold windows for ever.
    assert_eq!(run(2, Trigger::AvailableNow), (vec![(0, 3)], vec![]));
    write(2, &[7, 11]);
    // By its own mark the 7 would be in time, but its window is closed.
    assert_eq!(run(3, Trigger::AvailableNow), (vec![], vec![7]));
    // The mark of the second partition is 12 from the first run.
    write(1, &[8, 40]);
    write(2, &[12, 41]);
    assert_eq!(run(1, Trigger::AvailableNow), (vec![(10, 4)], vec![8]));
    assert_eq!(run(2, Trigger::AvailableNow), (vec![], vec![]), "the window of 25 is not over yet");
    write(0, &[30]);
    assert_eq!(run(4, Trigger::AvailableNow), (vec![(20, 1)], vec![]));
}

/// The client says when it is at the end of a log.
#[test]
fn close_without_a_partition_that_is_silent() {
    let broker = shared();
    let (topic, counts) = (broker.topic("silent", 3), collect());
    broker.write(&topic, ["1", "2", "25"].map(|at| (Some(0), "", Some(at))));
    broker.write(&topic, ["3", "31"].map(|at| (Some(1), "", Some(at))));
    let (kafka, name, sink) = (kafka(broker), topic.clone(), counts.clone());
    let job = Job::new(format!("silent-{topic}"), move |flow| {
        let watermark = Watermark::delay(Duration::ZERO).idle_after(Duration::from_millis(300));
        let times =
            flow.source(kafka.topic(&name).json::<i64>())?.or_stop().with_watermark(|at| EventTime(*at), watermark);
        let windows = times.global().window(Tumbling::new(Duration::from_millis(10)));
        windows.count().finals().map(|pane| (pane.window.start.0, pane.value)).sink(&sink)
    });
    let mut running = job.state_in_memory().workers(2).start().unwrap();
    // All are silent: time is that of the furthest.
    eventually("what the silent ones hold is closed", || counts.len() == 2);
    assert_eq!(counts.take(), [(0, 3), (20, 1)]);
    broker.write(&topic, ["30", "45"].map(|at| (Some(2), "", Some(at))));
    eventually("the partition that was empty goes on", || counts.len() == 1);
    assert_eq!(counts.take(), [(30, 2)]);
    running.stop();
    running.wait_for(PATIENCE).expect("it stops").unwrap();
}

#[test]
fn go_by_the_timestamps_of_the_broker_where_that_is_asked_for() {
    let broker = shared();
    let (topic, counts) = (broker.topic("stamped", 1), collect());
    let before = Clock::system().wall().0;
    broker.write(&topic, ["1", "2"].map(|n| (Some(0), "", Some(n))));
    let (kafka, name, sink) = (kafka(broker), topic.clone(), counts.clone());
    let job = Job::new(format!("stamped-{topic}"), move |flow| {
        let numbers = flow.source(kafka.topic(&name).json::<i64>())?.or_stop();
        let windows =
            numbers.with_watermark_of_source(Duration::ZERO).global().window(Tumbling::new(Duration::from_secs(3_600)));
        windows.collect(10).updates().sink(&sink)
    });
    let job = job.state_in_memory().trigger(Trigger::AvailableNow);
    job.run().unwrap();
    let after = Clock::system().wall().0;
    let last = counts.take().pop().expect("there is a window");
    assert!(last.window.start.0 <= after && before < last.window.end.0, "{last:?}, written from {before} to {after}");
    assert!(last.value.ends_with(&[2]), "{last:?}");
}
