//! The store: crashes at each step, damage, files that are swapped, and what is kept and removed.

use std::collections::{BTreeMap, BTreeSet};

use super::super::faulty_disk::{Fails, FaultyDisk, Leaves, Trouble, kind_of};
use super::super::keep::{Held, Keep, Strays};
use super::super::recover::recover;
use super::super::table::Table;
use super::*;
use crate::words::{ErrorKind, KEY_GROUPS, KeyGroup, Offset, Partition, Result};

type Counts = BTreeMap<u64, String>;

const JOB: &str = "counts";

/// A run that keeps two tables, and what they should hold.
struct Run {
    store: Store,
    tables: [Table<u64, String>; 2],
    counts: [Counts; 2],
    checkpoint: u64,
}

fn offsets(checkpoint: u64) -> Offsets {
    [(Partition::new("orders/0"), Offset(checkpoint * 10))].into_iter().collect()
}

fn kept() -> [Kept; 2] {
    let kept = |name: &str| Kept { name: name.to_owned(), what: String::new(), types: Types::of::<u64, String>(0) };
    [kept("first"), kept("second")]
}

fn loaded(recovered: &Recovered, operator: &str) -> Result<Table<u64, String>> {
    let (mut table, mut strays) = (Table::new(), Strays::new());
    // As two workers would.
    for groups in [0..100, 100..KEY_GROUPS] {
        recovered.load(operator, groups, &mut table, &mut strays, &mut |_, _| Ok(()))?;
    }
    assert!(strays.is_empty(), "{strays:?}");
    Ok(table)
}

fn content(table: &Table<u64, String>) -> Counts {
    let entries = (0..table.parts()).flat_map(|part| table.entries_of(part));
    entries.map(|entry| (entry.key, entry.state.clone())).collect()
}

impl Run {
    /// Begins where the newest checkpoint is.
    fn begin(disk: Arc<dyn Disk>, name: &str, retain: Retain) -> Result<Run> {
        let recovered = recover(&disk, JOB)?;
        let tables = match &recovered {
            None => [Table::new(), Table::new()],
            Some(recovered) => [loaded(recovered, "first")?, loaded(recovered, "second")?],
        };
        let sources = vec!["orders".to_owned()];
        let place = Place { disk, retain, _lock: None };
        let store = Store::begin(place, Arc::default(), (JOB, name), recovered.as_ref(), sources, &kept());
        let mut store =
            store.map_err(|cause| crate::words::Error::new(ErrorKind::Checkpoint, "begin").caused_by(cause))?;
        store.merge_bytes = 200;
        let checkpoint = recovered.map_or(0, |recovered| {
            let manifest = &recovered.manifest;
            assert_eq!(manifest.sources, [("orders".to_owned(), offsets(manifest.checkpoint.number()))]);
            let entries = manifest.operators.iter().map(|operator| operator.entries);
            assert!(entries.eq(tables.iter().map(Held::len)), "{:?}", manifest.operators);
            manifest.checkpoint.number()
        });
        Ok(Run { store, counts: [content(&tables[0]), content(&tables[1])], tables, checkpoint })
    }

    /// Changes some entries, and publishes that.
    fn step(&mut self) -> io::Result<Vec<Counts>> {
        self.checkpoint += 1;
        let checkpoint = self.checkpoint;
        let mut deltas = Vec::new();
        for (index, table) in self.tables.iter_mut().enumerate() {
            // Some checkpoints change nothing of an operator.
            let keys: Vec<u64> = (0..(checkpoint + index as u64) % 4 * 3).map(|n| (n * 7 + checkpoint) % 20).collect();
            let records = keys.iter().map(|key| (*key, ())).collect();
            let state = |_, _, (), state: &mut String, _| {
                *state = format!("{checkpoint} of {index}");
                Ok(())
            };
            table.update(records, String::new, state).expect("nothing fails");
            let counts = &mut self.counts[index];
            keys.into_iter().for_each(|key| drop(counts.insert(key, format!("{checkpoint} of {index}"))));
            table.cut();
            while deltas.len() <= index {
                deltas.extend(table.encode(3).expect("it can be encoded").map(|delta| (index, delta)));
            }
        }
        let content = Content { sources: vec![offsets(checkpoint)], deltas, written: 0 };
        self.store.publish(CheckpointId::new(checkpoint), &content)?;
        while self.store.merge()? == Merged::Some {}
        Ok(self.counts.to_vec())
    }
}

