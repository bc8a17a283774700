//! Protocol Buffers, typed by prost, with a schema registry or without. `schema` finds the messages
//! in the text of a `.proto` file.
//!
//! # Compared with Confluent's serializers
//!
//! A sink registers its schema under `<topic>-value`, as `KafkaProtobufSerializer` does, but when
//! the job starts instead of with the first record. The schema is stated ([`Protobuf::schema`]),
//! never derived. It may import only the files that Google ships, because a registry needs the
//! subjects of all others. A source finds the message by its name in the schema that each record
//! was written with, so the messages of a file may have been reordered. Java clients count neither
//! maps nor groups among the messages of a file, other clients count both. Both ways are read;
//! Java's is written. Ids are in the payload, not in headers.
//!
//! Fields that `M` does not have are dropped, as in all Protobuf readers. Nothing in a payload
//! shows that it has too many bytes. In a field that is neither `optional` nor `repeated`, prost
//! treats -0.0 as 0.0 and does not write it.

mod schema;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use millstream::{Error, ErrorKind, Result};
use prost::Message;

use super::registry::{Known, Language, Path, Registry, Subject, path_of, put_header, put_path, split};
use super::{Cause, Decode, Encode, Payload, memory, tombstone};
use schema::File;

/// Messages after the id of their schema in a schema registry. `M` is a type that prost generates
/// or derives.
///
/// ```no_run
/// use millstream::Job;
/// use millstream_connectors::{Kafka, Protobuf, Registry};
///
/// #[derive(Clone, PartialEq, prost::Message)]
/// struct Order {
///     #[prost(int64, tag = "1")]
///     customer: i64,
///     #[prost(int64, tag = "2")]
///     cents: i64,
/// }
///
/// const ORDERS: &str = r#"syntax = "proto3"; package shop; message Order { int64 customer = 1; int64 cents = 2; }"#;
///
/// let (kafka, registry) = (Kafka::new("localhost:9092"), Registry::new("http://localhost:8081"));
/// let orders = Protobuf::<Order>::new(&registry).schema(ORDERS)?.message("Order");
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
pub struct Protobuf<M> {
    registry: Registry,
    schema: Option<Arc<File>>,
    message: Option<String>,
    /// The path that is written into payloads.
    path: Path,
    subject: Subject,
    /// For each schema, the paths that are accepted when reading.
    known: Known<[Path; 2]>,
    value: PhantomData<fn(M) -> M>,
}

impl<M> Protobuf<M> {
    /// Creates a format that uses the schemas of a registry.
    pub fn new(registry: &Registry) -> Protobuf<M> {
        Protobuf {
            registry: registry.clone(),
            schema: None,
            message: None,
            path: vec![0],
            subject: Subject::default(),
            known: Known::default(),
            value: PhantomData,
        }
    }

    /// Messages without a schema id before them.
    pub fn bare() -> BareProtobuf<M> {
        BareProtobuf(PhantomData)
    }

    /// The text of the `.proto` file that defines a sink's messages. A source does not need it.
    ///
    /// # Errors
    /// If the file cannot be parsed or has no message.
    pub fn schema(self, proto: &str) -> Result<Protobuf<M>> {
        let file = File::parse(proto).map_err(|cause| {
            Error::new(ErrorKind::Config, "cannot use the schema of a Protobuf format").caused_by(cause)
        })?;
        Ok(Protobuf { schema: Some(Arc::new(file)), ..self })
    }

    /// The name of the message that `M` stands for, such as `Order` or `Order.Item`; by default the
    /// first message of the file.
    pub fn message(self, name: impl Into<String>) -> Protobuf<M> {
        Protobuf { message: Some(name.into()), known: Known::default(), ..self }
    }

    /// The subject of a sink's schema; `<topic>-value` by default.
    pub fn subject(self, name: impl Into<String>) -> Protobuf<M> {
        Protobuf { subject: self.subject.named(name.into()), ..self }
    }

