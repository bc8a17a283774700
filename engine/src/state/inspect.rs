//! Looks at the checkpoints in a directory, also while their job runs: takes no lock and changes
//! nothing.
//!
//! The job removes old checkpoints meanwhile. So all files of a checkpoint are opened before the
//! first is read, and stay open: what is open can be read to its end, also when its name is gone.
//! A file that is missing is damage only as long as the manifest that names it is there.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::words::{CheckpointId, Error, ErrorKind, KeyGroup, Result};

use super::block::{BlockFile, FileRef, Verified, verify_opened};
use super::delta::{Delta, RawEntries};
use super::disk::{Directory, Disk, Input};
use super::manifest::{Manifest, Operator};
use super::merge::{ReadEntries, parts_of, volume};
use super::recover::read_manifest;

/// The newest checkpoint is looked for so often: a job would have to remove it each time.
const ATTEMPTS: usize = 20;

/// The checkpoints in a directory.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    disk: Box<dyn Disk>,
    directory: String,
}

/// What was found where a checkpoint should be.
pub(crate) enum Found {
    /// Every byte of it is as it was written.
    Whole(Whole),
    Damaged(Vec<Damage>),
    /// Its job has removed it.
    Removed,
}

/// A file that is damaged or missing, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Damage(String);

impl Damage {
    fn of(file: &str, cause: &io::Error) -> Damage {
        Damage(match cause.kind() {
            io::ErrorKind::NotFound => format!("`{file}`: it is missing"),
            _ => format!("`{file}`: {cause}"),
        })
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Checkpoints {
    /// Those in this directory.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn in_directory(path: &Path) -> Result<Checkpoints> {
        let directory = path.display().to_string();
        match Directory::unlocked(path) {
            Ok(disk) => Ok(Checkpoints { disk: Box::new(disk), directory }),
            Err(cause) => Err(wrong(format!("cannot read the directory `{directory}`")).caused_by(cause)),
        }
    }

    /// The numbers of all, the newest first.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn numbers(&self) -> Result<Vec<CheckpointId>> {
        let names = self.disk.names();
        let names =
            names.map_err(|cause| wrong(format!("cannot read the directory `{}`", self.directory)).caused_by(cause))?;
        let mut numbers: Vec<_> = names.iter().filter_map(|name| Manifest::checkpoint_of(name)).collect();
        if numbers.is_empty() {
            return Err(wrong(format!("there is no checkpoint in `{}`", self.directory)));
        }
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        Ok(numbers)
    }

