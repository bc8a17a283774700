//! Floor 4: what a moment means. In the order of an epoch: the [`ticker`] opens the next one when there
//! is a reason, and cuts checkpoints; the sources close the old one; [`gather`] sees frontiers pass it
//! and collects the sources' offsets; [`commit`] has sinks commit and sources publish them once every
//! worker has seen the same.

pub(crate) mod ticker;
pub(crate) mod gather;
pub(crate) mod commit;
