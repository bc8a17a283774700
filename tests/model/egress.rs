//! The way out: behind an exchange, so that a record of a checkpoint may come after one of the
//! next. One sink acknowledges each output, the other takes those of the oldest checkpoint only
//! and shows them when it is committed.

use std::collections::{BTreeMap, VecDeque};

use crate::Mistake;
use crate::plan::chance;
use crate::progress::{END, checkpoint_of};
use crate::reference::Output;
use crate::tokens::Token;
use crate::world::{Message, Port, World};

/// The port of the sink that acknowledges, and of the one that commits.
const ACKNOWLEDGING: usize = 0;
const COMMITTING: usize = 1;

/// The sinks' side of a worker.
#[derive(Debug, Default)]
pub(crate) struct Egress {
    /// Outputs that are not acknowledged.
    in_flight: Vec<(u64, Output, Token)>,
    /// Outputs that the committing sink has not taken, in order of arrival and by checkpoint.
    waiting: BTreeMap<u64, VecDeque<(u64, Output, Token)>>,
    /// Outputs of the open transaction.
    staged: Vec<Output>,
}

impl Egress {
    pub(crate) fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.waiting.is_empty()
    }
}

impl World<'_> {
    /// Sends an output to every sink, on any worker.
    pub(crate) fn send_to_sinks(&mut self, from: usize, epoch: u64, output: &Output, token: &Token) {
        let sinks = [(ACKNOWLEDGING, self.plan.sinks.acknowledge()), (COMMITTING, self.plan.sinks.commit())];
        for (input, _) in sinks.into_iter().filter(|(_, exists)| *exists) {
            let to = Port { operator: self.egress(), input, worker: self.random.usize(0..self.workers) };
            self.send(to, from, epoch, Message::Output(*output, token.clone()));
        }
    }

    /// The egress of a worker takes what has come, and the sinks answer.
    pub(crate) fn serve_egress(&mut self, worker: usize) {
        let takes_all = self.lag == 0;
        for input in [ACKNOWLEDGING, COMMITTING] {
            let port = Port { operator: self.egress(), input, worker };
            for (epoch, message) in self.receive(port, takes_all) {
                let Message::Output(output, token) = message else { continue };
                let egress = &mut self.egresses[worker];
                match input {
                    ACKNOWLEDGING => egress.in_flight.push((epoch, output, token)),
                    _ => {
                        let one = self.mistake == Mistake::EgressInOneQueue;
                        let queue = if one { 0 } else { checkpoint_of(epoch) };
                        egress.waiting.entry(queue).or_default().push_back((epoch, output, token));
                    }
                }
            }
        }
        self.acknowledge(worker);
        self.stage(worker);
    }

    fn acknowledge(&mut self, worker: usize) {
        let per_cent = if self.lag == 0 { 90 } else { 50 };
        let egress = &mut self.egresses[worker];
        let acknowledged = egress.in_flight.extract_if(.., |_| chance(&mut self.random, per_cent));
        self.result.acknowledged.extend(acknowledged.map(|(_, output, _)| output));
    }

    /// The committing sink takes outputs, oldest checkpoint first. Those of a later checkpoint wait
    /// for the commit of this one.
    fn stage(&mut self, worker: usize) {
        let egress = &mut self.egresses[worker];
        while let Some(mut queue) = egress.waiting.first_entry() {
            let is_open = |(epoch, _, _): &&mut (u64, Output, Token)| checkpoint_of(*epoch) <= self.uncommitted;
            if queue.get_mut().front_mut().filter(is_open).is_none() {
                break;
            }
            egress.staged.extend(queue.get_mut().pop_front().map(|(_, output, _)| output));
            if queue.get().is_empty() {
                queue.remove();
            }
        }
    }

    fn arrival_frontier(&self, input: usize) -> u64 {
        self.frontier(self.egress(), input)
    }

    /// The frontier of what is acknowledged.
    pub(crate) fn acknowledged_frontier(&self) -> u64 {
        let in_flight = self.egresses.iter().flat_map(|egress| &egress.in_flight).map(|(epoch, _, _)| *epoch);
        in_flight.min().unwrap_or(END).min(self.arrival_frontier(ACKNOWLEDGING))
    }

    /// The frontier of what the committing sink has taken.
    pub(crate) fn staged_frontier(&self) -> u64 {
        let waiting = self.egresses.iter().flat_map(|egress| egress.waiting.values().flatten());
        waiting.map(|(epoch, _, _)| *epoch).min().unwrap_or(END).min(self.arrival_frontier(COMMITTING))
    }

    /// Shows what was staged.
    pub(crate) fn show(&mut self) {
        let staged = self.egresses.iter_mut().flat_map(|egress| egress.staged.drain(..));
        self.result.committed.extend(staged);
    }

    /// The run ends: what was in flight may have arrived.
    pub(crate) fn lose_in_flight(&mut self) {
        for (_, output, _) in self.egresses.iter_mut().flat_map(|egress| egress.in_flight.drain(..)) {
            if chance(&mut self.random, 50) {
                self.result.acknowledged.push(output);
            }
        }
    }
}
