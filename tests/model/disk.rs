//! A disk that shows what may be left of files after a crash: what was not synced may be whole,
//! torn or gone, and a rename may not have happened.

use std::collections::BTreeMap;

use crate::kinds::State;
use crate::plan::{Time, chance};
use crate::source::Position;

/// The name of a run's file of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) checkpoint: u64,
    pub(crate) run: u64,
}

/// The state of an operator on a worker.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) operator: usize,
    pub(crate) worker: usize,
    /// The number of workers of its run: which keys the section speaks of.
    pub(crate) workers: usize,
    pub(crate) state: State,
    pub(crate) watermark: Time,
}

/// The content of a data file.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) sections: Vec<Section>,
    pub(crate) positions: BTreeMap<usize, Position>,
    /// Stands for the digest of the file.
    pub(crate) digest: u64,
}

/// A manifest: what makes a checkpoint exist.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// The number of workers of the run that wrote it.
    pub(crate) workers: usize,
    pub(crate) data: Name,
    pub(crate) digest: u64,
    /// The checkpoint before, with which it is a whole.
    pub(crate) parent: Option<Name>,
}

#[derive(Debug)]
struct File {
    data: Data,
    is_synced: bool,
    is_torn: bool,
}

/// The directory of a job.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: BTreeMap<Name, File>,
    manifests: BTreeMap<Name, Manifest>,
    /// Renames that the directory may forget, with what stood there before, oldest first.
    unsynced: Vec<(Name, Option<Manifest>)>,
}

impl Disk {
    pub(crate) fn write(&mut self, name: Name, data: Data) {
        self.files.insert(name, File { data, is_synced: false, is_torn: false });
    }

    pub(crate) fn sync(&mut self, name: Name) {
        if let Some(file) = self.files.get_mut(&name) {
            file.is_synced = true;
        }
    }

    /// Renames a manifest, which was synced under its temporary name, to its own.
    pub(crate) fn rename(&mut self, name: Name, manifest: Manifest) {
        let before = self.manifests.insert(name, manifest);
        self.unsynced.push((name, before));
    }

    pub(crate) fn sync_directory(&mut self) {
        self.unsynced.clear();
    }

    /// The machine stops. What the directory forgets, it forgets from the end.
    pub(crate) fn crash(&mut self, random: &mut fastrand::Rng) {
        let kept = random.usize(0..=self.unsynced.len());
        for (name, before) in self.unsynced.split_off(kept).into_iter().rev() {
            match before {
                Some(before) => drop(self.manifests.insert(name, before)),
                None => drop(self.manifests.remove(&name)),
            }
        }
        self.unsynced.clear();
        self.files.retain(|_, file| file.is_synced || chance(random, 70));
        for file in self.files.values_mut().filter(|file| !file.is_synced) {
            file.is_torn = chance(random, 50);
            file.is_synced = true;
        }
    }

    /// The newest checkpoint that is whole, and of several the one of the latest run.
    pub(crate) fn newest(&self) -> Option<Name> {
        self.manifests.keys().rev().find(|name| self.load(**name).is_some()).copied()
    }

    /// The data of a checkpoint and of all its parents, oldest first, with the manifest of each;
    /// `None` if some of it is missing or damaged.
    pub(crate) fn load(&self, name: Name) -> Option<Vec<(&Manifest, &Data)>> {
        let manifest = self.manifests.get(&name)?;
        let file = self.files.get(&manifest.data)?;
        if file.is_torn || file.data.digest != manifest.digest {
            return None;
        }
        let mut chain = match manifest.parent {
            Some(parent) => self.load(parent)?,
            None => Vec::new(),
        };
        chain.push((manifest, &file.data));
        Some(chain)
    }

    /// Deletes the manifests of later checkpoints, and of this checkpoint by other runs.
    pub(crate) fn delete_behind(&mut self, loaded: Option<Name>) {
        let stays = |name: &Name| loaded.is_some_and(|loaded| name.checkpoint < loaded.checkpoint || *name == loaded);
        self.manifests.retain(|name, _| stays(name));
        self.unsynced.clear();
    }
}
