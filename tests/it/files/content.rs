//! The contents of a file decide how it is read: compressed files are decompressed, holes of zeros
//! are skipped, and a file that is not text is reported once and stays.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use millstream::{ByteSize, Job, Restart, Trigger, collect};
use millstream_connectors::{WhenDone, format};

use super::{Directory, Paced, SETTLED_AFTER, paced, telling, told_by, wait_for};
use crate::support::{events, eventually};

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 0).unwrap()
}

fn sorted(mut told: Vec<String>) -> Vec<String> {
    told.sort_unstable();
    told
}

/// Random lines, which compress badly.
fn lines(count: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(7);
    (0..count).map(|line| format!("{line} {:016x}\n", rng.u64(..))).collect()
}

/// A log is copied and truncated (`copytruncate`) under a writer that does not append: the writer
/// continues at its old offset, behind a hole of zeros. Of ten lines nine were intact: the one
/// behind the hole had 9,900 zeros before it, and behind a hole of 3 MiB, which is longer than a
/// record may be, it was lost.
#[test]
fn the_lines_around_a_hole_of_any_length_are_whole() {
    for hole in [1, 2, 63, 64, 100, 9_900, 64 << 10, 3 << 20] {
        for most in [100, 1 << 20] {
            let zeros = "\0".repeat(hole);
            let directory = Directory::new();
            directory.write("begins", format!("{zeros}one\ntwo\n"));
            directory.write("between", format!("one\n{zeros}two\n{zeros}three"));
            directory.write("ends", format!("one\n{zeros}"));
            directory.write("only", &zeros);
            let told = sorted(told_by(directory.source().record_max(ByteSize(most))));
            let (second, third) = (4 + hole, 8 + 2 * hole);
            let expected = [
                format!("begins@{hole} one"),
                format!("begins@{second} two"),
                "between@0 one".to_owned(),
                format!("between@{second} two"),
                format!("between@{third} three"),
                "ends@0 one".to_owned(),
            ];
            assert_eq!(told, sorted(expected.to_vec()), "{hole} zeros, {most} bytes a line");
        }
    }
}

/// A log of half a gigabyte a second for two minutes, truncated once: reading its zeros would take
/// as long.
#[test]
#[cfg(target_os = "linux")]
fn a_hole_that_is_larger_than_a_disk_is_skipped() {
    const HOLE: u64 = 1 << 38;
    let directory = Directory::new();
    let mut log = fs::File::create(directory.at("log")).unwrap();
    log.seek(SeekFrom::Start(HOLE)).unwrap();
    log.write_all(b"one\ntwo\n").unwrap();
    log.seek(SeekFrom::Start(2 * HOLE)).unwrap();
    log.write_all(b"three\n").unwrap();
    log.set_len(3 * HOLE).unwrap();
    let expected = [(HOLE, "one"), (HOLE + 4, "two"), (2 * HOLE, "three")];
    let expected = expected.map(|(at, line)| format!("log@{at} {line}"));
    assert_eq!(told_by(directory.source()), expected);
    let paced = paced(&directory);
    paced.look_until(3);
    paced.look_around(&directory);
    log.seek(SeekFrom::Start(3 * HOLE)).unwrap();
    log.write_all(b"four\n").unwrap();
    paced.look_around(&directory);
    assert_eq!(paced.told()[3..], [format!("log@{} four", 3 * HOLE)]);
}

/// As after a power failure: the part before the hole is a record as it is, and the part after it
/// is another record.
#[test]
fn a_hole_within_a_line_ends_it() {
    for hole in [64, 9_900, 3 << 20] {
        let zeros = "\0".repeat(hole);
        let directory = Directory::new();
        directory.write("a", format!("one\nhalf{zeros}two\n"));
        directory.write("b.csv", format!("x\n1\n\"half{zeros}2\n"));
        assert_eq!(
            told_by(directory.source().matching("a")),
            ["a@0 one".to_owned(), "a@4 half".to_owned(), format!("a@{} two", 8 + hole)]
        );
        let results = collect();
        let (source, sink) = (directory.source().matching("*.csv").csv::<(String,)>(), results.clone());
        let job = Job::new("rows", move |flow| flow.source(source.clone())?.or_skip().map(|(x,)| x).sink(&sink));
        job.trigger(Trigger::AvailableNow).run().unwrap();
        assert_eq!(results.values(), ["1", "half", "2"]);
    }
}

