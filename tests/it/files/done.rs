//! What happens to files that are done, and when they are done.

use std::fs;
use std::time::Duration;

use millstream::{ByteSize, Job, Malformed, Restart, Trigger, collect};
use millstream_connectors::WhenDone;

use super::{Directory, Paced, SETTLED_AFTER, telling, told_by, wait_for};
use crate::support::valve::Valve;
use crate::support::{events, eventually};

#[test]
fn a_new_process_reads_nothing_twice_that_was_deleted_or_moved() {
    for move_to in [false, true] {
        let (directory, elsewhere) = (Directory::new(), Directory::new());
        directory.write("a", "1\n2\n");
        directory.write("b", "3");
        directory.write("c", "");
        let target = elsewhere.at("made");
        let when_done = if move_to { WhenDone::MoveTo(target.clone()) } else { WhenDone::Delete };
        let source = directory.source().when_done(when_done);
        let mut told = told_by(source.clone());
        told.sort_unstable();
        assert_eq!(told, ["a@0 1", "a@2 2", "b@0 3"]);
        assert!(directory.names().is_empty(), "all files are done when the run has ended");
        assert!(told_by(source.clone()).is_empty());
        if move_to {
            assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1\n2\n");
            // Another file of the same name gets a number.
            directory.write("a", "4\n");
            assert_eq!(told_by(source), ["a@0 4"]);
            assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "1\n2\n");
            assert_eq!(fs::read_to_string(target.join("a.1")).unwrap(), "4\n");
        }
    }
}

/// The sink has all records and has acknowledged none, so all files stay.
#[test]
fn nothing_is_deleted_before_it_is_acknowledged() {
    // The first micro-batch contains what arrived before its tick, and the next one waits for it.
    for (trigger, least) in [(Trigger::Continuous, 20), (Trigger::micro_batch(Duration::from_millis(5)), 1)] {
        let (directory, valve) = (Directory::new(), Valve::shut());
        (0..10).for_each(|file| directory.write(&file.to_string(), "1\n2\n"));
        let (source, sink) = (directory.source(), valve.clone());
        let source = source.when_done(WhenDone::Delete).settled_after(Duration::from_millis(1));
        let job = Job::new("done", move |flow| flow.source(source.clone().json::<u64>())?.or_stop().sink(&sink));
        let running = job.trigger(trigger).workers(2).checkpoint_every(Duration::from_millis(1)).start().unwrap();
        eventually("they are read", || valve.taken().len() >= least);
        // All of them settle while later files are seen. Those of a micro-batch wait for the
        // previous one.
        for later in ["later", "latest"] {
            directory.move_in(later, "3\n");
            let is_seen = || running.report().sources[0].lag.iter().any(|lag| lag.partition.ends_with(later));
            eventually("it is seen", is_seen);
        }
        assert_eq!(directory.names().len(), 12);
        valve.open();
        eventually("all are deleted", || directory.names().is_empty());
        running.stop();
        running.wait().unwrap();
    }
}

/// A run that fails before a file is acknowledged leaves it, and the files before it are gone.
#[test]
fn a_failed_run_leaves_the_files_that_it_has_not_finished() {
    let directory = Directory::new();
    directory.write("a", "1\n");
    let source = directory.source().when_done(WhenDone::Delete).settled_after(Duration::from_millis(1));
    let job = Job::new("failed", move |flow| {
        let numbers = flow.source(source.clone().json::<u64>())?.or_stop();
        numbers.sink(millstream::discard())
    });
    let running = job.checkpoint_every(Duration::from_millis(1)).start().unwrap();
    eventually("the first file is deleted", || directory.names().is_empty());
    directory.move_in("b", "2\nx\n");
    running.wait().expect_err("a record is malformed");
    assert_eq!(directory.names(), ["b"]);
}

#[test]
fn a_file_that_may_still_grow_stays_until_it_has_settled() {
    let directory = Directory::new();
    directory.write("a", "one\n");
    let paced = Paced::start(directory.source().settled_after(SETTLED_AFTER).when_done(WhenDone::Delete));
    paced.look_until(1);
    paced.look_around(&directory);
    assert!(directory.names().contains(&"a".to_owned()));
    directory.append("a", "two\n");
    paced.look_until_told(2);
    paced.look_around(&directory);
    assert!(directory.names().contains(&"a".to_owned()), "it may grow again");
    assert_eq!(paced.told(), ["a@0 one", "a@4 two"]);
    paced.settle();
    eventually("it is deleted", || {
        paced.look();
        !directory.names().contains(&"a".to_owned())
    });
}