/// What each checkpoint should hold, as far as it was begun.
type History = BTreeMap<u64, Vec<Counts>>;

/// Runs until the disk fails, and through one restart at which the newest manifest is damaged.
/// Returns the last checkpoint that was published for certain.
fn script(disk: &FaultyDisk, history: &mut History) -> u64 {
    let mut published = 0;
    for name in ["a", "b"] {
        let Ok(mut run) = Run::begin(Arc::new(disk.clone()), name, Retain::Three) else { return published };
        for _ in 0..9 {
            let ahead = run.step();
            // Merges come after the checkpoint is published, so it may be there whatever follows.
            history.insert(run.checkpoint, run.counts.to_vec());
            match ahead {
                Ok(_) => published = run.checkpoint,
                Err(_) => return published,
            }
        }
        if name == "a" && !disk.has_failed() {
            disk.damage(&Manifest::name(CheckpointId::new(published)), |bytes| bytes[40] ^= 1);
            published -= 1;
        }
    }
    published
}

/// The steps by which a checkpoint is written, merged, recovered and removed. A new one must be
/// listed here, and so is stopped at by the test below.
const STEPS: [&str; 16] = [
    "create image",
    "create log",
    "create new manifest",
    "remove image",
    "remove log",
    "remove manifest",
    "remove new manifest",
    "rename to damaged",
    "rename to manifest",
    "sync image",
    "sync log",
    "sync names",
    "sync new manifest",
    "write image",
    "write log",
    "write new manifest",
];

#[test]
fn a_crash_at_any_step_leaves_the_last_checkpoint_that_was_published() {
    let whole = FaultyDisk::default();
    let mut history = History::new();
    assert_eq!(script(&whole, &mut history), 17);
    let steps = whole.steps();
    let mut seen: BTreeSet<String> = steps.iter().cloned().collect();
    // How far recovery fell back, over all crashes.
    let (mut exactly, mut more) = (0, 0);
    for (step, name) in steps.iter().enumerate() {
        for fails in [Fails::Before, Fails::InTheMiddle, Fails::After] {
            for leaves in [Leaves::Nothing, Leaves::Half, Leaves::Bytes, Leaves::Names, Leaves::Everything] {
                let what = format!("step {step} ({name}) fails {fails:?}, the crash leaves {leaves:?}");
                let disk = FaultyDisk::default().failing(step, fails);
                let mut history = History::new();
                let published = script(&disk, &mut history);
                let disk = disk.after_crash(leaves);
                let run = Run::begin(Arc::new(disk.clone()), "c", Retain::Three);
                let mut run = run.unwrap_or_else(|error| panic!("{what}: {error:#}"));
                assert!(run.checkpoint >= published, "{what}: {} of {published}", run.checkpoint);
                if run.checkpoint == published {
                    exactly += 1;
                } else {
                    more += 1;
                }
                if let Some(expected) = history.get(&run.checkpoint) {
                    assert_eq!(run.counts.to_vec(), *expected, "{what}");
                } else {
                    assert_eq!(run.checkpoint, 0, "{what}");
                }
                // It goes on, and what is not needed goes.
                for _ in 0..8 {
                    run.step().unwrap_or_else(|error| panic!("{what}: {error}"));
                }
                let files = disk.names().expect("the disk is whole");
                assert!(files.len() <= 14, "{what}: {files:?}");
                seen.extend(disk.steps());
                let (again, counts) =
                    (Run::begin(Arc::new(disk), "d", Retain::Three).expect("it is whole"), run.counts);
                assert_eq!(again.counts, counts, "{what}");
            }
        }
    }
    assert!(exactly > 100 && more > 10, "{exactly} exactly, {more} more");
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), STEPS);
}

