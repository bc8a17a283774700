//! Existing files are read, and new and growing files are followed: under every trigger and with
//! any number of workers, the results are those of an oracle that reads the files afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use fastrand::Rng;
use millstream::{ByteSize, Job, Restart, Trigger, collect};
use millstream_connectors::{FileOrder, WhenDone, files};

use super::{Directory, Paced, append, paced, telling, told_by, wait_for};
use crate::support::{events, eventually, seed};

const EVERY: [Trigger; 2] = [Trigger::Continuous, Trigger::MicroBatch { interval: Duration::from_millis(5) }];

/// The lines of all files, by file, as a run should return them.
fn oracle(directory: &Directory) -> BTreeMap<String, Vec<String>> {
    let told = |name: &String| {
        let text = fs::read_to_string(directory.at(name)).unwrap();
        let mut offset = 0;
        let mut lines = Vec::new();
        for line in text.split_inclusive('\n') {
            lines.push(format!("{name}@{offset} {}", line.trim_end_matches(['\r', '\n'])));
            offset += line.len();
        }
        lines
    };
    directory.names().iter().map(|name| (name.clone(), told(name))).filter(|(_, lines)| !lines.is_empty()).collect()
}

/// The results by file, in order of arrival.
fn by_file(told: Vec<String>) -> BTreeMap<String, Vec<String>> {
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in told {
        files.entry(line.split('@').next().unwrap().to_owned()).or_default().push(line);
    }
    files
}

/// A line of random characters, up to several chunks long; the last character is never `\r`.
fn line(rng: &mut Rng) -> String {
    let len = if rng.u8(..20) == 0 { rng.usize(..150_000) } else { rng.usize(..80) };
    let mut line: String =
        std::iter::repeat_with(|| ["a", "ü", " ", "\r", "\"", ","][rng.usize(..6)]).take(len).collect();
    line.push('.');
    line + if rng.bool() { "\n" } else { "\r\n" }
}

fn lines(rng: &mut Rng, most: usize) -> String {
    (0..rng.usize(..most)).map(|_| line(rng)).collect()
}

#[test]
fn reads_each_line_of_each_file_once_and_ends() {
    let mut rng = Rng::with_seed(seed());
    let directory = Directory::new();
    for file in 0..40 {
        let mut text = lines(&mut rng, 60);
        if rng.bool() {
            text += "torn";
        }
        directory.write(&format!("{file}.txt"), text);
    }
    let expected = oracle(&directory);
    fs::create_dir(directory.at("a directory")).unwrap();
    append(&directory.at("a directory").join("file.txt"), "not entered\n");
    directory.write(".hidden", "left out\n");
    directory.write("_hidden", "left out\n");
    for workers in [1, 2, 4] {
        for memory in [ByteSize::mebibytes(256), ByteSize(64 << 10)] {
            let (job, results) = telling(directory.source());
            let report = job.trigger(Trigger::AvailableNow).workers(workers).memory(memory).run().unwrap();
            assert_eq!(by_file(results.values()), expected, "{workers} workers, {memory}");
            assert_eq!(report.fraction(), Some(1.0));
        }
    }
}

/// While the job runs, a writer appends pieces that end anywhere, also within lines and characters,
/// moves complete files in, and creates new ones. Afterwards each line was read once, in the order
/// of its file.
#[test]
fn follows_files_that_come_and_grow() {
    let seed = seed();
    for (round, trigger) in EVERY.into_iter().enumerate() {
        for workers in [1, 2, 4] {
            let mut rng = Rng::with_seed(seed ^ (round * 10 + workers) as u64);
            let directory = Directory::new();
            directory.write("0", "");
            // No last line is torn in the end, so no file has to settle, and no line is taken
            // before it is complete however slow this machine is.
            let (job, results) = telling(directory.source().settled_after(Duration::from_secs(3_600)));
            let running = job.trigger(trigger).workers(workers).memory(ByteSize::mebibytes(1)).start().unwrap();
            for step in 0..150 {
                match rng.u8(..10) {
                    0 => directory.write(&format!("{step}"), ""),
                    1 | 2 => {
                        directory.move_in(&format!("{step}"), lines(&mut rng, 30));
                    }
                    _ => {
                        let names = directory.names();
                        let name = &names[rng.usize(..names.len())];
                        let text = line(&mut rng).into_bytes();
                        let (first, second) = text.split_at(rng.usize(..text.len()));
                        directory.append(name, first);
                        if rng.bool() {
                            std::thread::yield_now();
                        }
                        directory.append(name, second);
                    }
                }
            }
            let expected = oracle(&directory);
            let count = expected.values().map(Vec::len).sum();
            wait_for(&results, count);
            running.stop();
            running.wait().unwrap();
            assert_eq!(by_file(results.values()), expected, "{trigger:?}, {workers} workers");
        }
    }
}

