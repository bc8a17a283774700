//! The other examples, called as a user would call them, and their results: on standard output, in
//! topics, and in files.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use krafka::testing::FakeBroker;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The longest that a test waits for something.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command for an example; its program is beside the test's own program.
fn example(name: &str, arguments: &[&str]) -> Command {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().and_then(|deps| deps.parent()).unwrap().join("examples");
    let mut command = Command::new(folder.join(name));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs an example that must end with status 0, and returns what it prints.
#[track_caller]
fn printed(name: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        example(name, arguments).output().expect("cargo builds examples with tests");
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), Some(0), "{name}: {stderr}\n{stdout}");
    stdout
}

#[test]
fn compare_triggers_writes_what_it_found() {
    let folder = std::env::temp_dir().join(format!("millstream-compare-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (page, plot, json) = (file("page.html"), file("plot.svg"), file("found.json"));
    let flags = ["--for", "1s", "--triggers", "continuous,50ms", "--page", &page, "--plot", &plot, "--json", &json];
    let table = printed("compare_triggers", &flags);
    assert!(table.contains("continuous") && table.contains("50ms"), "{table}");
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let found: Value = serde_json::from_str(&read(&json)).unwrap();
    assert_eq!(found["results"], "Equal", "{found}");
    // Nine orders in ten are kept; it depends on time how many are taken of each partition. One
    // second is measured, except for orders that arrived together with one of the warm-up.
    let kept = found["runs"][1]["records_out"].as_u64().unwrap();
    assert!((1_790..=1_810).contains(&kept), "{found}");
    let measured = found["runs"][0]["latency"]["count"].as_u64().unwrap();
    assert!((1..=910).contains(&measured), "{found}");
    let (page, plot) = (read(&page), read(&plot));
    assert!(plot.starts_with("<svg") && plot.matches("<polyline").count() >= 2, "{plot}");
    assert!(page.contains(&plot) && page.contains("all runs wrote the same"), "{page}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A broker in this process with topics of one partition.
struct Kafka {
    address: String,
    broker: FakeBroker,
    _runtime: tokio::runtime::Runtime,
}

impl Kafka {
    fn with(topics: &[&str]) -> Kafka {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let broker = runtime.block_on(FakeBroker::start()).unwrap();
        for topic in topics {
            broker.create_topic(topic, 1);
        }
        Kafka { address: broker.bootstrap_servers(), broker, _runtime: runtime }
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    fn write(&self, topic: &str, records: &[(&str, &str)]) {
        let producer: BaseProducer = self.client().create().unwrap();
        for (key, value) in records {
            producer.send(BaseRecord::to(topic).key(*key).payload(*value)).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(PATIENCE).unwrap();
    }

    /// The keys and values of all records in a topic.
    fn read(&self, topic: &str) -> Vec<(String, String)> {
        let consumer: BaseConsumer = self.client().set("group.id", "reads").create().unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
        consumer.assign(&all).unwrap();
        let end = self.broker.next_offset(topic, 0).unwrap_or(0) as usize;
        let (mut found, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        while found.len() < end {
            assert!(Instant::now() < deadline, "{topic} has {end} records, only {found:?} arrived");
            if let Some(message) = consumer.poll(Duration::from_millis(50)) {
                let message = message.unwrap();
                let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
                found.push((text(message.key()), text(message.payload())));
            }
        }
        found
    }
}

fn order(id: u64, cents: i64) -> String {
    json!({ "id": id, "due": 0, "customer": 7, "cents": cents, "pad": "" }).to_string()
}

#[test]
fn etl_cleans_orders_sets_aside_what_is_not_an_order_and_sends_that_back() {
    let kafka = Kafka::with(&["orders", "clean-orders", "orders.dead"]);
    let (small, free, large) = (order(1, 999), order(2, 0), order(3, 50_000));
    let incomplete = r#"{"id": 4}"#;
    kafka.write("orders", &[("a", &small), ("b", &free), ("c", incomplete), ("d", "no JSON"), ("e", &large)]);
    let report = printed("etl", &["--brokers", &kafka.address, "--trigger", "available-now"]);
    assert!(report.contains("5 records"), "{report}");
    let clean: Vec<(String, Value)> = kafka
        .read("clean-orders")
        .into_iter()
        .map(|(key, value)| (key, serde_json::from_str(&value).unwrap()))
        .collect();
    let cleaned = |id: u64, amount: f64, size: &str| json!({ "id": id, "due": 0, "customer": "C000007", "amount": amount, "currency": "EUR", "size": size });
    let expected = [("a".to_owned(), cleaned(1, 9.99, "small")), ("e".to_owned(), cleaned(3, 500.0, "large"))];
    assert_eq!(clean, expected, "orders that cost nothing are left out");
    let record = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(kafka.read("orders.dead"), [record("c", incomplete), record("d", "no JSON")]);
    let flags = ["--brokers", &kafka.address, "--replay", "--origin", "orders", "--cause", "expected"];
    let report = printed("etl", &flags);
    assert!(report.contains("2 records"), "both letters are read: {report}");
    assert_eq!(kafka.read("orders")[5..], [record("d", "no JSON")], "the letter goes back to its topic under its key");
}

#[test]
fn replay_sends_letters_back_to_their_topics_once() {
    let kafka = Kafka::with(&["orders", "clean-orders", "orders.dead"]);
    let record = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let incomplete = r#"{"id": 4}"#;
    kafka.write("orders", &[("c", incomplete), ("d", "no JSON")]);
    printed("etl", &["--brokers", &kafka.address, "--trigger", "available-now"]);
    let flags = ["--brokers", &kafka.address, "--letters", "orders.dead", "--cause", "missing field"];
    let report = printed("replay", &flags);
    assert!(report.contains("2 records"), "both letters are read: {report}");
    let orders = kafka.read("orders");
    assert_eq!(orders[2..], [record("c", incomplete)], "the letter goes back to its topic under its key");
    printed("replay", &flags);
    assert_eq!(kafka.read("orders").len(), 3, "each letter goes back once");
    let flags = ["--brokers", &kafka.address, "--letters", "orders.dead", "--group", "again", "--origin", "elsewhere"];
    printed("replay", &flags);
    assert_eq!(kafka.read("orders").len(), 3, "no letter is from that topic");
    printed("replay", &flags[..6]);
    assert_eq!(kafka.read("orders").len(), 3, "letters that did not match count as read");
    printed("replay", &["--brokers", &kafka.address, "--letters", "orders.dead", "--group", "all"]);
    assert_eq!(
        kafka.read("orders").len(),
        5,
        "another group starts with the first letter, without a filter all go back"
    );
}

#[test]
fn lookup_requests_every_price_and_shows_late_answers_as_such() {
    let flags = ["--orders", "150", "--rate", "1000", "--show", "150", "--within", "900ms"];
    let shown = printed("lookup", &flags);
    let lines: Vec<&str> = shown.lines().filter(|line| !line.starts_with(' ')).take(150).collect();
    for (order, line) in lines.iter().enumerate() {
        // The service takes a second for one product in a hundred.
        if order % 100 == 99 {
            assert!(!line.starts_with("order"), "order {order} has a price in time: {line}");
        } else {
            assert_eq!(*line, format!("order {order}: {:.2}", (100 + order) as f64 / 100.0));
        }
    }
    assert_eq!(lines.len(), 150);
    assert!(shown.contains("150 done"), "{shown}");
}

/// The output of `lines` for two lines from a socket.
fn words_of(trigger: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other_side = thread::spawn(move || listener.accept().unwrap().0.write_all(b"to be or\nnot to be\n").unwrap());
    let shown = printed("lines", &["--connect", &address, "--trigger", trigger, "--for", "3s"]);
    other_side.join().unwrap();
    shown
}

#[test]
fn lines_shows_words_as_they_arrive() {
    assert_eq!(words_of("available-now"), "to (2)\nbe (2)\nor (2)\nnot (3)\nto (2)\nbe (2)\n");
}

#[test]
fn lines_shows_words_batch_by_batch() {
    let shown = words_of("50ms");
    let line = "-------------------------------------------";
    assert!(shown.starts_with(&format!("{line}\nBatch: 0\n{line}\n+----+-------+\n|word|letters|\n")), "{shown}");
    // The two lines may be in different batches.
    let rows = shown.lines().filter(|line| line.starts_with('|') && !line.contains("word"));
    let words: Vec<Vec<&str>> = rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect();
    assert_eq!(words, [["to", "2"], ["be", "2"], ["or", "2"], ["not", "3"], ["to", "2"], ["be", "2"]], "{shown}");
}

/// The rows of the next table that a console prints, as their cells.
fn next_table(shown: &mut impl Iterator<Item = String>) -> Vec<Vec<String>> {
    let table: Vec<String> = shown.take_while(|line| !line.is_empty()).collect();
    let rows = table.iter().filter(|line| line.starts_with('|')).skip(1);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What `word_count` prints for each of two lines, the second of which follows the first table.
fn word_counts(mode: &str) -> [Vec<Vec<String>>; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let flags = ["--address", &address, "--mode", mode, "--trigger", "20ms", "--for", "60s"];
    let mut command = example("word_count", &flags);
    let mut running = command.stdout(Stdio::piped()).spawn().expect("cargo builds examples with tests");
    let mut shown = BufReader::new(running.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut lines = listener.accept().unwrap().0;
    let tables = ["to be or not to be", "not now"].map(|line| {
        writeln!(lines, "{line}").unwrap();
        next_table(&mut shown)
    });
    kill_process(Pid::from_child(&running), Signal::TERM).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
    tables
}

#[test]
fn word_count_prints_all_counts_the_largest_first() {
    let [first, second] = word_counts("complete");
    assert_eq!(first, [["be", "2"], ["to", "2"], ["not", "1"], ["or", "1"]]);
    assert_eq!(second, [["be", "2"], ["not", "2"], ["to", "2"], ["now", "1"], ["or", "1"]]);
}

#[test]
fn word_count_prints_what_a_batch_has_changed_or_holds() {
    let sorted = |mode| {
        word_counts(mode).map(|mut rows| {
            rows.sort_unstable();
            rows
        })
    };
    for (mode, of_second) in [("update", [["not", "2"], ["now", "1"]]), ("batch", [["not", "1"], ["now", "1"]])] {
        let [first, second] = sorted(mode);
        assert_eq!(first, [["be", "2"], ["not", "1"], ["or", "1"], ["to", "2"]], "{mode}");
        assert_eq!(second, of_second, "{mode}");
    }
}

#[test]
fn clickstream_shows_of_two_batches_what_each_output_mode_says() {
    let shown = printed("clickstream", &["--trigger", "20ms"]);
    let mut lines = shown.lines().map(str::to_owned);
    let mut check = |first: &[[&str; 2]], second: &[[&str; 2]]| {
        assert_eq!(next_table(&mut lines), first, "{shown}");
        assert_eq!(next_table(&mut lines), second, "{shown}");
    };
    check(&[["ada", "view"], ["ada", "click"], ["max", "click"]], &[["max", "view"], ["ada", "view"]]);
    check(&[["view", "1"], ["click", "2"]], &[["view", "3"]]);
    check(&[["view", "1"], ["click", "2"]], &[["view", "3"], ["click", "2"]]);
    assert_eq!(lines.next(), None, "{shown}");
    assert_eq!(shown.lines().filter(|line| ["Append", "Update", "Complete"].contains(line)).count(), 3, "{shown}");
}

#[test]
fn counts_writes_a_count_for_each_order_and_goes_on_where_it_was() {
    let kafka = Kafka::with(&["orders", "counts"]);
    let place = std::env::temp_dir().join(format!("millstream-counts-{}", std::process::id()));
    let directory = place.to_str().unwrap();
    let flags = ["--brokers", &kafka.address, "--trigger", "available-now", "--checkpoints", directory];
    let row =
        |key: &str, id: u64, count: u64| (key.to_owned(), json!({ "id": id, "due": 0, "customer": 7, "count": count }));
    for (orders, expected) in [
        (vec![("a", 1), ("b", 2)], vec![row("a", 1, 1), row("b", 2, 2)]),
        (vec![("a", 3)], vec![row("a", 1, 1), row("b", 2, 2), row("a", 3, 3)]),
    ] {
        let orders: Vec<(&str, String)> = orders.into_iter().map(|(key, id)| (key, order(id, 5))).collect();
        kafka.write("orders", &orders.iter().map(|(key, order)| (*key, order.as_str())).collect::<Vec<_>>());
        printed("counts", &flags);
        let rows: Vec<(String, Value)> =
            kafka.read("counts").into_iter().map(|(key, row)| (key, serde_json::from_str(&row).unwrap())).collect();
        assert_eq!(rows, expected);
    }
    std::fs::remove_dir_all(place).unwrap();
}

#[test]
fn a_wrong_flag_is_status_2_and_an_absent_broker_status_1() {
    for name in [
        "clickstream",
        "compare_triggers",
        "counts",
        "embed",
        "etl",
        "lines",
        "lookup",
        "replay",
        "transform",
        "word_count",
    ] {
        let output = example(name, &["--no-such-flag"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let absent = listener.local_addr().unwrap().to_string();
    drop(listener);
    let replay = ["--brokers", &absent, "--letters", "orders.dead"];
    let transform = ["--brokers", &absent];
    for (name, flags) in [("replay", &replay[..]), ("transform", &transform[..]), ("embed", &transform[..])] {
        let output = example(name, flags).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains("Error: ") && said.contains(&absent), "{name} does not say why: {said}");
    }
}

/// The rows of a console table, as words.
fn cells(table: &str) -> Vec<Vec<String>> {
    let rows = table.lines().filter_map(|line| line.strip_prefix('│')?.strip_suffix('│'));
    rows.map(|row| row.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn windows_are_counted_from_a_file_and_from_topic_to_topic() {
    let table = printed("windows", &["--window", "tumbling:10s"]);
    for row in [["ann", "0", "10000", "2"], ["bob", "0", "10000", "2"], ["ann", "40000", "50000", "1"]] {
        assert!(cells(&table).contains(&row.map(str::to_owned).to_vec()), "{row:?} in {table}");
    }
    let folder = std::env::temp_dir().join(format!("millstream-windows-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("events.jsonl");
    let events = [("a", 1), ("a", 15_000), ("b", 16_000)].map(|(key, at)| json!({ "key": key, "at": at }).to_string());
    std::fs::write(&file, events.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let table = printed("windows", &["--window", "sliding:20s,10s", "--file", file]);
    assert!(cells(&table).contains(&["a", "0", "20000", "2"].map(str::to_owned).to_vec()), "{table}");
    let table = printed("windows", &["--window", "session:5s", "--file", file]);
    assert!(cells(&table).contains(&["b", "16000", "21000", "1"].map(str::to_owned).to_vec()), "{table}");
    let table = printed("windows", &["--show", "updates", "--file", file]);
    assert!(cells(&table).contains(&["a", "10000", "20000", "1"].map(str::to_owned).to_vec()), "{table}");
    std::fs::remove_dir_all(&folder).unwrap();
    let kafka = Kafka::with(&["events", "windows"]);
    let events: Vec<(&str, &str)> = vec![("a", &events[0]), ("a", &events[1]), ("b", &events[2])];
    kafka.write("events", &events);
    printed("windows", &["--brokers", &kafka.address, "--trigger", "available-now", "--delay", "0s"]);
    let rows: Vec<(String, Value)> =
        kafka.read("windows").into_iter().map(|(key, value)| (key, serde_json::from_str(&value).unwrap())).collect();
    // The second window is not over: its end has not come.
    assert_eq!(rows, [("a".to_owned(), json!({ "key": "a", "start": 0, "end": 10_000, "count": 1 }))]);
}

#[test]
fn trending_shows_the_same_tags_again_and_again() {
    // How many windows share a table, and so its head, is the time's affair and not the posts'.
    let rows_of = |table: &str| cells(table).into_iter().filter(|row| row[0] != "until").collect::<Vec<_>>();
    let table = printed("trending", &["--top", "3"]);
    let rows = rows_of(&table);
    let first = rows.iter().filter(|row| row.get(1).is_some_and(|rank| rank == "1")).count();
    // Ten minutes in windows of five, one each minute; at the beginning and at the end they hold
    // less.
    assert!((14..=15).contains(&first), "{first} windows: {table}");
    assert_eq!(rows_of(&printed("trending", &["--top", "3"])), rows, "it depends on nothing but the posts");
}

#[test]
fn sessions_have_their_length_pages_and_the_last_one() {
    let rows = cells(&printed("sessions", &[]));
    for row in [["ann", "0", "31.0", "3", "/cart"], ["bob", "40000", "28.0", "2", "/cart"]] {
        assert!(rows.contains(&row.map(str::to_owned).to_vec()), "{row:?} in {rows:?}");
    }
}

#[test]
fn availability_shows_who_has_fallen_silent() {
    let table = printed("availability", &["--gap", "1500ms", "--for", "9s"]);
    let silent: Vec<_> = cells(&table).into_iter().filter(|row| row[0].starts_with("service-")).collect();
    assert_eq!(silent.len(), 1, "{table}");
    assert_eq!(silent[0][0], "service-2", "{table}");
}
