//! Listeners: functions of the program that a job tells what happens to it, in order and each event
//! once. Nothing that a listener does can harm the job. Also the list of a process's jobs.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use millstream::{ErrorKind, HealthLimits, Job, JobEvent, JobHandle, Restart, channel, collect, discard, jobs, rows};

use crate::support::{PATIENCE, events, eventually};

const OFTEN: Duration = Duration::from_millis(2);

/// The events that a listener received.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<JobEvent>>>);

impl Heard {
    fn listener(&self) -> impl Fn(&JobEvent) + Send + Sync + 'static {
        let heard = Arc::clone(&self.0);
        move |event| heard.lock().unwrap().push(event.clone())
    }

    fn all(&self) -> Vec<JobEvent> {
        self.0.lock().unwrap().clone()
    }

    /// A word for each event; several of one kind in a row count once.
    fn words(&self) -> Vec<&'static str> {
        let mut words: Vec<&str> = self.all().iter().map(word).collect();
        words.dedup();
        words
    }
}

fn word(event: &JobEvent) -> &'static str {
    match event {
        JobEvent::Started(_) => "started",
        JobEvent::Progress(_) => "progress",
        JobEvent::Idle(_) => "idle",
        JobEvent::Restarted { .. } => "restarted",
        JobEvent::Ended { .. } => "ended",
        other => panic!("no word for the event {other:?}"),
    }
}

#[test]
fn hear_of_start_progress_idleness_and_end_in_this_order() {
    let (heard, (numbers, source)) = (Heard::default(), channel::<u64>(10));
    let job = Job::new("listened", move |flow| flow.source(&source)?.sink(discard()));
    let running = job.on_progress(OFTEN, heard.listener()).start().unwrap();
    eventually("the job is idle", || heard.words() == ["started", "idle"]);
    drop(numbers.try_send(1).unwrap());
    eventually("there was progress", || heard.words().ends_with(&["progress", "idle"]));
    drop(numbers);
    running.wait().unwrap();
    let events = heard.all();
    assert!(matches!(&events[0], JobEvent::Started(report) if report.job == "listened"));
    assert_eq!(events.iter().filter(|event| word(event) == "started").count(), 1);
    let progress = events.iter().find(|event| word(event) == "progress").unwrap();
    assert_eq!(progress.report().records_in(), 1, "the report is of the moment of the event");
    assert!(matches!(events.last(), Some(JobEvent::Ended { outcome: Ok(()), report }) if report.records_out() == 1));
    assert_eq!(events.iter().filter(|event| word(event) == "ended").count(), 1);
    eventually("the listener is dropped", || Arc::strong_count(&heard.0) == 1);
    assert_eq!(heard.all().len(), events.len(), "no event follows the end");
}

#[test]
fn hear_the_reason_of_each_restart_and_the_error_of_the_end() {
    let heard = Heard::default();
    let job = Job::new("restarts", |flow| {
        flow.source(rows(0..10_u64))?.inspect(|n| assert!(*n != 7, "no sevens")).sink(discard())
    });
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let error = job.restart(restart).on_progress(OFTEN, heard.listener()).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Panic);
    // Three runs in a row that panic at the same record end the job.
    let words: Vec<&str> = heard.all().iter().map(word).filter(|word| !["progress", "idle"].contains(word)).collect();
    assert_eq!(words, ["started", "restarted", "restarted", "ended"]);
    for event in heard.all() {
        match event {
            JobEvent::Restarted { reason, report } => {
                assert!(format!("{reason:#}").contains("no sevens") && reason.kind() == ErrorKind::Panic, "{reason:#}");
                assert_eq!(report.sources.len(), 1, "the report is of the run that failed");
            }
            JobEvent::Ended { outcome, .. } => assert_eq!(format!("{:#}", outcome.unwrap_err()), format!("{error:#}")),
            _ => {}
        }
    }
}

