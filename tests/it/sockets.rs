//! Lines from a socket: each once, whatever the other side does.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use millstream::{ByteSize, Clock, Collected, ErrorKind, Job, Malformed, Restart, Trigger, collect, discard};
use millstream_connectors::{Lines, files, lines};
use socket2::SockRef;

use crate::support::{PATIENCE, events, eventually};

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
        for part in ["\u{feff}one\ntwo\r\nthr", "ee\n"] {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(part.as_bytes()).unwrap();
        }
        let mut last: TcpStream = listener.accept().unwrap().0;
        last.write_all("vier ä\n".as_bytes()).unwrap();
        last
    });
    let job = Job::new("lines", move |flow| flow.source(lines(&address))?.or_stop().sink(&sink));
    let mut running = job.workers(2).start().unwrap();
    let values: Vec<String> = results.wait_for(5, PATIENCE).expect("all lines arrive");
    // A byte order mark is not part of the text here either.
    assert_eq!(values, ["one", "two", "thr", "ee", "vier ä"], "a close ends an unfinished line");
    running.stop_within(PATIENCE * 10);
    running.wait_for(PATIENCE).expect("the stop does not wait for a silent connection").unwrap();
    drop(other_side.join());
}

#[test]
fn that_are_too_long_or_not_text_are_malformed_and_the_others_arrive() {
    let ((listener, address), results) = (listen(), collect());
    let sink = results.clone();
    thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(&vec![b'a'; 64 << 10]).unwrap();
        stream.write_all(b"\nshort\n\xff\xfe\n").unwrap();
        // A hundred megabytes, and then a line without an end: memory holds only the beginning of
        // each.
        (0..100).for_each(|_| stream.write_all(&vec![b'b'; 1 << 20]).unwrap());
        stream.write_all(b"\nafter\n").unwrap();
        (0..20).for_each(|_| stream.write_all(&vec![b'c'; 1 << 20]).unwrap());
    });
    let job = Job::new("long lines", move |flow| {
        let lines = flow.source(lines(&address).line_max(ByteSize(100_000)))?;
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
    let running = job.memory(ByteSize(4 << 20)).start().unwrap();
    assert!(sent.join().unwrap() < 500, "200 MB went into a job of 4 MiB");
    running.abort();
    drop(running);
}

#[test]
fn of_an_address_without_a_listener_are_an_error_at_start() {
    let job = Job::new("no listener", |flow| flow.source(lines("127.0.0.1:9"))?.or_stop().sink(millstream::discard()));
    let error = job.start().expect_err("nothing listens there");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("127.0.0.1:9"), "{error}");
    let job = Job::new("no length", |flow| {
        flow.source(lines("127.0.0.1:9").line_max(ByteSize(0)))?.or_stop().sink(millstream::discard())
    });
    assert_eq!(job.start().expect_err("no line would fit").kind(), ErrorKind::Config);
    let (job, _) = telling(lines("127.0.0.1:9").idle_max(Duration::ZERO));
    assert_eq!(job.start().expect_err("every connection would be idle").kind(), ErrorKind::Config);
}

/// A job that collects lines as they are, and malformed ones as their cause and bytes.
fn telling(source: Lines) -> (Job, Collected<String>) {
    let results = collect();
    let sink = results.clone();
    let told = |line: Result<String, Malformed>| {
        line.unwrap_or_else(|bad| {
            let bytes = String::from_utf8(bad.bytes.unwrap_or_default()).unwrap();
            format!("! {}: {bytes}", bad.cause)
        })
    };
    let job = Job::new("lines", move |flow| flow.source(source.clone())?.map(told).sink(&sink));
    (job, results)
}

/// Closes the connection with a reset; called once what was written has arrived.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// In a bounded run a reset used to count as an ordinary end, and the half line before it was lost.
#[test]
fn of_a_broken_connection_are_accounted_for_and_a_bounded_run_fails() {
    for half in ["", "and a ha"] {
        let (listener, address) = listen();
        let (job, results) = telling(lines(&address));
        let running = job.trigger(Trigger::AvailableNow).start().unwrap();
        let mut stream = listener.accept().unwrap().0;
        stream.write_all(b"one\n").unwrap();
        stream.write_all(half.as_bytes()).unwrap();
        results.wait_for(1, PATIENCE).expect("the first line arrives");
        reset(stream);
        let error = running.wait().expect_err("a broken connection is not an end");
        assert_eq!(error.kind(), ErrorKind::Source);
        assert!(format!("{error:#}").contains(&format!("the connection to {address} broke")), "{error:#}");
        let values = results.values();
        assert_eq!(values[0], "one");
        match half {
            "" => assert_eq!(values.len(), 1, "{values:?}"),
            half => assert_eq!(values[1..], [format!("! the connection broke in the middle of this line: {half}")]),
        }
    }
}

