//! Collects, on each worker, what its sources released in a checkpoint, and sees two facts about
//! it, each from a frontier: the checkpoint is *cut* when the frontier of the ledgers has passed
//! it, and *acknowledged* when the frontier of the egresses has. A frontier covers all workers, so
//! neither fact needs counting, and operators that have ended do not matter. `commit` waits for
//! both.

use std::sync::Arc;

use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::operate::FrontierInterest;

use crate::operator::egress::Shown;
use crate::operator::fault::Fault;
use crate::operator::inputs::{Frontiers, Input};
use crate::operator::ledger::Piece;
use crate::operator::pulse::Pulse;
use crate::words::{CheckpointId, Epoch};

use super::ticker::Ticker;

/// A fact about all workers, as one worker has seen it.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) worker: usize,
    pub(crate) fact: Fact,
    pub(crate) reached: Reached,
}

/// What is true of the checkpoints up to the one that was reached.
#[derive(Debug)]
pub(crate) enum Fact {
    /// Every source has left them, and every keyed operator has told what they changed; these are
    /// the pieces of this worker.
    Cut(Vec<Piece>),
    /// Every output of them is acknowledged or disposed of.
    Acknowledged,
}

/// How far a frontier has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// All checkpoints up to this one.
    To(CheckpointId),
    /// All checkpoints of the run: this was the open one, and no other will follow.
    End(CheckpointId),
}

impl Reached {
    /// The newest checkpoint of which the fact is true.
    pub(crate) fn checkpoint(self) -> CheckpointId {
        match self {
            Reached::To(checkpoint) | Reached::End(checkpoint) => checkpoint,
        }
    }
}

/// The streams that a worker's operators provide for `gather`.
#[derive(Default)]
pub(crate) struct Ends<'a> {
    pub(crate) ledgers: Vec<Stream<'a, u64, Vec<Piece>>>,
    pub(crate) egresses: Vec<Shown<'a>>,
}

/// Builds the operator; `send` passes on what it has seen.
pub(crate) fn build<'a>(
    scope: Scope<'a, u64>,
    ends: Ends<'a>,
    ticker: Arc<Ticker>,
    pulse: Arc<Pulse>,
    fault: Arc<Fault>,
    send: impl Fn(Gathered) + 'static,
) {
    let worker = scope.worker().index();
    let mut builder = OperatorBuilder::new("gather".to_owned(), scope);
    let mut input = |stream| Input::new(&mut builder, stream, Pipeline, FrontierInterest::Always);
    let mut ledgers: Vec<_> = ends.ledgers.into_iter().map(&mut input).collect();
    let mut input = |stream| Input::new(&mut builder, stream, Pipeline, FrontierInterest::Always);
    let (mut acknowledged, mut through) = (Vec::new(), Vec::new());
    for shown in ends.egresses {
        acknowledged.push(input(shown.acknowledged));
        through.push(input(shown.through));
    }
    builder.build(move |_| {
        let mut pieces: Vec<Piece> = Vec::new();
        let nothing = Reached::To(pulse.first().previous());
        let (mut cut, mut done) = (nothing, nothing);
        move |frontiers| {
            let frontiers = Frontiers::new(frontiers);
            for ledger in &mut ledgers {
                ledger.for_each(|_, arrived| pieces.append(arrived));
            }
            if let Some(epoch) = frontiers.least(&through) {
                ticker.see_through(epoch);
            }
            // Once all inputs have ended, the open checkpoint is the last one.
            let open = pulse.epoch().checkpoint();
            let reached = |least: Option<Epoch>| match least {
                Some(epoch) => Reached::To(epoch.checkpoint().previous()),
                None => Reached::End(open),
            };
            // Without a sink, what is cut needs no acknowledgement.
            let now_cut = reached(frontiers.least(&ledgers));
            let now_done = reached(frontiers.least(&acknowledged).or(frontiers.least(&ledgers)));
            // Read after the frontiers: the flag is set before a failed operator drops anything, so
            // a frontier that moved because of a fault is never sent.
            if fault.is_set() {
                return;
            }
            if has_advanced(&mut cut, now_cut) {
                let (ready, later) = pieces.drain(..).partition(|piece| piece.checkpoint <= cut.checkpoint());
                pieces = later;
                send(Gathered { worker, fact: Fact::Cut(ready), reached: cut });
            }
            if has_advanced(&mut done, now_done) {
                send(Gathered { worker, fact: Fact::Acknowledged, reached: done });
            }
        }
    });
}

/// Moves `reached` forward, and returns whether it moved. The end is reached once.
fn has_advanced(reached: &mut Reached, now: Reached) -> bool {
    let has_advanced = match (*reached, now) {
        (Reached::End(_), _) => false,
        (Reached::To(_), Reached::End(_)) => true,
        (Reached::To(before), Reached::To(now)) => now > before,
    };
    if has_advanced {
        *reached = now;
    }
    has_advanced
}
