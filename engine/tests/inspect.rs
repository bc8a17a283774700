//! The command `millstream state`, on directories that jobs have written, and beside a job that
//! runs. Whatever is asked, the directory stays as it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use millstream::{Flow, Job, Result, channel, discard, rows};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct Tally {
    count: u64,
    last: Option<Last>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
enum Last {
    Small(u64),
    Large { number: u64 },
}

fn tallies(flow: &Flow<'_>, numbers: u64) -> Result<()> {
    let numbers = flow.source(rows(0..numbers).partitions(1))?;
    numbers.clone().key_by(|n| format!("digit-{}", n % 10)).count().updates().sink(discard())?;
    numbers.clone().global().approx_count_distinct(|n| *n).updates().named("different").sink(discard())?;
    let tally = |tally: &mut Tally, n: u64| {
        tally.count += 1;
        tally.last = Some(if n < 100 { Last::Small(n) } else { Last::Large { number: n } });
    };
    numbers.key_by(|n| (n % 2 == 0, n / 100)).aggregate(Tally::default, tally).updates().sink(discard())
}

/// Reads so many numbers, beginning where the run before has ended, and leaves a checkpoint.
fn run(directory: &Path, numbers: u64) {
    let job = Job::new("tallies", move |flow| tallies(flow, numbers));
    job.checkpoints(directory).checkpoint_every(HOUR).run().expect("nothing stops it");
}

/// A directory with a checkpoint of 95 numbers, and one of 105.
fn two_runs() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("there is room");
    run(directory.path(), 95);
    run(directory.path(), 105);
    directory
}

struct Said {
    status: i32,
    out: String,
    error: String,
}

impl Said {
    #[track_caller]
    fn success(self) -> String {
        assert_eq!((self.status, self.error.as_str()), (0, ""), "{}", self.out);
        self.out
    }

    #[track_caller]
    fn lines(self) -> Vec<Value> {
        self.success().lines().map(|line| serde_json::from_str(line).expect("it is JSON")).collect()
    }

    #[track_caller]
    fn failure(self, status: i32, parts: &[&str]) {
        assert_eq!(self.status, status, "{}{}", self.out, self.error);
        parts.iter().for_each(|part| assert!(self.error.contains(part), "{part} is not in: {}", self.error));
    }
}

fn ask(directory: &Path, flags: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .arg("state")
        .arg(directory)
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .expect("it was built");
    let text = |bytes| String::from_utf8(bytes).expect("it is text");
    Said {
        status: output.status.code().expect("it ends by itself"),
        out: text(output.stdout),
        error: text(output.stderr),
    }
}

/// All files with what they hold and when they were written.
fn files(directory: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let read = || {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let file = (fs::read(entry.path())?, entry.metadata()?.modified()?);
            files.insert(entry.file_name().into_string().expect("it is text"), file);
        }
        Ok::<_, std::io::Error>(files)
    };
    read().expect("it can be read")
}

/// Asks, and checks that the directory is as it was.
#[track_caller]
fn ask_only(directory: &Path, flags: &[&str]) -> Said {
    let before = files(directory);
    let said = ask(directory, flags);
    assert!(files(directory) == before, "{flags:?} has changed the directory");
    said
}

/// The numbers of the kept checkpoints, the newest first.
fn checkpoints(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("it can be read");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let number = |name: String| {
        let digits = name.strip_prefix("manifest-").filter(|digits| digits.len() == 20)?;
        digits.parse().ok()
    };
    let mut numbers: Vec<u64> = names.filter_map(number).collect();
    numbers.sort_unstable_by(|one, other| other.cmp(one));
    numbers.iter().map(u64::to_string).collect()
}

/// The name of the newest file that holds state.
fn newest_log(directory: &Path) -> String {
    files(directory).into_keys().rfind(|name| name.starts_with("log-")).expect("there is state")
}

#[test]
fn checkpoints_positions_and_sizes_are_listed() {
    let directory = two_runs();
    let numbers = checkpoints(directory.path());
    assert!(numbers.len() >= 2);
    let out = ask_only(directory.path(), &[]).success();
    let words: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    let of = |first: &str| words.iter().find(|line| line.first() == Some(&first)).unwrap_or_else(|| panic!("{out}"));
    for number in &numbers {
        assert_eq!(of(number)[2], "tallies", "{out}");
    }
    let listed: Vec<&str> = words[1..=numbers.len()].iter().map(|line| line[0]).collect();
    assert_eq!(listed, numbers, "the newest first");
    assert!(out.contains(&format!("operators in checkpoint {}", numbers[0])), "{out}");
    assert_eq!(of("rows").last(), Some(&"105"), "{out}");
    let (count, aggregate, different) = (of("count"), of("aggregate"), of("different"));
    assert_eq!([count[1], aggregate[1], different[1]], ["10", "4", "1"], "{out}");
    assert_eq!(count[3..], ["0", "alloc::string::String", "u64"], "{out}");
    assert!(different[2].parse::<u64>().unwrap() > count[2].parse().unwrap(), "{out}");
    // Of an older checkpoint, on demand.
    let oldest = numbers.last().unwrap();
    let out = ask_only(directory.path(), &["--checkpoint", oldest]).success();
    assert!(out.contains(&format!("operators in checkpoint {oldest}")), "{out}");
}

