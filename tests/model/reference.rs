//! The expected outputs: a sequential recomputation, which knows the sequence of each partition and
//! nothing of epochs, workers, or the order between partitions.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{FOREVER, Kind, NEVER, Plan, Time, mix, windows};
use crate::world::Run;

/// A row that reaches the sinks: a result of the last operator, or a late record of any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Output {
    pub(crate) operator: usize,
    pub(crate) is_late: bool,
    pub(crate) key: u32,
    pub(crate) time: Time,
    pub(crate) count: u64,
    pub(crate) hash: u64,
}

/// A record between operators.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) key: u32,
    pub(crate) time: Time,
    /// The mark of its partition as it stood before the record.
    pub(crate) mark: Time,
    /// How many records of the sources it stands for, and the sum of their hashes.
    pub(crate) count: u64,
    pub(crate) hash: u64,
}

impl Record {
    pub(crate) fn output(self, operator: usize) -> Output {
        Output { operator, is_late: false, key: self.key, time: self.time, count: self.count, hash: self.hash }
    }

    pub(crate) fn late(self, operator: usize, time: Time) -> Output {
        Output { operator, is_late: true, key: self.key, time, count: self.count, hash: self.hash }
    }

    /// A row of a firing: it carries no mark, for it is in time by construction.
    pub(crate) fn fired(key: u32, time: Time, (count, hash): (u64, u64)) -> Record {
        Record { key, time, mark: NEVER, count, hash }
    }
}

/// A joined pair, or a left record that found no partner.
pub(crate) fn joined(left: &Record, right: Option<&Record>) -> Record {
    let hash = right.map_or(left.hash, |right| left.hash ^ right.hash.rotate_left(7));
    Record::fired(left.key, left.time, (1, mix(hash) >> 8))
}

/// The key of a record behind an operator: coarser each time.
pub(crate) fn key_behind(key: u32) -> u32 {
    key / 2
}

/// What a plan must come to.
#[derive(Debug)]
pub(crate) struct Expected {
    /// In order.
    outputs: Vec<Output>,
    /// By operator and key, how many records a running aggregate has counted.
    counts: BTreeMap<(usize, u32), u64>,
}

/// Recomputes a plan.
pub(crate) fn of(plan: &Plan) -> Expected {
    let (mut input, mut watermark) = read(plan);
    let mut expected = Expected { outputs: Vec::new(), counts: BTreeMap::new() };
    for (operator, kind) in plan.operators.iter().enumerate() {
        let mut through = Through { operator, watermark, out: Vec::new(), expected: &mut expected };
        match *kind {
            Kind::Window { length, step, allowed } => through.window(&input, (length, step, allowed)),
            Kind::Session { gap } => through.session(&input, gap),
            Kind::Join { bound } => through.join(&input, bound),
            Kind::Running => through.running(&input),
            Kind::Calls => through.out.extend(input.iter().map(|(_, record)| *record)),
            Kind::Process { gap } => through.process(&input, gap),
        }
        let out = through.out;
        if watermark < FOREVER {
            watermark -= kind.back();
        }
        if operator + 1 == plan.operators.len() {
            expected.outputs.extend(out.iter().map(|record| record.output(operator)));
        }
        input = out.into_iter().map(|record| (0, Record { key: key_behind(record.key), ..record })).collect();
    }
    expected.outputs.sort_unstable();
    expected
}

/// All records with their marks, by input, and the watermark at the end.
fn read(plan: &Plan) -> (Vec<(usize, Record)>, Time) {
    let (mut input, mut watermark) = (Vec::new(), FOREVER);
    for (number, partition) in plan.partitions.iter().enumerate() {
        let mut largest = NEVER;
        for (offset, &(key, time)) in partition.records.iter().enumerate() {
            let (mark, hash) = (plan.mark(number, largest), Plan::hash_of(number, offset));
            input.push((partition.input, Record { key, time, mark, count: 1, hash }));
            largest = largest.max(time);
        }
        if !plan.is_bounded {
            watermark = watermark.min(plan.mark(number, largest));
        }
    }
    (input, watermark)
}

/// One operator.
struct Through<'e> {
    operator: usize,
    watermark: Time,
    out: Vec<Record>,
    expected: &'e mut Expected,
}