/// A disk with some checkpoints, and what they hold.
fn written() -> (FaultyDisk, History) {
    let disk = FaultyDisk::default();
    let mut history = History::new();
    let mut run = Run::begin(Arc::new(disk.clone()), "a", Retain::Three).unwrap();
    for _ in 0..7 {
        history.insert(run.checkpoint + 1, run.step().unwrap());
    }
    (disk, history)
}

/// With the thresholds of a real store, and state that only grows or is as small as can be.
#[test]
fn no_file_is_the_only_one_that_holds_the_state() {
    for (changes, checkpoints) in [(1, 3), (1, 250), (2_000, 60)] {
        let disk = FaultyDisk::default();
        let mut run = Run::begin(Arc::new(disk.clone()), "a", Retain::Three).unwrap();
        run.store.merge_bytes = MERGE_BYTES;
        let (mut published, mut merged) = (0, 0);
        for checkpoint in 1..=checkpoints {
            let keys = checkpoint * changes..(checkpoint + 1) * changes;
            run.tables[0]
                .update(keys.map(|key| (key, ())).collect(), String::new, |_, key, (), state, _| {
                    *state = format!("{key:040}");
                    Ok(())
                })
                .unwrap();
            run.tables[0].cut();
            let delta = run.tables[0].encode(usize::MAX).unwrap().expect("all of it");
            let content = Content { sources: vec![offsets(checkpoint)], deltas: vec![(0, delta)], written: 0 };
            published += run.store.publish(CheckpointId::new(checkpoint), &content).unwrap();
            loop {
                match run.store.merge().unwrap() {
                    Merged::Some => {}
                    Merged::Nothing => break,
                    Merged::All(bytes) => merged += bytes,
                }
            }
            if checkpoint == 1 || checkpoint < checkpoints && checkpoint % 20 != 0 {
                continue;
            }
            for name in disk.names().unwrap() {
                let disk = disk.after_crash(Leaves::Everything);
                disk.damage(&name, |bytes| bytes[0] ^= 1);
                let disk: Arc<dyn Disk> = Arc::new(disk);
                let recovered = recover(&disk, JOB).unwrap_or_else(|error| panic!("`{name}`: {error:#}")).unwrap();
                let number = recovered.manifest.checkpoint.number();
                let table = loaded(&recovered, "first").unwrap();
                assert_eq!(table.len(), number * changes, "`{name}` at {checkpoint}");
                // Not much older than the newest.
                assert!(number + 100.max(checkpoint) >= checkpoint, "`{name}`: {number} of {checkpoint}");
            }
        }
        // State that only grows costs 2.2 writes for each entry, and what was there at first one
        // more.
        assert!(changes < 1_000 || merged * 10 < published * 13, "{merged} bytes merged of {published}");
    }
}

#[test]
fn what_cannot_be_read_now_is_not_taken_for_damaged() {
    let (disk, _) = written();
    let names = disk.names().unwrap();
    disk.trouble(Some(Trouble::Unreadable));
    let error = Run::begin(Arc::new(disk.clone()), "b", Retain::Three).map(|run| run.checkpoint).unwrap_err();
    assert!(format!("{error:#}").contains("too many open files"), "{error:#}");
    assert_eq!(disk.names().unwrap(), names, "nothing is set aside");
    disk.trouble(None);
    assert_eq!(Run::begin(Arc::new(disk), "b", Retain::Three).unwrap().checkpoint, 7);
}

type Damage<'d> = dyn Fn(&mut Vec<u8>) + 'd;

