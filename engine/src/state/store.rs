//! The checkpoints of a job on a disk, as one run writes them.
//!
//! ```text
//! publish   append the changes to the run's log ─ sync ─ write a manifest under a new name ─ sync
//!           ─ give it its name ─ sync the names: now the checkpoint exists
//! merge     when less than half of what the files hold is still true, or there are many files:
//!           write an image, a part at a time ─ sync ─ read it back; later manifests name it instead
//! remove    manifests but the last three, and but the newest that shares no file with the last;
//!           then files that no manifest names
//! ```
//!
//! Each run writes files of its own, under its name. A run that was replaced while a call of the
//! operating system hung publishes nothing when the call returns: see [`Gate`].

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use crate::words::{CheckpointId, Offsets, Result, lock};

use super::block::{BlockWriter, FORMAT, FileHead, FileRef};
use super::delta::Delta;
use super::describe::Types;
use super::disk::{Directory, DirectoryLock, Disk, Memory};
use super::manifest::{Manifest, Operator};
use super::merge::{Merge, Volume, volume};
use super::recover::{Recovered, is_damage, read_manifest};

/// So much is merged after [`MERGE_EVERY`] checkpoints, whatever it holds, and more when it is
/// worth it.
const MERGE_BYTES: u64 = 1 << 20;
const MERGE_EVERY: u32 = 100;
/// More files than this are merged whatever they hold: each start of the job leaves one.
const FILES_MAX: usize = 8;
/// State that only grows is merged when it has so many times the size of the image before: an entry
/// is then written 2.2 times at most, as one that changes is.
const GROWN: u64 = 6;

/// Where a job keeps its checkpoints. Its clones share the lock: another job may use a directory
/// when the last of them is gone, of which a thread that hangs beyond its run has one.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    disk: Arc<dyn Disk>,
    retain: Retain,
    _lock: Option<Arc<DirectoryLock>>,
}

impl Place {
    /// A directory, which is created if it does not exist.
    ///
    /// # Errors
    /// When it cannot be used, or another job uses it.
    pub(crate) fn directory(path: &Path) -> Result<Place> {
        #[cfg(test)]
        if let Some(disk) = super::faulty_disk::mounted(path) {
            return Ok(Place { disk: Arc::new(disk), retain: Retain::Three, _lock: None });
        }
        let (directory, lock) = Directory::locked(path)?;
        Ok(Place { disk: Arc::new(directory), retain: Retain::Three, _lock: Some(Arc::new(lock)) })
    }

    /// The memory of the process.
    pub(crate) fn memory() -> Place {
        Place { disk: Arc::new(Memory::default()), retain: Retain::One, _lock: None }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }
}

/// How many checkpoints are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retain {
    /// The last three, and the newest that shares no file with the last: a damaged file is never
    /// the only one.
    Three,
    /// The last one, in memory, which has no damage.
    One,
}

/// What lets a run publish, until it is retired.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    is_retired: Mutex<bool>,
}

impl Gate {
    /// From now on nothing is published. `false` when a checkpoint is being given its name at this
    /// moment: the caller may try again.
    pub(crate) fn retire(&self) -> bool {
        match self.is_retired.try_lock() {
            Ok(mut is_retired) => *is_retired = true,
            Err(TryLockError::Poisoned(poisoned)) => *poisoned.into_inner() = true,
            Err(TryLockError::WouldBlock) => return false,
        }
        true
    }

    /// Held while a checkpoint gets its name.
    fn pass(&self) -> io::Result<MutexGuard<'_, bool>> {
        let guard = lock(&self.is_retired);
        if *guard { Err(io::Error::other("another run has taken over")) } else { Ok(guard) }
    }
}

/// An operator that keeps state, as the run's pipeline has it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) what: String,
    pub(crate) types: Types,
}

/// What a checkpoint consists of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    /// The positions of each source.
    pub(crate) sources: Vec<Offsets>,
    /// What has changed since the checkpoint before, with the operator's place among those of the
    /// run, in the order of the changes.
    pub(crate) deltas: Vec<(usize, Delta)>,
    /// When it is written, in milliseconds since 1970.
    pub(crate) written: u64,
}

