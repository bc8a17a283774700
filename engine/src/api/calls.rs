//! How a stage calls other services.

use std::fmt;
use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::Span;

use crate::operator::calls::{CallOptions, RetryPolicy};

/// How many calls run at once on each worker, in which order their answers are handed on, how long
/// a call may take, and whether failed calls are retried; see
/// [`Stream::map_async`](crate::Stream::map_async).
#[derive(Clone, Copy, Debug)]
#[must_use = "it only configures `Stream::map_async`"]
pub struct Calls(CallOptions);

impl Calls {
    /// At most `at_once` calls at a time; answers are handed on in the order of their records.
    /// While a call has no answer, calls for later records are made until they are four times
    /// `at_once`, or 64 if that is more.
    ///
    /// # Panics
    /// When `at_once` is 0.
    pub fn ordered(at_once: usize) -> Calls {
        assert!(at_once > 0, "`at_once` must be greater than zero");
        Calls(CallOptions { at_once, is_ordered: true, within: Duration::from_secs(10) })
    }

    /// At most `at_once` calls at a time; answers are handed on as they come, so a slow call does
    /// not hold up the others.
    ///
    /// # Panics
    /// When `at_once` is 0.
    pub fn unordered(at_once: usize) -> Calls {
        let Calls(options) = Calls::ordered(at_once);
        Calls(CallOptions { is_ordered: false, ..options })
    }

    /// How long a call may take, from when it is made; 10 s by default. A call that takes longer is
    /// dropped, and its record is handed on as [`TimedOut`](crate::TimedOut), even when its future
    /// blocks its thread.
    pub fn within(self, limit: Duration) -> Calls {
        Calls(CallOptions { within: limit, ..self.0 })
    }

    /// Retries a failed call up to `times` times. A call has failed when it timed out or its future
    /// resolved to an `Err`. The first retry is made after `pause`, and the pause doubles for each
    /// one after that, up to a minute. Each attempt may take the whole of
    /// [`within`](Calls::within). The result of the last attempt is handed on.
    ///
    /// A record that waits for its next attempt does not count as one of the `at_once`: calls for
    /// other records are made meanwhile, and in order as many as [`ordered`](Calls::ordered) says.
    /// Its memory stays counted ([`Job::memory`](crate::Job::memory)). In order, the answers behind
    /// it wait for it. A [stop](crate::JobHandle::stop) waits for retries; after the deadline of a
    /// [`stop_within`](crate::JobHandle::stop_within) none is made. Futures must resolve to a
    /// `Result`. An error that a retry cannot help should be returned as `Ok`, such as
    /// `Ok(Err(no_such_customer))`. Each attempt is made with a clone of the record, so records
    /// must be [`Clone`].
    ///
    /// ```
    /// use millstream::{Calls, Job, collect, rows};
    /// use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    /// use std::time::Duration;
    ///
    /// static AWAY: AtomicBool = AtomicBool::new(true);
    ///
    /// async fn price(order: u64) -> Result<u64, &'static str> {
    ///     if AWAY.swap(false, SeqCst) { Err("the service is away") } else { Ok(order * 3) }
    /// }
    ///
    /// let results = collect();
    /// let sink = results.clone();
    /// Job::new("prices", move |flow| {
    ///     let calls = Calls::ordered(16).within(Duration::from_secs(1)).retry(3, Duration::from_millis(10));
    ///     flow.source(rows(0..4))?.map_async(calls, price).or_stop().or_skip().sink(&sink)
    /// })
    /// .run()?;
    /// assert_eq!(results.values(), [0, 3, 6, 9]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn retry(self, times: u32, pause: Duration) -> RetriedCalls {
        RetriedCalls { calls: self, times, pause }
    }

    /// Makes calls of a function that blocks. Pass the result to
    /// [`map_async`](crate::Stream::map_async) in place of an async function. Each call has a
    /// thread of its own, so none holds up another, and [`at_once`](Calls::ordered) sets how many
    /// there are.
    ///
    /// A call whose time is up cannot be ended from outside: its record is handed on as
    /// [`TimedOut`](crate::TimedOut), and its thread lives until the function returns. A run has at
    /// most 512 such threads. While all of them are taken, calls wait for one, and may time out
    /// meanwhile.
    ///
    /// ```
    /// use millstream::{Calls, Job, collect, rows};
    /// use std::{thread, time::Duration};
    ///
    /// let results = collect();
    /// let sink = results.clone();
    /// Job::new("blocking", move |flow| {
    ///     let look_up = Calls::blocking(|n: u64| {
    ///         thread::sleep(Duration::from_millis(10));
    ///         n + 1
    ///     });
    ///     flow.source(rows(0..32))?.map_async(Calls::ordered(16), look_up).or_stop().sink(&sink)
    /// })
    /// .run()?;
    /// assert_eq!(results.len(), 32);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    ///
    /// # Panics
    /// The returned function panics when it is called outside a tokio runtime. `map_async` calls it
    /// within one.
    pub fn blocking<T, U>(f: impl Fn(T) -> U + Send + Sync + 'static) -> impl Fn(T) -> Blocking<U> + 'static
    where
        T: Send + 'static,
        U: Send + 'static,
    {
        let f = Arc::new(f);
        move |value| {
            let (f, span) = (Arc::clone(&f), Span::current());
            Blocking(spawn_blocking(move || span.in_scope(|| f(value))))
        }
    }
}