#[test]
fn damage_is_never_loaded() {
    let (disk, history) = written();
    let mut fell_back = 0;
    for name in disk.names().unwrap() {
        let length = disk.content(&name).len();
        for at in 0..length {
            let damages: [&Damage<'_>; 4] = [
                &|bytes| bytes[at] ^= 1 << (at % 8),
                &|bytes| bytes[at] = bytes[at].wrapping_add(0x80),
                &|bytes| bytes.truncate(at),
                &|bytes| drop(bytes.splice(at..at, [0; 4])),
            ];
            for damage in damages {
                let disk = disk.after_crash(Leaves::Everything);
                disk.damage(&name, damage);
                match Run::begin(Arc::new(disk), "b", Retain::Three) {
                    Ok(run) => {
                        assert_eq!(run.counts.to_vec(), history[&run.checkpoint], "`{name}` at {at}");
                        fell_back += u64::from(run.checkpoint < 7);
                    }
                    Err(error) => panic!("`{name}` at {at}: {error:#}"),
                }
            }
        }
    }
    assert!(fell_back > 100, "{fell_back}");
}

#[test]
fn files_that_are_swapped_are_noticed() {
    let (disk, history) = written();
    let (names, mut fell_back) = (disk.names().unwrap(), 0);
    for (first, second) in names.iter().flat_map(|first| names.iter().map(move |second| (first, second))) {
        let swapped = disk.after_crash(Leaves::Everything);
        swapped.damage(first, |bytes| *bytes = disk.content(second));
        swapped.damage(second, |bytes| *bytes = disk.content(first));
        if let Ok(run) = Run::begin(Arc::new(swapped), "b", Retain::Three) {
            assert_eq!(run.counts.to_vec(), history[&run.checkpoint], "`{first}` and `{second}`");
            fell_back += u64::from(run.checkpoint < 7);
        }
    }
    assert!(fell_back > 0, "{fell_back}");
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let error = recover(&disk, "others").expect_err("these are those of another job");
    assert!(error.to_string().contains("job `counts`, not of `others`"), "{error}");
}

/// Files of another job whose runs have the same names, and so have its files.
#[test]
fn files_of_another_job_are_noticed() {
    let (disk, history) = written();
    let other = FaultyDisk::default();
    let place = Place { disk: Arc::new(other.clone()), retain: Retain::Three, _lock: None };
    let mut store =
        Store::begin(place, Arc::default(), ("others", "a"), None, vec!["orders".to_owned()], &kept()).unwrap();
    for checkpoint in 1..=7 {
        let mut delta = Delta::default();
        (0..40).for_each(|key: u64| delta.put(KeyGroup::of(&key), &key, &format!("{checkpoint} of another")).unwrap());
        let content = Content { sources: vec![offsets(checkpoint)], deltas: vec![(0, delta)], written: 0 };
        store.publish(CheckpointId::new(checkpoint), &content).unwrap();
        while store.merge().unwrap() == Merged::Some {}
    }
    let others = other.names().unwrap();
    let (mut tried, mut fell_back) = (0, 0);
    for name in disk.names().unwrap() {
        for theirs in others.iter().filter(|theirs| kind_of(theirs) == kind_of(&name)) {
            let mixed = disk.after_crash(Leaves::Everything);
            mixed.damage(&name, |bytes| *bytes = other.content(theirs));
            tried += 1;
            // A manifest says whose it is. Where the other is older, it is not even looked at.
            match Run::begin(Arc::new(mixed), "b", Retain::Three) {
                Ok(run) => {
                    assert_eq!(run.counts.to_vec(), history[&run.checkpoint], "`{theirs}` in place of `{name}`");
                    fell_back += u64::from(run.checkpoint < 7);
                }
                Err(error) => assert!(error.to_string().contains("of job `others`"), "{error:#}"),
            }
        }
    }
    assert!(tried > 5 && fell_back > 0, "{tried} tried, {fell_back} fell back");
}

