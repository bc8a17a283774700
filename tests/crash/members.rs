//! Two or three processes of the example `transform` in one group: they are started, replaced,
//! killed, and paused for longer than a session.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use millstream_tests::{Record, compare};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{PATIENCE, Process, broker, seed};

const PARTITIONS: i32 = 6;
const EVENTS: usize = 30;

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Another process starts.
    Start,
    /// A process is replaced: a new one starts, and the old one drains on SIGTERM.
    Roll,
    /// A process is killed, and another one may start.
    Kill,
    /// A process is stopped until its group has removed it, and then continues.
    Pause,
}

/// How much of its input the group of the same name has committed. One client asks all the time: a
/// client for each look loads the broker more than the job does.
pub struct Watch {
    consumer: BaseConsumer,
    topic: String,
    partitions: i32,
}

impl Watch {
    pub fn new(broker: &broker::Broker, topic: &str, partitions: i32) -> Watch {
        let consumer = broker.client().set("group.id", topic).create().expect("the settings are constants");
        Watch { consumer, topic: topic.to_owned(), partitions }
    }

    pub fn committed(&self) -> i64 {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.topic, 0, self.partitions - 1);
        // A group coordinator needs a while to start; until then, nothing is committed.
        let Ok(committed) = self.consumer.committed_offsets(list, Duration::from_secs(10)) else { return 0 };
        let of = |offset| match offset {
            Offset::Offset(offset) => offset,
            _ => 0,
        };
        committed.elements().iter().map(|element| of(element.offset())).sum()
    }

    /// How many of the records that were sent so far the group has not committed.
    pub fn uncommitted(&self, sent: &AtomicU64) -> u64 {
        let committed = self.committed();
        // Read afterwards: what is committed was sent before.
        sent.load(SeqCst).saturating_sub(committed as u64)
    }

    /// Waits until the group has committed this many records.
    pub fn wait_for(&self, records: i64, what: &str) {
        let begin = Instant::now();
        while self.committed() < records {
            assert!(begin.elapsed() < PATIENCE, "after {what} the group is stuck at {} of {records}", self.committed());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn transform(broker: &broker::Broker, input: &str, output: &str) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_transform"));
    command.args(["--brokers", &broker.address, "--input", input, "--output", output, "--group", input]);
    // The shortest session timeout that a broker allows by default.
    command.args(["--workers", "2", "--set", "session.timeout.ms=6000"]);
    Process(command.stdout(Stdio::null()).spawn().expect("the example starts"))
}

/// One order in ten costs nothing, and gets no invoice.
fn order(n: u64) -> String {
    json!({ "id": n, "due": 0, "customer": n % 100, "cents": n % 10, "pad": "" }).to_string()
}

/// Orders that cost something, or invoices: a list for each partition.
fn records(broker: &broker::Broker, topic: &str) -> Vec<Vec<Record>> {
    let record = |read: &broker::Read| {
        let value: Value = serde_json::from_str(read.value.as_ref().expect("there are no tombstones")).expect("JSON");
        let record = || Record {
            id: value["id"].as_u64().expect("a number"),
            key: read.key.clone().unwrap_or_default().into_bytes(),
            headers: read.headers.clone(),
        };
        (value["cents"] != 0).then(record)
    };
    broker.read(topic).iter().map(|partition| partition.iter().filter_map(record).collect()).collect()
}

fn signal(process: &Process, signal: Signal) {
    kill_process(Pid::from_child(&process.0), signal).expect("it runs");
}

#[test]
fn of_a_group_come_and_go_and_nothing_is_lost() {
    let Some(broker) = broker::real("the embedded broker does not assign partitions") else { return };
    let (input, output) = (broker.topic("members-in", PARTITIONS), broker.topic("members-out", PARTITIONS));
    let mut random = fastrand::Rng::with_seed(seed());
    let start = || transform(broker, &input, &output);
    let watch = Watch::new(broker, &input, PARTITIONS);
    let mut members = vec![start(), start()];
    // What a process that is killed, or removed while it is paused, may have written and not
    // committed. Members that come or drain commit their partitions before these move.
    let mut uncommitted = 0;
    let (count, members) = broker.under_load(
        &input,
        |n| ((n % 100).to_string(), order(n)),
        |sent| {
            watch.wait_for(sent.load(SeqCst) as i64 + 1, "the start");
            for number in 0..EVENTS {
                let event = match members.len() {
                    2 => random.choice([Event::Start, Event::Roll, Event::Kill, Event::Pause]),
                    _ => random.choice([Event::Roll, Event::Kill, Event::Pause]),
                };
                let event = event.expect("the list of events is not empty");
                let chosen = random.usize(..members.len());
                let begin = Instant::now();
                match event {
                    Event::Start => members.push(start()),
                    Event::Roll => {
                        members.push(start());
                        let mut old = members.swap_remove(chosen);
                        signal(&old, Signal::TERM);
                        assert!(old.0.wait().expect("the process can be waited for").success(), "it did not drain");
                    }
                    Event::Kill => {
                        drop(members.swap_remove(chosen));
                        uncommitted += watch.uncommitted(sent);
                        // Keeps the number of members at two or three.
                        if members.len() < 2 || random.bool() {
                            members.push(start());
                        }
                    }
                    Event::Pause => {
                        signal(&members[chosen], Signal::STOP);
                        uncommitted += watch.uncommitted(sent);
                        std::thread::sleep(Duration::from_secs(8));
                        signal(&members[chosen], Signal::CONT);
                    }
                }
                watch.wait_for(sent.load(SeqCst) as i64, &format!("{event:?}"));
                println!("{number}: {event:?} with {} members: done after {:?}", members.len(), begin.elapsed());
                assert!(
                    members.iter_mut().all(|child| child.0.try_wait().expect("it is a child").is_none()),
                    "one ended"
                );
            }
            members
        },
    );
    watch.wait_for(count as i64, "the end");
    drop(members);
    let findings = compare(&records(broker, &input), &records(broker, &output));
    println!("{EVENTS} events: {findings}, {uncommitted} uncommitted");
    assert!(findings.at_least_once(), "{findings}");
    assert!(findings.looked_at > EVENTS * 1_000, "too little went through: {findings}");
    assert!(findings.doubled.len() as u64 <= uncommitted, "more than {uncommitted} are repeated: {findings}");
}
