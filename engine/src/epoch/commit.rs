//! The last step of an epoch, on the control thread. When a checkpoint is cut and acknowledged on
//! every worker, sinks commit it; when all of them have answered, it is made durable, if the job
//! keeps checkpoints; then each source publishes the offsets of its own cut; when all of these have
//! answered, the checkpoint is committed, and the ticker may cut the next. Nothing here waits for
//! an answer.
//!
//! In this order a crash repeats outputs and loses none: what a sink holds back until the commit
//! goes with the process, and the next run begins behind the newest durable checkpoint.
//!
//! Where checkpoints are the memory of the job, sources publish for others to see, at most once a
//! second, and no checkpoint waits for their answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::io::{Committed, SharedSink, SharedSource};
use crate::operator::fault::Node;
use crate::operator::ingest::SourceIndex;
use crate::operator::ledger::{Part, Piece};
use crate::state::delta::Delta;
use crate::state::store::Content;
use crate::words::{CheckpointId, CheckpointMeter, Clock, HeldReceipts, Offsets, Partition, Result};

use super::durable::Keeper;
use super::gather::{Fact, Gathered, Reached};
use super::ticker::Ticker;

/// What a run remembers of those before it: where its sources resume.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    /// The first checkpoint that is not in it.
    pub(crate) first: CheckpointId,
    /// The next offset of each partition, per source.
    pub(crate) offsets: Vec<Offsets>,
}

/// The memory of a job that has not run.
impl Default for Memory {
    fn default() -> Memory {
        Memory { first: CheckpointId::FIRST, offsets: Vec::new() }
    }
}

/// The checkpoints of a job whose memory they are.
pub(crate) struct Memories {
    pub(crate) keeper: Keeper,
    /// The operators that keep state, in the order in which the keeper knows them.
    pub(crate) kept: Vec<Node>,
    pub(crate) clock: Clock,
    pub(crate) meter: Arc<CheckpointMeter>,
}

impl Memories {
    /// Has a checkpoint made durable.
    fn publish(
        &self,
        checkpoint: CheckpointId,
        sources: Vec<Offsets>,
        changes: impl Iterator<Item = (CheckpointId, Node, Delta)>,
    ) {
        let place = |node: Node| self.kept.iter().position(|kept| *kept == node);
        let content = Content {
            sources,
            deltas: changes.filter_map(|(_, node, delta)| Some((place(node)?, delta))).collect(),
            written: u64::try_from(self.clock.wall().0).unwrap_or(0),
        };
        self.keeper.publish(checkpoint, content);
    }
}

/// How often sources publish when nothing depends on it.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Commits checkpoints in their order.
pub(crate) struct Committer {
    ticker: Arc<Ticker>,
    sources: Vec<Arc<dyn SharedSource>>,
    sinks: Vec<Arc<dyn SharedSink>>,
    /// How far each worker's two facts reach.
    cut: Vec<Reached>,
    acknowledged: Vec<Reached>,
    memories: Option<Memories>,
    /// Offsets of checkpoints that are not handed over yet.
    waiting: Vec<(CheckpointId, SourceIndex, Offsets)>,
    /// Changes of state of checkpoints that are not handed over yet.
    changes: Vec<(CheckpointId, Node, Delta)>,
    /// Receipts of records that are in state, until their checkpoint is committed.
    receipts: Vec<(CheckpointId, HeldReceipts)>,
    /// The checkpoint that is being made durable, with its offsets per source.
    at_keeper: Option<(CheckpointId, Vec<Offsets>)>,
    /// Offsets that sources were not told to publish yet, and when they were told last.
    untold: Vec<Offsets>,
    told: Option<Instant>,
    /// The checkpoint that sinks are committing.
    at_sinks: Option<AtSinks>,
    /// Commits that sources have not answered yet, per source.
    unanswered: Vec<VecDeque<CheckpointId>>,
    /// Sinks were told to commit everything up to here.
    handed_over: CheckpointId,
    /// Sources were told to commit everything up to here.
    published: CheckpointId,
    /// The newest offset of each assigned partition, per source; at first, where it began.
    newest: Vec<Offsets>,
    /// Partitions that were unassigned, and the checkpoint up to which nothing of them may be
    /// committed.
    unassigned: Vec<(SourceIndex, Partition, CheckpointId)>,
    /// Commits that were handed to sources.
    commits: u64,
}

