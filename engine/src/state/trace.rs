//! Finds out what a type looks like to serde: lets its `Deserialize` ask, and notes what it asks
//! for. One look shows one variant of an enum at a time, so there are as many looks as it takes to
//! see all of them.
//!
//! What contains itself is entered twice at most: the second time, options, sequences and maps in
//! it are empty, and enums are a variant that has come to an end before. (The tracer of
//! `serde_reflection` sees only the first variant of an enum behind an option or a sequence in a
//! struct, and overflows the stack where the first variant of an enum contains the enum.)

use std::collections::{BTreeMap, BTreeSet};

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde_reflection::{ContainerFormat, Error, Format, FormatHolder, Named, Registry, Result, VariantFormat};

use super::describe::Shape;

/// A type is looked at so often at most.
const LOOKS_MAX: usize = 1000;
/// Types that are nested more deeply are not looked at: the stack has an end.
const DEPTH_MAX: usize = 100;

/// The shape of a type; `None` when its `Deserialize` refuses the values that it is shown, or asks
/// for what postcard does not have.
pub(super) fn shape<T: DeserializeOwned>() -> Option<Shape> {
    let mut trace = Trace::default();
    let mut failures = 0;
    for _ in 0..LOOKS_MAX {
        let mut format = Format::unknown();
        match T::deserialize(Look { trace: &mut trace, format: &mut format }) {
            Ok(_) if !trace.is_more_to_see => return trace.into_shape(format).ok(),
            Ok(_) => failures = 0,
            // It may be that another variant leads to an end.
            Err(_) => failures += 1,
        }
        if failures > trace.enums.values().map(|seen| seen.tried.len()).sum::<usize>() {
            return None;
        }
        trace.begin_look();
    }
    None
}

/// What was seen so far.
#[derive(Default)]
struct Trace {
    registry: Registry,
    enums: BTreeMap<String, Seen>,
    /// Types of which everything was seen.
    done: BTreeSet<String>,
    /// The types that this look is in.
    path: Vec<String>,
    /// How many of them it is in for the second time.
    again: usize,
    /// Whether an enum that this look has met has variants that are not done.
    is_more_to_see: bool,
}

/// What was seen of an enum.
struct Seen {
    /// How often each variant was tried, and whether everything in it was seen.
    tried: Vec<(usize, bool)>,
    /// The variants that this look is in.
    open: Vec<usize>,
    /// The variant that came to an end first. So it does not contain one that has not.
    ends: Option<usize>,
}

impl Trace {
    fn begin_look(&mut self) {
        self.path.clear();
        self.again = 0;
        self.is_more_to_see = false;
        self.enums.values_mut().for_each(|seen| seen.open.clear());
    }

    fn into_shape(mut self, mut format: Format) -> Result<Shape> {
        format.normalize()?;
        self.registry.values_mut().try_for_each(FormatHolder::normalize)?;
        Ok((format, self.registry))
    }

    /// Adds what is seen of a named type, and enters it.
    fn enter(&mut self, name: &str, format: ContainerFormat) -> Result<()> {
        match self.registry.get_mut(name) {
            None => drop(self.registry.insert(name.to_owned(), format)),
            Some(known) => known.unify(format)?,
        }
        if self.path.len() == DEPTH_MAX {
            return Err(Error::NotSupported("types that are nested so deeply"));
        }
        self.again += usize::from(self.is_on_path(name));
        self.path.push(name.to_owned());
        Ok(())
    }

    fn leave(&mut self) {
        let name = self.path.pop().expect("it was entered");
        self.again -= usize::from(self.is_on_path(&name));
    }

    fn is_on_path(&self, name: &str) -> bool {
        self.path.iter().any(|open| open == name)
    }

    /// Looks into a type that is not an enum.
    fn inside<V>(
        &mut self,
        name: &str,
        format: ContainerFormat,
        look: impl FnOnce(&mut Trace) -> Result<V>,
    ) -> Result<V> {
        self.enter(name, format)?;
        let was_more = std::mem::take(&mut self.is_more_to_see);
        let value = look(self)?;
        if self.again == 0 && !self.is_more_to_see {
            self.done.insert(name.to_owned());
        }
        self.is_more_to_see |= was_more;
        self.leave();
        Ok(value)
    }

