//! Formats, metadata, tombstones and partitions by key, written to a topic and read back.

use millstream::connector::RECORD_OVERHEAD;
use millstream::{ByteSize, Job, Malformed, Trigger, collect, discard, rows};
use millstream_connectors::format::Text;
use millstream_connectors::{Codec, Compressed, Compression, Csv, Encode, Kafka, Message, Profile};
use rdkafka::producer::BaseRecord;
use serde::{Deserialize, Serialize};

use super::kafka;
use crate::support::broker::{flush, headers, shared};

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Point {
    x: i32,
    y: Option<String>,
}

#[test]
fn json_text_and_bytes_are_read_as_they_were_written() {
    let broker = shared();
    let (json, text, bytes) = (broker.topic("json", 3), broker.topic("text", 2), broker.topic("bytes", 1));
    let points: Vec<Point> = (0..200).map(|x| Point { x, y: (x % 3 == 0).then(|| format!("ü{x}")) }).collect();
    let (kafka, written) = (kafka(broker), points.clone());
    let (of_json, of_text, of_bytes) = (json.clone(), text.clone(), bytes.clone());
    let to = kafka.clone();
    Job::new("write", move |flow| {
        let points = flow.source(rows(written.clone()))?;
        points
            .clone()
            .map(|point| format!("{point:?}"))
            .sink(to.topic(&of_text).compression(Compression::Zstd).text())?;
        points
            .clone()
            .map(|point| vec![0xff, point.x as u8])
            .sink(to.topic(&of_bytes).profile(Profile::Throughput).bytes())?;
        points.sink_by(|point| point.x.to_string(), to.topic(&of_json).json())
    })
    .run()
    .unwrap();
    let (read_json, read_text, read_bytes) = (collect(), collect(), collect());
    let sinks = (read_json.clone(), read_text.clone(), read_bytes.clone());
    Job::new("read", move |flow| {
        flow.source(kafka.topic(&json).json::<Point>())?.or_stop().sink(&sinks.0)?;
        flow.source(kafka.topic(&text).text())?.or_stop().sink(&sinks.1)?;
        flow.source(kafka.topic(&bytes).bytes())?.or_stop().sink(&sinks.2)
    })
    .trigger(Trigger::AvailableNow)
    .workers(2)
    .run()
    .unwrap();
    let mut came = read_json.values();
    came.sort_by_key(|point| point.x);
    assert_eq!(came, points);
    assert_eq!((read_text.len(), read_bytes.len()), (200, 200));
    assert_eq!(read_bytes.values()[7], [0xff, 7], "one partition keeps the order");
}

#[test]
fn a_csv_message_is_one_row_and_anything_else_is_malformed() {
    let broker = shared();
    let (comma, tabs) = (broker.topic("csv", 1), broker.topic("csv-tabs", 2));
    let points: Vec<Point> =
        (0..50).map(|x| Point { x, y: (x % 3 == 0).then(|| format!("ü \"{x}\",\tof\nlines")) }).collect();
    let (kafka, written) = (kafka(broker), points.clone());
    let (to, of_comma, of_tabs) = (kafka.clone(), comma.clone(), tabs.clone());
    Job::new("write", move |flow| {
        let points = flow.source(rows(written.clone()).partitions(1))?;
        points.clone().sink_by(|point| point.x.to_string(), to.topic(&of_comma).csv())?;
        points.sink(to.topic(&of_tabs).format(Csv::new().delimiter(b'\t')))
    })
    .run()
    .unwrap();
    assert_eq!(broker.read(&comma)[0][1].value.as_deref(), Some("1,"), "no header, and no line ending");
    broker
        .write(&comma, [(None, "", Some("1,a\n2,b")), (None, "", Some("")), (None, "", None), (None, "", Some("x,"))]);
    let (good, bad, of_tabs) = (collect(), collect::<Malformed>(), collect());
    let sinks = (good.clone(), bad.clone(), of_tabs.clone());
    Job::new("read", move |flow| {
        let (good, bad) = flow.source(kafka.topic(&comma).csv::<Point>())?.partition_results();
        good.sink(&sinks.0)?;
        bad.sink(&sinks.1)?;
        let tabs = kafka.topic(&tabs).format(Csv::<Point>::new().delimiter(b'\t')).with_metadata();
        flow.source(tabs)?.or_stop().map(|message| message.value().clone()).sink(&sinks.2)
    })
    .trigger(Trigger::AvailableNow)
    .run()
    .unwrap();
    let mut from_tabs = of_tabs.values();
    from_tabs.sort_by_key(|point: &Point| point.x);
    assert_eq!((good.values(), from_tabs), (points.clone(), points));
    let causes: Vec<String> = bad.values().into_iter().map(|bad| bad.cause).collect();
    for (cause, says) in causes.iter().zip(["more than one row", "no row", "tombstone", "invalid digit"]) {
        assert!(cause.contains(says), "{cause} does not say {says}");
    }
    assert_eq!(causes.len(), 4);
}

