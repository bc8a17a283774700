//! The other examples, called as a user would call them.

#![allow(clippy::duplicate_mod, reason = "each example has its own copy of what they share")]

#[path = "../compare_triggers.rs"]
#[allow(dead_code, reason = "its own main is not called here")]
mod compare_triggers;
#[path = "../etl.rs"]
#[allow(dead_code, reason = "its own main is not called here")]
mod etl;
#[path = "../lines.rs"]
#[allow(dead_code, reason = "its own main is not called here")]
mod lines;
#[path = "../lookup.rs"]
#[allow(dead_code, reason = "its own main is not called here")]
mod lookup;

use std::io::Write;
use std::net::TcpListener;
use std::thread;

#[test]
fn compare_triggers_writes_what_it_found() {
    let folder = std::env::temp_dir().join(format!("millstream-compare-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (page, plot, json) = (file("page.html"), file("plot.svg"), file("found.json"));
    let arguments = [
        "compare_triggers",
        "--for",
        "1s",
        "--triggers",
        "continuous,50ms",
        "--page",
        &page,
        "--plot",
        &plot,
        "--json",
        &json,
    ];
    compare_triggers::run(clap::Parser::parse_from(arguments)).unwrap();
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let found: serde_json::Value = serde_json::from_str(&read(&json)).unwrap();
    assert_eq!(found["results"], "Equal", "{found}");
    // Nine orders in ten are kept, and a second of them is measured.
    assert_eq!(found["runs"][1]["records_out"], 1800, "{found}");
    assert_eq!(found["runs"][0]["latency"]["count"], 900, "{found}");
    let (page, plot) = (read(&page), read(&plot));
    assert!(plot.starts_with("<svg") && plot.matches("<polyline").count() >= 2, "{plot}");
    assert!(page.contains(&plot) && page.contains("all runs wrote the same"), "{page}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn etl_cleans_what_is_there_and_ends() {
    etl::run(clap::Parser::parse_from(["etl", "--trigger", "available-now"])).unwrap();
}

#[test]
fn lookup_asks_for_every_price() {
    lookup::run(clap::Parser::parse_from(["lookup", "--orders", "150", "--rate", "1000"])).unwrap();
}

#[test]
fn lines_shows_words_as_they_come_and_batch_by_batch() {
    for trigger in ["available-now", "50ms"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let other_side =
            thread::spawn(move || listener.accept().unwrap().0.write_all(b"to be or\nnot to be\n").unwrap());
        let arguments = ["lines", "--connect", &address, "--trigger", trigger, "--for", "500ms"];
        lines::run(clap::Parser::parse_from(arguments)).unwrap();
        other_side.join().unwrap();
    }
}
