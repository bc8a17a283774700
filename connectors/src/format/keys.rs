//! One pass over JSON text that finds repeated keys in an object and counts the values inside
//! objects and arrays. Serde leaves repeated keys to each type: structs refuse them, maps and
//! `serde_json::Value` take the last.

use std::borrow::Cow;
use std::collections::HashSet;

use memchr::memchr2;

/// Up to this many keys, each new key is compared with all before it; beyond that, keys are kept in
/// a set.
const FEW: usize = 16;

/// An object or array whose closing bracket has not been reached.
struct Open<'j> {
    is_object: bool,
    /// Where its own keys begin in the list of the keys of all open objects, as long as they are
    /// few.
    begin: usize,
    many: Option<HashSet<Cow<'j, [u8]>>>,
}

/// What was found in a text.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// The first key that occurs a second time in an object.
    pub(super) twice: Option<String>,
    /// Roughly how many values are inside objects and arrays: one for each object, array and comma.
    pub(super) places: usize,
}

/// Scans text that is already known to be valid JSON.
pub(super) fn look(json: &[u8]) -> Look {
    let mut look = Look::default();
    let mut open: Vec<Open<'_>> = Vec::new();
    let mut keys: Vec<Cow<'_, [u8]>> = Vec::with_capacity(FEW);
    let mut is_key_next = false;
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        match byte {
            b'{' | b'[' => {
                look.places += 1;
                is_key_next = *byte == b'{';
                open.push(Open { is_object: is_key_next, begin: keys.len(), many: None });
            }
            b'}' | b']' => keys.truncate(open.pop().map_or(0, |closed| closed.begin)),
            b',' => {
                look.places += 1;
                is_key_next = open.last().is_some_and(|open| open.is_object);
            }
            b'"' => {
                let end = end_of_string(json, at);
                if std::mem::take(&mut is_key_next) {
                    let object = open.last_mut().expect("a key is inside an object");
                    if let Err(key) = object.take(key(&json[at..end]), &mut keys) {
                        look.twice.get_or_insert_with(|| String::from_utf8_lossy(&key).into_owned());
                    }
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    look
}

impl<'j> Open<'j> {
    /// Records a key, or returns it if the object already has it.
    fn take(&mut self, key: Cow<'j, [u8]>, keys: &mut Vec<Cow<'j, [u8]>>) -> Result<(), Cow<'j, [u8]>> {
        if self.many.is_none() && keys.len() - self.begin < FEW {
            if keys[self.begin..].contains(&key) {
                return Err(key);
            }
            keys.push(key);
            return Ok(());
        }
        let many = self.many.get_or_insert_with(|| keys.drain(self.begin..).collect());
        if many.contains(&key) {
            return Err(key);
        }
        many.insert(key);
        Ok(())
    }
}

/// The index after the closing quote of the string that opens at `begin`.
fn end_of_string(json: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(found) = json.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

/// The text of a quoted key, with its escapes resolved.
fn key(quoted: &[u8]) -> Cow<'_, [u8]> {
    if quoted.contains(&b'\\')
        && let Ok(text) = serde_json::from_slice::<String>(quoted)
    {
        return Cow::Owned(text.into_bytes());
    }
    Cow::Borrowed(&quoted[1..quoted.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(json: &str, key: Option<&str>) {
        assert!(serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
        assert_eq!(look(json.as_bytes()).twice.as_deref(), key, "{json}");
    }

    #[test]
    fn keys_are_told_apart_by_object() {
        for json in [
            "1",
            "\"a\"",
            "{}",
            r#"{"a":{"a":1},"b":{"a":1}}"#,
            r#"[{"a":1},{"a":1},["a","a"]]"#,
            r#"{"a":"a","b":["b",{"b":"b"}],"":"c"}"#,
            r#"{"a\"":1,"a":"\\","\"a\"":"{\"x\":1,\"x\":2}"}"#,
        ] {
            check(json, None);
        }
        check(r#"{"a":1,"b":2,"a":3}"#, Some("a"));
        check(r#"{"b":[{"c":{"x":1},"x":2, "c" :1}]}"#, Some("c"));
        check(r#"{"a":1,"\u0061":2}"#, Some("a"));
        check(r#"{"":1,"":2}"#, Some(""));
        check(r#"{"ü":[],"a":{"ü":0},"ü":0}"#, Some("ü"));
    }

    #[test]
    fn places_are_counted_outside_of_text() {
        assert_eq!(look(br#"{"a":[1,2,{"b,[{":"\",[{"}],"c":0}"#).places, 6);
        assert_eq!(look(br#"{"a":1,"a":[1,2]}"#).places, 4, "also after a repeated key");
        assert_eq!(look(b"1").places, 0);
    }

    #[test]
    fn many_keys_are_looked_up_and_not_compared_with_all() {
        for count in [FEW - 1, FEW, FEW + 1, 100_000] {
            let fields: Vec<String> = (0..count).map(|n| format!("\"k{n}\":{{\"k0\":1}}")).collect();
            check(&format!("{{{}}}", fields.join(",")), None);
            check(&format!("{{{},\"k7\":1}}", fields.join(",")), Some("k7"));
            check(&format!("{{\"o\":{{{}}},\"x\":1,\"x\":1}}", fields.join(",")), Some("x"));
        }
    }
}
