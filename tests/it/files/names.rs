//! Which names are read, in which order, and how deep.

use std::fs;
use std::time::Duration;

use millstream::{Job, Restart, Trigger};
use millstream_connectors::FileOrder;

use super::{Directory, Paced, SETTLED_AFTER, paced, telling, told_by, wait_for};
use crate::support::eventually;

const TEMPORARY: [&str; 10] = [
    "a.csv.part",
    "a.csv.PART",
    "a.csv.filepart",
    "a.csv.tmp",
    "a.csv._COPYING_",
    "a.csv~",
    "a.csv.crdownload",
    ".a.csv",
    "_a.csv",
    ".a.csv.tmp",
];

/// A file under its uploader's temporary name was read while it was uploaded, and read again under
/// its final name.
#[test]
fn a_file_is_read_once_and_under_its_final_name_after_its_upload() {
    for temporary in TEMPORARY {
        let directory = Directory::new();
        directory.write(temporary, "one\ntw");
        directory.write("b.csv", "b\n");
        let paced = paced(&directory);
        paced.look_until(1);
        paced.look_around(&directory);
        directory.append(temporary, "o\n");
        fs::rename(directory.at(temporary), directory.at("a.csv")).unwrap();
        paced.look_around(&directory);
        let mut told = paced.told();
        told.sort_unstable();
        assert_eq!(told, ["a.csv@0 one", "a.csv@4 two", "b.csv@0 b"], "from {temporary}");
    }
}

/// With `include_temporary` a file is read while it is uploaded, and not again when it gets its
/// final name, also across a restart.
#[test]
fn a_file_that_is_read_under_a_temporary_name_is_not_read_again_under_its_final_name() {
    for temporary in TEMPORARY {
        let directory = Directory::new();
        directory.write(temporary, "one\ntw");
        let paced = Paced::start(directory.source().settled_after(SETTLED_AFTER).include_temporary());
        paced.look_until(1);
        paced.look_around(&directory);
        fs::rename(directory.at(temporary), directory.at("a.csv")).unwrap();
        paced.look_around(&directory);
        directory.append("a.csv", "o\nthree\n");
        paced.look_around(&directory);
        // The files of `look_around` have such names too, before they are moved in.
        let told: Vec<String> = paced.told().into_iter().filter(|told| !told.starts_with(".unfinished")).collect();
        let told: Vec<&str> = told.iter().map(|told| told.split_once('@').unwrap().1).collect();
        assert_eq!(told, ["0 one", "4 two", "8 three"], "from {temporary}");
    }
    let directory = Directory::new();
    directory.write("a.part", "one\n");
    let results = millstream::collect();
    let (source, sink) = (directory.source().include_temporary().lines(), results.clone());
    let job = Job::new("restart", move |flow| {
        flow.source(source.clone())?.or_stop().inspect(|line| assert_ne!(line, "fall")).sink(&sink)
    });
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(5) };
    let running = job.restart(restart).checkpoint_every(Duration::from_millis(1)).start().unwrap();
    wait_for(&results, 1);
    eventually("it is committed", || running.report().sources[0].lag.is_empty());
    fs::rename(directory.at("a.part"), directory.at("a")).unwrap();
    directory.move_in("fall", "fall\n");
    eventually("the run has failed", || running.report().restarts > 0);
    fs::remove_file(directory.at("fall")).unwrap();
    directory.append("a", "two\n");
    eventually("the rest of it is read", || results.values().contains(&"two".to_owned()));
    running.stop();
    running.wait().unwrap();
    assert_eq!(results.values(), ["one", "two"]);
}

