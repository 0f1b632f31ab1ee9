//! How single values are written.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use rustix::process::Pid;

use super::OnLost;
use crate::mode::MAX_SLOTS;
use crate::record;
use crate::verdict::Orphans;

/// The longest time between two tries, in seconds: a year, far from what overflows a clock.
const MAX_SLEEP_SECONDS: u64 = 31_536_000;

pub(super) fn parse_path(text: &str) -> Result<PathBuf, String> {
    Ok(PathBuf::from(text))
}

/// A number of attempts.
///
/// # Errors
/// What was expected instead.
pub fn parse_max_attempts(text: &str) -> Result<u32, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.ok_or_else(|| format!("expected a whole number from 0 (try for ever) to {}", u32::MAX))
}

/// A number of slots.
///
/// # Errors
/// What was expected instead.
pub fn parse_slots(text: &str) -> Result<NonZeroU32, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().and_then(NonZeroU32::new).filter(|number| digits && number.get() <= MAX_SLOTS);
    number.ok_or_else(|| format!("expected a whole number from 1 to {MAX_SLOTS}"))
}

/// Seconds, with a fraction or without.
///
/// # Errors
/// What was expected instead.
pub fn parse_sleep_seconds(text: &str) -> Result<Duration, String> {
    // Rust's numbers also come as `inf`, `nan`, `1e3` and `+1`.
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = text.parse::<f64>().ok().filter(|seconds| plain && *seconds <= MAX_SLEEP_SECONDS as f64);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.ok_or_else(|| format!("expected a number of seconds from 0 to {MAX_SLEEP_SECONDS}, such as 1 or 0.5"))
}

/// A duration with units.
///
/// # Errors
/// What was expected instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let duration = duration.filter(|duration| duration.as_secs() <= MAX_SLEEP_SECONDS);
    duration.ok_or_else(|| "expected a duration with units up to a year, such as 90s, 2m or 1h30m".to_owned())
}

/// A process id.
///
/// # Errors
/// What was expected instead.
pub fn parse_owner_pid(text: &str) -> Result<Pid, String> {
    record::parse_pid(text).ok_or_else(|| format!("expected a process id, a whole number from 1 to {}", i32::MAX))
}

/// What to make of orphans.
///
/// # Errors
/// What was expected instead.
pub fn parse_orphans(text: &str) -> Result<Orphans, String> {
    match text {
        "wait" => Ok(Orphans::Wait),
        "ignore" => Ok(Orphans::Ignore),
        _ => Err("expected `wait` or `ignore`".to_owned()),
    }
}

/// For how long a lease lasts: long enough to be renewed three times over a network, short enough to wait for.
///
/// # Errors
/// What was expected instead.
pub fn parse_lease_seconds(text: &str) -> Result<Duration, String> {
    let lease = parse_sleep_seconds(text).ok().filter(|lease| (1..=86_400).contains(&lease.as_secs()));
    // Records have whole milliseconds.
    let lease = lease.and_then(|lease| u64::try_from(lease.as_millis()).ok()).map(Duration::from_millis);
    lease.ok_or_else(|| "expected a number of seconds from 1 to 86400, such as 30".to_owned())
}

/// What to do about a lost lock.
///
/// # Errors
/// What was expected instead.
pub fn parse_on_lost(text: &str) -> Result<OnLost, String> {
    match text {
        "terminate" => Ok(OnLost::Terminate),
        "warn" => Ok(OnLost::Warn),
        _ => Err("expected `terminate` or `warn`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{parse_duration, parse_max_attempts, parse_sleep_seconds};

    #[test]
    fn attempts_are_whole_numbers() {
        assert_eq!(parse_max_attempts("0"), Ok(0));
        assert_eq!(parse_max_attempts("60"), Ok(60));
        for bad in ["", "abc", "-1", "+1", "1e3", "1.5", " 1", "4294967296"] {
            assert!(parse_max_attempts(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn seconds_may_have_a_fraction_and_nothing_else() {
        assert_eq!(parse_sleep_seconds("0"), Ok(Duration::ZERO));
        assert_eq!(parse_sleep_seconds("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_sleep_seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["", "abc", "-1", "+1", "1e3", "inf", "nan", "1s", ".", "31536001", "1.2.3"] {
            assert!(parse_sleep_seconds(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_timeout_has_a_unit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "90", "-1s", "1s ago", "1 fortnight", "9999h9999h", "400000h", "1y"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }
}
