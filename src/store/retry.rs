//! When to ask a store again: after a hiccup, and while waiting.

use std::time::{Duration, Instant};

use super::failure::{Cause, Failure};
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
