//! Keys and states, as lines of JSON.

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::ops::Range;

use serde_json::Value;

use crate::state::describe::{Described, Shape};
use crate::state::inspect::{Difference, Whole};
use crate::state::manifest::Operator;
use crate::state::show::{base_16, value_of};

use super::{Done, StateFlags, note};

/// Which keys are asked for.
#[derive(Debug)]
pub(super) struct Wanted<'f> {
    key: Option<(&'f str, Option<Value>)>,
    prefix: Option<&'f str>,
}

impl<'f> Wanted<'f> {
    pub(super) fn of(flags: &'f StateFlags) -> Wanted<'f> {
        let key = flags.key.as_deref().map(|text| (text, serde_json::from_str(text).ok()));
        Wanted { key, prefix: flags.prefix.as_deref() }
    }

    fn has(&self, key: &Value) -> bool {
        let is_it = |(text, json): &(&str, Option<Value>)| key.as_str() == Some(*text) || json.as_ref() == Some(key);
        let begins = |prefix: &&str| match key {
            Value::String(text) => text.starts_with(*prefix),
            _ => key.to_string().starts_with(*prefix),
        };
        self.key.as_ref().is_none_or(is_it) && self.prefix.as_ref().is_none_or(begins)
    }
}

/// Lines of JSON, each with the number of its key, if that is one: they are in the order of their
/// keys once they are sorted.
#[derive(Debug, Default)]
struct Lines(Vec<(Option<i128>, String)>);

impl Lines {
    /// Adds a line of an object; `rest` is what follows its key.
    fn add(&mut self, key: &Value, rest: fmt::Arguments<'_>) {
        let number = key.as_i64().map(i128::from).or(key.as_u64().map(i128::from));
        self.0.push((number, format!("{{\"key\":{key},{rest}}}")));
    }

    fn write(mut self, out: &mut impl Write) -> Done {
        self.0.sort_unstable();
        Ok(self.0.iter().try_for_each(|(_, line)| writeln!(out, "{line}"))?)
    }
}

/// Shows the keys and states of an operator. What cannot be read by its type is shown as its bytes.
#[derive(Debug, Default)]
struct Shows {
    key: Option<Shape>,
    state: Option<Shape>,
    unlike: Cell<u64>,
}

impl Shows {
    fn of(Operator { name, types, .. }: &Operator) -> Shows {
        let shape = |described: &Described| {
            let shape = described.shape();
            if shape.is_none() {
                note(format_args!("note: the fields of `{described}` are not known: `{name}` is shown with its bytes"));
            }
            shape
        };
        Shows { key: shape(&types.key), state: shape(&types.state), unlike: Cell::new(0) }
    }

    fn key(&self, bytes: &[u8]) -> Value {
        self.value(self.key.as_ref(), bytes)
    }

    fn state(&self, bytes: &[u8]) -> Value {
        self.value(self.state.as_ref(), bytes)
    }

    fn value(&self, shape: Option<&Shape>, bytes: &[u8]) -> Value {
        let Some(shape) = shape else { return base_16(bytes) };
        value_of(shape, bytes).unwrap_or_else(|_| {
            self.unlike.set(self.unlike.get() + 1);
            base_16(bytes)
        })
    }

    fn say_unlike(&self) {
        let unlike = self.unlike.get();
        if unlike > 0 {
            note(format_args!("note: {unlike} keys or states do not fit their type, and are shown as their bytes"));
        }
    }
}

/// Prints the state of an operator.
pub(super) fn show(whole: &mut Whole, name: &str, wanted: &Wanted<'_>, out: &mut impl Write) -> Done {
    let shows = Shows::of(whole.operator(name)?);
    for groups in whole.parts(name) {
        let (state, mut lines) = (whole.state(name, &groups)?, Lines::default());
        for (key, state) in state.entries() {
            let key = shows.key(key);
            if wanted.has(&key) {
                lines.add(&key, format_args!("\"state\":{}", shows.state(state)));
            }
        }
        lines.write(out)?;
    }
    shows.say_unlike();
    Ok(())
}

/// Prints what has changed in the state of an operator.
pub(super) fn show_changes(
    before: &mut Whole,
    after: &mut Whole,
    name: &str,
    wanted: &Wanted<'_>,
    out: &mut impl Write,
) -> Done {
    match (before.operator(name), after.operator(name)) {
        (Err(_), Err(error)) => return Err(error.into()),
        (Ok(was), Ok(is)) if !was.types.are(&is.types) => {
            let [from, to] = [before.manifest.checkpoint, after.manifest.checkpoint];
            note(format_args!("note: `{name}` is {} in checkpoint {from}, and {} in {to}", was.types, is.types));
        }
        _ => {}
    }
    let [was, is] = [&before, &after].map(|whole| whole.operator(name).map(Shows::of).unwrap_or_default());
    for groups in parts(before, after, name) {
        let (state, later) = (before.state(name, &groups)?, after.state(name, &groups)?);
        let mut lines = Lines::default();
        for (key, difference) in state.compare(&later) {
            let key = if let Difference::Removed(_) = difference { was.key(key) } else { is.key(key) };
            if !wanted.has(&key) {
                continue;
            }
            match difference {
                Difference::Added(after) => {
                    lines.add(&key, format_args!("\"change\":\"added\",\"after\":{}", is.state(after)));
                }
                Difference::Removed(before) => {
                    lines.add(&key, format_args!("\"change\":\"removed\",\"before\":{}", was.state(before)));
                }
                Difference::Changed { before, after } => {
                    let (before, after) = (was.state(before), is.state(after));
                    let rest = format_args!("\"change\":\"changed\",\"before\":{before},\"after\":{after}");
                    lines.add(&key, rest);
                }
            }
        }
        lines.write(out)?;
    }
    was.say_unlike();
    is.say_unlike();
    Ok(())
}

/// The parts of the key groups in which both are compared.
pub(super) fn parts(before: &Whole, after: &Whole, operator: &str) -> Vec<Range<usize>> {
    let parts = [before, after].map(|whole| whole.parts(operator).collect::<Vec<_>>());
    parts.into_iter().max_by_key(Vec::len).unwrap_or_default()
}
