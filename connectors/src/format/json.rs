//! JSON, typed by serde.

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};
use std::marker::PhantomData;

use millstream::ByteSize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Serializer;
use serde_json::ser::Formatter;

use super::keys::{self, Look};
use super::strict::{self, Rules};
use super::{Cause, Decode, Encode, Framing, Payload, memory, tombstone, without_mark};

/// A value as JSON.
///
/// A value is read back as it was written, or writing it is refused:
///
/// * JSON has no NaN and no infinities: they are refused, or written as `null` with
///   [`non_finite_as_null`](Json::non_finite_as_null).
/// * `None` is written as `null`, and `null` is read as `None`. Any other value that would be
///   written as `null` and read back as something else is refused, such as `Some(None)`. An empty
///   string is `""` and nothing else; an empty payload is malformed.
/// * An object with a repeated key is malformed, and is not written either, unless
///   [`with_repeated_keys`](Json::with_repeated_keys) is set.
/// * A byte order mark before the value is not part of it.
///
/// # Numbers
///
/// A number is read as the type that `T` declares for it; a field of type `f64` holds the nearest
/// `f64`. A [`serde_json::Value`] holds integers up to 64 bits and otherwise an `f64`:
/// 12345678901234567890123 comes out as 1.2345678901234568e+22, and 1.10 as 1.1. There are two ways
/// to keep numbers exactly as they are written:
///
/// * A field of type [`Box<RawValue>`](serde_json::value::RawValue) keeps its text, whatever it is.
///   So does a pipeline of `json::<Box<RawValue>>()`, for whole payloads.
/// * With the feature `exact-numbers` of this crate, a `Value` keeps each number's text, except for
///   the sign of an exponent: 1e400 comes out as 1e+400. It turns on serde_json's
///   `arbitrary_precision` for the whole program. Each number then takes memory of its own, and
///   inside `#[serde(flatten)]` and in untagged or internally tagged enums serde passes a number to
///   `f64` and similar types as a map, which they reject. So the feature is off by default.
#[must_use = "a format does nothing until a source or a sink uses it"]
pub struct Json<T> {
    non_finite: NonFinite,
    keys: Keys,
    value: PhantomData<fn(T) -> T>,
}

/// How NaN and the infinities are written.
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
    /// Creates a format that reads and writes `T` as serde does.
    pub fn new() -> Json<T> {
        Json { non_finite: NonFinite::Refused, keys: Keys::Once, value: PhantomData }
    }

    /// Writes NaN and the infinities as `null`, which is read back as `None` or is malformed.
    pub fn non_finite_as_null(self) -> Json<T> {
        Json { non_finite: NonFinite::Null, ..self }
    }

    /// Accepts and writes objects that have a key more than once. A map or a `serde_json::Value`
    /// gets the last value of such a key; a struct still refuses it.
    pub fn with_repeated_keys(self) -> Json<T> {
        Json { keys: Keys::Repeated, ..self }
    }

    fn check_keys(&self, look: Look) -> Result<(), Cause> {
        match (self.keys, look.twice) {
            (Keys::Once, Some(key)) => {
                Err(format!("an object has the key `{key}` twice; `Json::with_repeated_keys` allows this").into())
            }
            _ => Ok(()),
        }
    }

    /// Which values are refused because they would be read back as something else.
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

    fn held(&self, payload: Option<&[u8]>, value: &T) -> ByteSize {
        let payload = without_mark(payload.unwrap_or_default());
        held(payload, keys::look(payload).places, value)
    }

    fn decode_sized(&self, payload: Option<&[u8]>) -> Result<(T, ByteSize), Cause> {
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
        // Only a value written as `null` can be read back as something else.
        if has_null.get() {
            strict::check(value, self.rules())?;
        }
        if let Keys::Once = self.keys {
            self.check_keys(keys::look(&payload[begin..]))?;
        }
        Ok(Payload::Present)
    }
}

fn held(payload: &[u8], places: usize, value: &dyn Any) -> ByteSize {
    ByteSize(memory::of_json(payload, places, value) as u64)
}

/// Writes without white space, and records whether it has written `null`.
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

    /// They were written as `null`, which cannot be read back as a number.
    #[test]
    fn what_is_no_number_is_refused_where_it_stands_or_null_when_that_is_said() {
        let value = HashMap::from([("prices", vec![1.5, f64::NAN])]);
        let cause = written(&Json::new(), &value).expect_err("it is not a finite number");
        assert_eq!(cause, "JSON cannot represent the number NaN, in field `\"prices\".1`");
        assert_eq!(written(&Json::new().non_finite_as_null(), &value).as_deref(), Ok(r#"{"prices":[1.5,null]}"#));
        for infinity in [f32::INFINITY, f32::NEG_INFINITY] {
            assert!(written(&Json::new(), &infinity).expect_err("it is not a finite number").contains("inf"));
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

    /// Structs refused them; all other types took the last value silently.
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
        assert_eq!(written(&format, &read(&format, NUMBERS).expect("it is valid JSON")).as_deref(), Ok(NUMBERS));
        let format = Json::<Price>::new();
        let price = read(&format, r#"{"a":1.10,"b":[12345678901234567890123]}"#).expect("it is a valid price");
        assert_eq!(written(&format, &price).as_deref(), Ok(r#"{"a":1.10,"b":[12345678901234567890123]}"#));
    }

    /// As documented.
    #[cfg(not(feature = "exact-numbers"))]
    #[test]
    fn values_hold_the_nearest_double() {
        let format = Json::<Value>::new();
        let value = read(&format, r#"{"a":12345678901234567890123,"b":1.10}"#).expect("it is valid JSON");
        assert_eq!(written(&format, &value).as_deref(), Ok(r#"{"a":1.2345678901234568e+22,"b":1.1}"#));
        assert!(read(&format, "1e400").is_err(), "a number out of range is refused");
    }

    #[cfg(feature = "exact-numbers")]
    #[test]
    fn values_keep_numbers_as_they_stand() {
        let format = Json::<Value>::new();
        let signed = NUMBERS.replace("1e400", "1e+400");
        assert_eq!(written(&format, &read(&format, NUMBERS).expect("it is valid JSON")), Ok(signed));
        // The documented limitation.
        #[derive(Debug, Deserialize)]
        #[serde(untagged)]
        enum Any {
            #[expect(dead_code, reason = "it is never made")]
            Number(f64),
        }
        assert!(read(&Json::<Any>::new(), "1.5").is_err());
    }
}
