//! Avro, typed by serde, with a schema registry or without.
//!
//! Each payload is checked against its writer's schema before it is decoded (`check`): that it ends
//! where it should, holds what it claims, and is not nested too deeply. `schema` holds parsed
//! schemas, ready to read and write with.
//!
//! # Compared with Confluent's serializers
//!
//! A sink registers its schema under `<topic>-value`, as `KafkaAvroSerializer` does, but when the
//! job starts instead of with the first record. The schema is stated ([`Avro::schema`]), never
//! derived, and must not reference schemas of other subjects. A source follows the references of
//! its writers' schemas. Ids are in the payload, not in headers. Payloads of the schema `"bytes"`
//! have no length before the bytes, as with Confluent.
//!
//! Values may be nested 40 levels deep. A union and a reference to a named schema count as levels
//! too, so a recursive schema reaches about a dozen levels of its own. Deeper values would overflow
//! the stack of the decoding library.
//!
//! # Types
//!
//! Records are read by the names of their fields; the name of the record does not matter. `i32` is
//! an `int` and `i64` a `long`. Avro has no unsigned `long`, so a `u64` can be read from a `long`
//! but not written as one. `Option` is a union with `null`.

mod check;
mod schema;

use std::fmt;
use std::marker::PhantomData;

use millstream::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::registry::{Known, Language, Registry, Subject, put_header, split};
use super::{Cause, Decode, Encode, Payload, memory, tombstone};
use schema::{Parsed, Reading, parse};

/// Values as Avro, after the id of their schema in a schema registry.
///
/// A source reads each record with the schema it was written with, resolves it into
/// [`schema`](Avro::schema) if that is set, and converts it to a `T`. A sink writes with
/// [`schema`](Avro::schema).
///
/// ```no_run
/// use millstream::Job;
/// use millstream_connectors::{Avro, Kafka, Registry};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize, Serialize)]
/// struct Order { customer: i64, cents: i64 }
///
/// const ORDER: &str = r#"{"type": "record", "name": "Order", "namespace": "shop", "fields": [
///     {"name": "customer", "type": "long"}, {"name": "cents", "type": "long", "default": 0}]}"#;
///
/// let (kafka, registry) = (Kafka::new("localhost:9092"), Registry::new("http://localhost:8081"));
/// let orders = Avro::<Order>::new(&registry).schema(ORDER)?;
/// Job::new("large orders", move |flow| {
///     flow.source(kafka.topic("orders").format(orders.clone()))?
///         .or_stop()
///         .filter(|order| order.cents > 10_000)
///         .sink(kafka.topic("large-orders").format(orders.clone()))
/// })
/// .run()?;
/// # Ok::<(), millstream::Error>(())
/// ```
#[must_use = "a format does nothing until a source or a sink uses it"]
pub struct Avro<T> {
    registry: Registry,
    schema: Option<&'static Parsed>,
    subject: Subject,
    known: Known<Reading>,
    value: PhantomData<fn(T) -> T>,
}

impl<T> Avro<T> {
    /// Creates a format that uses the schemas of a registry.
    pub fn new(registry: &Registry) -> Avro<T> {
        Avro {
            registry: registry.clone(),
            schema: None,
            subject: Subject::default(),
            known: Known::default(),
            value: PhantomData,
        }
    }

    /// Values as Avro without a schema id before them; all of one schema.
    ///
    /// # Errors
    /// If it is not a valid Avro schema.
    pub fn bare(schema: &str) -> Result<BareAvro<T>> {
        let schema = said(schema)?;
        let reading = Reading::new(schema, None).map_err(not_a_schema)?;
        Ok(BareAvro { schema, reading, value: PhantomData })
    }

    /// The schema that a sink writes with, and that a source resolves its records into. When it
    /// resolves, a field that the writer did not have gets its default, and a field that only the
    /// writer had is dropped.
    ///
    /// # Errors
    /// If it is not a valid Avro schema.
    pub fn schema(self, schema: &str) -> Result<Avro<T>> {
        // The known readers resolve into another schema.
        Ok(Avro { schema: Some(said(schema)?), known: Known::default(), ..self })
    }

    /// The subject of a sink's schema; `<topic>-value` by default.
    pub fn subject(self, name: impl Into<String>) -> Avro<T> {
        Avro { subject: self.subject.named(name.into()), ..self }
    }

