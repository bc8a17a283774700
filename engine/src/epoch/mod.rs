//! Floor 4: epochs and checkpoints. In the order of an epoch: the [`ticker`] opens the next one
//! when there is a reason, and cuts checkpoints; the sources close the old one; [`gather`] sees
//! frontiers pass it and collects the sources' offsets and the changes of state; once every worker
//! has seen the same, [`durable`] makes the checkpoint durable, if the job keeps checkpoints; then
//! [`commit`] tells sinks to commit, and sources to publish their offsets.

pub(crate) mod ticker;
pub(crate) mod gather;
pub(crate) mod durable;
pub(crate) mod commit;
