//! The harness of a keyed operator: it sets aside the records of the next checkpoint, applies
//! reports when its frontiers have passed them, fires in slices, and hands in its section at a cut.

use std::collections::BTreeMap;

use crate::Mistake;
use crate::disk::Section;
use crate::kinds::{Emitted, Judge, State};
use crate::plan::{FOREVER, Kind, NEVER, Time, chance};
use crate::progress::{END, checkpoint_of, first_epoch};
use crate::reference::{Output, Record, key_behind};
use crate::source::IDLE;
use crate::tokens::{Charge, Token};
use crate::world::{Item, Message, Port, World};

/// How many rows of a firing leave in one slice.
const SLICE: usize = 4;

/// Rows that leave in slices at an epoch, and the watermark to relay behind them.
#[derive(Debug)]
struct Firing {
    epoch: u64,
    rows: Vec<Record>,
    relay: Option<Time>,
}

/// A report of a mark.
#[derive(Clone, Copy, Debug)]
struct Report {
    input: usize,
    origin: usize,
    mark: Time,
}

/// An operator on a worker.
#[derive(Debug, Default)]
pub(crate) struct Instance {
    /// The checkpoint that its state is in.
    pub(crate) generation: u64,
    watermark: Time,
    pub(crate) state: State,
    /// Whether it has changes that are in no section, and so holds a capability of the ledger.
    pub(crate) is_dirty: bool,
    /// By input, the last mark of each origin.
    marks: Vec<BTreeMap<usize, Time>>,
    /// The frontiers of its inputs, as it has seen them.
    seen: Vec<u64>,
    /// Open calls with the epoch of their capability.
    pub(crate) calls: Vec<(u64, Item)>,
    /// Reports by epoch, each with the capability of its epoch.
    reports: BTreeMap<u64, Vec<Report>>,
    /// Records of later checkpoints: their input, epoch and capability.
    aside: Vec<(usize, u64, Item)>,
    firing: Option<Firing>,
    /// State and watermark before the firings of a checkpoint: only by mistake.
    early: Option<(State, Time)>,
}

impl Instance {
    /// An operator at the beginning of a run, whose first epoch belongs to what is restored.
    pub(crate) fn restored(first: u64, inputs: usize, (state, watermark): (State, Time)) -> Instance {
        Instance {
            generation: checkpoint_of(first),
            watermark,
            state,
            marks: vec![BTreeMap::new(); inputs],
            seen: vec![first; 2 * inputs],
            ..Instance::default()
        }
    }

    /// The least capability that it holds on its outputs.
    pub(crate) fn capability(&self, fires_behind: u64) -> u64 {
        let aside = self.aside.iter().map(|(_, epoch, _)| *epoch);
        let calls = self.calls.iter().map(|(epoch, _)| *epoch);
        let reports = self.reports.keys().next().map(|epoch| epoch + fires_behind);
        let firing = self.firing.as_ref().map(|firing| firing.epoch);
        aside.chain(calls).chain(reports).chain(firing).min().unwrap_or(END)
    }

    pub(crate) fn is_at_rest(&self) -> bool {
        self.calls.is_empty() && self.firing.is_none()
    }

    fn has_nothing(&self) -> bool {
        self.is_at_rest() && self.reports.is_empty() && self.aside.is_empty()
    }
}

/// What a step of an operator emits.
#[derive(Default)]
struct Effects {
    rows: Vec<(u64, Record, Token)>,
    late: Vec<(u64, Output, Token)>,
    relays: Vec<(u64, Time)>,
}