    /// Looks into a variant of an enum.
    fn inside_variant<V>(
        &mut self,
        name: &str,
        variants: &[&str],
        look: impl FnOnce(VariantLook<'_>) -> Result<V>,
    ) -> Result<V> {
        self.enter(name, ContainerFormat::Enum(BTreeMap::new()))?;
        let new = || Seen { tried: vec![(0, false); variants.len()], open: Vec::new(), ends: None };
        let seen = self.enums.entry(name.to_owned()).or_insert_with(new);
        let index = seen.choose(self.again).ok_or(Error::NotSupported("a type without end"))?;
        let variant_name = variants.get(index).ok_or(Error::NotSupported("two enums of one name"))?;
        seen.tried[index].0 += 1;
        seen.open.push(index);
        let Some(ContainerFormat::Enum(known)) = self.registry.get_mut(name) else {
            return Err(Error::NotSupported("an enum and another type of one name"));
        };
        let named = || Named { name: (*variant_name).to_owned(), value: VariantFormat::unknown() };
        // What becomes known of the one is known of the other.
        let mut format = known.entry(index as u32).or_insert_with(named).value.clone();
        let was_more = std::mem::take(&mut self.is_more_to_see);
        let value = look(VariantLook { trace: self, index: index as u32, format: &mut format })?;
        let seen = self.enums.get_mut(name).expect("it was added above");
        seen.open.pop();
        seen.ends.get_or_insert(index);
        if self.again == 0 {
            seen.tried[index].1 |= !self.is_more_to_see;
            self.is_more_to_see = !seen.tried.iter().all(|(_, is_done)| *is_done);
            if !self.is_more_to_see {
                self.done.insert(name.to_owned());
            }
        }
        self.is_more_to_see |= was_more;
        self.leave();
        Ok(value)
    }

    /// Whether to look into an option, a sequence or a map of this.
    fn looks_into(&self, content: &Format) -> bool {
        let mut is_done = |format: &mut Format| match format {
            Format::TypeName(name) if !self.done.contains(name) => Err(Error::UnknownFormat),
            _ => Ok(()),
        };
        self.again == 0 && content.clone().visit_mut(&mut is_done).is_err()
    }
}

impl Seen {
    /// The variant to look at. Where the look is in a type for the second time, one that ends.
    fn choose(&self, again: usize) -> Option<usize> {
        let is_in_question = |index: &usize| !self.tried[*index].1 && !self.open.contains(index);
        let untried = (0..self.tried.len()).filter(is_in_question).min_by_key(|index| self.tried[*index].0);
        if again == 0 { untried.or(self.ends) } else { self.ends.or(untried) }
    }
}

/// Shows a value to a `Deserialize`, and notes its format.
struct Look<'t> {
    trace: &'t mut Trace,
    format: &'t mut Format,
}

impl Look<'_> {
    /// What is seen has no parts.
    fn is(self, format: Format) -> Result<()> {
        self.format.unify(format)
    }
}

fn unnamed(count: usize) -> Vec<Format> {
    (0..count).map(|_| Format::unknown()).collect()
}

fn named(names: &[&str]) -> Vec<Named<Format>> {
    names.iter().map(|name| Named { name: (*name).to_owned(), value: Format::unknown() }).collect()
}

