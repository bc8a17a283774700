//! Floor 4: what a moment means. On an epoch's path: the [`ticker`] opens the next one when there is a reason, and cuts
//! checkpoints; the sources close the old one; [`gather`] sees its frontier pass and collects the sources' offsets;
//! [`commit`] publishes them once every worker has seen the same.

pub(crate) mod commit;
pub(crate) mod gather;
pub(crate) mod ticker;