/// A byte order mark used to make JSON and text in a topic malformed, while in a file it was
/// stripped.
#[test]
fn a_byte_order_mark_is_not_part_of_a_text() {
    let broker = shared();
    let topic = broker.topic("mark", 1);
    broker.write(&topic, [(None, "", Some("\u{feff}1"))]);
    let (kafka, text, json, csv, bytes) = (kafka(broker), collect(), collect(), collect(), collect());
    let sinks = (text.clone(), json.clone(), csv.clone(), bytes.clone());
    let job = Job::new("mark", move |flow| {
        let topic = || kafka.topic(&topic);
        flow.source(topic().group("mark-1").text())?.or_stop().sink(&sinks.0)?;
        flow.source(topic().group("mark-2").json::<u8>())?.or_stop().sink(&sinks.1)?;
        flow.source(topic().group("mark-3").csv::<(u8,)>())?.or_stop().sink(&sinks.2)?;
        flow.source(topic().group("mark-4").bytes())?.or_stop().sink(&sinks.3)
    });
    job.trigger(Trigger::AvailableNow).run().unwrap();
    assert_eq!((text.values(), json.values(), csv.values()), (vec!["1".to_owned()], vec![1], vec![(1,)]));
    assert_eq!(bytes.values(), [b"\xef\xbb\xbf1"], "bytes are as they are");
}