#[test]
fn a_log_that_is_truncated_under_its_writer_is_read_on_after_the_hole_and_it_is_logged() {
    events::begin();
    for first in [4, 9_900, 3 << 20] {
        let directory = Directory::new();
        let mut writer = fs::File::create(directory.at("log")).unwrap();
        writer.write_all(format!("{}\n", "x".repeat(first - 1)).as_bytes()).unwrap();
        let paced = Paced::start(directory.source().settled_after(SETTLED_AFTER).record_max(ByteSize::mebibytes(4)));
        paced.look_until(1);
        paced.look_around(&directory);
        fs::File::options().write(true).open(directory.at("log")).unwrap().set_len(0).unwrap();
        writer.write_all(b"behind\nthe hole\n").unwrap();
        writer.seek(SeekFrom::Current(100)).unwrap();
        writer.write_all(b"and another\n").unwrap();
        paced.look_around(&directory);
        let told: Vec<String> = paced.told().split_off(1).into_iter().filter(|told| !told.contains('!')).collect();
        let expected = [(first, "behind"), (first + 7, "the hole"), (first + 116, "and another")];
        assert_eq!(told, expected.map(|(at, line)| format!("log@{at} {line}")), "a hole of {first}");
        let path = directory.at("log").display().to_string();
        assert!(events::was_logged(&["hole", &path, &format!("bytes={first}")]), "it is logged");
    }
}

/// `app-1.log.gz` was read as text: 51 malformed rows, none of which mentioned gzip, and the file
/// was deleted unread.
#[test]
fn compressed_files_are_recognized_by_content_and_not_by_name() {
    let directory = Directory::new();
    directory.write("a.gz", gzip("one\ntwo\n"));
    directory.write("b.txt", gzip("one\ntwo"));
    directory.write("c.zst", zstd("one\ntwo\n"));
    directory.write("d", zstd("one\ntwo"));
    directory.write("e.gz", "one\ntwo\n");
    // Several members, split within a line.
    directory.write("f.gz", [gzip("one\nt"), gzip(""), gzip("wo\n")].concat());
    directory.write("g.zst", [zstd("one\nt"), zstd(""), zstd("wo\n")].concat());
    directory.write("h.gz", gzip(""));
    let expected = ["a.gz", "b.txt", "c.zst", "d", "e.gz", "f.gz", "g.zst"];
    let expected: Vec<String> =
        expected.iter().flat_map(|name| [format!("{name}@0 one"), format!("{name}@4 two")]).collect();
    for when_done in [WhenDone::Keep, WhenDone::Delete] {
        assert_eq!(sorted(told_by(directory.source().when_done(when_done))), expected);
    }
    assert!(directory.names().is_empty(), "all of it was read");
}

#[test]
fn large_compressed_files_are_decompressed_under_every_trigger() {
    let text = lines(20_000);
    let directory = Directory::new();
    directory.write("a.gz", gzip(&text));
    directory.write("b.zst", zstd(&text));
    directory.write("c.csv.gz", gzip(&format!("number,text\n{}", text.replace(' ', ","))));
    let mut at = 0;
    let mut expected = Vec::new();
    for line in text.split_inclusive('\n') {
        expected.extend(["a.gz", "b.zst"].map(|name| format!("{name}@{at} {}", line.trim_end())));
        at += line.len();
    }
    let expected = sorted(expected);
    for memory in [ByteSize::mebibytes(64), ByteSize(64 << 10)] {
        let (job, results) = telling(directory.source().matching("[ab]*"));
        let report = job.trigger(Trigger::AvailableNow).workers(2).memory(memory).run().unwrap();
        assert!(sorted(results.values()) == expected);
        assert_eq!(report.fraction(), Some(1.0));
    }
    let results = collect();
    let (source, sink) = (directory.source().matching("c*").csv::<(u64, String)>(), results.clone());
    let job = Job::new("rows", move |flow| flow.source(source.clone())?.or_stop().map(|(n, _)| n).sink(&sink));
    let running = job.trigger(Trigger::micro_batch(Duration::from_millis(5))).start().unwrap();
    wait_for(&results, 20_000);
    eventually("nothing is left to do", || running.report().sources[0].lag.is_empty());
    running.stop();
    running.wait().unwrap();
    assert!(results.values() == (0..20_000).collect::<Vec<u64>>());
}

