//! A run of a plan: everything that there is, and what happens next.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::Mistake;
use crate::checkpoint::{Commit, Writer};
use crate::disk::{Disk, Name, Section};
use crate::egress::Egress;
use crate::operator::Instance;
use crate::plan::{FOREVER, Kind, NEVER, Plan, Time, chance, mix};
use crate::progress::{END, checkpoint_of};
use crate::reference::{Output, Record};
use crate::source::{Position, Source};
use crate::tokens::{Budget, Token};

/// What a run came to.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// What the committing sink shows.
    pub(crate) committed: Vec<Output>,
    /// What the acknowledging sink got, in part twice.
    pub(crate) acknowledged: Vec<Output>,
    /// By operator and key, what running aggregates have counted at the end.
    pub(crate) counts: BTreeMap<(usize, u32), u64>,
    pub(crate) restarts: usize,
    pub(crate) violations: Vec<String>,
}

/// A record on its way, with the partition and offset where it was read.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) record: Record,
    pub(crate) origin: Option<(usize, usize)>,
    pub(crate) token: Token,
}

/// What channels carry.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Record(Item),
    Report { origin: usize, mark: Time },
    Output(Output, Token),
}

/// Where a channel leads: an input of an operator on a worker. The egress is the operator behind
/// the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    pub(crate) operator: usize,
    pub(crate) input: usize,
    pub(crate) worker: usize,
}

pub(crate) struct World<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) mistake: Mistake,
    pub(crate) random: fastrand::Rng,
    // The run, which a restart replaces.
    pub(crate) run: u64,
    pub(crate) workers: usize,
    pub(crate) is_micro_batch: bool,
    /// The chance, in per cent, that an input does not see its frontier move.
    pub(crate) lag: u32,
    /// An operator on a worker that hardly ever runs.
    pub(crate) slow: (usize, usize),
    pub(crate) budgets: Vec<Rc<Budget>>,
    // The ticker.
    pub(crate) open: u64,
    /// Whether there is a reason for an epoch.
    pub(crate) has_reason: bool,
    /// Whether there is something for the next checkpoint.
    pub(crate) has_changed: bool,
    // Sources and operators.
    /// By input and worker.
    pub(crate) sources: Vec<Vec<Source>>,
    pub(crate) partitions: Vec<Position>,
    pub(crate) reported: Vec<Option<Time>>,
    /// Whether the partition that pauses has something to read.
    pub(crate) is_awake: bool,
    /// Whether that partition never returns.
    pub(crate) is_dead: bool,
    /// By operator and worker.
    pub(crate) instances: Vec<Vec<Instance>>,
    pub(crate) egresses: Vec<Egress>,
    /// By port and sender.
    pub(crate) channels: BTreeMap<(Port, usize), VecDeque<(u64, Message)>>,
    /// By operator and input: the number of messages on their way, by epoch.
    pub(crate) on_their_way: Vec<Vec<BTreeMap<u64, usize>>>,
    // Checkpoints of this run.
    pub(crate) sections: BTreeMap<u64, Vec<Section>>,
    pub(crate) positions: BTreeMap<u64, BTreeMap<usize, Position>>,
    pub(crate) writer: Option<Writer>,
    /// The first checkpoint that is not durable, and the first that is not committed.
    pub(crate) durable: u64,
    pub(crate) uncommitted: u64,
    pub(crate) commit: Commit,
    pub(crate) parent: Option<Name>,
    // What survives a run.
    pub(crate) hung: Vec<Writer>,
    pub(crate) disk: Disk,
    /// The checkpoint that the committing sink names.
    pub(crate) progress: Option<Name>,
    /// The newest checkpoint that was ever committed.
    pub(crate) newest_committed: u64,
    pub(crate) group: Vec<usize>,
    /// By partition: the offset up to which receipts were resolved.
    pub(crate) resolved: Vec<usize>,
    pub(crate) result: Run,
}

impl<'a> World<'a> {
    /// Runs a plan to its end under one schedule.
    pub(crate) fn run(plan: &'a Plan, mistake: Mistake, seed: u64) -> Run {
        let mut world = World::new(plan, mistake, seed);
        world.begin();
        let restarts = world.random.usize(0..4);
        for step in 0.. {
            if world.is_done() {
                break;
            }
            // In the end everybody gets a turn.
            if step == 15_000 {
                world.lag = 0;
                world.slow = (usize::MAX, usize::MAX);
            }
            if step == 30_000 {
                let at = (world.open >> 8, world.durable, world.uncommitted);
                world.violate(format!("stuck: open, durable, uncommitted are {at:?}"));
                break;
            }
            world.step(restarts > world.result.restarts && step < 15_000);
        }
        world.finish()
    }

