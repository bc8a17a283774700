//! What operators tell `gather` about a checkpoint: sources how far they have released their
//! partitions, keyed operators what has changed in their state.

use crate::state::delta::Delta;
use crate::words::{CheckpointId, HeldReceipts, Offsets};

use super::fault::Node;
use super::ingest::SourceIndex;

/// One worker's part of a checkpoint.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) part: Part,
}

/// What a piece is about.
#[derive(Debug)]
pub(crate) enum Part {
    /// How far a source has released its partitions.
    Released(SourceIndex, Offsets),
    /// What has changed in the state of an operator.
    Changed(Node, Delta),
    /// Receipts of records that are in the state of an operator: they resolve when the checkpoint
    /// is committed.
    Received(HeldReceipts),
}
