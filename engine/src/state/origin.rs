//! What a table is before its first record: the rows that the user gives it, or what a checkpoint
//! has, which an earlier version of the program may have kept as another type.

use std::fmt;

use super::delta::{NotEntries, decode};
use super::describe::{Look, Schema, Types};
use super::table::{TableKey, TableState};

/// Reads an encoded state.
pub(crate) type Read<S> = Box<dyn Fn(&[u8]) -> Result<S, NotEntries>>;

/// Encodes what of a state is compared between runs.
pub(crate) type Same<S> = fn(&S) -> Vec<u8>;

/// Keys with their states.
pub(crate) type Rows<K, S> = Box<dyn Iterator<Item = (K, S)>>;

/// The beginning of a table.
pub(crate) struct Origin<K, S> {
    /// The version of what the state means.
    version: u32,
    /// Types of earlier versions, with how their states are read.
    older: Vec<(Look, Read<S>)>,
    /// What the table begins with when no checkpoint has anything of it. Of rows with one key it is
    /// the first.
    pub(super) rows: Option<Rows<K, S>>,
    /// How the states of the checkpoint are read, when they are of an older type.
    read: Option<Read<S>>,
    /// What of a state is compared between runs, if not all of it.
    pub(super) same: Option<Same<S>>,
}

impl<K, S> Default for Origin<K, S> {
    fn default() -> Origin<K, S> {
        Origin::new(0, Vec::new(), None)
    }
}

impl<K, S> Origin<K, S> {
    pub(crate) fn new(version: u32, older: Vec<(Look, Read<S>)>, rows: Option<Rows<K, S>>) -> Origin<K, S> {
        Origin { version, older, rows, read: None, same: None }
    }

    /// Says what of a state is compared between runs.
    pub(crate) fn compared_by(self, same: Option<Same<S>>) -> Origin<K, S> {
        Origin { same, ..self }
    }
}

impl<K: TableKey, S: TableState> Origin<K, S> {
    pub(crate) fn schema(&self) -> Schema {
        let older = self.older.iter().map(|(look, _)| *look).collect();
        Schema { now: Look::at::<K, S>(self.version), older }
    }

    /// What will be read was kept as these types.
    pub(crate) fn expect(&mut self, known: &Types) {
        if self.older.is_empty() || known.are(&self.schema().now.types()) {
            return;
        }
        let older = self.older.iter().position(|(look, _)| known.are(&look.types()));
        self.read = older.map(|index| self.older.swap_remove(index).1);
    }

    /// Whether what is read is of an older type.
    pub(crate) fn converts(&self) -> bool {
        self.read.is_some()
    }

    pub(crate) fn read(&self, state: &[u8]) -> Result<S, NotEntries> {
        match &self.read {
            None => decode(state).map_err(|_| NotEntries),
            Some(read) => read(state),
        }
    }
}

impl<K, S> fmt::Debug for Origin<K, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Origin(version {}, {} older)", self.version, self.older.len())
    }
}
