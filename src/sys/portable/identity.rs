//! The identities of this machine and its boot, and start times of processes. Without an identity
//! (`None`), no lock is acquired, and none counts as stale.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// How far start times of the same process may differ, in seconds. macOS keeps them; on Linux (for
/// tests), sysinfo computes them from the boot time, which changes when the clock is set.
const START_MARGIN: u64 = 2;

/// The length of an id of a boot. Any other answer would make each holder one of an earlier boot.
const UUID: usize = 36;

pub fn is_same_start(one: u64, two: u64) -> bool {
    one.abs_diff(two) <= START_MARGIN
}

pub fn wall_clock(start: u64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(start))
}

/// `/etc/machine-id`, or the number of a Mac's hardware.
pub fn machine() -> Option<String> {
    fs::read_to_string("/etc/machine-id").ok().or_else(|| sysinfo::Product::uuid().ok())
}

/// The random id of this boot. Its time would change when the clock is set, and make each holder
/// one of an earlier boot. A call instead of a program would be unsafe code.
pub fn boot() -> Option<String> {
    ["kern.bootsessionuuid", "kernel.random.boot_id"]
        .iter()
        .filter_map(|name| Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok())
        .filter_map(|output| String::from_utf8(output.stdout).ok())
        .find(|id| id.trim().len() == UUID)
}

/// The same for all processes: the system has no PID namespaces. Linux never uses this number, so
/// each implementation treats the other's holders, with other start times, as unknown.
pub fn pid_namespace() -> Option<u64> {
    Some(super::process::FIRST_PID_NAMESPACE)
}
