//! The identities of this machine and its boot, and start times of processes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use crate::sys::clock::since_boot;

/// Whether a process that started at one of these times may have started at the other one.
pub fn is_same_start(one: u64, two: u64) -> bool {
    one == two
}

/// The wall-clock time of a start time, off by as much as the clock was set since then.
pub fn wall_clock(start: u64) -> Option<SystemTime> {
    let started = start.checked_mul(1000)? / rustix::param::clock_ticks_per_second();
    SystemTime::now().checked_sub(Duration::from_millis(since_boot().checked_sub(started)?))
}

pub fn machine() -> Option<String> {
    fs::read_to_string("/etc/machine-id").ok()
}

pub fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

pub fn pid_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|metadata| metadata.ino())
}
