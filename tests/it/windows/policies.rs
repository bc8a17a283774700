//! Each policy, micro-batch by micro-batch, against a recomputation that knows which record came in
//! which batch.

use std::collections::BTreeSet;
use std::time::Duration;

use millstream::{
    ChannelSource, Clock, Collected, EventTime, Flow, Job, Late, Pane, Result, Session, Sliding, TestRun, Trigger,
    Watermark, WatermarkPolicy, channel, collect,
};

use super::{Kind, Row, Sums, millis};

const POLICIES: [WatermarkPolicy; 4] = [
    WatermarkPolicy::ByPartition,
    WatermarkPolicy::WhileOpen,
    WatermarkPolicy::MaxSeen,
    WatermarkPolicy::MaxSeenByFastest,
];

const TICK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
struct Plan {
    policy: WatermarkPolicy,
    kind: Kind,
    delay: i64,
    /// The rows of each batch, by input.
    batches: Vec<Vec<Vec<Row>>>,
}

impl Plan {
    fn drawn(random: &mut fastrand::Rng) -> Plan {
        let inputs = random.usize(1..4);
        let kind = match random.bool() {
            true => {
                let step = random.i64(5..60);
                Kind::Fixed { length: step * random.i64(1..4), step, offset: random.i64(0..100) }
            }
            false => Kind::Session { gap: random.i64(1..40) },
        };
        let mut now: Vec<i64> = (0..inputs).map(|_| random.i64(-200..200)).collect();
        let disorder = random.i64(1..120);
        let mut batch = |random: &mut fastrand::Rng| {
            let of_input = |now: &mut i64| {
                let rows = if random.u8(0..4) == 0 { 0 } else { random.usize(0..20) };
                let row = |_| {
                    *now += random.i64(0..12);
                    (random.i64(0..4), *now - random.i64(0..disorder), random.i64(1..100))
                };
                (0..rows).map(row).collect()
            };
            now.iter_mut().map(of_input).collect()
        };
        let policy = *random.choice(&POLICIES).unwrap();
        let count = random.usize(3..25);
        Plan { policy, kind, delay: random.i64(0..60), batches: (0..count).map(|_| batch(random)).collect() }
    }

    fn build(&self, flow: &Flow<'_>, inputs: &[ChannelSource<Row>], (rows, late): &Sinks) -> Result<()> {
        let hour = Duration::from_secs(3_600);
        let watermark = Watermark::delay(millis(self.delay as u64)).policy(self.policy).idle_after(hour);
        let timed =
            inputs.iter().map(|input| Ok(flow.source(input)?.with_watermark(|(_, at, _)| EventTime(*at), watermark)));
        let timed = timed.collect::<Result<Vec<_>>>()?.into_iter().reduce(|all, one| all.union(one));
        let by_key = timed.expect("there is an input").key_by(|(key, ..)| *key);
        let record = |late: Late<Row>| late.record;
        match self.kind {
            Kind::Fixed { length, step, offset } => {
                let windows = Sliding::new(millis(length as u64), millis(step as u64)).offset(millis(offset as u64));
                let (windows, of_late) = by_key.window(windows).late();
                of_late.map(record).sink(late)?;
                windows.sum(|(.., number)| *number).finals().sink(rows)
            }
            kind => {
                let (windows, of_late) = by_key.window(Session::with_gap(millis(kind.gap(0) as u64))).late();
                of_late.map(record).sink(late)?;
                windows.sum(|(.., number)| *number).finals().sink(rows)
            }
        }
    }

    fn is_spark(&self) -> bool {
        matches!(self.policy, WatermarkPolicy::MaxSeen | WatermarkPolicy::MaxSeenByFastest)
    }

    /// Whether a record is late for a window that begins at its own time and ends there.
    fn is_late(&self, at: i64, end: i64, mark: Option<i64>) -> bool {
        let edge = if matches!(self.kind, Kind::Session { .. }) && !self.is_spark() { at } else { end };
        mark.is_some_and(|mark| edge <= mark)
    }
}

type Sinks = (Collected<Pane<i64, i64>>, Collected<Row>);

/// What a recomputation knows behind a batch.
struct Model {
    /// The largest time of each input.
    largest: Vec<Option<i64>>,
    watermark: Option<i64>,
    /// Rows in open windows, with those that they count in.
    open: Vec<(Row, Vec<(i64, i64)>)>,
}

impl Model {
    fn new(plan: &Plan) -> Model {
        let inputs = plan.batches[0].len();
        Model { largest: vec![None; inputs], watermark: plan.is_spark().then_some(0), open: Vec::new() }
    }