/// A checkpoint that some sinks have not committed yet.
struct AtSinks {
    checkpoint: CheckpointId,
    /// When they were told.
    since: Instant,
    /// The sinks that have not answered.
    unanswered: Vec<usize>,
    /// Per source.
    offsets: Vec<Offsets>,
}

impl Committer {
    /// The committer of a run that goes on from `memory`.
    pub(crate) fn new(
        workers: usize,
        sources: Vec<Arc<dyn SharedSource>>,
        sinks: Vec<Arc<dyn SharedSink>>,
        memory: &Memory,
        memories: Option<Memories>,
        ticker: Arc<Ticker>,
    ) -> Committer {
        let before = memory.first.previous();
        // A partition that does not move in this run stays where it was.
        let mut newest: Vec<Offsets> = sources.iter().map(|source| source.started_at()).collect();
        for (newest, before) in newest.iter_mut().zip(&memory.offsets) {
            *newest = before.clone().merged(newest);
        }
        Committer {
            ticker,
            memories,
            changes: Vec::new(),
            receipts: Vec::new(),
            at_keeper: None,
            untold: sources.iter().map(|_| Offsets::new()).collect(),
            told: None,
            cut: vec![Reached::To(before); workers],
            acknowledged: vec![Reached::To(before); workers],
            waiting: Vec::new(),
            at_sinks: None,
            unanswered: sources.iter().map(|_| VecDeque::new()).collect(),
            handed_over: before,
            published: before,
            newest,
            unassigned: Vec::new(),
            commits: 0,
            sources,
            sinks,
        }
    }

    /// Takes a fact that a worker has seen, and hands over what is complete on all of them.
    pub(crate) fn gather(&mut self, gathered: Gathered) -> Result<()> {
        let Gathered { worker, fact, reached } = gathered;
        let known = match fact {
            Fact::Cut(pieces) => {
                pieces.into_iter().for_each(|piece| self.take(piece));
                &mut self.cut[worker]
            }
            Fact::Acknowledged => &mut self.acknowledged[worker],
        };
        assert!(reached.checkpoint() >= known.checkpoint(), "a frontier went back");
        *known = reached;
        self.hand_over()
    }

    fn take(&mut self, piece: Piece) {
        let checkpoint = piece.checkpoint;
        match piece.part {
            Part::Released(source, mut offsets) => {
                for (own, partition, until) in &self.unassigned {
                    if *own == source && checkpoint <= *until {
                        offsets.remove(partition);
                    }
                }
                self.waiting.push((checkpoint, source, offsets));
            }
            Part::Changed(node, delta) => self.changes.push((checkpoint, node, delta)),
            Part::Received(receipts) => self.receipts.push((checkpoint, receipts)),
        }
    }

    /// The newest checkpoint that is cut and acknowledged on every worker.
    fn complete(&self) -> CheckpointId {
        let facts = || self.cut.iter().chain(&self.acknowledged);
        let open = facts().filter(|reached| matches!(reached, Reached::To(_)));
        // After the end on all workers, it is the last one that any of them had open.
        let least = open.map(|reached| reached.checkpoint()).min();
        let last = facts().map(|reached| reached.checkpoint()).max();
        least.or(last).expect("a job has a worker")
    }

    /// Hands over what is complete, one checkpoint at a time: to the sinks, and then to the keeper,
    /// if there is one.
    fn hand_over(&mut self) -> Result<()> {
        let complete = self.complete();
        if complete <= self.handed_over || self.at_keeper.is_some() || self.at_sinks.is_some() {
            return Ok(());
        }
        self.handed_over = complete;
        self.unassigned.retain(|(_, _, until)| *until > complete);
        let offsets = self.offsets_until(complete);
        let (mut unanswered, since) = (Vec::new(), Instant::now());
        for (index, sink) in self.sinks.iter().enumerate() {
            if sink.commit(complete)? == Committed::Later {
                unanswered.push(index);
            }
        }
        self.at_sinks = Some(AtSinks { checkpoint: complete, since, unanswered, offsets });
        self.publish_if_committed()
    }

    /// The keeper has made this checkpoint durable.
    pub(crate) fn is_durable(&mut self, checkpoint: CheckpointId) -> Result<()> {
        match self.at_keeper.take_if(|(own, _)| *own == checkpoint) {
            Some((checkpoint, offsets)) => self.publish(checkpoint, &offsets),
            None => Ok(()),
        }
    }

