//! How a stage calls other services.

use std::time::Duration;

use crate::operator::calls::Manner;

/// How many calls run at once on each worker, in which order their answers go on, and how long one may take; see
/// [`Stream::map_async`](crate::Stream::map_async).
#[derive(Clone, Copy, Debug)]
#[must_use = "it says how `Stream::map_async` calls"]
pub struct Calls(Manner);

impl Calls {
    /// At most so many at once; answers go on in the order of their records.
    ///
    /// # Panics
    /// When `at_once` is 0.
    pub fn ordered(at_once: usize) -> Calls {
        assert!(at_once > 0, "there must be a call at a time");
        Calls(Manner { at_once, is_ordered: true, within: Duration::from_secs(10) })
    }

    /// At most so many at once; answers go on as they come, so a slow one keeps no other waiting.
    ///
    /// # Panics
    /// When `at_once` is 0.
    pub fn unordered(at_once: usize) -> Calls {
        let Calls(manner) = Calls::ordered(at_once);
        Calls(Manner { is_ordered: false, ..manner })
    }

    /// How long a call may take, 10 s by default. One that takes longer is dropped, and its record goes on as
    /// [`TimedOut`](crate::TimedOut).
    pub fn within(self, limit: Duration) -> Calls {
        Calls(Manner { within: limit, ..self.0 })
    }

    pub(crate) fn manner(self) -> Manner {
        self.0
    }
}
