//! How threads tell a sleeping thread that there is a reason to look, without one wake-up per
//! reason. The ticker sleeps on a bell.

use super::sync::{AtomicBool, Condvar, Mutex, MutexGuard, SeqCst, lock};

/// One thread sleeps on it; others note reasons.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    /// There was a reason since the sleeper last took it.
    reason: AtomicBool,
    /// The sleeper is about to sleep, and must be woken for a reason.
    asleep: AtomicBool,
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    /// Notes a reason. It wakes the sleeper only if it sleeps without a limit.
    pub(crate) fn note(&self) {
        // With `set_asleep` and `take`: this sets the reason and then reads `asleep`; the sleeper
        // sets `asleep` and then reads the reason. Whatever the order, one of the two sees the
        // other, so a reason is either taken or rung for. Only the first of several reasons has to
        // look at `asleep`.
        if !self.reason.load(SeqCst) && !self.reason.swap(true, SeqCst) && self.asleep.load(SeqCst) {
            self.ring();
        }
    }

    /// Takes the reason, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.reason.swap(false, SeqCst)
    }

    /// Whether there is a reason.
    pub(crate) fn has_reason(&self) -> bool {
        self.reason.load(SeqCst)
    }

    /// Wakes the sleeper, now or when it next waits.
    pub(crate) fn ring(&self) {
        *lock(&self.rung) = true;
        self.changed.notify_all();
    }

    /// The sleeper sets this *before* it looks for the last time, so that every later reason rings.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, SeqCst);
    }

    /// Waits until the bell rings, or until `wait` returns for another reason; `wait` waits on the
    /// condition.
    pub(crate) fn wait<'a>(&'a self, wait: impl FnOnce(MutexGuard<'a, bool>, &'a Condvar) -> MutexGuard<'a, bool>) {
        let mut rung = lock(&self.rung);
        if !*rung {
            rung = wait(rung, &self.changed);
        }
        *rung = false;
    }
}