#[test]
fn of_a_broken_connection_are_followed_by_those_of_the_next_and_it_is_logged() {
    events::begin();
    let (listener, address) = listen();
    let (job, results) = telling(lines(&address));
    let running = job.start().unwrap();
    let mut stream = listener.accept().unwrap().0;
    stream.write_all(b"one\nand a ha").unwrap();
    results.wait_for(1, PATIENCE).expect("the first line arrives");
    reset(stream);
    let mut stream = listener.accept().unwrap().0;
    stream.write_all(b"two\n").unwrap();
    results.wait_for(3, PATIENCE).expect("the line of the next connection arrives");
    assert_eq!(results.values(), ["one", "! the connection broke in the middle of this line: and a ha", "two"]);
    assert!(events::was_logged(&["the connection broke", &address]));
    eventually("the reconnect is logged", || events::was_logged(&["reconnected", &address]));
    running.stop();
    running.wait().unwrap();
}

/// The peer is gone without closing the connection, as behind a router that has dropped its state.
/// The source used to wait for it forever.
#[test]
fn from_a_silent_peer_are_waited_for_no_longer_than_is_asked_for() {
    let (listener, address) = listen();
    let (job, results) = telling(lines(&address).idle_max(Duration::from_secs(60)));
    let clock = Clock::simulated();
    let running = job.clock(clock.clone()).start().unwrap();
    let mut silent = listener.accept().unwrap().0;
    silent.write_all(b"one\nhal").unwrap();
    results.wait_for(1, PATIENCE).expect("the first line arrives");
    listener.set_nonblocking(true).unwrap();
    let mut next = None;
    eventually("the source connects again", || {
        clock.advance(Duration::from_secs(1));
        next = listener.accept().ok();
        next.is_some()
    });
    next.unwrap().0.write_all(b"two\n").unwrap();
    results.wait_for(3, PATIENCE).expect("the next line arrives");
    assert_eq!(results.values(), ["one", "! the connection broke in the middle of this line: hal", "two"]);
    running.abort();
    drop((running, silent));

    let (listener, address) = listen();
    let (job, results) = telling(lines(&address).idle_max(Duration::from_millis(100)));
    let running = job.trigger(Trigger::AvailableNow).start().unwrap();
    let silent = listener.accept().unwrap().0;
    let error = running.wait().expect_err("silence is not an end");
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(format!("{error:#}").contains("received nothing for 100ms"), "{error:#}");
    assert!(results.is_empty());
    drop(silent);
}

/// Without keep-alive a peer that has vanished is never detected. The kernel reports the timer of a
/// connection: `02` is keep-alive.
#[test]
#[cfg(target_os = "linux")]
fn come_by_a_connection_that_is_kept_alive() {
    let (listener, address) = listen();
    let (job, _) = telling(lines(&address));
    let running = job.start().unwrap();
    let accepted = listener.accept().unwrap().0;
    let remote = format!("0100007F:{:04X}", listener.local_addr().unwrap().port());
    eventually("the connection uses keep-alive", || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let timers: Vec<String> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|fields| fields[2] == remote && fields[3] == "01")
            .map(|fields| fields[5].to_owned())
            .collect();
        timers.iter().any(|timer| timer.starts_with("02:"))
    });
    running.abort();
    drop((running, accepted));
}