#[test]
fn a_file_that_cannot_be_moved_stays_and_the_job_goes_on() {
    let (directory, elsewhere) = (Directory::new(), Directory::new());
    let target = elsewhere.at("target");
    directory.write("a", "one\n");
    let source = directory.source().when_done(WhenDone::MoveTo(target.clone())).settled_after(Duration::from_millis(1));
    let (job, results) = telling(source);
    let running = job.start().unwrap();
    // A file takes the place of the directory: nothing can be moved there, not even by root.
    wait_for(&results, 1);
    eventually("the first is moved", || directory.names().is_empty());
    fs::remove_dir_all(&target).unwrap();
    fs::write(&target, "in the way").unwrap();
    directory.move_in("b", "two\n");
    wait_for(&results, 2);
    directory.move_in("c", "three\n");
    wait_for(&results, 3);
    running.stop();
    running.wait().unwrap();
    assert_eq!(directory.names(), ["b", "c"]);
}

/// Two processes looked for a free name at the same moment, found the same one, and one file was
/// moved over the other. Two threads are as close as a test in one process gets to that.
#[test]
fn two_jobs_that_archive_into_one_directory_lose_nothing() {
    let target = Directory::new();
    let sources = [Directory::new(), Directory::new()];
    for (index, directory) in sources.iter().enumerate() {
        (0..500).for_each(|file| directory.write(&file.to_string(), format!("{index} {file}\n")));
    }
    std::thread::scope(|scope| {
        for directory in &sources {
            let source = directory.source().when_done(WhenDone::MoveTo(target.path.clone()));
            scope.spawn(move || told_by(source));
        }
    });
    let mut archived: Vec<String> =
        target.names().iter().map(|name| fs::read_to_string(target.at(name)).unwrap()).collect();
    archived.sort_unstable();
    archived.dedup();
    assert_eq!(archived.len(), 1_000, "a file is missing");
}

/// A stray quote made the rest of a CSV file one record: 1 MiB of it was kept, 2 MiB were lost, and
/// the file was deleted.
#[test]
fn a_file_with_a_record_that_was_cut_stays_by_default() {
    events::begin();
    let rows: String = (0..300_000).map(|row| format!("{row},text\n")).collect();
    for (when_cut, remains) in [(None, true), (Some(WhenDone::Keep), true), (Some(WhenDone::Delete), false)] {
        for restarts in [false, true] {
            let directory = Directory::new();
            directory.write("stray.csv", format!("number,text\n1,first\n2,\"stray\n{rows}"));
            // Too long within one chunk, and with an end.
            directory.write("long.csv", format!("number,text\n1,first\n2,{}\n3,third\n", "x".repeat(2_000)));
            directory.write("good.csv", "number,text\n1,first\n");
            let source = directory.source().when_done(WhenDone::Delete).record_max(ByteSize(1_000));
            let source = source.settled_after(Duration::from_millis(20));
            let source = match &when_cut {
                None => source,
                Some(when_cut) => source.when_cut(when_cut.clone()),
            };
            let (good, bad) = (collect(), collect::<Malformed>());
            let sinks = (good.clone(), bad.clone());
            let source = source.csv::<(u64, String)>();
            let job = Job::new("stray", move |flow| {
                let (good, bad) = flow.source(source.clone())?.partition_results();
                good.inspect(|(number, _)| assert_ne!(*number, 666)).sink(&sinks.0)?;
                bad.sink(&sinks.1)
            });
            if restarts {
                let job = job
                    .restart(Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(5) });
                let running = job.checkpoint_every(Duration::from_millis(1)).start().unwrap();
                eventually("all is committed", || bad.len() == 2 && running.report().sources[0].lag.is_empty());
                directory.move_in("fall.csv", "number,text\n666,it falls\n");
                eventually("the run has failed", || running.report().restarts > 0);
                fs::remove_file(directory.at("fall.csv")).unwrap();
                for later in ["later.csv", "latest.csv"] {
                    directory.move_in(later, "number,text\n1,first\n");
                    eventually("it is deleted", || !directory.names().contains(&later.to_owned()));
                }
                running.stop();
                running.wait().unwrap();
            } else {
                job.trigger(Trigger::AvailableNow).run().unwrap();
            }
            let names = directory.names();
            assert_eq!(names, if remains { vec!["long.csv", "stray.csv"] } else { vec![] }, "{when_cut:?} {restarts}");
            let mut cut: Vec<_> = bad.values();
            cut.sort_by_key(|bad| bad.cause.clone());
            assert_eq!(cut.len(), 2, "once each");
            assert!(cut.iter().all(|bad| bad.bytes.as_ref().unwrap().len() == 1_000));
            let left_out = format!("bytes={}", 9 + rows.len() - 1_000);
            let path = directory.at("stray.csv").display().to_string();
            assert!(events::was_logged(&["skipped", &path, &left_out]), "the number of skipped bytes is logged");
        }
    }
}
