//! What a checkpoint promises to operators that will keep state: its number, the answers of its
//! sinks, and the order of two checkpoints at a sink.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millstream::connector::{
    Accepted, Batch, CheckpointId, Committed, Delivery, OpenSink, SharedSink, SinkEvent, Wake, Worker, Writer,
};
use millstream::{ByteSize, Clock, Error, ErrorKind, Job, Restart, Result, Sink, channel, collect, discard, generate};

use crate::support::script::Script;
use crate::support::valve::Valve;
use crate::support::{eventually, seed};

const MILLI: Duration = Duration::from_millis(1);

/// A sink that takes records of a checkpoint only when the one before it is committed, as a
/// transaction would, and that answers commits at once or when the test says so.
#[derive(Clone, Default)]
struct Ledger(Arc<Kept>);

#[derive(Default)]
struct Kept {
    /// The newest checkpoint that was committed.
    committed: AtomicU64,
    /// Whether commits are answered later.
    answers_late: AtomicBool,
    unanswered: Mutex<Vec<CheckpointId>>,
    answers: Mutex<Vec<CheckpointId>>,
    /// Records with their checkpoint, in the order in which they were taken.
    taken: Mutex<Vec<(u64, u64)>>,
    /// How often a batch had to wait for a commit.
    refused: AtomicU64,
    /// Whether the next batch makes a writer fail.
    fails: AtomicBool,
    wakes: Mutex<Vec<Wake>>,
}

impl Ledger {
    /// Answers all commits.
    fn answer(&self) {
        self.0.answers.lock().unwrap().append(&mut self.0.unanswered.lock().unwrap());
        self.wake();
    }

    fn wake(&self) {
        self.0.wakes.lock().unwrap().iter().for_each(Wake::wake);
    }
}

struct Shared(Ledger);

impl SharedSink for Shared {
    fn commit(&self, checkpoint: CheckpointId) -> Result<Committed> {
        let kept = &self.0.0;
        kept.committed.fetch_max(checkpoint.number(), SeqCst);
        self.0.wake();
        if !kept.answers_late.load(SeqCst) {
            return Ok(Committed::Now);
        }
        kept.unanswered.lock().unwrap().push(checkpoint);
        Ok(Committed::Later)
    }

    fn serve(&self) -> Result<Vec<SinkEvent>> {
        Ok(self.0.0.answers.lock().unwrap().drain(..).map(SinkEvent::Committed).collect())
    }
}

impl Sink<u64> for Ledger {
    type Shared = Shared;
    type Writer = LedgerWriter;

    fn name(&self) -> String {
        "ledger".to_owned()
    }

    fn connect(self, open: OpenSink) -> Result<Shared> {
        self.0.wakes.lock().unwrap().push(open.wake);
        Ok(Shared(self))
    }

    fn writer(shared: &Arc<Shared>, _: Worker, wake: Wake) -> Result<LedgerWriter> {
        shared.0.0.wakes.lock().unwrap().push(wake);
        Ok(LedgerWriter(shared.0.clone()))
    }
}

struct LedgerWriter(Ledger);

impl Writer<u64> for LedgerWriter {
    fn write(&mut self, batch: &mut Batch<u64>, delivery: &Delivery) -> Result<Accepted> {
        let (kept, checkpoint) = (&self.0.0, delivery.checkpoint().number());
        if kept.fails.swap(false, SeqCst) {
            return Err(Error::new(ErrorKind::Sink, "the ledger is full"));
        }
        if checkpoint > kept.committed.load(SeqCst) + 1 {
            kept.refused.fetch_add(1, SeqCst);
            return Ok(Accepted::Full);
        }
        let records = batch.len() as u64;
        kept.taken.lock().unwrap().extend(batch.map(|value| (checkpoint, value)));
        delivery.acknowledge(records, ByteSize(0));
        Ok(Accepted::All)
    }
}

/// Behind an exchange, a record of checkpoint `c` may arrive after one of `c + 1`, because another
/// worker has not seen the cut yet. A queue in the order of arrival kept it behind that one, which
/// the sink did not take until `c` was committed. But this commit waited for the record of `c`: the
/// job hung.
#[test]
fn a_sink_that_keeps_a_checkpoint_waiting_gets_all_of_the_one_before_it() {
    let seed = seed();
    let mut refused = 0;
    for round in 0..12 {
        let (script, ledger) = (Script::numbers(20_000, 4, seed + round), Ledger::default());
        let sink = ledger.clone();
        let job = Job::new("oldest first", move |flow| {
            let stream = flow.source(&script)?.rebalance();
            if round % 2 == 0 { stream.sink(&sink) } else { stream.map(|n| n).rebalance().sink(&sink) }
        });
        let mut running = job.workers(2 + round as usize % 3).checkpoint_every(MILLI).start().unwrap();
        let ended = running.wait_for(Duration::from_secs(30)).expect("the job does not hang");
        ended.unwrap();
        let taken = std::mem::take(&mut *ledger.0.taken.lock().unwrap());
        assert_eq!(taken.len(), 20_000, "seed {seed}, round {round}");
        refused += ledger.0.refused.load(SeqCst);
    }
    assert!(refused > 0, "no record ever had to wait, so nothing was tested (seed {seed})");
}

