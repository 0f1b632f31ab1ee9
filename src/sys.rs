//! The operating system: processes, clocks, files and time zones; and foreign text, made safe to
//! show. `linux` uses facilities that only Linux has; `portable` does the same less exactly on
//! other systems (docs/platforms.md). No other module depends on the system.

#[cfg_attr(all(target_os = "linux", not(serializer_portable)), path = "sys/linux/mod.rs")]
#[cfg_attr(not(all(target_os = "linux", not(serializer_portable))), path = "sys/portable/mod.rs")]
#[allow(missing_docs, reason = "`linux` documents what the names do not say")]
mod platform;

pub mod channel;
pub mod clock;
#[cfg_attr(target_os = "linux", path = "sys/linux/filesystem.rs")]
#[cfg_attr(not(target_os = "linux"), path = "sys/portable/filesystem.rs")]
#[allow(missing_docs, reason = "`linux` documents what the names do not say")]
pub mod filesystem;
pub mod identity;
pub mod local_time;
pub mod poll;
pub mod process;
pub mod random;
pub mod text;

/// Signals, read from a queue instead of being handled.
pub mod signals {
    use nix::sys::signal::Signal;

    pub use super::platform::signals::*;

    /// A received signal.
    pub struct Received {
        /// Which one.
        pub signal: Signal,
        /// Whether it comes from the terminal instead of a process.
        pub is_from_kernel: bool,
    }
}

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use nix::sys::signal::{SigSet, SigmaskHow};
pub use platform::{files, timer};

/// Locks a mutex, whatever became of the threads that had it.
pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stack of a thread that waits and polls, with few calls.
const STACK_BYTES: usize = 128 * 1024;

/// Starts a thread with all signals blocked: the main thread handles signals, and may defer them.
pub fn quietly(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // The thread inherits the mask.
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let spawned = Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(work);
    before.thread_set_mask()?;
    spawned.map(drop)
}
