//! Finds the parts of a value that a text format would write but read back as something else. Serde
//! passes the value through as it would to a writer, but nothing is written.

use std::fmt::{self, Display};

use serde::ser::{
    self, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant,
};

/// What a format cannot write in a way that is read back as the same value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// The format's name in messages.
    pub(super) format: &'static str,
    /// Whether NaN and the infinities are refused.
    pub(super) refuses_non_finite: bool,
    /// Whether an empty string is written the same way as an absent value.
    pub(super) empty_is_nothing: bool,
}

/// Checks a value; returns how many scalar fields it has, such as numbers and strings.
pub(super) fn check<T: Serialize + ?Sized>(value: &T, rules: Rules) -> Result<usize, Refused> {
    let mut fields = 0;
    value.serialize(Walk { rules, is_in_some: false, fields: &mut fields })?;
    Ok(fields)
}

/// What cannot be written, and its path in the value, innermost part first.
#[derive(Debug)]
pub(super) struct Refused {
    what: String,
    path: Vec<String>,
}

impl Refused {
    fn within(mut self, name: impl Display) -> Refused {
        self.path.push(name.to_string());
        self
    }
}

impl Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.path.is_empty() {
            let path = self.path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".");
            write!(f, ", in field `{path}`")?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

impl ser::Error for Refused {
    fn custom<M: Display>(message: M) -> Refused {
        Refused { what: message.to_string(), path: Vec::new() }
    }
}

struct Walk<'f> {
    rules: Rules,
    /// Whether the value is inside a `Some`.
    is_in_some: bool,
    fields: &'f mut usize,
}

impl Walk<'_> {
    fn inner(&mut self) -> Walk<'_> {
        Walk { rules: self.rules, is_in_some: false, fields: self.fields }
    }

    fn leaf(&mut self) -> Result<(), Refused> {
        *self.fields += 1;
        Ok(())
    }

    /// A value that is written as an absent value.
    fn nothing(&mut self, what: &str) -> Result<(), Refused> {
        if self.is_in_some {
            let format = self.rules.format;
            let what = format!("{format} cannot represent `Some` of {what}: it would be read back as `None`");
            return Err(ser::Error::custom(what));
        }
        self.leaf()
    }

    fn text(&mut self, len: usize) -> Result<(), Refused> {
        if len == 0 && self.rules.empty_is_nothing { self.nothing("an empty string") } else { self.leaf() }
    }

    fn float(&mut self, number: f64) -> Result<(), Refused> {
        if self.rules.refuses_non_finite && !number.is_finite() {
            return Err(ser::Error::custom(format!("{} cannot represent the number {number}", self.rules.format)));
        }
        self.leaf()
    }
}

macro_rules! leaves {
    ($($name:ident: $type:ty),*) => {
        $(fn $name(mut self, _: $type) -> Result<(), Refused> {
            self.leaf()
        })*
    };
}

impl<'f> ser::Serializer for Walk<'f> {
    type Ok = ();
    type Error = Refused;
    type SerializeSeq = Parts<'f>;
    type SerializeTuple = Parts<'f>;
    type SerializeTupleStruct = Parts<'f>;
    type SerializeTupleVariant = Parts<'f>;
    type SerializeMap = Parts<'f>;
    type SerializeStruct = Parts<'f>;
    type SerializeStructVariant = Parts<'f>;

    leaves!(serialize_bool: bool, serialize_char: char, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32,
        serialize_i64: i64, serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32,
        serialize_u64: u64, serialize_u128: u128);

    fn serialize_f32(mut self, number: f32) -> Result<(), Refused> {
        self.float(f64::from(number))
    }

    fn serialize_f64(mut self, number: f64) -> Result<(), Refused> {
        self.float(number)
    }

    fn serialize_str(mut self, text: &str) -> Result<(), Refused> {
        self.text(text.len())
    }

    fn serialize_bytes(mut self, bytes: &[u8]) -> Result<(), Refused> {
        self.text(bytes.len())
    }

    fn serialize_none(mut self) -> Result<(), Refused> {
        self.nothing("`None`")
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Refused> {
        value.serialize(Walk { is_in_some: true, ..self })
    }

    fn serialize_unit(mut self) -> Result<(), Refused> {
        self.nothing("`()`")
    }

    fn serialize_unit_struct(mut self, name: &'static str) -> Result<(), Refused> {
        self.nothing(&format!("`{name}`"))
    }

    fn serialize_unit_variant(mut self, _: &'static str, _: u32, _: &'static str) -> Result<(), Refused> {
        self.leaf()
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Refused> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        mut self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Refused> {
        value.serialize(self.inner()).map_err(|refused| refused.within(variant))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Parts<'f>, Refused> {
        Ok(Parts { walk: self, count: 0, key: None })
    }

    fn serialize_tuple(self, len: usize) -> Result<Parts<'f>, Refused> {
        self.serialize_seq(Some(len))
    }

    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<Parts<'f>, Refused> {
        self.serialize_seq(Some(len))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        len: usize,
    ) -> Result<Parts<'f>, Refused> {
        self.serialize_seq(Some(len))
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Parts<'f>, Refused> {
        self.serialize_seq(len)
    }

    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Parts<'f>, Refused> {
        self.serialize_seq(Some(len))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        len: usize,
    ) -> Result<Parts<'f>, Refused> {
        self.serialize_seq(Some(len))
    }
}

/// A value with parts, such as a sequence, a map or a struct.
struct Parts<'f> {
    walk: Walk<'f>,
    count: usize,
    /// The key of the current map entry.
    key: Option<String>,
}

impl Parts<'_> {
    fn item<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        let index = self.count;
        self.count += 1;
        value.serialize(self.walk.inner()).map_err(|refused| refused.within(index))
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Refused> {
        value.serialize(self.walk.inner()).map_err(|refused| refused.within(name))
    }
}

macro_rules! items {
    ($($of:ident: $add:ident),*) => {
        $(impl $of for Parts<'_> {
            type Ok = ();
            type Error = Refused;

            fn $add<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
                self.item(value)
            }

            fn end(self) -> Result<(), Refused> {
                Ok(())
            }
        })*
    };
}

items!(SerializeSeq: serialize_element, SerializeTuple: serialize_element, SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field);

macro_rules! fields {
    ($($of:ident),*) => {
        $(impl $of for Parts<'_> {
            type Ok = ();
            type Error = Refused;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Refused> {
                self.field(name, value)
            }

            fn end(self) -> Result<(), Refused> {
                Ok(())
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = Refused;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refused> {
        // The writer decides which keys are allowed; here the key is only shown in messages.
        self.key = serde_json::to_string(key).ok();
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refused> {
        let key = self.key.take();
        value.serialize(self.walk.inner()).map_err(|refused| refused.within(key.unwrap_or_default()))
    }

    fn end(self) -> Result<(), Refused> {
        Ok(())
    }
}
