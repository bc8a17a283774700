//! Windows in memory: what does event time cost, compared with a hand-written loop?
//!
//! Question: records per second through counts by key in tumbling windows of 10 s, of which only
//! finals come out, on one worker; and what stamps alone cost a pipeline that has no window.
//! Method: 100 000 keys, drawn evenly; event times that go on by 10 s each 4 million records, out
//! of order by up to a second, which is the delay; the same records through the engine and through
//! a hand-written loop over the same polls of 4 096: one hashbrown table for each open window, the
//! largest time of the partition, late records left out, a window emitted and dropped when its end
//! is passed; interleaved, medians. The engine is shown without checkpoints, and with one in a
//! directory each second; by hand nothing is ever written. Likewise, with checkpoints: windows of
//! 10 s that slide by 1 s, in panes and record by record, beside a loop that adds to ten tables;
//! and sessions with a gap of 30 s, all of whose keys stay open, beside a loop over one table.
//! Stamps: a `map` behind rows, with a watermark and without. Not shown: several workers or
//! partitions, windows of few records, sessions that close.
//!
//! `cargo bench --bench windows`; `-- --only tumbling`, `sliding`, `sessions` or `stamps` for a
//! part

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use millstream::{ByteSize, EventTime, Job, Rows, Session, Sliding, Tumbling, discard, rows};
use millstream_benches::statistics::median;

/// A key and an event time, in milliseconds.
type Record = (u64, i64);

const KEYS: u64 = 100_000;
const WINDOW: i64 = 10_000;
const DELAY: i64 = 1_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let smoke = arguments.iter().any(|argument| argument == "--smoke");
    let only = arguments.iter().skip_while(|argument| *argument != "--only").nth(1);
    let wants = |part: &str| only.is_none_or(|only| only == part);
    let (count, rounds) = if smoke { (200_000, 1) } else { (40_000_000, 3) };
    let in_window = if smoke { 50_000 } else { 4_000_000 };
    let mut random = fastrand::Rng::with_seed(7);
    let record = |n: i64| (random.u64(..KEYS), n * WINDOW / in_window - random.i64(0..DELAY));
    let records: Vec<Record> = (0..count).map(record).collect();
    let source = rows(records.iter().copied()).partitions(1);
    if wants("tumbling") {
        tumbling(&source, &records, rounds);
    }
    if wants("sliding") {
        sliding(&source, &records, rounds);
    }
    if wants("sessions") {
        sessions(&source, &records, rounds);
    }
    if wants("stamps") {
        cost_of_stamps(&source, count, rounds);
    }
}

/// Million records a second since then.
fn rate(records: &[Record], begin: Instant) -> f64 {
    records.len() as f64 / begin.elapsed().as_secs_f64() / 1e6
}

fn tumbling(source: &Rows<Record>, records: &[Record], rounds: usize) {
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        let begin = Instant::now();
        let hand = by_hand(records);
        rates[0].push(rate(records, begin));
        let begin = Instant::now();
        assert_eq!(by_engine(source.clone(), None), hand, "rows and late records");
        rates[1].push(rate(records, begin));
        let place = tempfile::tempdir().expect("there is room for a directory");
        let begin = Instant::now();
        assert_eq!(by_engine(source.clone(), Some(place.path())), hand, "rows and late records");
        rates[2].push(rate(records, begin));
    }
    let [hand, engine, kept] = rates.map(|rates| median(&rates));
    println!(
        "tumbling count of 10 s, {KEYS} keys, finals, {} records; million records per second, median of {rounds}",
        records.len()
    );
    println!(
        "by hand {hand:.1}, engine {engine:.1} ({:.2}), with checkpoints {kept:.1} ({:.2}; target 0.5, hoped 15.0 M/s)",
        engine / hand,
        kept / hand
    );
}

fn cost_of_stamps(source: &Rows<Record>, count: i64, rounds: usize) {
    let mut nanos: [Vec<f64>; 2] = Default::default();
    for _ in 0..rounds {
        for (has_watermark, nanos) in [false, true].into_iter().zip(&mut nanos) {
            let begin = Instant::now();
            stamps(source.clone(), has_watermark);
            nanos.push(begin.elapsed().as_secs_f64() * 1e9 / count as f64);
        }
    }
    let [without, with] = nanos.map(|nanos| median(&nanos));
    println!(
        "a map: {without:.1} ns a record without a watermark, {with:.1} with one: {:.1} more (target 5)",
        with - without
    );
}

/// Returns the number of rows and of late records.
fn by_hand(records: &[Record]) -> (u64, u64) {
    let mut windows = BTreeMap::<i64, HashMap<u64, u64>>::new();
    let (mut largest, mut late, mut emitted) = (i64::MIN / 2, 0, 0);
    let mut emit = |windows: &mut BTreeMap<i64, HashMap<u64, u64>>, until: i64| {
        while let Some(first) = windows.first_entry().filter(|first| first.key() + WINDOW <= until) {
            let (start, counts) = first.remove_entry();
            let rows: Vec<(u64, i64, u64)> = counts.into_iter().map(|(key, count)| (key, start, count)).collect();
            emitted += black_box(rows).len() as u64;
        }
    };
    for poll in records.chunks(4_096) {
        // The copy that a reader makes.
        let poll = poll.to_vec();
        // The table of the newest record: nearly all records are of one window.
        let mut at = 0;
        while at < poll.len() {
            let start = poll[at].1.div_euclid(WINDOW) * WINDOW;
            let counts = windows.entry(start).or_default();
            while let Some((key, time)) = poll.get(at).filter(|(_, time)| (start..start + WINDOW).contains(time)) {
                if start + WINDOW <= largest - DELAY {
                    late += 1;
                } else {
                    *counts.entry(*key).or_insert(0) += 1;
                }
                largest = largest.max(*time);
                at += 1;
            }
        }
        emit(&mut windows, largest - DELAY);
    }
    emit(&mut windows, i64::MAX);
    (emitted, late)
}

