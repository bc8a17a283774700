//! The control thread of a job: one run after the other. When a run fails and the job's policy says
//! so, it begins another with fresh clients, where the failed one had committed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::epoch::commit::Memory;
use crate::io::Closing;
use crate::operator::fault::panicked;
use crate::words::{Error, ErrorKind, Result};

use super::events::Events;
use super::handle::Handle;
use super::memory;
use super::metrics;
use super::server::Server;
use super::shared::Pipeline;
use super::spec::Spec;

/// This many runs in a row that fail in user code without a commit end the job: the next would fail
/// at the same record.
const FUTILE_RUNS: u32 = 3;

/// The body of the control thread. `started` receives whether the first run started.
pub(crate) fn supervise(
    spec: &Spec,
    pipeline: Arc<dyn Pipeline>,
    handle: &Arc<Handle>,
    started: &mpsc::Sender<Result<()>>,
) {
    let span = tracing::info_span!("job", name = spec.job);
    let _of_job = span.enter();
    let checkpoints = match memory::open(spec) {
        Ok(checkpoints) => checkpoints,
        Err(error) => {
            handle.end(Ok(()));
            drop(started.send(Err(error)));
            return;
        }
    };
    let mut memory = Memory::default();
    let mut futile = 0;
    let mut pause = spec.restart.map_or(Duration::ZERO, |backoff| backoff.first);
    let mut began = false;
    let result = loop {
        let (events, receiver) = Events::new();
        handle.wakes(events.clone());
        let mut server =
            match Server::start(spec, &pipeline, handle, events, &receiver, (&memory, checkpoints.as_ref())) {
                Ok(server) => server,
                Err(error) if !began => {
                    // The job is not running, and `start` returns why.
                    handle.end(Ok(()));
                    drop(checkpoints);
                    drop(started.send(Err(error)));
                    return;
                }
                // A plan that panicked would panic again.
                Err(error) if error.kind() == ErrorKind::Panic => break Err(error),
                Err(error) => match wait_for_next(spec, handle, error, &mut pause) {
                    Some(error) => break Err(error),
                    None => continue,
                },
            };
        server.log_start();
        if !began {
            began = true;
            handle.started();
            drop(started.send(Ok(())));
        }
        // A connector that panics here must not leave workers behind.
        let served = catch_unwind(AssertUnwindSafe(|| server.serve(handle, &receiver)));
        let result = served.unwrap_or_else(|payload| Err(panicked("connector", &*payload)));
        let commits = server.commits();
        memory = server.memory();
        let closing = match &result {
            Err(error) if spec.restart.is_some() && error.kind().is_transient() => Closing::Run,
            Ok(()) | Err(_) => Closing::Job,
        };
        server.take_down(handle, closing);
        let Err(error) = result else { break Ok(()) };
        if commits > 0 {
            futile = 0;
            pause = spec.restart.map_or(pause, |backoff| backoff.first);
        } else if matches!(error.kind(), ErrorKind::Panic | ErrorKind::Stuck) {
            futile += 1;
        }
        if futile >= FUTILE_RUNS {
            break Err(error);
        }
        if let Some(error) = wait_for_next(spec, handle, error, &mut pause) {
            break Err(error);
        }
    };
    drop(pipeline);
    // Before the outcome is known: another job may then start in its directory.
    drop(checkpoints);
    match &result {
        Ok(()) => tracing::info!("ended"),
        Err(error) if error.kind() == ErrorKind::Aborted => tracing::info!("aborted"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "failed"),
    }
    handle.end(result);
}

/// Waits until the next run may begin; returns the error when no other run follows.
fn wait_for_next(spec: &Spec, handle: &Handle, error: Error, pause: &mut Duration) -> Option<Error> {
    let Some(backoff) = spec.restart.filter(|_| error.kind().is_transient()) else { return Some(error) };
    handle.failed(&error);
    tracing::warn!(error = format!("{error:#}"), pause = ?*pause, "run failed, restarting");
    if handle.pause(*pause) {
        return Some(error);
    }
    *pause = (*pause * 2).min(backoff.longest);
    handle.restarts(error);
    handle.labels().into_iter().for_each(metrics::restarts);
    None
}
