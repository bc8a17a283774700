//! The shape of a type as text, for the error that refuses it: much as Rust would write it.

use std::fmt::Write;

use serde_reflection::{ContainerFormat, Format, Named, VariantFormat};

/// A type, such as `Option<str>`.
fn of(format: &Format) -> String {
    match format {
        Format::Variable(_) => "?".to_owned(),
        Format::TypeName(name) => name.clone(),
        Format::Unit => "()".to_owned(),
        Format::Bool => "bool".to_owned(),
        Format::I8 => "i8".to_owned(),
        Format::I16 => "i16".to_owned(),
        Format::I32 => "i32".to_owned(),
        Format::I64 => "i64".to_owned(),
        Format::I128 => "i128".to_owned(),
        Format::U8 => "u8".to_owned(),
        Format::U16 => "u16".to_owned(),
        Format::U32 => "u32".to_owned(),
        Format::U64 => "u64".to_owned(),
        Format::U128 => "u128".to_owned(),
        Format::F32 => "f32".to_owned(),
        Format::F64 => "f64".to_owned(),
        Format::Char => "char".to_owned(),
        Format::Str => "str".to_owned(),
        Format::Bytes => "bytes".to_owned(),
        Format::Option(value) => format!("Option<{}>", of(value)),
        Format::Seq(value) => format!("[{}]", of(value)),
        Format::Map { key, value } => format!("map of {} to {}", of(key), of(value)),
        Format::Tuple(values) => format!("({})", list(values, of)),
        Format::TupleArray { content, size } => format!("[{}; {size}]", of(content)),
    }
}

/// What a named type consists of.
fn content(container: &ContainerFormat) -> String {
    match container {
        ContainerFormat::UnitStruct => "()".to_owned(),
        ContainerFormat::NewTypeStruct(value) => format!("({})", of(value)),
        ContainerFormat::TupleStruct(values) => format!("({})", list(values, of)),
        ContainerFormat::Struct(fields) => format!("{{ {} }}", list(fields, field)),
        ContainerFormat::Enum(variants) => {
            let variants: Vec<_> = variants.values().collect();
            list(&variants, |variant| format!("{}{}", variant.name, variant_content(&variant.value)))
        }
    }
}

fn variant_content(variant: &VariantFormat) -> String {
    match variant {
        VariantFormat::Variable(_) | VariantFormat::Unit => String::new(),
        VariantFormat::NewType(value) => format!("({})", of(value)),
        VariantFormat::Tuple(values) => format!("({})", list(values, of)),
        VariantFormat::Struct(fields) => format!(" {{ {} }}", list(fields, field)),
    }
}

fn field(Named { name, value }: &Named<Format>) -> String {
    format!("{name}: {}", of(value))
}

fn list<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
    values.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// A type, and what the named types in it consist of.
pub(super) fn text((format, registry): &super::describe::Shape) -> String {
    let mut text = of(format);
    for (index, (name, container)) in registry.iter().enumerate() {
        let separator = if index == 0 { " where" } else { ";" };
        write!(text, "{separator} {name} is {}", content(container)).expect("a string has room");
    }
    text
}
