//! The example `counts`, killed again and again: what it has counted survives.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{PATIENCE, Process, broker, seed};

const CUSTOMERS: u64 = 100_000;

fn counts(broker: &broker::Broker, (input, output): (&str, &str), directory: &Path, flags: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_counts"));
    command.args(["--brokers", &broker.address, "--input", input, "--output", output, "--group", input]);
    command.arg("--checkpoints").arg(directory).args(["--checkpoint-every", "100ms"]).args(flags);
    Process(command.stdout(Stdio::null()).spawn().expect("the example starts"))
}

fn customer(n: u64) -> u64 {
    match n {
        // At first one of each.
        0..CUSTOMERS => n,
        // A quarter of the orders is of few customers, so that their counts grow.
        _ if n.is_multiple_of(4) => n % 100,
        _ => n * 7_919 % CUSTOMERS,
    }
}

fn order(n: u64) -> (String, String) {
    let customer = customer(n);
    let order = json!({ "id": n, "due": 0, "customer": customer, "cents": 1, "pad": "" });
    (customer.to_string(), order.to_string())
}

/// What was written about the orders of customers.
#[derive(Default)]
struct Seen {
    orders: BTreeSet<u64>,
    /// The last count of each customer.
    last: BTreeMap<u64, u64>,
    repeated: u64,
    wrong: Vec<String>,
}

impl Seen {
    /// Reads all rows. The orders of a customer are in one partition, so the count that comes with
    /// each is known: `exact` has it for all orders. So a count is lower than one before it only
    /// where its row is repeated.
    fn read(broker: &broker::Broker, topic: &str, exact: &[u64]) -> Seen {
        let mut seen = Seen::default();
        for read in broker.read(topic).into_iter().flatten() {
            let row: Value = serde_json::from_str(&read.value.expect("there are no tombstones")).expect("JSON");
            let number = |field: &str| row[field].as_u64().expect("a number");
            let (order, of, count) = (number("id"), number("customer"), number("count"));
            if count != exact[order as usize] || of != customer(order) || read.key != Some(of.to_string()) {
                seen.wrong.push(format!("order {order} under key {:?}: {row}", read.key));
            }
            seen.last.insert(of, count);
            seen.repeated += u64::from(!seen.orders.insert(order));
        }
        seen
    }
}

/// Under both triggers and with another number of workers each time, also while it recovers. The
/// load goes on throughout.
#[test]
fn a_hundred_kills_and_every_count_is_exact() {
    const KILLS: usize = 100;
    let broker = broker::shared();
    let (input, output) = (broker.topic("counts-in", 4), broker.topic("counts-out", 4));
    let directory = tempfile::tempdir().expect("there is room for a directory");
    let mut random = fastrand::Rng::with_seed(seed());
    let first: Vec<_> = (0..CUSTOMERS).map(order).collect();
    broker.write(&input, first.iter().map(|(key, order)| (None, key.as_str(), Some(order.as_str()))));
    let written = || -> i64 { (0..4).map(|partition| broker.end(&output, partition)).sum() };
    let mut before_output = 0;
    let begin = Instant::now();
    let (sent, ()) = broker.under_load(
        &input,
        |n| order(CUSTOMERS + n),
        |_| {
            for kill in 0..KILLS {
                let before = written();
                let workers = random.usize(1..4).to_string();
                let trigger = ["continuous", "20ms"][kill % 2];
                let mut process =
                    counts(broker, (&input, &output), directory.path(), &["--workers", &workers, "--trigger", trigger]);
                // A third of them before it has recovered.
                let life = if kill % 3 == 0 { random.u64(0..250) } else { random.u64(250..1_200) };
                std::thread::sleep(Duration::from_millis(life));
                assert!(process.0.try_wait().expect("it is a child of this process").is_none(), "it ended by itself");
                drop(process);
                before_output += u64::from(written() == before);
            }
        },
    );
    let (sent, took) = (CUSTOMERS + sent, begin.elapsed());
    let mut expected = BTreeMap::<u64, u64>::new();
    let count = |n| {
        let count = expected.entry(customer(n)).or_default();
        *count += 1;
        *count
    };
    let exact: Vec<u64> = (0..sent).map(count).collect();
    let last = counts(broker, (&input, &output), directory.path(), &["--workers", "2"]);
    let deadline = Instant::now() + PATIENCE;
    let seen = loop {
        let seen = Seen::read(broker, &output, &exact);
        if seen.last == expected || Instant::now() > deadline {
            break seen;
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    drop(last);
    let (rows, repeated) = (seen.orders.len() as u64 + seen.repeated, seen.repeated);
    println!(
        "{KILLS} kills in {took:?}, {before_output} of them before the first output: {sent} orders of {} customers, \
         {rows} rows, {repeated} repeated",
        expected.len()
    );
    assert!(seen.wrong.is_empty(), "{} wrong, such as {:?}", seen.wrong.len(), &seen.wrong[..seen.wrong.len().min(5)]);
    let wrong = expected.iter().filter(|(customer, count)| seen.last.get(customer) != Some(count));
    let wrong: Vec<_> = wrong.map(|(customer, count)| (customer, count, seen.last.get(customer))).take(5).collect();
    assert!(wrong.is_empty(), "customer, count, and the last that was written: {wrong:?}");
    assert!(repeated > 0, "nothing is repeated: the kills did not hit a working process");
    assert!(before_output > 0, "no process was killed while it recovered");
    assert_eq!(expected.len() as u64, CUSTOMERS);
    assert!(sent >= CUSTOMERS + 50_000, "too little went through: {sent}");
}
