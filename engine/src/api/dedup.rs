//! Deduplication that event time bounds.

use std::fmt;
use std::time::Duration;

use crate::operator::dedup::{Dedup, OfTime, Within};
use crate::run::graph::{Emits, TimeTrait};
use crate::words::Late;

use super::key::{Exchange, Key};
use super::keyed::KeyedStream;
use super::operate::{MeteredInlet, Traits};
use super::stream::Stream;

impl<'a, K: Key, T: Exchange> KeyedStream<'a, K, T> {
    /// The first record of each key and event time: for records that may come twice with the same
    /// id and time. What is known of a time is dropped once the watermark has passed it, so the
    /// state is bounded, and a record whose time the mark of its partition has passed is late.
    ///
    /// In Spark's words, `dropDuplicates` with the event time among the columns.
    ///
    /// ```
    /// use millstream::{EventTime, Job, collect, rows};
    /// use std::time::Duration;
    ///
    /// let first = collect();
    /// let sink = first.clone();
    /// let job = Job::new("first", move |flow| {
    ///     let records = flow.source(rows([(7, 1_000), (7, 1_000), (7, 2_000)]).partitions(1))?;
    ///     let timed = records.with_watermark(|(_, at)| EventTime(*at), Duration::from_secs(10));
    ///     timed.key_by(|(id, _)| *id).dedup_by_time().records().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(first.values(), [(7, 1_000), (7, 2_000)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn dedup_by_time(self) -> Deduplicated<'a, K, T> {
        Deduplicated { keyed: self, of: Of::Time, late: None, name: None }
    }

    /// The first record of each key in this time of events: what comes behind it with the same key,
    /// and a time before the first one's time plus `within` is over, is a duplicate. It is over
    /// when the mark of the record's own partition has passed it. So for a key that lives in one
    /// partition the result depends on nothing but that partition; for one that lives in several it
    /// depends on timing. A record whose time the mark of its partition has passed is late.
    ///
    /// In Spark's words, `dropDuplicatesWithinWatermark` with the delay of the watermark as
    /// `within`. Duplicates do not prolong the time.
    ///
    /// ```
    /// use millstream::{EventTime, Job, collect, rows};
    /// use std::time::Duration;
    ///
    /// let first = collect();
    /// let sink = first.clone();
    /// let job = Job::new("first", move |flow| {
    ///     let records = flow.source(rows([(7, 1_000), (7, 4_000), (8, 15_000), (7, 16_000)]).partitions(1))?;
    ///     let timed = records.with_watermark(|(_, at)| EventTime(*at), Duration::from_secs(1));
    ///     timed.key_by(|(id, _)| *id).dedup_within(Duration::from_secs(10)).records().sink(&sink)
    /// });
    /// job.state_in_memory().run()?;
    /// assert_eq!(first.values(), [(7, 1_000), (8, 15_000), (7, 16_000)]);
    /// # Ok::<(), millstream::Error>(())
    /// ```
    pub fn dedup_within(self, within: Duration) -> Deduplicated<'a, K, T> {
        Deduplicated { keyed: self, of: Of::Within(within), late: None, name: None }
    }
}

/// Records without their duplicates; see [`KeyedStream::dedup_by_time`] and
/// [`KeyedStream::dedup_within`].
#[must_use = "deduplication does nothing until its records reach a sink"]
pub struct Deduplicated<'a, K, T: 'static> {
    keyed: KeyedStream<'a, K, T>,
    of: Of,
    late: Option<MeteredInlet<'a, Late<T>>>,
    name: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Time,
    Within(Duration),
}

impl<'a, K: Key, T: Exchange> Deduplicated<'a, K, T> {
    /// As [`Aggregated::named`](crate::Aggregated::named).
    pub fn named(self, name: &str) -> Deduplicated<'a, K, T> {
        Deduplicated { name: Some(name.to_owned()), ..self }
    }

    /// Late records as a stream. They are counted in any case
    /// ([`StageReport::late`](crate::StageReport::late)), and otherwise dropped.
    pub fn late(self) -> (Deduplicated<'a, K, T>, Stream<'a, Late<T>>) {
        let (late, stream) = self.keyed.stream.inlet::<Late<T>>("late");
        (Deduplicated { late, ..self }, stream)
    }

    /// The records that are no duplicates, with their event times.
    pub fn records(self) -> Stream<'a, T> {
        let Deduplicated { keyed, of, late, name } = self;
        let (inlet, meter) = late.unzip();
        let time = TimeTrait::WaitsFor(Duration::ZERO);
        let traits = Traits { keeps_state: true, emits: Emits::ByRecords, every: None, time };
        let keyed = keyed.keyed(|record| record);
        let records = match of {
            Of::Time => {
                let operate = |_| Dedup::new(OfTime, meter);
                keyed.operate_with_late("dedup_by_time", traits, |_| false, inlet, operate)
            }
            Of::Within(within) => {
                let operate = move |_| Dedup::new(Within(within), meter);
                keyed.operate_with_late("dedup_within", traits, |_| false, inlet, operate)
            }
        };
        match name {
            None => records,
            Some(name) => records.named(&name),
        }
    }
}

impl<K, T> fmt::Debug for Deduplicated<'_, K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} without duplicates", self.keyed)
    }
}