#[test]
fn each_value_may_be_compressed_on_its_own() {
    let broker = shared();
    let (input, output) = (broker.topic("packed", 1), broker.topic("packed-out", 1));
    let producer = broker.producer();
    let packed = |codec, text: &str| {
        let mut payload = Vec::new();
        Compressed::new(Text).codec(codec).encode(&text, &mut payload).unwrap();
        payload
    };
    let mut broken = packed(Codec::Gzip, "\"broken\"");
    broken.truncate(broken.len() - 3);
    for payload in [packed(Codec::Gzip, "\"one\""), b"\"two\"".to_vec(), broken, packed(Codec::Zstd, "\"three\"")] {
        let record = BaseRecord::<str, [u8]>::to(&input).key("").payload(&payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    flush(&producer);
    let (kafka, bad) = (kafka(broker), collect::<Malformed>());
    let (from, to, sink) = (kafka.clone(), output.clone(), bad.clone());
    let job = Job::new("packed", move |flow| {
        let values = from.topic(&input).json::<String>().compressed().with_tombstones();
        let (good, bad) = flow.source(values)?.partition_results();
        good.sink(from.topic(&to).json().with_tombstones().compressed())?;
        bad.sink(&sink)
    });
    job.trigger(Trigger::AvailableNow).run().unwrap();
    let bad = bad.values();
    assert_eq!(bad.len(), 1);
    assert!(bad[0].cause.contains("begins like gzip but cannot be decompressed"), "{}", bad[0].cause);
    let (written, read) = (collect(), collect());
    let sinks = (written.clone(), read.clone());
    let job = Job::new("unpacked", move |flow| {
        flow.source(kafka.topic(&output).group("packed-1").bytes())?.or_stop().sink(&sinks.0)?;
        flow.source(kafka.topic(&output).group("packed-2").json::<String>().compressed())?.or_stop().sink(&sinks.1)
    });
    job.trigger(Trigger::AvailableNow).run().unwrap();
    assert!(written.values().iter().all(|payload| payload.starts_with(&[0x1f, 0x8b])), "they are written compressed");
    assert_eq!(read.values(), ["one", "two", "three"]);
}

/// The length of the payload used to count against the memory of a job, whatever the decoded value
/// held.
#[test]
fn values_count_with_the_memory_they_hold_or_with_a_size_that_is_set() {
    let broker = shared();
    let topic = broker.topic("held", 1);
    let payload = format!("{{\"fields\":[{}{{}}]}}", "{\"a\":1},".repeat(100));
    broker.write(&topic, [(None, "key", Some(payload.as_str())), (None, "key", Some("[]"))]);
    let held = |group: &'static str| {
        let (kafka, topic) = (kafka(broker), topic.clone());
        let job = Job::new("held", move |flow| {
            let values = kafka.topic(&topic).group(group).json::<serde_json::Value>();
            match group {
                "said" => flow.source(values.sized(|_| ByteSize(1_000)))?.or_stop().sink(discard()),
                "beside" => flow.source(values.with_metadata().sized(|_| ByteSize(0)))?.or_stop().sink(discard()),
                _ => flow.source(values)?.or_stop().sink(discard()),
            }
        });
        job.trigger(Trigger::AvailableNow).run().unwrap().sources[0].bytes
    };
    let each = |item: usize| 2 * (RECORD_OVERHEAD.0 + item as u64);
    let values = each(size_of::<Result<serde_json::Value, Malformed>>());
    // A map of one field takes more than 600 bytes.
    assert!(held("own") > values + 60_000, "{}", held("again"));
    assert_eq!(held("said"), values + 2_000);
    let messages = each(size_of::<Result<Message<serde_json::Value>, Malformed>>());
    assert_eq!(held("beside"), messages + 2 * 3, "the keys");
}

#[test]
fn metadata_and_tombstones_pass_through_but_not_the_timestamp() {
    let broker = shared();
    let (input, output) = (broker.topic("metadata-in", 2), broker.topic("metadata-out", 1));
    let producer = broker.producer();
    let headers = headers(&[("a", Some("1")), ("a", None), ("b", Some("2"))]);
    let record =
        BaseRecord::<str, str>::to(&input).partition(1).key("k").payload("7").timestamp(1_234).headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.send(BaseRecord::<str, str>::to(&input).partition(1).key("gone")).map_err(|(error, _)| error).unwrap();
    flush(&producer);
    let (kafka, seen) = (kafka(broker), collect());
    let (from, to, sink) = (input.clone(), output.clone(), seen.clone());
    Job::new("metadata", move |flow| {
        let messages = flow.source(kafka.topic(&from).json::<u64>().with_tombstones().with_metadata())?.or_stop();
        messages.clone().sink(&sink)?;
        messages
            .map(|message: Message<Option<u64>>| message.map(|n| n.map(|n| n * 2)).header("new", "3"))
            .sink(kafka.topic(&to).json().with_tombstones().with_metadata())
    })
    .trigger(Trigger::AvailableNow)
    .run()
    .unwrap();
    let messages = seen.values();
    let origin = messages[0].origin().unwrap();
    assert_eq!((&*origin.topic, origin.partition, origin.offset, origin.timestamp), (&*input, 1, 0, Some(1_234)));
    assert_eq!((messages[1].key_bytes(), messages[1].value()), (Some(&b"gone"[..]), &None));
    let written = &broker.read(&output)[0];
    assert_eq!(written[0].value.as_deref(), Some("14"));
    let expected = [("a", Some("1")), ("a", None), ("b", Some("2")), ("new", Some("3"))];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    assert_eq!(written[0].headers, expected, "all headers, in order, including the one without a value");
    assert_ne!(written[0].timestamp, Some(1_234), "the output does not take the timestamp of the input");
    assert_eq!((written[1].key.as_deref(), written[1].value.as_deref()), (Some("gone"), None));
}

#[test]
fn raw_messages_pass_through_unchanged() {
    let broker = shared();
    let (input, output) = (broker.topic("raw-in", 1), broker.topic("raw-out", 1));
    broker.write(&input, [(None, "a", Some("not json")), (None, "b", None)]);
    let (kafka, from, to) = (kafka(broker), input.clone(), output.clone());
    let job =
        Job::new("raw", move |flow| flow.source(kafka.topic(&from).raw())?.or_stop().sink(kafka.topic(&to).raw()));
    job.trigger(Trigger::AvailableNow).run().unwrap();
    let of = |topic: &str| {
        broker.read(topic)[0].iter().map(|read| (read.key.clone(), read.value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(of(&input), of(&output));
}

#[test]
fn malformed_records_are_data_with_all_that_a_replay_needs() {
    let broker = shared();
    let input = broker.topic("malformed", 1);
    broker.write(&input, [(None, "a", Some("1")), (None, "b", Some("one")), (None, "c", None), (None, "d", Some("4"))]);
    let (kafka, good, bad) = (kafka(broker), collect(), collect::<Malformed>());
    let (values, errors, from) = (good.clone(), bad.clone(), input.clone());
    Job::new("malformed", move |flow| {
        let (numbers, malformed) = flow.source(kafka.topic(&from).json::<u64>())?.partition_results();
        numbers.sink(&values)?;
        malformed.sink(&errors)
    })
    .trigger(Trigger::AvailableNow)
    .run()
    .unwrap();
    let bad = bad.values();
    assert_eq!((good.values(), bad.len()), (vec![1, 4], 2));
    assert_eq!((bad[0].key.as_deref(), bad[0].bytes.as_deref()), (Some(&b"b"[..]), Some(&b"one"[..])));
    assert_eq!(bad[0].origin.as_ref().unwrap().to_string(), format!("{input}/0 at offset 1"));
    assert!(bad[1].bytes.is_none() && bad[1].cause.contains("with_tombstones"), "{}", bad[1].cause);
}

#[test]
fn each_record_may_set_its_topic_partition_and_timestamp() {
    let broker = shared();
    let (left, right) = (broker.topic("left", 3), broker.topic("right", 3));
    let (kafka, to) = (kafka(broker), [left.clone(), right.clone()]);
    Job::new("by record", move |flow| {
        let to = to.clone();
        let messages = move |n: u64| {
            Message::new(n).topic(to[(n % 2) as usize].as_str()).partition((n % 3) as i32).timestamp(1_000 + n as i64)
        };
        flow.source(rows(0..30u64))?.map(messages).sink(kafka.messages().json())
    })
    .run()
    .unwrap();
    for (topic, parity) in [(left, 0), (right, 1)] {
        for (partition, records) in broker.read(&topic).iter().enumerate() {
            assert_eq!(records.len(), 5);
            for record in records {
                let n: i64 = record.value.as_ref().unwrap().parse().unwrap();
                assert_eq!((n % 2, n % 3, record.timestamp), (parity, partition as i64, Some(1_000 + n)));
            }
        }
    }
}

#[test]
fn keys_go_where_a_java_client_puts_them() {
    let broker = shared();
    let topic = broker.topic("keys", 12);
    let (kafka, to) = (kafka(broker), topic.clone());
    Job::new("keys", move |flow| {
        flow.source(rows(0..1_000u64))?.map(|n| format!("key {n}")).sink_by(Clone::clone, kafka.topic(&to).text())
    })
    .run()
    .unwrap();
    let mut count = 0;
    for (partition, records) in broker.read(&topic).iter().enumerate() {
        for record in records {
            let key = record.key.as_ref().unwrap();
            assert_eq!((murmur2(key.as_bytes()) & 0x7fff_ffff) % 12, partition as u32, "{key}");
            count += 1;
        }
    }
    assert_eq!(count, 1_000);
}

/// murmur2 as the Java clients compute it (`org.apache.kafka.common.utils.Utils.murmur2`).
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        rest.iter().enumerate().for_each(|(index, byte)| hash ^= u32::from(*byte) << (8 * index));
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}

#[test]
fn several_topics_are_one_source() {
    let broker = shared();
    let topics = [broker.topic("one", 1), broker.topic("two", 2)];
    broker.write(&topics[0], [(None, "", Some("1"))]);
    broker.write(&topics[1], [(Some(0), "", Some("2")), (Some(1), "", Some("3"))]);
    let (kafka, results) = (kafka(broker), collect());
    let sink = results.clone();
    let job = Job::new("topics", move |flow| flow.source(kafka.topics(&topics).json::<u64>())?.or_stop().sink(&sink));
    job.trigger(Trigger::AvailableNow).run().unwrap();
    let mut values = results.values();
    values.sort_unstable();
    assert_eq!(values, [1, 2, 3]);
}

#[test]
fn an_empty_value_is_not_a_tombstone() {
    let broker = shared();
    let topic = broker.topic("empty", 1);
    let (kafka, to) = (kafka(broker), topic.clone());
    Job::new("empty", move |flow| flow.source(rows([String::new()]))?.sink(kafka.topic(&to).text())).run().unwrap();
    assert_eq!(broker.read(&topic)[0][0].value.as_deref(), Some(""));
}

/// Bad records of every kind at every position: each becomes a dead letter with its position and
/// cause, none is lost, and good records pass.
#[test]
fn poison_becomes_dead_letters_and_comes_back() {
    let broker = shared();
    let (input, output, dead) = (broker.topic("poison", 1), broker.topic("clean", 1), broker.topic("dead", 1));
    let poison = [Some(""), Some("{"), Some("-1"), Some("\"1\""), Some("1 2"), Some("99999999999999999999"), None];
    let mut values = Vec::new();
    for poison in poison {
        values.extend([poison, Some("1"), poison]);
    }
    broker.write(&input, values.iter().map(|value| (None, "key", *value)));
    let (kafka, from, to, letters) = (kafka(broker), input.clone(), output.clone(), dead.clone());
    let group = format!("group-{input}");
    let job = move |kafka: &Kafka| {
        let (kafka, from, to, letters, group) =
            (kafka.clone(), from.clone(), to.clone(), letters.clone(), group.clone());
        Job::new("poison", move |flow| {
            let (good, bad) = flow.source(kafka.topic(&from).group(&group).json::<u64>())?.partition_results();
            good.sink(kafka.topic(&to).json())?;
            bad.sink(kafka.dead_letters(&letters))
        })
        .trigger(Trigger::AvailableNow)
    };
    let report = job(&kafka).run().unwrap();
    assert_eq!((report.sinks[0].acknowledged, report.sinks[1].acknowledged), (7, 14));
    let records = broker.read(&dead).concat();
    assert_eq!(records.len(), 14);
    for (record, place) in records.iter().zip((0..21).filter(|place| place % 3 != 1)) {
        let header =
            |name: &str| record.headers.iter().find(|(own, _)| own == name).and_then(|(_, value)| value.clone());
        assert_eq!((record.key.as_deref(), record.value.as_deref()), (Some("key"), values[place]));
        assert_eq!(header("millstream.topic"), Some(input.clone()));
        assert_eq!(header("millstream.partition").as_deref(), Some("0"));
        assert_eq!(header("millstream.offset"), Some(place.to_string()));
        assert!(header("millstream.cause").is_some_and(|cause| !cause.is_empty()));
    }
    // Sends only the empty ones back to the topic they came from.
    let (back, letters) = (kafka.clone(), dead.clone());
    let replay = Job::new("replay", move |flow| {
        let empty = |message: &Message<Option<Vec<u8>>>| {
            message.dead_letter().is_some_and(|letter| letter.cause.contains("EOF"))
        };
        let revived =
            flow.source(back.topic(&letters).group(&letters).raw())?.or_stop().filter(empty).flat_map(Message::revived);
        revived.sink(back.messages().raw())
    });
    assert_eq!(replay.trigger(Trigger::AvailableNow).run().unwrap().records_out(), 2);
    let all = broker.read(&input).concat();
    assert_eq!(all.len(), 23);
    assert!(all[21..].iter().all(|record| record.headers.is_empty() && record.key.as_deref() == Some("key")));
    assert_eq!(job(&kafka).run().unwrap().records_in(), 2, "only these are read again");
}
