//! What the operating system knows: processes, clocks, files and time zones; and how foreign text
//! is shown. All that only Linux has is in `linux`; `portable` does the same by what other systems
//! have as well, less exactly (docs/platforms.md). No other module depends on the system.

#[cfg(all(target_os = "linux", not(serializer_portable)))]
#[path = "sys/linux/mod.rs"]
mod platform;
#[cfg(not(all(target_os = "linux", not(serializer_portable))))]
#[path = "sys/portable/mod.rs"]
mod platform;

pub mod clock;
#[cfg_attr(target_os = "linux", path = "sys/linux/filesystem.rs")]
#[cfg_attr(not(target_os = "linux"), path = "sys/portable/filesystem.rs")]
pub mod filesystem;
pub mod identity;
pub mod local_time;
pub mod poll;
pub mod process;
pub mod random;
pub mod text;

use std::io;
use std::thread::Builder;

use nix::sys::signal::{SigSet, SigmaskHow};
pub use platform::{channel, files, signals, timer};

/// The stack of a thread that waits and polls: it calls some functions of the system.
const STACK_BYTES: usize = 128 * 1024;

/// Runs a thread that no signal reaches: signals are for the main thread, which may hold them back.
pub fn quietly(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // The thread inherits this.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let spawned = Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(work);
    before.thread_set_mask()?;
    spawned.map(drop)
}
