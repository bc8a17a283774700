//! Plans a run on a thread of its own: connecting may take long, and a program that stops the job
//! does not wait for it. A plan that is no longer waited for ends by itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::operator::fault::panicked;
use crate::words::{Error, ErrorKind, Result, spawn};

use super::events::{Event, Events};
use super::graph::Graph;
use super::handle::Handle;
use super::plan::{Plan, Planning};
use super::shared::Pipeline;
use super::spec::Spec;

/// What the pipeline function of a job builds, after checking that it is well formed.
pub(crate) fn sketch(spec: &Spec, pipeline: &dyn Pipeline) -> Result<Graph> {
    catching(&spec.job, || {
        let graph = pipeline.sketch()?;
        graph.check()?;
        if let Some(name) = graph.keeps_state() {
            check_state(spec, name)?;
        }
        Ok(graph)
    })
}

/// Checks that the state of the operator of that name has a place.
fn check_state(spec: &Spec, name: &str) -> Result<()> {
    let wrong = |doing: String| Err(Error::new(ErrorKind::Config, format!("job `{}`: {doing}", spec.job)));
    if !spec.state_in_memory {
        return wrong(format!("`{name}` keeps state: the job needs `state_in_memory`"));
    }
    if spec.restart.is_some() {
        return wrong(format!("`{name}` keeps state in memory, which a restart would lose: use `Restart::Never`"));
    }
    Ok(())
}

/// Connects the sources and sinks of a pipeline.
pub(crate) fn plan(
    planning: Planning,
    pipeline: &Arc<dyn Pipeline>,
    handle: &Handle,
    events: &Events,
    receiver: &Receiver<Event>,
) -> Result<Plan> {
    let (job, sender, pipeline) = (planning.spec.job.clone(), events.clone(), Arc::clone(pipeline));
    let body = move || {
        let job = &planning.spec.job;
        let planned =
            sketch(&planning.spec, &*pipeline).and_then(|graph| catching(job, || pipeline.connect(graph, &planning)));
        sender.send(Event::Planned(Box::new(planned)));
    };
    spawn("plan", body)?;
    while !handle.is_aborted() && handle.stop_asked().is_none() {
        // A client may wake the control thread before the plan is complete.
        if let Event::Planned(plan) = receiver.recv().expect("a sender is kept") {
            return *plan;
        }
    }
    Err(Error::new(ErrorKind::Aborted, format!("job `{job}` was stopped before it was connected")))
}

/// Turns a panic of the user's function into an error.
fn catching<T>(job: &str, body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let doing = format!("cannot plan job `{job}`");
        Err(Error::new(ErrorKind::Panic, doing).caused_by(panicked("pipeline", &*payload)))
    })
}
