//! A sink's half: the subject under which its schema is registered, or looked up, when the job starts.

use millstream::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::json;

use super::{Language, Registry, SchemaId, client};
use crate::format::Cause;

/// The subject of a sink's schema, and the id that the registry has given it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    name: Option<String>,
    enrolment: Enrolment,
    id: Option<SchemaId>,
}

/// What is done with a schema that the registry may not know.
#[derive(Clone, Copy, Debug, Default)]
enum Enrolment {
    #[default]
    Register,
    LookUp,
}

impl Subject {
    pub(crate) fn named(self, name: String) -> Subject {
        Subject { name: Some(name), ..self }
    }

    pub(crate) fn looked_up(self) -> Subject {
        Subject { enrolment: Enrolment::LookUp, ..self }
    }

    /// Asks for the id of the schema; at start.
    pub(crate) fn open(
        &mut self,
        registry: &Registry,
        topic: Option<&str>,
        language: Language,
        schema: &str,
    ) -> Result<()> {
        let named = self.name.clone().or_else(|| topic.map(|topic| format!("{topic}-value")));
        let Some(subject) = named else {
            let doing = "a sink whose messages each name their topic must say the `subject` of its schema";
            return Err(Error::new(ErrorKind::Option, doing));
        };
        let (path, doing) = match self.enrolment {
            Enrolment::Register => ("/versions", format!("register a schema for subject `{subject}`")),
            Enrolment::LookUp => ("", format!("find a schema in subject `{subject}`")),
        };
        let path = format!("/subjects/{}{path}", client::escaped(&subject));
        let body = match language {
            // As those registries want it that know no other language.
            #[cfg(feature = "avro")]
            Language::Avro => json!({ "schema": schema }),
            #[cfg(feature = "protobuf")]
            Language::Protobuf => json!({ "schema": schema, "schemaType": language.name() }),
        };
        #[derive(Deserialize)]
        struct Answer {
            id: u32,
        }
        let complaint = match registry.client.post::<Answer>(&path, &body, &doing)? {
            Ok(Answer { id }) => {
                self.id = Some(SchemaId(id));
                return Ok(());
            }
            Err(complaint) => complaint,
        };
        let (kind, why) = match &complaint {
            _ if complaint.is_incompatible() => (ErrorKind::Refused, ", it does not go with what is there"),
            _ if complaint.is_invalid() => (ErrorKind::Option, ", the registry does not take it for one"),
            _ if complaint.is_unknown() => (ErrorKind::NotFound, ""),
            _ => (ErrorKind::Refused, ""),
        };
        Err(Error::new(kind, format!("cannot {doing} at the schema registry {}{why}", registry.client))
            .caused_by(complaint))
    }

    /// The id to write.
    pub(crate) fn id(&self) -> Result<SchemaId, Cause> {
        self.id.ok_or_else(|| Error::new(ErrorKind::Sink, "the format was not opened before it encodes").into())
    }
}
