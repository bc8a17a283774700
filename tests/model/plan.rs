//! What is computed: partitions with their records, a chain of keyed operators, and sinks.

/// Event time, without a unit.
pub(crate) type Time = i64;

/// Before all records.
pub(crate) const NEVER: Time = -(1 << 40);
/// Behind all records: the mark of a source that has ended.
pub(crate) const FOREVER: Time = 1 << 40;

/// The operators of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// A tumbling or sliding window.
    Window {
        length: Time,
        step: Time,
        allowed: Time,
    },
    Session {
        gap: Time,
    },
    /// A left join of two inputs within a bound of time.
    Join {
        bound: Time,
    },
    /// A running aggregate: a record goes on as it came, its key is counted.
    Running,
    /// A timer for each key, which every record moves.
    Process {
        gap: Time,
    },
    /// Calls that survive a cut.
    Calls,
}

impl Kind {
    /// How far behind its watermark an operator may still emit. What it relays is lowered by this.
    pub(crate) fn back(self) -> Time {
        match self {
            Kind::Window { allowed, .. } => allowed,
            Kind::Join { bound } => bound,
            _ => 0,
        }
    }

    pub(crate) fn inputs(self) -> usize {
        if matches!(self, Kind::Join { .. }) { 2 } else { 1 }
    }
}

/// A partition: which input it belongs to, how disordered it may be, and its records as
/// `(key, time)`.
#[derive(Clone, Debug)]
pub(crate) struct Partition {
    pub(crate) input: usize,
    pub(crate) delay: Time,
    pub(crate) records: Vec<(u32, Time)>,
}

/// Which sinks there are. What the second kind has committed is the memory of the job; without it
/// the directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sinks {
    Acknowledging,
    Committing,
    Both,
}

impl Sinks {
    pub(crate) fn acknowledge(self) -> bool {
        self != Sinks::Committing
    }

    pub(crate) fn commit(self) -> bool {
        self != Sinks::Acknowledging
    }
}

/// One computation.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) operators: Vec<Kind>,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) is_bounded: bool,
    /// This partition pauses, is found idle, and may return.
    pub(crate) idle: Option<usize>,
    pub(crate) sinks: Sinks,
    /// How many records of a worker may be on their way.
    pub(crate) budget: usize,
}

impl Plan {
    pub(crate) fn random(seed: u64) -> Plan {
        let mut random = fastrand::Rng::with_seed(mix(seed ^ 0xabcd));
        let first = Plan::first(seed, &mut random);
        let mut operators = vec![first];
        if chance(&mut random, 85) || matches!(first, Kind::Running | Kind::Calls) {
            let small = Kind::Window { length: 5, step: 5, allowed: 0 };
            operators.push(if chance(&mut random, 60) { Plan::wide(&mut random) } else { small });
        }
        if chance(&mut random, 30) {
            operators.push(Plan::wide(&mut random));
        }
        let has_idle = seed % 16 == 1;
        let count = random.usize(1..5) + usize::from(has_idle) + first.inputs() - 1;
        let delays = [random.i64(0..12), random.i64(0..12)];
        let partitions = (0..count).map(|number| Plan::partition(number, first, &delays, &mut random)).collect();
        Plan {
            operators,
            partitions,
            is_bounded: chance(&mut random, 40),
            idle: has_idle.then_some(count - 1),
            sinks: [Sinks::Acknowledging, Sinks::Committing, Sinks::Both][random.usize(0..3)],
            budget: random.usize(6..40),
        }
    }

    fn first(seed: u64, random: &mut fastrand::Rng) -> Kind {
        let gap = random.i64(3..11);
        match seed % 8 {
            0 | 1 => {
                let step = 5 * random.i64(1..4);
                Kind::Window { length: step * random.i64(1..3), step, allowed: 0 }
            }
            2 => Kind::Session { gap },
            3 => Kind::Running,
            4 => Kind::Join { bound: random.i64(2..14) },
            5 => Kind::Calls,
            6 => Kind::Window { length: 10, step: 10, allowed: random.i64(3..18) },
            _ => Kind::Process { gap },
        }
    }

    fn wide(random: &mut fastrand::Rng) -> Kind {
        let length = 20 * random.i64(1..4);
        Kind::Window { length, step: length, allowed: 0 }
    }

    fn partition(number: usize, first: Kind, delays: &[Time; 2], random: &mut fastrand::Rng) -> Partition {
        let input = number % first.inputs();
        // With one input, a union of two streams with delays of their own.
        let delay = if first.inputs() == 2 { delays[input] } else { delays[number % 2] };
        let (mut now, speed, disorder) = (random.i64(0..30), random.i64(1..9), random.i64(1..26));
        let records = (0..random.usize(3..43)).map(|_| {
            now += random.i64(0..speed * 2);
            let key = random.u32(0..6);
            // The keys of a process live in one partition, for else its answers are timing's.
            let key = if matches!(first, Kind::Process { .. }) { number as u32 * 8 + key } else { key };
            (key, now - random.i64(0..disorder))
        });
        Partition { input, delay, records: records.collect() }
    }

    /// The hash of a record, by which results are told apart.
    pub(crate) fn hash_of(partition: usize, offset: usize) -> u64 {
        mix((partition * 1000 + offset) as u64) >> 8
    }

    /// The mark of a partition whose largest time so far is this.
    pub(crate) fn mark(&self, partition: usize, largest: Time) -> Time {
        if largest == NEVER { NEVER } else { largest - self.partitions[partition].delay }
    }
}

/// Mixes the bits of a number (splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn chance(random: &mut fastrand::Rng, per_cent: u32) -> bool {
    random.u32(0..100) < per_cent
}

/// The ends of the windows that hold a time.
pub(crate) fn windows(time: Time, length: Time, step: Time) -> impl Iterator<Item = Time> {
    let newest = time.div_euclid(step) * step;
    (0..).map(move |n| newest - n * step + length).take_while(move |end| *end > time)
}
