//! Schemas, parsed once, and the code that reads and writes with them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema::ResolvedSchema;
use apache_avro::types::Value;
use apache_avro::writer::datum::write_avro_datum_ref;
use apache_avro::{AvroResult, Schema, from_value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::check::check;
use crate::format::Cause;
use crate::format::strict::{self, Rules};
use crate::lock;

/// How many characters of a cause are kept: the library's causes may contain a whole schema.
const TOLD_MAX: usize = 500;

/// A schema with the names of all the schemas it references.
pub(super) struct Parsed {
    text: String,
    schema: &'static Schema,
    names: ResolvedSchema<'static>,
}

/// Parses a schema. Each schema is parsed once in a process and kept for the process's life,
/// because the library's readers borrow theirs. There are only as many as the topics have had, and
/// restarts add none.
pub(super) fn parse(text: &str, references: &[String]) -> Result<&'static Parsed, Cause> {
    static PARSED: Mutex<BTreeMap<(String, Vec<String>), &'static Parsed>> = Mutex::new(BTreeMap::new());
    let mut parsed = lock(&PARSED);
    let key = (text.to_owned(), references.to_vec());
    if let Some(parsed) = parsed.get(&key) {
        return Ok(parsed);
    }
    let (schema, references) = in_short(Schema::parse_str_with_list(text, references))?;
    let schema: &'static Schema = Box::leak(Box::new(schema));
    let references: &'static [Schema] = Box::leak(references.into_boxed_slice());
    let names = in_short(ResolvedSchema::new_with_schemata(references.iter().chain([schema]).collect()))?;
    let new: &'static Parsed = Box::leak(Box::new(Parsed { text: text.to_owned(), schema, names }));
    parsed.insert(key, new);
    Ok(new)
}

impl Parsed {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether the schema is just `"bytes"`.
    pub(super) fn is_bytes(&self) -> bool {
        matches!(self.schema, Schema::Bytes)
    }

    /// Appends a value.
    pub(super) fn write<T: Serialize>(&self, value: &T, payload: &mut Vec<u8>) -> Result<(), Cause> {
        // The library writes `Some(None)` as it writes `None`.
        strict::check(value, Rules { format: "Avro", refuses_non_finite: false, empty_is_nothing: false })?;
        in_short(write_avro_datum_ref(self.schema, self.names.get_names(), value, payload)).map(drop)
    }
}

/// Reads payloads written with one schema, and resolves them into another schema if there is one
/// that differs.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) writer: &'static Parsed,
    resolves_into: Option<&'static Parsed>,
    reader: Arc<GenericDatumReader<'static>>,
}

impl Reading {
    pub(super) fn new(writer: &'static Parsed, into: Option<&'static Parsed>) -> Result<Reading, Cause> {
        let into = into.filter(|into| into.schema != writer.schema);
        let reader = GenericDatumReader::builder(writer.schema)
            .resolved_writer_schemata(writer.names.clone())
            .maybe_reader_schema(into.map(|into| into.schema))
            .maybe_resolved_reader_schemata(into.map(|into| into.names.clone()))
            .build();
        Ok(Reading { writer, resolves_into: into, reader: Arc::new(in_short(reader)?) })
    }

    /// Decodes a whole payload.
    ///
    /// Goes through the library's values: its direct deserialiser does not resolve into another
    /// schema, and requires each struct to have the name of its record.
    pub(super) fn read<T: DeserializeOwned>(&self, mut payload: &[u8]) -> Result<T, Cause> {
        check(self.writer.schema, self.writer.names.get_names(), payload)?;
        let value = in_short(self.reader.read_value(&mut payload))?;
        in_short(from_value(&value))
    }

    /// Reads a value from bytes that have no length before them.
    pub(super) fn read_bytes<T: DeserializeOwned>(&self, payload: &[u8]) -> Result<T, Cause> {
        let mut value = Value::Bytes(payload.to_vec());
        if let Some(into) = self.resolves_into {
            value = in_short(value.resolve(into.schema))?;
        }
        in_short(from_value(&value))
    }
}

/// Converts an error of the library into a cause; keeps only the beginning of its message.
fn in_short<T>(result: AvroResult<T>) -> Result<T, Cause> {
    result.map_err(|cause| {
        let mut text = cause.to_string();
        if let Some((end, _)) = text.char_indices().nth(TOLD_MAX) {
            text.truncate(end);
            text.push_str("...");
        }
        text.into()
    })
}
