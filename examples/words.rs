//! The shortest program: a pipeline in memory, without a broker, flags or files.
//!
//! ```sh
//! cargo run -p millstream --example words
//! ```

#![allow(clippy::print_stdout, reason = "a program of its own")]

use millstream::{Flow, Job, Result, Sink, collect, rows};

const POEM: [&str; 3] = ["the stream never waits", "for the batch to be full", "it flows"];

/// The pipeline: every word of at least four letters, with its length.
fn words(flow: &Flow<'_>, lines: &'static [&'static str], words: impl Sink<(String, usize)>) -> Result<()> {
    flow.source(rows(lines.iter().copied()))?
        .flat_map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .filter(|word| word.len() >= 4)
        .map(|word| {
            let letters = word.len();
            (word, letters)
        })
        .sink(words)
}

fn main() -> Result<()> {
    let results = collect();
    let sink = results.clone();
    let job = Job::new("words", move |flow| words(flow, &POEM, &sink)).workers(2);
    println!("{}", job.explain()?);
    let report = job.run()?;
    let mut found = results.values();
    found.sort_unstable();
    println!("{found:?}\n\n{report}");
    Ok(())
}

#[test]
fn finds_the_long_words() {
    let results = collect();
    let sink = results.clone();
    Job::new("words", move |flow| words(flow, &POEM, &sink)).run().unwrap();
    let words: Vec<String> = results.values().into_iter().map(|(word, _)| word).collect();
    assert_eq!(words, ["stream", "never", "waits", "batch", "full", "flows"]);
}
