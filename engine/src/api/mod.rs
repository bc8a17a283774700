//! Floor 6: what a user writes. A pipeline is a function of a [`Flow`]; a [`Job`] is that function and how to run it.

mod calls;
mod compare;
mod flow;
mod job;
mod running;
mod stream;
mod test_run;
mod trigger;

pub use calls::{Blocking, CallPolicy, Calls, RetriedCalls};
pub use compare::{ComparedRun, Comparison, For, Results};
pub use flow::Flow;
pub use job::Job;
pub use running::{Reporter, Running, RunningJob, SourceControl, Stopper, jobs};
pub use stream::Stream;
pub use test_run::TestRun;
pub use trigger::{Restart, Trigger};
