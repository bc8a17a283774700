//! What an operator tells its ledger about its state, checkpoint by checkpoint: the changes, and
//! the receipts of records that are safe once these are committed.
//!
//! From the first change of a checkpoint until its changes are encoded it holds a capability of the
//! ledger, which shows `gather` what is cut.

use std::sync::Arc;
use std::time::{Duration, Instant};

use timely::dataflow::operators::Capability;

use crate::state::keep::{Held, Keep};
use crate::words::{
    Admission, ByteSize, CheckpointMeter, Clock, Error, ErrorKind, EventTime, Fingerprint, HeldReceipts, Moment,
    Result, StageMeter, StateBudget,
};

use super::fault::Node;
use super::ledger::{Part, Piece};
use super::restored::Restored;
use super::stage::{Capabilities, checkpoint_of};

/// After so many entries the clock is asked.
const ENTRIES_MAX: usize = 32;

/// The shortest and the longest time for which changes are encoded at once: nothing else runs on
/// the worker meanwhile. While records come, changes get no more than half of the time. A reader
/// that returns five records at a time would fall behind if each of its polls waited for this.
const SLICE: (Duration, Duration) = (Duration::from_micros(20), Duration::from_micros(200));

/// What an operator is told about its state.
pub(crate) struct Keeping {
    pub(crate) node: Node,
    /// Its place among how many.
    pub(crate) worker: (usize, usize),
    /// What is counted of the checkpoints that keep it, if any do.
    pub(crate) checkpoints: Option<Arc<CheckpointMeter>>,
    /// What the run begins with.
    pub(crate) restored: Option<Arc<Restored>>,
    pub(crate) meter: Arc<StageMeter>,
    /// The memory that all state of the job may take.
    pub(crate) budget: Arc<StateBudget>,
    /// What the state is at the end of the run is added here.
    pub(crate) print: Option<Arc<Fingerprint>>,
}

/// A piece, and the capability under which it is sent.
pub(super) type Sent = (Piece, Capability<u64>);

/// The ledger of an operator with state.
pub(super) struct StateLedger {
    keeping: Keeping,
    /// The capability of the ledger, from the first change of the open checkpoint.
    at: Option<Capability<u64>>,
    /// The checkpoint before, while its changes are encoded.
    encoding: Option<Encoding>,
    /// Receipts of records that came in the open checkpoint.
    receipts: HeldReceipts,
    /// When changes were encoded last.
    encoded: Moment,
    /// The number of entries, and the memory that they take, as last reported.
    reported: (u64, u64),
    /// The watermark in force, where the operator waits for event time.
    watermark: Option<EventTime>,
}

/// A checkpoint that was cut.
struct Encoding {
    /// The capability of the ledger for it.
    at: Capability<u64>,
    receipts: HeldReceipts,
    watermark: Option<EventTime>,
    began: Instant,
}

fn cannot_encode(cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::State, "cannot encode the state of a key").caused_by(cause)
}

impl StateLedger {
    pub(super) fn new(keeping: Keeping) -> StateLedger {
        StateLedger {
            keeping,
            at: None,
            encoding: None,
            receipts: HeldReceipts::default(),
            encoded: Moment::default(),
            reported: (0, 0),
            watermark: None,
        }
    }

    /// Loads what the run begins with.
    pub(super) fn load(&mut self, name: &str, kept: &mut dyn Keep) -> Result<()> {
        let (worker, workers) = self.keeping.worker;
        match self.keeping.restored.clone().filter(|restored| restored.knows(name)) {
            Some(restored) => {
                restored.load((self.keeping.node, name), worker, kept, &mut |kept, filled| {
                    self.keeping.budget.fill(filled);
                    self.report(kept)
                })?;
            }
            None => kept.begin(&|group| group.worker(workers) == worker).map_err(cannot_encode)?,
        }
        if self.keeping.checkpoints.is_none() {
            kept.drop_cut();
        }
        self.report(kept)
    }

    /// Called when the operator is first scheduled, before any record, with a capability of the
    /// ledger for the first epoch of the run. Keeps it when there is a change already.
    pub(super) fn begin(&mut self, at: Capability<u64>, kept: &mut dyn Keep) -> Result<()> {
        let wrong = |_| Error::new(ErrorKind::State, "what was kept is not of these types");
        if let Some(restored) = self.keeping.restored.take() {
            for (key, state) in restored.take(self.keeping.node, self.keeping.worker.0) {
                kept.adopt(&key, &state).map_err(wrong)?;
            }
        }
        if kept.has_changed() {
            self.at = Some(at);
        }
        Ok(())
    }

    /// Records of that admission change the state; the ledger's is the last of the capabilities.
    pub(super) fn note(&mut self, admission: Option<&Admission>, at: &Capabilities) {
        if let Some(receipts) = admission.and_then(Admission::receipts) {
            self.receipts.hold(receipts);
        }
        if self.at.is_none() {
            self.at = at.last().cloned();
        }
    }

    /// What is still to be done will change the state: keeps a capability of the ledger.
    pub(super) fn expect_changes(&mut self, at: &Capabilities) {
        self.note(None, at);
    }

