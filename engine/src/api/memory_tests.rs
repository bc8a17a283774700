//! Jobs whose state outgrows the memory that there is for it.

use std::time::Duration;

use crate::io::{collect, discard, generate};
use crate::run::pretend_that_memory_is_scarce;
use crate::words::{ByteSize, ErrorKind};

use super::job::Job;

fn counting(name: &str, end: u64) -> Job {
    let job = Job::new(name, move |flow| {
        let numbers = flow.source(generate(|n| n).count(end))?;
        numbers.clone().key_by(|n| n % 3).count().named("few").updates().sink(discard())?;
        numbers.key_by(|n| *n).count().named("many").updates().sink(discard())
    });
    job.state_in_memory()
}

#[test]
fn a_run_ends_before_the_system_ends_the_process() {
    let job = counting("scarce", u64::MAX);
    let mut running = job.start().unwrap();
    while running.report().stages.iter().all(|stage| stage.entries < 10_000) {
        std::thread::yield_now();
    }
    pretend_that_memory_is_scarce("scarce");
    let error = running.wait_for(Duration::from_secs(60)).expect("it ends").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::State, "{error:#}");
    let text = format!("{error:#}");
    for part in ["`many` has the most state of the job", "50 MiB are left of 1024 MiB", "900 MiB in memory"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_job_without_state_is_left_to_the_system() {
    pretend_that_memory_is_scarce("stateless");
    let numbers = collect();
    let to = numbers.clone();
    let job = Job::new("stateless", move |flow| flow.source(generate(|n| n).count(10))?.sink(&to));
    job.run().unwrap();
    assert_eq!(numbers.take().len(), 10);
}

#[test]
fn state_that_is_too_large_is_not_loaded_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let job = |end, memory| {
        let job = Job::new("large", move |flow| {
            let numbers = flow.source(generate(|n| n).count(end))?;
            numbers.key_by(|n| *n).count().named("many").updates().sink(discard())
        });
        job.checkpoints(directory.path()).state_memory(ByteSize::mebibytes(memory))
    };
    job(300_000, 100).run().unwrap();
    let error = job(300_001, 2).run().unwrap_err();
    let text = format!("{error:#}");
    assert!(error.kind() == ErrorKind::State && text.contains("`many`") && text.contains("of 2048 KiB"), "{text}");
    assert!(!text.contains("300000 entries"), "{text}");
    job(300_001, 100).run().unwrap();
}

/// Keys and states that point to something, as text does, count when they are loaded too.
#[test]
fn text_that_is_loaded_counts() {
    let directory = tempfile::tempdir().unwrap();
    let job = |end, memory| {
        let job = Job::new("text", move |flow| {
            let keys = flow.source(generate(|n| format!("{n:0500}")).count(end).partitions(1))?;
            keys.key_by(String::clone).latest().named("texts").updates().sink(discard())
        });
        job.checkpoints(directory.path()).state_memory(ByteSize::mebibytes(memory))
    };
    job(20_000, 100).run().unwrap();
    // The entries themselves take less than two.
    let error = job(20_001, 5).run().unwrap_err();
    let text = format!("{error:#}");
    assert!(error.kind() == ErrorKind::State && text.contains("`texts`") && text.contains("of 5120 KiB"), "{text}");
}

/// The state of a batch is no exception, nor is that of a single key.
#[test]
fn records_of_a_batch_that_are_kept_are_state() {
    let job = Job::new("grouped", move |flow| {
        let texts = flow.source(generate(|n| format!("{n:0100}")).count(2_000_000))?;
        texts.per_batch().transform(|texts| texts.into_iter().take(1).collect::<Vec<_>>()).sink(discard())
    });
    let job = job.state_in_memory().checkpoint_every(Duration::from_secs(3600)).state_memory(ByteSize::mebibytes(10));
    let error = job.run().unwrap_err();
    let text = format!("{error:#}");
    assert!(error.kind() == ErrorKind::State && text.contains("of 10 MiB"), "{text}");
}
