//! Threads of the engine and of connectors.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use super::{Error, ErrorKind, Result};

/// Starts a thread with the name `millstream-` followed by `name`. Its `tracing` events belong to
/// the job of the thread that starts it.
///
/// # Errors
/// When the system cannot start a thread.
pub fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let name = format!("millstream-{name}");
    let span = tracing::Span::current();
    let started = Builder::new().name(name.clone()).spawn(move || span.in_scope(body));
    started.map_err(|cause| Error::new(ErrorKind::System, format!("cannot start the thread `{name}`")).caused_by(cause))
}

/// As [`spawn`], and calls `failed` with an error when the thread panics.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_watched(
    name: &str,
    body: impl FnOnce() + Send + 'static,
    failed: impl FnOnce(Error) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let thread = format!("millstream-{name}");
    spawn(name, move || {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
            let doing = format!("the thread `{thread}` panicked: {}", panic_message(&*payload));
            failed(Error::new(ErrorKind::Panic, doing));
        }
    })
}

/// The message of a caught panic.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let message = payload.downcast_ref::<String>().map(String::as_str);
    message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
