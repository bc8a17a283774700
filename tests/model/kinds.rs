//! What the operators keep, and what they do with a record and with a watermark.

use std::collections::{BTreeMap, BTreeSet};

use crate::Mistake;
use crate::plan::{Kind, NEVER, Time, windows};
use crate::reference::{Record, joined};

/// A count of records and the sum of their hashes.
type Sum = (u64, u64);

#[derive(Clone, Copy, Debug)]
struct Session {
    first: Time,
    last: Time,
    sum: Sum,
}

/// The state of an operator on a worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    windows: BTreeMap<(u32, Time), Sum>,
    /// Windows that were final before their lateness was over: only by mistake.
    fired: BTreeSet<(u32, Time)>,
    sessions: BTreeMap<u32, Vec<Session>>,
    /// The two sides of a join; whether a record has found a partner.
    sides: [BTreeMap<u32, Vec<(Record, bool)>>; 2],
    timers: BTreeMap<u32, (Time, Sum)>,
    /// What early timers have emitted, until the watermark passes them.
    held: Vec<(Time, Record)>,
    /// The records of calls that were open at the cut.
    pub(crate) calls: Vec<Record>,
    pub(crate) counts: BTreeMap<u32, u64>,
}

impl State {
    /// Keeps what belongs to some keys.
    pub(crate) fn retain(&mut self, is_kept: impl Fn(u32) -> bool) {
        self.windows.retain(|(key, _), _| is_kept(*key));
        self.fired.retain(|(key, _)| is_kept(*key));
        self.sessions.retain(|key, _| is_kept(*key));
        self.sides.iter_mut().for_each(|side| side.retain(|key, _| is_kept(*key)));
        self.timers.retain(|key, _| is_kept(*key));
        self.held.retain(|(_, record)| is_kept(record.key));
        self.calls.retain(|record| is_kept(record.key));
        self.counts.retain(|key, _| is_kept(*key));
    }

    /// Adds the state of other keys.
    pub(crate) fn absorb(&mut self, other: State) {
        self.windows.extend(other.windows);
        self.fired.extend(other.fired);
        self.sessions.extend(other.sessions);
        self.sides.iter_mut().zip(other.sides).for_each(|(side, other)| side.extend(other));
        self.timers.extend(other.timers);
        self.held.extend(other.held);
        self.calls.extend(other.calls);
        self.counts.extend(other.counts);
    }

    /// The number of windows that a watermark should have closed.
    pub(crate) fn overdue(&self, allowed: Time, watermark: Time) -> usize {
        self.windows.keys().filter(|(_, end)| end + allowed <= watermark).count()
    }
}

/// By what an operator judges.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    pub(crate) kind: Kind,
    pub(crate) mistake: Mistake,
    pub(crate) watermark: Time,
    /// Whether marks alone decide what is late: no partition was ever idle.
    pub(crate) marks_decide: bool,
}

impl Judge {
    fn limit(&self, record: &Record) -> Time {
        match self.mistake {
            Mistake::LateByWatermark => self.watermark,
            Mistake::ReturnedByMarkOnly => record.mark,
            _ => record.mark.max(self.watermark),
        }
    }
}

/// What a record leads to.
#[derive(Debug, Default)]
pub(crate) struct Emitted {
    pub(crate) rows: Vec<Record>,
    /// The time by which a late record is told from its copies.
    pub(crate) late: Vec<Time>,
    pub(crate) violations: Vec<String>,
}

impl Emitted {
    /// Notes a record that is late by the watermark but not by its mark: it met what is closed.
    fn check(&mut self, judge: &Judge, (by_mark, by_limit): (bool, bool)) {
        if judge.marks_decide && judge.mistake != Mistake::LateByWatermark && by_limit && !by_mark {
            self.violations.push(format!("closed: a record in time met what {:?} has closed", judge.kind));
        }
    }
}

impl State {
    /// Applies a record, which came by this input.
    pub(crate) fn on_record(&mut self, judge: &Judge, input: usize, record: Record, out: &mut Emitted) {
        match judge.kind {
            Kind::Window { length, step, allowed } => self.on_window(judge, (length, step, allowed), record, out),
            Kind::Session { gap } => self.on_session(judge, gap, record, out),
            Kind::Join { bound } => self.on_join(judge, (input, bound), record, out),
            Kind::Process { gap } => self.on_process(judge, gap, record, out),
            Kind::Running => {
                *self.counts.entry(record.key).or_default() += record.count;
                let mark = if judge.mistake == Mistake::HandedOnWithoutMark { NEVER } else { record.mark };
                out.rows.push(Record { mark, ..record });
            }
            Kind::Calls => {}
        }
    }

    fn on_window(&mut self, judge: &Judge, window: (Time, Time, Time), record: Record, out: &mut Emitted) {
        let (length, step, allowed) = window;
        let limit = judge.limit(&record);
        for end in windows(record.time, length, step) {
            out.check(judge, (end + allowed <= record.mark, end + allowed <= limit));
            if end + allowed <= limit || self.fired.contains(&(record.key, end)) {
                out.late.push(end);
            } else {
                let sum = self.windows.entry((record.key, end)).or_default();
                let before = if judge.mistake == Mistake::DependsOnOrder { sum.1.wrapping_mul(31) } else { sum.1 };
                *sum = (sum.0 + record.count, before.wrapping_add(record.hash));
            }
        }
    }

