//! The sink's part: the subject under which its schema is registered, or looked up, when the job
//! starts.

use millstream::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::json;

use super::{Language, Registry, SchemaId, client};
use crate::format::Cause;

/// The subject of a sink's schema, and the id that the registry assigned to the schema.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    name: Option<String>,
    enrolment: Enrolment,
    id: Option<SchemaId>,
}

/// How the id of a sink's schema is obtained.
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

    /// Requests the id of the schema when the job starts.
    pub(crate) fn open(
        &mut self,
        registry: &Registry,
        topic: Option<&str>,
        language: Language,
        schema: &str,
    ) -> Result<()> {
        let named = self.name.clone().or_else(|| topic.map(|topic| format!("{topic}-value")));
        let Some(subject) = named else {
            let doing = "a sink whose messages name their own topics needs the `subject` of its schema";
            return Err(Error::new(ErrorKind::Config, doing));
        };
        let (path, doing) = match self.enrolment {
            Enrolment::Register => ("/versions", format!("register a schema for subject `{subject}`")),
            Enrolment::LookUp => ("", format!("find a schema in subject `{subject}`")),
        };
        let path = format!("/subjects/{}{path}", client::escaped(&subject));
        let body = match language {
            // Registries that know only Avro expect no `schemaType`.
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
            _ if complaint.is_incompatible() => (ErrorKind::Refused, ": it is incompatible with earlier versions"),
            _ if complaint.is_invalid() => (ErrorKind::Config, ": the registry does not accept it as a schema"),
            _ if complaint.is_unknown() => (ErrorKind::NotFound, ""),
            _ => (ErrorKind::Refused, ""),
        };
        Err(Error::new(kind, format!("cannot {doing} at the schema registry {}{why}", registry.client))
            .caused_by(complaint))
    }

    /// The id to write into payloads.
    pub(crate) fn id(&self) -> Result<SchemaId, Cause> {
        self.id.ok_or_else(|| Error::new(ErrorKind::Sink, "cannot encode with a format that was not opened").into())
    }
}