    /// The manifest of a checkpoint, without the files that it names; `None` when it was removed.
    pub(crate) fn manifest(&self, checkpoint: CheckpointId) -> Option<Result<Manifest, Damage>> {
        match read_manifest(&*self.disk, checkpoint) {
            Ok(manifest) => Some(Ok(manifest)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
            // It has the name of the file.
            Err(cause) if cause.kind() == io::ErrorKind::InvalidData => Some(Err(Damage(cause.to_string()))),
            Err(cause) => Some(Err(Damage::of(&Manifest::name(checkpoint), &cause))),
        }
    }

    /// Reads every byte of a checkpoint.
    pub(crate) fn read(&self, checkpoint: CheckpointId) -> Found {
        let manifest = match self.manifest(checkpoint) {
            Some(Ok(manifest)) => manifest,
            Some(Err(damage)) => return Found::Damaged(vec![damage]),
            None => return Found::Removed,
        };
        let opened: Vec<_> = manifest.files.iter().map(|file| self.disk.open(&file.name)).collect();
        let mut failures = opened.iter().filter_map(|input| input.as_ref().err());
        let is_missing = failures.any(|cause| cause.kind() == io::ErrorKind::NotFound);
        let is_there = || matches!(self.manifest(checkpoint), Some(Ok(now)) if now == manifest);
        if is_missing && !is_there() {
            return Found::Removed;
        }
        let (mut files, mut blocks, mut damages) = (Vec::new(), Vec::new(), Vec::new());
        for (file, input) in manifest.files.iter().zip(opened) {
            match input.and_then(|input| verified(file, input)) {
                Ok((verified, input)) => {
                    blocks.push(BlockFile::opened(input, &verified));
                    files.push(verified);
                }
                Err(cause) => damages.push(Damage::of(&file.name, &cause)),
            }
        }
        if damages.is_empty() { Found::Whole(Whole { manifest, files, blocks }) } else { Found::Damaged(damages) }
    }

    /// Reads a checkpoint that must be there and whole: the newest, if no other is asked for.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub(crate) fn whole(&self, checkpoint: Option<CheckpointId>) -> Result<Whole> {
        for _ in 0..ATTEMPTS {
            let number = match checkpoint {
                Some(number) => number,
                None => self.numbers()?[0],
            };
            match self.read(number) {
                Found::Whole(whole) => return Ok(whole),
                Found::Damaged(damages) => {
                    let damages: Vec<_> = damages.iter().map(Damage::to_string).collect();
                    return Err(wrong(format!("checkpoint {number} is damaged: {}", damages.join(", "))));
                }
                Found::Removed if checkpoint.is_some() => {
                    let there: Vec<_> = self.numbers()?.iter().map(CheckpointId::to_string).collect();
                    let there = there.join(", ");
                    return Err(wrong(format!(
                        "checkpoint {number} is not in `{}`: there are {there}",
                        self.directory
                    )));
                }
                // There is a newer one now.
                Found::Removed => {}
            }
        }
        Err(wrong(format!("the job in `{}` removes its checkpoints faster than they can be opened", self.directory)))
    }
}

fn wrong(doing: String) -> Error {
    Error::new(ErrorKind::Checkpoint, doing)
}

fn verified(file: &FileRef, mut input: Box<dyn Input>) -> io::Result<(Verified, Box<dyn Input>)> {
    Ok((verify_opened(&mut *input, file)?, input))
}

/// A checkpoint of which every byte was read.
pub(crate) struct Whole {
    pub(crate) manifest: Manifest,
    files: Vec<Verified>,
    blocks: Vec<BlockFile>,
}

impl Whole {
    /// What it keeps of an operator.
    ///
    /// # Errors
    /// When it keeps nothing of it.
    pub(crate) fn operator(&self, name: &str) -> Result<&Operator> {
        let operators = &self.manifest.operators;
        if let Some(operator) = operators.iter().find(|operator| operator.name == name) {
            return Ok(operator);
        }
        let names: Vec<_> = operators.iter().map(|operator| format!("`{}`", operator.name)).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(wrong(format!("checkpoint {} has no state of `{name}`; it has state of {names}", self.manifest.checkpoint)))
    }

    /// How many bytes its files hold of an operator, also of what is no longer true.
    pub(crate) fn bytes(&self, operator: &Operator) -> u64 {
        volume(&self.files, operator).bytes
    }

    /// The key groups in parts, of which each fits into memory.
    pub(crate) fn parts(&self, operator: &str) -> impl Iterator<Item = Range<usize>> + use<> {
        parts_of(self.operator(operator).map(|operator| volume(&self.files, operator)).unwrap_or_default())
    }

    /// The state that an operator has in these key groups: none when the checkpoint does not know
    /// it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn state(&mut self, operator: &str, groups: &Range<usize>) -> Result<State> {
        let known = self.manifest.operators.iter().find(|known| known.name == operator);
        let Some(operator) = known else { return Ok(State::default()) };
        let mut read = ReadEntries::default();
        let files = self.files.iter().zip(&mut self.blocks).skip(operator.since as usize);
        for (file, blocks) in files {
            let added = read.add(file, blocks, operator, groups);
            added.map_err(|cause| wrong(format!("cannot read `{}`", file.file.name)).caused_by(cause))?;
        }
        let newest = read.newest().map_err(|cause| {
            wrong(format!("cannot read the state of `{}` in {}", operator.name, self.manifest.checkpoint))
                .caused_by(cause)
        })?;
        Ok(State(newest))
    }
}

