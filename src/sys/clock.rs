//! Clocks.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

pub use crate::sys::platform::identity::wall_clock;

/// A clock that includes sleep and cannot be set.
#[cfg(target_os = "linux")]
const BOOT: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const BOOT: ClockId = ClockId::Monotonic;

/// Milliseconds since boot, including sleep; this clock cannot be set.
pub fn since_boot() -> u64 {
    millis(Duration::try_from(clock_gettime(BOOT)).unwrap_or_default())
}

/// Milliseconds since 1970.
pub fn since_1970() -> u64 {
    millis(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// A duration in milliseconds; a huge one can still be added to a time.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}
