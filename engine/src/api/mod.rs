//! Floor 6: what a user writes. A pipeline is a function of a [`Flow`]; a [`Job`] is that function
//! with the options of its runs.

mod build;
mod flow;
mod stream;
mod calls;
mod key;
mod operate;
mod keyed;
mod conversion;
mod aggregated;
mod watermark;
mod dedup;
mod windows;
mod window_rows;
mod window_table;
mod window;

mod trigger;
mod job;
mod explain;
mod running;
mod test_run;

mod trial;
mod compare;

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod memory_tests;

pub use aggregated::{Aggregated, CompleteTable};
pub use calls::{Blocking, CallPolicy, Calls, KeptCalls, KeyedCalls, RetriedCalls};
pub use compare::{ComparedRun, Comparison, For, Results};
pub use dedup::Deduplicated;
pub use explain::{ExplainedNode, ExplainedOperator, Explanation};
pub use flow::Flow;
pub use job::Job;
pub use key::{Exchange, Key, State};
pub use keyed::{Batches, KeyedBatches, KeyedStream};
pub use running::{JobHandle, Running, SourceControl, jobs};
pub use stream::Stream;
pub use test_run::TestRun;
pub use trigger::{Restart, Trigger};
pub use watermark::Watermark;
pub use window::Windowed;
pub use window_table::WindowTable;
pub use windows::{
    ByCount, BySession, ByTime, CalendarDays, Count, InTime, Session, Sliding, Tumbling, Window, Windows,
};