impl<'de> Deserializer<'de> for Look<'_> {
    type Error = Error;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value> {
        Err(Error::NotSupported("a type that asks what there is"))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value> {
        Err(Error::NotSupported("a type that asks for a name"))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value> {
        Err(Error::NotSupported("a type that ignores what there is"))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::Bool)?;
        visitor.visit_bool(false)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::I8)?;
        visitor.visit_i8(0)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::I16)?;
        visitor.visit_i16(0)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::I32)?;
        visitor.visit_i32(0)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::I64)?;
        visitor.visit_i64(0)
    }

    fn deserialize_i128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::I128)?;
        visitor.visit_i128(0)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::U8)?;
        visitor.visit_u8(0)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::U16)?;
        visitor.visit_u16(0)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::U32)?;
        visitor.visit_u32(0)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::U64)?;
        visitor.visit_u64(0)
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::U128)?;
        visitor.visit_u128(0)
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::F32)?;
        visitor.visit_f32(0.0)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::F64)?;
        visitor.visit_f64(0.0)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::Char)?;
        visitor.visit_char('A')
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::Str)?;
        visitor.visit_borrowed_str("")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::Bytes)?;
        visitor.visit_borrowed_bytes(b"")
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.is(Format::Unit)?;
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let mut content = Format::unknown();
        self.format.unify(Format::Option(Box::new(content.clone())))?;
        if self.trace.looks_into(&content) {
            visitor.visit_some(Look { trace: self.trace, format: &mut content })
        } else {
            visitor.visit_none()
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let mut content = [Format::unknown()];
        self.format.unify(Format::Seq(Box::new(content[0].clone())))?;
        let count = usize::from(self.trace.looks_into(&content[0]));
        visitor.visit_seq(Each { trace: self.trace, formats: content[..count].iter_mut() })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let mut content = unnamed(2);
        let [key, value] = [&content[0], &content[1]].map(|format| Box::new(format.clone()));
        self.format.unify(Format::Map { key, value })?;
        let is_one = content.iter().any(|format| self.trace.looks_into(format));
        let count = if is_one { 2 } else { 0 };
        visitor.visit_map(Each { trace: self.trace, formats: content[..count].iter_mut() })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value> {
        let mut formats = unnamed(len);
        self.format.unify(Format::Tuple(formats.clone()))?;
        visitor.visit_seq(Each { trace: self.trace, formats: formats.iter_mut() })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value> {
        self.format.unify(Format::TypeName(name.to_owned()))?;
        self.trace.inside(name, ContainerFormat::UnitStruct, |_| visitor.visit_unit())
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value> {
        self.format.unify(Format::TypeName(name.to_owned()))?;
        let mut content = Format::unknown();
        let format = ContainerFormat::NewTypeStruct(Box::new(content.clone()));
        let look = |trace: &mut Trace| visitor.visit_newtype_struct(Look { trace, format: &mut content });
        self.trace.inside(name, format, look)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, name: &'static str, len: usize, visitor: V) -> Result<V::Value> {
        self.format.unify(Format::TypeName(name.to_owned()))?;
        let mut formats = unnamed(len);
        let format = ContainerFormat::TupleStruct(formats.clone());
        self.trace.inside(name, format, |trace| visitor.visit_seq(Each { trace, formats: formats.iter_mut() }))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.format.unify(Format::TypeName(name.to_owned()))?;
        let mut fields = named(fields);
        let format = ContainerFormat::Struct(fields.clone());
        let formats = fields.iter_mut().map(|field| &mut field.value);
        self.trace.inside(name, format, |trace| visitor.visit_seq(Each { trace, formats }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.format.unify(Format::TypeName(name.to_owned()))?;
        self.trace.inside_variant(name, variants, |look| visitor.visit_enum(look))
    }
}

/// Shows a value for each of these formats.
struct Each<'t, F> {
    trace: &'t mut Trace,
    formats: F,
}

impl<'de, 'f, F: ExactSizeIterator<Item = &'f mut Format>> SeqAccess<'de> for Each<'_, F> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        let Some(format) = self.formats.next() else { return Ok(None) };
        seed.deserialize(Look { trace: self.trace, format }).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.formats.len())
    }
}

impl<'de, 'f, F: ExactSizeIterator<Item = &'f mut Format>> MapAccess<'de> for Each<'_, F> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        self.next_element_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        self.next_element_seed(seed)?.ok_or_else(|| de::Error::custom("a value before its key"))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.formats.len() / 2)
    }
}

/// Shows a variant.
struct VariantLook<'t> {
    trace: &'t mut Trace,
    index: u32,
    format: &'t mut VariantFormat,
}