/// The committed offset of a compressed file counts decompressed bytes.
#[test]
fn a_restart_goes_on_within_a_compressed_file() {
    for pack in [gzip, zstd] {
        let directory = Directory::new();
        directory.write("a", pack(&format!("text\n{}", lines(20_000).replace(' ', ","))));
        let (results, may_fall) = (collect(), Arc::new(AtomicBool::new(false)));
        let (source, sink, falls) = (directory.source(), results.clone(), Arc::clone(&may_fall));
        let source = source.format(millstream_connectors::Csv::<(String, String)>::new().without_header());
        let job = Job::new("restart", move |flow| {
            let falls = Arc::clone(&falls);
            flow.source(source.clone())?
                .or_skip()
                .map(|(n, _)| n.parse::<u64>().unwrap())
                .inspect(move |n| {
                    std::thread::sleep(Duration::from_micros(if n % 64 == 0 { 500 } else { 0 }));
                    assert!(!(*n > 5_000 && falls.swap(false, SeqCst)), "on purpose");
                })
                .sink(&sink)
        });
        let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(5) };
        let job = job.restart(restart).memory(ByteSize(64 << 10)).checkpoint_every(Duration::from_millis(1));
        let running = job.start().unwrap();
        eventually("some of it is committed", || {
            running.report().sources[0].lag.first().is_some_and(|lag| lag.next > 1_000)
        });
        may_fall.store(true, SeqCst);
        eventually("all lines are read", || results.len() >= 20_000 && results.values().last() == Some(&19_999));
        let values = results.values();
        let mut distinct = values.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct == (0..20_000).collect::<Vec<u64>>());
        assert_eq!(running.report().restarts, 1);
        assert_eq!(values.iter().filter(|n| **n == 0).count(), 1, "what was committed is not read again");
        running.stop();
        running.wait().unwrap();
    }
}

/// A file that was read to its end is not read again by the next run, and what is appended to it
/// then is read.
#[test]
fn a_restart_after_a_compressed_file_reads_what_is_appended_to_it() {
    let directory = Directory::new();
    // One is longer decompressed than compressed, the other shorter.
    directory.write("long", gzip(&"the same line\n".repeat(1_000)));
    directory.write("short", gzip("one\n"));
    let results = collect();
    let (source, sink) = (directory.source().settled_after(Duration::from_millis(1)).lines(), results.clone());
    let job = Job::new("restart", move |flow| {
        flow.source(source.clone())?.or_stop().inspect(|line| assert_ne!(line, "fall")).sink(&sink)
    });
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(5) };
    let running = job.restart(restart).checkpoint_every(Duration::from_millis(1)).start().unwrap();
    wait_for(&results, 1_001);
    eventually("all is committed", || running.report().sources[0].lag.is_empty());
    directory.move_in("fall", "fall\n");
    eventually("the run has failed", || running.report().restarts > 0);
    fs::remove_file(directory.at("fall")).unwrap();
    eventually("it runs again", || {
        directory.move_in("next", "next\n");
        results.values().contains(&"next".to_owned())
    });
    directory.append("long", gzip("more\n"));
    directory.append("short", gzip("two\n"));
    eventually("what was appended is read", || {
        let values = results.values();
        values.contains(&"more".to_owned()) && values.contains(&"two".to_owned())
    });
    running.stop();
    running.wait().unwrap();
    let values = results.values();
    let count = |line: &str| values.iter().filter(|value| *value == line).count();
    assert_eq!((count("the same line"), count("one"), count("more"), count("two")), (1_000, 1, 1, 1));
}

