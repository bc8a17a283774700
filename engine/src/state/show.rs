//! Shows state as JSON. Its bytes do not say what they are, so they are read by the
//! [`Shape`] of their type, which stands in the manifest.
//!
//! | type | JSON |
//! |---|---|
//! | number, text, character, `bool`, sequence, tuple, struct, enum, option, unit | as `serde_json` writes it |
//! | integer that neither `i64` nor `u64` can hold | its digits, as text |
//! | float that is not a number, or infinite | `"NaN"`, `"inf"`, `"-inf"` |
//! | bytes | text in base 16 |
//! | map whose keys are text, integers, `bool` or variants without content | an object, with the keys as text |
//! | any other map | an array of `[key, value]` |

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::iter::{repeat, repeat_n};
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde_json::{Map, Value};
use serde_reflection::{ContainerFormat, Format, Named, Registry, VariantFormat};

use super::describe::Shape;

/// The value of this shape that is in the bytes.
///
/// # Errors
/// When there is none, or something is behind it.
pub(crate) fn value_of((format, registry): &Shape, bytes: &[u8]) -> Result<Value, postcard::Error> {
    let mut from = postcard::Deserializer::from_bytes(bytes);
    let within = Within { registry, empty: &Cell::new(0), depth: 0 };
    let value = within.reads(format).deserialize(&mut from)?;
    match from.finalize()? {
        [] => Ok(value),
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

/// Bytes as text.
pub(crate) fn base_16(bytes: &[u8]) -> Value {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a text has room");
    }
    Value::String(text)
}

/// Deeper values are not shown: the stack has an end.
const DEPTH_MAX: usize = 500;
/// More values that take no bytes are not shown: a length of a few bytes could ask for any number
/// of them.
const EMPTY_MAX: usize = 1 << 16;

/// Where in a value a part of it is.
#[derive(Clone, Copy)]
struct Within<'s> {
    registry: &'s Registry,
    /// How many values have taken no bytes so far.
    empty: &'s Cell<usize>,
    depth: usize,
}

/// Reads a value of a format.
#[derive(Clone, Copy)]
struct Reads<'s> {
    format: &'s Format,
    within: Within<'s>,
}

impl<'de> DeserializeSeed<'de> for Reads<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        let Reads { format, mut within } = self;
        within.depth += 1;
        if within.depth > DEPTH_MAX {
            return Err(D::Error::custom("the value is nested too deeply"));
        }
        match format {
            Format::Variable(_) => Err(D::Error::custom("the format is not known")),
            Format::TypeName(name) => within.named(name, from),
            Format::Unit => within.counted_empty(Value::Null),
            Format::Bool => bool::deserialize(from).map(Value::from),
            Format::I8 => i8::deserialize(from).map(Value::from),
            Format::I16 => i16::deserialize(from).map(Value::from),
            Format::I32 => i32::deserialize(from).map(Value::from),
            Format::I64 => i64::deserialize(from).map(Value::from),
            Format::I128 => i128::deserialize(from).map(|large| integer(large, large)),
            Format::U8 => u8::deserialize(from).map(Value::from),
            Format::U16 => u16::deserialize(from).map(Value::from),
            Format::U32 => u32::deserialize(from).map(Value::from),
            Format::U64 => u64::deserialize(from).map(Value::from),
            Format::U128 => u128::deserialize(from).map(|large| integer(large, large)),
            // By its text: 0.1 as `f64` would be 0.10000000149011612.
            Format::F32 => f32::deserialize(from).map(|float| float_of(float.to_string().parse().ok(), float)),
            Format::F64 => f64::deserialize(from).map(|float| float_of(Some(float), float)),
            Format::Char => char::deserialize(from).map(|letter| Value::String(letter.into())),
            Format::Str => String::deserialize(from).map(Value::String),
            Format::Bytes => from.deserialize_bytes(Bytes),
            Format::Option(some) => from.deserialize_option(Maybe(within.reads(some))),
            Format::Seq(item) => from.deserialize_seq(Items { formats: repeat(&**item), within }).map(Value::Array),
            Format::Map { key, value } => {
                let pairs = from.deserialize_map(Pairs(within.reads(key), within.reads(value)))?;
                Ok(if within.is_text(key) { object(pairs) } else { array_of_pairs(pairs) })
            }
            Format::Tuple(formats) => within.tuple(formats, from).map(Value::Array),
            Format::TupleArray { content, size } => {
                from.deserialize_tuple(*size, Items { formats: repeat_n(&**content, *size), within }).map(Value::Array)
            }
        }
    }
}

