//! Members of a group that join, leave and are killed: for how long is there no output, and of
//! which partitions?
//!
//! Question: two processes of the example `transform` share 8 partitions at a fixed rate, and a
//! third joins, leaves, is killed or is paused. How long is the longest silence of a partition that
//! keeps its owner, and of one that moves? How long is it from the start of a process to the end of
//! that silence in the first partition that it gets? And what is the latency from due time over a
//! rolling deploy, in which every process is ended and replaced in turn? Method: orders carry the
//! partition they were written to; an observer reads the invoices and records when those of each
//! partition arrive; the owners of the partitions are read from the processes' own reports before
//! and after. A silence includes the 1000 / rate × partitions milliseconds that are always between
//! two records of a partition.
//!
//! Not shown: groups of many members, brokers over a network, and the start-up time of a container.
//!
//! ```text
//! tests/kafka/broker up
//! cargo build --release --example transform
//! cargo bench --bench groups -- --brokers 127.0.0.1:19092
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use millstream_benches::driver::{Order, consumer};
use millstream_benches::machine::{monotonic_nanos, newest_report, program};
use millstream_benches::topics::{client, create};
use rdkafka::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

#[derive(Debug, Parser)]
struct Options {
    /// Bootstrap servers of a real broker
    #[arg(long, env = "MILLSTREAM_KAFKA", default_value = "127.0.0.1:19092")]
    brokers: String,
    /// Orders per second
    #[arg(long, default_value_t = 2_000)]
    rate: u64,
    /// The group protocol: classic, or the broker's own, consumer
    #[arg(long, default_value = "classic")]
    protocol: String,
    /// The number of times each event happens
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Run everything once, briefly, only to see that it works
    #[arg(long)]
    smoke: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

const PARTITIONS: i32 = 8;

#[derive(Debug, Deserialize)]
struct Seen {
    due: u64,
    amount: f64,
}

/// What the observer has seen, with the times of all arrivals.
#[derive(Default)]
struct Arrivals {
    /// By partition: when each record arrived and when it was due.
    of: BTreeMap<i32, Vec<(u64, u64)>>,
}

impl Arrivals {
    /// The longest time without a record of the partition that ends after `from` and begins before
    /// `until`, including one that has not ended by then.
    fn silence(&self, partition: i32, from: u64, until: u64) -> (Duration, u64) {
        let arrivals = &self.of[&partition];
        let open = arrivals.last().map(|last| (last.0, until.max(last.0)));
        let gaps = arrivals.windows(2).map(|two| (two[0].0, two[1].0)).chain(open);
        let within = gaps.filter(|(begin, end)| *end > from && *begin < until);
        within.map(|(begin, end)| (Duration::from_nanos(end - begin), end)).max().unwrap_or_default()
    }

