//! Frontiers: what is exact. Operators see them late.

use std::collections::BTreeMap;

use crate::Mistake;
use crate::world::{Message, Port, World};

/// An epoch is `checkpoint << SHIFT | sequence`.
const SHIFT: u32 = 8;
/// The frontier of what has ended.
pub(crate) const END: u64 = u64::MAX;
/// The sequence at which the ticker must cut.
pub(crate) const SEQUENCE_MAX: u64 = (1 << SHIFT) - 6;

pub(crate) fn checkpoint_of(epoch: u64) -> u64 {
    epoch >> SHIFT
}

pub(crate) fn sequence_of(epoch: u64) -> u64 {
    epoch & ((1 << SHIFT) - 1)
}

/// The first epoch of a checkpoint, which belongs to what is restored.
pub(crate) fn first_epoch(checkpoint: u64) -> u64 {
    checkpoint << SHIFT
}

fn least(counts: &BTreeMap<u64, usize>) -> u64 {
    counts.keys().next().copied().unwrap_or(END)
}

impl World<'_> {
    pub(crate) fn inputs(&self, operator: usize) -> usize {
        self.plan.operators[operator].inputs()
    }

    /// The operator behind the last one.
    pub(crate) fn egress(&self) -> usize {
        self.plan.operators.len()
    }

    pub(crate) fn broadcasts(&self) -> bool {
        matches!(self.mistake, Mistake::Broadcast | Mistake::BroadcastNext)
    }

    /// By how many epochs a firing comes behind its report.
    pub(crate) fn fires_behind(&self) -> u64 {
        u64::from(self.mistake == Mistake::BroadcastNext)
    }

    /// The frontier of a source.
    fn source_frontier(&self, input: usize) -> u64 {
        self.sources[input].iter().map(|source| source.epoch.unwrap_or(END)).min().unwrap_or(END)
    }

    /// The least capability of an operator's outputs.
    fn capabilities(&self, operator: usize) -> u64 {
        let behind = self.fires_behind();
        self.instances[operator].iter().map(|instance| instance.capability(behind)).min().unwrap_or(END)
    }

    /// The frontier of an operator's outputs.
    fn frontier_behind(&self, operator: usize) -> u64 {
        self.input_frontier(operator).min(self.capabilities(operator))
    }

    /// The frontier of an input. The inputs of an operator are those of records, then those of
    /// reports.
    pub(crate) fn frontier(&self, operator: usize, input: usize) -> u64 {
        let before = match operator {
            0 => self.source_frontier(input % self.inputs(0)),
            _ if operator < self.egress() && self.broadcasts() && input >= self.inputs(operator) => {
                (0..self.sources.len()).map(|input| self.source_frontier(input)).min().unwrap_or(END)
            }
            _ => self.frontier_behind(operator - 1),
        };
        least(&self.on_their_way[operator][input]).min(before)
    }

    fn input_frontier(&self, operator: usize) -> u64 {
        (0..2 * self.inputs(operator)).map(|input| self.frontier(operator, input)).min().unwrap_or(END)
    }

    /// The frontier of what the operators emit.
    pub(crate) fn output_frontier(&self) -> u64 {
        self.frontier_behind(self.egress() - 1)
    }

    /// The frontier of the ledgers: what it has passed is cut.
    pub(crate) fn ledger_frontier(&self) -> u64 {
        let of_operator = |operator: usize| {
            let instances = self.instances[operator].iter().filter(|instance| instance.is_dirty);
            let held = instances.map(|instance| first_epoch(instance.generation)).min().unwrap_or(END);
            let held = if self.mistake == Mistake::NothingHeldOnLedger { END } else { held };
            self.frontier_behind(operator).min(held)
        };
        (0..self.egress()).map(of_operator).min().unwrap_or(END)
    }

    pub(crate) fn send(&mut self, to: Port, from: usize, epoch: u64, message: Message) {
        *self.on_their_way[to.operator][to.input].entry(epoch).or_default() += 1;
        self.channels.entry((to, from)).or_default().push_back((epoch, message));
    }

    /// Takes some of what has come to a port, in the order of each sender.
    pub(crate) fn receive(&mut self, port: Port, takes_all: bool) -> Vec<(u64, Message)> {
        let mut received = Vec::new();
        for from in 0..self.workers {
            let Some(channel) = self.channels.get_mut(&(port, from)) else { continue };
            let count = if takes_all { channel.len() } else { self.random.usize(0..=channel.len()) };
            for (epoch, message) in channel.drain(..count) {
                let counts = &mut self.on_their_way[port.operator][port.input];
                let count = counts.get_mut(&epoch).expect("it was counted when it was sent");
                *count -= 1;
                if *count == 0 {
                    counts.remove(&epoch);
                }
                received.push((epoch, message));
            }
        }
        received
    }
}
