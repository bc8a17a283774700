//! One worker thread: builds the dataflow and steps it until it has ended or a worker has failed.
//! The engine starts its own threads, because a panic in one of timely's leaves the others waiting
//! for ever, and its message is lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use timely::WorkerConfig;
use timely::communication::allocator::thread::Thread;
use timely::communication::{Allocator, AllocatorBuilder};
use timely::worker::{ProgressMode, Worker};

use crate::epoch::gather;
use crate::operator::fault;
use crate::words::{Clock, Error, Moment, Result, spawn};

use super::events::Event;
use super::shared::{Pipeline, Run};

/// A started worker.
#[derive(Debug)]
pub(crate) struct Started {
    thread: JoinHandle<()>,
    /// When its current step began, or 0 when the worker has ended.
    stepping: Arc<AtomicU64>,
}

impl Started {
    /// Starts a worker of the run on a thread of its own.
    pub(crate) fn new(
        index: usize,
        allocator: AllocatorBuilder,
        run: Arc<Run>,
        pipeline: Arc<dyn Pipeline>,
    ) -> Result<Started> {
        let stepping = Arc::clone(&run.vitals.steps[index]);
        let body = {
            let stepping = Arc::clone(&stepping);
            let span = tracing::info_span!("worker", index);
            move || span.in_scope(|| work(allocator, &run, pipeline, &stepping))
        };
        let thread = spawn(&index.to_string(), body)?;
        Ok(Started { thread, stepping })
    }

    /// How long the worker has been in its current step.
    pub(crate) fn busy(&self, now: Moment) -> Duration {
        match self.stepping.load(Relaxed) {
            0 => Duration::ZERO,
            since => now - Moment::from_nanos(since),
        }
    }

    /// Waits for its end until `deadline`. A worker that is stuck in user code never ends; its
    /// thread is left behind.
    pub(crate) fn join_before(self, deadline: Instant) {
        while !self.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        if self.thread.is_finished() {
            // Its panic was caught and recorded on the thread itself.
            drop(self.thread.join());
        }
    }
}

fn work(allocator: AllocatorBuilder, run: &Arc<Run>, pipeline: Arc<dyn Pipeline>, stepping: &AtomicU64) {
    let this = thread::current();
    run.fault.on_record(move || this.unpark());
    let mut built = false;
    let worked = catch_unwind(AssertUnwindSafe(|| {
        let mut worker = Worker::new(config(), allocate(allocator), Some(Instant::now()));
        worker.dataflow(|scope| {
            let ends = pipeline.build(scope, run)?;
            let events = run.events.clone();
            let (ticker, pulse, fault) = (Arc::clone(&run.ticker), Arc::clone(&run.pulse), Arc::clone(&run.fault));
            gather::build(scope, ends, ticker, pulse, fault, move |gathered| events.send(Event::Gathered(gathered)));
            Ok::<(), Error>(())
        })?;
        // A worker that is stuck must not keep what the user's function holds, such as the end of a
        // channel.
        drop(pipeline);
        built = true;
        run.events.send(Event::Built);
        if let Some(restored) = &run.restored {
            restored.wait_for_all(&run.fault);
        }
        // The machine's clock, because a worker gets stuck in real time.
        let clock = Clock::system();
        let mut moved = clock.now();
        while !run.fault.is_set() && worker.has_dataflows() {
            let now = clock.now();
            stepping.store(now.as_nanos().max(1), Relaxed);
            if run.spin.is_zero() {
                worker.step_or_park(Some(run.park_max));
            } else if now - moved >= run.spin {
                worker.step_or_park(Some(run.park_max));
                moved = clock.now();
            } else {
                worker.step();
                // What a step has activated is processed by the next one.
                if worker.activations().borrow().empty_for() == Some(Duration::ZERO) {
                    moved = now;
                }
            }
        }
        // Nothing steps any more, so no operator sees a frontier that moves because capabilities
        // are dropped.
        worker.installed_dataflows().into_iter().for_each(|dataflow| worker.drop_dataflow(dataflow));
        Ok(())
    }));
    let failed = worked.unwrap_or_else(|payload| {
        let operator = fault::here().map_or("pipeline", |node| run.plan.name(node));
        Err(fault::panicked(operator, &*payload))
    });
    match failed {
        Ok(()) => {}
        Err(error) if built => run.fault.record(error),
        Err(error) => run.events.send(Event::NotBuilt(error)),
    }
    stepping.store(0, Relaxed);
    run.events.send(Event::WorkerEnded);
}

fn config() -> WorkerConfig {
    WorkerConfig::default().progress_mode(ProgressMode::Demand)
}

/// Builds an allocator on its worker's thread; `AllocatorBuilder` itself does not offer that.
fn allocate(builder: AllocatorBuilder) -> Allocator {
    match builder {
        AllocatorBuilder::Thread(_) => Allocator::Thread(Thread::default()),
        AllocatorBuilder::Process(process) => Allocator::Process(process.build()),
        AllocatorBuilder::Tcp(tcp) => Allocator::Tcp(tcp.build()),
    }
}
