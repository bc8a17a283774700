//! Plans a run on a thread of its own: connecting may take long, and a program that stops the job
//! does not wait for it. A plan that is no longer waited for ends by itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::epoch::ticker::Pace;
use crate::operator::fault::panicked;
use crate::words::{Error, ErrorKind, Result, spawn};

use super::events::{Event, Events};
use super::graph::Graph;
use super::handle::Handle;
use super::plan::{Plan, Planning};
use super::shared::Pipeline;
use super::spec::{Remembers, Spec};

/// What the pipeline function of a job builds, after checking that it is well formed.
pub(crate) fn sketch(spec: &Spec, pipeline: &dyn Pipeline) -> Result<Graph> {
    catching(&spec.job, || {
        let graph = pipeline.sketch()?;
        graph.check()?;
        if let Some(name) = graph.keeps_state()
            && spec.remembers == Remembers::Nothing
        {
            let doing =
                format!("job `{}`: `{name}` keeps state: the job needs `checkpoints` or `state_in_memory`", spec.job);
            return Err(Error::new(ErrorKind::Config, doing));
        }
        if matches!(spec.remembers, Remembers::InDirectory(_)) {
            graph.check_names()?;
            if let Some(name) = spec.empty.iter().find(|name| !graph.keeps_state_at(name)) {
                let doing = format!("job `{}`: `start_empty` names `{name}`, which keeps no state", spec.job);
                return Err(Error::new(ErrorKind::Config, doing));
            }
        }
        if let Pace::Continuous { checkpoint_every } = spec.pace {
            graph.check_times(checkpoint_every)?;
        }
        graph.check_policies(!matches!(spec.pace, Pace::Continuous { .. }))?;
        Ok(graph)
    })
}

/// Connects the sources and sinks of a pipeline.
pub(crate) fn plan(
    mut planning: Planning,
    pipeline: &Arc<dyn Pipeline>,
    handle: &Handle,
    events: &Events,
    receiver: &Receiver<Event>,
) -> Result<Plan> {
    let (job, sender, pipeline) = (planning.spec.job.clone(), events.clone(), Arc::clone(pipeline));
    let body = move || {
        let planned = sketch(&planning.spec, &*pipeline).and_then(|graph| {
            let resumed = planning.resume(&graph)?.map(Box::new);
            let plan = catching(&planning.spec.job, || pipeline.connect(graph, &planning))?;
            Ok(Plan { memory: planning.memory.clone(), resumed, ..plan })
        });
        // Before: another job may start in its directory once it is known that the plan has failed.
        drop(planning);
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
