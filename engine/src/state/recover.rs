//! Finds the newest checkpoint that is whole, to the last byte, and loads it. A damaged one is
//! named, and the one before it is used.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use crate::words::{CheckpointId, Error, ErrorKind, Result};

use super::block::{BlockFile, FileRef, Verified, verify};
use super::disk::Disk;
use super::keep::{Keep, Strays};
use super::manifest::Manifest;

/// A checkpoint that was read and found whole.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) manifest: Manifest,
    pub(super) files: Vec<Verified>,
    /// The names of newer manifests that are damaged, or that name a damaged file.
    pub(super) damaged: Vec<String>,
    disk: Arc<dyn Disk>,
}

/// Looks for the newest checkpoint of a job; there is none before its first.
///
/// # Errors
/// When the files are of another job or cannot be read, and when there are checkpoints and all of
/// them are damaged: to begin from nothing would lose state without a word.
pub(crate) fn recover(disk: &Arc<dyn Disk>, job: &str) -> Result<Option<Recovered>> {
    let cannot = |cause: io::Error| {
        let is_lasting = cause.kind() == io::ErrorKind::PermissionDenied;
        let kind = if is_lasting { ErrorKind::Checkpoint } else { ErrorKind::System };
        Error::new(kind, "cannot read the checkpoints").caused_by(cause)
    };
    let names = disk.names().map_err(cannot)?;
    let mut manifests: Vec<CheckpointId> = names.iter().filter_map(|name| Manifest::checkpoint_of(name)).collect();
    manifests.sort_unstable();
    let mut damaged: Vec<(String, io::Error)> = Vec::new();
    for checkpoint in manifests.into_iter().rev() {
        let manifest = read_manifest(&**disk, checkpoint);
        if let Ok(Manifest { job: other, .. }) = &manifest
            && other != job
        {
            let doing = format!("these are the checkpoints of job `{other}`, not of `{job}`");
            return Err(Error::new(ErrorKind::Checkpoint, doing));
        }
        match manifest.and_then(|manifest| Ok((verify_all(&**disk, &manifest)?, manifest))) {
            Ok((files, manifest)) => {
                let damaged = damaged.into_iter().map(|(name, _)| name).collect();
                return Ok(Some(Recovered { manifest, files, damaged, disk: Arc::clone(disk) }));
            }
            Err(cause) if !is_damage(&cause) => return Err(cannot(cause)),
            Err(cause) => {
                tracing::error!(%checkpoint, cause = %cause, "checkpoint is damaged, the one before it is tried");
                damaged.push((Manifest::name(checkpoint), cause));
            }
        }
    }
    match damaged.into_iter().next() {
        None => Ok(None),
        Some((name, cause)) => {
            let doing = format!("no checkpoint of job `{job}` is undamaged; the newest is `{name}`");
            Err(Error::new(ErrorKind::Checkpoint, doing).caused_by(cause))
        }
    }
}

/// Whether this says that a file is not what it was: another try would find the same. A process
/// that has no more files to open, say, must not take its newest checkpoint for a damaged one.
pub(crate) fn is_damage(cause: &io::Error) -> bool {
    // What Unix and Linux answer when a sector cannot be read.
    const EIO: i32 = 5;
    matches!(cause.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
        || cfg!(unix) && cause.raw_os_error() == Some(EIO)
}

/// Reads a manifest, without the files that it names.
pub(super) fn read_manifest(disk: &dyn Disk, checkpoint: CheckpointId) -> io::Result<Manifest> {
    let name = Manifest::name(checkpoint);
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("`{name}`: {what}"));
    let mut bytes = Vec::new();
    disk.open(&name)?.read_to_end(&mut bytes)?;
    let manifest = Manifest::decode(&bytes).map_err(damaged)?;
    if manifest.checkpoint != checkpoint {
        return Err(damaged("it is the manifest of another checkpoint"));
    }
    Ok(manifest)
}

/// Reads a file to its last byte, and names it if it is damaged.
pub(super) fn verify_named(disk: &dyn Disk, file: &FileRef) -> io::Result<Verified> {
    verify(disk, file).map_err(|cause| match is_damage(&cause) {
        true => io::Error::new(io::ErrorKind::InvalidData, format!("`{}`: {cause}", file.name)),
        false => cause,
    })
}

/// Reads all files of a manifest, several at a time.
fn verify_all(disk: &dyn Disk, manifest: &Manifest) -> io::Result<Vec<Verified>> {
    std::thread::scope(|scope| {
        let readers: Vec<_> = manifest.files.iter().map(|file| scope.spawn(move || verify_named(disk, file))).collect();
        let panicked = |_| io::Error::other("the thread that reads it panicked");
        readers.into_iter().map(|reader| reader.join().map_err(panicked)?).collect()
    })
}

impl Recovered {
    /// Loads the state that an operator has in these key groups. Calls `loading` now and then, with
    /// the memory that was filled since.
    ///
    /// # Errors
    /// When it cannot be read, or is not of the types of the table.
    pub(crate) fn load(
        &self,
        operator: &str,
        groups: Range<usize>,
        table: &mut dyn Keep,
        strays: &mut Strays,
        loading: &mut dyn FnMut(&dyn Keep, u64) -> Result<()>,
    ) -> Result<()> {
        let cannot = |file: &Verified| {
            let doing = format!("cannot load the state of `{operator}` from `{}`", file.file.name);
            Error::new(ErrorKind::Checkpoint, doing)
        };
        let Some(known) = self.manifest.operators.iter().find(|known| known.name == operator) else { return Ok(()) };
        table.expect_types(&known.types);
        let expected = known.entries * groups.len() as u64 / crate::words::KEY_GROUPS as u64;
        table.expect(groups.clone(), expected);
        let each = table.bytes() / expected.max(1);
        for file in self.files.iter().skip(known.since as usize) {
            let mut blocks = BlockFile::open(&*self.disk, file).map_err(|cause| cannot(file).caused_by(cause))?;
            for block in file.blocks_of(operator, groups.clone()) {
                let entries = blocks.read(block, &groups).map_err(|cause| cannot(file).caused_by(cause))?;
                for (group, entries) in entries {
                    table
                        .load(group, entries, strays)
                        .map_err(|_| cannot(file).caused_by("the bytes are not entries of these types"))?;
                }
                loading(table, block.count * each + block.bytes())?;
            }
        }
        table.loaded().map_err(|cause| {
            let doing = format!("cannot encode the converted state of `{operator}`");
            Error::new(ErrorKind::State, doing).caused_by(cause)
        })
    }
}