/// The state of an operator in some key groups.
#[derive(Debug, Default)]
pub(crate) struct State(Delta);

/// What has become of a key between two checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Difference<'b> {
    Added(&'b [u8]),
    Removed(&'b [u8]),
    Changed { before: &'b [u8], after: &'b [u8] },
}

impl State {
    /// The keys with their states.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.by_group().map(|(_, key, state)| (key, state))
    }

    fn by_group(&self) -> impl Iterator<Item = (KeyGroup, &[u8], &[u8])> {
        self.0.groups().flat_map(|(group, entries)| {
            RawEntries::new(&entries.bytes).flatten().filter_map(move |entry| Some((group, entry.key, entry.state?)))
        })
    }

    /// What is different in a later state, with the keys.
    pub(crate) fn compare<'b>(&'b self, later: &'b State) -> Vec<(&'b [u8], Difference<'b>)> {
        let mut before: BTreeMap<_, _> = self.by_group().map(|(group, key, state)| ((group, key), state)).collect();
        let mut differences = Vec::new();
        for (group, key, after) in later.by_group() {
            match before.remove(&(group, key)) {
                None => differences.push((key, Difference::Added(after))),
                Some(before) if before == after => {}
                Some(before) => differences.push((key, Difference::Changed { before, after })),
            }
        }
        differences.extend(before.into_iter().map(|((_, key), before)| (key, Difference::Removed(before))));
        differences
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::state::block::{BlockWriter, FORMAT, FileHead};
    use crate::state::describe::Types;
    use crate::state::disk::{Memory, Output};
    use crate::state::merge::Volume;
    use crate::words::KEY_GROUPS;

    use super::*;

    /// A disk on which a job removes a checkpoint as soon as its file is opened, and writes the
    /// next: those from `first` on, before `until`.
    #[derive(Clone, Debug)]
    struct Removing {
        disk: Arc<Memory>,
        first: u64,
        until: u64,
    }

    impl Disk for Removing {
        fn names(&self) -> io::Result<Vec<String>> {
            self.disk.names()
        }

        fn create(&self, name: &str) -> io::Result<Box<dyn Output>> {
            self.disk.create(name)
        }

        fn open(&self, name: &str) -> io::Result<Box<dyn Input>> {
            let number = name.strip_prefix("log-").and_then(|number| number.parse().ok());
            if let Some(number) = number.filter(|number| (self.first..self.until).contains(number)) {
                self.disk.remove(&Manifest::name(CheckpointId::new(number))).unwrap();
                self.disk.remove(name).unwrap();
                write(&self.disk, number + 1);
            }
            self.disk.open(name)
        }

        fn rename(&self, _: &str, _: &str) -> io::Result<()> {
            panic!("it only reads")
        }

        fn remove(&self, _: &str) -> io::Result<()> {
            panic!("it only reads")
        }

        fn sync_names(&self) -> io::Result<()> {
            panic!("it only reads")
        }
    }

    /// A checkpoint with one file, in which each key from 0 to its number has that number as its
    /// state, and key 0 is deleted.
    fn write(disk: &Memory, number: u64) {
        let head = FileHead {
            format: FORMAT.to_owned(),
            job: "job".to_owned(),
            run: "run".to_owned(),
            operators: vec!["count".to_owned()],
        };
        let mut delta = Delta::default();
        for key in 0..=number {
            delta.put(KeyGroup::of(&key), &key, &number).unwrap();
        }
        delta.delete(KeyGroup::of(&0_u64), &postcard::to_stdvec(&0_u64).unwrap());
        let mut writer = BlockWriter::create(disk, format!("log-{number}"), &head).unwrap();
        writer.append_delta(0, &delta).unwrap();
        let operator = Operator {
            name: "count".to_owned(),
            what: "count".to_owned(),
            types: Types::of::<u64, u64>(0),
            entries: number,
            watermark: None,
            since: 0,
        };
        let manifest = Manifest {
            job: head.job,
            identity: "run".to_owned(),
            run: head.run,
            checkpoint: CheckpointId::new(number),
            written: 0,
            sources: Vec::new(),
            operators: vec![operator],
            files: vec![writer.sync().unwrap()],
        };
        let mut output = disk.create(&Manifest::name(manifest.checkpoint)).unwrap();
        output.write(&manifest.encode().unwrap()).unwrap();
    }

    fn removed_until(first: u64, until: u64) -> Checkpoints {
        let disk = Arc::new(Memory::default());
        write(&disk, first);
        let removing = Removing { disk, first, until };
        Checkpoints { disk: Box::new(removing), directory: "memory".to_owned() }
    }

    fn error(whole: Result<Whole>) -> String {
        whole.err().expect("it cannot be read").to_string()
    }

    fn states(whole: &mut Whole) -> BTreeMap<u64, u64> {
        let decoded = |bytes: &[u8]| postcard::from_bytes::<u64>(bytes).unwrap();
        let mut states = BTreeMap::new();
        for groups in whole.parts("count") {
            let state = whole.state("count", &groups).unwrap();
            states.extend(state.entries().map(|(key, state)| (decoded(key), decoded(state))));
        }
        states
    }

    #[test]
    fn a_checkpoint_that_is_removed_while_it_is_read_is_not_damage() {
        let number = CheckpointId::new;
        assert!(matches!(removed_until(3, 5).read(number(3)), Found::Removed));
        let error = error(removed_until(3, 5).whole(Some(number(3))));
        assert_eq!(error, "checkpoint 3 is not in `memory`: there are 4");
        let error = self::error(removed_until(3, 1000).whole(None));
        assert!(error.contains("faster than they can be opened"), "{error}");
    }

    #[test]
    fn the_newest_checkpoint_is_looked_for_again_when_it_is_removed() {
        // 3 and 4 are removed while they are opened, and 5 is not.
        let mut whole = removed_until(3, 5).whole(None).unwrap();
        assert_eq!(states(&mut whole), (1..=5).map(|key| (key, 5)).collect());
    }

    #[test]
    fn a_file_that_its_manifest_still_names_is_missed() {
        let disk = Arc::new(Memory::default());
        write(&disk, 2);
        disk.remove("log-2").unwrap();
        let removing = Removing { disk, first: 0, until: 0 };
        let checkpoints = Checkpoints { disk: Box::new(removing), directory: "memory".to_owned() };
        assert_eq!(error(checkpoints.whole(None)), "checkpoint 2 is damaged: `log-2`: it is missing");
    }

    #[test]
    fn the_parts_of_the_key_groups_are_all_of_them() {
        for bytes in [0, 1, 40 << 20, 3 << 30, u64::MAX] {
            let parts: Vec<_> = parts_of(Volume { count: 0, bytes }).flatten().collect();
            assert_eq!(parts, (0..KEY_GROUPS).collect::<Vec<_>>());
        }
    }

    #[test]
    fn two_states_are_compared_by_key() {
        let state = |entries: &[(u64, u64)]| {
            let mut delta = Delta::default();
            for (key, state) in entries {
                delta.put(KeyGroup::of(key), key, state).unwrap();
            }
            State(delta)
        };
        let (before, after) = (state(&[(1, 10), (2, 20), (3, 30)]), state(&[(4, 40), (3, 30), (2, 21)]));
        let mut differences = before.compare(&after);
        differences.sort_by_key(|(key, _)| *key);
        let changed = Difference::Changed { before: &[20], after: &[21] };
        let expected: [(&[u8], _); 3] =
            [(&[1], Difference::Removed(&[10])), (&[2], changed), (&[4], Difference::Added(&[40]))];
        assert_eq!(differences, expected);
    }
}
