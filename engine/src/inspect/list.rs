//! Tables: of the checkpoints in a directory, of what is in one of them, and of what has changed
//! between two.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use crate::state::inspect::{Checkpoints, Difference, Found, Whole};
use crate::state::manifest::{Manifest, Operator};
use crate::words::{CheckpointId, Error, ErrorKind, Offset, Partition};

use super::entries::parts;
use super::{Done, Failed};

/// Lists the checkpoints, and what is in one of them: the newest, if no other is asked for.
pub(super) fn list(checkpoints: &Checkpoints, only: Option<CheckpointId>, out: &mut impl Write) -> Done {
    let numbers = checkpoints.numbers()?;
    let (mut rows, mut damages) = (Vec::new(), Vec::new());
    for &number in &numbers {
        match checkpoints.manifest(number) {
            Some(Ok(manifest)) => rows.push(row_of(&manifest)),
            Some(Err(damage)) => damages.push((number, damage)),
            // Its job has removed it.
            None => {}
        }
    }
    table(out, ["checkpoint", "written", "job", "run", "entries", "files", "bytes"], rows)?;
    for (number, damage) in &damages {
        writeln!(out, "checkpoint {number} is damaged: {damage}")?;
    }
    // What stands above is of use even if the checkpoint cannot be read.
    out.flush()?;
    let whole = checkpoints.whole(only)?;
    let Manifest { checkpoint, sources, operators, .. } = &whole.manifest;
    writeln!(out, "\nsources in checkpoint {checkpoint}\n")?;
    let mut positions = Vec::new();
    for (name, offsets) in sources {
        // One that has not moved is a source, too.
        if offsets.is_empty() {
            positions.push([name.clone(), String::new(), String::new()]);
        }
        positions
            .extend(offsets.iter().map(|(partition, next)| [name.clone(), partition.to_string(), next.to_string()]));
    }
    table(out, ["source", "partition", "position"], positions)?;
    writeln!(out, "\noperators in checkpoint {checkpoint}\n")?;
    table(out, ["operator", "entries", "bytes in files", "version", "key", "state"], sizes(&whole, operators))?;
    if damages.is_empty() { Ok(()) } else { Err(damaged(damages.len(), numbers.len())) }
}

/// A row for each operator, the largest first.
fn sizes(whole: &Whole, operators: &[Operator]) -> Vec<[String; 6]> {
    let mut sizes: Vec<(u64, &Operator)> = operators.iter().map(|operator| (whole.bytes(operator), operator)).collect();
    sizes.sort_by(|(one, _), (other, _)| other.cmp(one));
    let row = |(bytes, Operator { name, types, entries, .. }): (u64, &Operator)| {
        [
            name.clone(),
            entries.to_string(),
            bytes.to_string(),
            types.version.to_string(),
            types.key.to_string(),
            types.state.to_string(),
        ]
    };
    sizes.into_iter().map(row).collect()
}

fn row_of(manifest: &Manifest) -> [String; 7] {
    let entries: u64 = manifest.operators.iter().map(|operator| operator.entries).sum();
    let bytes: u64 = manifest.files.iter().map(|file| file.length).sum();
    [
        manifest.checkpoint.to_string(),
        time(manifest.written),
        manifest.job.clone(),
        manifest.run.clone(),
        entries.to_string(),
        manifest.files.len().to_string(),
        bytes.to_string(),
    ]
}

/// A time in milliseconds since 1970; the number itself where the calendar has no year for it.
fn time(milliseconds: u64) -> String {
    const YEAR_10000: u64 = 253_402_300_800_000;
    if milliseconds >= YEAR_10000 {
        return milliseconds.to_string();
    }
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(milliseconds)).to_string()
}

