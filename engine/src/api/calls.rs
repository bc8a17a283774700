//! How a stage calls other services.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash, RandomState};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tracing::Span;

use crate::operator::call_queue::{LaneId, LaneOf};
use crate::operator::calls::{CallOptions, CallPlan, RetryPolicy};
use crate::state::pending::Codec;

use super::key::State;

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

    /// At most `at_once` calls at a time, and one for each key: the call of a record is made when
    /// the record of the same key before it is answered, also after retries. So the answers of a
    /// key are in the order of its records, and a key whose calls are slow does not hold up the
    /// others. Answers of different keys are handed on as they come.
    ///
    /// Records that wait for their key do not count as calls, but their memory stays counted
    /// ([`Job::memory`](crate::Job::memory)), and so does that of the records that were read
    /// together with them. If a key gets more records than its calls can answer for so long that
    /// the memory is used up, nothing more is read, and the other keys wait too.
    ///
    /// The order is that of the records of one worker. All records of a key are on one worker when
    /// they come from one partition, or from what is computed by that key
    /// ([`key_by`](crate::Stream::key_by)). Two keys with the same hash count as one; that happens
    /// by chance only, about once in 18 billion billion pairs of keys.
    ///
    /// ```
    /// use millstream::{Calls, Job, collect, rows};
    /// use std::time::Duration;
    ///
    /// let results = collect();
    /// let sink = results.clone();
    /// Job::new("accounts", move |flow| {
    ///     let payments = [("ann", 1), ("ann", 2), ("bob", 3), ("bob", 4)];
    ///     let book = |(account, amount)| async move {
    ///         let is_slow = account == "ann";
    ///         tokio::time::sleep(Duration::from_millis(if is_slow { 200 } else { 1 })).await;
    ///         amount
    ///     };
    ///     let calls = Calls::by_key(|(account, _): &(&'static str, u64)| *account, 16);
    ///     flow.source(rows(payments).partitions(1))?.map_async(calls, book).or_stop().sink(&sink)
    /// })
    /// .run()?;
    /// assert_eq!(results.values(), [3, 4, 1, 2]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    ///
    /// # Panics
    /// When `at_once` is 0.
    pub fn by_key<T: 'static, K: Hash>(key: impl Fn(&T) -> K + 'static, at_once: usize) -> KeyedCalls<T> {
        let Calls(options) = Calls::unordered(at_once);
        // With a seed of its own: keys may come from a client that wants them to collide.
        let hasher = RandomState::new();
        KeyedCalls { options, lane_of: Rc::new(move |record| LaneId(hasher.hash_one(key(record)))) }
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
    /// it wait for it; [by key](Calls::by_key), the records behind it of the same key. A
    /// [stop](crate::JobHandle::stop) waits for retries; after the deadline of a
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
    pub fn retry(self, times: u32, pause: Duration) -> RetriedCalls<Calls> {
        RetriedCalls { calls: self, times, pause }
    }

    /// Keeps open calls in checkpoints: no checkpoint waits for a call. Calls before what keeps
    /// state must be kept ([`Stream::key_by`](crate::Stream::key_by)).
    ///
    /// The records of open calls are state, from when they come until their answers are handed on.
    /// A run that goes on from a checkpoint makes the calls of the records in it again, so **a call
    /// may be made twice**: the service must accept that. Time-outs and failures are values, as
    /// without this, and calls that have had their time before the crash get it again. An answer
    /// belongs to the checkpoint that is open when it is handed on, which under
    /// [micro-batches](crate::Trigger::MicroBatch) may be a later batch than that of its record.
    ///
    /// Checkpoints find the records by the name of the stage. If there are several, name each
    /// directly behind `map_async` ([`named`](crate::Stream::named)).
    ///
    /// The job needs [`checkpoints`](crate::Job::checkpoints) or
    /// [`state_in_memory`](crate::Job::state_in_memory), and records must be something that serde
    /// can write and read. The receipt of a record ([`channel`](crate::channel)) resolves when the
    /// checkpoint that has the record is committed, also while its call is open. A
    /// [stop](crate::JobHandle::stop), and a run whose input ends, still wait for open calls. After
    /// the deadline of a [`stop_within`](crate::JobHandle::stop_within), the calls in the last
    /// checkpoint are made by the next run. The order of answers holds over a restart with the same
    /// number of workers; with another number, records of one partition may be on two workers for
    /// as long as the older of them have open calls.
    ///
    /// Windows may follow: event time goes no further than the records of open calls allow, so a
    /// window waits for theirs, and closes when the last of them is answered. So one call that is
    /// slow holds up all windows behind it, for [`within`](Calls::within) at the longest (with
    /// retries: times their number); the report says where time is held
    /// ([`StageReport::holds_watermark_at`](crate::StageReport::holds_watermark_at)). Not with
    /// [`WatermarkPolicy::MaxSeen`](crate::WatermarkPolicy::MaxSeen), which judges records by the
    /// watermark alone: that is refused at start.
    ///
    /// ```
    /// use millstream::{Calls, Job, collect, rows};
    /// use std::collections::BTreeMap;
    ///
    /// async fn country(user: u64) -> &'static str {
    ///     if user % 3 == 0 { "NL" } else { "BE" }
    /// }
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// Job::new("users by country", move |flow| {
    ///     let countries = flow.source(rows(0..300_u64))?.map_async(Calls::unordered(64).kept(), country).or_stop();
    ///     countries.key_by(|country| country.to_string()).count().updates().sink(&sink)
    /// })
    /// .state_in_memory()
    /// .run()?;
    /// let last: BTreeMap<String, u64> = counts.values().into_iter().collect();
    /// assert_eq!((last["NL"], last["BE"]), (100, 200));
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn kept(self) -> KeptCalls<Calls> {
        KeptCalls { calls: self }
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

/// Calls in order by key; see [`Calls::by_key`].
#[must_use = "it only configures `Stream::map_async`"]
pub struct KeyedCalls<T> {
    options: CallOptions,
    lane_of: LaneOf<T>,
}

impl<T> KeyedCalls<T> {
    /// As [`Calls::within`].
    pub fn within(self, limit: Duration) -> KeyedCalls<T> {
        KeyedCalls { options: CallOptions { within: limit, ..self.options }, ..self }
    }

    /// As [`Calls::retry`]. The records behind it of the same key wait for it.
    pub fn retry(self, times: u32, pause: Duration) -> RetriedCalls<KeyedCalls<T>> {
        RetriedCalls { calls: self, times, pause }
    }

    /// As [`Calls::kept`].
    pub fn kept(self) -> KeptCalls<KeyedCalls<T>> {
        KeptCalls { calls: self }
    }
}

impl<T> fmt::Debug for KeyedCalls<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyedCalls({:?})", self.options)
    }
}

