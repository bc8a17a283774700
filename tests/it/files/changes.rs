//! Files that change while they are read: torn, deleted, replaced, truncated. The clock moves only
//! when a test moves it.

use std::fs;
use std::io::Write;

use millstream::ByteSize;

use super::{Directory, Paced, SETTLED_AFTER, paced, told_by};
use crate::support::eventually;

#[test]
fn a_torn_line_waits_until_it_is_whole() {
    let directory = Directory::new();
    directory.write("a", "one\ntw");
    let paced = paced(&directory);
    paced.look_until(1);
    paced.look_around(&directory);
    assert_eq!(paced.told(), ["a@0 one"]);
    directory.append("a", "o, and th");
    paced.look_around(&directory);
    assert_eq!(paced.told(), ["a@0 one"]);
    directory.append("a", "ree\n");
    paced.look_around(&directory);
    assert_eq!(paced.told(), ["a@0 one", "a@4 two, and three"]);
}

#[test]
fn a_torn_line_is_taken_when_its_file_has_settled() {
    let directory = Directory::new();
    directory.write("a", "one\ntwo");
    let paced = paced(&directory);
    paced.look_until(1);
    paced.look_around(&directory);
    paced.settle();
    paced.look_around(&directory);
    assert_eq!(paced.told(), ["a@0 one", "a@4 two"]);
    // What is appended then is a record of its own.
    directory.append("a", " and a half\nthree\n");
    paced.look_around(&directory);
    assert_eq!(paced.told()[2..], ["a@7  and a half", "a@19 three"]);
}

#[test]
fn a_run_that_ends_takes_the_last_line_as_it_stands() {
    let directory = Directory::new();
    directory.write("a", "one\ntwo");
    directory.write("b", "");
    assert_eq!(told_by(directory.source()), ["a@0 one", "a@4 two"]);
}

#[test]
fn a_file_that_is_deleted_while_it_is_read_is_read_to_its_end() {
    let directory = Directory::new();
    directory.write("a", "one\ntwo");
    let paced = paced(&directory);
    paced.look_until(1);
    paced.look_around(&directory);
    fs::remove_file(directory.at("a")).unwrap();
    paced.look_around(&directory);
    assert_eq!(paced.told(), ["a@0 one"], "its writer may still append to it");
    paced.settle();
    paced.look_around(&directory);
    assert_eq!(paced.told(), ["a@0 one", "a@4 two"]);
    directory.move_in("a", "three\n");
    paced.look_around(&directory);
    assert_eq!(paced.told()[2..], ["a@0 three"], "a new file of the same name is another one");
}

#[test]
fn a_file_that_replaces_an_unfinished_one_is_read_whole_and_reported() {
    let directory = Directory::new();
    directory.write("a", "one\ntwo");
    let paced = paced(&directory);
    paced.look_until(1);
    paced.look_around(&directory);
    directory.move_in("a", "three\nfour\n");
    paced.look_around(&directory);
    paced.settle();
    paced.look_around(&directory);
    let (said, mut told): (Vec<_>, Vec<_>) = paced.told().into_iter().partition(|told| told.contains('!'));
    told.sort_unstable();
    assert_eq!(told, ["a@0 one", "a@0 three", "a@4 two", "a@6 four"], "all lines of both files");
    assert_eq!(said, ["a@4! the file was replaced after 4 bytes of it were read; it is read again from the beginning"]);
}

#[test]
fn a_file_that_replaces_a_finished_one_is_a_new_file() {
    let directory = Directory::new();
    directory.write("a", "one\ntwo\n");
    let paced = paced(&directory);
    paced.look_until(2);
    paced.settle();
    paced.look_around(&directory);
    directory.move_in("a", "three\n");
    paced.look_around(&directory);
    assert_eq!(paced.told(), ["a@0 one", "a@4 two", "a@0 three"]);
    // Overwritten in place, and shorter.
    paced.settle();
    paced.look_around(&directory);
    directory.write("a", "4\n");
    paced.look_until_told(4);
    paced.look_around(&directory);
    assert_eq!(paced.told()[3..], ["a@0 4"]);
}

#[test]
fn a_truncated_file_is_reported_once_and_read_again() {
    let directory = Directory::new();
    directory.write("a", "one\ntwo\nthree\n");
    let paced = paced(&directory);
    paced.look_until(3);
    paced.look_around(&directory);
    fs::File::options().write(true).open(directory.at("a")).unwrap().set_len(4).unwrap();
    paced.look_until_told(5);
    paced.look_around(&directory);
    let mut told = paced.told().split_off(3);
    told.sort_unstable();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "a@0 one");
    assert!(told[1].starts_with("a@14! the file was truncated"), "{told:?}");
    directory.append("a", "again\n");
    paced.look_around(&directory);
    assert_eq!(paced.told().last().unwrap(), "a@4 again");
}

