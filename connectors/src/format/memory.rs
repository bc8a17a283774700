//! How much memory decoded values hold besides their own size. Allocator overhead is not counted
//! here: the engine adds [`RECORD_OVERHEAD`](millstream::connector::RECORD_OVERHEAD) to each
//! record.

use std::any::Any;

use serde_json::Value;

/// Bytes for each value in an object or an array, besides its text: a slot in a vector, which may
/// have grown to twice the size it needs, or in a map.
const EACH: usize = 64;

/// How many times its size a payload of Avro or Protobuf grows to when decoded. Measured for Avro:
/// 0.9 times for a struct of text, 2.5 times for a list of 16-byte texts. Lists of very short
/// texts, or of numbers that take one byte encoded and eight decoded, grow by more than this.
/// Protobuf was never measured.
#[cfg(any(feature = "avro", feature = "protobuf"))]
pub(super) const BINARY_GROWS: usize = 4;

/// The memory of a value that was read from JSON: what it holds if it is a [`Value`], and otherwise
/// an estimate from its text.
///
/// Measured with a counting allocator (`tests/memory.rs`), as the ratio of this figure to the
/// memory held: 1.0 to 1.25 for `Value`, of which an object of one field takes 630 bytes; 1.3 to
/// 4.3 for vectors of text, numbers or structs; 1.0 for text; 8 for a struct of text, whose fields
/// need no slots of their own; 0.65 to 1.1 for maps of short text. A `Value` inside a struct is not
/// recognised and is underestimated; by how much was never measured.
pub(super) fn of_json(payload: &[u8], places: usize, value: &dyn Any) -> usize {
    value.downcast_ref().map_or(payload.len() + EACH * places, of_value)
}

/// The memory of a CSV row: its text, and a slot for each field.
pub(super) fn of_row(payload: &[u8], delimiter: u8) -> usize {
    payload.len() + EACH * (payload.iter().filter(|byte| **byte == delimiter).count() + 1)
}

fn of_value(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 0,
        #[cfg(feature = "exact-numbers")]
        Value::Number(number) => number.as_str().len(),
        #[cfg(not(feature = "exact-numbers"))]
        Value::Number(_) => 0,
        Value::String(text) => text.capacity(),
        Value::Array(items) => items.capacity() * size_of::<Value>() + items.iter().map(of_value).sum::<usize>(),
        Value::Object(fields) => {
            let inside = fields.iter().map(|(key, value)| key.capacity() + of_value(value));
            of_tree(fields.len(), size_of::<(String, Value)>()) + inside.sum::<usize>()
        }
    }
}

/// The memory of the nodes of a `BTreeMap`. A node has room for eleven entries, and holds about
/// seven when keys are inserted in order.
fn of_tree(entries: usize, entry: usize) -> usize {
    const NODE: usize = 11;
    const FILLED: usize = 7;
    let leaf = NODE * entry + 16;
    let inner = leaf + (NODE + 1) * size_of::<usize>();
    let mut nodes = if entries > NODE { entries.div_ceil(FILLED) } else { entries.min(1) };
    let mut held = nodes * leaf;
    while nodes > 1 {
        nodes = nodes.div_ceil(FILLED);
        held += nodes * inner;
    }
    held
}