#[test]
fn that_panic_are_logged_and_the_job_goes_on() {
    events::begin();
    let (calls, results) = (Arc::new(AtomicUsize::new(0)), collect());
    let (called, sink) = (Arc::clone(&calls), results.clone());
    let name = format!("panics-{}", fastrand::u64(..));
    let job = Job::new(&name, move |flow| flow.source(rows(0..1_000_u64))?.sink(&sink));
    let panics = move |_: &JobEvent| {
        called.fetch_add(1, SeqCst);
        panic!("the listener's own fault");
    };
    job.on_progress(OFTEN, panics).run().unwrap();
    assert_eq!(results.len(), 1_000);
    assert!(calls.load(SeqCst) >= 2, "it is called again after a panic");
    assert!(events::was_logged(&["ERROR", "a listener panicked", &name, "the listener's own fault"]));
}

#[test]
fn that_hang_delay_neither_records_nor_restarts_nor_the_stop() {
    let (hangs, heard) = (Arc::new(AtomicBool::new(true)), Heard::default());
    let (still_hangs, other) = (Arc::clone(&hangs), heard.listener());
    let (numbers, source) = channel::<u64>(10);
    let fell = Arc::new(AtomicBool::new(false));
    let job = Job::new("hangs", move |flow| {
        let fell = Arc::clone(&fell);
        flow.source(&source)?.inspect(move |n| assert!(*n != 2 || fell.swap(true, SeqCst), "once")).sink(discard())
    });
    let hang = move |_: &JobEvent| {
        while still_hangs.load(SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
    };
    let restart = Restart::Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let job = job.restart(restart).on_progress(OFTEN, hang).on_progress(OFTEN, other);
    let mut running = job.start().unwrap();
    numbers.try_send(1).unwrap().wait().unwrap();
    drop(numbers.try_send(2).unwrap());
    eventually("the job restarts", || running.report().restarts == 1);
    eventually("the other listener is told", || heard.words().contains(&"restarted"));
    numbers.try_send(3).unwrap().wait().unwrap();
    running.stop();
    running.wait_for(PATIENCE).expect("the job ends while the listener hangs").unwrap();
    assert_eq!(heard.words().last(), Some(&"ended"));
    hangs.store(false, SeqCst);
}

#[test]
fn of_a_job_that_does_not_start_hear_nothing() {
    let heard = Heard::default();
    let job = Job::new("empty", |_| Ok(())).on_progress(OFTEN, heard.listener());
    assert_eq!(job.run().unwrap_err().kind(), ErrorKind::Pipeline);
    assert!(heard.all().is_empty(), "{:?}", heard.words());
}

#[test]
fn without_an_interval_are_refused() {
    let job = Job::new("never", |flow| flow.source(rows([1]))?.sink(discard())).on_progress(Duration::ZERO, |_| {});
    let error = job.run().unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.to_string().contains("on_progress"), "{error}");
}

/// The listed jobs with this name; other tests list theirs too.
fn listed(name: &str) -> Vec<JobHandle> {
    jobs().into_iter().filter(|job| job.name() == name).collect()
}

#[test]
fn a_process_lists_its_jobs_from_start_to_end_and_can_stop_those_without_a_handle() {
    let name = "listed";
    let start = |count: u64| {
        let (numbers, source) = channel::<u64>(10);
        let running = Job::new(name, move |flow| flow.source(&source)?.sink(discard())).start().unwrap();
        (0..count).for_each(|n| numbers.try_send(n).unwrap().wait().unwrap());
        (numbers, running)
    };
    let ((_one, first), (_two, second)) = (start(1), start(2));
    let counts: Vec<u64> = listed(name).iter().map(|job| job.report().records_out()).collect();
    assert_eq!(counts, [1, 2], "the oldest first, each with its own report");
    assert!(listed(name)[1].health(&HealthLimits::new()).is_alive());
    second.detach();
    listed(name)[1].stop();
    eventually("the detached job ends", || listed(name).len() == 1);
    first.stop();
    first.wait().unwrap();
    assert!(listed(name).is_empty(), "a job that has ended is not listed");
    Job::new(name, |_| Ok(())).run().unwrap_err();
    assert!(listed(name).is_empty(), "nor is one that did not start");
}