    /// Puts the changes of the open checkpoint aside.
    pub(super) fn cut(&mut self, kept: &mut dyn Keep) {
        let began = Instant::now();
        kept.cut();
        if let (Some(meter), Some(_)) = (&self.keeping.checkpoints, &self.at) {
            meter.cut(began.elapsed());
        }
    }

    /// The open checkpoint, whose changes are [cut](StateLedger::cut), is closed.
    pub(super) fn close(&mut self, kept: Option<&mut dyn Keep>) {
        self.encoding = self.at.take().map(|at| Encoding {
            at,
            receipts: std::mem::take(&mut self.receipts),
            watermark: self.watermark,
            began: Instant::now(),
        });
        if self.keeping.checkpoints.is_none() {
            kept.into_iter().for_each(Keep::drop_cut);
        }
    }

    /// This watermark is in force.
    pub(super) fn advance(&mut self, watermark: EventTime) {
        self.watermark = Some(watermark);
        self.keeping.meter.watermark.see(watermark);
    }

    /// Shows where the operator holds event time back, if it does.
    pub(super) fn show_held(&self, at: Option<EventTime>) {
        self.keeping.meter.show_held(self.keeping.worker.0, at);
    }

    /// So many records were late.
    pub(super) fn note_late(&self, records: u64) {
        if records > 0 {
            self.keeping.meter.late.add(records);
        }
    }

    /// Whether anything has changed in the open checkpoint, or is expected to.
    pub(super) fn is_open(&self) -> bool {
        self.at.is_some()
    }

    /// Whether changes of the checkpoint before are not told to the ledger yet.
    pub(super) fn is_encoding(&self) -> bool {
        self.encoding.is_some()
    }

    /// Encodes some of the changes of the checkpoint that was closed; `is_busy` says that records
    /// come too. Returns what the ledger is told of it, once that is complete.
    pub(super) fn encode(
        &mut self,
        mut kept: Option<&mut dyn Keep>,
        clock: &Clock,
        is_busy: bool,
    ) -> Result<Vec<Sent>> {
        if self.encoding.is_none() {
            return Ok(Vec::new());
        }
        let mut parts = Vec::new();
        if let (Some(kept), Some(_)) = (kept.as_mut(), &self.keeping.checkpoints) {
            let now = clock.now();
            let slice = if is_busy { (now - self.encoded).min(SLICE.1) } else { SLICE.1 };
            if slice < SLICE.0 {
                return Ok(Vec::new());
            }
            let deadline = now.after(slice);
            let mut delta = loop {
                let encoded = kept.encode(ENTRIES_MAX).map_err(cannot_encode)?;
                let now = clock.now();
                self.encoded = now;
                match encoded {
                    Some(delta) => break delta,
                    None if now >= deadline => return Ok(Vec::new()),
                    None => {}
                }
            };
            delta.watermark = self.encoding.as_ref().and_then(|encoding| encoding.watermark);
            parts.push(Part::Changed(self.keeping.node, delta));
        }
        if let Some(kept) = kept {
            self.report(kept)?;
        }
        let Some(Encoding { at, receipts, began, .. }) = self.encoding.take() else { return Ok(Vec::new()) };
        if let Some(meter) = self.keeping.checkpoints.as_ref().filter(|_| !parts.is_empty()) {
            meter.encoded(began.elapsed());
        }
        if !receipts.is_empty() {
            parts.push(Part::Received(receipts));
        }
        let checkpoint = checkpoint_of(&at);
        Ok(parts.into_iter().map(|part| (Piece { checkpoint, part }, at.clone())).collect())
    }

    /// Counts the entries and the memory that they take.
    ///
    /// # Errors
    /// When the state of the job has outgrown its memory.
    pub(super) fn report(&mut self, held: &dyn Held) -> Result<()> {
        let (entries, bytes) = std::mem::replace(&mut self.reported, (held.len(), held.bytes()));
        self.keeping.meter.entries.change(entries, self.reported.0);
        self.keeping.meter.state_bytes.change(bytes, self.reported.1);
        match self.keeping.budget.change(bytes, self.reported.1) {
            None if self.keeping.budget.is_exhausted() => {
                Err(Error::new(ErrorKind::State, "the process has no more memory for state"))
            }
            None => Ok(()),
            Some((limit, used)) => {
                let (entries, own) = (self.keeping.meter.entries.get(), ByteSize(self.keeping.meter.state_bytes.get()));
                let doing = format!(
                    "state has outgrown its memory: the job keeps {used} of {limit} (`Job::state_memory`), {own} of it \
                     here, in {entries} entries"
                );
                Err(Error::new(ErrorKind::State, doing))
            }
        }
    }

    /// The run has ended with that state.
    pub(super) fn end(&self, kept: &dyn Keep) {
        if let Some(print) = &self.keeping.print {
            kept.add_to(print);
        }
    }

    /// Reports when the state has grown by a sixteenth since it was reported last, and when its
    /// tables have.
    pub(super) fn report_growth(&mut self, held: Option<&mut dyn Held>) -> Result<()> {
        let Some(held) = held else { return Ok(()) };
        if held.has_grown() || held.len() > self.reported.0 + self.reported.0 / 16 + 1_024 {
            return self.report(held);
        }
        Ok(())
    }
}
