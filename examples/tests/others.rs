//! The other examples, called as a user would call them.

#![allow(clippy::duplicate_mod, reason = "each example has its own copy of what they share")]

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