#[test]
fn reads_in_the_order_of_time_or_name_with_one_worker() {
    let directory = Directory::new();
    let times = [("b", 30), ("a", 20), ("d", 10), ("c", 20)];
    for (name, seconds) in times {
        directory.write(name, format!("{name}1\n{name}2"));
        let file = fs::File::options().write(true).open(directory.at(name)).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }
    let names =
        |told: Vec<String>| told.iter().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect::<Vec<_>>();
    let by_time = names(told_by(directory.source()));
    assert_eq!(by_time, ["d1", "d2", "a1", "a2", "c1", "c2", "b1", "b2"]);
    let by_name = names(told_by(directory.source().order(FileOrder::Name)));
    assert_eq!(by_name, ["a1", "a2", "b1", "b2", "c1", "c2", "d1", "d2"]);
}

#[test]
fn reads_files_that_match() {
    let directory = Directory::new();
    for name in ["a.json", "b.csv", "c.json.tmp", "d.txt", ".e.json"] {
        directory.write(name, "x\n");
    }
    assert_eq!(told_by(directory.source().matching("*.json")), ["a.json@0 x"]);
    let mut both = told_by(directory.source().matching("*.{json,csv}"));
    both.sort_unstable();
    assert_eq!(both, ["a.json@0 x", "b.csv@0 x"]);
    assert!(told_by(directory.source().matching("nothing")).is_empty());
}

/// A file that keeps growing does not keep the others waiting.
#[test]
fn a_file_that_grows_all_the_time_does_not_delay_others() {
    let directory = Directory::new();
    let (job, results) = telling(directory.source());
    directory.write("a", "begin\n");
    let running = job.start().unwrap();
    let mut written = 0;
    let mut other = false;
    eventually("the other file is read", || {
        directory.append("a", "x\n".repeat(10_000));
        written += 10_000;
        if written == 100_000 {
            directory.move_in("b", "other\n");
        }
        other |= results.take().contains(&"b@0 other".to_owned());
        other
    });
    running.stop();
    running.wait().unwrap();
}

/// A stage panics, and the job restarts at the committed offsets: nothing is lost, and what was
/// committed is not read again.
#[test]
fn a_restart_goes_on_where_it_committed() {
    for (trigger, workers) in EVERY.into_iter().flat_map(|trigger| [(trigger, 1), (trigger, 2), (trigger, 4)]) {
        let directory = Directory::new();
        for file in 0..8 {
            let rows: String = (0..500).map(|row| format!("{},\"row\n{row}\"\n", file * 500 + row)).collect();
            directory.write(&format!("{file}.csv"), format!("number,text\n{rows}"));
        }
        let (path, results) = (directory.path.clone(), collect());
        let (sink, seen, falls) = (results.clone(), results.clone(), Arc::new(AtomicU64::new(0)));
        let job = Job::new("restart", move |flow| {
            let (falls, seen) = (Arc::clone(&falls), seen.clone());
            flow.source(files(&path).look_every(Duration::from_millis(5)).csv::<(u64, String)>())?
                .or_stop()
                .inspect(move |(number, _)| {
                    // In the middle, and again at the row that arrives when all others are done.
                    let fallen = falls.load(SeqCst);
                    let must_fall = [seen.len() > 2_000, *number == 4_000, false][fallen as usize];
                    // Only one worker panics.
                    if must_fall && falls.compare_exchange(fallen, fallen + 1, SeqCst, SeqCst).is_ok() {
                        panic!("on purpose");
                    }
                })
                .sink(&sink)
        });
        let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(5) };
        let job = job.trigger(trigger).workers(workers).memory(ByteSize(64 << 10));
        let running = job.restart(restart).checkpoint_every(Duration::from_millis(1)).start().unwrap();
        let distinct = || {
            let mut values = results.values();
            values.sort_unstable();
            values.dedup();
            values
        };
        eventually("all rows are read", || distinct().len() == 4_000);
        let expected: Vec<(u64, String)> = (0..4_000).map(|n| (n, format!("row\n{}", n % 500))).collect();
        assert_eq!(distinct(), expected);
        eventually("all is committed", || {
            let lag = &running.report().sources[0].lag;
            running.report().restarts == 1 && lag.is_empty()
        });
        let count = results.len();
        directory.move_in("more.csv", "number,text\n4000,more\n");
        wait_for(&results, count + 1);
        eventually("it is committed", || running.report().sources[0].lag.is_empty());
        running.stop();
        let report = running.wait().unwrap();
        assert_eq!(report.restarts, 2);
        assert_eq!(results.len(), count + 1, "what was committed is not read again");
        assert_eq!(results.values().last(), Some(&(4_000, "more".to_owned())));
    }
}

#[test]
fn the_lag_is_in_bytes_until_all_is_done() {
    let directory = Directory::new();
    directory.write("a", "12345\n789");
    let (job, results) = telling(directory.source().settled_after(Duration::from_secs(3_600)));
    let running = job.start().unwrap();
    wait_for(&results, 1);
    eventually("the whole line is committed", || {
        let lag = &running.report().sources[0].lag;
        lag.len() == 1 && (lag[0].next, lag[0].end) == (6, 9) && lag[0].partition.ends_with("/a")
    });
    directory.append("a", "0\n");
    eventually("nothing is left", || running.report().sources[0].lag.is_empty());
    running.stop();
    running.wait().unwrap();
}

