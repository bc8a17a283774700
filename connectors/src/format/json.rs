//! JSON, typed by serde.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};
use std::marker::PhantomData;

use millstream::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::keys::{self, Look};
use super::strict::{self, Rules};
use super::{Cause, Decode, Encode, Framing, Payload, memory, tombstone, without_mark};

/// A value as JSON.
///
/// What is written is read back as the same value, or it is refused:
///
/// * JSON has no NaN and no infinities: they are refused, or written as `null` with
///   [`non_finite_as_null`](Json::non_finite_as_null).
/// * `None` is `null`, and `null` is `None`. What else would be written as `null` and read back as something else is refused,
///   such as `Some(None)`. Text without a character is `""`, and nothing else; a payload without a byte is malformed.
/// * An object that has a key twice is malformed, and none is written, unless
///   [`with_repeated_keys`](Json::with_repeated_keys) says otherwise.
/// * A byte order mark before the value is no part of it.
///
/// # Numbers
///
/// A number is read as what `T` has for it, and the nearest `f64` is what a field of that type can hold. A
/// [`serde_json::Value`] holds integers up to 64 bits and otherwise an `f64`: 12345678901234567890123 comes out of it as
/// 1.2345678901234568e+22, and 1.10 as 1.1. For numbers as they stand there are two ways:
///
/// * A field of type [`Box<RawValue>`](serde_json::value::RawValue) keeps its text, whatever it is. So does a pipeline of
///   `json::<Box<RawValue>>()`, for whole payloads.
/// * With the feature `exact-numbers` of this crate a `Value` keeps each number's text, but for the sign of an exponent: 1e400
///   comes out as 1e+400. It is serde_json's `arbitrary_precision`, which holds for the whole program: numbers then take
///   memory of their own, and inside of `#[serde(flatten)]` and of enums that are untagged or tagged within, serde hands a
///   number to `f64` and the like as a map, which they do not take. So it is off by default.
pub struct Json<T> {
    non_finite: NonFinite,
    keys: Keys,
    value: PhantomData<fn(T) -> T>,
}

/// What becomes of NaN and the infinities.
#[derive(Clone, Copy, Debug)]
enum NonFinite {
    Refused,
    Null,
}

/// How often an object may have a key.
#[derive(Clone, Copy, Debug)]
enum Keys {
    Once,
    Repeated,
}

impl<T> Json<T> {
    /// JSON as serde reads and writes `T`.
    pub fn new() -> Json<T> {
        Json { non_finite: NonFinite::Refused, keys: Keys::Once, value: PhantomData }
    }

    /// Writes NaN and the infinities as `null`, which is read back as `None` or not at all.
    #[must_use]
    pub fn non_finite_as_null(self) -> Json<T> {
        Json { non_finite: NonFinite::Null, ..self }
    }

    /// Takes and writes objects that have a key more than once. Of such a key a map or a `serde_json::Value` gets the last
    /// value; a struct refuses it also then.
    #[must_use]
    pub fn with_repeated_keys(self) -> Json<T> {
        Json { keys: Keys::Repeated, ..self }
    }

    fn check_keys(&self, look: Look) -> Result<(), Cause> {
        match (self.keys, look.twice) {
            (Keys::Once, Some(key)) => {
                Err(format!("an object has the key `{key}` twice; `Json::with_repeated_keys` takes the last").into())
            }
            _ => Ok(()),
        }
    }

    /// What would be read back as something else.
    fn rules(&self) -> Rules {
        let refuses_non_finite = matches!(self.non_finite, NonFinite::Refused);
        Rules { format: "JSON", refuses_non_finite, empty_is_nothing: false }
    }
}

impl<T> Default for Json<T> {
    fn default() -> Self {
        Json::new()
    }
}

impl<T> Clone for Json<T> {
    fn clone(&self) -> Self {
        Json { ..*self }
    }
}

impl<T> fmt::Debug for Json<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({:?}, {:?})", self.non_finite, self.keys)
    }
}

impl<T: DeserializeOwned + 'static> Decode for Json<T> {
    type Value = T;

    fn decode(&self, payload: Option<&[u8]>) -> Result<T, Cause> {
        self.decode_sized(payload).map(|(value, _)| value)
    }

    fn framing(&self) -> Framing {
        Framing::FilledLines
    }

    fn held(&self, payload: Option<&[u8]>, value: &T) -> Bytes {
        let payload = without_mark(payload.unwrap_or_default());
        held(payload, keys::look(payload).places, value)
    }

    fn decode_sized(&self, payload: Option<&[u8]>) -> Result<(T, Bytes), Cause> {
        let payload = without_mark(payload.ok_or_else(tombstone)?);
        let value = serde_json::from_slice(payload)?;
        let look = keys::look(payload);
        let held = held(payload, look.places, &value);
        self.check_keys(look)?;
        Ok((value, held))
    }
}

impl<T: Serialize + 'static> Encode<T> for Json<T> {
    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        let (begin, has_null) = (payload.len(), Cell::new(false));
        value.serialize(&mut Serializer::with_formatter(&mut *payload, Compact { has_null: &has_null }))?;
        // Whatever is read back as something else was written as `null`.
        if has_null.get() {
            strict::check(value, self.rules())?;
        }
        if let Keys::Once = self.keys {
            self.check_keys(keys::look(&payload[begin..]))?;
        }
        Ok(Payload::Present)
    }
}

fn held(payload: &[u8], places: usize, value: &dyn Any) -> Bytes {
    Bytes(memory::of_json(payload, places, value) as u64)
}

/// Writes without blanks, and notes when it writes `null`.
struct Compact<'n> {
    has_null: &'n Cell<bool>,
}