#[test]
fn sources_commit_when_the_last_sink_has_answered() {
    let (script, late, prompt, clock) =
        (Script::numbers(100, 1, 3).endless(), Ledger::default(), collect(), Clock::simulated());
    late.0.answers_late.store(true, SeqCst);
    let (log, sinks) = (script.log.clone(), (late.clone(), prompt.clone()));
    let job = Job::new("late", move |flow| {
        let stream = flow.source(&script)?;
        stream.clone().sink(&sinks.0)?;
        stream.sink(&sinks.1)
    });
    let running = job.clock(clock.clone()).checkpoint_every(MILLI).start().unwrap();
    eventually("the first checkpoint is handed to the sinks", || {
        clock.advance(MILLI);
        !late.0.unanswered.lock().unwrap().is_empty()
    });
    // The clock advances and the control thread is woken, but the commit still waits for the
    // answer.
    for _ in 0..50 {
        clock.advance(MILLI);
        late.wake();
        running.report();
    }
    assert_eq!((log.committed(), running.report().committed), (0, 0));
    assert_eq!(late.0.unanswered.lock().unwrap().len(), 1, "the next checkpoint waits for this one");
    eventually("everything is committed once the sink answers", || {
        late.answer();
        clock.advance(MILLI);
        log.committed() == 100
    });
    drop(running);
}

/// A run that follows another begins with the checkpoint after the last committed one, so what it
/// writes is never mistaken for a part of a committed checkpoint.
#[test]
fn numbers_go_on_over_runs() {
    let ((orders, source), ledger, clock) = (channel::<u64>(10), Ledger::default(), Clock::simulated());
    let sink = ledger.clone();
    let job = Job::new("numbers", move |flow| flow.source(&source)?.sink(&sink));
    let restart = Restart::Backoff { first: MILLI, longest: MILLI };
    let running = job.restart(restart).clock(clock.clone()).checkpoint_every(MILLI).start().unwrap();
    let newest = || ledger.0.taken.lock().unwrap().last().copied();
    for value in 1..=5 {
        drop(orders.try_send(value).unwrap());
        eventually("the record is taken and its checkpoint is committed", || {
            clock.advance(MILLI);
            newest().is_some_and(|(checkpoint, taken)| taken == value && running.report().committed >= checkpoint)
        });
    }
    let committed = running.report().committed;
    assert!(committed >= 5, "each record has a checkpoint of its own");
    ledger.0.fails.store(true, SeqCst);
    drop(orders.try_send(6).unwrap());
    eventually("the job is restarted", || running.report().restarts == 1);
    eventually("the next run takes a record", || {
        drop(orders.try_send(7));
        newest().is_some_and(|(_, taken)| taken == 7)
    });
    let (checkpoint, _) = newest().unwrap();
    assert!(checkpoint > committed, "checkpoint {checkpoint} does not follow {committed}");
    drop(running);
}

/// The epoch with sequence 0 is reserved for restored state, so no record ever belongs to it.
#[test]
fn a_run_without_a_memory_begins_with_one() {
    let (valve, clock) = (Valve::shut(), Clock::simulated());
    let ((orders, source), sink) = (channel::<u64>(10), valve.clone());
    let job = Job::new("first", move |flow| flow.source(&source)?.sink(&sink)).clock(clock);
    let running = job.start().unwrap();
    drop(orders.try_send(1).unwrap());
    eventually("the record is taken", || valve.taken().len() == 1);
    assert_eq!(running.report().committed, 0);
    valve.open();
    drop(orders);
    assert_eq!(running.wait().unwrap().committed, 1);
}

/// Built-in sources have the same partitions with any number of workers, so positions stay valid.
#[test]
fn partitions_do_not_depend_on_workers() {
    let names = |workers| {
        let job = Job::new("named", |flow| flow.source(generate(|n| n).rate(1e6).count(100))?.sink(discard()));
        let report = job.workers(workers).run().unwrap();
        report.sources[0].lag.iter().map(|lag| (lag.partition.clone(), lag.end)).collect::<Vec<_>>()
    };
    let one = names(1);
    assert_eq!((one.len(), &one[3].0[..], one[3].1), (8, "generate/3 of 8", 13));
    assert_eq!(one, names(4));
}
