//! The real service: it answers when the broker has the invoice, and says so when it cannot know.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use krafka::testing::FakeBroker;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

/// No test waits for longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a request; the status and what came with it, or nothing when nobody answers.
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

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn answers_when_the_broker_has_the_invoice() {
    // The service inherits it: a thousand connections are a thousand files.
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let broker = runtime.block_on(FakeBroker::start()).unwrap();
    broker.create_topic("invoices", 1);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let own = std::env::current_exe().unwrap();
    let example: PathBuf = own.parent().and_then(|deps| deps.parent()).unwrap().join("examples/embed");
    let mut command = Command::new(example);
    command.args(["--listen", &address, "--brokers", &broker.bootstrap_servers()]);
    let mut service = Service(command.stdout(Stdio::null()).spawn().expect("cargo builds examples with tests"));
    let post = |body: &str| request(&address, "POST", "/orders", body);
    let deadline = Instant::now() + PATIENCE;
    while post("{}").is_none() {
        assert!(Instant::now() < deadline, "nobody listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    let written = || broker.next_offset("invoices", 0).unwrap_or(0);
    let before = written();
    assert_eq!(post(r#"{"id": 1, "customer": 7, "cents": 1250}"#).unwrap().0, 200);
    assert_eq!(written(), before + 1, "an answer means that the broker has it");
    for (body, names) in
        [("{", "EOF"), (r#"{"id": 1, "customer": 7}"#, "cents"), (r#"{"id": 1, "customer": 7, "cents": 0}"#, "cents")]
    {
        let (status, cause) = post(body).unwrap();
        assert!(status == 400 && cause.contains(names), "{body}: {status} {cause}");
    }
    assert_eq!(written(), before + 1, "what is no order leaves nothing");
    // A thousand at once, each on a connection of its own.
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
    let (status, report) = request(&address, "GET", "/report", "").unwrap();
    assert!(status == 200 && report.contains("\"acknowledged\":1001"), "{report}");
    let (status, metrics) = request(&address, "GET", "/metrics", "").unwrap();
    assert!(status == 200 && metrics.contains("millstream_running_jobs{job_name=\"invoices\"} 1"), "{metrics}");
    broker.crash(0);
    let asked = Instant::now();
    assert_eq!(post(r#"{"id": 2, "customer": 7, "cents": 1}"#).unwrap().0, 503, "nobody can know");
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?}", asked.elapsed());
    broker.restart(0);
    let deadline = Instant::now() + PATIENCE;
    while post(r#"{"id": 3, "customer": 7, "cents": 1}"#).unwrap().0 != 200 {
        assert!(Instant::now() < deadline, "it does not recover");
    }
    kill_process(Pid::from_child(&service.0), Signal::TERM).unwrap();
    assert!(service.0.wait().unwrap().success());
    drop(runtime);
}