    fn on_session(&mut self, judge: &Judge, gap: Time, record: Record, out: &mut Emitted) {
        let behind = if judge.mistake == Mistake::SessionLateByEnd { gap } else { 0 };
        let is_late = |limit: Time| record.time + behind <= limit;
        let limit = judge.limit(&record);
        out.check(judge, (is_late(record.mark), is_late(limit)));
        if is_late(limit) {
            out.late.push(record.time);
            return;
        }
        let mut merged = Session { first: record.time, last: record.time, sum: (record.count, record.hash) };
        let sessions = self.sessions.entry(record.key).or_default();
        sessions.retain(|session| {
            let touches = session.first <= record.time + gap && record.time <= session.last + gap;
            if touches {
                merged.first = merged.first.min(session.first);
                merged.last = merged.last.max(session.last);
                merged.sum = (merged.sum.0 + session.sum.0, merged.sum.1.wrapping_add(session.sum.1));
            }
            !touches
        });
        sessions.push(merged);
    }

    fn on_join(&mut self, judge: &Judge, (side, bound): (usize, Time), record: Record, out: &mut Emitted) {
        let limit = judge.limit(&record);
        out.check(judge, (record.time < record.mark, record.time < limit));
        if record.time < limit {
            out.late.push(record.time);
            return;
        }
        let mut has_partner = false;
        for (other, other_has_partner) in self.sides[1 - side].entry(record.key).or_default() {
            if (other.time - record.time).abs() <= bound {
                (has_partner, *other_has_partner) = (true, true);
                let (left, right) = if side == 0 { (&record, &*other) } else { (&*other, &record) };
                let mark = if judge.mistake == Mistake::JoinMarkRaw { record.mark } else { NEVER };
                out.rows.push(Record { mark, ..joined(left, Some(right)) });
            }
        }
        self.sides[side].entry(record.key).or_default().push((record, has_partner));
    }

    fn on_process(&mut self, judge: &Judge, gap: Time, record: Record, out: &mut Emitted) {
        let by_watermark = judge.mistake == Mistake::TimersByWatermark;
        if let Some(&(timer, sum)) = self.timers.get(&record.key)
            && timer <= record.mark
            && !by_watermark
        {
            self.timers.remove(&record.key);
            let row = Record::fired(record.key, timer - 1, sum);
            match judge.mistake {
                Mistake::EarlyTimersNotHeld => out.rows.push(row),
                _ => self.held.push((timer, row)),
            }
        }
        let (timer, sum) = self.timers.entry(record.key).or_insert((NEVER, (0, 0)));
        *timer = (*timer).max(record.time + gap).max(record.mark + 1);
        *sum = (sum.0 + record.count, sum.1.wrapping_add(record.hash));
        if *timer <= judge.watermark && judge.marks_decide && !by_watermark {
            out.violations.push("timer: it is set at or before the watermark".to_owned());
        }
    }

    /// Takes out what the watermark closes as it moves to `now`, as rows.
    pub(crate) fn fire(&mut self, judge: &Judge, now: Time) -> Vec<Record> {
        let mut rows = Vec::new();
        match judge.kind {
            Kind::Window { allowed, .. } if judge.mistake == Mistake::FinalBeforeAllowedLateness && allowed > 0 => {
                for (&(key, end), &sum) in self.windows.iter().filter(|((_, end), _)| *end <= now) {
                    if self.fired.insert((key, end)) {
                        rows.push(Record::fired(key, end - 1, sum));
                    }
                }
                self.windows.retain(|(_, end), _| *end + allowed > now);
            }
            Kind::Window { allowed, .. } => {
                let due = self.windows.extract_if(.., |(_, end), _| *end + allowed <= now);
                rows.extend(due.map(|((key, end), sum)| Record::fired(key, end - 1, sum)));
            }
            Kind::Session { gap } => {
                for (&key, sessions) in &mut self.sessions {
                    let due = sessions.extract_if(.., |session| session.last + gap <= now);
                    rows.extend(due.map(|session| Record::fired(key, session.last + gap - 1, session.sum)));
                }
            }
            Kind::Join { bound } => {
                for (number, side) in self.sides.iter_mut().enumerate() {
                    let gone = side.values_mut().flat_map(|kept| kept.extract_if(.., |(r, _)| r.time + bound < now));
                    let alone = gone.filter(|(_, has_partner)| number == 0 && !has_partner);
                    rows.extend(alone.map(|(record, _)| joined(&record, None)));
                }
            }
            Kind::Process { .. } => {
                rows.extend(self.held.extract_if(.., |(timer, _)| *timer <= now).map(|(_, row)| row));
                let due = self.timers.extract_if(.., |_, (timer, _)| *timer <= now);
                rows.extend(due.map(|(key, (timer, sum))| Record::fired(key, timer - 1, sum)));
            }
            Kind::Running | Kind::Calls => {}
        }
        if judge.mistake == Mistake::FiringMarkedNew {
            rows.iter_mut().for_each(|row| row.mark = now);
        }
        rows
    }
}