#[test]
fn a_record_that_is_too_long_and_still_grows_is_reported_once_and_skipped() {
    let directory = Directory::new();
    let source = directory.source().settled_after(SETTLED_AFTER).record_max(ByteSize(10));
    directory.write("a", "one\nmuch too long");
    let paced = Paced::start(source);
    paced.look_until_told(2);
    for _ in 0..3 {
        directory.append("a", ", and longer".repeat(20_000));
        paced.look_around(&directory);
    }
    directory.append("a", "\ntwo\nagain too long");
    paced.look_until_told(4);
    paced.settle();
    paced.look_around(&directory);
    eventually("all of it is done", || {
        paced.look();
        paced.running.report().sources[0].lag.is_empty()
    });
    // It has settled, so that what follows is another record.
    directory.append("a", "three\n");
    paced.look_until_told(5);
    let (two, again) = (4 + 13 + 3 * 240_000 + 1, 4 + 13 + 3 * 240_000 + 5);
    let flaw = |at: usize| format!("a@{at}! the record is longer than 10 bytes");
    let expected = ["a@0 one".to_owned(), flaw(4), format!("a@{two} two"), flaw(again)];
    assert_eq!(paced.told()[..4], expected);
    assert_eq!(paced.told()[4..], [format!("a@{} three", again + 14)]);
}

#[test]
fn a_file_that_is_moved_away_and_back_is_read_on_where_it_was() {
    let directory = Directory::new();
    directory.write("a", "one\n");
    let paced = paced(&directory);
    paced.look_until(1);
    paced.look_around(&directory);
    fs::rename(directory.at("a"), directory.at(".away")).unwrap();
    paced.look_around(&directory);
    super::append(&directory.at(".away"), "two\n");
    fs::rename(directory.at(".away"), directory.at("a")).unwrap();
    paced.look_around(&directory);
    assert_eq!(paced.told(), ["a@0 one", "a@4 two"]);
}

#[test]
fn a_directory_that_disappears_is_waited_for() {
    let directory = Directory::new();
    let within = directory.at("within");
    fs::create_dir(&within).unwrap();
    super::append(&within.join("a"), "one\n");
    let source = millstream_connectors::files(&within).look_every(std::time::Duration::from_millis(5));
    let paced = Paced::start(source);
    paced.look_until(1);
    fs::rename(&within, directory.at("elsewhere")).unwrap();
    (0..1_000).for_each(|_| paced.look());
    fs::rename(directory.at("elsewhere"), &within).unwrap();
    super::append(&within.join("a"), "two\n");
    assert_eq!(paced.look_until(2), ["a@0 one", "a@4 two"]);
    // Another directory in its place has other files.
    fs::remove_dir_all(&within).unwrap();
    (0..1_000).for_each(|_| paced.look());
    fs::create_dir(&within).unwrap();
    super::append(&within.join("b"), "three\n");
    assert_eq!(paced.look_until(3)[2], "b@0 three");
    paced.running.stop();
}

#[test]
fn a_log_that_is_rotated_is_read_for_as_long_as_it_is_written() {
    for settles_before in [false, true] {
        let directory = Directory::new();
        directory.write("a.log", "one\n");
        let mut daemon = fs::OpenOptions::new().append(true).open(directory.at("a.log")).unwrap();
        let paced = Paced::start(directory.source().matching("[al]*[gk-]*").settled_after(SETTLED_AFTER));
        paced.look_until(1);
        if settles_before {
            paced.settle();
            paced.look_around(&directory);
        }
        // The daemon is told to reopen its log, and writes to the old one until it does.
        daemon.write_all(b"rotating\nand then so").unwrap();
        fs::rename(directory.at("a.log"), directory.at(".a.1")).unwrap();
        paced.look_around(&directory);
        daemon.write_all(b"me more\n").unwrap();
        paced.look_around(&directory);
        directory.write("a.log", "another\n");
        paced.look_around(&directory);
        let mut told = paced.told();
        told.sort_unstable();
        told.retain(|told| !told.contains('!'));
        assert_eq!(told, ["a.log@0 another", "a.log@0 one", "a.log@13 and then some more", "a.log@4 rotating"]);
    }
}

/// Its inode is the same, and it is not shorter.
#[test]
fn a_file_that_is_overwritten_in_place_is_read_again() {
    for text in ["uno\ndos\n", "uno\ndos\ntres\n"] {
        let directory = Directory::new();
        let overwrite = |text: &str| {
            let mut file = fs::OpenOptions::new().write(true).open(directory.at("a")).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        directory.write("a", "one\ntwo\n");
        let paced = paced(&directory);
        paced.look_until(2);
        paced.settle();
        paced.look_around(&directory);
        // It was read and had settled, so no record is malformed.
        overwrite(text);
        paced.look_around(&directory);
        let told = paced.told();
        assert_eq!(told[2..4], ["a@0 uno", "a@4 dos"], "{told:?}");
        assert_eq!(told.len(), 2 + text.lines().count(), "{told:?}");
        overwrite("1\n2\n3\n4\n5\n6\n7\n8\n");
        paced.look_around(&directory);
        let told = &paced.told()[2 + text.lines().count()..];
        let (flaw, lines) = told.split_first().unwrap();
        assert!(flaw.contains("! the file was overwritten after"), "{told:?}");
        assert_eq!((lines.len(), lines[0].as_str()), (8, "a@0 1"), "{told:?}");
    }
}
