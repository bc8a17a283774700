//! A record as a row of a table, with its fields as columns in their own order.

use std::fmt;

use comfy_table::Table;
use millstream::{Error, ErrorKind, Result};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A record as JSON text and as fields.
#[derive(Clone, Debug)]
pub(super) struct Row {
    text: String,
    fields: Fields,
}

/// The fields of a record; one called `value` when it has none.
#[derive(Clone, Debug)]
struct Fields(Vec<(String, Value)>);

impl Row {
    pub(super) fn of<T: Serialize>(record: &T) -> Result<Row> {
        let cannot =
            |cause| Error::new(ErrorKind::Malformed, "cannot format the record as a table row").caused_by(cause);
        let text = serde_json::to_string(record).map_err(cannot)?;
        let fields = if text.starts_with('{') {
            serde_json::from_str(&text).map_err(cannot)?
        } else {
            Fields(vec![("value".to_owned(), serde_json::from_str(&text).map_err(cannot)?)])
        };
        Ok(Row { text, fields })
    }

    /// The record as JSON.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    fn cell(&self, column: &str) -> String {
        match self.fields.0.iter().find(|(name, _)| name == column) {
            Some((_, Value::String(text))) => text.clone(),
            Some((_, Value::Null)) | None => String::new(),
            Some((_, other)) => other.to_string(),
        }
    }
}

/// A table with a column for each field of the first row.
pub(super) fn table(rows: &[Row]) -> Table {
    table_of(rows, |cell| cell)
}

/// The same, with each cell passed through `written`.
pub(super) fn table_of(rows: &[Row], written: impl Fn(String) -> String) -> Table {
    let columns: Vec<&String> =
        rows.first().map_or_else(Vec::new, |row| row.fields.0.iter().map(|(name, _)| name).collect());
    let mut table = Table::new();
    table.set_header(columns.iter().map(|name| written((*name).clone())));
    for row in rows {
        table.add_row(columns.iter().map(|column| written(row.cell(column))));
    }
    table
}

/// A `serde_json` map may sort its fields; this keeps their order.
impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a record with fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}