impl Through<'_> {
    fn late(&mut self, record: &Record, time: Time) {
        self.expected.outputs.push(record.late(self.operator, time));
    }

    fn window(&mut self, input: &[(usize, Record)], (length, step, allowed): (Time, Time, Time)) {
        let mut sums = BTreeMap::<(u32, Time), (u64, u64)>::new();
        for (_, record) in input {
            for end in windows(record.time, length, step) {
                if end + allowed <= record.mark {
                    self.late(record, end);
                } else {
                    let sum = sums.entry((record.key, end)).or_default();
                    *sum = (sum.0 + record.count, sum.1.wrapping_add(record.hash));
                }
            }
        }
        let due = sums.into_iter().filter(|((_, end), _)| end + allowed <= self.watermark);
        self.out.extend(due.map(|((key, end), sum)| Record::fired(key, end - 1, sum)));
    }

    fn session(&mut self, input: &[(usize, Record)], gap: Time) {
        let mut by_key = BTreeMap::<u32, Vec<Record>>::new();
        for (_, record) in input {
            match record.time <= record.mark {
                true => self.late(record, record.time),
                false => by_key.entry(record.key).or_default().push(*record),
            }
        }
        for (key, mut records) in by_key {
            records.sort_by_key(|record| record.time);
            for session in records.chunk_by(|before, next| next.time <= before.time + gap) {
                let end = session.last().map_or(NEVER, |last| last.time) + gap;
                if end <= self.watermark {
                    let count = session.iter().map(|record| record.count).sum();
                    let hash = session.iter().fold(0, |sum: u64, record| sum.wrapping_add(record.hash));
                    self.out.push(Record::fired(key, end - 1, (count, hash)));
                }
            }
        }
    }

    fn join(&mut self, input: &[(usize, Record)], bound: Time) {
        let mut sides: [Vec<Record>; 2] = Default::default();
        for (side, record) in input {
            match record.time < record.mark {
                true => self.late(record, record.time),
                false => sides[*side].push(*record),
            }
        }
        for left in &sides[0] {
            let partners = sides[1].iter().filter(|right| right.key == left.key);
            let before = self.out.len();
            let partners = partners.filter(|right| (left.time - right.time).abs() <= bound);
            self.out.extend(partners.map(|right| joined(left, Some(right))));
            if self.out.len() == before && left.time + bound < self.watermark {
                self.out.push(joined(left, None));
            }
        }
    }

    fn running(&mut self, input: &[(usize, Record)]) {
        for (_, record) in input {
            *self.expected.counts.entry((self.operator, record.key)).or_default() += record.count;
            self.out.push(*record);
        }
    }

    fn process(&mut self, input: &[(usize, Record)], gap: Time) {
        let mut timers = BTreeMap::<u32, (Time, (u64, u64))>::new();
        for (_, record) in input {
            if let Some(&(timer, sum)) = timers.get(&record.key)
                && timer <= record.mark
            {
                timers.remove(&record.key);
                if timer <= self.watermark {
                    self.out.push(Record::fired(record.key, timer - 1, sum));
                }
            }
            let (timer, sum) = timers.entry(record.key).or_insert((NEVER, (0, 0)));
            *timer = (*timer).max(record.time + gap).max(record.mark + 1);
            *sum = (sum.0 + record.count, sum.1.wrapping_add(record.hash));
        }
        let due = timers.into_iter().filter(|(_, (timer, _))| *timer <= self.watermark);
        self.out.extend(due.map(|(key, (timer, sum))| Record::fired(key, timer - 1, sum)));
    }
}

/// What of a run is not as expected.
pub(crate) fn compare(plan: &Plan, expected: &Expected, run: &Run) -> Vec<String> {
    if plan.idle.is_some() {
        // Timing decides what is late.
        return final_twice(plan, &run.committed).into_iter().collect();
    }
    let mut wrong = Vec::new();
    if plan.sinks.commit() {
        wrong.extend(compare_outputs(expected, &run.committed));
    }
    if plan.sinks.acknowledge() {
        // A restart may repeat what came behind the checkpoint that it loads.
        let once: BTreeSet<_> = run.acknowledged.iter().copied().collect();
        wrong.extend(compare_outputs(expected, &once.into_iter().collect::<Vec<_>>()));
    }
    if run.counts != expected.counts {
        wrong.push(format!("state: counts are {:?}, expected {:?}", run.counts, expected.counts));
    }
    wrong
}

/// A window that is final twice.
fn final_twice(plan: &Plan, outputs: &[Output]) -> Option<String> {
    let mut seen = BTreeSet::new();
    let is_window = matches!(plan.operators.last(), Some(Kind::Window { .. }));
    let mut finals = outputs.iter().filter(|output| is_window && !output.is_late);
    finals.find(|row| !seen.insert((row.key, row.time))).map(|row| format!("twice: {row:?}"))
}

fn compare_outputs(expected: &Expected, outputs: &[Output]) -> Option<String> {
    let mut outputs = outputs.to_vec();
    outputs.sort_unstable();
    if outputs == expected.outputs {
        return None;
    }
    let missing = expected.outputs.iter().filter(|output| outputs.binary_search(output).is_err()).count();
    let extra: Vec<_> = outputs.iter().filter(|output| expected.outputs.binary_search(output).is_err()).collect();
    Some(format!(
        "outputs: {} where {} are expected, {missing} missing, {} wrong, such as {:?}",
        outputs.len(),
        expected.outputs.len(),
        extra.len(),
        extra.first()
    ))
}
