//! The real service: it answers once the broker has the invoice, and reports when it cannot know.
//! Its metrics pass Prometheus' own linter, and its Kubernetes manifest matches what the program
//! does.

#[path = "../embed.rs"]
#[allow(dead_code, reason = "its own main is not called here")]
mod embed;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use krafka::testing::FakeBroker;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use serde_json::{Value, json};

/// The longest that a test waits for something.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a request and returns the status and body of the answer, or `None` if there is no answer.
fn request(address: &str, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    let content = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all((head + &content).as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Checks the service's metrics with Prometheus' own linter, `promtool`. If it is not in the path,
/// prints that the check is skipped, or panics if `MILLSTREAM_NO_SKIP` is set.
#[track_caller]
fn lint(metrics: &str) {
    let started =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut linter = match started {
        Ok(linter) => linter,
        Err(_) if std::env::var_os("MILLSTREAM_NO_SKIP").is_none() => {
            return println!("skipped: there is no promtool to check the metrics");
        }
        Err(error) => panic!("cannot start promtool: {error}"),
    };
    linter.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = linter.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "promtool reports: {said}\n{metrics}");
}

/// A broker in this process, with the topic for the invoices.
struct Broker {
    broker: FakeBroker,
    _runtime: tokio::runtime::Runtime,
}

impl Broker {
    fn start() -> Broker {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let broker = runtime.block_on(FakeBroker::start()).unwrap();
        broker.create_topic("invoices", 1);
        Broker { broker, _runtime: runtime }
    }
}

/// The service in its own process.
struct Service {
    child: Child,
    address: String,
}

fn start(broker: &Broker) -> Service {
    // The service inherits the limit: a thousand connections need a thousand open files.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let own = std::env::current_exe().unwrap();
    let example: PathBuf = own.parent().and_then(|deps| deps.parent()).unwrap().join("examples/embed");
    let mut command = Command::new(example);
    command.args(["--listen", &address, "--brokers", &broker.broker.bootstrap_servers()]);
    let child = command.stdout(Stdio::null()).spawn().expect("cargo builds examples with tests");
    Service { child, address }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn answers_when_the_broker_has_the_invoice() {
    let broker = Broker::start();
    let mut service = start(&broker);
    let (broker, address) = (&broker.broker, service.address.clone());
    let post = |body: &str| request(&address, "POST", "/orders", body);
    let get = |path: &str| request(&address, "GET", path, "");
    let sold = || {
        let report: Value = serde_json::from_str(&get("/report").unwrap().1).unwrap();
        report["sold"].as_f64().unwrap()
    };
    wait_until("the service listens", || post("{}").is_some());
    let written = || broker.next_offset("invoices", 0).unwrap_or(0);
    // The job that adds up the sales reads everything written after it has its partition.
    wait_until("the service is ready", || get("/readyz").is_some_and(|(status, _)| status == 200));
    let before = written();
    let sold_before = sold();
    assert_eq!(post(r#"{"id": 1, "customer": 7, "cents": 1250}"#).unwrap().0, 200);
    assert_eq!(written(), before + 1, "an answer means that the broker has the invoice");
    for (body, names) in
        [("{", "EOF"), (r#"{"id": 1, "customer": 7}"#, "cents"), (r#"{"id": 1, "customer": 7, "cents": 0}"#, "cents")]
    {
        let (status, cause) = post(body).unwrap();
        assert!(status == 400 && cause.contains(names), "{body}: {status} {cause}");
    }
    assert_eq!(written(), before + 1, "a body that is not an order writes no invoice");
    // A thousand orders at once, each on its own connection.
    let all_are_there = Barrier::new(1_000);
    std::thread::scope(|scope| {
        for id in 0..1_000 {
            let all_are_there = &all_are_there;
            let handler = std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, move || {
                let order = format!(r#"{{"id": {id}, "customer": {}, "cents": 100}}"#, id % 100);
                all_are_there.wait();
                assert_eq!(post(&order).unwrap().0, 200);
            });
            handler.unwrap();
        }
    });
    assert_eq!(written(), before + 1_001);
    // 12.50, and a thousand times 1.00.
    wait_until("all posted orders are added up", || ((sold() - sold_before) * 100.0).round() == 101_250.0);
    let (status, report) = get("/report").unwrap();
    assert!(status == 200 && report.contains("\"acknowledged\":1001"), "{report}");
    let shows = |line: &str| get("/metrics").unwrap().1.contains(line);
    assert!(shows("millstream_running_jobs{job_name=\"invoices\"} 1"), "{:?}", get("/metrics"));
    wait_until("the histogram counts all of them", || {
        shows("millstream_sink_latency_seconds_count{job_name=\"invoices\",sink=\"kafka invoices\"} 1001")
    });
    lint(&get("/metrics").unwrap().1);
    for path in ["/livez", "/readyz"] {
        let both = "invoices: alive and ready\nsold: alive and ready\n".to_owned();
        assert_eq!(get(path).unwrap(), (200, both), "{path}");
    }
    broker.crash(0);
    let asked = Instant::now();
    assert_eq!(post(r#"{"id": 2, "customer": 7, "cents": 1}"#).unwrap().0, 503, "the outcome is unknown");
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    assert_eq!(get("/livez").unwrap().0, 200, "a new process would not help");
    broker.restart(0);
    wait_until("the service recovers", || post(r#"{"id": 3, "customer": 7, "cents": 1}"#).unwrap().0 == 200);
    kill_process(Pid::from_child(&service.child), Signal::TERM).unwrap();
    assert!(service.child.wait().unwrap().success());
}

/// A Kubernetes quantity, in bytes.
fn bytes(quantity: &Value) -> u64 {
    let mebibytes = quantity.as_str().and_then(|text| text.strip_suffix("Mi")).expect("memory is given in Mi");
    mebibytes.parse::<u64>().unwrap() << 20
}

/// Without this test, a wrong port or path in the manifest, or too short a grace period, would only
/// be noticed in production.
#[test]
fn the_manifest_says_what_the_program_does() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/kubernetes.yaml")).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let [deployment, service] = &documents[..] else { panic!("{} documents", documents.len()) };
    assert_eq!((&deployment["kind"], &service["kind"]), (&json!("Deployment"), &json!("Service")));
    let pod = &deployment["spec"]["template"];
    for labels in [&deployment["spec"]["selector"]["matchLabels"], &service["spec"]["selector"]] {
        assert_eq!(*labels, pod["metadata"]["labels"], "the selector matches the pod's labels");
    }
    let container = &pod["spec"]["containers"][0];
    let port = &container["ports"][0];
    assert_eq!(service["spec"]["ports"][0]["targetPort"], port["name"]);

    // The program accepts these arguments, and listens where the probes and Prometheus send
    // requests.
    let arguments: Vec<&str> = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let options: embed::Options = clap::Parser::try_parse_from([&["embed"], &arguments[..]].concat()).unwrap();
    assert_eq!(options.listen, format!("0.0.0.0:{}", port["containerPort"]));
    let annotations = &pod["metadata"]["annotations"];
    assert_eq!(annotations["prometheus.io/port"].as_str().unwrap(), port["containerPort"].to_string());
    let probed = |probe: &str| {
        assert_eq!(container[probe]["httpGet"]["port"], port["name"], "{probe}");
        container[probe]["httpGet"]["path"].as_str().unwrap().to_owned()
    };
    let paths = [probed("startupProbe"), probed("livenessProbe"), probed("readinessProbe")];
    assert_eq!(paths, ["/livez", "/livez", "/readyz"]);
    let scraped = annotations["prometheus.io/path"].as_str().unwrap();
    let broker = Broker::start();
    let started = start(&broker);
    for path in paths.iter().map(String::as_str).chain([scraped]) {
        wait_until(&format!("{path} is answered"), || {
            request(&started.address, "GET", path, "").is_some_and(|(status, _)| status == 200)
        });
    }

    // It shuts down in time, and its memory fits the limit.
    let seconds = |value: &Value| Duration::from_secs(value.as_u64().unwrap());
    let grace = seconds(&pod["spec"]["terminationGracePeriodSeconds"]);
    let pre_stop = seconds(&container["lifecycle"]["preStop"]["sleep"]["seconds"]);
    let needed = pre_stop + embed::ANSWER_WITHIN + embed::STOP_WITHIN;
    assert!(grace >= needed + Duration::from_secs(5), "a shutdown may take {needed:?}, the grace period is {grace:?}");
    assert!(bytes(&container["resources"]["limits"]["memory"]) >= 4 * embed::MEMORY.0, "the memory of two jobs, twice");
}
