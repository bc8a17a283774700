//! A job reports whether it is alive and ready, and if not, why, in words that an operator
//! understands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use millstream::connector::{OpenSource, Polled, ReadBatch, Reader, Room, SharedSource, Wake, Worker};
use millstream::{Health, HealthLimits, Job, Restart, Result, Source, Trigger, channel, discard};

use super::kafka::kafka;
use crate::support::broker::shared;
use crate::support::eventually;
use crate::support::probe::Probe;
use crate::support::valve::Valve;

/// Waits until `is` holds for the health.
#[track_caller]
fn becomes(what: &str, health: impl Fn() -> Health, is: impl Fn(&Health) -> bool) {
    let last = || health().to_string();
    eventually(&format!("the job is {what}; at first it was: {}", last()), || is(&health()));
}

#[test]
fn a_job_that_works_is_alive_and_ready_until_it_is_asked_to_stop() {
    let (numbers, source) = channel::<u64>(10);
    let valve = Valve::shut();
    let sink = valve.clone();
    let running = Job::new("well", move |flow| flow.source(&source)?.sink(&sink)).start().unwrap();
    let (reporter, limits) = (running.handle(), HealthLimits::new());
    let health = || reporter.health(&limits);
    becomes("alive and ready", health, |health| health.is_ready() && health.to_string() == "alive and ready");
    drop(numbers.try_send(1).unwrap());
    eventually("the record is in flight", || valve.taken().len() == 1);
    running.stop();
    becomes("stopping", health, |health| health.is_alive() && health.not_ready == ["the job is stopping"]);
    valve.open();
    running.wait().unwrap();
    assert_eq!(health().not_alive, ["the job has ended"]);
    assert!(!health().is_ready(), "a job that is not alive is not ready");
}

#[test]
fn a_job_that_failed_is_not_alive_and_says_why() {
    let (numbers, source) = channel::<u64>(10);
    let job = Job::new("fails", move |flow| flow.source(&source)?.inspect(|_| panic!("on purpose")).sink(discard()));
    let running = job.start().unwrap();
    let reporter = running.handle();
    drop(numbers.try_send(1).unwrap());
    running.wait().unwrap_err();
    let health = reporter.health(&HealthLimits::new());
    assert!(!health.is_alive() && health.to_string().contains("on purpose"), "{health}");
}

#[test]
fn a_job_that_waits_for_its_next_run_is_alive_and_not_ready() {
    let (numbers, source) = channel::<u64>(10);
    let fails = |n: &u64| assert!(*n != 7, "no sevens");
    let job = Job::new("rests", move |flow| flow.source(&source)?.inspect(fails).sink(discard()));
    let long = Restart::Backoff { first: Duration::from_secs(600), longest: Duration::from_secs(600) };
    let running = job.restart(long).start().unwrap();
    drop(numbers.try_send(7).unwrap());
    let is_resting = |health: &Health| {
        health.is_alive() && health.not_ready.iter().any(|why| why.contains("restarting") && why.contains("no sevens"))
    };
    becomes("between two runs", || running.health(&HealthLimits::new()), is_resting);
    running.abort();
    running.wait().unwrap_err();
}