#[test]
fn a_compressed_file_that_is_not_complete_is_waited_for() {
    let directory = Directory::new();
    let text = lines(20_000);
    let packed = gzip(&text);
    let (first, rest) = packed.split_at(packed.len() / 2);
    directory.write("tiny", &packed[..1]);
    directory.write("a.gz", first);
    let paced = paced(&directory);
    paced.look_around(&directory);
    paced.look_around(&directory);
    let told = paced.told();
    assert!(!told.iter().any(|told| told.contains('!') || told.starts_with("tiny")), "{:?}", told.last());
    directory.append("a.gz", rest);
    directory.append("tiny", &packed[1..]);
    paced.look_around(&directory);
    paced.settle();
    paced.look_until_told(40_000);
    paced.look_around(&directory);
    let told = paced.told();
    assert_eq!(told.len(), 40_000);
    let of_a: Vec<String> = told
        .iter()
        .filter(|told| told.starts_with('a'))
        .map(|told| told.split_once(' ').unwrap().1.to_owned() + "\n")
        .collect();
    assert!(of_a.concat() == text, "each line once, in order");
}

#[test]
fn a_truncated_or_damaged_compressed_file_is_reported_once_and_stays() {
    let text = lines(20_000);
    let damaged = |mut packed: Vec<u8>| {
        let at = packed.len() - 6;
        packed[at] ^= 0xff;
        packed
    };
    let (gz, zst) = (gzip(&text), zstd(&text));
    let files = [
        ("cut.gz", gz[..gz.len() / 2].to_vec()),
        ("cut.zst", zst[..zst.len() / 2].to_vec()),
        ("damaged.gz", damaged(gz.clone())),
        ("damaged.zst", damaged(zst.clone())),
        ("header.gz", gz[..5].to_vec()),
        ("trailer.gz", gz[..gz.len() - 3].to_vec()),
        ("stranger.gz", [&gz[..], b"and some text\n"].concat()),
    ];
    for bounded in [true, false] {
        let (directory, elsewhere) = (Directory::new(), Directory::new());
        files.iter().for_each(|(name, bytes)| directory.write(name, bytes));
        directory.write("good", gzip("good\n"));
        let source = directory.source().settled_after(Duration::from_millis(20));
        let (job, results) = telling(source.when_done(WhenDone::MoveTo(elsewhere.path.clone())));
        if bounded {
            job.trigger(Trigger::AvailableNow).run().unwrap();
        } else {
            let running = job.start().unwrap();
            let flaws = || results.values().iter().filter(|told| told.contains('!')).count();
            eventually("all of them are reported", || flaws() >= files.len() && elsewhere.names() == ["good"]);
            for later in ["later", "latest"] {
                directory.move_in(later, "x\n");
                eventually("it is read and moved", || elsewhere.names().contains(&later.to_owned()));
            }
            running.stop();
            running.wait().unwrap();
        }
        let told = results.values();
        for (name, _) in &files {
            let of_it: Vec<&String> = told.iter().filter(|told| told.starts_with(name)).collect();
            let flaws: Vec<&&String> = of_it.iter().filter(|told| told.contains('!')).collect();
            assert_eq!(flaws.len(), 1, "{name}: {flaws:?}");
            let packing = if name.ends_with("gz") { "gzip" } else { "zstd" };
            assert!(flaws[0].contains(packing), "{flaws:?}");
            let lines: Vec<&str> =
                of_it.iter().filter(|told| !told.contains('!')).map(|told| told.split_once(' ').unwrap().1).collect();
            assert!(text.lines().zip(&lines).all(|(line, told)| line == *told), "{name}: the lines are intact");
            assert!(directory.names().contains(&(*name).to_owned()), "{name} is still there");
        }
        assert!(told.contains(&"good@0 good".to_owned()));
    }
}

/// The file breaks in the middle of a line, whose beginning is in the malformed record: nothing
/// that was read is lost.
#[test]
fn the_record_in_which_a_compressed_file_breaks_is_reported() {
    let directory = Directory::new();
    // Stored without compression, so that each byte that is there can be read.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(b"one\ntwo and a half\n").unwrap();
    let packed = encoder.finish().unwrap();
    let text = packed.windows(3).position(|window| window == b"two").unwrap();
    directory.write("a", &packed[..text + 7]);
    let bad = collect();
    let (source, sink) = (directory.source().lines(), bad.clone());
    let job = Job::new("bad", move |flow| {
        let (good, bad) = flow.source(source.clone())?.partition_results();
        good.sink(millstream::discard())?;
        bad.sink(&sink)
    });
    job.trigger(Trigger::AvailableNow).run().unwrap();
    let bad = bad.values();
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!((bad[0].origin.as_ref().unwrap().offset.0, bad[0].bytes.as_deref()), (4, Some(&b"two and"[..])));
}

