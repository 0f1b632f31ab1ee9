//! The identities of this machine and its boot.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// Whether a process that started at one of these times may have started at the other one.
pub fn is_same_start(one: u64, two: u64) -> bool {
    one == two
}

/// `/etc/machine-id`.
pub fn machine() -> Option<String> {
    fs::read_to_string("/etc/machine-id").ok()
}

/// The kernel's random id of this boot.
pub fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// The inode number of this PID namespace.
pub fn pid_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").ok().map(|metadata| metadata.ino())
}