impl Formatter for Compact<'_> {
    fn write_null<W: Write + ?Sized>(&mut self, writer: &mut W) -> io::Result<()> {
        self.has_null.set(true);
        writer.write_all(b"null")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde::Deserialize;
    use serde_json::Value;
    use serde_json::value::RawValue;

    use super::*;

    fn written<T: Serialize + 'static>(format: &Json<T>, value: &T) -> Result<String, String> {
        let mut payload = Vec::new();
        format.encode(value, &mut payload).map_err(|cause| cause.to_string())?;
        Ok(String::from_utf8(payload).expect("it is text"))
    }

    fn read<T: DeserializeOwned + 'static>(format: &Json<T>, json: &str) -> Result<T, String> {
        format.decode(Some(json.as_bytes())).map_err(|cause| cause.to_string())
    }

    /// They were written as `null`, which no number can be read back from.
    #[test]
    fn what_is_no_number_is_refused_where_it_stands_or_null_when_that_is_said() {
        let value = HashMap::from([("prices", vec![1.5, f64::NAN])]);
        let cause = written(&Json::new(), &value).expect_err("it is no number");
        assert_eq!(cause, "JSON has no way to write the number NaN, in field `\"prices\".1`");
        assert_eq!(written(&Json::new().non_finite_as_null(), &value).as_deref(), Ok(r#"{"prices":[1.5,null]}"#));
        for infinity in [f32::INFINITY, f32::NEG_INFINITY] {
            assert!(written(&Json::new(), &infinity).expect_err("it is no number").contains("inf"));
        }
    }

    #[test]
    fn none_and_empty_text_are_told_apart() {
        for (value, json) in [(None, "null"), (Some(String::new()), "\"\"")] {
            assert_eq!(written(&Json::new(), &value).as_deref(), Ok(json));
            assert_eq!(read(&Json::<Option<String>>::new(), json), Ok(value));
        }
        assert!(read(&Json::<Option<String>>::new(), "").is_err());
        let cause = written(&Json::new(), &Some(None::<u8>)).expect_err("it is read back as `None`");
        assert!(cause.contains("read back as `None`"), "{cause}");
    }

    /// Structs refused them, and all else took the last without a word.
    #[test]
    fn a_key_that_occurs_twice_is_malformed_whatever_it_is_read_as() {
        #[derive(Debug, Deserialize, PartialEq)]
        struct Point {
            x: u8,
        }
        #[derive(Debug, Serialize)]
        struct Beside {
            x: u8,
            #[serde(flatten)]
            more: BTreeMap<&'static str, u8>,
        }
        const TWICE: &str = r#"{"x":1,"x":2}"#;
        assert!(read(&Json::<Point>::new(), TWICE).is_err());
        assert!(read(&Json::<BTreeMap<String, u8>>::new(), TWICE).expect_err("twice").contains("the key `x` twice"));
        assert!(read(&Json::<Value>::new(), TWICE).is_err());
        assert!(read(&Json::<Box<RawValue>>::new(), TWICE).is_err());
        let last = read(&Json::<Value>::new().with_repeated_keys(), TWICE).expect("the last");
        assert_eq!(last["x"], 2);
        assert!(read(&Json::<Point>::new().with_repeated_keys(), TWICE).is_err());
        let beside = Beside { x: 1, more: BTreeMap::from([("x", 2)]) };
        assert!(written(&Json::new(), &beside).expect_err("twice").contains("the key `x` twice"));
        assert_eq!(written(&Json::new().with_repeated_keys(), &beside).as_deref(), Ok(TWICE));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_value() {
        assert_eq!(read(&Json::<u8>::new(), "\u{feff}1"), Ok(1));
        assert!(read(&Json::<u8>::new(), "\u{feff}\u{feff}1").is_err());
    }

    const NUMBERS: &str = r#"{"a":12345678901234567890123,"b":1.10,"c":-0,"d":1e400,"e":0.1}"#;

    #[test]
    fn raw_values_keep_numbers_as_they_stand() {
        #[derive(Deserialize, Serialize)]
        struct Price {
            a: Box<RawValue>,
            #[serde(rename = "b")]
            rest: Box<RawValue>,
        }
        let format = Json::<Box<RawValue>>::new();
        assert_eq!(written(&format, &read(&format, NUMBERS).expect("it is JSON")).as_deref(), Ok(NUMBERS));
        let format = Json::<Price>::new();
        let price = read(&format, r#"{"a":1.10,"b":[12345678901234567890123]}"#).expect("it is one");
        assert_eq!(written(&format, &price).as_deref(), Ok(r#"{"a":1.10,"b":[12345678901234567890123]}"#));
    }

    /// As the documentation says.
    #[cfg(not(feature = "exact-numbers"))]
    #[test]
    fn values_hold_the_nearest_double() {
        let format = Json::<Value>::new();
        let value = read(&format, r#"{"a":12345678901234567890123,"b":1.10}"#).expect("it is JSON");
        assert_eq!(written(&format, &value).as_deref(), Ok(r#"{"a":1.2345678901234568e+22,"b":1.1}"#));
        assert!(read(&format, "1e400").is_err(), "what is out of range is refused");
    }

    #[cfg(feature = "exact-numbers")]
    #[test]
    fn values_keep_numbers_as_they_stand() {
        let format = Json::<Value>::new();
        let signed = NUMBERS.replace("1e400", "1e+400");
        assert_eq!(written(&format, &read(&format, NUMBERS).expect("it is JSON")), Ok(signed));
        // What the documentation warns of.
        #[derive(Debug, Deserialize)]
        #[serde(untagged)]
        enum Any {
            #[expect(dead_code, reason = "it is never made")]
            Number(f64),
        }
        assert!(read(&Json::<Any>::new(), "1.5").is_err());
    }
}
