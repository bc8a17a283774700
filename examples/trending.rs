//! The hashtags of the hour: the ten that most posts of a sliding window have, each time that it
//! slides, to the console and, if it is named, to a topic.
//!
//! ```text
//! cargo run --release --example trending
//! cargo run --release --example trending -- --file posts.jsonl --length 1h --step 5m
//! ```
//!
//! A post is `{"at": 1764000000000, "text": "to the #sea"}`, with its time in milliseconds since
//! 1970. Without a file, ten minutes of posts are generated, always the same ones. Two windows
//! follow each other: one counts each tag, and behind it one of a step in length takes all counts
//! that end together, and keeps the ten largest.
//!
//! Exit status: 0 if the job ended, 1 if it failed (the reason is on standard error), 2 for a wrong
//! flag.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use millstream::{Error, ErrorKind, EventTime, Flow, Job, Pane, Result, Sliding, Tumbling, rows};
use millstream_connectors::{Kafka, console};
use serde::{Deserialize, Serialize};

/// Shows the most frequent hashtags over a sliding window
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// A file with a post on each line
    #[arg(long)]
    file: Option<PathBuf>,
    /// How long a window is
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    length: Duration,
    /// How often it slides
    #[arg(long, default_value = "1m", value_parser = humantime::parse_duration)]
    step: Duration,
    /// How many tags are shown
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// Bootstrap servers, to write a topic too
    #[arg(long)]
    brokers: Option<String>,
    /// The topic to write
    #[arg(long, default_value = "trending")]
    output: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Post {
    at: i64,
    text: String,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    until: i64,
    rank: usize,
    tag: String,
    posts: u64,
}

fn tags(post: &Post) -> Vec<String> {
    let words = post.text.split(|c: char| !c.is_alphanumeric() && c != '#');
    let mut tags: Vec<String> =
        words.filter(|word| word.len() > 1).filter_map(|word| word.strip_prefix('#')).map(str::to_lowercase).collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

fn trending(flow: &Flow<'_>, posts: &[Post], options: &Options) -> Result<()> {
    let posts = flow.source(rows(posts.to_vec()).partitions(1))?;
    let tags = posts.with_watermark(|post| EventTime(post.at), Duration::from_secs(10)).flat_map(|post| tags(&post));
    let counts = tags.key_by(String::clone).window(Sliding::new(options.length, options.step)).count();
    let together = counts.named("tags").finals().global().window(Tumbling::new(options.step));
    let more = |a: &Pane<String, u64>, b: &Pane<String, u64>| a.value.cmp(&b.value).then_with(|| b.key.cmp(&a.key));
    let top = together.top_k(options.top, more).named("top").finals().flat_map(|pane| {
        let ranked = pane.value.into_iter().enumerate();
        let until = pane.window.end.0;
        ranked.map(move |(index, tag)| Row { until, rank: index + 1, tag: tag.key, posts: tag.value })
    });
    if let Some(brokers) = &options.brokers {
        top.clone().sink_by(|row| row.tag.clone(), Kafka::new(brokers).topic(&options.output).json())?;
    }
    top.sink(console().table())
}

/// Ten minutes of posts, of which some tags become more frequent and others less.
fn generated() -> Vec<Post> {
    const TAGS: [&str; 16] = [
        "sea", "rust", "coffee", "rain", "goal", "vote", "cat", "sale", "fog", "jazz", "moon", "tea", "snow", "bus",
        "ink", "oak",
    ];
    let post = |n: u64| {
        // A tag's share of the posts follows a slow wave of its own.
        let minute = n / 100;
        let pick = n.wrapping_mul(6_364_136_223_846_793_005) >> 33;
        let tag = TAGS[((pick % 7 + pick % 5 + minute) % 16) as usize];
        Post { at: 1_764_000_000_000 + n as i64 * 600, text: format!("post {n} about #{tag}") }
    };
    (0..1_000).map(post).collect()
}

fn posts(options: &Options) -> Result<Vec<Post>> {
    let Some(file) = &options.file else { return Ok(generated()) };
    let wrong = |what: String| Error::new(ErrorKind::Config, format!("{}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|cause| wrong(cause.to_string()))?;
    let post = |(line, text): (usize, &str)| {
        serde_json::from_str(text).map_err(|cause| wrong(format!("line {}: {cause}", line + 1)))
    };
    text.lines().enumerate().map(post).collect()
}

pub(crate) fn run(options: Options) -> Result<()> {
    let posts = posts(&options)?;
    if options.top == 0 {
        return Err(Error::new(ErrorKind::Config, "`--top` must be at least 1"));
    }
    Job::new("trending", move |flow| trending(flow, &posts, &options)).state_in_memory().run().map(drop)
}

fn main() -> Result<()> {
    run(Options::parse())
}
