//! Random numbers.

use std::io;
use std::time::Duration;

pub use crate::sys::platform::files::fill_random;

/// Between three and five quarters of `pause`, so that many processes do not come back at once.
pub fn jittered(pause: Duration) -> Duration {
    let mut bytes = [0_u8; 2];
    // Without random numbers, the pause is not varied.
    let _ = fill_random(&mut bytes);
    pause * 3 / 4 + pause / 2 * u32::from(u16::from_le_bytes(bytes)) / u32::from(u16::MAX)
}

/// 128 random bits in hexadecimal.
pub fn random_token() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    fill_random(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}
