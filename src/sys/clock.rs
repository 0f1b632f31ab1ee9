//! Clocks.

use std::time::SystemTime;

pub use crate::sys::platform::clock::{since_boot, wall_clock};

/// Milliseconds since 1970.
pub fn since_1970() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(0)
}