/// [`Calls`] that retries failed calls; see [`Calls::retry`].
#[derive(Clone, Copy, Debug)]
#[must_use = "it only configures `Stream::map_async`"]
pub struct RetriedCalls {
    calls: Calls,
    times: u32,
    pause: Duration,
}

/// How [`Stream::map_async`](crate::Stream::map_async) makes calls for records of type `T` with
/// futures that resolve to a `U`: [`Calls`] for any types, [`RetriedCalls`] where `T` is `Clone`
/// and `U` is a `Result`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot make calls for records of type `{T}` with futures that resolve to `{U}`",
    note = "`Calls::retry` needs records that are `Clone`, and futures that resolve to a `Result`"
)]
pub trait CallPolicy<T, U>: sealed::Sealed<T, U> {}

impl<T, U> CallPolicy<T, U> for Calls {}

impl<T: Clone, V, E> CallPolicy<T, Result<V, E>> for RetriedCalls {}

pub(super) mod sealed {
    use super::{CallOptions, RetryPolicy};

    pub trait Sealed<T, U> {
        fn parts(self) -> Parts<T, U>;
    }

    #[derive(Debug)]
    pub struct Parts<T, U>(pub(crate) CallOptions, pub(crate) Option<RetryPolicy<T, U>>);
}

impl<T, U> sealed::Sealed<T, U> for Calls {
    fn parts(self) -> sealed::Parts<T, U> {
        sealed::Parts(self.0, None)
    }
}

impl<T: Clone, V, E> sealed::Sealed<T, Result<V, E>> for RetriedCalls {
    fn parts(self) -> sealed::Parts<T, Result<V, E>> {
        let RetriedCalls { calls: Calls(options), times, pause } = self;
        let has_failed = |answer: &_| !matches!(answer, Ok(Ok(_)));
        sealed::Parts(options, Some(RetryPolicy { times, pause, copy: T::clone, has_failed }))
    }
}

/// The future of a call that blocks a thread of its own; see [`Calls::blocking`]. If it is dropped
/// before its call has begun, the call is not made.
#[must_use = "futures do nothing unless they are awaited"]
pub struct Blocking<U>(JoinHandle<U>);

impl<U> Future for Blocking<U> {
    type Output = U;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<U> {
        match ready!(Pin::new(&mut self.0).poll(context)).map_err(tokio::task::JoinError::try_into_panic) {
            Ok(value) => Poll::Ready(value),
            Err(Ok(payload)) => resume_unwind(payload),
            // The runtime has ended, and no stage waits for the answer.
            Err(Err(_)) => Poll::Pending,
        }
    }
}

impl<U> Drop for Blocking<U> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<U> fmt::Debug for Blocking<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Blocking")
    }
}
