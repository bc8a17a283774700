//! Runs that assign their own partitions are not members of their group, but they still detect each
//! other.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use millstream::{Error, ErrorKind, Job, Running, Trigger, discard};
use millstream_connectors::Topic;

use super::kafka;
use crate::support::broker::{Broker, real, shared};
use crate::support::{events, eventually};

fn group_of(topic: &str) -> String {
    format!("group-{topic}")
}

/// The committed offset of the only partition; -1 when there is none.
fn committed(broker: &Broker, topic: &str) -> i64 {
    broker.committed(&group_of(topic), topic, 1)[0].unwrap_or(-1)
}

fn job(broker: &Broker, topic: &str, options: impl Fn(Topic) -> Topic + Send + Sync + 'static) -> Job {
    let (kafka, topic, group) = (kafka(broker), topic.to_owned(), group_of(topic));
    Job::new("runs", move |flow| {
        flow.source(options(kafka.topic(&topic).group(&group)).json::<u64>())?.or_stop().sink(discard())
    })
    .checkpoint_every(Duration::from_millis(50))
}

fn write(broker: &Broker, topic: &str, count: u64) {
    let numbers: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    broker.write(topic, numbers.iter().map(|n| (Some(0), "", Some(n.as_str()))));
}

/// What another process does.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// Reads partition 0 until it is killed.
    Reads,
    /// The same, and takes it over from the run that has it.
    TakesOver,
    /// Shuts down cleanly after this many records.
    Ends(u64),
}

/// Another process, which runs the test below in this binary.
struct Other(Child);

impl Other {
    fn start(broker: &Broker, topic: &str, does: Does) -> Other {
        let mut other = Command::new(std::env::current_exe().unwrap());
        other.args(["--exact", "kafka::runs::the_other_process", "--ignored", "--nocapture"]);
        other.env("OTHER_BROKER", &broker.address).env("OTHER_TOPIC", topic);
        match does {
            Does::Reads => {}
            Does::TakesOver => drop(other.env("OTHER_TAKES_OVER", "yes")),
            Does::Ends(records) => drop(other.env("OTHER_ENDS_AFTER", records.to_string())),
        }
        Other(other.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn ended(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
#[ignore = "runs only as the second process of other tests"]
fn the_other_process() {
    let Ok(address) = std::env::var("OTHER_BROKER") else { return };
    let broker = Broker::at(&address);
    let takes_over = std::env::var_os("OTHER_TAKES_OVER").is_some();
    let options =
        move |topic: Topic| if takes_over { topic.partitions([0]).fence_other_run() } else { topic.partitions([0]) };
    let mut running = job(&broker, &std::env::var("OTHER_TOPIC").unwrap(), options).start().unwrap();
    if let Ok(records) = std::env::var("OTHER_ENDS_AFTER") {
        let records: u64 = records.parse().unwrap();
        eventually("it has read them", || running.report().records_out() >= records);
        running.stop();
        running.wait().unwrap();
    } else {
        running.wait_for(Duration::from_secs(120));
    }
}

/// The error of a run that has ended; `None` while it runs.
fn failure(running: &mut Running) -> Option<Error> {
    running.wait_for(Duration::ZERO).map(|outcome| outcome.expect_err("the test did not stop it"))
}

#[test]
fn in_a_row_do_not_wait_for_each_other() {
    let broker = shared();
    let topic = broker.topic("in-a-row", 1);
    let begun = Instant::now();
    for _ in 0..5 {
        write(broker, &topic, 10);
        let report = job(broker, &topic, |topic| topic).trigger(Trigger::AvailableNow).run().unwrap();
        assert_eq!(report.records_in(), 10);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn one_that_shut_down_cleanly_is_not_waited_for() {
    let Some(broker) = real("the embedded broker keeps no metadata of commits") else { return };
    let topic = broker.topic("ended", 1);
    write(broker, &topic, 10);
    Other::start(broker, &topic, Does::Ends(10)).ended();
    write(broker, &topic, 5);
    let begun = Instant::now();
    let report = job(broker, &topic, |topic| topic).trigger(Trigger::AvailableNow).run().unwrap();
    assert_eq!(report.records_in(), 5);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[test]
fn records_that_another_commits_before_it_shuts_down_are_not_read_again() {
    let Some(broker) = real("the embedded broker keeps no metadata of commits") else { return };
    events::begin();
    let topic = broker.topic("waited-for", 1);
    write(broker, &topic, 10);
    let other = Other::start(broker, &topic, Does::Ends(20));
    eventually("the other has committed", || committed(broker, &topic) == 10);
    let waits = job(broker, &topic, |topic| topic).trigger(Trigger::AvailableNow);
    let waiting = std::thread::spawn(move || waits.run());
    eventually("it watches the lease of the other", || {
        events::was_logged(&["checking whether it is alive", &group_of(&topic)])
    });
    write(broker, &topic, 10);
    other.ended();
    let report = waiting.join().unwrap().expect("the other has ended before it was found to be alive");
    assert_eq!(report.records_in(), 0, "it begins where the other ended");
    assert_eq!(committed(broker, &topic), 20);
}

#[test]
fn a_second_one_is_refused_with_the_first_ones_name() {
    let Some(broker) = real("the embedded broker keeps no metadata of commits") else { return };
    let topic = broker.topic("second", 1);
    write(broker, &topic, 10);
    let other = Other::start(broker, &topic, Does::Reads);
    eventually("the other has committed", || committed(broker, &topic) == 10);
    // Also when no more records arrive: a signature is renewed.
    let error = job(broker, &topic, |topic| topic.partitions([0])).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:#}");
    let said = format!("{error:#}");
    assert!(said.contains(&group_of(&topic)) && said.contains(&format!("process {}", other.0.id())), "{said}");
}

#[test]
fn one_that_died_is_replaced_when_it_has_not_renewed_its_lease_for_ten_seconds() {
    let Some(broker) = real("the embedded broker keeps no metadata of commits") else { return };
    let topic = broker.topic("died", 1);
    write(broker, &topic, 10);
    let other = Other::start(broker, &topic, Does::Reads);
    eventually("the other has committed", || committed(broker, &topic) == 10);
    drop(other);
    let begun = Instant::now();
    write(broker, &topic, 5);
    let report = job(broker, &topic, |topic| topic).trigger(Trigger::AvailableNow).run().unwrap();
    assert_eq!(report.records_in(), 5);
    assert!((Duration::from_secs(6)..Duration::from_secs(15)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[test]
fn one_that_is_fenced_ends_and_names_the_other() {
    let Some(broker) = real("the embedded broker keeps no metadata of commits") else { return };
    let topic = broker.topic("taken-over", 1);
    write(broker, &topic, 10);
    let mut first = job(broker, &topic, |topic| topic.partitions([0])).start().unwrap();
    eventually("the first has committed", || committed(broker, &topic) == 10);
    let other = Other::start(broker, &topic, Does::TakesOver);
    let mut ended = None;
    eventually("the first gives way", || {
        write(broker, &topic, 1);
        ended = ended.take().or_else(|| failure(&mut first));
        ended.is_some()
    });
    let error = ended.unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:#}");
    assert!(error.to_string().contains(&format!("process {}", other.0.id())), "{error:#}");
    // The end of the first run has not reset what the other run has committed since.
    write(broker, &topic, 20);
    let written = broker.end(&topic, 0);
    eventually("the other reads to the end", || committed(broker, &topic) == written);
}
