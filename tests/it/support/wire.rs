//! Kafka's protocol by hand, for what no client writes: a record with a header whose name is not
//! UTF-8.

use std::io::{Read, Write};
use std::net::TcpStream;

/// Writes a record with one header of this name into partition 0.
pub fn write_with_header(address: &str, topic: &str, value: &str, header: &[u8]) {
    let mut request = Vec::new();
    // Produce, version 3, with acknowledgement; no client id, no transaction.
    request.extend(0i16.to_be_bytes());
    request.extend(3i16.to_be_bytes());
    request.extend(1i32.to_be_bytes());
    request.extend((-1i16).to_be_bytes());
    request.extend((-1i16).to_be_bytes());
    request.extend(1i16.to_be_bytes());
    request.extend(10_000i32.to_be_bytes());
    request.extend(1i32.to_be_bytes());
    request.extend((topic.len() as i16).to_be_bytes());
    request.extend(topic.as_bytes());
    request.extend(1i32.to_be_bytes());
    request.extend(0i32.to_be_bytes());
    let batch = batch(value, header);
    request.extend((batch.len() as i32).to_be_bytes());
    request.extend(batch);
    let mut broker = TcpStream::connect(address).unwrap();
    broker.write_all(&(request.len() as i32).to_be_bytes()).unwrap();
    broker.write_all(&request).unwrap();
    let mut len = [0; 4];
    broker.read_exact(&mut len).unwrap();
    let mut response = vec![0; i32::from_be_bytes(len) as usize];
    broker.read_exact(&mut response).unwrap();
    // The error follows the correlation id, one topic and one partition.
    let at = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(response[at..at + 2], [0, 0], "the broker accepts it");
}

fn batch(value: &str, header: &[u8]) -> Vec<u8> {
    // Attributes, deltas of time and offset, no key.
    let mut record = vec![0, 0, 0, 1];
    record.extend(varint(value.len()));
    record.extend(value.as_bytes());
    record.extend(varint(1));
    record.extend(varint(header.len()));
    record.extend(header);
    record.extend(varint(1));
    record.push(b'h');
    let mut body = Vec::new();
    body.extend(0i16.to_be_bytes());
    body.extend(0i32.to_be_bytes());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    body.extend(now.to_be_bytes());
    body.extend(now.to_be_bytes());
    body.extend((-1i64).to_be_bytes());
    body.extend((-1i16).to_be_bytes());
    body.extend((-1i32).to_be_bytes());
    body.extend(1i32.to_be_bytes());
    body.extend(varint(record.len()));
    body.extend(record);
    let mut batch = Vec::new();
    batch.extend(0i64.to_be_bytes());
    // Leader epoch, magic and checksum count too.
    batch.extend((9 + body.len() as i32).to_be_bytes());
    batch.extend((-1i32).to_be_bytes());
    batch.push(2);
    batch.extend(crc32c(&body).to_be_bytes());
    batch.extend(body);
    batch
}

/// A length in zigzag encoding.
fn varint(len: usize) -> Vec<u8> {
    let (mut left, mut bytes) = (len << 1, Vec::new());
    while left >= 0x80 {
        bytes.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _: i32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