/// Reads every byte of all checkpoints, or of one.
pub(super) fn verify(checkpoints: &Checkpoints, only: Option<CheckpointId>, out: &mut impl Write) -> Done {
    if only.is_some() {
        return say_whole(&checkpoints.whole(only)?, out);
    }
    let (mut read, mut bad) = (0, 0);
    for number in checkpoints.numbers()? {
        match checkpoints.read(number) {
            Found::Whole(whole) => say_whole(&whole, out)?,
            Found::Damaged(damages) => {
                bad += 1;
                writeln!(out, "checkpoint {number} is damaged")?;
                damages.iter().try_for_each(|damage| writeln!(out, "  {damage}"))?;
            }
            Found::Removed => {
                writeln!(out, "checkpoint {number} was removed by its job")?;
                continue;
            }
        }
        read += 1;
        // They may be large.
        out.flush()?;
    }
    match (read, bad) {
        (0, _) => say_whole(&checkpoints.whole(None)?, out),
        (_, 0) => Ok(()),
        _ => Err(damaged(bad, read)),
    }
}

fn damaged(count: usize, of: usize) -> Failed {
    Error::new(ErrorKind::Checkpoint, format!("{count} of {of} checkpoints are damaged")).into()
}

fn say_whole(whole: &Whole, out: &mut impl Write) -> Done {
    let Manifest { checkpoint, files, .. } = &whole.manifest;
    let bytes: u64 = files.iter().map(|file| file.length).sum();
    Ok(writeln!(out, "checkpoint {checkpoint} is whole: files {}, bytes {bytes}", files.len())?)
}

/// Counts the entries that have changed, by operator.
pub(super) fn count_changes(before: &mut Whole, after: &mut Whole, out: &mut impl Write) -> Done {
    let moved = moved(&before.manifest, &after.manifest);
    let number = |position: Option<Offset>| position.map_or_else(String::new, |next| next.to_string());
    let moved = moved
        .into_iter()
        .map(|((source, partition), [from, to])| [source.to_owned(), partition.to_string(), number(from), number(to)]);
    table(out, ["source", "partition", "from", "to"], moved)?;
    let operators = before.manifest.operators.iter().chain(&after.manifest.operators);
    let names: BTreeSet<String> = operators.map(|operator| operator.name.clone()).collect();
    let mut rows = Vec::new();
    for name in names {
        let [mut added, mut removed, mut changed] = [0_u64; 3];
        for groups in parts(before, after, &name) {
            for (_, difference) in before.state(&name, &groups)?.compare(&after.state(&name, &groups)?) {
                match difference {
                    Difference::Added(_) => added += 1,
                    Difference::Removed(_) => removed += 1,
                    Difference::Changed { .. } => changed += 1,
                }
            }
        }
        rows.push([name, added.to_string(), removed.to_string(), changed.to_string()]);
    }
    writeln!(out)?;
    table(out, ["operator", "added", "removed", "changed"], rows)
}

/// The partitions of sources whose positions differ, with both.
fn moved<'m>(before: &'m Manifest, after: &'m Manifest) -> BTreeMap<(&'m str, &'m Partition), [Option<Offset>; 2]> {
    let mut positions = BTreeMap::<_, [Option<Offset>; 2]>::new();
    for (which, manifest) in [before, after].into_iter().enumerate() {
        for (source, offsets) in &manifest.sources {
            for (partition, next) in offsets {
                positions.entry((source.as_str(), partition)).or_default()[which] = Some(next);
            }
        }
    }
    positions.retain(|_, [from, to]| from != to);
    positions
}

/// Writes a table with columns as wide as their widest cell, and numbers to the right.
fn table<const N: usize>(out: &mut impl Write, head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Done {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let is_number = |column: usize| rows.iter().all(|row| row[column].bytes().all(|byte| byte.is_ascii_digit()));
    let are_numbers: [bool; N] = std::array::from_fn(is_number);
    for row in [head.map(str::to_owned)].iter().chain(&rows) {
        let mut line = String::new();
        for ((cell, width), is_number) in row.iter().zip(widths).zip(are_numbers) {
            let cell = if is_number { format!("{cell:>width$}  ") } else { format!("{cell:width$}  ") };
            line.push_str(&cell);
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