/// More files than are remembered: those that are gone are forgotten, and each is read once all the
/// same.
#[test]
fn thousands_of_files_come_and_go() {
    for trigger in EVERY {
        let directory = Directory::new();
        let source = directory.source().when_done(WhenDone::Delete).settled_after(Duration::from_millis(1));
        let (job, results) = telling(source);
        let running = job.trigger(trigger).workers(2).start().unwrap();
        for file in 0..3_000 {
            directory.move_in(&format!("{file}"), format!("{file}\n"));
        }
        eventually("all are done", || directory.names().is_empty());
        for file in 0..50 {
            directory.move_in(&format!("{file}"), "again\n");
        }
        eventually("all are done again", || directory.names().is_empty());
        running.stop();
        running.wait().unwrap();
        let mut told = results.values();
        told.sort_unstable();
        let mut expected: Vec<String> = (0..3_000).map(|file| format!("{file}@0 {file}")).collect();
        expected.extend((0..50).map(|file| format!("{file}@0 again")));
        expected.sort_unstable();
        assert_eq!(told, expected);
    }
}

/// Files that are gone may come back within ten minutes. When many are gone for longer, the engine
/// forgets their positions, as if they were partitions that are revoked.
#[test]
fn files_that_are_gone_for_ten_minutes_are_forgotten() {
    events::begin();
    let directory = Directory::new();
    let source = directory.source().when_done(WhenDone::Delete).settled_after(Duration::from_millis(50));
    let paced = Paced::start(source);
    for file in 0..1_100 {
        directory.move_in(&format!("{file}"), format!("{file}\n"));
    }
    let all_are_done = || {
        paced.look();
        directory.names().is_empty()
    };
    eventually("all are done", all_are_done);
    let path = directory.path.display().to_string();
    let are_forgotten = || events::was_logged(&["partitions revoked", &path, "lost=false"]);
    paced.clock.advance(Duration::from_secs(500));
    paced.look_around(&directory);
    assert!(!are_forgotten(), "they may come back");
    paced.clock.advance(Duration::from_secs(101));
    eventually("they are forgotten", || {
        paced.look();
        are_forgotten()
    });
    directory.move_in("7", "again\n");
    paced.look_until_told(1_101);
    eventually("it is done again", all_are_done);
    assert_eq!(paced.told().split_off(1_100), ["7@0 again"]);
}

#[test]
fn files_that_are_gone_are_read_to_their_end_while_they_are_held_open() {
    const FILES: usize = 200;
    for is_settled in [false, true] {
        let directory = Directory::new();
        let text = if is_settled { "one\n" } else { "one\ntw" };
        (0..FILES).for_each(|file| directory.write(&format!("{file:03}"), text));
        let paced = paced(&directory);
        paced.look_until(FILES);
        if is_settled {
            paced.settle();
        }
        paced.look_around(&directory);
        for file in 0..FILES {
            directory.append(&format!("{file:03}"), if is_settled { "two\n" } else { "o\n" });
            fs::remove_file(directory.at(&format!("{file:03}"))).unwrap();
        }
        paced.look_around(&directory);
        paced.settle();
        paced.look_around(&directory);
        let told = paced.told().split_off(FILES);
        let (cut, whole): (Vec<&String>, Vec<&String>) = told.iter().partition(|told| told.contains("@4!"));
        assert!(whole.iter().all(|told| told.ends_with("@4 two")), "{whole:?}");
        // At most half of them may be settled files; those of `look_around` are held open too. What
        // was appended to a file that was read to its end, and is not held, is not seen.
        let (held, reported) = if is_settled { (58..=64, 0) } else { (128..=128, FILES - 128) };
        assert!(held.contains(&whole.len()), "{} files were held open", whole.len());
        // The last step of the clock may have made one more look due. Where that falls between the
        // line and the removal, the line is seen and missed. All files that were not settled are
        // seen.
        let is_right = if is_settled { cut.len() <= 5 } else { cut.len() == reported };
        assert!(is_right, "{} of {reported}: {cut:?}", cut.len());
    }
}

/// All lines arrive at once, and their stage is slow: the last line waits for all others, but the
/// report said that it had waited only for its own batch.
#[test]
fn lines_that_wait_to_be_read_have_the_same_latency_under_every_trigger() {
    for trigger in EVERY {
        let directory = Directory::new();
        directory.write("a", "x\n".repeat(500));
        let source = directory.source().lines();
        let job = Job::new("behind", move |flow| {
            let slow = |_: &String| std::thread::sleep(Duration::from_millis(2));
            flow.source(source.clone())?.or_stop().inspect(slow).sink(millstream::discard())
        });
        let running = job.trigger(trigger).start().unwrap();
        eventually("all are through", || running.report().records_out() == 500);
        running.stop();
        let report = running.wait().unwrap();
        // 500 records of 2 ms each: the median record waits for half a second.
        assert!(report.sinks[0].latency.p50 > Duration::from_millis(300), "{trigger:?}: {report}");
    }
}
