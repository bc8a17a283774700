//! The lease of a run on its commits: a lease, kept alive by renewals. A job that assigns its
//! own partitions is not a member of its group, so the group does not fence it. Instead, it signs
//! its commits in their metadata, and reads back which run signed last. When two runs meet, the one
//! that began first ends with an error that names the other: it was paused or cut off, and the
//! other has replaced it.
//!
//! A run renews its lease while it is alive, and marks it as ended when it shuts down cleanly.
//! A lease that was not renewed for [`DEAD_AFTER`] belongs to a run that died.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millstream::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// How long a lease is valid without renewal.
pub(crate) const DEAD_AFTER: Duration = Duration::from_secs(10);
/// How often a lease is renewed when there is nothing to commit.
pub(crate) const RENEW_EVERY: Duration = Duration::from_secs(3);
/// The least time for which a lease is watched. A run that is alive renews its lease within
/// this, even if clock skew makes the lease look older than it is.
const WATCH_MIN: Duration = Duration::from_secs(4);
/// How often the leases are read while it is unknown whether a run is dead.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// Identifies the run that made a commit. Two that were read are equal if nothing was committed in
/// between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    run: String,
    host: String,
    process: u32,
    /// When the run began and when it signed, in milliseconds since 1970.
    began: u64,
    at: u64,
    has_ended: bool,
}

/// Whether a run continues after a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    GoesOn,
    HasEnded,
}

/// The metadata of a commit. Other programs write metadata of their own.
#[derive(Serialize, Deserialize)]
struct Metadata {
    millstream: Lease,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

impl Lease {
    /// The lease of a run that begins now. All runs of a process share an id, so a restarted
    /// job is not another run, and so do all runs with a directory of checkpoints, which has a
    /// lock.
    pub(crate) fn new(identity: Option<String>) -> Lease {
        static RUN: OnceLock<String> = OnceLock::new();
        let of_process = || RUN.get_or_init(|| format!("{:016x}", RandomState::new().build_hasher().finish())).clone();
        Lease {
            run: identity.unwrap_or_else(of_process),
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            process: std::process::id(),
            began: now(),
            at: 0,
            has_ended: false,
        }
    }

    /// The metadata of a commit that is made now.
    pub(crate) fn metadata(&self, life: Life) -> String {
        let millstream = Lease { at: now(), has_ended: life == Life::HasEnded, ..self.clone() };
        serde_json::to_string(&Metadata { millstream }).expect("text and numbers can be serialized")
    }

    /// The lease in a commit's metadata, if there is one.
    pub(crate) fn read(metadata: &str) -> Option<Lease> {
        serde_json::from_str::<Metadata>(metadata).ok().map(|metadata| metadata.millstream)
    }

    /// Whether `other` belongs to another run, which may have ended.
    pub(crate) fn is_other(&self, other: &Lease) -> bool {
        // A directory that was copied to another machine has its lock there.
        self.run != other.run || self.host != other.host
    }

    /// Whether `other` belongs to another run that is not marked as ended.
    fn is_foreign(&self, other: &Lease) -> bool {
        self.is_other(other) && !other.has_ended
    }

    /// Makes this run begin later than all others that have signed so far, regardless of clock
    /// skew.
    pub(crate) fn begin_after(&mut self, others: &[Lease]) {
        let last = others.iter().filter(|other| self.is_foreign(other)).map(|other| other.began).max();
        self.began = self.began.max(last.map_or(0, |last| last + 1));
    }

    /// Whether this run must end because of another one.
    pub(crate) fn gives_way_to(&self, other: &Lease) -> bool {
        self.is_foreign(other) && (other.began, &other.run) > (self.began, &self.run)
    }

    /// How much longer its run may be alive without signing again.
    fn lives_for(&self) -> Duration {
        DEAD_AFTER.saturating_sub(Duration::from_millis(now().saturating_sub(self.at))).max(WATCH_MIN)
    }