impl<'de> EnumAccess<'de> for VariantLook<'_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self)> {
        let index: de::value::U32Deserializer<Error> = self.index.into_deserializer();
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> VariantAccess<'de> for VariantLook<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<()> {
        self.format.unify(VariantFormat::Unit)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value> {
        let mut content = Format::unknown();
        self.format.unify(VariantFormat::NewType(Box::new(content.clone())))?;
        seed.deserialize(Look { trace: self.trace, format: &mut content })
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value> {
        let mut formats = unnamed(len);
        self.format.unify(VariantFormat::Tuple(formats.clone()))?;
        visitor.visit_seq(Each { trace: self.trace, formats: formats.iter_mut() })
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value> {
        let mut fields = named(fields);
        self.format.unify(VariantFormat::Struct(fields.clone()))?;
        let formats = fields.iter_mut().map(|field| &mut field.value);
        visitor.visit_seq(Each { trace: self.trace, formats })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    /// Every named type of a shape, with its fields or variants, in one line each.
    fn seen<T: DeserializeOwned>() -> Vec<String> {
        let (_, registry) = shape::<T>().expect("it can be looked at");
        let line = |(name, format): (&String, &ContainerFormat)| match format {
            ContainerFormat::Enum(variants) => {
                let variants: Vec<&str> = variants.values().map(|variant| variant.name.as_str()).collect();
                format!("{name}: {}", variants.join(" | "))
            }
            ContainerFormat::Struct(fields) => {
                let fields: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
                format!("{name} {{ {} }}", fields.join(", "))
            }
            _ => name.clone(),
        };
        registry.iter().map(line).collect()
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    enum Status {
        New,
        Paid { cents: u64 },
        Sent(Option<Carrier>, u8),
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    enum Carrier {
        Ship,
        Plane(Id),
        Other(String),
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Id(u32);

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Order {
        lines: Vec<Line>,
        by_day: BTreeMap<u32, Vec<Status>>,
        takes: Duration,
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Line {
        before: Option<Status>,
    }

    /// A type is refused because of any of them.
    #[test]
    fn all_variants_are_seen_wherever_an_enum_is() {
        let all = ["Carrier: Ship | Plane | Other", "Duration { secs, nanos }", "Id", "Line { before }"];
        let more = ["Order { lines, by_day, takes }", "Status: New | Paid | Sent"];
        assert_eq!(seen::<Order>(), [&all[..], &more[..]].concat());
        assert_eq!(seen::<Vec<Option<Status>>>(), [all[0], all[2], more[1]]);
        assert_eq!(seen::<(u8, [Carrier; 2])>(), [all[0], all[2]]);
        let (format, registry) = shape::<Option<Carrier>>().unwrap();
        assert_eq!(format, Format::Option(Box::new(Format::TypeName("Carrier".to_owned()))));
        assert_eq!(registry["Id"], ContainerFormat::NewTypeStruct(Box::new(Format::U32)));
        let ContainerFormat::Enum(variants) = &registry["Carrier"] else { panic!("it is an enum") };
        assert_eq!(variants[&0].value, VariantFormat::Unit);
        assert_eq!(variants[&1].value, VariantFormat::NewType(Box::new(Format::TypeName("Id".to_owned()))));
        assert_eq!(variants[&2].value, VariantFormat::NewType(Box::new(Format::Str)));
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    enum Term {
        Sum(Box<Term>, Box<Term>),
        Call(Box<Function>),
        Number(i64),
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Function {
        name: Option<Name>,
        body: Vec<Term>,
        then: Box<Step>,
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    enum Step {
        Again(Box<Step>),
        Jump(Box<Term>),
        End,
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    enum Name {
        Short(char),
        Long(String),
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Tree {
        left: Option<Box<Tree>>,
        right: Option<Box<Tree>>,
        name: Option<Name>,
    }

    #[derive(Deserialize)]
    #[allow(dead_code)]
    struct Endless(Box<Endless>);

    #[derive(Deserialize)]
    #[allow(dead_code)]
    enum Forever {
        Again(Box<Forever>),
    }

    #[test]
    fn a_type_that_contains_itself_is_seen_and_has_an_end() {
        let names = ["Name: Short | Long", "Step: Again | Jump | End", "Term: Sum | Call | Number"];
        assert_eq!(seen::<Term>(), [&["Function { name, body, then }"][..], &names].concat());
        assert_eq!(seen::<Option<Step>>(), [&["Function { name, body, then }"][..], &names].concat());
        assert_eq!(seen::<Tree>(), [names[0], "Tree { left, right, name }"]);
        assert_eq!(shape::<Endless>(), None);
        assert_eq!(shape::<Forever>(), None);
    }

    mod other {
        #[derive(serde::Deserialize)]
        #[allow(dead_code)]
        pub(super) struct Id(u64);
    }

    #[test]
    fn two_types_of_one_name_are_not_mixed_up() {
        assert!(shape::<(Id, Id)>().is_some());
        assert_eq!(shape::<(Id, other::Id)>(), None);
    }

    /// Each of them names all others: to go every way through them would take for ever.
    #[test]
    fn types_that_contain_each_other_are_seen_at_once() {
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct All(Option<A>);
        type Rest = (Option<Box<A>>, Option<Box<B>>, Option<Box<C>>, Option<Box<D>>, Option<Box<E>>, Option<Box<F>>);
        type More = (Option<Box<G>>, Option<Box<H>>, Option<Box<I>>, Option<Box<J>>, Vec<K>, Vec<L>);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct A(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct B(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct C(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct D(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct E(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct F(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct G(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct H(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct I(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct J(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct K(Rest, More);
        #[derive(Deserialize)]
        #[allow(dead_code)]
        struct L(Rest, More);
        assert_eq!(seen::<All>().len(), 13);
    }
}
