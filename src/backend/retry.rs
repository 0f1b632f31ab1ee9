//! Asks a store again after a hiccup.

use std::time::{Duration, Instant, SystemTime};

use super::failure::{Cause, Failure};

/// How often a question is asked again when the connection breaks or the store is busy: a hiccup, not an outage. Who
/// wants to wait for longer asks again later.
const MAX_TRIES: u32 = 4;

/// Not again after so long: who renews a lease has to give up in time.
const LIMIT: Duration = Duration::from_secs(2);

/// Before the second try; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(40);

/// In milliseconds.
pub fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(0)
}

/// Asks again while the answer is that it may work soon.
pub fn retry<T>(mut ask: impl FnMut(u32) -> Result<T, Failure>) -> Result<T, Failure> {
    let mut pause = FIRST_PAUSE;
    let mut tries = 0;
    let begun = Instant::now();
    // Ends after so many tries.
    loop {
        tries += 1;
        match ask(tries) {
            Err(failure) if failure.cause == Cause::Transient && tries < MAX_TRIES && begun.elapsed() < LIMIT => {
                tracing::debug!("trying again: {}", failure.why);
                std::thread::sleep(jittered(pause));
                pause *= 2;
            }
            answer => return answer,
        }
    }
}

/// Between three and five quarters of it: those whom one event has stopped, or who wait for the same, must not all come back at the
/// same moment.
pub fn jittered(pause: Duration) -> Duration {
    let mut bytes = [0_u8; 2];
    // Without random numbers, there is no jitter.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    pause * 3 / 4 + pause / 2 * u32::from(u16::from_le_bytes(bytes)) / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::jittered;

    #[test]
    fn pauses_are_about_as_long_as_they_are_meant_to_be() {
        let pause = Duration::from_secs(8);
        assert!((0..1000).all(|_| (Duration::from_secs(6)..=Duration::from_secs(10)).contains(&jittered(pause))));
    }
}