#[test]
fn state_is_shown_by_key_by_prefix_and_as_a_whole() {
    let directory = two_runs();
    let show = |flags: &[&str]| ask_only(directory.path(), flags);
    let count = |digit: u64, count: u64| json!({ "key": format!("digit-{digit}"), "state": count });
    let all: Vec<Value> = (0..10).map(|digit| count(digit, 10 + u64::from(digit < 5))).collect();
    assert_eq!(show(&["--show", "count"]).lines(), all);
    assert_eq!(show(&["--show", "count", "--key", "digit-3"]).lines(), [count(3, 11)]);
    assert_eq!(show(&["--show", "count", "--key", "\"digit-7\""]).lines(), [count(7, 10)]);
    for other in ["digit", "null", "-5"] {
        assert_eq!(show(&["--show", "count", "--key", other]).lines(), [json!(null); 0]);
    }
    assert_eq!(show(&["--show", "count", "--prefix", "digit-"]).lines(), all);
    assert_eq!(show(&["--show", "count", "--prefix", "digit-9"]).lines(), [count(9, 10)]);
    let first = checkpoints(directory.path()).pop().unwrap();
    let of_first = show(&["--show", "count", "--key", "digit-3", "--checkpoint", &first]);
    assert_eq!(of_first.lines(), [count(3, 10)]);

    let small = json!({ "key": [true, 0], "state": { "count": 50, "last": { "Small": 98 } } });
    let large = json!({ "key": [true, 1], "state": { "count": 3, "last": { "Large": { "number": 104 } } } });
    assert_eq!(show(&["--show", "aggregate", "--prefix", "[true"]).lines(), [small.clone(), large]);
    assert_eq!(show(&["--show", "aggregate", "--key", " [true, 0]"]).lines(), [small]);

    let said = show(&["--show", "different"]);
    assert!(said.error.contains("Distinct` are not known"), "{}", said.error);
    let line: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((said.status, &line["key"]), (0, &json!(null)));
    let state = line["state"].as_str().unwrap();
    assert!(!state.is_empty() && state.bytes().all(|byte| byte.is_ascii_hexdigit()), "{state}");

    show(&["--show", "total"]).failure(1, &["no state of `total`", "`count`", "`aggregate`", "`different`"]);
    show(&["--show", "count", "--checkpoint", "77"]).failure(1, &["checkpoint 77 is not in", &first]);
}

#[test]
fn what_has_changed_between_two_checkpoints_is_shown() {
    let directory = two_runs();
    let numbers = checkpoints(directory.path());
    let (first, last) = (numbers.last().unwrap().as_str(), numbers[0].as_str());
    let out = ask_only(directory.path(), &["--diff", first, last]).success();
    let has = |line: &str| out.lines().any(|other| other.split_whitespace().eq(line.split_whitespace()));
    assert!(has("operator added removed changed"), "{out}");
    assert!(has("aggregate 2 0 2") && has("count 0 0 10") && has("different 0 0 1"), "{out}");
    assert!(has("source partition from to") && has("rows rows/0 of 1 95 105"), "{out}");
    let diff = |flags: &[&str]| {
        let flags: Vec<&str> = ["--diff"].iter().chain(flags).copied().collect();
        ask_only(directory.path(), &flags).lines()
    };
    let after = json!({ "count": 2, "last": { "Large": { "number": 103 } } });
    let added = json!({ "key": [false, 1], "change": "added", "after": after });
    assert_eq!(diff(&[first, last, "--show", "aggregate", "--key", "[false,1]"]), [added]);
    let removed = json!({ "key": [false, 1], "change": "removed", "before": after });
    assert_eq!(diff(&[last, first, "--show", "aggregate", "--key", "[false,1]"]), [removed]);
    let changed = json!({ "key": "digit-0", "change": "changed", "before": 10, "after": 11 });
    let all = diff(&[first, last, "--show", "count"]);
    assert_eq!((all.len(), &all[0]), (10, &changed));
    assert_eq!(diff(&[last, last, "--show", "count"]), [json!(null); 0]);
    ask_only(directory.path(), &["--diff", first, last, "--show", "total"]).failure(1, &["no state of `total`"]);
}

