//! Checks that a payload matches its schema before it is decoded. The library takes a payload that
//! ends early for one with empty fields at its end, follows nesting until the stack overflows, and
//! allocates memory for as many items as a payload claims to have. Here each of these is an error
//! that says where.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::{DecimalSchema, InnerDecimalSchema, Name, UuidSchema};

/// How many levels deep values may be nested; a union and a reference to a named schema count as
/// levels too. The library takes 33 kB of stack for each level when it is compiled with little
/// optimisation, and a thread has 2 MB. To resolve a union into another schema, it resolves
/// everything inside the union twice.
const DEPTH_MAX: usize = 40;
/// How many values that take no bytes a payload may have; without a bound it could claim any
/// number.
const EMPTY_MAX: usize = 1 << 16;

/// Checks a whole payload.
pub(super) fn check(schema: &Schema, names: &HashMap<Name, &Schema>, payload: &[u8]) -> Result<(), String> {
    let mut walk = Walk { names, rest: payload, depth: 0, empty: 0 };
    let walked = walk.value(schema).and_then(|()| match walk.rest.len() {
        0 => Ok(()),
        more => Err(Wrong::new(format!("{more} bytes follow the end of the value"))),
    });
    walked.map_err(|wrong| {
        let place = payload.len() - walk.rest.len();
        let field = wrong.fields.iter().rev().copied().collect::<Vec<_>>().join(".");
        let field = if field.is_empty() { field } else { format!(" in field `{field}`") };
        format!("it does not match its schema: {}, at byte {place} of {}{field}", wrong.what, payload.len())
    })
}

struct Walk<'s, 'p> {
    names: &'s HashMap<Name, &'s Schema>,
    rest: &'p [u8],
    depth: usize,
    empty: usize,
}

/// What is wrong, and the path of its field, innermost part first.
struct Wrong<'s> {
    what: String,
    fields: Vec<&'s str>,
}

impl<'s> Wrong<'s> {
    fn new(what: impl Into<String>) -> Wrong<'s> {
        Wrong { what: what.into(), fields: Vec::new() }
    }
}

impl<'s> Walk<'s, '_> {
    fn value(&mut self, schema: &'s Schema) -> Result<(), Wrong<'s>> {
        if self.depth == DEPTH_MAX {
            return Err(Wrong::new(format!("it is nested more than {DEPTH_MAX} levels deep")));
        }
        self.depth += 1;
        self.inside(schema)?;
        self.depth -= 1;
        Ok(())
    }

    fn inside(&mut self, schema: &'s Schema) -> Result<(), Wrong<'s>> {
        match schema {
            Schema::Null => self.nothing(),
            Schema::Boolean => match self.take(1)? {
                [0 | 1] => Ok(()),
                other => Err(Wrong::new(format!("{other:?} is not a boolean"))),
            },
            Schema::Int | Schema::Date | Schema::TimeMillis => self.int().map(drop),
            Schema::Long
            | Schema::TimeMicros
            | Schema::TimestampMillis
            | Schema::TimestampMicros
            | Schema::TimestampNanos
            | Schema::LocalTimestampMillis
            | Schema::LocalTimestampMicros
            | Schema::LocalTimestampNanos => self.long().map(drop),
            Schema::Float => self.take(4).map(drop),
            Schema::Double => self.take(8).map(drop),
            Schema::Bytes
            | Schema::String
            | Schema::BigDecimal
            | Schema::Uuid(UuidSchema::String | UuidSchema::Bytes)
            | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Bytes, .. }) => self.bytes(),
            Schema::Fixed(fixed)
            | Schema::Duration(fixed)
            | Schema::Uuid(UuidSchema::Fixed(fixed))
            | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Fixed(fixed), .. }) => match fixed.size {
                0 => self.nothing(),
                size => self.take(size).map(drop),
            },
            Schema::Enum(symbols) => self.index(symbols.symbols.len(), "symbol").map(drop),
            Schema::Union(union) => {
                let variants = union.variants();
                match &variants[self.index(variants.len(), "branch")?] {
                    // The index of the branch took a byte.
                    Schema::Null => Ok(()),
                    variant => self.value(variant),
                }
            }
            Schema::Record(record) if record.fields.is_empty() => self.nothing(),
            Schema::Record(record) => record.fields.iter().try_for_each(|field| {
                self.value(&field.schema).map_err(|mut wrong| {
                    wrong.fields.push(&field.name);
                    wrong
                })
            }),
            Schema::Array(array) => self.blocks(|walk| walk.value(&array.items)),
            Schema::Map(map) => self.blocks(|walk| {
                walk.bytes()?;
                walk.value(&map.types)
            }),
            Schema::Ref { name } => {
                let schema = self.names.get(name).copied();
                self.value(schema.ok_or_else(|| Wrong::new(format!("its schema does not define `{name}`")))?)
            }
        }
    }

    /// The items of an array or a map: blocks that begin with a count, up to an empty one.
    fn blocks(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), Wrong<'s>>) -> Result<(), Wrong<'s>> {
        loop {
            let count = self.long()?;
            if count < 0 {
                // A negative count is followed by the length of the block, for readers that skip
                // it.
                self.long()?;
            }
            if count == i64::MIN {
                return Err(Wrong::new("the item count of a block is out of range"));
            }
            if count == 0 {
                return Ok(());
            }
            (0..count.unsigned_abs()).try_for_each(|_| item(self))?;
        }
    }

    fn nothing(&mut self) -> Result<(), Wrong<'s>> {
        self.empty += 1;
        if self.empty > EMPTY_MAX {
            return Err(Wrong::new(format!("it has more than {EMPTY_MAX} values that take no bytes")));
        }
        Ok(())
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Wrong<'s>> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(Wrong::new(format!("{count} more bytes are needed and {} are left", self.rest.len())));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn bytes(&mut self) -> Result<(), Wrong<'s>> {
        let length = self.long()?;
        let length = usize::try_from(length).map_err(|_| Wrong::new(format!("{length} is not a valid length")))?;
        self.take(length).map(drop)
    }

    /// Reads an index and checks that it is below `count`.
    fn index(&mut self, count: usize, what: &str) -> Result<usize, Wrong<'s>> {
        let index = self.int()?;
        usize::try_from(index)
            .ok()
            .filter(|index| *index < count)
            .ok_or_else(|| Wrong::new(format!("{what} index {index} is out of range, there are {count}")))
    }

    fn int(&mut self) -> Result<i32, Wrong<'s>> {
        let long = self.long()?;
        i32::try_from(long).map_err(|_| Wrong::new(format!("{long} is not an int")))
    }

    /// A zigzag number of at most ten bytes.
    fn long(&mut self) -> Result<i64, Wrong<'s>> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((number >> 1) as i64 ^ -((number & 1) as i64));
            }
        }
        Err(Wrong::new("a number is longer than ten bytes"))
    }
}
