//! The types that programs and connectors keep: what they can be used for.

use millstream::connector::{Offsets, SharedSink, SharedSource, Wake};
use millstream::{
    ChannelSource, Clock, Collected, Error, Headers, Job, JobHandle, Malformed, Offset, Partition, Receipt, Report,
    Running, Sender, SourceControl,
};
use millstream_connectors::{Kafka, Message, Secret, Tls, Token, Topic};

#[test]
fn what_a_program_keeps_can_be_used_by_any_thread() {
    fn check<T: Send + Sync>() {}
    check::<(Job, Running, JobHandle, SourceControl, Report, Clock)>();
    check::<(Error, Malformed, Sender<u64>, ChannelSource<u64>, Receipt, Collected<u64>)>();
    check::<(Kafka, Topic, Message<u64>, Secret, Tls, Token)>();
    check::<(Wake, Box<dyn SharedSource>, Box<dyn SharedSink>)>();
}

#[test]
fn headers_are_iterated_in_their_order_by_reference_and_by_value() {
    let headers: Headers = [("a", Some(1)), ("b", None), ("a", Some(2))]
        .map(|(name, value)| (name.to_owned(), value.map(|byte: u8| vec![byte])))
        .into_iter()
        .collect();
    let mut read = Vec::new();
    for (name, value) in &headers {
        read.push((name, value.map(<[u8]>::to_vec)));
    }
    assert_eq!(read, [("a", Some(vec![1])), ("b", None), ("a", Some(vec![2]))]);
    assert_eq!(headers.clone().into_iter().collect::<Headers>(), headers);
}

#[test]
fn offsets_are_iterated_by_name_by_reference_and_by_value() {
    let offsets: Offsets =
        [("b/1", 7), ("a/0", 3)].map(|(name, next)| (Partition::new(name), Offset(next))).into_iter().collect();
    let mut read = Vec::new();
    for (partition, next) in &offsets {
        read.push((partition.name(), next.0));
    }
    assert_eq!(read, [("a/0", 3), ("b/1", 7)]);
    assert_eq!(offsets.clone().into_iter().collect::<Offsets>(), offsets);
}
