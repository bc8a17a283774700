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
}

impl Watermark {
    /// Records of a partition may be out of order by this time: what is less than `delay` behind
    /// the largest event time of its partition is never late.
    pub fn delay(delay: Duration) -> Watermark {
        Watermark { delay }
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
        let board = flow.open_board(node, watermark.into().delay);
        self.through(node, move |mut batch| {
            if let Some(board) = &board {
                let mut stamps = VecDeque::with_capacity(batch.len());
                let times = batch.parts().0.iter().map(|value| time(value).into().unwrap_or(EventTime::NONE));
                board.stamp(times, &mut stamps);
                batch.set_stamps(stamps);
            }
            Ok(batch)
        })
    }
}
