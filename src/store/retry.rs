//! Asks a store again after a hiccup.

use std::time::{Duration, Instant, SystemTime};

use super::failure::{Cause, Failure};

/// How often a store is asked when the connection breaks or the store is busy: for a hiccup, not for an outage.
const MAX_TRIES: u32 = 4;

/// When to stop: a holder that renews its lease must give up in time.
const LIMIT: Duration = Duration::from_secs(2);

/// The pause before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(40);

/// In milliseconds.
pub fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(0)
}

/// Asks again after a transient failure.
pub fn retry<T>(mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let begun = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        match ask() {
            Err(failure) if failure.cause == Cause::Transient && tries < MAX_TRIES && begun.elapsed() < LIMIT => {
                tracing::debug!("trying again: {}", failure.why);
                std::thread::sleep(jittered(FIRST_PAUSE * 2_u32.pow(tries - 1)));
            }
            answer => return answer,
        }
    }
}

/// Between three and five quarters of `pause`, so that many processes do not all come back at the same moment.
pub fn jittered(pause: Duration) -> Duration {
    let mut bytes = [0_u8; 2];
    // Without random numbers, there is no jitter.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    pause * 3 / 4 + pause / 2 * u32::from(u16::from_le_bytes(bytes)) / u32::from(u16::MAX)
}