#[test]
fn every_byte_is_verified_and_a_damaged_file_is_named() {
    let directory = two_runs();
    let path = directory.path();
    let numbers = checkpoints(path);
    let out = ask_only(path, &["--verify"]).success();
    for number in &numbers {
        assert!(out.contains(&format!("checkpoint {number} is whole")), "{out}");
    }
    let name = newest_log(path);
    let whole = fs::read(path.join(&name)).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 20).chain([whole.len() - 1]) {
        let mut changed = whole.clone();
        changed[at] ^= 4;
        fs::write(path.join(&name), &changed).unwrap();
        let said = ask_only(path, &["--verify"]);
        assert!(
            said.out.contains(&format!("checkpoint {} is damaged\n  `{name}`: ", numbers[0])),
            "{at}: {}",
            said.out
        );
        said.failure(1, &["checkpoints are damaged"]);
    }
    ask_only(path, &["--show", "count"]).failure(1, &["is damaged", &name]);
    // The list says what it can.
    let said = ask_only(path, &[]);
    assert!(said.out.contains("tallies"), "{}", said.out);
    said.failure(1, &["is damaged", &name]);
    fs::write(path.join(&name), &whole[..whole.len() - 1]).unwrap();
    ask_only(path, &["--verify", "--checkpoint", &numbers[0]]).failure(1, &[&name, "bytes"]);
    fs::remove_file(path.join(&name)).unwrap();
    ask_only(path, &["--verify", "--checkpoint", &numbers[0]]).failure(1, &[&name, "it is missing"]);
    fs::write(path.join(&name), &whole).unwrap();
    ask_only(path, &["--verify"]).success();

    let manifest = format!("manifest-{:0>20}", numbers[0]);
    fs::write(path.join(&manifest), b"not a manifest").unwrap();
    let said = ask_only(path, &[]);
    assert!(said.out.contains(&format!("checkpoint {} is damaged", numbers[0])), "{}", said.out);
    said.failure(1, &[&manifest]);
    let said = ask_only(path, &["--verify"]);
    assert!(said.out.contains(&manifest) && said.out.contains("is whole"), "{}", said.out);
    said.failure(1, &["checkpoints are damaged"]);
    ask_only(path, &["--show", "count", "--checkpoint", &numbers[1]]).success();
    // What can be shown is shown, and the status says the rest.
    let said = ask_only(path, &["--checkpoint", &numbers[1]]);
    assert!(said.out.contains("operators in checkpoint"), "{}", said.out);
    said.failure(1, &["1 of 2 checkpoints are damaged"]);
}

#[test]
fn a_directory_without_checkpoints_is_said_to_have_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    for flags in [&[][..], &["--verify"], &["--show", "count"], &["--diff", "1", "2"]] {
        ask_only(path, flags).failure(1, &["there is no checkpoint in", path.to_str().unwrap()]);
    }
    fs::write(path.join("notes.txt"), "mine").unwrap();
    ask_only(path, &[]).failure(1, &["there is no checkpoint in"]);
    ask(&path.join("notes.txt"), &[]).failure(1, &["cannot read the directory", "notes.txt"]);
    ask_only(path, &[]).failure(1, &[]);
    ask(&path.join("missing"), &[]).failure(1, &["cannot read the directory", "missing"]);
    assert!(!path.join("missing").exists());
}

#[test]
fn a_wrong_flag_is_status_2() {
    let directory = tempfile::tempdir().unwrap();
    for flags in [
        &["--all"][..],
        &["--key", "1"],
        &["--verify", "--show", "count"],
        &["--diff", "1"],
        &["--show", "count", "--key", "1", "--prefix", "2"],
        &["--checkpoint", "newest"],
    ] {
        ask(directory.path(), flags).failure(2, &["--help"]);
    }
}

/// It keeps the lock of the directory, appends to its log, and removes manifests and files.
#[test]
fn a_directory_is_looked_at_while_its_job_runs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (numbers, source) = channel::<u64>(1000);
    let job = Job::new("running", move |flow| {
        let numbers = flow.source(&source)?;
        // Little of it stays true, so that files are merged and removed.
        numbers
            .key_by(|n| n % 4)
            .aggregate(Vec::new, |state: &mut Vec<u8>, n| *state = vec![n as u8; 60_000])
            .updates()
            .sink(discard())
    });
    let running = job.checkpoints(path).checkpoint_every(Duration::from_millis(1)).start().unwrap();
    let feeder = std::thread::spawn(move || {
        // Until the job is stopped.
        (0..).find(|n| numbers.blocking_send(*n).is_err())
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    while checkpoints(path).is_empty() {
        assert!(Instant::now() < deadline, "there is no checkpoint");
        std::thread::sleep(Duration::from_millis(1));
    }
    let first = checkpoints(path);
    let mut shown = 0;
    for _ in 0..10 {
        let out = ask(path, &[]).success();
        assert!(out.contains("operators in checkpoint"), "{out}");
        assert!(ask(path, &["--verify"]).success().contains("is whole"));
        for line in ask(path, &["--show", "aggregate"]).lines() {
            // All of a state is of one record.
            let state: Vec<u64> = serde_json::from_value(line["state"].clone()).unwrap();
            assert!(state.len() == 60_000 && state.iter().all(|byte| *byte == state[0]));
            shown += 1;
        }
    }
    assert!(shown > 0);
    running.stop();
    let report = running.wait().unwrap();
    drop(feeder.join());
    assert_ne!(checkpoints(path), first, "the job has written checkpoints meanwhile\n{report}");
    assert!(files(path).keys().any(|name| name.starts_with("image-")), "files were merged");
    // The last one is asked for after all of that.
    ask_only(path, &["--verify"]).success();
}
