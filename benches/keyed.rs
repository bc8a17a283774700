//! Keyed counts in memory: what does state by key cost, compared with a hand-written loop?
//!
//! Question: records per second through a count by key of which every update is emitted, on one
//! worker, by the number of keys; `u64` keys and strings of 16 bytes. Method: the same keys, drawn
//! evenly, through the engine and through a hand-written loop over the same polls of 4 096: one
//! hashbrown table with the same hasher, the first touch of each key noted since the last
//! checkpoint, every update pushed to a vector; interleaved, medians. The engine is shown without
//! checkpoints, and with one in a directory each second; by hand nothing is ever written. Growing
//! the tables is included on both sides. Not shown: skewed keys, several workers.
//!
//! `cargo bench --bench keyed`; `-- --keys 1000` for one size only

use std::hash::Hash;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use hashbrown::HashMap;
use millstream::{ByteSize, Job, Key, Rows, discard, rows};
use millstream_benches::statistics::median;

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    let (count, rounds) = if smoke { (200_000, 1) } else { (40_000_000, 3) };
    let only = std::env::args().skip_while(|argument| argument != "--keys").nth(1);
    let only: Option<u64> = only.map(|keys| keys.parse().expect("`--keys` takes a number"));
    let sizes = match only {
        Some(keys) => vec![keys],
        None if smoke => vec![1_000],
        None => vec![1_000, 10_000, 100_000, 1_000_000, 10_000_000],
    };
    println!(
        "count by key, every update emitted, one worker, {count} records; million records per second, median of {rounds}"
    );
    println!(
        "{:12} {:>10} {:>10} {:>10} {:>8} {:>16} {:>8}",
        "keys", "", "by hand", "engine", "ratio", "with checkpoints", "ratio"
    );
    for size in sizes {
        compare(&format!("{size}"), "u64", rounds, drawn(count, size, |key| key));
    }
    if only.is_some() {
        return;
    }
    let (count, size) = if smoke { (count, 1_000) } else { (count / 4, 1_000_000) };
    compare(&format!("{size}"), "16 bytes", rounds, drawn(count, size, |key| format!("{key:016}")));
}

/// Keys, drawn evenly.
fn drawn<K>(count: usize, size: u64, key: impl Fn(u64) -> K) -> Vec<K> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..count).map(|_| key(random.u64(..size))).collect()
}

fn compare<K: Key + Sync>(size: &str, what: &str, rounds: usize, keys: Vec<K>) {
    let mut rates: [Vec<f64>; 3] = Default::default();
    let rate = |begin: Instant| keys.len() as f64 / begin.elapsed().as_secs_f64() / 1e6;
    let source = rows(keys.iter().cloned()).partitions(1);
    for _ in 0..rounds {
        let begin = Instant::now();
        black_box(by_hand(&keys));
        rates[0].push(rate(begin));
        let begin = Instant::now();
        by_engine(source.clone(), None);
        rates[1].push(rate(begin));
        let place = tempfile::tempdir().expect("there is room for a directory");
        let begin = Instant::now();
        by_engine(source.clone(), Some(place.path()));
        rates[2].push(rate(begin));
    }
    let [hand, engine, kept] = rates.map(|rates| median(&rates));
    println!(
        "{size:12} {what:>10} {hand:10.1} {engine:10.1} {:8.2} {kept:16.1} {:8.2}  (target: 0.6; strings 0.5)",
        engine / hand,
        kept / hand
    );
}

fn by_hand<K: Hash + Eq + Clone>(keys: &[K]) -> usize {
    let mut counts = HashMap::<K, (u64, u32)>::new();
    let (mut touched, mut generation, mut emitted) = (Vec::new(), 1, 0);
    for (number, poll) in keys.chunks(4_096).enumerate() {
        // The copy that a reader makes.
        let poll = poll.to_vec();
        let mut out = Vec::with_capacity(poll.len());
        for key in poll {
            let entry = counts.entry(key.clone()).or_insert((0, 0));
            entry.0 += 1;
            if entry.1 != generation {
                entry.1 = generation;
                touched.push(key.clone());
            }
            out.push((key, entry.0));
        }
        emitted += black_box(out).len();
        // A checkpoint each 8 M records.
        if number % 2_048 == 0 {
            generation += 1;
            touched.clear();
        }
    }
    emitted
}

fn by_engine<K: Key + Sync>(source: Rows<K>, checkpoints: Option<&Path>) {
    let job = Job::new("keyed", move |flow| flow.source(&source)?.key_by(K::clone).count().updates().sink(discard()));
    let job = match checkpoints {
        None => job.state_in_memory(),
        Some(path) => job.checkpoints(path),
    };
    job.state_memory(ByteSize::mebibytes(4096)).run().expect("nothing can fail");
}