    /// Looks up a sink's schema instead of registering it. If the registry does not have the schema
    /// in its subject, the start fails.
    pub fn without_registering(self) -> Avro<T> {
        Avro { subject: self.subject.looked_up(), ..self }
    }
}

/// Parses a schema that the user has stated.
fn said(schema: &str) -> Result<&'static Parsed> {
    parse(schema, &[]).map_err(not_a_schema)
}

fn not_a_schema(cause: Cause) -> Error {
    Error::new(ErrorKind::Config, "cannot use the schema of an Avro format").caused_by(cause)
}

impl<T: DeserializeOwned + 'static> Decode for Avro<T> {
    type Value = T;

    fn open(&mut self) -> Result<()> {
        self.registry.open()
    }

    fn decode(&self, payload: Option<&[u8]>) -> Result<T, Cause> {
        let (id, body) = split(payload.ok_or_else(tombstone)?)?;
        let look_up = || {
            let registered = self.registry.schema(id, Language::Avro)?;
            Ok((self.registry.references(id, &registered)?, registered))
        };
        let reading = self.known.of(id, look_up, |(references, registered)| {
            Reading::new(parse(&registered.text, &references)?, self.schema)
        })?;
        if reading.writer.is_bytes() { reading.read_bytes(body) } else { reading.read(body) }
    }

    fn held(&self, payload: Option<&[u8]>, _: &T) -> millstream::ByteSize {
        millstream::ByteSize((payload.map_or(0, <[u8]>::len) * memory::BINARY_GROWS) as u64)
    }
}

impl<T: Serialize + 'static> Encode<T> for Avro<T> {
    fn open(&mut self, topic: Option<&str>) -> Result<()> {
        let Some(schema) = self.schema else {
            return Err(Error::new(ErrorKind::Config, "an Avro sink needs a `schema` to write with"));
        };
        self.subject.open(&self.registry, topic, Language::Avro, schema.text())
    }

    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        put_header(self.subject.id()?, payload);
        let schema = self.schema.ok_or("an Avro sink needs a `schema` to write with")?;
        let start = payload.len();
        schema.write(value, payload)?;
        if schema.is_bytes() {
            let length = payload[start..].iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
            payload.drain(start..start + length);
        }
        Ok(Payload::Present)
    }
}

impl<T> Clone for Avro<T> {
    fn clone(&self) -> Avro<T> {
        Avro {
            registry: self.registry.clone(),
            schema: self.schema,
            subject: self.subject.clone(),
            known: self.known.clone(),
            value: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Avro<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Avro by {:?}", self.registry)
    }
}

/// Values as Avro without a schema id before them; see [`Avro::bare`].
///
/// ```
/// use millstream_connectors::{Avro, Decode, Encode};
///
/// let numbers = Avro::<i64>::bare(r#""long""#)?;
/// let mut payload = Vec::new();
/// numbers.encode(&-3, &mut payload).expect("it is a long");
/// assert_eq!(payload, [5]);
/// assert_eq!(numbers.decode(Some(&payload)).expect("it is one"), -3);
/// # Ok::<(), millstream::Error>(())
/// ```
#[must_use = "a format does nothing until a source or a sink uses it"]
pub struct BareAvro<T> {
    schema: &'static Parsed,
    reading: Reading,
    value: PhantomData<fn(T) -> T>,
}

impl<T: DeserializeOwned + 'static> Decode for BareAvro<T> {
    type Value = T;

    fn decode(&self, payload: Option<&[u8]>) -> Result<T, Cause> {
        self.reading.read(payload.ok_or_else(tombstone)?)
    }

    fn held(&self, payload: Option<&[u8]>, _: &T) -> millstream::ByteSize {
        millstream::ByteSize((payload.map_or(0, <[u8]>::len) * memory::BINARY_GROWS) as u64)
    }
}

impl<T: Serialize + 'static> Encode<T> for BareAvro<T> {
    fn encode(&self, value: &T, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        self.schema.write(value, payload)?;
        Ok(Payload::Present)
    }
}

impl<T> Clone for BareAvro<T> {
    fn clone(&self) -> BareAvro<T> {
        BareAvro { schema: self.schema, reading: self.reading.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for BareAvro<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BareAvro")
    }
}
