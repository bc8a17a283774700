//! What is wrong is said: at start when it can be known, and as data when it shows later.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use millstream::{Bytes, ErrorKind};
use millstream_connectors::{Files, WhenDone, files};
use rustix::process::{Uid, geteuid};
use rustix::thread::set_thread_uid;

use super::{Directory, paced, telling, told_by};

#[track_caller]
fn refused(source: Files, kind: ErrorKind, says: &str) {
    let error = telling(source).0.start().expect_err("it cannot start");
    assert_eq!(error.kind(), kind, "{error:#}");
    assert!(format!("{error:#}").contains(says), "{error:#} does not say {says}");
}

#[test]
fn what_is_wrong_at_start_is_an_error() {
    let directory = Directory::new();
    directory.write("file", "");
    refused(files(directory.at("nowhere")), ErrorKind::NotFound, "nowhere");
    refused(files(directory.at("file")), ErrorKind::NotFound, "file");
    refused(directory.source().matching("a["), ErrorKind::Option, "`a[`");
    refused(directory.source().record_max(Bytes(0)), ErrorKind::Option, "`record_max`");
    refused(directory.source().look_every(Duration::ZERO), ErrorKind::Option, "`look_every`");
    refused(directory.source().settled_after(Duration::ZERO), ErrorKind::Option, "`settled_after`");
    let to_itself = WhenDone::MoveTo(directory.path.clone());
    refused(directory.source().when_done(to_itself), ErrorKind::Option, "the directory that is read");
    let to_a_file = WhenDone::MoveTo(directory.at("file"));
    refused(directory.source().when_done(to_a_file), ErrorKind::NotFound, "cannot move");
}

#[test]
fn a_file_that_cannot_be_read_is_said_once_and_tried_again() {
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
    assert_eq!(told[2], "socket@0! cannot read the file: it is no regular file");
    directory.write(".later", "came later\n");
    paced.look_around(&directory);
    assert_eq!(paced.told()[3..], ["link@0 came later"]);
}

/// Root may read everything, so the job is somebody else's: threads belong to whom their thread's thread did.
#[test]
fn a_file_without_permission_is_read_when_it_is_given() {
    let directory = Directory::new();
    let allow = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    allow(&directory.path, 0o755);
    directory.write(".closed", "was closed\n");
    allow(&directory.at(".closed"), 0o000);
    fs::rename(directory.at(".closed"), directory.at("closed")).unwrap();
    directory.write("good", "good\n");
    let somebody = Uid::from_raw(65_534);
    let start = || {
        if geteuid().is_root() {
            set_thread_uid(somebody).unwrap();
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
fn a_run_that_ends_says_what_it_could_not_read() {
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
    assert_eq!(told[2], "no\u{fffd}text@0! cannot read the file: its name is no UTF-8");
}