    /// Looks up a sink's schema instead of registering it. If the registry does not have the schema
    /// in its subject, the start fails.
    pub fn without_registering(self) -> Protobuf<M> {
        Protobuf { subject: self.subject.looked_up(), ..self }
    }
}

impl<M: Message + Default + 'static> Decode for Protobuf<M> {
    type Value = M;

    fn open(&mut self) -> Result<()> {
        self.registry.open()
    }

    fn decode(&self, payload: Option<&[u8]>) -> Result<M, Cause> {
        let (id, rest) = split(payload.ok_or_else(tombstone)?)?;
        let (path, body) = path_of(rest)?;
        let look_up = || self.registry.schema(id, Language::Protobuf);
        let message = self.message.as_deref();
        let paths = self.known.of(id, look_up, |schema| File::parse(&schema.text)?.paths(message))?;
        if !paths.contains(&path) {
            let name = message.unwrap_or("the first of the file");
            return Err(format!("it is message {path:?} of schema {id}, but {name} is {:?} there", paths[0]).into());
        }
        Ok(M::decode(body)?)
    }

    fn held(&self, payload: Option<&[u8]>, _: &M) -> millstream::ByteSize {
        millstream::ByteSize((payload.map_or(0, <[u8]>::len) * memory::BINARY_GROWS) as u64)
    }
}

impl<M: Message + 'static> Encode<M> for Protobuf<M> {
    fn open(&mut self, topic: Option<&str>) -> Result<()> {
        let Some(schema) = &self.schema else {
            return Err(Error::new(ErrorKind::Config, "a Protobuf sink needs the `schema` of its messages"));
        };
        let path = schema.path(self.message.as_deref()).map_err(|cause| {
            Error::new(ErrorKind::Config, "cannot use the schema of a Protobuf format").caused_by(cause)
        })?;
        self.path.clone_from(path);
        self.subject.open(&self.registry, topic, Language::Protobuf, &schema.text)
    }

    fn encode(&self, value: &M, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        put_header(self.subject.id()?, payload);
        put_path(&self.path, payload);
        value.encode(payload)?;
        Ok(Payload::Present)
    }
}

impl<M> Clone for Protobuf<M> {
    fn clone(&self) -> Protobuf<M> {
        Protobuf {
            registry: self.registry.clone(),
            schema: self.schema.clone(),
            message: self.message.clone(),
            path: self.path.clone(),
            subject: self.subject.clone(),
            known: self.known.clone(),
            value: PhantomData,
        }
    }
}

impl<M> fmt::Debug for Protobuf<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Protobuf by {:?}", self.registry)
    }
}

/// Messages without a schema id before them; see [`Protobuf::bare`].
#[must_use = "a format does nothing until a source or a sink uses it"]
pub struct BareProtobuf<M>(PhantomData<fn(M) -> M>);

impl<M: Message + Default + 'static> Decode for BareProtobuf<M> {
    type Value = M;

    fn decode(&self, payload: Option<&[u8]>) -> Result<M, Cause> {
        Ok(M::decode(payload.ok_or_else(tombstone)?)?)
    }

    fn held(&self, payload: Option<&[u8]>, _: &M) -> millstream::ByteSize {
        millstream::ByteSize((payload.map_or(0, <[u8]>::len) * memory::BINARY_GROWS) as u64)
    }
}

impl<M: Message + 'static> Encode<M> for BareProtobuf<M> {
    fn encode(&self, value: &M, payload: &mut Vec<u8>) -> Result<Payload, Cause> {
        value.encode(payload)?;
        Ok(Payload::Present)
    }
}

impl<M> Clone for BareProtobuf<M> {
    fn clone(&self) -> BareProtobuf<M> {
        BareProtobuf(PhantomData)
    }
}

impl<M> fmt::Debug for BareProtobuf<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BareProtobuf")
    }
}
