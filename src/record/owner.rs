//! The owner of a lock: a process, identified so that it is not mistaken for another one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Pid, getuid};

use crate::sys::process::{self, Process};

/// Where a PID means something: one boot of one machine, seen from one PID namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostIdentity {
    /// The host's name.
    pub host: Option<String>,
    /// `/etc/machine-id`.
    pub machine: Option<String>,
    /// The kernel's random id of this boot.
    pub boot: Option<String>,
    /// The inode number of the PID namespace.
    pub pid_namespace: Option<u64>,
}

impl HostIdentity {
    /// The place of this very process. What cannot be read is `None`, and then proves nothing.
    pub fn here() -> Self {
        Self {
            host: rustix::system::uname().nodename().to_str().ok().and_then(known),
            machine: read("/etc/machine-id"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: fs::metadata("/proc/self/ns/pid").ok().map(|metadata| metadata.ino()),
        }
    }
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    known(&fs::read_to_string(path).ok()?)
}

// systemd writes `uninitialized` on first boot; images are shipped with an empty machine-id.
fn known(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text != "uninitialized" && text != "(none)").then(|| text.to_owned())
}

/// Which of the processes that had a PID one after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Start time in clock ticks since boot, `/proc/PID/stat` field 22. Quick reuse can repeat it.
    pub start: Option<u64>,
    /// The inode number of its pidfd: unique until reboot, on Linux 6.9 and newer (`fs/pidfs.c`).
    pub pidfd: Option<u64>,
}

impl ProcessIdentity {
    /// Whether both are the same process of one PID; `None` when there is nothing to compare.
    pub fn same_as(self, other: Self) -> Option<bool> {
        // Start times shift between time namespaces, so pidfds decide where both have one.
        self.pidfd.zip(other.pidfd).or(self.start.zip(other.start)).map(|(one, two)| one == two)
    }
}

/// The identity of the process that owns a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its process id, in its PID namespace.
    pub pid: Pid,
    /// Its user.
    pub uid: Option<u32>,
    /// Where the PID counts.
    pub place: HostIdentity,
    /// Which process of that PID.
    pub instance: ProcessIdentity,
}

impl Owner {
    /// The process `pid` of this host, unless it has ended.
    pub fn of(pid: Pid, here: &HostIdentity) -> io::Result<Self> {
        let process = process::running(pid).ok_or_else(|| io::Error::other(format!("process {pid} has ended")))?;
        Ok(Self::new(&process, here))
    }

    /// A process of this host.
    pub fn new(process: &Process, here: &HostIdentity) -> Self {
        let uid = Some(getuid().as_raw());
        Self { pid: process.pid(), uid, place: here.clone(), instance: process.instance }
    }

    /// The same, unless it could not be recognised later.
    pub fn identified(self) -> io::Result<Self> {
        let (pid, why) = (self.pid, "/proc is not mounted or not readable, or too many files are open");
        if self.is(&self) { Ok(self) } else { Err(io::Error::other(format!("cannot identify pid {pid}: {why}"))) }
    }

    /// Whether both are provably the same process. The boot id is unique among hosts; their names
    /// may change.
    pub fn is(&self, other: &Self) -> bool {
        let same_place = self.place.boot.is_some()
            && self.place.boot == other.place.boot
            && self.place.pid_namespace.is_some()
            && self.place.pid_namespace == other.place.pid_namespace;
        same_place && self.pid == other.pid && self.instance.same_as(other.instance) == Some(true)
    }
}
