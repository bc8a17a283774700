//! The rules hold, and each of them is needed.

use crate::{Mistake, check};

/// `MILLSTREAM_MODEL_SEEDS=100000` looks at more plans than the usual 2 000.
fn seeds() -> u64 {
    std::env::var("MILLSTREAM_MODEL_SEEDS").map_or(2_000, |seeds| seeds.parse().expect("it is a number"))
}

#[test]
fn the_rules_hold() {
    let (mut outputs, mut restarts) = (0, 0);
    let seeds = seeds();
    for seed in 0..seeds {
        let outcome = check(Mistake::None, seed);
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        outputs += outcome.outputs;
        restarts += outcome.restarts;
    }
    assert!(outputs as u64 > 20 * seeds && restarts as u64 > 2 * seeds, "{outputs} outputs, {restarts} restarts");
}

#[test]
fn each_planted_mistake_is_found() {
    let is_found = |mistake: Mistake| (0..600).any(|seed| !check(mistake, seed).violations.is_empty());
    let missed: Vec<_> = Mistake::ALL.iter().filter(|mistake| !is_found(**mistake)).collect();
    assert!(missed.is_empty(), "{missed:?}");
}
