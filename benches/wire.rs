//! Encodings between processes: what would a record cost on the wire?
//!
//! Question: nanoseconds per record to encode a batch of `(u64, String)` and decode it again, for
//! bincode (which timely uses), postcard (which the engine uses), columnar (views without copies)
//! and abomonation (unsound: RUSTSEC-2021-0120; only here to show that the data path loses nothing
//! without it). Method: the same batch of 1 024 records through each in turn, medians. Not shown:
//! the wire itself.
//!
//! `cargo bench --bench wire`

use std::hint::black_box;
use std::time::Instant;

use columnar::bytes::indexed;
use columnar::{Borrow, Columnar, FromBytes, Index, Len, Push};
use millstream_benches::statistics::median;

type Record = (u64, String);
type Columns = <Record as Columnar>::Container;

fn main() {
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    let rounds = if smoke { 10 } else { 2_000 };
    let batch: Vec<Record> = (0..1_024).map(|n| (n, format!("record {n:>12}"))).collect();
    println!("encode and decode 1 024 records of (u64, String); ns per record, median of {rounds}; bytes per record");
    let bincode = |batch: &Vec<Record>| bincode::serialize(batch).expect("it can be encoded");
    report("bincode", rounds, &batch, bincode, |bytes| {
        bincode::deserialize::<Vec<Record>>(bytes).expect("it was encoded").len()
    });
    let postcard = |batch: &Vec<Record>| postcard::to_stdvec(batch).expect("it can be encoded");
    report("postcard", rounds, &batch, postcard, |bytes| {
        postcard::from_bytes::<Vec<Record>>(bytes).expect("it was encoded").len()
    });
    columnar(rounds, &batch);
    abomonation(rounds, &batch);
}

fn report(
    name: &str,
    rounds: usize,
    batch: &Vec<Record>,
    encode: impl Fn(&Vec<Record>) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> usize,
) {
    let mut size = 0;
    let times: Vec<f64> = (0..rounds)
        .map(|_| {
            let begin = Instant::now();
            let bytes = encode(black_box(batch));
            size = bytes.len();
            assert_eq!(black_box(decode(&bytes)), batch.len());
            begin.elapsed().as_nanos() as f64 / batch.len() as f64
        })
        .collect();
    print(name, median(&times), size, batch.len());
}

fn print(name: &str, nanos: f64, size: usize, records: usize) {
    println!("{name:24} {nanos:8.1} {:8.1}", size as f64 / records as f64);
}

/// Builds columns, encodes them, and reads every record through a view.
fn columnar(rounds: usize, batch: &[Record]) {
    let mut size = 0;
    let times: Vec<f64> = (0..rounds)
        .map(|_| {
            let begin = Instant::now();
            let mut columns = Columns::default();
            batch.iter().for_each(|record| columns.push(record));
            let mut words: Vec<u64> = Vec::new();
            indexed::encode(&mut words, &columns.borrow());
            size = words.len() * 8;
            let view = <Columns as Borrow>::Borrowed::from_bytes(&mut indexed::decode(&words));
            let seen = (0..view.len()).fold(0, |sum, index| sum + view.get(index).1.len());
            assert!(black_box(seen) > 0);
            begin.elapsed().as_nanos() as f64 / batch.len() as f64
        })
        .collect();
    print("columnar, views", median(&times), size, batch.len());
}

/// Encodes, patches pointers in place, and clones what they point to.
fn abomonation(rounds: usize, batch: &Vec<Record>) {
    let mut size = 0;
    let mut bytes: Vec<u8> = Vec::new();
    let times: Vec<f64> = (0..rounds)
        .map(|_| {
            let begin = Instant::now();
            bytes.clear();
            abomonate(batch, &mut bytes);
            size = bytes.len();
            assert_eq!(black_box(unabomonate(&mut bytes)), batch.len());
            begin.elapsed().as_nanos() as f64 / batch.len() as f64
        })
        .collect();
    print("abomonation, owned", median(&times), size, batch.len());
}

#[allow(unsafe_code, reason = "abomonation has no safe interface, which this bench shows")]
fn abomonate(batch: &Vec<Record>, bytes: &mut Vec<u8>) {
    // SAFETY: claimed only for this type on this compiler: strings need no alignment, and the
    // buffer comes from the allocator, which aligns to eight.
    unsafe { abomonation::encode(batch, bytes) }.expect("a vector takes every byte");
}

#[allow(unsafe_code, reason = "abomonation has no safe interface, which this bench shows")]
fn unabomonate(bytes: &mut [u8]) -> usize {
    // SAFETY: as above; the bytes were written by `abomonate`.
    let (batch, _) = unsafe { abomonation::decode::<Vec<Record>>(bytes) }.expect("it was encoded");
    batch.clone().len()
}
