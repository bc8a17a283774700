//! What the harness of an operator does with its state, whose types it does not know.

use std::collections::HashMap;
use std::ops::Range;

use crate::words::{Fingerprint, KeyGroup};

use super::delta::{Delta, NotEntries};
use super::describe::{Schema, Types};

/// What takes memory for longer than a batch.
pub(crate) trait Held {
    /// Whether its tables have grown since this was last asked.
    fn has_grown(&mut self) -> bool;

    /// The number of entries.
    fn len(&self) -> u64;

    /// The memory that it takes: exactly that of the tables, and what keys and states point to as
    /// far as the entries that were touched last tell.
    fn bytes(&self) -> u64;
}

/// A table whose types are not known: what the harness does with the state of an operator.
pub(crate) trait Keep: Held {
    /// Puts the list of what was touched aside, and begins a new one.
    fn cut(&mut self);

    /// Drops the list that was put aside.
    fn drop_cut(&mut self);

    /// Encodes so many entries of the list that was put aside. Returns its changes once all of them
    /// are encoded.
    ///
    /// # Errors
    /// When an entry cannot be encoded.
    fn encode(&mut self, entries: usize) -> Result<Option<Delta>, postcard::Error>;

    /// What it was when nothing of it was kept yet, as far as this worker owns it.
    ///
    /// # Errors
    /// When an entry cannot be encoded.
    fn begin(&mut self, owns: &dyn Fn(KeyGroup) -> bool) -> Result<(), postcard::Error>;

    /// What will be loaded was kept as these types.
    fn expect_types(&mut self, known: &Types);

    /// Called when everything is loaded, and before anything else. If it was converted, the next
    /// delta has all of it.
    ///
    /// # Errors
    /// When an entry cannot be encoded.
    fn loaded(&mut self) -> Result<(), postcard::Error>;

    /// Makes room for entries that will be loaded into these groups.
    fn expect(&mut self, groups: Range<usize>, entries: u64);

    /// Loads entries that were kept under a group. Those that belong to another group become
    /// strays.
    ///
    /// # Errors
    /// When the bytes are not entries of these types.
    fn load(&mut self, group: KeyGroup, entries: &[u8], strays: &mut Strays) -> Result<(), NotEntries>;

    /// Takes an entry that was kept under another group. The next delta has it.
    ///
    /// # Errors
    /// When the bytes are not an entry of these types.
    fn adopt(&mut self, key: &[u8], state: &[u8]) -> Result<(), NotEntries>;

    /// The next delta says that the key has no state under that group.
    fn disown(&mut self, group: KeyGroup, key: &[u8]);

    /// Whether the next delta will have anything.
    fn has_changed(&self) -> bool;

    fn schema(&self) -> Schema;

    /// Adds all entries, as they are encoded.
    fn add_to(&self, print: &Fingerprint);
}

/// Entries that were kept under another group than that of their key: the `Hash` of the key has
/// changed. By the group under which they were kept and the key: the group of the key, and the
/// state.
pub(crate) type Strays = HashMap<(KeyGroup, Vec<u8>), (KeyGroup, Vec<u8>)>;