// Postcard writes a struct as the tuple of its fields, and a struct with one unnamed field as that.
impl<'s> Within<'s> {
    fn reads(self, format: &'s Format) -> Reads<'s> {
        Reads { format, within: self }
    }

    fn named<'de, D: Deserializer<'de>>(self, name: &str, from: D) -> Result<Value, D::Error> {
        let format = self.registry.get(name).ok_or_else(|| D::Error::custom("the type is not described"))?;
        match format {
            ContainerFormat::UnitStruct => self.counted_empty(Value::Null),
            ContainerFormat::NewTypeStruct(inside) => self.reads(inside).deserialize(from),
            ContainerFormat::TupleStruct(formats) => self.tuple(formats, from).map(Value::Array),
            ContainerFormat::Struct(fields) => {
                if fields.is_empty() {
                    return self.counted_empty(Value::Object(Map::new()));
                }
                from.deserialize_tuple(fields.len(), Fields { fields, within: self })
            }
            ContainerFormat::Enum(variants) => from.deserialize_enum("", &[], Variant { variants, within: self }),
        }
    }

    fn tuple<'de, D: Deserializer<'de>>(self, formats: &'s [Format], from: D) -> Result<Vec<Value>, D::Error> {
        if formats.is_empty() {
            self.counted_empty::<D::Error>(Value::Null)?;
        }
        from.deserialize_tuple(formats.len(), Items { formats: formats.iter(), within: self })
    }

    /// A value that takes no bytes.
    fn counted_empty<E: Error>(self, value: Value) -> Result<Value, E> {
        self.empty.set(self.empty.get() + 1);
        if self.empty.get() > EMPTY_MAX { Err(E::custom("too many values take no bytes")) } else { Ok(value) }
    }

    /// Whether values of this format can be the keys of a JSON object.
    fn is_text(self, format: &Format) -> bool {
        let mut format = format;
        for _ in 0..DEPTH_MAX {
            match format {
                Format::Bool
                | Format::I8
                | Format::I16
                | Format::I32
                | Format::I64
                | Format::I128
                | Format::U8
                | Format::U16
                | Format::U32
                | Format::U64
                | Format::U128
                | Format::Char
                | Format::Str => return true,
                Format::TypeName(name) => match self.registry.get(name) {
                    Some(ContainerFormat::NewTypeStruct(inside)) => format = inside,
                    Some(ContainerFormat::Enum(variants)) => {
                        return variants.values().all(|variant| variant.value == VariantFormat::Unit);
                    }
                    Some(
                        ContainerFormat::UnitStruct | ContainerFormat::TupleStruct(_) | ContainerFormat::Struct(_),
                    )
                    | None => return false,
                },
                Format::Variable(_)
                | Format::Unit
                | Format::F32
                | Format::F64
                | Format::Bytes
                | Format::Option(_)
                | Format::Seq(_)
                | Format::Map { .. }
                | Format::Tuple(_)
                | Format::TupleArray { .. } => return false,
            }
        }
        false
    }
}

fn integer<N: Copy + TryInto<i64> + TryInto<u64>>(number: N, text: impl fmt::Display) -> Value {
    let as_i64 = |number: N| TryInto::<i64>::try_into(number).ok().map(Value::from);
    let as_u64 = |number: N| TryInto::<u64>::try_into(number).ok().map(Value::from);
    as_i64(number).or_else(|| as_u64(number)).unwrap_or_else(|| Value::String(text.to_string()))
}

fn float_of(number: Option<f64>, text: impl fmt::Display) -> Value {
    let number = number.and_then(serde_json::Number::from_f64);
    number.map_or_else(|| Value::String(text.to_string()), Value::Number)
}

fn object(pairs: Vec<(Value, Value)>) -> Value {
    let text = |key| match key {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Value::Object(pairs.into_iter().map(|(key, value)| (text(key), value)).collect())
}

fn array_of_pairs(pairs: Vec<(Value, Value)>) -> Value {
    pairs.into_iter().map(|(key, value)| Value::Array(vec![key, value])).collect()
}

struct Bytes;

impl Visitor<'_> for Bytes {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(base_16(bytes))
    }
}

struct Maybe<'s>(Reads<'s>);

impl<'de> Visitor<'de> for Maybe<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an option")
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.0.deserialize(from)
    }
}

/// Values one behind the other, at most as many as there are formats.
struct Items<'s, F> {
    formats: F,
    within: Within<'s>,
}

impl<'de, 's, F: Iterator<Item = &'s Format>> Visitor<'de> for Items<'s, F> {
    type Value = Vec<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("values")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<Value>, A::Error> {
        // It grows with what is there, whatever the length says.
        let mut values = Vec::new();
        for format in self.formats {
            match from.next_element_seed(self.within.reads(format))? {
                Some(value) => values.push(value),
                None => break,
            }
        }
        Ok(values)
    }
}

struct Fields<'s> {
    fields: &'s [Named<Format>],
    within: Within<'s>,
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fields")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, from: A) -> Result<Value, A::Error> {
        let formats = self.fields.iter().map(|field| &field.value);
        let values = Items { formats, within: self.within }.visit_seq(from)?;
        let names = self.fields.iter().map(|field| field.name.clone());
        Ok(Value::Object(names.zip(values).collect()))
    }
}

struct Pairs<'s>(Reads<'s>, Reads<'s>);

impl<'de> Visitor<'de> for Pairs<'_> {
    type Value = Vec<(Value, Value)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Vec<(Value, Value)>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = from.next_entry_seed(self.0, self.1)? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

struct Variant<'s> {
    variants: &'s BTreeMap<u32, Named<VariantFormat>>,
    within: Within<'s>,
}

impl<'de> Visitor<'de> for Variant<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a variant")
    }

    fn visit_enum<A: EnumAccess<'de>>(self, from: A) -> Result<Value, A::Error> {
        let (index, content) = from.variant_seed(PhantomData::<u32>)?;
        let variant = self.variants.get(&index).ok_or_else(|| A::Error::custom("there is no such variant"))?;
        let within = self.within;
        let content = match &variant.value {
            VariantFormat::Variable(_) => return Err(A::Error::custom("the variant is not known")),
            VariantFormat::Unit => {
                content.unit_variant()?;
                return Ok(Value::String(variant.name.clone()));
            }
            VariantFormat::NewType(inside) => content.newtype_variant_seed(within.reads(inside))?,
            VariantFormat::Tuple(formats) => {
                Value::Array(content.tuple_variant(formats.len(), Items { formats: formats.iter(), within })?)
            }
            VariantFormat::Struct(fields) => content.tuple_variant(fields.len(), Fields { fields, within })?,
        };
        Ok(Value::Object(Map::from_iter([(variant.name.clone(), content)])))
    }
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
