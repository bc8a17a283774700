//! Headers of a client's messages.

use std::panic::{AssertUnwindSafe, catch_unwind};

use millstream::Headers;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};

/// The headers of a client's message, and how many others cannot be read.
pub(crate) fn headers_of(message: &BorrowedMessage<'_>) -> (Headers, usize) {
    let (mut headers, mut unreadable) = (Headers::new(), 0);
    let Some(borrowed) = message.headers() else { return (headers, 0) };
    for index in 0..borrowed.count() {
        // rdkafka 0.39 panics on a name that is not valid UTF-8, and has no other way to read a
        // header.
        match catch_unwind(AssertUnwindSafe(|| borrowed.get(index))) {
            Ok(header) => headers.push(header.key, header.value.map(<[u8]>::to_vec)),
            Err(_) => unreadable += 1,
        }
    }
    (headers, unreadable)
}

/// How many bytes a key and headers hold.
pub(crate) fn held_beside(key: Option<&[u8]>, headers: &Headers) -> u64 {
    // The name and value themselves, without what they point to.
    const HEADER: usize = size_of::<(String, Option<Vec<u8>>)>();
    let headers = headers.iter().map(|(name, value)| HEADER + name.len() + value.map_or(0, <[u8]>::len));
    (key.map_or(0, <[u8]>::len) + headers.sum::<usize>()) as u64
}