/// The length of a line is that of its bytes without the line ending, and without the byte order
/// mark that may precede the first line of a file. A line of a socket that ended with `\r\n` had
/// room for one byte less.
#[test]
fn may_be_as_long_in_a_socket_as_in_a_file_with_either_end() {
    let long = |len: usize| "x".repeat(len);
    for end in ["\n", "\r\n"] {
        let text: String = (7..=12).chain([65_536, 10, 11]).map(|len| long(len) + end).collect::<String>() + &long(10);
        for chunk in [1, 3, 1 << 20] {
            let (listener, address) = listen();
            let bytes = text.clone();
            let other_side = thread::spawn(move || {
                let mut stream = listener.accept().unwrap().0;
                bytes.as_bytes().chunks(chunk).take(100).for_each(|chunk| stream.write_all(chunk).unwrap());
                stream.write_all(&bytes.as_bytes()[(100 * chunk).min(bytes.len())..]).unwrap();
            });
            let (job, of_socket) = telling(lines(&address).line_max(ByteSize(10)));
            job.trigger(Trigger::AvailableNow).run().unwrap();
            other_side.join().unwrap();
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("a"), &text).unwrap();
            let of_file = collect();
            let (source, sink) = (files(directory.path()).record_max(ByteSize(10)).lines(), of_file.clone());
            let told = |line: Result<String, Malformed>| {
                line.unwrap_or_else(|bad| format!("! {} bytes", bad.bytes.unwrap().len()))
            };
            let job = Job::new("file", move |flow| flow.source(source.clone())?.map(told).sink(&sink));
            job.trigger(Trigger::AvailableNow).run().unwrap();
            let bad = || "! 10 bytes".to_owned();
            let expected =
                [long(7), long(8), long(9), long(10), bad(), bad(), bad(), long(10), bad(), long(10)].to_vec();
            assert_eq!(of_file.values(), expected, "a file, {end:?}");
            let of_socket: Vec<String> = of_socket
                .values()
                .into_iter()
                .map(|line| {
                    line.strip_prefix("! the line is longer than 10 bytes: ")
                        .map_or(line.clone(), |bad| format!("! {} bytes", bad.len()))
                })
                .collect();
            assert_eq!(of_socket, expected, "a socket, {end:?}, in chunks of {chunk}");
        }
    }
}

/// All lines arrive at once, and their stage is slow: the last line waits for all others, but the
/// report used to say that it had waited only for its own batch.
#[test]
fn that_wait_to_be_read_have_the_same_latency_under_every_trigger() {
    for trigger in [Trigger::Continuous, Trigger::micro_batch(Duration::ZERO)] {
        let (listener, address) = listen();
        let job = Job::new("behind", move |flow| {
            let slow = |_: &String| thread::sleep(Duration::from_millis(2));
            flow.source(lines(&address))?.or_stop().inspect(slow).sink(discard())
        });
        let running = job.trigger(trigger).start().unwrap();
        let mut stream = listener.accept().unwrap().0;
        stream.write_all("x\n".repeat(500).as_bytes()).unwrap();
        eventually("all records are acknowledged", || running.report().records_out() == 500);
        running.stop();
        let report = running.wait().unwrap();
        // 500 records of 2 ms each: the median record waits for half a second.
        assert!(report.sinks[0].latency.p50 > Duration::from_millis(300), "{trigger:?}: {report}");
    }
}

/// A socket cannot be read again, so lines that were read and wait for a tick are the last batch.
#[test]
fn that_were_read_before_a_stop_are_not_lost() {
    let (listener, address) = listen();
    let (job, results) = telling(lines(&address));
    let job = job.trigger(Trigger::micro_batch(Duration::from_secs(3_600))).clock(Clock::simulated());
    let running = job.start().unwrap();
    let mut stream = listener.accept().unwrap().0;
    let text: String = (0..100).map(|line| format!("{line}\n")).collect();
    stream.write_all(text.as_bytes()).unwrap();
    // A job that ends its connection has read everything that the other side sent before its end.
    drop(stream);
    let next = listener.accept().unwrap().0;
    running.stop();
    running.wait().unwrap();
    assert_eq!(results.values(), (0..100).map(|line| line.to_string()).collect::<Vec<_>>());
    drop(next);
}

#[test]
fn come_by_a_new_connection_after_a_restart() {
    let ((listener, address), results) = (listen(), collect::<String>());
    let sink = results.clone();
    let job = Job::new("restarts", move |flow| {
        let fall = |line: &String| assert_ne!(line, "fall");
        flow.source(lines(&address))?.or_stop().inspect(fall).sink(&sink)
    });
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let running = job.restart(restart).start().unwrap();
    let mut first = listener.accept().unwrap().0;
    first.write_all(b"one\n").unwrap();
    results.wait_for(1, PATIENCE).expect("the first line arrives");
    first.write_all(b"fall\n").unwrap();
    let mut second = listener.accept().unwrap().0;
    second.write_all(b"two\n").unwrap();
    results.wait_for(2, PATIENCE).expect("the line of the second run arrives");
    assert_eq!(results.values(), ["one", "two"]);
    assert_eq!(running.report().restarts, 1);
    running.stop();
    running.wait().unwrap();
}
