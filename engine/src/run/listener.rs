//! Tells the program what its job does: that it started, what it did at each interval, why it
//! restarted, and how it ended. The control thread leaves a note and continues. A thread for each
//! listener calls the program's function, so one that is slow, blocks or panics costs the job
//! nothing.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::operator::fault::panicked;
use crate::words::{Error, Result, deadline_after, lock, spawn};

use super::report::Report;

/// What a job tells its listeners; see [`Job::on_progress`](crate::Job::on_progress).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum JobEvent {
    /// The job runs: every source has begun. The first event of a job, once.
    Started(Report),
    /// Records moved, or were committed, since the event before.
    Progress(Report),
    /// Nothing moved since the event before.
    Idle(Report),
    /// A run failed, and another follows it now.
    Restarted {
        /// Why the run failed.
        reason: Arc<Error>,
        /// What the failed run had done.
        report: Report,
    },
    /// The job has ended. The last event of a job, once.
    Ended {
        /// How it ended. The error has the kind of the one that `wait` returns, and its whole chain
        /// as the message.
        outcome: Result<(), Arc<Error>>,
        /// What the last run had done.
        report: Report,
    },
}

impl JobEvent {
    /// What the job's newest run had done when it happened.
    pub fn report(&self) -> &Report {
        match self {
            JobEvent::Started(report)
            | JobEvent::Progress(report)
            | JobEvent::Idle(report)
            | JobEvent::Restarted { report, .. }
            | JobEvent::Ended { report, .. } => report,
        }
    }
}

/// A function of the program that is called with what its job does, and how often.
#[derive(Clone)]
pub(crate) struct Listener {
    pub(crate) every: Duration,
    pub(crate) tell: Arc<dyn Fn(&JobEvent) + Send + Sync>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Listener(every {:?})", self.every)
    }
}

/// The number of events kept for a listener. A listener that hangs while its job restarts again and
/// again misses the oldest restarts.
const RESTARTS_KEPT: usize = 64;
/// How long the outcome of a job waits until the listeners have been told of its end. The job is
/// down by then. Otherwise a program that exits with the outcome would never see the last event.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(1);

/// The mailboxes of a job's listeners.
#[derive(Debug, Default)]
pub(crate) struct Listeners(Mutex<Vec<Arc<Mailbox>>>);

/// Where the control thread leaves notes for one listener.
#[derive(Debug, Default)]
struct Mailbox {
    mail: Mutex<Mail>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Mail {
    events: VecDeque<JobEvent>,
    /// The job runs, so the first event has been left.
    has_started: bool,
    /// No event follows those in `events`.
    is_closed: bool,
    /// The listener's thread has delivered the last of them.
    is_through: bool,
}

impl Listeners {
    /// Starts a thread for each listener, which waits for the job to run; `report` makes the report
    /// of the job.
    pub(crate) fn open(&self, listeners: &[Listener], report: &Arc<dyn Fn() -> Report + Send + Sync>) -> Result<()> {
        for listener in listeners {
            let mailbox = Arc::<Mailbox>::default();
            lock(&self.0).push(Arc::clone(&mailbox));
            let (listener, report) = (listener.clone(), Arc::clone(report));
            spawn("listener", move || listener.listen(&mailbox, &*report))?;
        }
        Ok(())
    }

    /// The job runs.
    pub(crate) fn started(&self, report: &Report) {
        for mailbox in &*lock(&self.0) {
            mailbox.leave(|mail| {
                mail.has_started = true;
                mail.events.push_back(JobEvent::Started(report.clone()));
            });
        }
    }

    pub(crate) fn restarted(&self, error: Error, report: &Report) {
        let reason = Arc::new(error);
        for mailbox in &*lock(&self.0) {
            mailbox.leave(|mail| {
                if mail.events.len() == RESTARTS_KEPT {
                    mail.events.remove(1);
                    tracing::warn!(job = report.job, "a listener is slow and misses a restart");
                }
                mail.events.push_back(JobEvent::Restarted { reason: Arc::clone(&reason), report: report.clone() });
            });
        }
    }

    /// The job has ended, or did not start. Returns when all listeners have been told, or a second
    /// later.
    pub(crate) fn end(&self, outcome: &Result<()>, report: &Report) {
        // The error itself goes to the program that waits for the job.
        let copy = |error: &Error| Arc::new(Error::new(error.kind(), format!("{error:#}")));
        let outcome = outcome.as_ref().copied().map_err(copy);
        let mailboxes = std::mem::take(&mut *lock(&self.0));
        for mailbox in &mailboxes {
            mailbox.leave(|mail| {
                if mail.has_started {
                    mail.events.push_back(JobEvent::Ended { outcome: outcome.clone(), report: report.clone() });
                }
                mail.is_closed = true;
            });
        }
        let deadline = deadline_after(LAST_WORD_WITHIN);
        mailboxes.iter().for_each(|mailbox| mailbox.wait_until_through(deadline));
    }
}

impl Mailbox {
    fn leave(&self, write: impl FnOnce(&mut Mail)) {
        write(&mut lock(&self.mail));
        self.changed.notify_all();
    }

    /// The next event. Once the job runs, it is waited for only until `due`.
    fn next(&self, due: Instant) -> Left {
        let mut mail = lock(&self.mail);
        loop {
            if let Some(event) = mail.events.pop_front() {
                return Left::Event(Box::new(event));
            }
            if mail.is_closed {
                return Left::Nothing;
            }
            if !mail.has_started {
                mail = self.changed.wait(mail).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return Left::Due;
            };
            mail = self.changed.wait_timeout(mail, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wait_until_through(&self, deadline: Instant) {
        let mut mail = lock(&self.mail);
        while !mail.is_through {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return };
            mail = self.changed.wait_timeout(mail, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What a mailbox has.
enum Left {
    Event(Box<JobEvent>),
    /// No event came in time.
    Due,
    /// No event will come any more.
    Nothing,
}

impl Listener {
    /// The body of the thread.
    fn listen(&self, mailbox: &Mailbox, report: &dyn Fn() -> Report) {
        let mut before = Moved::default();
        let mut due = deadline_after(self.every);
        loop {
            let event = match mailbox.next(due) {
                Left::Event(event) => *event,
                Left::Due => {
                    // A function that takes longer than the interval is not called again at once.
                    due = deadline_after(self.every);
                    let report = report();
                    if Moved::of(&report) == before { JobEvent::Idle(report) } else { JobEvent::Progress(report) }
                }
                Left::Nothing => break,
            };
            before = Moved::of(event.report());
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| (self.tell)(&event))) {
                let error = panicked("listener", &*payload);
                tracing::error!(job = event.report().job, error = format!("{error:#}"), "a listener panicked");
            }
        }
        mailbox.leave(|mail| mail.is_through = true);
    }
}

/// What changes when records move.
#[derive(Debug, Default, PartialEq, Eq)]
struct Moved {
    restarts: u64,
    commits: u64,
    released: u64,
    through: u64,
    reached: u64,
    done: u64,
}

impl Moved {
    fn of(report: &Report) -> Moved {
        Moved {
            restarts: report.restarts,
            commits: report.commits,
            released: report.records_in(),
            through: report.stages.iter().map(|stage| stage.records_in + stage.records_out).sum(),
            reached: report.sinks.iter().map(|sink| sink.records).sum(),
            done: report.sinks.iter().map(|sink| sink.acknowledged + sink.skipped).sum(),
        }
    }
}
