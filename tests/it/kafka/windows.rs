//! Windows over the records of a topic, whose marks and open windows are in the checkpoint.

use std::time::Duration;

use millstream::{EventTime, Job, Trigger, Tumbling, collect};

use super::kafka;
use crate::support::broker::shared;

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
    assert_eq!(run(2, Trigger::AvailableNow), (vec![], vec![]), "nothing is known of the third partition");
    write(2, &[7, 11]);
    assert_eq!(run(3, Trigger::AvailableNow), (vec![(0, 4)], vec![]));
    // The mark of the second partition is 12 from the first run.
    write(1, &[8, 40]);
    write(2, &[12, 41]);
    assert_eq!(run(1, Trigger::AvailableNow), (vec![(10, 4)], vec![8]));
    assert_eq!(run(2, Trigger::AvailableNow), (vec![], vec![]), "the window of 25 is not over yet");
    write(0, &[30]);
    assert_eq!(run(4, Trigger::AvailableNow), (vec![(20, 1)], vec![]));
}
