//! An HTTP handler with a job inside: what does the example `embed` add, compared with the same
//! service by hand?
//!
//! Question: the time from when a `POST /orders` was due until its answer, which is sent once Kafka
//! has the invoice. Method: pairs H-E-E-H (`handler.rs`, the example) on fresh topics of one
//! broker; an open loop at a fixed rate over kept-alive connections; p50 and p99. Ratios are of
//! neighbouring runs, with the bootstrap's 95 % interval. The example also reads its invoices back
//! in a second job; the hand-written service does not.
//!
//! Not shown: services over a network, TLS, and rates at which the broker and the driver leave no
//! CPU to the service.
//!
//! ```text
//! tests/kafka/broker up
//! cargo build --release --example embed --bin handler
//! cargo bench --bench http -- --brokers 127.0.0.1:19092
//! ```

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use millstream_benches::machine::{cpu, program};
use millstream_benches::statistics::{estimate, median};
use millstream_benches::topics::create;

#[derive(Debug, Parser)]
struct Options {
    /// Bootstrap servers of a real broker
    #[arg(long, env = "MILLSTREAM_KAFKA", default_value = "127.0.0.1:19092")]
    brokers: String,
    /// Orders per second
    #[arg(long, default_value_t = 200)]
    rate: u64,
    /// Pairs of services
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Seconds measured in each run, after two of warm-up
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Run everything once, briefly, only to see that it works
    #[arg(long)]
    smoke: bool,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// The results of a run, in milliseconds.
struct Run {
    p50: f64,
    p99: f64,
    /// CPU of the service per request, in microseconds.
    cpu: f64,
    /// How late the driver itself was, at the median; included in every latency.
    late: f64,
}

fn main() {
    let mut options = Options::parse();
    if options.smoke {
        (options.pairs, options.seconds) = (1, 1);
    }
    println!("{} posts/s, {} pairs, {} s each; ms from due time", options.rate, options.pairs, options.seconds);
    // The first run after the broker has started measures the broker's start too; it is not
    // counted.
    measure("handler", &options);
    let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
    for pair in 0..options.pairs {
        let order = if pair % 2 == 0 { ["handler", "examples/embed"] } else { ["examples/embed", "handler"] };
        for name in order {
            let run = measure(name, &options);
            println!(
                "{name:16} p50 {:.3} p99 {:.3}  {:.0} µs CPU per post, driver late {:.3}",
                run.p50, run.p99, run.cpu, run.late
            );
            runs[usize::from(name != "handler")].push(run);
        }
    }
    let [hand, embed] = &runs;
    let middle = |runs: &[Run], f: fn(&Run) -> f64| median(&runs.iter().map(f).collect::<Vec<_>>());
    let ratio = |f: fn(&Run) -> f64| estimate(&hand.iter().zip(embed).map(|(h, e)| f(e) / f(h)).collect::<Vec<_>>());
    println!("median  H p50 {:.3} p99 {:.3}", middle(hand, |run| run.p50), middle(hand, |run| run.p99));
    println!("median  E p50 {:.3} p99 {:.3}", middle(embed, |run| run.p50), middle(embed, |run| run.p99));
    println!("E / H   p50 {} (target: 1.15)", ratio(|run| run.p50));
    println!("E / H   p99 {} (target: 1.15)", ratio(|run| run.p99));
    println!("E / H   CPU {}", ratio(|run| run.cpu));
}

/// A service, killed when this is dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn measure(name: &str, options: &Options) -> Run {
    let output = format!("bench-http-{}", fastrand::u32(..));
    create(&options.brokers, &[&output], 4);
    // The port was free a moment ago, and nothing else here opens ports.
    let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let child = Command::new(program(name, "cargo build --release --example embed --bin handler"))
        .args(["--listen", &address.to_string(), "--brokers", &options.brokers, "--output", &output])
        .stdout(Stdio::null())
        .spawn()
        .expect("the program starts");
    let service = Service(child);
    drive(&format!("http://{address}/orders"), service.0.id(), options)
}

/// Sends posts from a thread of its own, because tokio's timers have a resolution of whole
/// milliseconds.
fn drive(url: &str, pid: u32, options: &Options) -> Run {
    let client = reqwest::Client::builder().tcp_nodelay(true).build().expect("the settings are constants");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let deadline = Instant::now() + Duration::from_secs(20);
    while runtime.block_on(post(&client, url, 0)).is_err() {
        assert!(Instant::now() < deadline, "the service does not answer");
        thread::sleep(Duration::from_millis(20));
    }
    let latencies = Arc::new(Mutex::new(Histogram::<u64>::new(3).expect("three digits are allowed")));
    let warm = 2 * options.rate;
    let count = warm + options.seconds * options.rate;
    let begin = Instant::now() + Duration::from_millis(20);
    let (mut before, mut late) = (Duration::ZERO, Histogram::<u64>::new(3).expect("three digits are allowed"));
    let mut tasks = Vec::new();
    for id in 0..count {
        let due = begin + Duration::from_nanos(id * 1_000_000_000 / options.rate);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if id == warm {
            before = cpu(pid);
        }
        late += due.elapsed().as_nanos() as u64;
        let (client, url, latencies) = (client.clone(), url.to_owned(), Arc::clone(&latencies));
        tasks.push(runtime.spawn(async move {
            post(&client, &url, id).await.expect("it is answered with 200");
            if id >= warm {
                *latencies.lock().expect("no lock holder panics") += due.elapsed().as_nanos() as u64;
            }
        }));
    }
    for task in tasks {
        runtime.block_on(task).expect("every post is answered");
    }
    let used = cpu(pid).saturating_sub(before).as_secs_f64() * 1e6 / (count - warm) as f64;
    let latencies = latencies.lock().expect("no lock holder panics");
    assert_eq!(latencies.len(), count - warm);
    let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e6;
    Run { p50: at(0.5), p99: at(0.99), cpu: used, late: late.value_at_quantile(0.5) as f64 / 1e6 }
}

async fn post(client: &reqwest::Client, url: &str, id: u64) -> reqwest::Result<()> {
    let order = serde_json::json!({ "id": id, "customer": id % 1_000, "cents": 1 + id % 90_000 });
    client.post(url).json(&order).send().await?.error_for_status().map(drop)
}
