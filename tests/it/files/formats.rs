//! JSON, CSV and custom formats in files; records that do not fit are data.

use millstream::connector::RECORD_OVERHEAD;
use millstream::{ByteSize, Job, Malformed, Trigger, collect, discard};
use millstream_connectors::{Csv, format};
use serde::Deserialize;

use super::{Directory, told_by};

#[derive(Clone, Debug, Deserialize, PartialEq)]
struct Point {
    x: i64,
    label: Option<String>,
}

fn point(x: i64, label: Option<&str>) -> Point {
    Point { x, label: label.map(str::to_owned) }
}

/// Good and bad records of a bounded run.
macro_rules! results {
    ($source:expr) => {{
        let (good, bad, source) = (collect(), collect::<Malformed>(), $source);
        let sinks = (good.clone(), bad.clone());
        let job = Job::new("formats", move |flow| {
            let (good, bad) = flow.source(source.clone())?.partition_results();
            good.sink(&sinks.0)?;
            bad.sink(&sinks.1)
        });
        job.trigger(Trigger::AvailableNow).run().unwrap();
        (good.values(), bad.values())
    }};
}

#[test]
fn json_is_a_value_on_each_line() {
    let directory = Directory::new();
    directory.write("a.json", "\u{feff}{\"x\":1}\n\n{\"x\":2,\"label\":\"ü\"}\r\n{\"x\":\n \t\n{\"x\":3}");
    let (good, bad) = results!(directory.source().json::<Point>());
    assert_eq!(good, [point(1, None), point(2, Some("ü")), point(3, None)]);
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].bytes.as_deref(), Some(&b"{\"x\":"[..]));
    assert_eq!(
        bad[0].origin.as_ref().unwrap().to_string(),
        format!("{}/a.json at offset 34", directory.path.display())
    );
}

#[test]
fn csv_has_a_header_in_each_file_and_fields_of_many_lines() {
    let directory = Directory::new();
    directory.write("a.csv", "x,label\n1,\"a, \"\"b\"\"\nc\"\n2,\r\n\r\n3,last");
    directory.write("b.csv", "label,more,x\r\nb,,4\r\n");
    directory.write("c.csv", "x,label\n");
    directory.write("d.csv", "");
    directory.write("e.csv", "\n\n");
    let (mut good, bad) = results!(directory.source().csv::<Point>());
    good.sort_by_key(|point: &Point| point.x);
    assert_eq!(good, [point(1, Some("a, \"b\"\nc")), point(2, None), point(3, Some("last")), point(4, Some("b"))]);
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn csv_rows_that_do_not_fit_are_malformed_where_they_stand() {
    let directory = Directory::new();
    directory.write("a.csv", "x,label\n1\n2,b\n\nthree,c\n4,d,e\n5,\"never closed\n6,f\n");
    let (good, bad) = results!(directory.source().csv::<Point>());
    // Everything after the open quote is in its field.
    assert_eq!(good, [point(2, Some("b")), point(5, Some("never closed\n6,f"))]);
    let told: Vec<(u64, &[u8])> =
        bad.iter().map(|bad| (bad.origin.as_ref().unwrap().offset.0, bad.bytes.as_deref().unwrap())).collect();
    assert_eq!(told, [(8, &b"1"[..]), (15, b"three,c"), (23, b"4,d,e")]);
}

#[test]
fn csv_may_have_no_header_and_another_delimiter() {
    let directory = Directory::new();
    directory.write("a.csv", "1;a,b\n2;\n");
    let (good, bad) = results!(directory.source().format(Csv::<Point>::new().delimiter(b';').without_header()));
    assert_eq!(good, [point(1, Some("a,b")), point(2, None)]);
    assert!(bad.is_empty());
}

#[test]
fn a_custom_format_gets_lines() {
    let directory = Directory::new();
    directory.write("a", b"\xff\xfd\n\nb");
    let (good, bad) = results!(directory.source().format(format::Bytes));
    assert_eq!(good, [&b"\xff\xfd"[..], b"", b"b"]);
    assert!(bad.is_empty());
    let told = told_by(directory.source());
    assert!(told[0].starts_with("a@0! invalid utf-8"), "{told:?}");
    assert_eq!(told[1..], ["a@3 ", "a@4 b"]);
}

/// The mark was removed before the format saw it, even where bytes were asked for, and only at the
/// beginning of a file: concatenated files have one in the middle.
#[test]
fn a_byte_order_mark_is_part_of_bytes_and_not_of_text() {
    let directory = Directory::new();
    directory.write("a", "\u{feff}1\n\u{feff}2\n\u{feff}\n");
    let (text, bad) = results!(directory.source().lines());
    assert_eq!((text, bad.len()), (vec!["1".to_owned(), "2".to_owned(), String::new()], 0));
    let (json, bad) = results!(directory.source().json::<u8>());
    assert_eq!((json, bad.len()), (vec![1, 2], 0));
    let (bytes, _) = results!(directory.source().format(format::Bytes));
    assert_eq!(bytes, [&b"\xef\xbb\xbf1"[..], b"\xef\xbb\xbf2", b"\xef\xbb\xbf"]);
}

#[test]
fn values_are_charged_by_their_content_or_by_the_given_size() {
    let directory = Directory::new();
    directory.write("a", "{\"a\":{}}\n{\"b\":1}\n");
    let held = |said: Option<fn(&serde_json::Value) -> ByteSize>| {
        let source = directory.source().json::<serde_json::Value>();
        let job = Job::new("held", move |flow| match said {
            Some(said) => flow.source(source.clone().sized(said))?.or_stop().sink(discard()),
            None => flow.source(source.clone())?.or_stop().sink(discard()),
        });
        job.trigger(Trigger::AvailableNow).run().unwrap().sources[0].bytes
    };
    let each = RECORD_OVERHEAD.0 + size_of::<Result<serde_json::Value, Malformed>>() as u64;
    assert_eq!(held(Some(|_| ByteSize(500))), 2 * (each + 500));
    // A map of one field takes more than 600 bytes.
    assert!(held(None) > 2 * (each + 600), "{}", held(None));
}

#[test]
fn the_beginning_of_a_record_that_is_too_long_is_kept_once() {
    let directory = Directory::new();
    let (short, long) = ("s".repeat(1_000), "l".repeat(1_001));
    let longest = "m".repeat(5_000_000);
    directory.write("a", format!("{short}\n{long}\n{longest}\n{short}\r\n{longest}"));
    let (good, bad) = results!(directory.source().record_max(ByteSize(1_000)).lines());
    assert_eq!(good, [short.clone(), short]);
    let told: Vec<(u64, usize)> =
        bad.iter().map(|bad| (bad.origin.as_ref().unwrap().offset.0, bad.bytes.as_ref().unwrap().len())).collect();
    assert_eq!(told, [(1_001, 1_000), (2_003, 1_000), (5_003_006, 1_000)]);
    assert!(bad[0].cause.contains("longer than 1000 bytes"), "{}", bad[0].cause);
}

#[test]
fn a_header_that_is_too_long_makes_its_rows_malformed() {
    let directory = Directory::new();
    directory.write("a.csv", format!("x,{}\n1,a\n", "l".repeat(200_000)));
    let (good, bad) = results!(directory.source().record_max(ByteSize(1_000)).csv::<Point>());
    assert!(good.is_empty());
    assert_eq!(bad.len(), 2);
    assert!(bad[0].cause.contains("longer than") && bad[1].cause.contains("the header has 0"), "{bad:?}");
}
