//! What macOS and other Unix systems have: `kill(0)` and sysinfo for processes, sigwait, sockets and
//! pipes, and threads that poll. Where the system tells less, a lock counts as held.

pub mod channel;
pub mod clock;
pub mod files;
pub mod identity;
pub mod process;
pub mod signals;
pub mod timer;