#[test]
fn a_worker_that_does_not_return_is_named() {
    let (hangs, (numbers, source)) = (Arc::new(AtomicBool::new(true)), channel::<u64>(10));
    let still = Arc::clone(&hangs);
    let job = Job::new("hangs", move |flow| {
        let still = Arc::clone(&still);
        let hang = move |_: &u64| {
            while still.load(SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        };
        flow.source(&source)?.inspect(hang).sink(discard())
    });
    let running = job.start().unwrap();
    let limits = HealthLimits::new().step_within(Duration::from_secs(2));
    let health = || running.health(&limits);
    becomes("ready", health, Health::is_ready);
    drop(numbers.try_send(1).unwrap());
    becomes("stuck", health, |health| health.to_string().starts_with("not alive: worker 0 has been in one step for"));
    hangs.store(false, SeqCst);
    becomes("ready again", health, Health::is_ready);
    drop(numbers);
    running.wait().unwrap();
}

#[test]
fn a_worker_that_sleeps_is_not_stuck() {
    let (probe, limits) = (Probe::default(), HealthLimits::new().step_within(Duration::ZERO));
    let beside = probe.clone();
    let running = Job::new("sleeps", move |flow| beside.beside(flow)).start().unwrap();
    becomes("ready", || running.health(&limits), Health::is_ready);
    // The control thread looks every 200 ms, and a limit below two seconds counts as two.
    let looks = probe.looks();
    eventually("the control thread has looked a dozen times", || {
        let health = running.health(&limits);
        assert!(health.is_alive(), "{health}");
        probe.looks() >= looks + 12
    });
    running.stop();
    running.wait().unwrap();
}

#[test]
fn records_that_a_sink_does_not_acknowledge_are_counted_and_the_sink_named() {
    let (numbers, source) = channel::<u64>(10);
    let valve = Valve::shut();
    let sink = valve.clone();
    let job = Job::new("stalls", move |flow| flow.source(&source)?.sink(&sink));
    let running = job.checkpoint_every(Duration::from_millis(1)).start().unwrap();
    let limits = HealthLimits::new().commit_within(Duration::from_millis(20));
    let health = || running.health(&limits);
    drop(numbers.try_send(1).unwrap());
    becomes("stalled", health, |health| {
        health.to_string().starts_with("not alive: records of checkpoint 1 have not been acknowledged (1 by `valve`)")
    });
    assert!(running.health(&HealthLimits::new()).is_alive(), "the default limit is longer");
    valve.open();
    becomes("ready again", health, Health::is_ready);
    drop(numbers);
    running.wait().unwrap();
}

#[test]
fn a_job_that_lags_is_alive_and_not_ready_until_it_has_caught_up() {
    let broker = shared();
    let topic = broker.topic("lags", 1);
    let numbers: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    broker.write(&topic, numbers.iter().map(|n| (None, "", Some(n.as_str()))));
    let (kafka, from, valve) = (kafka(broker), topic.clone(), Valve::shut());
    let sink = valve.clone();
    let job = Job::new("lags", move |flow| {
        flow.source(kafka.topic(&from).group(&from).partitions([0]).json::<u64>())?.or_stop().sink(&sink)
    });
    let running = job.memory(millstream::ByteSize(64)).start().unwrap();
    let health = |most| running.health(&HealthLimits::new().lag_at_most(most));
    let reason = format!("`kafka {topic}` is ");
    becomes(
        "behind",
        || health(10),
        |health| {
            health.is_alive()
                && health.not_ready.iter().any(|why| why.starts_with(&reason) && why.ends_with("10 are allowed"))
        },
    );
    assert!(health(100).is_ready(), "a lag of 100 is within the limit");
    valve.open();
    becomes("caught up", || health(10), Health::is_ready);
    running.stop();
    running.wait().unwrap();
}

/// A source that waits until the test lets it in.
#[derive(Clone)]
struct Queues(Arc<AtomicBool>);

struct Idle;

impl SharedSource for Queues {
    fn waiting(&self) -> Option<String> {
        (!self.0.load(SeqCst)).then(|| "its turn".to_owned())
    }
}

impl Source for Queues {
    type Item = u64;
    type Shared = Queues;
    type Reader = Idle;

    fn name(&self) -> String {
        "queues".to_owned()
    }

    fn connect(self, _: OpenSource) -> Result<Queues> {
        Ok(self)
    }

    fn reader(_: &Arc<Queues>, _: Worker, _: Wake) -> Result<Idle> {
        Ok(Idle)
    }
}

impl Reader for Idle {
    type Item = u64;

    fn poll(&mut self, _: &mut ReadBatch<u64>, _: Room) -> Result<Polled> {
        Ok(Polled::Idle)
    }
}

#[test]
fn a_source_that_waits_makes_its_job_not_ready_and_after_a_while_not_alive() {
    let let_in = Arc::new(AtomicBool::new(false));
    let queues = Queues(Arc::clone(&let_in));
    let running = Job::new("waits", move |flow| flow.source(&queues)?.sink(discard())).start().unwrap();
    let limits = HealthLimits::new();
    becomes(
        "waiting",
        || running.health(&limits),
        |health| {
            health.is_alive() && health.not_ready.iter().any(|why| why.starts_with("`queues` waits for its turn ("))
        },
    );
    let impatient = HealthLimits::new().group_within(Duration::from_millis(1));
    becomes(
        "waiting for too long",
        || running.health(&impatient),
        |health| !health.is_alive() && health.to_string().starts_with("not alive: `queues` waits for its turn ("),
    );
    let_in.store(true, SeqCst);
    becomes("ready", || running.health(&limits), Health::is_ready);
    running.abort();
    running.wait().unwrap_err();
}

#[test]
fn a_member_of_a_group_is_ready_when_its_partitions_are_assigned() {
    let broker = shared();
    let topic = broker.topic("share", 1);
    broker.write(&topic, [(None, "", Some("1"))]);
    let (kafka, from) = (kafka(broker), topic.clone());
    let job = Job::new("share", move |flow| {
        flow.source(kafka.topic(&from).group(&from).json::<u64>())?.or_stop().sink(discard())
    });
    let running = job.trigger(Trigger::Continuous).start().unwrap();
    let health = running.health(&HealthLimits::new());
    let ready = running.health(&HealthLimits::new()).is_ready() && running.report().sources[0].lag.is_empty();
    assert!(!ready, "ready without a partition: {health}");
    becomes("ready", || running.health(&HealthLimits::new()), Health::is_ready);
    assert_eq!(running.report().sources[0].lag.len(), 1, "ready without a partition");
    running.stop();
    running.wait().unwrap();
}
