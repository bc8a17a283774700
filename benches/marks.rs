//! A thousand partitions: what do their marks and their silence cost?
//!
//! Question: CPU of a job at rest, and the time that an epoch takes, with a watermark and windows
//! compared with the same job without. Method: a topic of 1 000 partitions on a real broker, each
//! with a few records, read in this process by one worker into counts by key: over tumbling windows
//! of event time with `idle_after` of two seconds (E), and running counts without event time (F);
//! in turn. First 100 records a second go to partitions in turn, and the job's report says how long
//! its epochs take. Then nothing is written, all partitions fall silent, and the CPU time of this
//! process is taken: it has the client's own, which asks the broker for news of 1 000 partitions
//! over and over, in both. Not shown: more workers, brokers over a network.
//!
//! ```text
//! tests/kafka/broker up
//! cargo bench --bench marks -- --brokers 127.0.0.1:19092
//! ```

use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use millstream::{EventTime, Job, Tumbling, Watermark, discard};
use millstream_benches::machine::cpu;
use millstream_benches::statistics::median;
use millstream_benches::topics::{client, create};
use millstream_connectors::Kafka;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

#[derive(Debug, Parser)]
struct Options {
    /// Bootstrap servers of a real broker
    #[arg(long, env = "MILLSTREAM_KAFKA", default_value = "127.0.0.1:19092")]
    brokers: String,
    /// Partitions of the topic
    #[arg(long, default_value_t = 1_000)]
    partitions: i32,
    /// Pairs of F and E
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Seconds with records, and at rest
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Run everything once, briefly, only to see that it works
    #[arg(long)]
    smoke: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a run has shown.
struct Figures {
    /// The median and the 99th percentile of an epoch, in microseconds.
    epoch: [f64; 2],
    /// CPU at rest, in percent of a core.
    rest: f64,
}

fn main() {
    let mut options = Options::parse();
    if options.smoke {
        options = Options { partitions: 20, pairs: 1, seconds: 3, ..options };
    }
    let topic = format!("marks-{}", fastrand::u32(..));
    create(&options.brokers, &[&topic], options.partitions);
    let mut producer = Writer::new(&options.brokers, &topic, options.partitions);
    (0..options.partitions * 3).for_each(|_| producer.write());
    producer.flush();
    println!("{} partitions, {} pairs, {} s each", options.partitions, options.pairs, options.seconds);
    let mut all: [Vec<Figures>; 2] = Default::default();
    for pair in 0..options.pairs {
        for index in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            let figures = run(&options, &topic, &mut producer, index == 1);
            let Figures { epoch: [p50, p99], rest } = figures;
            let name = ["without", "with"][index];
            println!("{name:8} an epoch p50 {p50:.0} p99 {p99:.0} us, at rest {rest:.2} % of a core");
            all[index].push(figures);
        }
    }
    let middle = |index: usize, of: fn(&Figures) -> f64| median(&all[index].iter().map(of).collect::<Vec<_>>());
    let more = |of| middle(1, of) - middle(0, of);
    println!(
        "with a watermark an epoch takes {:.0} us more at p50, {:.0} at p99 (target: 100); at rest {:.2} % of a core \
         (target: 2), {:.2} more than without",
        more(|figures| figures.epoch[0]),
        more(|figures| figures.epoch[1]),
        middle(1, |figures| figures.rest),
        more(|figures| figures.rest)
    );
}

/// Writes records to partitions in turn, each with its event time and key as text.
struct Writer {
    producer: BaseProducer,
    topic: String,
    partitions: i32,
    next: i64,
}

impl Writer {
    fn new(brokers: &str, topic: &str, partitions: i32) -> Writer {
        let producer: BaseProducer =
            client(brokers).set("linger.ms", "0").create().expect("the settings are constants");
        Writer { producer, topic: topic.to_owned(), partitions, next: 0 }
    }

    fn write(&mut self) {
        let payload = (1_764_000_000_000 + self.next * 10).to_string();
        let partition = (self.next % i64::from(self.partitions)) as i32;
        self.next += 1;
        let mut record = BaseRecord::<(), str>::to(&self.topic).partition(partition).payload(&payload);
        while let Err((_, back)) = self.producer.send(record) {
            self.producer.poll(Duration::from_millis(1));
            record = back;
        }
        self.producer.poll(Duration::ZERO);
    }

    fn flush(&self) {
        self.producer.flush(Duration::from_secs(30)).expect("the broker answers");
    }
}

fn run(options: &Options, topic: &str, writer: &mut Writer, has_watermark: bool) -> Figures {
    let (brokers, topic) = (options.brokers.clone(), topic.to_owned());
    let group = format!("marks-{}", fastrand::u64(..));
    let written = writer.next as u64;
    let job = Job::new("marks", move |flow| {
        let records = flow.source(Kafka::new(&brokers).topic(&topic).group(&group).text())?.or_stop();
        let times = records.flat_map(|text: String| text.parse::<i64>().ok());
        if !has_watermark {
            return times.key_by(|at| at % 100).count().updates().sink(discard());
        }
        let idle_after = Watermark::delay(Duration::from_secs(1)).idle_after(Duration::from_secs(2));
        let timed = times.with_watermark(|at| EventTime(*at), idle_after);
        timed.key_by(|at| at % 100).window(Tumbling::new(Duration::from_secs(1))).count().finals().sink(discard())
    });
    let running = job.state_in_memory().start().expect("the broker answers");
    let begin = Instant::now();
    while running.report().records_in() < written {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} of {written} were read", running.report().records_in());
        thread::sleep(Duration::from_millis(20));
    }
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < Duration::from_secs(options.seconds) {
        thread::sleep((Duration::from_millis(10) * sent).saturating_sub(begin.elapsed()));
        writer.write();
        sent += 1;
    }
    writer.flush();
    let epoch = running.report().epoch;
    // Until all partitions are silent.
    thread::sleep(Duration::from_secs(4));
    let (before, since) = (cpu(std::process::id()), Instant::now());
    thread::sleep(Duration::from_secs(options.seconds));
    let rest = (cpu(std::process::id()) - before).as_secs_f64() / since.elapsed().as_secs_f64() * 100.0;
    running.abort();
    drop(running.wait());
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    Figures { epoch: [micros(epoch.p50), micros(epoch.p99)], rest }
}
