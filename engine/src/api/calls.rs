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

use crate::operator::calls::{Again, CallOptions};

/// How many calls run at once on each worker, in which order their answers go on, how long one may
/// take, and whether one that fails is made again; see
/// [`Stream::map_async`](crate::Stream::map_async).
#[derive(Clone, Copy, Debug)]
#[must_use = "it says how `Stream::map_async` calls"]
pub struct Calls(CallOptions);

impl Calls {
    /// At most so many at once; answers go on in the order of their records. Behind a call that
    /// does not answer, others are made until four times `at_once`, or 64 when that is more, are
    /// ahead of it.
    ///
    /// # Panics
    /// When `at_once` is 0.
    pub fn ordered(at_once: usize) -> Calls {
        assert!(at_once > 0, "there must be a call at a time");
        Calls(CallOptions { at_once, is_ordered: true, within: Duration::from_secs(10) })
    }

    /// At most so many at once; answers go on as they come, so a slow one keeps no other waiting.
    ///
    /// # Panics
    /// When `at_once` is 0.
    pub fn unordered(at_once: usize) -> Calls {
        let Calls(options) = Calls::ordered(at_once);
        Calls(CallOptions { is_ordered: false, ..options })
    }

    /// How long a call may take, 10 s by default, from when it is made. One that takes longer is
    /// dropped, and its record goes on as [`TimedOut`](crate::TimedOut), also when its future
    /// blocks its thread.
    pub fn within(self, limit: Duration) -> Calls {
        Calls(CallOptions { within: limit, ..self.0 })
    }

    /// Makes a call that has failed again, at most so many times: one that timed out, or whose
    /// future came to an `Err`. The first further attempt is made after `pause`, and the pause
    /// before each one after it is twice as long, up to a minute. Each attempt may take the whole
    /// of [`within`](Calls::within). What the last attempt came to goes on.
    ///
    /// A record that waits for its next attempt is not one of the `at_once`: other records are
    /// called for meanwhile, and in order as many as [`ordered`](Calls::ordered) says. Its memory
    /// stays counted ([`Job::memory`](crate::Job::memory)). In order, the answers of those behind
    /// it wait for it. A [stop](crate::Running::stop) waits for further attempts; after the
    /// deadline of a [`stop_within`](crate::Running::stop_within) none is made. Futures must come
    /// to a `Result`. An error that another attempt does not help is one that the future returns as
    /// `Ok`, such as `Ok(Err(no_such_customer))`. Each attempt is made with a clone of the record,
    /// so records must be [`Clone`].
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

    /// Makes calls of a function that blocks: hand the result to
    /// [`map_async`](crate::Stream::map_async) in place of an async function. Each call has a
    /// thread of its own, so none holds up another, and [`at_once`](Calls::ordered) says how many
    /// there are.
    ///
    /// A call whose time is up cannot be ended from outside: its record goes on as
    /// [`TimedOut`](crate::TimedOut), and its thread lives until the function returns. There are at
    /// most 512 threads for a run. While all of them are taken, calls wait for one, and time out in
    /// the end.
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
    /// The function that is returned panics when it is called outside of a tokio runtime.
    /// `map_async` calls it within one.
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

/// [`Calls`] of which those that fail are made again; see [`Calls::retry`].
#[derive(Clone, Copy, Debug)]
#[must_use = "it says how `Stream::map_async` calls"]
pub struct RetriedCalls {
    calls: Calls,
    times: u32,
    pause: Duration,
}

/// How [`Stream::map_async`](crate::Stream::map_async) calls for records of type `T` whose futures
/// come to a `U`: [`Calls`] for any types, [`RetriedCalls`] where `T` is `Clone` and `U` a
/// `Result`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot call for records of type `{T}` whose futures come to `{U}`",
    note = "`Calls::retry` wants records that are `Clone`, and futures that come to a `Result`"
)]
pub trait CallPolicy<T, U>: sealed::Sealed<T, U> {}

impl<T, U> CallPolicy<T, U> for Calls {}

impl<T: Clone, V, E> CallPolicy<T, Result<V, E>> for RetriedCalls {}

pub(super) mod sealed {
    use super::{Again, CallOptions};

    pub trait Sealed<T, U> {
        fn parts(self) -> Parts<T, U>;
    }

    #[derive(Debug)]
    pub struct Parts<T, U>(pub(crate) CallOptions, pub(crate) Option<Again<T, U>>);
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
        sealed::Parts(options, Some(Again { times, pause, copy: T::clone, has_failed }))
    }
}

/// The future of a call that blocks a thread of its own; see [`Calls::blocking`]. When it is
/// dropped before its call has begun, the call is not made.
#[must_use = "futures do nothing unless they are awaited"]
pub struct Blocking<U>(JoinHandle<U>);

impl<U> Future for Blocking<U> {
    type Output = U;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<U> {
        match ready!(Pin::new(&mut self.0).poll(context)).map_err(tokio::task::JoinError::try_into_panic) {
            Ok(value) => Poll::Ready(value),
            Err(Ok(payload)) => resume_unwind(payload),
            // The runtime is over, and nobody waits.
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
