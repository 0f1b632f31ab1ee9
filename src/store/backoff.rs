//! When to ask a store again: after a hiccup, and while waiting.

use std::time::{Duration, Instant};

use super::failure::{Cause, Failure};
use super::seam::{Fds, Queue};
use crate::sys::random::jittered;

/// How often a store is asked when the connection breaks or the store is busy: for a hiccup, not
/// for an outage.
const MAX_TRIES: u32 = 4;

/// When to stop: a holder that renews its lease must give up in time.
const LIMIT: Duration = Duration::from_secs(2);

/// The pause before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(40);

/// Asks again after a transient failure.
pub fn retry<T>(mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let begun = Instant::now();
    for tries in 0..MAX_TRIES - 1 {
        match ask() {
            Err(failure) if failure.cause == Cause::Transient && begun.elapsed() < LIMIT => {
                tracing::debug!("retrying: {}", failure.why);
                std::thread::sleep(jittered(FIRST_PAUSE * 2_u32.pow(tries)));
            }
            answer => return answer,
        }
    }
    ask()
}

/// A waiter has waited for so many times as long as there is between two polls.
const GROW: u32 = 10;

/// The polls of a waiter, in a store without a queue. The time waited alone decides: a holder that
/// renews its lease changes what is stored, but not how long others have to wait.
#[derive(Clone)]
pub struct PollBackoff {
    first: Duration,
    last: Duration,
    since: Option<Instant>,
}

impl PollBackoff {
    /// With so long between two polls at first, and in the end.
    pub fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, since: None }
    }

    /// How long to sleep after having waited for so long, `limit` before the next attempt.
    pub fn pause_after(&self, waited: Duration, limit: Duration) -> Duration {
        let pause = (waited / GROW).clamp(self.first, self.last);
        // A poll just before one that is due anyway would be one too many.
        if limit <= pause * 5 / 4 { limit } else { jittered(pause) }
    }
}

impl Queue for PollBackoff {
    fn wait(&mut self, _: bool, limit: Duration, fds: Fds<'_>) -> Result<(), Failure> {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        super::pause(self.pause_after(waited, limit), fds)
    }

    fn leave(&mut self) {
        self.since = None;
    }
}

/// The shortest and the longest pause of a waiter for which a store has no connection.
pub const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// How long a waiter pauses for which a store has had no connection `since` then: a quarter of
/// that.
pub fn pause_outside(since: &mut Option<Instant>) -> Duration {
    let since = *since.get_or_insert_with(Instant::now);
    jittered((since.elapsed() / 4).clamp(PAUSES.0, PAUSES.1))
}
