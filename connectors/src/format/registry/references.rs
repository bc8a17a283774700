//! The schemas that a schema references, by subject and version.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Registered, Registry, SchemaId, client};
use crate::format::Cause;

/// A reference to another schema.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reference {
    subject: String,
    version: i32,
}

impl Registry {
    /// The texts of all schemas that a schema references, each after those that it references
    /// itself.
    pub(in crate::format) fn references(&self, id: SchemaId, registered: &Registered) -> Result<Vec<String>, Cause> {
        let mut texts = Vec::new();
        self.collect(id, &registered.references, &mut BTreeSet::new(), &mut texts)?;
        Ok(texts)
    }

    fn collect(
        &self,
        id: SchemaId,
        references: &[Reference],
        seen: &mut BTreeSet<Reference>,
        texts: &mut Vec<String>,
    ) -> Result<(), Cause> {
        for reference in references {
            if !seen.insert(reference.clone()) {
                continue;
            }
            let Reference { subject, version } = reference;
            let path = format!("/subjects/{}/versions/{version}?deleted=true", client::escaped(subject));
            let doing = format!("look up version {version} of subject `{subject}`, which schema {id} references");
            match self.client.get::<Registered>(&path, &doing)? {
                Ok(registered) => {
                    self.collect(id, &registered.references, seen, texts)?;
                    texts.push(registered.text);
                }
                Err(complaint) if complaint.is_unknown() => return Err(format!("cannot {doing}: {complaint}").into()),
                Err(complaint) => return Err(self.complained(&doing, complaint).into()),
            }
        }
        Ok(())
    }
}