#[test]
fn names_may_be_ordered_by_their_numbers() {
    let directory = Directory::new();
    // The second number is longer than any integer, and its leading zeros do not count.
    let names = ["log-2", "log-00000000000000000000000000003", "log-10", "log-10a", "log-100", "logs-1", "log-9"];
    names.iter().for_each(|name| directory.write(name, "x\n"));
    let order = |order| -> Vec<String> {
        let told = told_by(directory.source().order(order));
        told.iter().map(|told| told.split_once('@').unwrap().0.to_owned()).collect()
    };
    let expected = ["log-2", "log-00000000000000000000000000003", "log-9", "log-10", "log-10a", "log-100", "logs-1"];
    assert_eq!(order(FileOrder::NameAndNumber), expected);
    assert_eq!(order(FileOrder::Name)[..3], ["log-00000000000000000000000000003", "log-10", "log-100"]);
}

#[test]
fn subdirectories_are_entered_when_the_glob_says_so() {
    let directory = Directory::new();
    for (within, name) in
        [("", "a.csv"), ("x", "b.csv"), ("x", "b.txt"), ("x/y", "c.csv"), (".h", "d.csv"), ("_temporary/0", "e.csv")]
    {
        fs::create_dir_all(directory.at(within)).unwrap();
        fs::write(directory.at(within).join(name), format!("{name}\n")).unwrap();
    }
    // A link that forms a cycle is not entered.
    std::os::unix::fs::symlink(&directory.path, directory.at("x/circle")).unwrap();
    let told = |glob: &str| {
        let mut told = told_by(directory.source().matching(glob));
        told.sort_unstable();
        told
    };
    assert_eq!(told("*.csv"), ["a.csv@0 a.csv"]);
    assert_eq!(told("**/*.csv"), ["a.csv@0 a.csv", "b.csv@0 b.csv", "c.csv@0 c.csv"]);
    assert_eq!(told("**"), ["a.csv@0 a.csv", "b.csv@0 b.csv", "b.txt@0 b.txt", "c.csv@0 c.csv"]);
    assert_eq!(told("x/*.csv"), ["b.csv@0 b.csv"]);
    assert_eq!(told("x/**/*.csv"), ["b.csv@0 b.csv", "c.csv@0 c.csv"]);
    let mut hidden = told_by(directory.source().matching("**/*.csv").include_temporary());
    hidden.sort_unstable();
    assert_eq!(hidden.len(), 5, "{hidden:?}");
}

#[test]
fn files_in_subdirectories_are_followed_ordered_and_finished() {
    let (directory, elsewhere) = (Directory::new(), Directory::new());
    for day in ["2", "10"] {
        fs::create_dir(directory.at(day)).unwrap();
        directory.write(&format!("{day}/same"), format!("{day}\n"));
    }
    let source = directory.source().matching("**").order(FileOrder::NameAndNumber);
    let when_done = millstream_connectors::WhenDone::MoveTo(elsewhere.path.clone());
    let source = source.when_done(when_done).settled_after(Duration::from_millis(1));
    let (job, results) = telling(source.clone());
    let running = job.start().unwrap();
    let values = wait_for(&results, 2);
    assert_eq!(values, ["same@0 2", "same@0 10"]);
    fs::create_dir_all(directory.at("11/noon")).unwrap();
    directory.move_in("11/noon/same", "11\n");
    wait_for(&results, 3);
    eventually("all three are moved", || elsewhere.names() == ["same", "same.1", "same.2"]);
    running.stop();
    running.wait().unwrap();
    // A directory that disappears is not a reason to fail.
    fs::remove_dir_all(directory.at("11")).unwrap();
    let (job, results) = telling(source);
    job.trigger(Trigger::AvailableNow).run().unwrap();
    assert!(results.is_empty());
}

/// The target for done files may be inside a directory that is read at any depth: the files in it
/// are not read again.
#[test]
fn files_that_are_moved_into_a_subdirectory_are_not_read_again() {
    let directory = Directory::new();
    directory.write("a", "one\n");
    let when_done = millstream_connectors::WhenDone::MoveTo(directory.at("done"));
    let source = directory.source().matching("**").when_done(when_done);
    assert_eq!(told_by(source.clone()), ["a@0 one"]);
    assert!(told_by(source).is_empty());
    assert!(directory.at("done/a").exists());
}
