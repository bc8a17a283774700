//! Sources, their marks, and the ticker.

use crate::Mistake;
use crate::plan::{FOREVER, NEVER, Plan, Time, chance, mix};
use crate::progress::{SEQUENCE_MAX, checkpoint_of, first_epoch, sequence_of};
use crate::reference::Record;
use crate::tokens::{Charge, Token};
use crate::world::{Item, Message, Port, World};

/// What a source reports of a partition that is idle.
pub(crate) const IDLE: Time = FOREVER + 1;

/// How far a partition was read, and what its marks are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) offset: usize,
    pub(crate) largest: Time,
    pub(crate) is_idle: bool,
}

impl Default for Position {
    fn default() -> Position {
        Position { offset: 0, largest: NEVER, is_idle: false }
    }
}

/// A source on a worker: its capability.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// `None` when it has ended.
    pub(crate) epoch: Option<u64>,
}

impl World<'_> {
    /// The worker of a key.
    pub(crate) fn home(&self, key: u32) -> usize {
        home(key, self.workers)
    }

    pub(crate) fn mark(&self, partition: usize) -> Time {
        self.plan.mark(partition, self.partitions[partition].largest)
    }

    /// The partitions that a worker reads.
    fn own(&self, input: usize, worker: usize) -> Vec<usize> {
        let is_own = |partition: &usize| {
            let home = mix(*partition as u64 + 5) % self.workers as u64;
            self.plan.partitions[*partition].input == input && home == worker as u64
        };
        (0..self.partitions.len()).filter(is_own).collect()
    }

    /// A source reads some records of one partition and sends them.
    pub(crate) fn poll(&mut self, input: usize, worker: usize) {
        let Some(epoch) = self.sources[input][worker].epoch else { return };
        // The first epoch belongs to what is restored.
        if sequence_of(epoch) == 0 || self.budgets[worker].records() >= self.plan.budget {
            return;
        }
        // A batch begins when the one before is through the operators.
        let is_through = epoch == self.open && self.output_frontier() >= self.open;
        let has_begun = epoch == self.open && self.has_reason;
        if self.is_micro_batch && !is_through && !has_begun {
            return;
        }
        let pauses = |partition: usize| self.plan.idle == Some(partition) && !self.is_awake;
        let own = self.own(input, worker).into_iter().filter(|own| !self.is_read(*own) && !pauses(*own));
        let own: Vec<_> = own.collect();
        if own.is_empty() {
            return;
        }
        let partition = own[self.random.usize(0..own.len())];
        for _ in 0..self.random.usize(1..6) {
            if self.is_read(partition) {
                break;
            }
            self.read(partition, (input, worker), epoch);
        }
        self.has_reason = true;
        self.has_changed = true;
    }

    fn read(&mut self, partition: usize, (input, worker): (usize, usize), epoch: u64) {
        let mark = self.mark(partition);
        let position = &mut self.partitions[partition];
        let offset = position.offset;
        let (key, time) = self.plan.partitions[partition].records[offset];
        position.offset += 1;
        position.largest = position.largest.max(time);
        position.is_idle = false;
        let record = Record { key, time, mark, count: 1, hash: Plan::hash_of(partition, offset) };
        let token = Token::new(&self.budgets[worker], Charge::Record);
        let item = Item { record, origin: Some((partition, offset)), token };
        let to = Port { operator: 0, input, worker: self.home(key) };
        self.send(to, worker, epoch, Message::Record(item));
    }

    /// A source closes its epoch, if another one is open: it reports its marks, and notes its
    /// positions for each boundary that it crosses.
    pub(crate) fn close(&mut self, input: usize, worker: usize) {
        let Some(epoch) = self.sources[input][worker].epoch else { return };
        if epoch == self.open {
            return;
        }
        let own = self.own(input, worker);
        let mut has_ended = self.plan.is_bounded;
        for &partition in &own {
            let is_at_end = self.plan.is_bounded && self.is_read(partition);
            has_ended &= is_at_end;
            let mark = match (is_at_end, self.partitions[partition].is_idle) {
                (true, _) if self.mistake != Mistake::EndWithoutInfinity => FOREVER,
                (_, true) => IDLE,
                _ => self.mark(partition),
            };
            if self.reported[partition] != Some(mark) && mark != NEVER {
                self.reported[partition] = Some(mark);
                self.report(partition, mark, (input, worker), epoch);
            }
        }
        let last = if has_ended { checkpoint_of(epoch) + 1 } else { checkpoint_of(self.open) };
        for checkpoint in checkpoint_of(epoch)..last.max(checkpoint_of(self.open)) {
            let positions = self.positions.entry(checkpoint).or_default();
            positions.extend(own.iter().map(|partition| (*partition, self.partitions[*partition])));
        }
        self.sources[input][worker].epoch = if has_ended { None } else { Some(self.open) };
    }

    fn report(&mut self, partition: usize, mark: Time, (input, worker): (usize, usize), epoch: u64) {
        let count = if self.broadcasts() { self.egress() } else { 1 };
        for operator in 0..count {
            let input = self.inputs(operator) + if operator == 0 { input } else { 0 };
            for to in 0..self.workers {
                let to = Port { operator, input, worker: to };
                self.send(to, worker, epoch, Message::Report { origin: partition, mark });
            }
        }
    }

    /// The ticker opens the next epoch if there is a reason, and cuts if the checkpoint before is
    /// committed.
    pub(crate) fn tick(&mut self) {
        let checkpoint = checkpoint_of(self.open);
        let may_cut = self.uncommitted >= checkpoint;
        let mut epochs = self.sources.iter().flatten().filter_map(|source| source.epoch);
        let is_behind = epochs.any(|epoch| epoch != self.open);
        if is_behind && chance(&mut self.random, 80) {
            return;
        }
        let cuts = may_cut && self.has_changed && (!self.has_reason || chance(&mut self.random, 15));
        if cuts || (self.is_micro_batch && may_cut && (self.has_reason || self.has_changed)) {
            self.open = first_epoch(checkpoint + 1) | 1;
            self.has_changed = false;
        } else if self.has_reason && !self.is_micro_batch && sequence_of(self.open) < SEQUENCE_MAX {
            self.open += 1;
        } else {
            return;
        }
        self.has_reason = false;
    }
}

/// The worker of a key, of this number of workers.
pub(crate) fn home(key: u32, workers: usize) -> usize {
    (mix(u64::from(key) + 77) % workers as u64) as usize
}