#[test]
fn a_file_that_is_not_text_is_reported_once_and_never_deleted() {
    let utf_16 = |text: &str, bytes: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(bytes).collect::<Vec<u8>>();
    let mut tar = [b"name.txt".as_slice(), &[0; 249], b"ustar\x0000", &[0; 247], b"some text\n"].concat();
    tar.resize(2_048, 0);
    let files: [(&str, Vec<u8>); 13] = [
        ("zip", [b"PK\x03\x04\x14\x00\x00\x00\x08\x00".as_slice(), &[b'x'; 50]].concat()),
        ("png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\n\n\n".to_vec()),
        ("utf-16-le", [vec![0xff, 0xfe], utf_16("one\ntwo\n", u16::to_le_bytes)].concat()),
        ("utf-16-be", [vec![0xfe, 0xff], utf_16("one\ntwo\n", u16::to_be_bytes)].concat()),
        ("utf-16-le-bare", utf_16("one\ntwo\nthree\n", u16::to_le_bytes)),
        ("utf-16-be-bare", utf_16("one\ntwo\nthree\n", u16::to_be_bytes)),
        ("bzip2", b"BZh91AY&SY\x01\x02\x03\n\x05\n".to_vec()),
        ("xz", b"\xfd7zXZ\x00\x00\x04\n\n".to_vec()),
        ("lz4", b"\x04\x22\x4d\x18\x60\x40\x82\n\n".to_vec()),
        ("parquet", b"PAR1\x15\x04\x15\x10\n\n\x00".to_vec()),
        ("avro", b"Obj\x01\x04\x16avro.schema\n\n".to_vec()),
        ("elf", b"\x7fELF\x02\x01\x01\x00\x00\x00\n\n\x03\x00".to_vec()),
        ("tar", tar.clone()),
    ];
    for bounded in [true, false] {
        let directory = Directory::new();
        files.iter().for_each(|(name, bytes)| directory.write(name, bytes));
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&tar).unwrap();
        directory.write("tgz", encoder.finish().unwrap());
        directory.write("good", "good\n");
        let source = directory.source().when_done(WhenDone::Delete).settled_after(Duration::from_millis(20));
        let (job, results) = telling(source);
        if bounded {
            job.trigger(Trigger::AvailableNow).run().unwrap();
        } else {
            let running = job.start().unwrap();
            eventually("all of them are reported", || results.len() > files.len() + 1);
            for later in ["later", "latest"] {
                directory.move_in(later, "x\n");
                eventually("it is read and deleted", || !directory.names().contains(&later.to_owned()));
            }
            running.stop();
            running.wait().unwrap();
        }
        let told = results.values();
        for name in files.iter().map(|(name, _)| *name).chain(["tgz"]) {
            let of_it: Vec<&String> = told.iter().filter(|told| told.starts_with(&format!("{name}@"))).collect();
            assert_eq!(of_it.len(), 1, "{name}: {of_it:?}");
            assert!(of_it[0].starts_with(&format!("{name}@0! the file is not text: it ")), "{of_it:?}");
            assert!(directory.names().contains(&name.to_owned()), "{name} is still there");
        }
        assert!(!directory.names().contains(&"good".to_owned()));
    }
}

#[test]
fn raw_files_are_read_as_they_are() {
    let directory = Directory::new();
    let packed = gzip("one\n");
    directory.write("a.gz", &packed);
    directory.write("b", b"\xff\xfea\n\0\0\0b\n");
    let results = collect();
    let (source, sink) = (directory.source().raw().format(format::Bytes), results.clone());
    let job = Job::new("raw", move |flow| flow.source(source.clone())?.or_stop().sink(&sink));
    job.trigger(Trigger::AvailableNow).run().unwrap();
    let mut values = results.values();
    values.sort_unstable();
    let mut expected: Vec<Vec<u8>> = packed.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    expected.retain(|line| !line.is_empty());
    expected.extend([b"\xff\xfea".to_vec(), b"\0\0\0b".to_vec()]);
    expected.sort_unstable();
    values.retain(|line| !line.is_empty());
    assert_eq!(values, expected);
}
