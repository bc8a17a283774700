//! Collects, on each worker, what its sources released in a checkpoint, and sees when the checkpoint is complete: when
//! the frontiers of its ledgers *and* of its acknowledgements have passed it. Frontiers are of all workers, so
//! completeness needs no counting, and operators that have ended do not matter. One message per worker and
//! checkpoint goes on to `commit`.

use std::sync::Arc;

use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::{Scope, Stream};
use timely::progress::frontier::MutableAntichain;
use timely::progress::operate::FrontierInterest;

use crate::operator::egress::Frontiers;
use crate::operator::fault::Fault;
use crate::operator::ingest::Piece;
use crate::words::{CheckpointId, Epoch};

use super::ticker::Ticker;

/// What one worker says of the checkpoints that are complete.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) worker: usize,
    /// Everything up to this checkpoint is released, through and acknowledged, on every worker.
    pub(crate) complete: CheckpointId,
    pub(crate) pieces: Vec<Piece>,
}

/// Builds the operator; `send` hands on what is complete.
pub(crate) fn build<'a>(
    scope: Scope<'a, u64>,
    ledgers: Vec<Stream<'a, u64, Vec<Piece>>>,
    frontiers: Vec<Frontiers<'a>>,
    ticker: Arc<Ticker>,
    fault: Arc<Fault>,
    send: impl Fn(Gathered) + 'static,
) {
    let worker = scope.worker().index();
    let mut builder = OperatorBuilder::new("gather".to_owned(), scope);
    let mut ledgers: Vec<_> = ledgers.into_iter().map(|ledger| builder.new_input(ledger, Pipeline)).collect();
    let (mut acknowledged, mut through): (Vec<usize>, Vec<usize>) = ((0..ledgers.len()).collect(), Vec::new());
    // Nothing ever travels on these; the handles live as long as the operator.
    let mut silent = Vec::new();
    for frontier in frontiers {
        acknowledged.push(builder.shape().inputs());
        silent.push(builder.new_input(frontier.acknowledged, Pipeline));
        through.push(builder.shape().inputs());
        silent.push(builder.new_input(frontier.through, Pipeline));
    }
    (0..builder.shape().inputs()).for_each(|input| builder.set_notify_for(input, FrontierInterest::Always));
    builder.build(move |_| {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut complete = CheckpointId::default();
        move |inputs| {
            let _ = &silent;
            for ledger in &mut ledgers {
                ledger.for_each(|_, arrived| pieces.append(arrived));
            }
            if let Some(epoch) = least(inputs, &through) {
                ticker.see_through(epoch);
            }
            let passed = match least(inputs, &acknowledged) {
                Some(epoch) => epoch.checkpoint().previous(),
                None => CheckpointId::LAST,
            };
            // Looked at after the frontier: an operator that failed before it kept its capabilities.
            if passed > complete && !fault.is_set() {
                complete = passed;
                let (ready, later) = pieces.drain(..).partition(|piece| piece.checkpoint <= passed);
                pieces = later;
                send(Gathered { worker, complete, pieces: ready });
            }
        }
    });
}

/// The least epoch at which anything can still arrive at one of these inputs; `None` when nothing can.
fn least(inputs: &[MutableAntichain<u64>], chosen: &[usize]) -> Option<Epoch> {
    let fronts = chosen.iter().filter_map(|input| inputs[*input].frontier().first().copied());
    fronts.min().map(Epoch::from_raw)
}
