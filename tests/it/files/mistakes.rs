//! Mistakes are reported: at start when they can be known then, and as data when they show later.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use millstream::{ByteSize, ErrorKind, Job, Trigger, collect};
use millstream_connectors::{Files, WhenDone, files};
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_uid;

use super::{Directory, paced, telling, told_by};
use crate::support::eventually;

#[track_caller]
fn refused(source: Files, kind: ErrorKind, says: &str) {
    let error = telling(source).0.start().expect_err("it cannot start");
    assert_eq!(error.kind(), kind, "{error:#}");
    assert!(format!("{error:#}").contains(says), "{error:#} does not say {says}");
}

#[test]
fn mistakes_at_start_are_errors() {
    let directory = Directory::new();
    directory.write("file", "");
    refused(files(directory.at("nowhere")), ErrorKind::NotFound, "nowhere");
    refused(files(directory.at("file")), ErrorKind::NotFound, "file");
    refused(directory.source().matching("a["), ErrorKind::Config, "`a[`");
    refused(directory.source().record_max(ByteSize(0)), ErrorKind::Config, "`record_max`");
    refused(directory.source().look_every(Duration::ZERO), ErrorKind::Config, "`look_every`");
    refused(directory.source().settled_after(Duration::ZERO), ErrorKind::Config, "`settled_after`");
    let to_itself = WhenDone::MoveTo(directory.path.clone());
    refused(directory.source().when_done(to_itself), ErrorKind::Config, "the directory being read");
    let to_a_file = WhenDone::MoveTo(directory.at("file"));
    refused(directory.source().when_done(to_a_file), ErrorKind::NotFound, "cannot move");
}

#[test]
fn a_file_that_cannot_be_read_is_reported_once_and_tried_again() {
    let directory = Directory::new();
    symlink(directory.at(".later"), directory.at("link")).unwrap();
    drop(UnixListener::bind(directory.at("socket")).unwrap());
    directory.write("good", "good\n");
    let paced = paced(&directory);
    paced.look_until(3);
    paced.look_around(&directory);
    let mut told = paced.told();
    told.sort_unstable();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0], "good@0 good");
    assert!(told[1].starts_with("link@0! cannot read the file"), "{told:?}");
    assert_eq!(told[2], "socket@0! cannot read the file: not a regular file");
    directory.write(".later", "came later\n");
    paced.look_around(&directory);
    assert_eq!(paced.told()[3..], ["link@0 came later"]);
}

/// Root may read everything, so the job runs as another user: a thread belongs to the user of the
/// thread that started it.
#[test]
fn a_file_without_permission_is_read_once_permission_is_given() {
    let directory = Directory::new();
    let allow = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    allow(&directory.path, 0o755);
    directory.write(".closed", "was closed\n");
    allow(&directory.at(".closed"), 0o000);
    fs::rename(directory.at(".closed"), directory.at("closed")).unwrap();
    directory.write("good", "good\n");
    let another_user = Uid::from_raw(65_534);
    let start = || {
        if geteuid().is_root() {
            set_thread_uid(another_user).unwrap();
        }
        paced(&directory)
    };
    let paced = thread::scope(|scope| scope.spawn(start).join().unwrap());
    paced.look_until(2);
    paced.look_around(&directory);
    let mut told = paced.told();
    told.sort_unstable();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("closed@0! cannot read the file: Permission denied"), "{told:?}");
    allow(&directory.at("closed"), 0o644);
    paced.look_around(&directory);
    assert_eq!(paced.told()[2..], ["closed@0 was closed"]);
}

#[test]
fn a_bounded_run_reports_what_it_could_not_read() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let directory = Directory::new();
    symlink("nowhere", directory.at("link")).unwrap();
    fs::write(directory.path.join(OsStr::from_bytes(b"no\xfftext")), "x\n").unwrap();
    directory.write("good", "good\n");
    let mut told = told_by(directory.source());
    told.sort_unstable();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[1].starts_with("link@0! cannot read"), "{told:?}");
    assert_eq!(told[2], "no\u{fffd}text@0! cannot read the file: the file name is not valid UTF-8");
}

/// A user who may write to the directory could otherwise have the job read and return any file that
/// the job may read.
#[test]
fn a_link_that_leads_out_of_the_directory_is_not_followed() {
    let (directory, elsewhere) = (Directory::new(), Directory::new());
    elsewhere.write("secret", "a secret\n");
    directory.write("a", "a\n");
    fs::create_dir(directory.at("within")).unwrap();
    directory.write("within/b", "b\n");
    symlink(elsewhere.at("secret"), directory.at("out")).unwrap();
    symlink(Path::new("..").join(elsewhere.path.file_name().unwrap()).join("secret"), directory.at("up")).unwrap();
    symlink("within/b", directory.at("in")).unwrap();
    symlink(&elsewhere.path, directory.at("directory")).unwrap();
    for glob in ["*", "**"] {
        let mut told = told_by(directory.source().matching(glob));
        told.sort_unstable();
        told.retain(|told| !told.starts_with("b@"));
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[..2], ["a@0 a", "in@0 b"]);
        for (told, name) in told[2..].iter().zip(["out", "up"]) {
            assert_eq!(*told, format!("{name}@0! cannot read the file: the link points outside the directory"));
        }
    }
    let mut told = told_by(directory.source().follow_links());
    told.sort_unstable();
    assert_eq!(told, ["a@0 a", "in@0 b", "out@0 a secret", "up@0 a secret"]);
}

/// A pipe took the place of a file between the look and its turn: opening it waited for a writer
/// for ever.
#[test]
fn a_pipe_in_the_place_of_a_file_does_not_block_the_job() {
    let directory = Directory::new();
    directory.write("a", "x\n".repeat(200_000));
    directory.write("b", "replaced\n");
    directory.write("c", "c\n");
    let (results, (door, opened)) = (collect(), std::sync::mpsc::channel::<()>());
    let opened = std::sync::Arc::new(std::sync::Mutex::new(opened));
    let source = directory.source().order(millstream_connectors::FileOrder::Name).lines();
    let sink = results.clone();
    let job = Job::new("pipe", move |flow| {
        let opened = std::sync::Arc::clone(&opened);
        flow.source(source.clone())?
            .or_skip()
            .inspect(move |_| _ = opened.lock().unwrap().recv())
            .filter(|line| line != "x")
            .sink(&sink)
    });
    let running = job.trigger(Trigger::AvailableNow).memory(ByteSize(64 << 10)).start().unwrap();
    // The first file does not fit into memory, so the second is not open yet.
    fs::remove_file(directory.at("b")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(directory.at("b")).status().unwrap().success());
    drop(door);
    eventually("the last file is read", || results.values() == ["c"]);
    running.wait().unwrap();
}