    fn new(plan: &'a Plan, mistake: Mistake, seed: u64) -> World<'a> {
        let mut random = fastrand::Rng::with_seed(mix(seed));
        let is_dead = plan.idle.is_some() && !plan.is_bounded && chance(&mut random, 50);
        let is_awake = !is_dead && (plan.idle.is_none() || chance(&mut random, 30));
        let count = plan.partitions.len();
        World {
            plan,
            mistake,
            random,
            run: 0,
            workers: 1,
            is_micro_batch: false,
            lag: 0,
            slow: (0, 0),
            budgets: Vec::new(),
            open: 0,
            has_reason: false,
            has_changed: false,
            sources: Vec::new(),
            partitions: Vec::new(),
            reported: Vec::new(),
            is_awake,
            is_dead,
            instances: Vec::new(),
            egresses: Vec::new(),
            channels: BTreeMap::new(),
            on_their_way: Vec::new(),
            sections: BTreeMap::new(),
            positions: BTreeMap::new(),
            writer: None,
            durable: 0,
            uncommitted: 0,
            commit: Commit::Idle,
            parent: None,
            hung: Vec::new(),
            disk: Disk::default(),
            progress: None,
            newest_committed: 0,
            group: vec![0; count],
            resolved: vec![0; count],
            result: Run::default(),
        }
    }

    pub(crate) fn violate(&mut self, what: String) {
        self.result.violations.push(what);
    }

    /// One thing happens.
    fn step(&mut self, may_restart: bool) {
        let input = self.random.usize(0..self.sources.len());
        let worker = self.random.usize(0..self.workers);
        let operator = self.random.usize(0..self.plan.operators.len());
        match self.random.u32(0..1000) {
            0..180 => self.poll(input, worker),
            180..360 => self.close(input, worker),
            360..450 => self.tick(),
            450..830 => {
                if (operator, worker) != self.slow || chance(&mut self.random, 15) {
                    self.activate(operator, worker);
                }
            }
            830..900 => self.serve_egress(worker),
            900..960 => self.write_checkpoint(),
            960..985 => self.commit(),
            985..990 => self.step_hung(),
            990..994 if may_restart => self.restart(),
            _ => self.pause_or_return(),
        }
    }

    /// The partition that pauses goes on or pauses, or is found idle.
    fn pause_or_return(&mut self) {
        let Some(idle) = self.plan.idle else { return };
        if chance(&mut self.random, 20) && !self.is_dead {
            self.is_awake = !self.is_awake;
        }
        let position = &mut self.partitions[idle];
        let has_more = position.offset < self.plan.partitions[idle].records.len();
        if !self.is_awake && !position.is_idle && has_more && self.mistake != Mistake::NeverIdle {
            position.is_idle = true;
            if self.mistake != Mistake::NoEpochForIdle {
                self.has_reason = true;
                self.has_changed = true;
            }
        }
    }

    pub(crate) fn is_read(&self, partition: usize) -> bool {
        self.partitions[partition].offset == self.plan.partitions[partition].records.len()
    }

    fn is_done(&self) -> bool {
        let is_read = |partition: usize| {
            let stays_idle = self.partitions[partition].is_idle || self.mistake == Mistake::NeverIdle;
            self.is_read(partition) || (self.is_dead && self.plan.idle == Some(partition) && stays_idle)
        };
        let mut sources = self.sources.iter().flatten();
        let have_ended = sources.clone().all(|source| source.epoch.is_none());
        let output = self.output_frontier();
        (0..self.partitions.len()).all(is_read)
            && sources.all(|source| source.epoch.is_none_or(|epoch| epoch == self.open))
            && self.instances.iter().flatten().all(Instance::is_at_rest)
            && self.egresses.iter().all(Egress::is_empty)
            && !self.has_reason
            && !self.has_changed
            && output >= if have_ended { END } else { self.open }
            && (self.uncommitted > checkpoint_of(self.open)
                || (self.uncommitted == checkpoint_of(self.open) && output != END))
    }

    /// Looks at what is left, and returns the result.
    fn finish(mut self) -> Run {
        let is_left_out = |partition: usize| {
            let is_dead = self.is_dead && self.plan.idle == Some(partition);
            is_dead || self.partitions[partition].is_idle
        };
        let marks = (0..self.partitions.len()).filter(|partition| !is_left_out(*partition));
        let bounded = self.plan.is_bounded;
        let watermark = marks.map(|partition| if bounded { FOREVER } else { self.mark(partition) }).min();
        if let Kind::Window { allowed, .. } = self.plan.operators[0] {
            let watermark = watermark.unwrap_or(NEVER);
            let left: usize = self.instances[0].iter().map(|instance| instance.state.overdue(allowed, watermark)).sum();
            if left > 0 {
                self.violate(format!("liveness: {left} windows never fired"));
            }
        }
        self.check_conserved();
        for (operator, instances) in self.instances.iter().enumerate() {
            for (key, count) in instances.iter().flat_map(|instance| &instance.state.counts) {
                *self.result.counts.entry((operator, *key)).or_default() += count;
            }
        }
        self.result
    }

    /// With tumbling windows and an end, every record is in one final or late, whatever was idle.
    fn check_conserved(&mut self) {
        let tumbles = |kind: &Kind| matches!(kind, Kind::Window { length, step, .. } if length == step);
        if self.plan.idle.is_some()
            && self.plan.is_bounded
            && self.plan.sinks.commit()
            && self.plan.operators.iter().all(tumbles)
        {
            let read: u64 = self.plan.partitions.iter().map(|partition| partition.records.len() as u64).sum();
            let shown: u64 = self.result.committed.iter().map(|output| output.count).sum();
            if read != shown {
                self.violate(format!("conserved: {read} records in, {shown} in finals and late"));
            }
        }
    }
}