/// What a call has merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// There is nothing to merge.
    Nothing,
    /// There is more to do now.
    Some,
    /// The image is complete, and has this many bytes.
    All(u64),
}

/// Writes the checkpoints of a run.
pub(crate) struct Store {
    place: Place,
    gate: Arc<Gate>,
    head: FileHead,
    identity: String,
    sources: Vec<String>,
    operators: Vec<Operator>,
    /// See [`MERGE_BYTES`].
    merge_bytes: u64,
    /// What the last checkpoint consists of, and what it holds of each operator.
    chain: Vec<FileRef>,
    volumes: Vec<Volume>,
    /// The file that is appended to. It is the last of the chain, if it is in it.
    log: Option<BlockWriter>,
    /// The number of files that this run has begun.
    begun: u64,
    /// The manifests that are there, with the files that they name.
    manifests: Vec<(CheckpointId, Vec<String>)>,
    merge: Option<Merging>,
    /// The number of checkpoints with changes since files were merged, and what that has left.
    unmerged: u32,
    image_bytes: u64,
}

/// A merge that is under way.
struct Merging {
    merge: Merge,
    /// How many files of the chain it merges, and what they hold.
    files: usize,
    volumes: Vec<Volume>,
}

impl Store {
    /// The store of a run that goes on where another has ended.
    pub(crate) fn begin(
        place: Place,
        gate: Arc<Gate>,
        (job, run): (&str, &str),
        recovered: Option<&Recovered>,
        sources: Vec<String>,
        kept: &[Kept],
    ) -> io::Result<Store> {
        let head = FileHead {
            format: FORMAT.to_owned(),
            job: job.to_owned(),
            run: run.to_owned(),
            operators: kept.iter().map(|kept| kept.name.clone()).collect(),
        };
        let chain: Vec<FileRef> = recovered.map(|recovered| recovered.manifest.files.clone()).unwrap_or_default();
        let operator = |kept: &Kept| {
            let mut known = recovered.into_iter().flat_map(|recovered| &recovered.manifest.operators);
            // What was of another type is written again.
            let before = known.find(|known| known.name == kept.name);
            let same = before.filter(|before| before.types.are(&kept.types));
            Operator {
                name: kept.name.clone(),
                what: kept.what.clone(),
                types: kept.types.clone(),
                entries: before.map_or(0, |before| before.entries),
                watermark: before.and_then(|before| before.watermark),
                since: same.map_or(chain.len() as u32, |same| same.since),
            }
        };
        let operators: Vec<Operator> = kept.iter().map(operator).collect();
        let files = recovered.map_or(&[][..], |recovered| &recovered.files);
        let volumes = operators.iter().map(|operator| volume(files, operator)).collect();
        let mut store = Store {
            place,
            gate,
            head,
            identity: recovered.map_or(run, |recovered| &recovered.manifest.identity).to_owned(),
            sources,
            operators,
            merge_bytes: MERGE_BYTES,
            chain,
            volumes,
            log: None,
            begun: 0,
            manifests: Vec::new(),
            merge: None,
            unmerged: 0,
            image_bytes: 0,
        };
        store.look_around(recovered)?;
        Ok(store)
    }