fn by_engine(source: Rows<Record>, checkpoints: Option<&Path>) -> (u64, u64) {
    let job = Job::new("windows", move |flow| {
        let records = flow.source(&source)?.with_watermark(|(_, at)| EventTime(*at), millis(DELAY));
        let windows = records.key_by(|(key, _)| *key).window(Tumbling::new(millis(WINDOW)));
        windows.count().finals().sink(discard())
    });
    let job = match checkpoints {
        None => job.state_in_memory(),
        Some(path) => job.checkpoints(path),
    };
    let report = job.state_memory(ByteSize::mebibytes(4096)).run().expect("nothing can fail");
    (report.records_out(), report.stages.iter().map(|stage| stage.late).sum())
}

/// What the windows are.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Panes,
    OneByOne,
    Sessions,
}

/// Million records a second through these windows, once.
fn rate_of(kind: Kind, source: &Rows<Record>, records: &[Record]) -> f64 {
    let place = tempfile::tempdir().expect("there is room for a directory");
    let begin = Instant::now();
    black_box(windows(kind, source.clone(), place.path()));
    rate(records, begin)
}

fn sliding(source: &Rows<Record>, records: &[Record], rounds: usize) {
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        for (kind, rates) in [Kind::Panes, Kind::OneByOne].into_iter().zip(&mut rates) {
            rates.push(rate_of(kind, source, records));
        }
        let begin = Instant::now();
        black_box(sliding_by_hand(records));
        rates[2].push(rate(records, begin));
    }
    let [panes, one_by_one, hand] = rates.map(|rates| median(&rates));
    println!(
        "sliding 10 s by 1 s, count, finals, with checkpoints: in panes {panes:.1} M/s (target 3), record by record \
         {one_by_one:.1}; by hand in ten tables {hand:.1}"
    );
}

fn sessions(source: &Rows<Record>, records: &[Record], rounds: usize) {
    let mut rates: [Vec<f64>; 2] = Default::default();
    for _ in 0..rounds {
        rates[0].push(rate_of(Kind::Sessions, source, records));
        let begin = Instant::now();
        black_box(sessions_by_hand(records));
        rates[1].push(rate(records, begin));
    }
    let [sessions, hand] = rates.map(|rates| median(&rates));
    println!("sessions of {KEYS} keys, gap 30 s, with checkpoints: {sessions:.1} M/s (target 3); by hand {hand:.1}");
}

fn windows(kind: Kind, source: Rows<Record>, place: &Path) -> u64 {
    let job = Job::new("windows", move |flow| {
        let records = flow.source(&source)?.with_watermark(|(_, at)| EventTime(*at), millis(DELAY));
        let by_key = records.key_by(|(key, _)| *key);
        let sliding = Sliding::new(millis(WINDOW), millis(WINDOW / 10));
        match kind {
            Kind::Panes => by_key.window(sliding).count().finals().sink(discard()),
            Kind::OneByOne => by_key.window(sliding).aggregate(|| 0_u64, |n, _| *n += 1).finals().sink(discard()),
            Kind::Sessions => by_key.window(Session::with_gap(millis(3 * WINDOW))).count().finals().sink(discard()),
        }
    });
    let report = job.checkpoints(place).state_memory(ByteSize::mebibytes(4096)).run().expect("nothing can fail");
    report.records_out()
}

/// Adds each record to ten tables.
fn sliding_by_hand(records: &[Record]) -> u64 {
    let step = WINDOW / 10;
    let mut windows = BTreeMap::<i64, HashMap<u64, u64>>::new();
    let (mut largest, mut emitted) = (i64::MIN / 2, 0);
    for poll in records.chunks(4_096) {
        let poll = poll.to_vec();
        for (key, time) in poll {
            let last = time.div_euclid(step) * step;
            for start in (0..10).map(|back| last - back * step) {
                if start + WINDOW > largest - DELAY {
                    *windows.entry(start).or_default().entry(key).or_insert(0) += 1;
                }
            }
            largest = largest.max(time);
        }
        while let Some(first) = windows.first_entry().filter(|first| first.key() + WINDOW <= largest - DELAY) {
            emitted += black_box(first.remove()).len() as u64;
        }
    }
    emitted + windows.into_values().map(|window| window.len() as u64).sum::<u64>()
}

/// Keeps one open session for each key; none closes before the end.
fn sessions_by_hand(records: &[Record]) -> u64 {
    let mut sessions = HashMap::<u64, (i64, i64, u64)>::new();
    let mut emitted = 0;
    for poll in records.chunks(4_096) {
        let poll = poll.to_vec();
        for (key, time) in poll {
            let session = sessions.entry(key).or_insert((time, time, 0));
            if time > session.1 + 3 * WINDOW {
                emitted += 1;
                *session = (time, time, 0);
            }
            *session = (session.0.min(time), session.1.max(time), session.2 + 1);
        }
    }
    emitted + sessions.len() as u64
}

fn stamps(source: Rows<Record>, has_watermark: bool) {
    let job = Job::new("stamps", move |flow| {
        let records = flow.source(&source)?;
        let records = match has_watermark {
            true => records.with_watermark(|(_, at)| EventTime(*at), millis(DELAY)),
            false => records,
        };
        records.map(|(key, at)| (key, at + 1)).sink(discard())
    });
    job.run().expect("nothing can fail");
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis as u64)
}
