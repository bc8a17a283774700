//! How an operator with state joins a pipeline, at the head of a new chain: a keyed one behind an
//! exchange by key, calls that are kept where their records are.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use crate::operator::by_trigger::ByTrigger;
use crate::operator::calls::{self, CallPlan};
use crate::operator::exchange;
use crate::operator::ingest::Release;
use crate::operator::inlet::Inlet;
use crate::operator::kept_calls::{self, KeptCalls};
use crate::operator::keyed::{self, KeyedStage, Operate};
use crate::operator::stage::{self, Chain, Next};
use crate::operator::state_ledger::Keeping;
use crate::run::graph::{Emits, NodeTraits, TimeTrait};
use crate::state::pending::Codec;
use crate::words::{Backlog, Late, Result, StageMeter, TimedOut};

use super::flow::Place;
use super::key::{Exchange, Key};
use super::stream::Stream;

/// What the graph is told about a keyed operator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Traits {
    pub(super) keeps_state: bool,
    pub(super) emits: Emits,
    /// How long what it emits as a whole may wait, where records come alone.
    pub(super) every: Option<Duration>,
    pub(super) time: TimeTrait,
}

/// An inlet, and what counts its records.
pub(super) type MeteredInlet<'a, U> = (Inlet<'a, U>, Arc<StageMeter>);

impl Place<'_> {
    /// What the stage is told about its state.
    fn keeping(&self) -> Keeping {
        let worker = self.scope.worker();
        Keeping {
            node: self.node,
            worker: (worker.index(), worker.peers()),
            checkpoints: self.run.checkpoint_meter.clone(),
            restored: self.run.restored.clone(),
            meter: Arc::clone(&self.meter),
            budget: Arc::clone(&self.run.state_budget),
            print: None,
        }
    }

    /// The place of a stage of calls, whose operator is being built.
    pub(super) fn of_calls(&self, builder: &OperatorBuilder<'_, u64>) -> Result<calls::Place> {
        let (scope, run) = (self.scope, &self.run);
        let wake = stage::wake_of(scope, builder);
        run.pulse.wakes_for_room(wake.clone());
        let stall = run.stalls[scope.worker().index()].clone();
        let pulse = Arc::clone(&run.pulse);
        let backlog = Backlog::new(stall.clone(), move || pulse.wake_ingests());
        let desk = run.call_desk()?;
        let (name, meter) = (self.name.clone(), Arc::clone(&self.meter));
        Ok(calls::Place { node: self.node, name, meter, desk, wake, stall, backlog })
    }
}

impl<'a, T: 'static> Stream<'a, T> {
    /// A stream that an operator will feed which is not built yet, and which reads this one. The
    /// inlet is `None` while nothing is built.
    pub(super) fn inlet<U: 'static>(&self, what: &str) -> (Option<MeteredInlet<'a, U>>, Stream<'a, U>) {
        let flow = self.flow.share();
        let traits = NodeTraits { begins_chain: true, time: TimeTrait::Loses, ..NodeTraits::default() };
        let node = flow.stage_node::<T, U>(what, &[self.input()], traits);
        let Some(place) = flow.place(node) else { return (None, Stream::planned(flow, node, false)) };
        let (inlet, stream) = Inlet::new(place.scope, &place.name);
        (Some((inlet, place.meter)), Stream::of_ports(flow, node, vec![stream]))
    }

    /// Makes calls whose records are kept in checkpoints until they are answered: at the head of a
    /// new chain, on the worker where the records are.
    pub(super) fn kept_calls<U, Fut>(
        self,
        plan: CallPlan<T, U>,
        codec: Codec<T>,
        f: impl Fn(T) -> Fut + 'static,
    ) -> Stream<'a, Result<U, TimedOut>>
    where
        U: Send + 'static,
        Fut: Future<Output = U> + Send + 'static,
    {
        let flow = self.flow.share();
        let traits = NodeTraits {
            begins_chain: true,
            keeps_records: true,
            keeps_state: true,
            time: TimeTrait::Delays,
            ..NodeTraits::default()
        };
        let node = flow.stage_node::<T, U>("map_async", &[self.input()], traits);
        let Some(place) = flow.place(node) else {
            flow.keep(node, codec.schema());
            self.consumed();
            return Stream::planned(flow, node, true);
        };
        let ports = self.into_ports();
        let ends = flow.share();
        let chain: Chain<'a, Result<U, TimedOut>> = Box::new(move |tail| {
            let (scope, name, pulse) = (place.scope, place.name.as_str(), Arc::clone(&place.run.pulse));
            let head = |builder: &mut OperatorBuilder<'a, u64>| {
                let at = place.of_calls(builder)?;
                let next = Next::new(Arc::clone(&place.meter), tail(builder)?);
                let mut stage = place.within(KeptCalls::new((at, plan, codec), f, place.keeping(), next, pulse));
                stage.work(|stage| stage.load(name))?;
                Ok(stage)
            };
            let timing = ends.timing(node, name, false);
            let told = kept_calls::build(scope, name, ports, timing, place.setting(), head)?;
            ends.ledger(told.ledger);
            ends.reports(node, told.relays);
            Ok(())
        });
        Stream::chain(flow, node, chain)
    }
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
        self.operate_with_late(what, traits, is_notice, None, operate)
    }

    /// As [`operate`](Stream::operate); late records leave through the inlet.
    pub(super) fn operate_with_late<O: Operate<Key = K, Input = I>>(
        self,
        what: &str,
        traits: Traits,
        is_notice: fn(&I) -> bool,
        late: Option<Inlet<'a, Late<I>>>,
        operate: impl FnOnce(bool) -> O + 'a,
    ) -> Stream<'a, O::Output> {
        let flow = self.flow.share();
        let waits_for_epochs = O::EMITS_AT_CLOSE;
        let Traits { keeps_state, emits, every, time } = traits;
        let traits =
            NodeTraits { exchanges: true, keeps_state, waits_for_epochs, emits, every, time, ..NodeTraits::default() };
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
            let mut late_records = None;
            let head = |builder: &mut OperatorBuilder<'a, u64>| {
                let next = Next::new(Arc::clone(&place.meter), tail(builder)?);
                let keeping = Keeping { print, ..place.keeping() };
                let mut stage =
                    place.within(KeyedStage::new(operate, every.filter(|_| !is_micro_batch), keeping, next));
                stage.work(|stage| {
                    late_records = stage.open_late(builder);
                    stage.load(name)
                })?;
                Ok(stage)
            };
            let timing = ends.timing(node, name, O::IS_STRICT);
            let told = match scope.worker().peers() {
                1 => keyed::build(scope, name, ports, || Pipeline, timing, setting, head)?,
                _ => {
                    let stall = setting.stall.clone();
                    let setting = stage::Setting { is_exchange: true, ..setting };
                    keyed::build(scope, name, ports, || exchange::by_key(&stall, is_notice), timing, setting, head)?
                }
            };
            if let Some((late, records)) = late.zip(late_records) {
                late.connect(records);
            }
            ends.ledger(told.ledger);
            ends.reports(node, told.relays);
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
            Traits { keeps_state: true, emits: Emits::LastValues, every, time: TimeTrait::Loses },
            |_| false,
            move |is_micro_batch| match is_micro_batch || every.is_some() {
                true => ByTrigger::InBatches(in_batches(aggregate)),
                false => ByTrigger::Alone(alone(aggregate)),
            },
        )
    }
}