    /// The latency from due time of the records that were due in this period.
    fn latency(&self, from: u64, until: u64) -> Histogram<u64> {
        let mut latency = Histogram::new(3).expect("three digits are allowed");
        let all = self.of.values().flatten().filter(|(_, due)| (from..until).contains(due));
        all.for_each(|(came, due)| latency += came.saturating_sub(*due).max(1));
        latency
    }
}

fn main() {
    let mut options = Options::parse();
    if options.smoke {
        options.rounds = 1;
    }
    let (input, output) = (format!("bench-in-{}", fastrand::u32(..)), format!("bench-out-{}", fastrand::u32(..)));
    create(&options.brokers, &[&input, &output], PARTITIONS);
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let arrivals = Mutex::<Arrivals>::default();
    thread::scope(|scope| {
        scope.spawn(|| write(&options, &input, &done, &sent));
        let observer = scope.spawn(|| observe(&options.brokers, &output, &done, &sent, &arrivals));
        let bench = Bench { options: &options, input: &input, output: &output, arrivals: &arrivals };
        let members = bench.run();
        // The members keep running until the last order is processed.
        done.store(true, SeqCst);
        observer.join().expect("it only reads");
        members.into_iter().for_each(Member::stop);
    });
    let arrivals = arrivals.into_inner().expect("no lock holder panics");
    let seen: usize = arrivals.of.values().map(Vec::len).sum();
    let due: BTreeSet<u64> = arrivals.of.values().flatten().map(|(_, due)| *due).collect();
    println!("{} orders, {seen} invoices, {} of them for the first time", sent.load(SeqCst), due.len());
    assert_eq!(due.len() as u64, sent.load(SeqCst), "records were lost");
}

/// Writes orders at the fixed rate, whatever happens.
fn write(options: &Options, input: &str, done: &AtomicBool, sent: &AtomicU64) {
    let mut config = client(&options.brokers);
    config.set("linger.ms", "0").set("acks", "all").set("enable.idempotence", "true");
    let producer: BaseProducer = config.create().expect("the settings are constants");
    let (begin, pad) = (monotonic_nanos(), "x".repeat(200));
    let mut id = 0;
    while !done.load(SeqCst) {
        let due = begin + id * 1_000_000_000 / options.rate;
        thread::sleep(Duration::from_nanos(due.saturating_sub(monotonic_nanos())));
        let partition = (id % PARTITIONS as u64) as i32;
        // `cents` carries the partition; the example passes it on as the amount.
        let order = Order { id, due, customer: id % 1_000, cents: 100 * i64::from(partition + 1), pad: &pad };
        let (key, payload) = (order.customer.to_string(), serde_json::to_vec(&order).expect("an order is JSON"));
        let mut record = BaseRecord::to(input).partition(partition).key(&key).payload(&payload);
        while let Err((_, back)) = producer.send(record) {
            producer.poll(Duration::ZERO);
            record = back;
        }
        producer.poll(Duration::ZERO);
        id += 1;
        sent.store(id, SeqCst);
    }
    producer.flush(Duration::from_secs(20)).expect("the broker is up");
}

fn observe(brokers: &str, output: &str, done: &AtomicBool, sent: &AtomicU64, arrivals: &Mutex<Arrivals>) {
    let consumer = consumer(brokers, output, PARTITIONS);
    let (mut seen, mut quiet) = (BTreeSet::new(), Instant::now());
    while !done.load(SeqCst) || ((seen.len() as u64) < sent.load(SeqCst) && quiet.elapsed() < Duration::from_secs(20)) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) else { continue };
        let now = monotonic_nanos();
        let invoice: Seen = serde_json::from_slice(message.payload().unwrap_or_default()).expect("an invoice is JSON");
        let partition = invoice.amount as i32 - 1;
        arrivals.lock().expect("no lock holder panics").of.entry(partition).or_default().push((now, invoice.due));
        seen.insert(invoice.due);
        quiet = Instant::now();
    }
}

/// A process of the group.
struct Member {
    child: Child,
    report: PathBuf,
    started: u64,
}

impl Member {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a process has an id");
        kill_process(pid, signal).expect("the process is running");
    }

    /// Ends the process with SIGTERM, so that it drains and commits.
    fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.child.wait().expect("it ends").success(), "it drains and commits");
    }

    /// The partitions in its newest report.
    fn owned(&self) -> BTreeSet<i32> {
        let Some(report) = newest_report(&self.report) else { return BTreeSet::new() };
        let lags = report["sources"][0]["lag"].as_array().cloned().unwrap_or_default();
        let number = |lag: &serde_json::Value| lag["partition"].as_str()?.rsplit('/').next()?.parse().ok();
        lags.iter().filter_map(number).collect()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_file(&self.report));
    }
}

struct Bench<'b> {
    options: &'b Options,
    input: &'b str,
    output: &'b str,
    arrivals: &'b Mutex<Arrivals>,
}

/// Silences of one event, in milliseconds.
#[derive(Default)]
struct Silences {
    kept: Vec<f64>,
    moved: Vec<f64>,
    first: Vec<f64>,
}

