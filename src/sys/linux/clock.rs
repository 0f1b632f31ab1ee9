//! Clocks.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds since boot, including sleep; this clock cannot be set.
pub fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// The wall-clock time of a start time, off by as much as the clock was set since then.
pub fn wall_clock(start: u64) -> Option<SystemTime> {
    let started = start.checked_mul(1000)? / rustix::param::clock_ticks_per_second();
    SystemTime::now().checked_sub(Duration::from_millis(since_boot().checked_sub(started)?))
}
