//! What identifies a host, and a process on it.

use std::sync::LazyLock;

use crate::sys::platform::identity;

/// Where a PID means something: one boot of one machine, seen from one PID namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostIdentity {
    /// The host's name.
    pub host: Option<String>,
    /// A unique id of the machine: `/etc/machine-id`, or the hardware's.
    pub machine: Option<String>,
    /// The kernel's random id of this boot.
    pub boot: Option<String>,
    /// The inode number of the PID namespace.
    pub pid_namespace: Option<u64>,
}

impl HostIdentity {
    /// The place of this process. An unreadable field is `None`, and proves nothing.
    pub fn here() -> Self {
        static HERE: LazyLock<HostIdentity> = LazyLock::new(|| HostIdentity {
            host: rustix::system::uname().nodename().to_str().ok().and_then(known),
            machine: identity::machine().as_deref().and_then(known),
            boot: identity::boot().as_deref().and_then(known),
            pid_namespace: identity::pid_namespace(),
        });
        HERE.clone()
    }
}

// systemd writes `uninitialized` on first boot; images are shipped with an empty machine-id.
fn known(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text != "uninitialized" && text != "(none)").then(|| text.to_owned())
}

/// Distinguishes the processes that have had the same PID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Start time: on Linux in clock ticks since boot (`/proc/PID/stat` field 22), elsewhere in
    /// seconds since 1970. A quickly reused PID can have the same one.
    pub start: Option<u64>,
    /// The inode number of its pidfd: unique until reboot, on Linux 6.9 and newer (`fs/pidfs.c`).
    pub pidfd: Option<u64>,
}

impl ProcessIdentity {
    /// Whether both are the same process with one PID; `None` if they have no field in common.
    pub fn same_as(self, other: Self) -> Option<bool> {
        // Start times shift between time namespaces, so pidfds decide where both have one.
        let by_pidfd = self.pidfd.zip(other.pidfd).map(|(one, two)| one == two);
        by_pidfd.or_else(|| {
            self.start.zip(other.start).map(|(one, two)| identity::is_same_start(one, two))
        })
    }
}
