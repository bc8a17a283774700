//! Stateless stages in memory: what do five of them cost, compared with a hand-written loop?
//!
//! Question: records per second through five stages on `u64`, including the memory source, on one
//! worker; stage by stage, and as one loop with `map_batches`. Method: the same rows through both
//! and through a hand-written loop over the same `Batch` (a poll of 4 096, filled by the same
//! copy), interleaved, medians. Not shown: records that own memory, whose allocations cost more
//! than any stage.
//!
//! `cargo bench --bench stages`

use std::hint::black_box;
use std::time::Instant;

use millstream::connector::ReadBatch;
use millstream::{ByteSize, Job, Rows, discard, rows};
use millstream_benches::statistics::median;

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    let (count, rounds) = if smoke { (1_000_000, 1) } else { (60_000_000, 5) };
    let source = rows(0..count).partitions(1);
    let numbers: Vec<u64> = (0..count).collect();
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        let rate = |begin: Instant| count as f64 / begin.elapsed().as_secs_f64() / 1e6;
        let begin = Instant::now();
        black_box(by_hand(&numbers));
        rates[0].push(rate(begin));
        let begin = Instant::now();
        by_stages(source.clone());
        rates[1].push(rate(begin));
        let begin = Instant::now();
        by_batches(source.clone());
        rates[2].push(rate(begin));
    }
    println!("five stages on u64, one worker, {count} records; million records per second, median of {rounds}");
    println!("hand loop over the same batches  {:8.0}", median(&rates[0]));
    println!("by stages                        {:8.0}  (target: 100)", median(&rates[1]));
    println!("by map_batches                   {:8.0}  (target: 300)", median(&rates[2]));
}

fn by_hand(numbers: &[u64]) -> u64 {
    numbers.chunks(4_096).fold(0, |count, poll| {
        let mut batch = ReadBatch::new();
        batch.extend(poll.iter().copied(), ByteSize(8));
        let mut out = Vec::with_capacity(batch.len());
        let stages = batch
            .into_iter()
            .map(|n| n ^ 0x5555)
            .filter(|n| n % 8 != 0)
            .map(|n| n * 3)
            .map(|n| n + 7)
            .filter(|n| n % 2 == 1);
        stages.for_each(|n| out.push(n));
        count + black_box(out).len() as u64
    })
}

fn by_stages(source: Rows<u64>) {
    let job = Job::new("stages", move |flow| {
        flow.source(&source)?
            .map(|n| n ^ 0x5555)
            .filter(|n| n % 8 != 0)
            .map(|n| n * 3)
            .map(|n| n + 7)
            .filter(|n| n % 2 == 1)
            .sink(discard())
    });
    job.run().expect("nothing can fail");
}

fn by_batches(source: Rows<u64>) {
    let job = Job::new("batches", move |flow| {
        flow.source(&source)?
            .map_batches(|batch| {
                batch.map(|n| n ^ 0x5555).filter(|n| n % 8 != 0).map(|n| n * 3).map(|n| n + 7).filter(|n| n % 2 == 1)
            })
            .sink(discard())
    });
    job.run().expect("nothing can fail");
}
