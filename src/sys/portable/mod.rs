//! macOS and other Unix systems: `kill(0)` and sysinfo for processes, sigwait, pipes, and threads
//! that poll. If the system shows too little, a lock counts as held. `linux` documents the rest.

pub mod files;
pub mod identity;
pub mod process;
pub mod signals;
pub mod timer;