impl Bench<'_> {
    fn member(&self) -> Member {
        let report = std::env::temp_dir().join(format!("bench-member-{}.jsonl", fastrand::u64(..)));
        let started = monotonic_nanos();
        let transform = program("examples/transform", "cargo build --release --example transform");
        let child = Command::new(transform)
            .args(["--brokers", &self.options.brokers, "--input", self.input, "--output", self.output])
            .args(["--group", &format!("group-{}", self.input), "--group-protocol", &self.options.protocol])
            .arg("--report")
            .arg(&report)
            .stdout(Stdio::null())
            .spawn()
            .expect("the program was built");
        Member { child, report, started }
    }

    /// Waits long enough for the group to settle and for reports to show it.
    fn settle(&self) {
        let seconds = match (self.options.smoke, self.options.protocol == "classic") {
            (true, _) => 4,
            (false, true) => 6,
            // Members learn of changes in heartbeats, every 5 s, and a partition takes several to
            // move.
            (false, false) => 20,
        };
        thread::sleep(Duration::from_secs(seconds));
    }

    /// Adds the silences since `from`, of partitions that had the same owner before and after, and
    /// of the others.
    fn silences(
        &self,
        from: u64,
        before: &[BTreeSet<i32>],
        after: &[BTreeSet<i32>],
        new: Option<&Member>,
        to: &mut Silences,
    ) {
        let arrivals = self.arrivals.lock().expect("no lock holder panics");
        let now = monotonic_nanos();
        let milliseconds = |silence: Duration| silence.as_secs_f64() * 1e3;
        let mut first = Vec::new();
        for partition in 0..PARTITIONS {
            let is_kept = before.iter().zip(after).any(|(b, a)| b.contains(&partition) && a.contains(&partition));
            let (silence, ended) = arrivals.silence(partition, from, now);
            if is_kept {
                to.kept.push(milliseconds(silence));
            } else {
                to.moved.push(milliseconds(silence));
                if let Some(new) = new.filter(|new| new.owned().contains(&partition)) {
                    first.push(milliseconds(Duration::from_nanos(ended.saturating_sub(new.started))));
                }
            }
        }
        to.first.extend(first.into_iter().min_by(f64::total_cmp));
    }

    fn run(&self) -> Vec<Member> {
        let (rate, rounds) = (self.options.rate, self.options.rounds);
        let between = 1e3 * f64::from(PARTITIONS) / rate as f64;
        println!(
            "{rate} orders per second over {PARTITIONS} partitions, a record each {between:.0} ms; {rounds} rounds; ms"
        );
        println!("{:28} {:>22} {:>22} {:>22}", "", "kept, median max", "moved, median max", "start to records again");
        let mut members = vec![self.member(), self.member()];
        self.settle();
        self.settle();
        self.come_and_go(&members);
        // With the broker's own protocol, only the broker's settings decide when a member is
        // missed: after 45 s.
        if self.options.protocol == "classic" {
            self.fall_silent(&mut members);
        }
        self.roll(&mut members);
        members
    }

    /// A third process joins and leaves.
    fn come_and_go(&self, members: &[Member]) {
        let [mut joins, mut leaves]: [Silences; 2] = Default::default();
        for _ in 0..self.options.rounds {
            let before: Vec<_> = members.iter().map(Member::owned).collect();
            let from = monotonic_nanos();
            let third = self.member();
            self.settle();
            let after: Vec<_> = members.iter().map(Member::owned).collect();
            self.silences(from, &before, &after, Some(&third), &mut joins);
            let from = monotonic_nanos();
            third.stop();
            self.settle();
            let again: Vec<_> = members.iter().map(Member::owned).collect();
            self.silences(from, &after, &again, None, &mut leaves);
        }
        print("a member joins", &joins);
        print("a member leaves", &leaves);
    }

    /// One of two processes is killed, or paused.
    fn fall_silent(&self, members: &mut [Member]) {
        let [mut kills, mut pauses]: [Silences; 2] = Default::default();
        for _ in 0..self.options.rounds.min(3) {
            for (signal, silences) in [(Signal::KILL, &mut kills), (Signal::STOP, &mut pauses)] {
                let before = [members[0].owned()];
                let from = monotonic_nanos();
                members[1].signal(signal);
                thread::sleep(Duration::from_secs(15));
                let after = [members[0].owned()];
                self.silences(from, &before, &after, None, silences);
                if signal == Signal::STOP {
                    members[1].signal(Signal::CONT);
                } else {
                    members[1] = self.member();
                }
                self.settle();
                self.settle();
            }
        }
        print("kill -9 (session 10 s)", &kills);
        print("SIGSTOP for 15 s", &pauses);
    }

    /// Every process is ended and replaced, in turn, under load.
    fn roll(&self, members: &mut Vec<Member>) {
        let from = monotonic_nanos();
        for _ in 0..self.options.rounds {
            for index in 0..members.len() {
                members.push(self.member());
                members.swap_remove(index).stop();
                thread::sleep(Duration::from_secs(3));
            }
        }
        let until = monotonic_nanos();
        self.settle();
        let latency = self.arrivals.lock().expect("no lock holder panics").latency(from, until);
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e6;
        println!(
            "rolling deploy, {} restarts in {:.0} s: p50 {:.1} p90 {:.1} p99 {:.1} max {:.1} ms from due time (target: p99 3000)",
            2 * self.options.rounds,
            Duration::from_nanos(until - from).as_secs_f64(),
            at(0.5),
            at(0.9),
            at(0.99),
            latency.max() as f64 / 1e6
        );
    }
}

fn print(event: &str, silences: &Silences) {
    let figures = |figures: &[f64]| match figures {
        [] => "-".to_owned(),
        some => {
            let max = some.iter().copied().fold(0.0, f64::max);
            format!("{:.0}, {max:.0}", millstream_benches::statistics::median(some))
        }
    };
    println!(
        "{event:28} {:>22} {:>22} {:>22}",
        figures(&silences.kept),
        figures(&silences.moved),
        figures(&silences.first)
    );
}
