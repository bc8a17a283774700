//! The beginning of a run: what is loaded, and what is restored of it.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::Mistake;
use crate::checkpoint::Commit;
use crate::disk::Name;
use crate::egress::Egress;
use crate::kinds::State;
use crate::operator::Instance;
use crate::plan::{Kind, NEVER, Time, chance};
use crate::progress::first_epoch;
use crate::source::{Position, Source, home};
use crate::tokens::{Budget, Charge, Token};
use crate::world::{Item, World};

/// What a checkpoint holds.
struct Image {
    partitions: Vec<Position>,
    operators: Vec<(State, Time)>,
    /// The number of workers of the run that wrote it.
    workers: usize,
}

impl World<'_> {
    /// The process dies and is started again, or its run fails and begins again within it.
    pub(crate) fn restart(&mut self) {
        self.result.restarts += 1;
        // Nobody knows yet what became of a commit without an answer.
        if self.commit == Commit::Asked && chance(&mut self.random, 50) {
            self.committed(self.uncommitted);
        }
        self.lose_in_flight();
        let writer = self.writer.take();
        if chance(&mut self.random, 50) {
            self.disk.crash(&mut self.random);
            self.hung.clear();
        } else {
            self.hung.extend(writer.filter(|_| chance(&mut self.random, 70)));
        }
        // Somebody else moves the group.
        for partition in 0..self.group.len() {
            if chance(&mut self.random, 20) {
                self.group[partition] = self.random.usize(0..=self.plan.partitions[partition].records.len());
            }
        }
        self.begin();
    }

    /// Begins a run from the newest checkpoint, or from the one that the sink names.
    pub(crate) fn begin(&mut self) {
        let by_sink = self.plan.sinks.commit() && self.mistake != Mistake::NewestBeatsProgress;
        let name = if by_sink { self.progress } else { self.disk.newest() };
        let loaded = name.map_or(0, |name| name.checkpoint);
        if loaded < self.newest_committed {
            let newest = self.newest_committed;
            self.violate(format!("durable: checkpoint {newest} was committed, and {loaded} is loaded"));
        }
        let image = self.load(name);
        self.disk.delete_behind(name);
        self.run += 1;
        self.workers = self.random.usize(1..5);
        self.is_micro_batch = chance(&mut self.random, 30);
        self.lag = [0, 30, 60, 90][self.random.usize(0..4)];
        self.slow = (self.random.usize(0..self.plan.operators.len()), self.random.usize(0..self.workers));
        self.budgets = (0..self.workers).map(|_| Rc::new(Budget::default())).collect();
        self.reset(loaded + 1);
        self.parent = name;
        self.restore_sources(&image);
        self.restore_operators(&image, loaded + 1);
    }

    fn load(&mut self, name: Option<Name>) -> Image {
        let mut image = Image {
            partitions: vec![Position::default(); self.plan.partitions.len()],
            operators: vec![(State::default(), NEVER); self.plan.operators.len()],
            workers: self.workers,
        };
        let Some(name) = name else { return image };
        let Some(chain) = self.disk.load(name) else {
            self.violate(format!("durable: checkpoint {name:?} was committed and is damaged"));
            return image;
        };
        for (manifest, data) in chain {
            for (partition, position) in &data.positions {
                image.partitions[*partition] = *position;
            }
            for section in &data.sections {
                let (state, watermark) = &mut image.operators[section.operator];
                state.retain(|key| home(key, section.workers) != section.worker);
                state.absorb(section.state.clone());
                // At a cut all workers have the same.
                *watermark = section.watermark.max(*watermark);
            }
            image.workers = manifest.workers;
        }
        image
    }

    /// Everything of the run before is gone.
    fn reset(&mut self, checkpoint: u64) {
        let operators = self.plan.operators.len();
        // The first epoch belongs to what is restored.
        self.open = first_epoch(checkpoint) | 1;
        (self.durable, self.uncommitted, self.commit) = (checkpoint, checkpoint, Commit::Idle);
        (self.has_reason, self.has_changed) = (true, true);
        self.channels.clear();
        self.sections.clear();
        self.positions.clear();
        self.on_their_way = (0..operators).map(|operator| vec![BTreeMap::new(); 2 * self.inputs(operator)]).collect();
        self.on_their_way.push(vec![BTreeMap::new(); 2]);
        self.egresses = (0..self.workers).map(|_| Egress::default()).collect();
        let source = Source { epoch: Some(first_epoch(checkpoint)) };
        self.sources = vec![vec![source; self.workers]; self.inputs(0)];
    }

    fn restore_sources(&mut self, image: &Image) {
        self.partitions.clone_from(&image.partitions);
        let count = self.partitions.len();
        if self.mistake != Mistake::NoReportAfterRestart || self.reported.is_empty() {
            self.reported = vec![None; count];
        }
        for partition in 0..count {
            let length = self.plan.partitions[partition].records.len();
            let position = &mut self.partitions[partition];
            match self.mistake {
                Mistake::NoMarksInCheckpoint => position.largest = NEVER,
                Mistake::GroupBeatsCheckpoint => position.offset = self.group[partition],
                Mistake::PositionsByWorker if image.workers != self.workers => {
                    position.offset = image.partitions[(partition + self.workers) % count].offset.min(length);
                }
                _ => {}
            }
            let (read, promised) = (self.partitions[partition].offset, self.resolved[partition]);
            if read < promised {
                self.violate(format!("receipts: {promised} of partition {partition} have resolved, {read} are kept"));
            }
        }
    }

    fn restore_operators(&mut self, image: &Image, checkpoint: u64) {
        let first = first_epoch(checkpoint);
        self.instances = Vec::new();
        for (operator, (state, watermark)) in image.operators.iter().enumerate() {
            let inputs = self.inputs(operator);
            let instances = (0..self.workers).map(|worker| {
                let mut state = state.clone();
                state.retain(|key| home(key, self.workers) == worker);
                let calls = if self.plan.operators[operator] == Kind::Calls { state.calls.clone() } else { Vec::new() };
                let asked_again = calls.into_iter().map(|record| {
                    let token = Token::new(&self.budgets[worker], Charge::Record);
                    (first, Item { record, origin: None, token })
                });
                let calls = asked_again.collect();
                let watermark = if self.mistake == Mistake::NoWatermarkInCheckpoint { NEVER } else { *watermark };
                let mut instance = Instance::restored(first, inputs, (state, watermark));
                instance.calls = calls;
                instance
            });
            let instances = instances.collect();
            self.instances.push(instances);
        }
    }
}
