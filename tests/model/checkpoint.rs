//! From a cut to a commit: the checkpoint thread, step by step, and the commit behind it.

use std::collections::BTreeMap;

use crate::Mistake;
use crate::disk::{Data, Manifest, Name, Section};
use crate::plan::chance;
use crate::progress::{END, checkpoint_of, first_epoch};
use crate::source::Position;
use crate::world::World;

/// What the checkpoint thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    WriteData,
    SyncData,
    /// Writes and syncs the manifest under a temporary name, once the sinks have acknowledged, and
    /// looks whether its run still goes on.
    WriteManifest,
    Rename,
    SyncDirectory,
}

/// The checkpoint thread of a run, at work on a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    run: u64,
    checkpoint: u64,
    workers: usize,
    parent: Option<Name>,
    sections: Vec<Section>,
    positions: BTreeMap<usize, Position>,
    digest: u64,
    next: Step,
}

impl Writer {
    fn manifest(&self, name: Name) -> Manifest {
        let Writer { workers, parent, digest, .. } = *self;
        Manifest { workers, data: name, digest, parent }
    }
}

/// The committing sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    Idle,
    /// It was asked, and has not answered.
    Asked,
}

impl World<'_> {
    /// The name of a file. It says which run wrote it.
    fn name(&self, checkpoint: u64, run: u64) -> Name {
        let run = if self.mistake == Mistake::FilesWithoutRun { 0 } else { run };
        Name { checkpoint, run }
    }

    /// Whether everything of a checkpoint is in its sections.
    fn is_cut(&self, checkpoint: u64) -> bool {
        let frontier = match self.mistake {
            Mistake::DurableBeforeCut => self.acknowledged_frontier().min(self.staged_frontier()),
            _ => self.ledger_frontier(),
        };
        if self.mistake == Mistake::CountSections {
            let expected = self.plan.operators.len() * self.workers;
            return self.sections.get(&checkpoint).map_or(0, Vec::len) >= expected;
        }
        // When no input is left, the checkpoint that was open is complete under its own number.
        let open = checkpoint_of(self.open);
        frontier >= first_epoch(checkpoint + 1) && (checkpoint < open || (checkpoint == open && frontier == END))
    }

    fn is_acknowledged(&self, checkpoint: u64) -> bool {
        !self.plan.sinks.acknowledge()
            || self.mistake == Mistake::ManifestBeforeAcknowledged
            || self.acknowledged_frontier() >= first_epoch(checkpoint + 1)
    }

    /// The checkpoint thread takes a step.
    pub(crate) fn write_checkpoint(&mut self) {
        let Some(mut writer) = self.writer.take() else {
            let checkpoint = self.durable;
            if self.is_cut(checkpoint) {
                let sections = self.sections.remove(&checkpoint).unwrap_or_default();
                let positions = self.positions.remove(&checkpoint).unwrap_or_default();
                let (run, workers, parent) = (self.run, self.workers, self.parent);
                let digest = self.random.u64(..);
                let next = Step::WriteData;
                self.writer = Some(Writer { run, checkpoint, workers, parent, sections, positions, digest, next });
            }
            return;
        };
        if writer.next == Step::WriteManifest && !self.is_acknowledged(writer.checkpoint) {
            self.writer = Some(writer);
            return;
        }
        if self.step_writer(&mut writer) {
            self.writer = Some(writer);
            return;
        }
        self.durable = writer.checkpoint + 1;
        self.parent = Some(self.name(writer.checkpoint, writer.run));
        self.positions.insert(writer.checkpoint, writer.positions);
    }

    /// A thread of an earlier run, which hung, goes on. It looks only before it renames.
    pub(crate) fn step_hung(&mut self) {
        if self.hung.is_empty() {
            return;
        }
        let which = self.random.usize(0..self.hung.len());
        let mut writer = self.hung.swap_remove(which);
        if writer.next != Step::WriteManifest && self.step_writer(&mut writer) {
            self.hung.push(writer);
        }
    }

    /// Returns whether the checkpoint is not durable yet.
    fn step_writer(&mut self, writer: &mut Writer) -> bool {
        let name = self.name(writer.checkpoint, writer.run);
        writer.next = match writer.next {
            Step::WriteData => {
                let (sections, positions) = (writer.sections.clone(), writer.positions.clone());
                self.disk.write(name, Data { sections, positions, digest: writer.digest });
                if self.mistake == Mistake::RenameBeforeSync { Step::WriteManifest } else { Step::SyncData }
            }
            Step::SyncData => {
                self.disk.sync(name);
                Step::WriteManifest
            }
            Step::WriteManifest => Step::Rename,
            Step::Rename => {
                self.disk.rename(name, writer.manifest(name));
                if self.mistake == Mistake::DirectoryNotSynced {
                    return false;
                }
                Step::SyncDirectory
            }
            Step::SyncDirectory => {
                self.disk.sync_directory();
                return false;
            }
        };
        true
    }

    /// The oldest checkpoint that is durable is committed: the sink is asked, and answers later.
    pub(crate) fn commit(&mut self) {
        let checkpoint = self.uncommitted;
        if checkpoint >= self.durable {
            return;
        }
        match self.commit {
            _ if !self.plan.sinks.commit() => self.committed(checkpoint),
            Commit::Idle if self.staged_frontier() >= first_epoch(checkpoint + 1) => self.commit = Commit::Asked,
            Commit::Idle => {}
            Commit::Asked => {
                self.committed(checkpoint);
                self.commit = Commit::Idle;
            }
        }
    }

    /// A checkpoint is committed: its outputs are shown, its receipts resolve, and the group is
    /// told.
    pub(crate) fn committed(&mut self, checkpoint: u64) {
        if self.plan.sinks.commit() {
            self.progress = Some(self.name(checkpoint, self.run));
            self.show();
        }
        self.uncommitted = checkpoint + 1;
        self.newest_committed = checkpoint;
        let is_told = chance(&mut self.random, 70);
        for (partition, position) in self.positions.remove(&checkpoint).unwrap_or_default() {
            self.resolved[partition] = self.resolved[partition].max(position.offset);
            if is_told {
                self.group[partition] = position.offset;
            }
        }
    }
}