    /// The error of a run that must not continue beside this one.
    pub(crate) fn refusal(&self, group: &str) -> Error {
        let doing = format!("group `{group}` is already read by run {self}; each would overwrite the other's offsets");
        Error::new(ErrorKind::Refused, doing)
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of process {} on {}", self.run, self.process, self.host)
    }
}

/// Waits until all runs that are foreign to `own` are known to be dead; `signed` reads the current
/// leases.
///
/// # Errors
/// When one of them is alive.
pub(crate) fn await_expiry(own: &mut Lease, group: &str, mut signed: impl FnMut() -> Result<Vec<Lease>>) -> Result<()> {
    let mut foreign = || {
        signed().map(|mut leases| {
            own.begin_after(&leases);
            leases.retain(|other| own.is_foreign(other));
            leases
        })
    };
    let until = |leases: &[Lease]| leases.iter().map(|one| Instant::now() + one.lives_for()).max();
    let mut known = foreign()?;
    let mut deadline = until(&known);
    let mut signs_of_life = 0;
    while let Some(left) = deadline.and_then(|deadline| deadline.checked_duration_since(Instant::now())) {
        tracing::info!(group, run = %known[0], "another run is not marked as ended, checking whether it is alive");
        thread::sleep(WATCH_EVERY.min(left));
        let now = foreign()?;
        // A new lease means that its run is alive, regardless of clock skew. But a single one
        // may have been in flight when the run died.
        if let Some(lives) = now.iter().find(|lease| !known.contains(lease)) {
            signs_of_life += 1;
            if signs_of_life > 1 {
                return Err(lives.refusal(group));
            }
            deadline = until(&now);
        }
        if now.is_empty() {
            return Ok(());
        }
        known = now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(run: &str, at: u64) -> Lease {
        Lease { run: run.to_owned(), at, ..Lease::new(None) }
    }

    #[test]
    fn a_commit_says_who_made_it() {
        let own = Lease::new(None);
        let read = Lease::read(&own.metadata(Life::GoesOn)).unwrap();
        assert!(!own.is_foreign(&read) && !own.gives_way_to(&read), "{read:?}");
        assert!(Lease::read(&own.metadata(Life::HasEnded)).unwrap().has_ended);
        for other in ["", "{}", "consumer-1", "{\"millstream\":7}"] {
            assert_eq!(Lease::read(other), None, "{other}");
        }
    }

    #[test]
    fn of_two_runs_one_gives_way() {
        let mut own = Lease::new(None);
        let later = Lease { began: own.began + 1, ..foreign("theirs", 0) };
        let at_once = Lease { began: own.began, ..foreign("theirs", 0) };
        assert!(own.gives_way_to(&later) && !later.gives_way_to(&own));
        assert_ne!(own.gives_way_to(&at_once), at_once.gives_way_to(&own));
        // Their clock is ahead.
        let ahead = Lease { began: own.began + 1_000_000, ..foreign("theirs", 0) };
        own.begin_after(std::slice::from_ref(&ahead));
        assert!(ahead.gives_way_to(&own) && !own.gives_way_to(&ahead));
    }

    #[test]
    fn who_signs_again_lives_and_who_ended_does_not_matter() {
        // Our clock may be ahead of theirs by any amount.
        for age in [5_000, 3_600_000] {
            let (mut own, mut asked) = (Lease::new(None), 0);
            let error = await_expiry(&mut own, "orders", || {
                asked += 1;
                Ok(vec![foreign("theirs", now() - age + asked)])
            });
            let error = error.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains("`orders`") && error.to_string().contains("theirs"), "{error}");
        }
        let mut own = Lease::new(None);
        let (ended, ours) = (Lease { has_ended: true, ..foreign("theirs", now()) }, own.clone());
        await_expiry(&mut own, "orders", || Ok(vec![ended.clone(), ours.clone()])).unwrap();
    }

    #[test]
    fn a_dead_run_is_waited_for_as_long_as_it_may_live() {
        let (mut own, begun) = (Lease::new(None), Instant::now());
        let dead = foreign("dead", now() - 60_000);
        await_expiry(&mut own, "orders", || Ok(vec![dead.clone()])).unwrap();
        assert!(begun.elapsed() >= WATCH_MIN, "{:?}", begun.elapsed());
    }
}
