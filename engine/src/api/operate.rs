//! How a keyed operator joins a pipeline: behind an exchange by key, at the head of a new chain.

use std::sync::Arc;
use std::time::Duration;

use timely::dataflow::channels::pact::Pipeline;

use crate::operator::exchange;
use crate::operator::ingest::Release;
use crate::operator::keyed::{self, ByTrigger, KeyedStage, Operate};
use crate::operator::stage::{self, Chain, Next};
use crate::operator::state_ledger::Keeping;
use crate::run::graph::{Emits, NodeTraits};

use super::key::{Exchange, Key};
use super::stream::Stream;

/// What the graph is told about a keyed operator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub(super) keeps_state: bool,
    pub(super) emits: Emits,
    /// How long what it emits as a whole may wait, where records come alone.
    pub(super) every: Option<Duration>,
}

impl<'a, K: Key, I: Exchange> Stream<'a, (K, I)> {
    /// Brings each key to its worker, where `operate` makes what is done with it. The function is
    /// told whether records come in micro-batches. Inputs for which `is_notice` holds
    /// go to all workers in turn.
    pub(super) fn operate<O: Operate<Key = K, Input = I>>(
        self,
        what: &str,
        traits: Traits,
        is_notice: fn(&I) -> bool,
        operate: impl FnOnce(bool) -> O + 'a,
    ) -> Stream<'a, O::Output> {
        let flow = self.flow.share();
        let waits_for_epochs = O::EMITS_AT_CLOSE;
        let Traits { keeps_state, emits, every } = traits;
        let traits =
            NodeTraits { exchanges: true, keeps_state, waits_for_epochs, emits, every, ..NodeTraits::default() };
        let node = flow.stage_node::<(K, I), O::Output>(what, &[self.input()], traits);
        let Some(place) = flow.place(node) else {
            if flow.is_sketch()
                && let Some(kept) = operate(false).kept()
            {
                flow.keep(node, kept.schema());
            }
            self.consumed();
            return Stream::planned(flow, node, true);
        };
        let ports = self.into_ports();
        let print = flow.state_print(node).filter(|_| keeps_state);
        let ends = flow.share();
        let chain: Chain<'a, O::Output> = Box::new(move |tail| {
            let (scope, name, setting) = (place.scope, place.name.as_str(), place.setting());
            let is_micro_batch = place.run.release == Release::AtTicks;
            let operate = operate(is_micro_batch);
            let keeping = Keeping {
                node,
                worker: (scope.worker().index(), scope.worker().peers()),
                checkpoints: place.run.checkpoint_meter.clone(),
                restored: place.run.restored.clone(),
                meter: Arc::clone(&place.meter),
                budget: Arc::clone(&place.run.state_budget),
                print,
            };
            let head = |builder: &mut _| {
                let next = Next::new(Arc::clone(&place.meter), tail(builder)?);
                let mut stage =
                    place.within(KeyedStage::new(operate, every.filter(|_| !is_micro_batch), keeping, next));
                stage.work(|stage| stage.load(name))?;
                Ok(stage)
            };
            let ledger = match scope.worker().peers() {
                1 => keyed::build(scope, name, ports, || Pipeline, setting, head)?,
                _ => {
                    let stall = setting.stall.clone();
                    let setting = stage::Setting { is_exchange: true, ..setting };
                    keyed::build(scope, name, ports, || exchange::by_key(&stall, is_notice), setting, head)?
                }
            };
            ends.ledger(ledger);
            Ok(())
        });
        Stream::chain(flow, node, chain)
    }

    /// Adds a notice to each batch for every worker, in addition to its records: then each of them
    /// learns that there was a batch. They are records, because progress counts what is sent before
    /// it is distributed.
    pub(super) fn with_notices(self) -> Stream<'a, (K, Option<I>)> {
        let flow = self.flow.share();
        let node = flow.stage_node::<(K, I), (K, Option<I>)>("notice", &[self.input()], NodeTraits::default());
        let peers = flow.place(node).map_or(0, |place| place.scope.worker().peers());
        self.through(node, move |batch| Ok(batch.with_notices(peers)))
    }

    /// As [`operate`](Stream::operate), with an operator for records that come alone, and another
    /// for micro-batches and where not every change is to be emitted.
    pub(super) fn operate_by_trigger<A: 'static, O, B>(
        self,
        what: &str,
        every: Option<Duration>,
        aggregate: A,
        alone: fn(A) -> O,
        in_batches: fn(A) -> B,
    ) -> Stream<'a, O::Output>
    where
        O: Operate<Key = K, Input = I>,
        B: Operate<Key = K, Input = I, Output = O::Output>,
    {
        self.operate(
            what,
            Traits { keeps_state: true, emits: Emits::LastValues, every },
            |_| false,
            move |is_micro_batch| match is_micro_batch || every.is_some() {
                true => ByTrigger::InBatches(in_batches(aggregate)),
                false => ByTrigger::Alone(alone(aggregate)),
            },
        )
    }
}
