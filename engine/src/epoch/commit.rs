//! The last step of an epoch, on the control thread: when every worker has gathered a checkpoint, sinks commit it, then
//! each source publishes the offsets of its own cut. The checkpoint counts as committed when all have answered; then
//! the ticker may cut the next.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::io::{Progress, SharedSink, SharedSource};
use crate::operator::ingest::SourceIndex;
use crate::words::{CheckpointId, Offsets, Partition, Result};

use super::gather::Gathered;

/// Where offsets are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commits {
    /// By their sources.
    ToSources,
    /// Not at all: the run leaves no trace in its sources.
    Nowhere,
}

/// Commits checkpoints in their order.
pub(crate) struct Committer {
    commits_to: Commits,
    sources: Vec<Arc<dyn SharedSource>>,
    sinks: Vec<Arc<dyn SharedSink>>,
    /// How far each worker's gather has come.
    gathered: Vec<CheckpointId>,
    /// Offsets of checkpoints that not every worker has gathered.
    waiting: Vec<(CheckpointId, SourceIndex, Offsets)>,
    /// Commits that sources have not answered yet, per source.
    unanswered: Vec<VecDeque<CheckpointId>>,
    handed_over: CheckpointId,
    committed: CheckpointId,
    /// The newest offset of each partition that is ours, per source; at first, where it began.
    newest: Vec<Offsets>,
    /// Partitions that went, and up to which checkpoint nothing of them is ours to commit.
    forgotten: Vec<(SourceIndex, Partition, CheckpointId)>,
    commits: u64,
}

impl Committer {
    pub(crate) fn new(
        workers: usize,
        sources: Vec<Arc<dyn SharedSource>>,
        sinks: Vec<Arc<dyn SharedSink>>,
        commits_to: Commits,
    ) -> Committer {
        Committer {
            commits_to,
            gathered: vec![CheckpointId::default(); workers],
            waiting: Vec::new(),
            unanswered: sources.iter().map(|_| VecDeque::new()).collect(),
            handed_over: CheckpointId::default(),
            committed: CheckpointId::default(),
            newest: sources.iter().map(|source| source.started_at()).collect(),
            forgotten: Vec::new(),
            commits: 0,
            sources,
            sinks,
        }
    }

    /// Takes what a worker gathered, and commits what is complete on all of them.
    pub(crate) fn gather(&mut self, gathered: Gathered) -> Result<()> {
        let worker = &mut self.gathered[gathered.worker];
        assert!(gathered.complete >= *worker, "a frontier went back");
        *worker = gathered.complete;
        for mut piece in gathered.pieces {
            for (source, partition, until) in &self.forgotten {
                if *source == piece.source && piece.checkpoint <= *until {
                    piece.offsets.remove(partition);
                }
            }
            self.waiting.push((piece.checkpoint, piece.source, piece.offsets));
        }
        let complete = self.gathered.iter().copied().min().unwrap_or_default();
        if complete > self.handed_over {
            self.commit(complete)?;
        }
        Ok(())
    }

    fn commit(&mut self, complete: CheckpointId) -> Result<()> {
        self.handed_over = complete;
        self.forgotten.retain(|(_, _, until)| *until > complete);
        for sink in &self.sinks {
            sink.commit(complete)?;
        }
        let mut moved: Vec<Offsets> = self.sources.iter().map(|_| Offsets::new()).collect();
        self.waiting.sort_by_key(|(checkpoint, ..)| *checkpoint);
        self.waiting.retain(|(checkpoint, source, offsets)| {
            let ready = *checkpoint <= complete;
            if ready {
                moved[source.0].merge(offsets);
            }
            !ready
        });
        for (index, offsets) in moved.iter().enumerate().filter(|(_, offsets)| !offsets.is_empty()) {
            self.commits += 1;
            self.newest[index].merge(offsets);
            if self.publish(index, offsets)? == Progress::Pending {
                self.unanswered[index].push_back(complete);
            }
        }
        self.note_committed();
        Ok(())
    }

    fn publish(&self, source: usize, offsets: &Offsets) -> Result<Progress> {
        match self.commits_to {
            Commits::ToSources => self.sources[source].commit(self.handed_over, offsets),
            Commits::Nowhere => Ok(Progress::Done),
        }
    }

    /// A source has answered the commit of this checkpoint, and of those before it.
    pub(crate) fn answered(&mut self, source: SourceIndex, checkpoint: CheckpointId) {
        let unanswered = &mut self.unanswered[source.0];
        while unanswered.front().is_some_and(|first| *first <= checkpoint) {
            unanswered.pop_front();
        }
        self.note_committed();
    }

    fn note_committed(&mut self) {
        let oldest = self.unanswered.iter().filter_map(VecDeque::front).min();
        self.committed = oldest.map_or(self.handed_over, |oldest| oldest.previous());
    }

    /// Publishes the newest offsets again, although nothing moved: a group without members forgets them after a while.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        for (source, offsets) in self.newest.iter().enumerate().filter(|(_, offsets)| !offsets.is_empty()) {
            // Its answer is of no checkpoint that anybody waits for.
            self.publish(source, offsets)?;
        }
        Ok(())
    }

    /// These partitions are no longer ours, nor is what was released of them up to a checkpoint.
    pub(crate) fn forget(&mut self, source: SourceIndex, partitions: &[Partition], until: CheckpointId) {
        partitions.iter().for_each(|partition| self.newest[source.0].remove(partition));
        let waiting = self.waiting.iter_mut().filter(|(checkpoint, own, _)| *own == source && *checkpoint <= until);
        for (_, _, offsets) in waiting {
            partitions.iter().for_each(|partition| offsets.remove(partition));
        }
        if until > self.handed_over {
            self.forgotten.extend(partitions.iter().map(|partition| (source, partition.clone(), until)));
        }
    }

    /// Everything up to here is committed.
    pub(crate) fn committed(&self) -> CheckpointId {
        self.committed
    }

    /// Everything up to here was given to sinks and sources to commit.
    pub(crate) fn handed_over(&self) -> CheckpointId {
        self.handed_over
    }

    /// How many commits sources have answered.
    pub(crate) fn commits(&self) -> u64 {
        let unanswered = self.unanswered.iter().map(|unanswered| unanswered.len() as u64);
        self.commits - unanswered.sum::<u64>()
    }

    /// Offsets to resume from, per source.
    pub(crate) fn newest(&self) -> &[Offsets] {
        &self.newest
    }
}
