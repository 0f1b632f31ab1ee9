//! Linux: pidfds, `/proc`, signalfd, timerfd, files without names, and the abstract namespace.

pub mod files;
pub mod identity;
pub mod process;
pub mod signals;
pub mod timer;