    /// Takes out the offsets of all checkpoints up to this one, per source.
    fn offsets_until(&mut self, checkpoint: CheckpointId) -> Vec<Offsets> {
        let mut moved: Vec<Offsets> = self.sources.iter().map(|_| Offsets::new()).collect();
        self.waiting.sort_by_key(|(checkpoint, ..)| *checkpoint);
        self.waiting.retain(|(own, source, offsets)| {
            let is_ready = *own <= checkpoint;
            if is_ready {
                moved[source.0].merge(offsets);
            }
            !is_ready
        });
        moved
    }

    /// A sink has committed this checkpoint, and those before it.
    pub(crate) fn sink_answered(&mut self, sink: usize, checkpoint: CheckpointId) -> Result<()> {
        if let Some(at_sinks) = self.at_sinks.as_mut().filter(|at_sinks| at_sinks.checkpoint <= checkpoint) {
            at_sinks.unanswered.retain(|own| *own != sink);
        }
        self.publish_if_committed()
    }

    /// Has the checkpoint made durable, or tells the sources, once every sink has committed.
    fn publish_if_committed(&mut self) -> Result<()> {
        let Some(AtSinks { checkpoint, since, offsets, .. }) =
            self.at_sinks.take_if(|at_sinks| at_sinks.unanswered.is_empty())
        else {
            return Ok(());
        };
        let Some(memories) = &self.memories else { return self.publish(checkpoint, &offsets) };
        memories.meter.committed(since.elapsed());
        let sources = self.newest.iter().zip(&offsets).map(|(newest, moved)| newest.clone().merged(moved)).collect();
        // In the order of the checkpoints; of one worker they come in that order.
        self.changes.sort_by_key(|(own, ..)| *own);
        let ready = self.changes.partition_point(|(own, ..)| *own <= checkpoint);
        memories.publish(checkpoint, sources, self.changes.drain(..ready));
        self.at_keeper = Some((checkpoint, offsets));
        Ok(())
    }

    /// Tells the sources to publish the offsets of a checkpoint that needs nothing else.
    fn publish(&mut self, checkpoint: CheckpointId, offsets: &[Offsets]) -> Result<()> {
        self.published = checkpoint;
        for (index, offsets) in offsets.iter().enumerate().filter(|(_, offsets)| !offsets.is_empty()) {
            self.newest[index].merge(offsets);
            self.untold[index].merge_positions(offsets);
        }
        self.tell_sources()?;
        self.note_committed();
        // Another checkpoint may have become complete meanwhile.
        self.hand_over()
    }

    /// Tells the sources to publish their newest offsets, if it is time to.
    pub(crate) fn tell_sources(&mut self) -> Result<()> {
        if self.memories.is_some() && !self.is_long_told() && !self.has_ended() {
            return Ok(());
        }
        for (index, offsets) in self.untold.iter_mut().enumerate().filter(|(_, offsets)| !offsets.is_empty()) {
            self.commits += 1;
            self.told = Some(Instant::now());
            if self.sources[index].commit(self.published, &std::mem::take(offsets))? == Committed::Later {
                self.unanswered[index].push_back(self.published);
            }
        }
        Ok(())
    }

