//! Rules that are broken on purpose.

/// Defines the mistakes, and with them the list of all.
macro_rules! mistakes {
    ($($(#[$what:meta])* $name:ident,)*) => {
        /// A planted mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mistake {
            /// The rules as they are.
            None,
            $($(#[$what])* $name,)*
        }

        impl Mistake {
            /// All but `None`.
            pub const ALL: &[Mistake] = &[$(Mistake::$name),*];
        }
    };
}

mistakes! {
    /// A record is late by the watermark in force instead of its own mark.
    LateByWatermark,
    /// The delta of a checkpoint is taken before the firings of that checkpoint.
    DeltaBeforeFirings,
    /// A firing leaves at the frontier instead of the epoch of the report.
    FireAtFrontier,
    /// Sources report to every operator, and operators relay nothing.
    Broadcast,
    /// Like `Broadcast`, and a firing leaves at the epoch after the report.
    BroadcastNext,
    /// Records of the next checkpoint are applied at once.
    NoSetAside,
    /// Records are set aside until the frontier of the first input has passed the boundary.
    SetAsideByOneInput,
    /// An operator fires when the frontier of the reports has passed, whatever the records do.
    FireByReportsAlone,
    /// The watermark of an operator is not in the checkpoint.
    NoWatermarkInCheckpoint,
    /// The marks of the partitions are not in the checkpoint.
    NoMarksInCheckpoint,
    /// A restarted run reports only marks that move.
    NoReportAfterRestart,
    /// An operator with changes holds no capability of the ledger.
    NothingHeldOnLedger,
    /// A checkpoint is cut when every operator has handed in a section.
    CountSections,
    /// A firing carries the new watermark as its mark.
    FiringMarkedNew,
    /// A record that is handed on loses its mark.
    HandedOnWithoutMark,
    /// A joined pair carries the mark of the record that came second.
    JoinMarkRaw,
    /// A join relays its watermark without lowering it by its bound.
    JoinRelayRaw,
    /// A session record is late by the end of its session, as in Spark.
    SessionLateByEnd,
    /// Lateness is allowed, but the window is final at its end.
    FinalBeforeAllowedLateness,
    /// A window with allowed lateness relays its watermark as it is.
    LatenessRelayRaw,
    /// Timers fire by the watermark alone, never before a record of their key.
    TimersByWatermark,
    /// What an early timer emits leaves at once.
    EarlyTimersNotHeld,
    /// A partition without a first record counts as idle.
    UnknownIsIdle,
    /// A partition that returns from idleness is judged by its own mark only.
    ReturnedByMarkOnly,
    /// The watermark of an operator goes back when a partition returns.
    WatermarkGoesBack,
    /// No partition is ever found idle.
    NeverIdle,
    /// A partition that falls idle is no reason for an epoch.
    NoEpochForIdle,
    /// A bounded source ends without setting its marks to infinity.
    EndWithoutInfinity,
    /// Calls pass a report on as it is.
    CallsRelayRaw,
    /// A call that comes back is no reason for an epoch.
    NoEpochForCalls,
    /// A function that depends on the order of its records.
    DependsOnOrder,
    /// An egress queues in order of arrival.
    EgressInOneQueue,
    /// A firing is charged to the budget of records.
    FiringOnBudget,
    /// A firing waits for the reserve's room whatever checkpoint its rows are of.
    ReserveOfAllCheckpoints,
    /// Files and manifests are named by their checkpoint only.
    FilesWithoutRun,
    /// The manifest is renamed before the data is synced.
    RenameBeforeSync,
    /// The directory is not synced after the rename.
    DirectoryNotSynced,
    /// The manifest is written before the sink has acknowledged.
    ManifestBeforeAcknowledged,
    /// The manifest is written when the sinks have acknowledged, whatever the ledger says.
    DurableBeforeCut,
    /// A receipt resolves when state has taken its record.
    ReceiptAtState,
    /// A restart begins at the positions of the consumer group.
    GroupBeatsCheckpoint,
    /// Positions depend on the number of workers.
    PositionsByWorker,
    /// A restart loads the newest checkpoint and not the one that the sink has committed.
    NewestBeatsProgress,
}

use Mistake::*;

impl Mistake {
    /// Some mistakes show only in plans of one shape: then every seed is one of those.
    pub(crate) fn plan_of(self, seed: u64) -> u64 {
        let (stride, offset) = match self {
            ReturnedByMarkOnly | WatermarkGoesBack | NeverIdle | NoEpochForIdle | NoWatermarkInCheckpoint => (16, 1),
            SessionLateByEnd => (8, 2),
            JoinMarkRaw | JoinRelayRaw => (8, 4),
            CallsRelayRaw | NoEpochForCalls => (8, 5),
            HandedOnWithoutMark => (8, 3),
            FinalBeforeAllowedLateness | LatenessRelayRaw => (8, 6),
            TimersByWatermark | EarlyTimersNotHeld => (8, 7),
            _ => (1, 0),
        };
        seed * stride + offset
    }
}
