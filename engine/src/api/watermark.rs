//! Where a stream gets its event time.

use std::collections::VecDeque;
use std::time::Duration;

use crate::operator::marks::Rule;
use crate::run::graph::{Emits, NodeTraits, Sets, TimeTrait};
use crate::words::{EventTime, Stamp, WatermarkPolicy};

use super::stream::Stream;

/// How event time passes in a stream; see [`Stream::with_watermark`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watermark {
    delay: Duration,
    ahead: Option<Duration>,
    idle_after: Duration,
    policy: WatermarkPolicy,
}

impl Watermark {
    /// Records of a partition may be out of order by this time: what is less than `delay` behind
    /// the largest event time of its partition is never late.
    pub fn delay(delay: Duration) -> Watermark {
        Watermark { delay, ahead: None, idle_after: Duration::from_secs(10), policy: WatermarkPolicy::ByPartition }
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

    /// Leaves out a partition that is read to its end and has been silent for this time, 10 s
    /// unless it is said: otherwise one empty partition would keep all windows open. With
    /// [`Duration::MAX`] none is ever left out.
    ///
    /// When all partitions are silent, event time is that of the one that is furthest. Windows
    /// behind that stay open until there is a record. Spark's rule waits for no partition, so this
    /// changes nothing there. A record of a partition that was left out may
    /// find its window closed: then it is late, and whether it is depends on timing.
    #[must_use]
    pub fn idle_after(self, idle_after: Duration) -> Watermark {
        Watermark { idle_after, ..self }
    }

    /// Says which records are late, and when windows close; [`WatermarkPolicy`] says what each
    /// accepts. All inputs of a window must have one policy.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Trigger, Tumbling, Watermark, WatermarkPolicy, collect, rows};
    /// use std::time::Duration;
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// let job = Job::new("as in Spark", move |flow| {
    ///     let at = flow.source(rows([1_000, 12_000, 2_000]).partitions(1))?;
    ///     let watermark = Watermark::delay(Duration::ZERO).policy(WatermarkPolicy::MaxSeen);
    ///     let windows = at.with_watermark(|at| EventTime(*at), watermark).global();
    ///     let counts = windows.window(Tumbling::new(Duration::from_secs(10))).count().finals();
    ///     counts.map(|pane| pane.value).sink(&sink)
    /// });
    /// job.state_in_memory().trigger(Trigger::micro_batch(Duration::ZERO)).run()?;
    /// // All three came in one micro-batch, so none of them was late.
    /// assert_eq!(counts.values(), [2, 1]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    #[must_use]
    pub fn policy(self, policy: WatermarkPolicy) -> Watermark {
        Watermark { policy, ..self }
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
        self.set_time(move |record, _| time(record).into(), watermark.into(), Way::Record)
    }

    /// As [`with_watermark`](Stream::with_watermark), with the times that the source knows of its
    /// records: Kafka's own timestamp of a record, when its file was modified, the time that
    /// [`Rows::timed`](crate::Rows::timed) gives. The source must know them: records of another one
    /// have no time, and are late in windows.
    ///
    /// ```
    /// use millstream::{EventTime, Job, Tumbling, collect, rows};
    /// use std::time::Duration;
    ///
    /// let counts = collect();
    /// let sink = counts.clone();
    /// let job = Job::new("visits", move |flow| {
    ///     let visits = rows(["ann", "bob"].map(str::to_owned)).timed(|_| EventTime(1_000));
    ///     let visits = flow.source(visits)?.with_watermark_of_source(Duration::ZERO);
    ///     visits.global().window(Tumbling::new(Duration::from_secs(10))).count().finals().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(counts.values()[0].value, 2);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn with_watermark_of_source(self, watermark: impl Into<Watermark>) -> Stream<'a, T> {
        self.set_time(|_, stamp| stamp.and_then(Stamp::time), watermark.into(), Way::Source)
    }

    /// Gives each record the time of the job's clock at which it entered the pipeline: windows that
    /// follow are windows by *processing time*. They close when the clock has passed their end,
    /// also when no record comes.
    ///
    /// It stands where [`with_watermark`](Stream::with_watermark) stands. What a window holds then
    /// depends on timing: it is another one when records are read again. In a micro-batch a record
    /// enters when its batch does, not when it arrives. Checkpoints keep the time of the world, so
    /// windows that were open when a job went down close when it is up again.
    ///
    /// ```
    /// use millstream::{Job, TestRun, Tumbling, channel, collect};
    /// use std::time::Duration;
    ///
    /// let ((clicks, source), counts) = (channel::<char>(10), collect());
    /// let sink = counts.clone();
    /// let job = Job::new("clicks", move |flow| {
    ///     let clicks = flow.source(&source)?.with_processing_time();
    ///     let counts = clicks.global().window(Tumbling::new(Duration::from_secs(60))).count();
    ///     counts.finals().map(|pane| pane.value).sink(&sink)
    /// });
    /// let mut test = TestRun::start(job.state_in_memory())?;
    /// test.feed(&clicks, ['a', 'b'])?;
    /// test.advance(Duration::from_secs(59))?;
    /// assert!(test.drain(&counts)?.is_empty());
    /// test.advance(Duration::from_secs(1))?;
    /// assert_eq!(test.drain(&counts)?, [2]);
    /// # test.end()?;
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn with_processing_time(self) -> Stream<'a, T> {
        self.set_time(|_, _| None, Watermark::delay(Duration::ZERO), Way::Clock)
    }

    /// The time of a record is made of it, or of what its source says.
    fn set_time(
        self,
        time: impl Fn(&T, Option<Stamp>) -> Option<EventTime> + 'static,
        watermark: Watermark,
        way: Way,
    ) -> Stream<'a, T> {
        let flow = self.flow.share();
        let Watermark { delay, ahead, idle_after, policy } = watermark;
        let sets = TimeTrait::Sets(Sets { policy, of_source: way == Way::Source, by_clock: way == Way::Clock });
        let emits = if way == Way::Clock { Emits::PerBatch } else { Emits::ByRecords };
        let traits = NodeTraits { time: sets, emits, ..NodeTraits::default() };
        let what = match way {
            Way::Record => "with_watermark",
            Way::Source => "with_watermark_of_source",
            Way::Clock => "with_processing_time",
        };
        let node = flow.stage_node::<T, T>(what, &[self.input()], traits);
        let rule = Rule { delay, idle_after, policy, is_by_clock: way == Way::Clock };
        let (board, clock) = (flow.open_board(node, rule), flow.place(node).map(|place| place.run.clock.clone()));
        self.through(node, move |mut batch| {
            let Some((board, clock)) = board.as_ref().zip(clock.as_ref()) else { return Ok(batch) };
            let mut stamps = VecDeque::with_capacity(batch.len());
            let before = batch.take_stamps();
            let values = batch.parts().0.iter();
            match way {
                Way::Clock => {
                    let now = board.clock_time(EventTime(clock.wall().0));
                    board.stamp(values.map(|_| now), EventTime::END, &mut stamps);
                }
                Way::Record | Way::Source => {
                    let last = ahead.map_or(EventTime::END, |ahead| EventTime(clock.wall().0).after(ahead));
                    let mut before = before.into_iter();
                    let times = values.map(|value| time(value, before.next()).unwrap_or(EventTime::NONE));
                    board.stamp(times, last, &mut stamps);
                }
            }
            batch.set_stamps(stamps);
            Ok(batch)
        })
    }
}

/// Who knows the time of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Record,
    Source,
    Clock,
}