    fn is_long_told(&self) -> bool {
        self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY)
    }

    /// A source has answered the commit of this checkpoint, and of those before it.
    pub(crate) fn source_answered(&mut self, source: SourceIndex, checkpoint: CheckpointId) {
        let unanswered = &mut self.unanswered[source.0];
        while unanswered.front().is_some_and(|first| *first <= checkpoint) {
            unanswered.pop_front();
        }
        self.note_committed();
    }

    fn note_committed(&mut self) {
        let oldest = self.unanswered.iter().filter_map(VecDeque::front).min();
        let committed = match (&self.memories, oldest) {
            (None, Some(oldest)) => oldest.previous(),
            (Some(_), _) | (None, None) => self.published,
        };
        for (_, receipts) in self.receipts.extract_if(.., |(own, _)| *own <= committed) {
            receipts.commit();
        }
        self.ticker.see_committed(committed, self.commits());
    }

    /// Publishes the newest offsets again although nothing has moved: the broker forgets the
    /// offsets of a group without members after a while.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        for (source, offsets) in self.newest.iter().enumerate().filter(|(_, offsets)| !offsets.is_empty()) {
            // No checkpoint waits for the answer.
            self.sources[source].commit(self.published, offsets)?;
        }
        Ok(())
    }

    /// Forgets partitions that are unassigned: what was released of them up to `until` must not be
    /// committed any more.
    pub(crate) fn unassign(&mut self, source: SourceIndex, partitions: &[Partition], until: CheckpointId) {
        let remove = |offsets: &mut Offsets| partitions.iter().for_each(|partition| offsets.remove(partition));
        remove(&mut self.newest[source.0]);
        let waiting = self.waiting.iter_mut().filter(|(checkpoint, own, _)| *own == source && *checkpoint <= until);
        waiting.for_each(|(_, _, offsets)| remove(offsets));
        if let Some(at_sinks) = self.at_sinks.as_mut().filter(|at_sinks| at_sinks.checkpoint <= until) {
            remove(&mut at_sinks.offsets[source.0]);
        }
        if until > self.handed_over {
            self.unassigned.extend(partitions.iter().map(|partition| (source, partition.clone(), until)));
        }
    }

    /// Everything up to here is committed.
    pub(crate) fn committed(&self) -> CheckpointId {
        self.ticker.committed()
    }

    /// Whether a checkpoint is being made durable.
    pub(crate) fn is_at_disk(&self) -> bool {
        self.at_keeper.is_some()
    }

    /// Sinks were told to commit everything up to here.
    pub(crate) fn handed_over(&self) -> CheckpointId {
        self.handed_over
    }

    /// Whether the run has ended and everything of it is committed.
    pub(crate) fn is_through(&self) -> bool {
        // Where checkpoints are the memory, nothing depends on these answers; they get a moment.
        let is_answered =
            self.unanswered.iter().all(VecDeque::is_empty) || (self.memories.is_some() && self.is_long_told());
        self.has_ended() && self.committed() >= self.complete() && is_answered
    }

    fn has_ended(&self) -> bool {
        self.cut.iter().chain(&self.acknowledged).all(|reached| matches!(reached, Reached::End(_)))
    }

    /// The keeper of its checkpoints, once nothing is handed to it any more.
    pub(crate) fn take_keeper(&mut self) -> Option<Keeper> {
        self.memories.take().map(|memories| memories.keeper)
    }

    /// The number of commits that sources have answered.
    pub(crate) fn commits(&self) -> u64 {
        let unanswered = self.unanswered.iter().map(|unanswered| unanswered.len() as u64);
        self.commits - unanswered.sum::<u64>()
    }

    /// Where the next run of the job resumes.
    pub(crate) fn memory(&self) -> Memory {
        Memory { first: self.published.next(), offsets: self.newest.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::epoch::ticker::Pace;
    use crate::operator::pulse::Pulse;
    use crate::words::{Clock, Offset, lock};

    /// A source or sink that records what it is told to commit. `answer` decides whether it answers
    /// at once.
    struct Party {
        answer: Committed,
        asked: Mutex<Vec<u64>>,
    }

    impl Party {
        fn new(answer: Committed) -> Arc<Party> {
            Arc::new(Party { answer, asked: Mutex::default() })
        }

        fn asked(&self) -> Vec<u64> {
            lock(&self.asked).clone()
        }

        fn ask(&self, checkpoint: CheckpointId) -> Result<Committed> {
            lock(&self.asked).push(checkpoint.number());
            Ok(self.answer)
        }
    }

    impl SharedSource for Party {
        fn commit(&self, checkpoint: CheckpointId, _: &Offsets) -> Result<Committed> {
            self.ask(checkpoint)
        }
    }

    impl SharedSink for Party {
        fn commit(&self, checkpoint: CheckpointId) -> Result<Committed> {
            self.ask(checkpoint)
        }
    }

    fn committer(workers: usize, sources: &[&Arc<Party>], sinks: &[&Arc<Party>]) -> Committer {
        let clock = Clock::simulated();
        let pulse = Arc::new(Pulse::new(CheckpointId::FIRST, &clock));
        let pace = Pace::Continuous { checkpoint_every: Duration::from_secs(1) };
        let ticker = Arc::new(Ticker::new(pace, clock, pulse, false));
        let sources = sources.iter().map(|source| Arc::clone(source) as _).collect();
        let sinks = sinks.iter().map(|sink| Arc::clone(sink) as _).collect();
        Committer::new(workers, sources, sinks, &Memory::default(), None, ticker)
    }

    fn to(checkpoint: u64) -> Reached {
        Reached::To(CheckpointId::new(checkpoint))
    }

    fn cut(worker: usize, checkpoint: u64) -> Gathered {
        let offsets = [(Partition::new("p"), Offset(10 * checkpoint))].into_iter().collect();
        let piece = Piece { checkpoint: CheckpointId::new(checkpoint), part: Part::Released(SourceIndex(0), offsets) };
        Gathered { worker, fact: Fact::Cut(vec![piece]), reached: to(checkpoint) }
    }

    fn acknowledged(worker: usize, checkpoint: u64) -> Gathered {
        Gathered { worker, fact: Fact::Acknowledged, reached: to(checkpoint) }
    }

    #[test]
    fn a_commit_needs_both_facts_of_every_worker() {
        let (source, sink) = (Party::new(Committed::Now), Party::new(Committed::Now));
        let mut committer = committer(2, &[&source], &[&sink]);
        for gathered in [cut(0, 1), acknowledged(0, 1), acknowledged(1, 1)] {
            committer.gather(gathered).unwrap();
            assert_eq!((source.asked(), sink.asked()), (vec![], vec![]));
        }
        committer.gather(cut(1, 1)).unwrap();
        assert_eq!((source.asked(), sink.asked()), (vec![1], vec![1]));
        assert_eq!(committer.committed().number(), 1);
    }

    #[test]
    fn of_two_sinks_the_last_to_answer_lets_sources_commit() {
        let source = Party::new(Committed::Later);
        let (prompt, late) = (Party::new(Committed::Now), Party::new(Committed::Later));
        let mut committer = committer(1, &[&source], &[&prompt, &late]);
        committer.gather(cut(0, 1)).unwrap();
        committer.gather(acknowledged(0, 1)).unwrap();
        assert_eq!((prompt.asked(), late.asked(), source.asked()), (vec![1], vec![1], vec![]));
        // What is complete meanwhile waits: a sink commits one checkpoint at a time.
        committer.gather(cut(0, 2)).unwrap();
        committer.gather(acknowledged(0, 2)).unwrap();
        assert_eq!((prompt.asked(), committer.committed().number()), (vec![1], 0));
        committer.sink_answered(1, CheckpointId::new(1)).unwrap();
        assert_eq!((source.asked(), late.asked()), (vec![1], vec![1, 2]));
        assert_eq!(committer.committed().number(), 0, "the source has not answered");
        committer.source_answered(SourceIndex(0), CheckpointId::new(1));
        assert_eq!(committer.committed().number(), 1);
        committer.sink_answered(1, CheckpointId::new(2)).unwrap();
        committer.source_answered(SourceIndex(0), CheckpointId::new(2));
        assert_eq!((committer.committed().number(), committer.memory().first.number()), (2, 3));
    }

    #[test]
    fn what_was_unassigned_while_a_sink_commits_is_not_published() {
        let (source, late) = (Party::new(Committed::Now), Party::new(Committed::Later));
        let mut committer = committer(1, &[&source], &[&late]);
        committer.gather(cut(0, 1)).unwrap();
        committer.gather(acknowledged(0, 1)).unwrap();
        committer.unassign(SourceIndex(0), &[Partition::new("p")], CheckpointId::new(1));
        committer.sink_answered(0, CheckpointId::new(1)).unwrap();
        assert_eq!(source.asked(), [] as [u64; 0]);
        assert_eq!(committer.committed().number(), 1);
    }

    #[test]
    fn the_end_of_a_run_is_the_last_checkpoint_that_a_worker_had_open() {
        let (source, sink) = (Party::new(Committed::Now), Party::new(Committed::Now));
        let mut committer = committer(2, &[&source], &[&sink]);
        let end =
            |worker, fact, checkpoint| Gathered { worker, fact, reached: Reached::End(CheckpointId::new(checkpoint)) };
        committer.gather(end(0, Fact::Cut(Vec::new()), 4)).unwrap();
        committer.gather(end(0, Fact::Acknowledged, 4)).unwrap();
        committer.gather(end(1, Fact::Acknowledged, 5)).unwrap();
        assert!(!committer.is_through());
        committer.gather(end(1, Fact::Cut(Vec::new()), 5)).unwrap();
        assert!(committer.is_through());
        assert_eq!((sink.asked(), committer.committed().number()), (vec![5], 5));
    }
}
