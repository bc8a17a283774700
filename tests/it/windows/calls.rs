//! Windows behind calls that outlast checkpoints: event time waits for the records of open calls.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millstream::{Calls, Collected, EventTime, Flow, Job, Pane, Result, Running, Trigger, Tumbling, collect};
use tokio::sync::Semaphore;

use crate::support::eventually;
use crate::support::topic::Topic;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Starts counts of event times in windows of ten, behind calls. That of time 2 waits at the gate.
fn start(
    directory: &Path,
    topic: &Topic<i64>,
    gate: &Arc<Semaphore>,
    sink: &Collected<Pane<(), u64>>,
    (trigger, workers): (Trigger, usize),
) -> Running {
    let (topic, gate, sink) = (topic.clone(), Arc::clone(gate), sink.clone());
    let pipeline = move |flow: &Flow<'_>| -> Result<()> {
        let gate = Arc::clone(&gate);
        let call = move |at: i64| {
            let gate = Arc::clone(&gate);
            async move {
                if at == 2 {
                    gate.acquire().await.expect("it is not closed").forget();
                }
                at
            }
        };
        let timed = flow.source(topic.clone())?.with_watermark(|at| EventTime(*at), Duration::ZERO);
        let answers = timed.map_async(Calls::unordered(8).kept(), call).or_stop();
        answers.key_by(|_| ()).window(Tumbling::new(millis(10))).count().finals().sink(&sink)
    };
    let job = Job::new("calls", pipeline).checkpoints(directory).checkpoint_every(millis(2));
    job.trigger(trigger).workers(workers).start().unwrap()
}

fn wait_until_held(running: &Running, what: &str) {
    let held = || running.report().stages.iter().find_map(|stage| stage.holds_watermark_at);
    eventually(&format!("{what}: time is held where the record is"), || held() == Some(EventTime(2)));
    let line = format!("which open calls hold at {}", EventTime(2));
    assert!(running.report().to_string().contains(&line), "{what}: {}", running.report());
}

#[test]
fn a_window_waits_for_the_records_of_open_calls_over_a_crash_and_closes_with_the_answer() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(millis(2))] {
        for workers in [[1, 1], [1, 3], [3, 2]] {
            let what = format!("{workers:?} workers, {trigger}");
            let (directory, rows) = (tempfile::tempdir().unwrap(), collect());
            let (topic, gate) = (Topic::new(vec![vec![1, 2, 3, 15]], 1), Arc::new(Semaphore::new(0)));
            let running = start(directory.path(), &topic, &gate, &rows, (trigger, workers[0]));
            wait_until_held(&running, &what);
            // No checkpoint waits for the call.
            let durable = || running.report().checkpoints.and_then(|checkpoints| checkpoints.durable);
            topic.append(0, [16]);
            eventually(&format!("{what}: it is read"), || running.report().records_in() == 5);
            let before = durable();
            topic.append(0, [17]);
            eventually(&format!("{what}: a checkpoint is durable"), || durable() > before);
            running.abort();
            drop(running.wait());
            let running = start(directory.path(), &topic, &gate, &rows, (trigger, workers[1]));
            wait_until_held(&running, &what);
            assert!(rows.is_empty(), "{what}: {:?}", rows.values());
            gate.add_permits(1);
            eventually(&format!("{what}: the window closes with the answer"), || !rows.is_empty());
            let values: Vec<u64> = rows.take().into_iter().map(|pane| pane.value).collect();
            assert_eq!(values, [3], "{what}: the record is in it");
            eventually(&format!("{what}: time goes on"), || {
                running.report().stages.iter().all(|stage| stage.holds_watermark_at.is_none())
            });
            assert_eq!(running.report().stages.iter().map(|stage| stage.late).sum::<u64>(), 0, "{what}");
            running.abort();
            drop(running.wait());
        }
    }
}
