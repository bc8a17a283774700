//! Threads of the engine and of connectors.

use std::thread::{Builder, JoinHandle};

use super::{Error, ErrorKind, Result};

/// Starts a thread that is called `millstream-` and `name`, and whose events belong to the job of the thread that starts
/// it.
///
/// # Errors
/// When the system has no thread to give.
pub fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let name = format!("millstream-{name}");
    let span = tracing::Span::current();
    let started = Builder::new().name(name.clone()).spawn(move || span.in_scope(body));
    started.map_err(|cause| Error::new(ErrorKind::Option, format!("cannot start the thread `{name}`")).caused_by(cause))
}