#[test]
fn a_run_that_was_replaced_publishes_nothing() {
    let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::default());
    let mut run = Run::begin(Arc::clone(&disk), "a", Retain::Three).unwrap();
    run.step().unwrap();
    assert!(run.store.gate.retire());
    let names = disk.names().unwrap();
    run.step().expect_err("it is retired");
    assert_eq!(recover(&disk, JOB).unwrap().unwrap().manifest.checkpoint, CheckpointId::new(1));
    let mut next = Run::begin(Arc::clone(&disk), "b", Retain::Three).unwrap();
    (0..2).for_each(|_| drop(next.step().unwrap()));
    let before = ["log-a", "image-a", "manifest"];
    assert!(names.iter().all(|name| before.iter().any(|kind| name.starts_with(kind))), "{names:?}");
    assert!(disk.names().unwrap().iter().all(|name| !name.ends_with(".new")), "what it left is removed");
}

#[test]
fn three_checkpoints_are_kept_and_two_that_share_no_file() {
    let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::default());
    let mut run = Run::begin(Arc::clone(&disk), "a", Retain::Three).unwrap();
    (0..30).for_each(|_| drop(run.step().unwrap()));
    let manifests: Vec<Manifest> = disk
        .names()
        .unwrap()
        .iter()
        .filter_map(|name| read_manifest(&*disk, Manifest::checkpoint_of(name)?).ok())
        .collect();
    let numbers: BTreeSet<u64> = manifests.iter().map(|manifest| manifest.checkpoint.number()).collect();
    assert!(numbers.is_superset(&[28, 29, 30].into()) && numbers.len() <= 4, "{numbers:?}");
    let newest = names(&manifests.iter().max_by_key(|manifest| manifest.checkpoint).unwrap().files);
    let is_apart = |manifest: &Manifest| manifest.files.iter().all(|file| !newest.contains(&file.name));
    assert!(manifests.iter().any(is_apart), "{manifests:?}");
}

#[test]
fn in_memory_the_last_checkpoint_is_enough() {
    let disk: Arc<dyn Disk> = Arc::clone(Place::memory().disk());
    let mut run = Run::begin(Arc::clone(&disk), "a", Retain::One).unwrap();
    (0..30).for_each(|_| drop(run.step().unwrap()));
    assert!(disk.names().unwrap().len() <= 5, "{:?}", disk.names());
    let again = Run::begin(disk, "b", Retain::One).unwrap();
    assert_eq!((again.checkpoint, again.counts), (30, run.counts));
}

#[test]
fn entries_under_another_group_than_that_of_their_key_are_strays() {
    let (disk, mut delta) = (FaultyDisk::default(), Delta::default());
    delta.grown = 1;
    let other = KeyGroup::all().find(|group| *group != KeyGroup::of(&1_u64)).unwrap();
    delta.put(other, &1_u64, &"state".to_owned()).unwrap();
    let disk: Arc<dyn Disk> = Arc::new(disk);
    let place = Place { disk: Arc::clone(&disk), retain: Retain::Three, _lock: None };
    let mut store = Store::begin(place, Arc::default(), (JOB, "a"), None, Vec::new(), &kept()).unwrap();
    let content = Content { deltas: vec![(0, delta)], ..Content::default() };
    store.publish(CheckpointId::new(1), &content).unwrap();
    let recovered = recover(&disk, JOB).unwrap().unwrap();
    let (mut table, mut strays) = (Table::<u64, String>::new(), Strays::new());
    recovered.load("first", 0..KEY_GROUPS, &mut table, &mut strays, &mut |_, _| Ok(())).unwrap();
    assert_eq!((table.len(), strays.len()), (0, 1));
    let ((group, key), (own, state)) = strays.into_iter().next().unwrap();
    assert_eq!((group, own), (other, KeyGroup::of(&1_u64)));
    table.disown(group, &key);
    table.adopt(&key, &state).unwrap();
    table.cut();
    let delta = table.encode(10).unwrap().expect("all of it");
    let groups: Vec<KeyGroup> = delta.groups().map(|(group, _)| group).collect();
    assert_eq!(groups.into_iter().collect::<BTreeSet<_>>(), [own, other].into());
    assert_eq!(delta.grown, 0, "it was counted before");
}
