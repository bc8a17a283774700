//! How a writer wakes the delivery thread, which sleeps while nothing is in flight.

use super::sync::{AtomicBool, Condvar, Mutex, MutexGuard, SeqCst, lock};

/// Whether the delivery thread sleeps.
#[derive(Default)]
pub(crate) struct Sending {
    asleep: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Sending {
    /// Wakes the thread if it sleeps. Called after a record was handed to the client.
    pub(crate) fn wake(&self) {
        // With `sleep_if`: a writer sends and then reads `asleep`; the thread sets `asleep` and
        // then looks for records. So either the thread sees the record, or the writer sees it
        // asleep. The lock is held from that look until the thread waits, so the notification is
        // not too early.
        if self.asleep.load(SeqCst) {
            self.wake_always();
        }
    }

    pub(crate) fn wake_always(&self) {
        drop(lock(&self.lock));
        self.changed.notify_one();
    }

    /// Sleeps if there is nothing to wait for; `wait` waits on the condition.
    pub(crate) fn sleep_if<'a>(
        &'a self,
        has_nothing: impl FnOnce() -> bool,
        wait: impl FnOnce(MutexGuard<'a, ()>, &'a Condvar) -> MutexGuard<'a, ()>,
    ) {
        let guard = lock(&self.lock);
        self.asleep.store(true, SeqCst);
        if has_nothing() {
            drop(wait(guard, &self.changed));
        }
        self.asleep.store(false, SeqCst);
    }
}