impl World<'_> {
    /// An operator on a worker takes a step.
    pub(crate) fn activate(&mut self, operator: usize, worker: usize) {
        let inputs = self.inputs(operator);
        for input in 0..2 * inputs {
            if self.lag == 0 || !chance(&mut self.random, self.lag) {
                self.instances[operator][worker].seen[input] = self.frontier(operator, input);
            }
        }
        let mut received = Vec::new();
        for input in 0..2 * inputs {
            let messages = self.receive(Port { operator, input, worker }, self.lag == 0);
            received.extend(messages.into_iter().map(|(epoch, message)| (input, epoch, message)));
        }
        let mut instance = std::mem::take(&mut self.instances[operator][worker]);
        // It learns of frontiers only while it holds a capability.
        let holds_ledger = instance.is_dirty && self.mistake != Mistake::NothingHeldOnLedger;
        if received.is_empty() && instance.has_nothing() && !holds_ledger {
            self.instances[operator][worker] = instance;
            return;
        }
        let mut effects = Effects::default();
        for (input, epoch, message) in received {
            match message {
                Message::Record(item) => self.arrive(operator, &mut instance, (input, epoch, item), &mut effects),
                Message::Report { origin, mark } => {
                    let report = Report { input: input - inputs, origin, mark };
                    instance.reports.entry(epoch).or_default().push(report);
                }
                Message::Output(..) => self.violate("model: an output reached an operator".to_owned()),
            }
        }
        self.answer_calls(&mut instance, &mut effects);
        while self.settle((operator, worker), &mut instance, &mut effects) {}
        self.instances[operator][worker] = instance;
        self.hand_on((operator, worker), effects);
    }

    fn arrive(
        &mut self,
        operator: usize,
        instance: &mut Instance,
        (input, epoch, item): (usize, u64, Item),
        effects: &mut Effects,
    ) {
        let is_next = checkpoint_of(epoch) > instance.generation;
        if is_next && self.mistake != Mistake::NoSetAside {
            instance.aside.push((input, epoch, item));
        } else {
            self.apply(operator, instance, (input, epoch, item), effects);
        }
    }

    fn judge(&self, operator: usize, watermark: Time) -> Judge {
        let marks_decide = self.plan.idle.is_none();
        Judge { kind: self.plan.operators[operator], mistake: self.mistake, watermark, marks_decide }
    }

    /// State and its outputs must be on one side of every cut.
    fn check_side(&mut self, instance: &Instance, epoch: u64) {
        if checkpoint_of(epoch) != instance.generation {
            let at = (checkpoint_of(epoch), instance.generation);
            self.violate(format!("side: output and state are in checkpoints {at:?}"));
        }
    }

    fn apply(
        &mut self,
        operator: usize,
        instance: &mut Instance,
        (input, epoch, item): (usize, u64, Item),
        effects: &mut Effects,
    ) {
        instance.is_dirty = true;
        self.check_side(instance, epoch);
        if self.mistake == Mistake::ReceiptAtState
            && let Some((partition, offset)) = item.origin
        {
            self.resolved[partition] = self.resolved[partition].max(offset + 1);
        }
        let judge = self.judge(operator, instance.watermark);
        if judge.kind == Kind::Calls {
            instance.calls.push((epoch, item));
            return;
        }
        let mut emitted = Emitted::default();
        instance.state.on_record(&judge, input, item.record, &mut emitted);
        self.result.violations.extend(emitted.violations);
        effects.rows.extend(emitted.rows.into_iter().map(|row| (epoch, row, item.token.clone())));
        let late = emitted.late.into_iter().map(|time| item.record.late(operator, time));
        effects.late.extend(late.map(|output| (epoch, output, item.token.clone())));
    }

    /// Some open calls come back, in any order. The report that a call held down follows at its
    /// epoch.
    fn answer_calls(&mut self, instance: &mut Instance, effects: &mut Effects) {
        let per_cent = if self.lag == 0 { 60 } else { 15 };
        let mut call = 0;
        while call < instance.calls.len() {
            let is_now = checkpoint_of(instance.calls[call].0) == instance.generation;
            if !is_now || !chance(&mut self.random, per_cent) {
                call += 1;
                continue;
            }
            let (epoch, item) = instance.calls.remove(call);
            instance.is_dirty = true;
            effects.rows.push((epoch, item.record, item.token));
            effects.relays.push((epoch, lowered(instance.watermark, &instance.calls)));
            if self.mistake != Mistake::NoEpochForCalls {
                self.has_reason = true;
                self.has_changed = true;
            }
        }
    }

    /// Applies what the frontiers allow. Returns whether there may be more.
    fn settle(&mut self, at: (usize, usize), instance: &mut Instance, effects: &mut Effects) -> bool {
        let least = instance.seen.iter().min().copied().unwrap_or(END);
        let by_one_input = self.mistake == Mistake::SetAsideByOneInput;
        let cut = if by_one_input { instance.seen[0] } else { least };
        let boundary = first_epoch(instance.generation + 1);
        if self.mistake == Mistake::DeltaBeforeFirings && cut >= boundary && instance.is_dirty {
            instance.early.get_or_insert_with(|| (instance.state.clone(), instance.watermark));
        }
        if !self.fire((at, cut), instance, effects) {
            return false;
        }
        let is_open = instance.generation <= checkpoint_of(self.open);
        let has_ended = cut == END && instance.has_nothing() && !instance.is_dirty;
        if cut < boundary || has_ended || !is_open {
            return false;
        }
        self.cut(at, instance);
        let aside = std::mem::take(&mut instance.aside);
        let is_now = |(_, epoch, _): &(usize, u64, Item)| checkpoint_of(*epoch) <= instance.generation;
        let (now, later): (Vec<_>, _) = aside.into_iter().partition(is_now);
        instance.aside = later;
        for arrived in now {
            self.apply(at.0, instance, arrived, effects);
        }
        true
    }

    /// Takes in the reports that the frontiers have passed, and fires. Returns whether nothing is
    /// left to fire now.
    fn fire(
        &mut self,
        ((operator, worker), cut): ((usize, usize), u64),
        instance: &mut Instance,
        effects: &mut Effects,
    ) -> bool {
        let inputs = self.inputs(operator);
        let least = instance.seen.iter().min().copied().unwrap_or(END);
        let by_reports = self.mistake == Mistake::FireByReportsAlone;
        let passed = if by_reports { instance.seen[inputs..].iter().min().copied().unwrap_or(END) } else { least };
        let boundary = first_epoch(instance.generation + 1);
        loop {
            if !self.fire_slice(worker, instance, effects) {
                return false;
            }
            let Some((&epoch, _)) = instance.reports.first_key_value() else { return true };
            let waits_for_calls = cut < boundary && instance.calls.iter().any(|(open, _)| *open <= epoch);
            if checkpoint_of(epoch) > instance.generation || passed <= epoch || waits_for_calls {
                return true;
            }
            let reports = instance.reports.remove(&epoch).unwrap_or_default();
            let watermark = self.take_in(operator, instance, reports);
            let at = match self.mistake {
                Mistake::FireAtFrontier if least != END => least,
                _ => epoch + self.fires_behind(),
            };
            let relay = self.relay(operator, instance, watermark);
            let rows = if watermark == instance.watermark {
                Vec::new()
            } else {
                instance.is_dirty = true;
                let judge = self.judge(operator, instance.watermark);
                instance.watermark = watermark;
                instance.state.fire(&judge, watermark)
            };
            if !rows.is_empty() {
                self.check_side(instance, at);
            }
            instance.firing = Some(Firing { epoch: at, rows, relay });
        }
    }

    /// The watermark after some reports.
    fn take_in(&self, operator: usize, instance: &mut Instance, reports: Vec<Report>) -> Time {
        let from_sources = operator == 0 || self.broadcasts();
        for Report { input, origin, mark } in reports {
            let known = instance.marks[input].entry(origin).or_insert(mark);
            // A relayed report never goes back.
            *known = if from_sources { mark } else { mark.max(*known) };
        }
        let mut least: Option<Time> = None;
        for (input, marks) in instance.marks.iter().enumerate() {
            let partitions = self.plan.partitions.iter();
            let expected = match from_sources {
                true => partitions.filter(|partition| operator > 0 || partition.input == input).count(),
                false => self.workers,
            };
            let unknown = marks.len() < expected && self.mistake != Mistake::UnknownIsIdle;
            let known = marks.values().copied().filter(|mark| *mark != IDLE);
            let of_input = known.chain(unknown.then_some(NEVER)).min();
            least = least.into_iter().chain(of_input).min();
        }
        let watermark = least.unwrap_or(instance.watermark);
        if self.mistake == Mistake::WatermarkGoesBack { watermark } else { watermark.max(instance.watermark) }
    }

    /// What an operator relays at this watermark.
    fn relay(&self, operator: usize, instance: &Instance, watermark: Time) -> Option<Time> {
        let kind = self.plan.operators[operator];
        if self.broadcasts() || operator + 1 == self.egress() || watermark == NEVER {
            return None;
        }
        let is_raw = matches!(
            (self.mistake, kind),
            (Mistake::JoinRelayRaw, Kind::Join { .. }) | (Mistake::LatenessRelayRaw, Kind::Window { .. })
        );
        Some(match kind {
            Kind::Calls if self.mistake != Mistake::CallsRelayRaw => lowered(watermark, &instance.calls),
            _ if watermark >= FOREVER => FOREVER,
            _ if is_raw => watermark,
            _ => watermark - kind.back(),
        })
    }

    /// Emits a slice of the firing, as far as there is room. Returns whether nothing is left of it.
    fn fire_slice(&mut self, worker: usize, instance: &mut Instance, effects: &mut Effects) -> bool {
        let Some(firing) = &mut instance.firing else { return true };
        let checkpoint = checkpoint_of(firing.epoch);
        let budget = &self.budgets[worker];
        for _ in 0..SLICE {
            let (has_room, charge) = match self.mistake {
                Mistake::FiringOnBudget => (budget.records() < self.plan.budget, Charge::Record),
                Mistake::ReserveOfAllCheckpoints => (budget.has_reserve_of_all(), Charge::Firing { checkpoint }),
                _ => (budget.has_reserve(checkpoint), Charge::Firing { checkpoint }),
            };
            if !has_room {
                break;
            }
            let Some(row) = firing.rows.pop() else { break };
            effects.rows.push((firing.epoch, row, Token::new(budget, charge)));
        }
        if !firing.rows.is_empty() {
            return false;
        }
        effects.relays.extend(firing.relay.map(|mark| (firing.epoch, mark)));
        instance.firing = None;
        true
    }

    /// Hands in the section of a checkpoint. Open calls go on in the next one.
    fn cut(&mut self, (operator, worker): (usize, usize), instance: &mut Instance) {
        let boundary = first_epoch(instance.generation + 1);
        for (epoch, _) in &mut instance.calls {
            if *epoch < boundary {
                *epoch = boundary;
                instance.is_dirty = true;
            }
        }
        instance.state.calls = instance.calls.iter().map(|(_, item)| item.record).collect();
        let early = instance.early.take();
        if instance.is_dirty {
            let (state, watermark) = early.unwrap_or_else(|| (instance.state.clone(), instance.watermark));
            let section = Section { operator, worker, workers: self.workers, state, watermark };
            self.sections.entry(instance.generation).or_default().push(section);
            instance.is_dirty = false;
        }
        instance.generation += 1;
    }

    /// Sends what a step has emitted.
    fn hand_on(&mut self, (operator, worker): (usize, usize), effects: Effects) {
        for (epoch, output, token) in effects.late {
            self.send_to_sinks(worker, epoch, &output, &token);
        }
        for (epoch, record, token) in effects.rows {
            if operator + 1 == self.egress() {
                self.send_to_sinks(worker, epoch, &record.output(operator), &token);
            } else {
                let record = Record { key: key_behind(record.key), ..record };
                let to = Port { operator: operator + 1, input: 0, worker: self.home(record.key) };
                self.send(to, worker, epoch, Message::Record(Item { record, origin: None, token }));
            }
        }
        for (epoch, mark) in effects.relays {
            if operator + 1 == self.egress() {
                continue;
            }
            for to in 0..self.workers {
                let to = Port { operator: operator + 1, input: self.inputs(operator + 1), worker: to };
                self.send(to, worker, epoch, Message::Report { origin: worker, mark });
            }
        }
    }
}

/// The smaller of a watermark and the marks of open calls.
fn lowered(watermark: Time, calls: &[(u64, Item)]) -> Time {
    calls.iter().map(|(_, item)| item.record.mark).fold(watermark, Time::min)
}
