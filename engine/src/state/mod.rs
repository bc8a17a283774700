//! What is remembered, and how it is kept. This is the only floor that touches files.
//!
//! An operator keeps a [`table`]; what a checkpoint has changed in it leaves as a [`delta`]. The
//! checkpoint's thread appends deltas to files of [`block`]s on a [`disk`], and names what belongs
//! to a checkpoint in a [`manifest`]; all of that is the [`store`]. [`recover`] finds the newest
//! checkpoint that is whole. [`inspect`] and [`show`] are for the command that looks at all of it.

pub(crate) mod keep;
mod place;
pub(crate) mod table;
pub(crate) mod delta;
pub(crate) mod describe;
mod trace;
mod shape_text;
pub(crate) mod origin;
pub(crate) mod pending;
pub(crate) mod disk;
pub(crate) mod block;
pub(crate) mod manifest;
pub(crate) mod store;
mod merge;
pub(crate) mod recover;
#[cfg(feature = "inspect")]
pub(crate) mod inspect;
#[cfg(feature = "inspect")]
pub(crate) mod show;

#[cfg(test)]
pub(crate) mod faulty_disk;
