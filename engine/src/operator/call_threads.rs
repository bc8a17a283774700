//! The threads of a run's calls: a few that poll futures, more for blocking calls, and one that
//! keeps time. The last runs no user code, so a time limit holds whatever a future does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::words::{Error, ErrorKind, Result, lock};

use super::fault::Node;

/// Threads that poll futures: as many as the machine has processors, within these bounds. With only
/// one, a future that blocks would hold up all others. More than a few would help only futures that
/// block, and those have threads of their own.
const POLLING_MIN: usize = 2;
const POLLING_MAX: usize = 8;
/// The largest number of threads for blocking calls. They start when they are needed, and end after
/// ten seconds without work.
const BLOCKING_MAX: usize = 512;
/// The shortest time between two warnings about blocking futures of one stage.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// The threads of a run's calls, until [`end`](CallThreads::end).
pub(crate) struct CallThreads {
    calls: Runtime,
    timer: Runtime,
    desk: CallDesk,
}

/// Where a stage submits its calls. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CallDesk {
    /// Runs futures.
    pub(crate) calls: Handle,
    /// Runs nothing but alarms.
    pub(crate) timer: Handle,
    /// When the last warning of each stage was logged.
    warned: Arc<Mutex<HashMap<Node, Instant>>>,
}

impl CallThreads {
    pub(crate) fn start() -> Result<CallThreads> {
        let cannot = |cause| Error::new(ErrorKind::System, "cannot start the threads that make calls").caused_by(cause);
        let polling = available_parallelism().map_or(POLLING_MIN, usize::from).clamp(POLLING_MIN, POLLING_MAX);
        let calls = Builder::new_multi_thread()
            .worker_threads(polling)
            .max_blocking_threads(BLOCKING_MAX)
            .thread_name("millstream-calls")
            .enable_all()
            .build()
            .map_err(cannot)?;
        let timer = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("millstream-timer")
            .enable_time()
            .build()
            .map_err(cannot)?;
        let desk = CallDesk { calls: calls.handle().clone(), timer: timer.handle().clone(), warned: Arc::default() };
        Ok(CallThreads { calls, timer, desk })
    }

    pub(crate) fn desk(&self) -> CallDesk {
        self.desk.clone()
    }

    /// Drops the calls under way and ends the threads, without waiting for either.
    pub(crate) fn end(self) {
        self.calls.shutdown_background();
        self.timer.shutdown_background();
    }
}

impl CallDesk {
    /// Warns that a future of that stage has kept its thread for this long.
    pub(crate) fn warn_of_blocking(&self, stage: (Node, &str), lasted: Duration) {
        let (node, name) = stage;
        {
            let mut warned = lock(&self.warned);
            if warned.get(&node).is_some_and(|last| last.elapsed() < WARN_EVERY) {
                return;
            }
            warned.insert(node, Instant::now());
        }
        tracing::warn!(
            stage = name,
            ?lasted,
            "a future of `map_async` blocks its thread and holds up other calls; make it with `Calls::blocking`"
        );
    }
}
