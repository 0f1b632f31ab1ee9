//! The owner of a lock: a process, identified so that it is not mistaken for another one.

use std::io;

use rustix::process::{Pid, getuid};

use crate::sys::identity::{HostIdentity, ProcessIdentity};
use crate::sys::process::{self, Process};
use crate::sys::text::io_message;

/// The identity of the process that owns a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Owner {
    pub pid: Pid,
    pub uid: Option<u32>,
    pub place: HostIdentity,
    pub instance: ProcessIdentity,
}

impl Owner {
    /// The process `pid` of this host, unless it has ended.
    pub fn of(pid: Pid, here: &HostIdentity) -> io::Result<Self> {
        let process = process::running(pid)
            .ok_or_else(|| io::Error::other(format!("process {pid} has ended")))?;
        Ok(Self::new(&process, here))
    }

    /// A process of this host.
    pub fn new(process: &Process, here: &HostIdentity) -> Self {
        let uid = Some(getuid().as_raw());
        Self { pid: process.pid(), uid, place: here.clone(), instance: process.instance }
    }

    /// The same, unless it could not be recognised later.
    pub fn identified(self) -> io::Result<Self> {
        if self.is(&self) {
            return Ok(self);
        }
        let why = io_message(&process::why_unidentifiable());
        Err(io::Error::other(format!("cannot identify pid {}: {why}", self.pid)))
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