    /// What its checkpoints have in common with those of all runs before.
    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// Sees which checkpoints there are, and sets damaged ones aside.
    fn look_around(&mut self, recovered: Option<&Recovered>) -> io::Result<()> {
        for name in recovered.into_iter().flat_map(|recovered| &recovered.damaged) {
            self.set_aside(name)?;
        }
        let mut known: Vec<CheckpointId> =
            self.place.disk.names()?.iter().filter_map(|name| Manifest::checkpoint_of(name)).collect();
        known.sort_unstable();
        for checkpoint in known {
            match read_manifest(&*self.place.disk, checkpoint) {
                Ok(manifest) => self.manifests.push((checkpoint, names(&manifest.files))),
                Err(cause) if is_damage(&cause) => self.set_aside(&Manifest::name(checkpoint))?,
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// A damaged manifest must not be mistaken for a checkpoint of this run, and may help to
    /// find the reason.
    fn set_aside(&self, name: &str) -> io::Result<()> {
        let _pass = self.gate.pass()?;
        self.place.disk.rename(name, &format!("damaged-{name}-{}", self.head.run))
    }

    /// Makes a checkpoint durable. After an error it may be called again, with the same checkpoint.
    /// Returns the number of bytes written.
    ///
    /// # Errors
    /// The error of the system; the checkpoint then does not exist, unless the last step failed.
    pub(crate) fn publish(&mut self, checkpoint: CheckpointId, content: &Content) -> io::Result<u64> {
        let published = self.try_publish(checkpoint, content);
        if published.is_err() {
            // What was written and not synced may be gone.
            self.log = None;
        }
        published
    }

    fn try_publish(&mut self, checkpoint: CheckpointId, content: &Content) -> io::Result<u64> {
        let mut files = self.chain.clone();
        let mut written = 0;
        if content.deltas.iter().any(|(_, delta)| delta.count() > 0) {
            let log = match &mut self.log {
                Some(log) => log,
                log => {
                    let name = format!("log-{}-{}", self.head.run, self.begun);
                    self.begun += 1;
                    log.insert(BlockWriter::create(&*self.place.disk, name, &self.head)?)
                }
            };
            for (operator, delta) in &content.deltas {
                log.append_delta(*operator as u32, delta)?;
            }
            let log = log.sync()?;
            let before = files.pop_if(|last| last.name == log.name).map_or(0, |last| last.length);
            written = log.length - before;
            files.push(log);
            self.unmerged += 1;
        }
        let mut operators = self.operators.clone();
        for (operator, delta) in &content.deltas {
            let operator = &mut operators[*operator];
            operator.entries = operator.entries.saturating_add_signed(delta.grown);
            // It never goes back, and the workers agree on it.
            operator.watermark = operator.watermark.max(delta.watermark);
        }
        let manifest = Manifest {
            job: self.head.job.clone(),
            identity: self.identity.clone(),
            run: self.head.run.clone(),
            checkpoint,
            written: content.written,
            sources: self.sources.iter().cloned().zip(content.sources.iter().cloned()).collect(),
            operators,
            files,
        };
        written += self.write_manifest(&manifest)?;
        for (operator, delta) in &content.deltas {
            let volume = &mut self.volumes[*operator];
            *volume = Volume { count: volume.count + delta.count(), bytes: volume.bytes + delta.bytes() as u64 };
        }
        self.chain = manifest.files;
        self.operators = manifest.operators;
        self.manifests.retain(|(known, _)| *known != checkpoint);
        self.manifests.push((checkpoint, names(&self.chain)));
        // What could not be removed is tried again with the next checkpoint.
        if let Err(cause) = self.remove() {
            tracing::warn!(cause = %cause, "cannot remove old checkpoints");
        }
        Ok(written)
    }

    fn write_manifest(&self, manifest: &Manifest) -> io::Result<u64> {
        let bytes = manifest.encode().map_err(io::Error::other)?;
        let name = Manifest::name(manifest.checkpoint);
        let new = format!("{name}-{}.new", self.head.run);
        if self.place.disk.names()?.contains(&new) {
            self.place.disk.remove(&new)?;
        }
        let mut output = self.place.disk.create(&new)?;
        output.write(&bytes)?;
        output.sync()?;
        drop(output);
        let _pass = self.gate.pass()?;
        self.place.disk.rename(&new, &name)?;
        self.place.disk.sync_names()?;
        Ok(bytes.len() as u64)
    }

    /// Removes what is not needed any more. Names are removed before what they name: the manifests
    /// of this call, and the files of manifests that the call before has removed.
    fn remove(&mut self) -> io::Result<()> {
        let mut needed: BTreeSet<&str> =
            self.manifests.iter().flat_map(|(_, files)| files).map(String::as_str).collect();
        needed.extend(self.chain.iter().map(|file| file.name.as_str()));
        for name in self.place.disk.names()? {
            let is_ours = name.starts_with("log-") || name.starts_with("image-") || name.ends_with(".new");
            // What this run is writing is in no manifest yet.
            let is_in_use = needed.contains(name.as_str()) || self.is_being_written(&name);
            if is_ours && !is_in_use {
                let _pass = self.gate.pass()?;
                self.place.disk.remove(&name)?;
            }
        }
        let keep = match self.place.retain {
            Retain::Three => 3,
            Retain::One => 1,
        };
        let (old, last) = self.manifests.split_at(self.manifests.len().saturating_sub(keep));
        let newest: &[String] = last.last().map_or(&[], |(_, files)| files);
        let spare = match self.place.retain {
            Retain::Three if !last.iter().any(|(_, files)| are_apart(files, newest)) => {
                old.iter().rposition(|(_, files)| are_apart(files, newest))
            }
            Retain::Three | Retain::One => None,
        };
        let removed: Vec<CheckpointId> =
            old.iter().enumerate().filter(|(index, _)| Some(*index) != spare).map(|(_, (known, _))| *known).collect();
        for checkpoint in removed {
            let _pass = self.gate.pass()?;
            self.place.disk.remove(&Manifest::name(checkpoint))?;
            self.manifests.retain(|(known, _)| *known != checkpoint);
        }
        Ok(())
    }

    fn is_being_written(&self, name: &str) -> bool {
        let log = self.log.as_ref().map(BlockWriter::name);
        let image = self.merge.as_ref().map(|merging| merging.merge.image_name());
        [log, image].into_iter().flatten().any(|own| own == name)
    }

    /// Merges files when that is worth it, a part at a time.
    ///
    /// # Errors
    /// The error of the system. The merge is given up; another call begins it again.
    pub(crate) fn merge(&mut self) -> io::Result<Merged> {
        let Some(mut merging) = self.merge.take() else { return self.begin_merge() };
        let Some(image) = merging.merge.step(&*self.place.disk)? else {
            self.merge = Some(merging);
            return Ok(Merged::Some);
        };
        let bytes = image.file.length;
        self.image_bytes = 0;
        // What was published since then is in files behind those that were merged.
        self.chain.splice(..merging.files, [image.file]);
        for ((now, before), image) in self.volumes.iter_mut().zip(merging.volumes).zip(image.volumes) {
            self.image_bytes += image.bytes;
            now.count = now.count - before.count + image.count;
            now.bytes = now.bytes - before.bytes + image.bytes;
        }
        self.operators.iter_mut().for_each(|operator| operator.since = 0);
        Ok(Merged::All(bytes))
    }

    fn begin_merge(&mut self) -> io::Result<Merged> {
        if !self.is_merge_due() {
            return Ok(Merged::Nothing);
        }
        let name = format!("image-{}-{}", self.head.run, self.begun);
        self.begun += 1;
        // What follows goes to another file: this one is merged as it is.
        (self.log, self.unmerged) = (None, 0);
        let merge = Merge::begin(&*self.place.disk, &self.chain, &self.operators, name, &self.head)?;
        self.merge = Some(Merging { merge, files: self.chain.len(), volumes: self.volumes.clone() });
        Ok(Merged::Some)
    }

    /// Whether less than half of what the files hold is still true, or another copy is due.
    fn is_merge_due(&self) -> bool {
        let held: u64 = self.volumes.iter().map(|volume| volume.bytes).sum();
        let live = |(operator, volume): (&Operator, &Volume)| match volume.count {
            0 => 0,
            count => (u128::from(volume.bytes) * u128::from(operator.entries) / u128::from(count)) as u64,
        };
        let live: u64 = self.operators.iter().zip(&self.volumes).map(live).sum();
        let is_worth_it = held > self.merge_bytes && held >= 2 * live;
        self.chain.len() > FILES_MAX || is_worth_it || self.is_copy_due(held)
    }

    /// Whether another copy of what these files hold is due: a damaged file must not be the only
    /// one, nor the other one too old.
    fn is_copy_due(&self, held: u64) -> bool {
        if self.place.retain == Retain::One || held == 0 {
            return false;
        }
        let is_old = match held > self.merge_bytes {
            true => held >= GROWN * self.image_bytes,
            false => self.unmerged >= MERGE_EVERY,
        };
        let own = names(&self.chain);
        is_old || !self.manifests.iter().any(|(_, files)| are_apart(files, &own))
    }
}

/// Whether these files are some, and none of the others.
fn are_apart(files: &[String], others: &[String]) -> bool {
    !files.is_empty() && files.iter().all(|file| !others.contains(file))
}

fn names(files: &[FileRef]) -> Vec<String> {
    files.iter().map(|file| file.name.clone()).collect()
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
