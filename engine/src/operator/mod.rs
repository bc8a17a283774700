//! Floor 3: what happens to records. On a record's path: [`ingest`] polls a reader as far as
//! [`intake`] allows, stamps what it releases with the open epoch and runs the fused [`stage`]s
//! over it, among them [`calls`] of other services; an [`exchange`] moves it to another worker; an
//! [`egress`] hands it to a writer and holds its checkpoint open until it is acknowledged. All of
//! them read the [`pulse`], which says what epoch is open.

pub(crate) mod fault;
pub(crate) mod pulse;
pub(crate) mod inputs;
pub(crate) mod ledger;

pub(crate) mod marks;
pub(crate) mod watermark;
pub(crate) mod intake;
pub(crate) mod drain;
pub(crate) mod ingest;

pub(crate) mod stage;
pub(crate) mod call_threads;
mod attempt;
pub(crate) mod call_queue;
pub(crate) mod calls;
pub(crate) mod exchange;
pub(crate) mod restored;
pub(crate) mod state_ledger;
mod arrivals;
pub(crate) mod timed;
pub(crate) mod keyed;
pub(crate) mod by_trigger;
pub(crate) mod kept_calls;
pub(crate) mod aggregate;
pub(crate) mod aggregates;
pub(crate) mod sorted;
pub(crate) mod sketches;
pub(crate) mod late;
pub(crate) mod inlet;
pub(crate) mod layout;
mod agenda;
pub(crate) mod shown;
pub(crate) mod window;
pub(crate) mod panes;
pub(crate) mod sessions;
pub(crate) mod shown_sessions;
pub(crate) mod dedup;
pub(crate) mod count_windows;

pub(crate) mod egress;
