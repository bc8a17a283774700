//! The manifest of a checkpoint: what belongs to it. A checkpoint exists once its manifest has its
//! name, and everything that it names is durable by then.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::words::{CheckpointId, EventTime, Offsets};

use super::block::FileRef;
use super::describe::Types;

/// What every manifest begins with; it changes when manifests become unreadable for what wrote them
/// before.
const MAGIC: &[u8] = b"millstream manifest 3\n";

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) job: String,
    /// The first run that kept checkpoints here: this stays the same over all that follow.
    pub(crate) identity: String,
    /// The run that wrote it.
    pub(crate) run: String,
    pub(crate) checkpoint: CheckpointId,
    /// When it was written, in milliseconds since 1970.
    pub(crate) written: u64,
    /// The sources by name, with the positions that the state reflects.
    pub(crate) sources: Vec<(String, Offsets)>,
    pub(crate) operators: Vec<Operator>,
    /// The files that hold the state; later entries replace earlier ones.
    pub(crate) files: Vec<FileRef>,
}

/// The state of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operator {
    pub(crate) name: String,
    /// What it does, such as `count`.
    pub(crate) what: String,
    pub(crate) types: Types,
    /// The number of entries.
    pub(crate) entries: u64,
    /// Its watermark, if it waits for event time.
    pub(crate) watermark: Option<EventTime>,
    /// The first of the manifest's files that speaks of this operator: what those before it say is
    /// of another one of the same name.
    pub(crate) since: u32,
}

/// The prefix of the names of manifests.
const PREFIX: &str = "manifest-";

impl Manifest {
    /// The name of the manifest of a checkpoint.
    pub(crate) fn name(checkpoint: CheckpointId) -> String {
        format!("{PREFIX}{:020}", checkpoint.number())
    }

    /// The checkpoint of a manifest of that name, if it is one.
    pub(crate) fn checkpoint_of(name: &str) -> Option<CheckpointId> {
        let number = name.strip_prefix(PREFIX).filter(|digits| digits.len() == 20)?;
        Some(CheckpointId::new(number.parse().ok()?))
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        let mut bytes = postcard::to_extend(self, MAGIC.to_vec())?;
        let digest = xxh3_64(&bytes);
        bytes.extend_from_slice(&digest.to_le_bytes());
        Ok(bytes)
    }

    /// # Errors
    /// What is wrong with the bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Manifest, &'static str> {
        let (rest, digest) = bytes.split_last_chunk().ok_or("it is cut off")?;
        let body = rest.strip_prefix(MAGIC).ok_or("it is not a manifest of this format")?;
        if xxh3_64(rest) != u64::from_le_bytes(*digest) {
            return Err("its digest is wrong");
        }
        match postcard::take_from_bytes(body) {
            Ok((manifest, [])) => Ok(manifest),
            _ => Err("its content is not that of a manifest"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{Offset, Partition};

    #[test]
    fn a_manifest_is_read_as_it_was_written_or_not_at_all() {
        let manifest = Manifest {
            job: "counts".to_owned(),
            identity: "a0".to_owned(),
            run: "a1".to_owned(),
            checkpoint: CheckpointId::new(7),
            written: 1_764_000_000_000,
            sources: vec![("orders".to_owned(), [(Partition::new("orders/3"), Offset(9))].into_iter().collect())],
            operators: vec![Operator {
                name: "count".to_owned(),
                what: "count".to_owned(),
                types: Types::of::<String, u64>(0),
                entries: 3,
                watermark: Some(EventTime(-4)),
                since: 0,
            }],
            files: vec![FileRef { name: "log-a1-0".to_owned(), length: 100, digest: 5 }],
        };
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        for at in 0..bytes.len() {
            Manifest::decode(&bytes[..at]).expect_err("it is cut off");
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                Manifest::decode(&changed).expect_err("a bit has changed");
            }
        }
        assert_eq!(Manifest::checkpoint_of(&Manifest::name(CheckpointId::new(7))), Some(CheckpointId::new(7)));
        assert_eq!(Manifest::checkpoint_of("manifest-7"), None);
    }
}
