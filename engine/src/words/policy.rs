//! Which records are late, and when windows close.

/// Which records are late, and when windows close; see
/// [`Watermark::policy`](crate::Watermark::policy).
///
/// | policy | a record is late for a window | a window closes | accepts | depends on timing |
/// |---|---|---|---|---|
/// | `ByPartition` | when the mark of its own partition has passed the end | when the least mark has | what is less than the delay behind in its partition | no |
/// | `WhileOpen` | when the window is closed | when the least mark has | in addition what comes while another partition holds the window open | yes |
/// | `MaxSeen` | when the watermark of the micro-batch before has passed the end | when the watermark has: the largest event time of all partitions less the delay, from the next micro-batch on | what is less than the delay behind of *all* data so far, and what comes one micro-batch later | yes |
/// | `MaxSeenByFastest` | likewise | likewise, by the fastest of several inputs and not the slowest | likewise, of the fastest input | yes |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WatermarkPolicy {
    /// This engine's own: what is late, and what is final, depends on nothing but the order of
    /// records within their partitions.
    #[default]
    ByPartition,
    /// Flink's and Beam's: a record counts for as long as its window is open. A slow partition, or
    /// a long epoch, is grace for the others. What counts depends on timing, and so may differ when
    /// records are read again.
    WhileOpen,
    /// Spark's: one maximum over all partitions of an input, which moves between micro-batches.
    /// Before the first record it is 1970. Of several inputs the smallest counts. In a micro-batch,
    /// first all records are applied and then windows close. When the watermark has moved and
    /// nothing waits, an empty micro-batch follows. Only under
    /// [`Trigger::MicroBatch`](crate::Trigger::MicroBatch); refused at start elsewhere.
    ///
    /// Two things differ from Spark. A filter behind `with_watermark` does not keep what it drops
    /// from moving the watermark: Spark's optimizer puts it before. And a restart forgets no
    /// input's maximum.
    MaxSeen,
    /// As [`MaxSeen`](WatermarkPolicy::MaxSeen); of several inputs the largest counts. Spark's
    /// `multipleWatermarkPolicy` of `max`.
    MaxSeenByFastest,
}

impl WatermarkPolicy {
    /// Whether it is Spark's.
    pub(crate) fn is_max_seen(self) -> bool {
        matches!(self, WatermarkPolicy::MaxSeen | WatermarkPolicy::MaxSeenByFastest)
    }
}