/// Calls that are retried when they fail; see [`Calls::retry`].
#[derive(Clone, Copy, Debug)]
#[must_use = "it only configures `Stream::map_async`"]
pub struct RetriedCalls<C> {
    calls: C,
    times: u32,
    pause: Duration,
}

impl<C> RetriedCalls<C> {
    /// As [`Calls::kept`]. A record that is called again after a crash has all its attempts.
    pub fn kept(self) -> KeptCalls<RetriedCalls<C>> {
        KeptCalls { calls: self }
    }
}

/// Calls whose records are kept in checkpoints until they are answered; see [`Calls::kept`].
#[derive(Clone, Copy, Debug)]
#[must_use = "it only configures `Stream::map_async`"]
pub struct KeptCalls<C> {
    calls: C,
}

/// How [`Stream::map_async`](crate::Stream::map_async) makes calls for records of type `T` with
/// futures that resolve to a `U`: [`Calls`] for any types, [`KeyedCalls`] for records that have its
/// keys, [`RetriedCalls`] where `T` is `Clone` and `U` is a `Result`, [`KeptCalls`] where serde can
/// write and read `T`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot make calls for records of type `{T}` with futures that resolve to `{U}`",
    note = "`Calls::retry` needs records that are `Clone`, and futures that resolve to a `Result`",
    note = "`Calls::kept` needs records that serde can write and read"
)]
pub trait CallPolicy<T, U>: sealed::Sealed<T, U> {}

impl<T, U> CallPolicy<T, U> for Calls {}

impl<T, U> CallPolicy<T, U> for KeyedCalls<T> {}

impl<T: Clone, V, E, C: CallPolicy<T, Result<V, E>>> CallPolicy<T, Result<V, E>> for RetriedCalls<C> {}

impl<T: State, U, C: CallPolicy<T, U>> CallPolicy<T, U> for KeptCalls<C> {}

pub(super) mod sealed {
    use super::CallPlan;

    pub trait Sealed<T, U> {
        fn parts(self) -> Parts<T, U>;
    }

    #[derive(Debug)]
    pub struct Parts<T, U>(pub(crate) CallPlan<T, U>);
}

impl<T, U> sealed::Sealed<T, U> for Calls {
    fn parts(self) -> sealed::Parts<T, U> {
        sealed::Parts(CallPlan { options: self.0, retry: None, lane_of: None, kept: None })
    }
}

impl<T, U> sealed::Sealed<T, U> for KeyedCalls<T> {
    fn parts(self) -> sealed::Parts<T, U> {
        sealed::Parts(CallPlan { options: self.options, retry: None, lane_of: Some(self.lane_of), kept: None })
    }
}

impl<T: Clone, V, E, C: CallPolicy<T, Result<V, E>>> sealed::Sealed<T, Result<V, E>> for RetriedCalls<C> {
    fn parts(self) -> sealed::Parts<T, Result<V, E>> {
        let RetriedCalls { calls, times, pause } = self;
        let has_failed = |answer: &_| !matches!(answer, Ok(Ok(_)));
        let sealed::Parts(plan) = calls.parts();
        sealed::Parts(CallPlan { retry: Some(RetryPolicy { times, pause, copy: T::clone, has_failed }), ..plan })
    }
}

impl<T: State, U, C: CallPolicy<T, U>> sealed::Sealed<T, U> for KeptCalls<C> {
    fn parts(self) -> sealed::Parts<T, U> {
        let sealed::Parts(plan) = self.calls.parts();
        sealed::Parts(CallPlan { kept: Some(Codec::new()), ..plan })
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
