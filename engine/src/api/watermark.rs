//! Where a stream gets its event time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::run::graph::{NodeTraits, TimeTrait};
use crate::words::EventTime;

use super::stream::Stream;

/// How event time passes in a stream; see [`Stream::with_watermark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watermark {
    delay: Duration,
    ahead: Option<Duration>,
}

impl Watermark {
    /// Records of a partition may be out of order by this time: what is less than `delay` behind
    /// the largest event time of its partition is never late.
    pub fn delay(delay: Duration) -> Watermark {
        Watermark { delay, ahead: None }
    }

    /// Refuses event times that are further ahead of the job's clock than this: such a record goes
    /// to the late ones ([`Lateness::Ahead`](crate::Lateness::Ahead)) and moves nothing. Without
    /// it, one record that is centuries ahead closes all windows.
    ///
    /// What is refused depends on when a record is read, and so may differ when it is read again.
    ///
    /// ```
    /// use millstream::{Clock, EventTime, Job, Tumbling, Watermark, collect, rows};
    /// use std::time::Duration;
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// let job = Job::new("visits", move |flow| {
    ///     let minute = Duration::from_secs(60);
    ///     // The second one was written in microseconds.
    ///     flow.source(rows([1_000, 1_500_000, 2_000]).partitions(1))?
    ///         .with_watermark(|at| EventTime(*at), Watermark::delay(Duration::ZERO).ahead_at_most(minute))
    ///         .global()
    ///         .window(Tumbling::new(minute))
    ///         .count()
    ///         .finals()
    ///         .map(|pane| pane.value)
    ///         .sink(&sink)
    /// });
    /// job.state_in_memory().clock(Clock::simulated()).run()?;
    /// assert_eq!(counts.values(), [2]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    #[must_use]
    pub fn ahead_at_most(self, ahead: Duration) -> Watermark {
        Watermark { ahead: Some(ahead), ..self }
    }
}

impl From<Duration> for Watermark {
    fn from(delay: Duration) -> Watermark {
        Watermark::delay(delay)
    }
}

impl<'a, T: 'static> Stream<'a, T> {
    /// Says when each record happened, and how far out of order records may be: the time by which
    /// windows close. A record without a time (`None`) passes, moves nothing, and counts as late in
    /// windows.
    ///
    /// Each partition has a *mark*: its largest event time so far, less the delay. The watermark is
    /// the least mark of all partitions, so a slow partition loses nothing.
    ///
    /// It must stand behind its source, where the records of a partition are in order: before it
    /// may be `map`, `filter`, `flat_map`, `inspect`, `or_skip`, `or_stop` and `map_batches`.
    /// Behind a fork, a `union`, a change of workers or calls it is refused at start.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Watermark, discard, rows};
    /// use std::time::Duration;
    ///
    /// let job = Job::new("timed", |flow| {
    ///     let delay = Watermark::delay(Duration::from_secs(10));
    ///     flow.source(rows([(1_764_000_000_000, "a")]))?.with_watermark(|(at, _)| EventTime(*at), delay).sink(discard())
    /// });
    /// job.run()?;
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn with_watermark<M: Into<Option<EventTime>>>(
        self,
        time: impl Fn(&T) -> M + 'static,
        watermark: impl Into<Watermark>,
    ) -> Stream<'a, T> {
        let flow = self.flow.share();
        let traits = NodeTraits { time: TimeTrait::Sets, ..NodeTraits::default() };
        let node = flow.stage_node::<T, T>("with_watermark", &[self.input()], traits);
        let Watermark { delay, ahead } = watermark.into();
        let (board, clock) = (flow.open_board(node, delay), flow.place(node).map(|place| place.run.clock.clone()));
        self.through(node, move |mut batch| {
            if let Some(board) = &board {
                let now = ahead.zip(clock.as_ref()).map(|(ahead, clock)| EventTime(clock.wall().0).after(ahead));
                let mut stamps = VecDeque::with_capacity(batch.len());
                let times = batch.parts().0.iter().map(|value| time(value).into().unwrap_or(EventTime::NONE));
                board.stamp(times, now.unwrap_or(EventTime::END), &mut stamps);
                batch.set_stamps(stamps);
            }
            Ok(batch)
        })
    }
}