    /// The sums that a batch makes final, and the rows that are late.
    fn step(&mut self, plan: &Plan, batch: &[Vec<Row>]) -> (Sums, Vec<Row>) {
        let (mut late, before) = (Vec::new(), self.largest.clone());
        for (input, rows) in batch.iter().enumerate() {
            for row in rows {
                let mark = self.largest[input].map(|largest| largest - plan.delay);
                let mark = if plan.policy == WatermarkPolicy::ByPartition { mark } else { None };
                let mark = mark.max(self.watermark);
                let (_, windows) = plan.kind.judge(*row, None, 0);
                let in_time: Vec<_> =
                    windows.iter().copied().filter(|(_, end)| !plan.is_late(row.1, *end, mark)).collect();
                if in_time.len() < windows.len() {
                    late.push(*row);
                }
                if !in_time.is_empty() {
                    self.open.push((*row, in_time));
                }
                self.largest[input] = self.largest[input].max(Some(row.1));
            }
        }
        let marks = |largest: &[Option<i64>]| -> Vec<Option<i64>> {
            largest.iter().map(|largest| largest.map(|largest| largest - plan.delay)).collect()
        };
        let now = match plan.policy {
            WatermarkPolicy::MaxSeen => marks(&before).into_iter().min().unwrap(),
            WatermarkPolicy::MaxSeenByFastest => marks(&before).into_iter().max().unwrap(),
            _ => marks(&self.largest).into_iter().min().unwrap(),
        };
        self.watermark = self.watermark.max(now);
        let sums = plan.kind.sums(self.open.iter().cloned());
        let is_over = |end: i64| self.watermark.is_some_and(|watermark| end <= watermark);
        let over: Sums = sums.into_iter().filter(|((.., end), _)| is_over(*end)).collect();
        match plan.kind {
            Kind::Fixed { .. } => {
                self.open.iter_mut().for_each(|(_, windows)| windows.retain(|(_, end)| !is_over(*end)));
                self.open.retain(|(_, windows)| !windows.is_empty());
            }
            _ => self.open.retain(|((key, at, _), _)| {
                !over.keys().any(|(own, start, end)| own == key && (start..end).contains(&at))
            }),
        }
        (over, late)
    }
}

/// Returns whether anything was late.
fn step_by_step(seed: u64) -> (WatermarkPolicy, bool) {
    let mut random = fastrand::Rng::with_seed(seed);
    let plan = Plan::drawn(&mut random);
    let (senders, sources): (Vec<_>, Vec<_>) = plan.batches[0].iter().map(|_| channel::<Row>(1_000)).unzip();
    let sinks: Sinks = (collect(), collect());
    let (own, sink, workers) = (plan.clone(), sinks.clone(), random.usize(1..4));
    let job = Job::new("policies", move |flow| own.build(flow, &sources, &sink));
    let job = job.state_in_memory().workers(workers).trigger(Trigger::micro_batch(TICK));
    let mut test = TestRun::start(job.clock(Clock::simulated())).unwrap();
    let (mut model, mut any_late, mut rows) = (Model::new(&plan), false, 0);
    let nothing: Vec<Vec<Row>> = senders.iter().map(|_| Vec::new()).collect();
    for (number, batch) in plan.batches.iter().enumerate() {
        let what = format!("seed {seed}, batch {number}, {workers} workers: {plan:?}");
        for (rows, sender) in batch.iter().zip(&senders) {
            test.feed(sender, rows.clone()).unwrap();
        }
        test.advance(TICK).unwrap();
        let (mut sums, mut late) = model.step(&plan, batch);
        if random.bool() || number + 1 == plan.batches.len() {
            // By Spark's rule an empty one follows when the watermark has moved.
            test.advance(TICK).unwrap();
            sums.extend(model.step(&plan, &nothing).0);
        }
        let came: Vec<Pane<i64, i64>> = test.drain(&sinks.0).unwrap();
        let came_late: Vec<Row> = test.drain(&sinks.1).unwrap();
        let distinct: BTreeSet<_> = came.iter().map(|pane| (pane.key, pane.window.start, pane.window.end)).collect();
        assert_eq!(distinct.len(), came.len(), "{what}: twice");
        let came: Sums =
            came.into_iter().map(|pane| ((pane.key, pane.window.start.0, pane.window.end.0), pane.value)).collect();
        assert_eq!(came, sums, "{what}");
        let sorted = |mut rows: Vec<Row>| {
            rows.sort_unstable();
            rows
        };
        late.sort_unstable();
        assert_eq!(sorted(came_late), late, "{what}");
        any_late |= !late.is_empty();
        rows += came.len();
    }
    (plan.policy, any_late && rows > 0)
}

#[test]
fn each_batch_makes_final_what_its_policy_says() {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let (first, seeds) = (number("MILLSTREAM_SEED").unwrap_or(1), number("MILLSTREAM_SEEDS").unwrap_or(400));
    let all: Vec<(WatermarkPolicy, bool)> = (first..first + seeds).map(step_by_step).collect();
    for policy in POLICIES {
        let own = all.iter().filter(|(own, _)| *own == policy);
        let (count, late) = (own.clone().count(), own.filter(|(_, late)| *late).count());
        assert!(late * 4 > count, "{late} of {count} with late records under {policy:?}");
    }
}
