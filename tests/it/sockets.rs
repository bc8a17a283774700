//! Lines from a socket: each once, whatever the other side does.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use millstream::{Bytes, ErrorKind, Job, Malformed, Trigger, collect};
use millstream_connectors::lines;

use crate::support::PATIENCE;

/// A listener, and its address.
fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[test]
fn come_as_they_are_written_and_the_connection_is_made_again() {
    let ((listener, address), results) = (listen(), collect());
    let sink = results.clone();
    let other_side = thread::spawn(move || {
        for part in ["one\ntwo\r\nthr", "ee\n"] {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(part.as_bytes()).unwrap();
        }
        let mut last: TcpStream = listener.accept().unwrap().0;
        last.write_all("vier ä\n".as_bytes()).unwrap();
        last
    });
    let job = Job::new("lines", move |flow| flow.source(lines(&address))?.or_stop().sink(&sink));
    let running = job.workers(2).start().unwrap();
    let values: Vec<String> = results.wait_for(5, PATIENCE).expect("they all come");
    assert_eq!(values, ["one", "two", "thr", "ee", "vier ä"], "what is torn when the other side closes is a line");
    running.stop();
    let asked = Instant::now();
    running.wait().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(2), "a silent connection keeps nobody");
    drop(other_side.join());
}

#[test]
fn that_are_too_long_or_no_text_are_malformed_and_hold_up_nothing() {
    let ((listener, address), results) = (listen(), collect());
    let sink = results.clone();
    thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(&vec![b'a'; 64 << 10]).unwrap();
        stream.write_all(b"\nshort\n\xff\xfe\n").unwrap();
        // A hundred megabytes, and then a line without an end: memory holds the beginning of each.
        (0..100).for_each(|_| stream.write_all(&vec![b'b'; 1 << 20]).unwrap());
        stream.write_all(b"\nafter\n").unwrap();
        (0..20).for_each(|_| stream.write_all(&vec![b'c'; 1 << 20]).unwrap());
    });
    let job = Job::new("long lines", move |flow| {
        let lines = flow.source(lines(&address).line_max(Bytes(100_000)))?;
        let told = |line: Result<String, Malformed>| match line {
            Ok(line) => format!("{} bytes", line.len()),
            Err(malformed) => format!("malformed, {} bytes", malformed.bytes.map_or(0, |bytes| bytes.len())),
        };
        lines.map(told).sink(&sink)
    });
    job.trigger(Trigger::AvailableNow).run().unwrap();
    let expected = [
        "65536 bytes",
        "5 bytes",
        "malformed, 2 bytes",
        "malformed, 100000 bytes",
        "5 bytes",
        "malformed, 100000 bytes",
    ];
    assert_eq!(results.values(), expected);
}

#[test]
fn of_a_fast_sender_wait_for_a_slow_job() {
    let ((listener, address), results) = (listen(), collect::<usize>());
    let sink = results.clone();
    let sent = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let line = [&vec![b'x'; 99_999][..], b"\n"].concat();
        (0..2_000).take_while(|_| stream.write_all(&line).is_ok()).count()
    });
    let slow = |line: String| {
        thread::sleep(Duration::from_secs(3));
        line.len()
    };
    let job = Job::new("slow", move |flow| flow.source(lines(&address))?.or_stop().map(slow).sink(&sink));
    let running = job.memory(Bytes(4 << 20)).start().unwrap();
    assert!(sent.join().unwrap() < 500, "200 MB went into a job of 4 MiB");
    running.abort();
    drop(running);
}

#[test]
fn from_nobody_are_an_error_at_start() {
    let job = Job::new("nobody", |flow| flow.source(lines("127.0.0.1:9"))?.or_stop().sink(millstream::discard()));
    let error = job.start().expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
    let job = Job::new("no length", |flow| {
        flow.source(lines("127.0.0.1:9").line_max(Bytes(0)))?.or_stop().sink(millstream::discard())
    });
    assert_eq!(job.start().expect_err("no line would fit").kind(), ErrorKind::Option);
}
